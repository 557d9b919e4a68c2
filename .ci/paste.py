"""Paste the README's commands as its reader does; end with status 1 at the first difference.

`paste.py packages` runs the bare `./simple_key_generation.py`, on Debian's own packages.
"""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

DEADLINE = 60.0  # seconds; what takes longer hangs
PHRASES = {"SROS_ROOT_PASSPHRASE": "root", "SROS_PASSPHRASE": "sros"}
SECTIONS = dict(
    part.split("\n", 1) for part in Path("README.md").read_text().split("\n## ")[1:]
)


def blocks(title: str, kind: str) -> list[str]:
    """Return the blocks of a kind in a section, in their order."""
    found: list[str] = re.findall(
        rf"^```{kind}\n(.*?)^```$", SECTIONS[title], re.DOTALL | re.MULTILINE
    )
    return found


def compare(printed: str, shown: str) -> None:
    """End with both texts unless they are the same but for dates."""
    date = re.compile(r"\d{4}-\d\d-\d\d")
    if date.sub("DATE", printed) != date.sub("DATE", shown):
        sys.exit(f"printed:\n{printed}\nthe README shows:\n{shown}")


def run(command: str, env: dict[str, str] | None = None) -> str:
    """Run a command that must succeed, and return its standard output. Errors are shown."""
    result = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        sys.exit(f"status {result.returncode}: {command}{result.stdout}")
    return result.stdout


class Terminal:
    """A terminal of its own, in which a command runs."""

    def __init__(self, command: str) -> None:
        self.seen = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvp("bash", ["bash", "-c", command])

    def wait_for(self, text: str) -> None:
        """Read until a text appears."""
        end = time.monotonic() + DEADLINE
        while text not in self.seen:
            if time.monotonic() > end or not self.read():
                sys.exit(f"{text!r} does not appear:\n{self.seen}")

    def read(self) -> bool:
        """Read what is there; return False once the command has ended."""
        if not select.select([self.fd], [], [], 0.1)[0]:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # how Linux says that the other end is closed
            return False
        self.seen += data.decode().replace("\r\n", "\n")
        return bool(data)

    def type(self, text: str) -> None:
        """Type a text."""
        os.write(self.fd, text.encode())

    def finish(self) -> int:
        """Read to the end, and return the exit status."""
        while self.read():
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def make_the_keys() -> None:
    """Paste "Make the keys"."""
    compare(run(blocks("Make the keys", "sh")[0]), blocks("Make the keys", "text")[0])


def use_the_keys() -> None:
    """Paste "Use the keys", each command in a terminal of its own."""
    serve, call = blocks("Use the keys", "sh")
    served, called = blocks("Use the keys", "text")

    server = Terminal(serve)
    server.wait_for("Enter PEM pass phrase:")
    server.type("sros\n")
    server.wait_for("listening on localhost port 8443\n")

    client = Terminal(call)
    client.wait_for("Enter PEM pass phrase:")
    client.type("sros\n")
    client.wait_for("read: [hello]\n")
    server.wait_for("closed\n")

    compare(server.seen, served)
    if client.finish() != 0:
        sys.exit("the client failed")
    compare(client.seen, called)

    server.type("\x03")
    if server.finish() != 130:
        sys.exit("Ctrl-C did not end the server")


def run_the_tests() -> None:
    """Paste the test command, and show what it prints."""
    (command,) = [text for text in blocks("Tests", "sh") if "pytest" in text]
    status = subprocess.run(
        ["bash", "-c", command], stdin=subprocess.DEVNULL, check=False
    ).returncode
    if status != 0:
        sys.exit(f"status {status}: {command}")


def use_packages() -> None:
    """Make keys with the Python that the script itself names."""
    shutil.rmtree("keys")
    compare(run("./simple_key_generation.py", PHRASES), blocks("Make the keys", "text")[0])


def main() -> None:
    """Take the steps, and show how long each took."""
    steps = [make_the_keys, use_the_keys, run_the_tests]
    if sys.argv[1:] == ["packages"]:
        steps = [use_packages]
    for step in steps:
        start = time.monotonic()
        step()
        print(f"{step.__name__}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
