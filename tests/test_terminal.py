"""What a person sees of key generation: colour, how far a run is, 80 columns, the picture."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from configurations import configure
from picture import PICTURE, draw, sessions
from running import GENERATE, PHRASES, ROOT, Terminal, generate, generate_here

RED = "\x1b[31m"
YELLOW = "\x1b[33m"
PLAIN = "\x1b[0m"
UNKNOWN = ("--renew", "stranger")
ERROR = (
    f"{GENERATE.name}: error: stranger: no entry has this name, "
    "or no certificate was made for it"
)
# Any control character but the line break.
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


def seen(folder: Path, *arguments: str, **environment: str) -> str:
    """Run the script in a terminal, and return what it showed."""
    terminal = Terminal(
        sys.executable, GENERATE, *arguments, cwd=folder, env={**PHRASES, **environment}
    )
    terminal.finish()
    return terminal.seen


def test_an_error_is_red_in_a_terminal(tmp_path: Path) -> None:
    configure(tmp_path)
    assert seen(tmp_path, *UNKNOWN, TERM="xterm") == f"{RED}{ERROR}{PLAIN}\n"


def test_a_warning_is_yellow_in_a_terminal(tmp_path: Path) -> None:
    configure(tmp_path)
    assert generate_here(tmp_path).returncode == 0
    (tmp_path / "keys/client/key.pem").chmod(0o640)

    shown = seen(tmp_path, TERM="xterm")
    assert f"{YELLOW}{GENERATE.name}: warning: keys/client/key.pem: " in shown
    assert shown.count(PLAIN) == 1


@pytest.mark.parametrize(
    "environment",
    [{"TERM": "xterm", "NO_COLOR": "1"}, {"TERM": "dumb"}],
    ids=["NO_COLOR", "a dumb terminal"],
)
def test_there_is_no_colour_where_none_is_wanted(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    configure(tmp_path)
    assert seen(tmp_path, *UNKNOWN, **environment) == f"{ERROR}\n"


def test_an_empty_no_color_is_the_same_as_none(tmp_path: Path) -> None:
    configure(tmp_path)
    assert RED in seen(tmp_path, *UNKNOWN, TERM="xterm", NO_COLOR="")


def test_there_is_no_colour_in_a_file(tmp_path: Path) -> None:
    configure(tmp_path)
    result = generate(tmp_path, *UNKNOWN, env={**PHRASES, "TERM": "xterm"})
    assert result.stderr == f"{ERROR}\n"


# The script waits three seconds before it says how far it is. Here it doesn't.
AT_ONCE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import simple_key_generation
simple_key_generation.Progress.patience = 0.0
sys.exit(simple_key_generation.main())
"""
COUNT = re.compile(r"(\d+) of 4, about \d+ s left\r\x1b\[K")


def test_a_long_run_says_how_far_it_is_and_leaves_no_trace(tmp_path: Path) -> None:
    configure(tmp_path)
    terminal = Terminal(sys.executable, "-c", AT_ONCE, cwd=tmp_path, env=PHRASES)
    assert terminal.finish() == 0

    assert COUNT.findall(terminal.seen) == ["1"]
    tree = COUNT.sub("", terminal.seen)
    assert not CONTROL.search(tree)
    assert [line.split()[0] for line in tree.splitlines()] == [
        "root",
        "master",
        "server",
        "client",
    ]


def test_a_short_run_does_not_say_how_far_it_is(tmp_path: Path) -> None:
    configure(tmp_path)
    assert not CONTROL.search(seen(tmp_path, TERM="xterm"))


def test_a_long_run_into_a_file_does_not_say_how_far_it_is(tmp_path: Path) -> None:
    configure(tmp_path)
    (tmp_path / "at_once.py").write_text(AT_ONCE)
    command = f"{sys.executable} at_once.py 2>errors"
    terminal = Terminal("sh", "-c", command, cwd=tmp_path, env=PHRASES)
    assert terminal.finish() == 0
    assert not CONTROL.search(terminal.seen)
    assert (tmp_path / "errors").read_text() == ""


def test_the_tree_fits_a_terminal_of_80_columns(tmp_path: Path) -> None:
    configure(tmp_path)
    assert max(len(line) for line in generate_here(tmp_path).stdout.splitlines()) <= 80


def test_the_picture_of_the_readme_shows_what_a_run_prints(tmp_path: Path) -> None:
    def without_dates(picture: str) -> str:
        return re.sub(r"\d{4}-\d\d-\d\d", "a date", picture)

    drawn = draw(sessions(tmp_path))
    assert without_dates(drawn) == without_dates(PICTURE.read_text())
    assert f"({PICTURE.relative_to(ROOT)})" in (ROOT / "README.md").read_text()
