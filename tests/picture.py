"""Draws the first success as the README shows it, from a real run in three terminals.

    sessions(folder)    makes the keys in a folder, uses them, and returns what was seen
    draw(windows)       returns that as a picture (SVG 1.1)

Run as a program, it writes tests/first-success.svg again:

    .venv/bin/python tests/picture.py
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from html import escape
from pathlib import Path
from typing import NamedTuple

from running import CLIENT, GENERATE, ROOT, SERVER, Terminal

PICTURE = ROOT / "tests/first-success.svg"
PEM_PROMPT = "Enter PEM pass phrase:"


class Window(NamedTuple):
    """A terminal: the command that was typed, and the lines that followed."""

    command: str
    lines: list[str]


def sessions(folder: Path) -> list[Window]:
    """Make the keys in a folder, use them, and return what the three terminals showed."""
    shutil.copy(ROOT / "sros_config.yml", folder)
    generate = Terminal(sys.executable, GENERATE, cwd=folder)
    for phrase in ("root", "root", "sros", "sros"):
        generate.expect("PASSPHRASE): ")
        generate.type(f"{phrase}\n")
    assert generate.finish() == 0

    server = Terminal(sys.executable, SERVER, "--port", "0", cwd=folder)
    server.expect(PEM_PROMPT)
    server.type("sros\n")
    server.expect("port ")
    while not (port := re.search(r"port (\d+)\n", server.seen)):
        assert server.read(), server.seen

    client = Terminal(sys.executable, CLIENT, "--port", port[1], cwd=folder)
    client.expect(PEM_PROMPT)
    client.type("sros\n")
    assert client.finish() == 0

    if "closed" not in server.seen:
        server.expect("closed\n")
    server.type("\x03")
    assert server.finish() == 130
    server_saw = server.seen.replace(port[1], "8443").replace("^C", "")
    return [
        Window(".venv/bin/python simple_key_generation.py", generate.seen.splitlines()),
        Window("./simple_https_server.py", server_saw.splitlines()),
        Window("./simple_https_client.py", client.seen.splitlines()),
    ]


# Pixels. A character of this font is 0.6 of its size wide.
FONT_SIZE = 14
LINE = 20
PADDING = 16
COLUMNS = 80


def draw(windows: list[Window]) -> str:
    """Return the windows one below the other, each as wide as a terminal of 80 columns."""
    width = round(COLUMNS * 0.6 * FONT_SIZE) + 2 * PADDING
    shapes = []
    top = 0
    for window in windows:
        height = (len(window.lines) + 1) * LINE + PADDING
        shapes.append(
            f'<rect y="{top}" width="{width}" height="{height}" rx="8" class="window"/>'
        )
        shapes.append(text_at(top + LINE, f"$ {window.command}", "command"))
        for number, line in enumerate(window.lines, 2):
            shapes.append(text_at(top + number * LINE, line, "output"))
        top += height + PADDING // 2
    body = "\n".join(shapes)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top}" \
viewBox="0 0 {width} {top}" role="img">
<title>Three terminals: the keys are made, and the server and the client use them</title>
<style>
.window {{ fill: #1e2329 }}
text {{ font: {FONT_SIZE}px monospace; white-space: pre }}
.command {{ fill: #7ee787 }}
.output {{ fill: #e6edf3 }}
</style>
{body}
</svg>
"""


def text_at(y: int, text: str, kind: str) -> str:
    """Return one line of text. Its length is given, as fonts differ."""
    length = round(len(text) * 0.6 * FONT_SIZE)
    place = f'x="{PADDING}" y="{y}" textLength="{length}"'
    return f'<text {place} xml:space="preserve" class="{kind}">{escape(text)}</text>'


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        PICTURE.write_text(draw(sessions(Path(temporary))))
