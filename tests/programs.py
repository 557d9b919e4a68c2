"""Other programs and a node's folder: their pages, and the rows of the README's table."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pages
from needs import needs_package, needs_those_of, skip
from running import DEADLINE, PHRASES, clear_faketime, environment, poll, run


@dataclass(frozen=True)
class Program:
    """One row of the table: its tests are what it is compared with."""

    name: str  # as the first cell of the row has it, which links the program's page
    library: str  # what makes its handshakes
    version: str  # a command that prints the version
    client: bool  # whether it calls simple_https_server.py (or its own kind)
    server: bool  # whether simple_https_client.py (or its own kind) calls it
    encrypted: bool  # whether it takes key.pem as it is, encrypted


def row(name: str) -> tuple[str, list[str]]:
    """Return the page that a program's row links, and the other cells of the row."""
    found = re.findall(
        rf"^\| \[{re.escape(name)}\]\((.+?)\) \|(.*)\|$", pages.PAGES[pages.README], re.M
    )
    assert len(found) == 1, f"one row of the README's table must be that of {name}"
    page, cells = found[0]
    return page, [cell.strip() for cell in cells.split("|")]


def check_row(program: Program) -> None:
    """Compare a program with its row. The version here may be newer than the row's.

    With an older one, the test is skipped: what the row says was not tried with it.
    """
    page, (shown, client, server, key) = row(program.name)
    tested = " ".join(
        pages.PAGES[page].partition("Tested with ")[2].partition("\n\n")[0].split()
    )
    version = re.search(r"\d+(\.\d+)+", tested)
    assert version is not None and shown.startswith(version[0]), (
        f"{page}: tested with {tested}"
    )
    assert program.library in tested
    yes = {True: "yes", False: ""}
    assert (client, server) == (yes[program.client], yes[program.server])
    assert key == ("encrypted" if program.encrypted else "plain")
    if program.version.startswith("dpkg-query "):
        needs_package(program.version.split()[-1])
    needs_those_of(program.version)
    result = run("bash", "-c", program.version, env={"PATH": path()})
    found = re.search(r"\d+(\.\d+)+", result.stdout + result.stderr)
    assert found, f"no version: {result.stdout}{result.stderr}"
    numbers = [[int(part) for part in text.split(".")] for text in (shown, found[0])]
    if numbers[0] > numbers[1]:
        skip(f"{program.name} is {found[0]} here, older than the README's {shown}")


def recipe(name: str, marker: str = "", kind: str = r"\w+") -> str:
    """The first block of a program's page, of some kind, that a marker stands in."""
    page, _ = row(name)
    found = [
        text for each, text in pages.blocks(pages.PAGES[page]) if re.fullmatch(kind, each)
    ]
    return next(text for text in found if marker in text)


def path() -> str:
    """The search path of a reader who has activated this Python's environment."""
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def shell(
    folder: Path, text: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a block as a reader in a folder, with this Python as python3."""
    needs_those_of(text)
    everything = {**(env or {}), "PATH": path()}
    return run("bash", "-euo", "pipefail", "-c", text, cwd=folder, env=everything)


def paste(
    folder: Path, text: str, port: int, env: Mapping[str, str] = PHRASES
) -> subprocess.CompletedProcess[str]:
    """Run a block in a folder with keys, at the kernel's port instead of 8443."""
    return shell(folder, text.replace("8443", str(port)), env)


def run_block(folder: Path, text: str) -> str:
    """Run a block that must succeed in a folder with keys, and return what it printed."""
    result = shell(folder, text, PHRASES)
    assert result.returncode == 0, result.stderr
    return result.stdout


PAIR = r"^```sh\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?"  # commands, and what they print


def follow(folder: Path, text: str, env: Mapping[str, str] | None = None) -> None:
    """Run the blocks of a page as one session at one shell, and compare what they print."""
    clear_faketime()
    end, port = "--- end of a block\n", free_port()
    told = re.findall(PAIR, text, re.DOTALL | re.MULTILINE)
    script = "".join(f"{commands}echo '{end.strip()}'\n" for commands, _ in told)
    script = re.sub(r"(simple_https_\w+\.py) -k", rf"\1 --port {port} -k", script)
    result = paste(folder, f"exec 2>&1\n{script}", port, env or {})
    assert result.returncode == 0, result.stdout
    assert plain(result.stdout).split(end) == [*(plain(shown) for _, shown in told), ""]


def plain(text: str) -> str:
    """Output without what differs from run to run, and without openssl's remarks.

    SHA-256 become numbers: equal ones stay equal.
    """
    for number, digest in enumerate(dict.fromkeys(re.findall(r"\b[0-9a-f]{64}\b", text))):
        text = text.replace(digest, f"SHA-256 number {number}")
    text = re.sub(
        r"^([.+*-]+|Certificate request self-signature ok|subject=.*)\n",
        "",
        text,
        flags=re.MULTILINE,
    )
    text = re.sub(
        r"(127\.0\.0\.1|::1) port \d+", "127.0.0.1 port PORT", text
    )  # as the hosts file has it
    return re.sub(r"port \d+", "port PORT", re.sub(r"\d{4}-\d\d-\d\d", "DATE", text))


def free_port() -> int:
    """A port that the kernel says is free."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def answers(port: int) -> bool:
    """Whether someone listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def running(
    folder: Path,
    text: str,
    port: int,
    ready: Callable[[], bool] | None = None,
    env: Mapping[str, str] = PHRASES,
) -> Iterator[Path]:
    """Keep a block running that does not end by itself. Yield the file of what it prints."""
    needs_those_of(text)
    log = folder / f"log-{port}-{time.monotonic_ns()}"
    with log.open("w") as out:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", text.replace("8443", str(port))],
            cwd=folder,
            env=environment({**env, "PATH": path()}),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        poll(
            ready or (lambda: answers(port)),
            lambda: f"{log.read_text(errors='replace')}\nended: {process.poll()}",
        )
        yield log
    finally:
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(DEADLINE)
