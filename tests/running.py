"""Run the scripts, and other programs: as processes, in this process, or at a terminal.

result = generate(folder, "--renew", "client")  # a process, as a user starts it
result = generate_here(folder, "--renew", "client")  # main(), in a tenth of the time
result = generate_here(folder, now=in_days(300))  # by another clock
fine(result)  # it succeeded, without a warning; or refused(result, "keys/client/cert.pem")
at = Terminal(sys.executable, GENERATE, cwd=folder)  # somebody types
"""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import (
    ExitStack,
    contextmanager,
    redirect_stderr,
    redirect_stdout,
    suppress,
)
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import FrameType
from unittest import mock

import pytest
from needs import needs

import simple_key_generation

Result = subprocess.CompletedProcess[str]

ROOT = Path(__file__).resolve().parent.parent
GENERATE = ROOT / "simple_key_generation.py"
SERVER = ROOT / "simple_https_server.py"
CLIENT = ROOT / "simple_https_client.py"
PHRASES = {"SROS_ROOT_PASSPHRASE": "root", "SROS_PASSPHRASE": "sros"}
MASTERS = {"SROS_PASSPHRASE": "sros"}  # the pass phrase of all but root
DEADLINE = 60.0  # seconds; what takes longer hangs, even on a busy machine
LIMIT = 300.0  # seconds for a whole command, which may make RSA keys of 8,192 bits


# --- As processes ----------------------------------------------------------------------------


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This environment without pass phrases, warnings as errors, and what is extra."""
    kept = {k: v for k, v in os.environ.items() if not k.endswith("_PASSPHRASE")}
    return {**kept, "PYTHONWARNINGS": "error", **(extra or {})}


def run(
    *command: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
) -> Result:
    """Run a command to its end, away from any terminal."""
    needs(str(command[0]))
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(env),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        start_new_session=True,
        check=False,
    )


def started(
    *command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a command, away from any terminal. Its output is to be read from its pipes."""
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def openssl(*arguments: str | Path, stdin: str = "") -> str:
    """Run openssl, which must succeed, and return what it printed."""
    result = run("openssl", *arguments, stdin=stdin)
    assert result.returncode == 0, result.stderr
    return result.stdout


def generate(folder: Path, *arguments: str, env: Mapping[str, str] | None = PHRASES) -> Result:
    """Run simple_key_generation.py in a folder."""
    return run(sys.executable, GENERATE, *arguments, cwd=folder, env=env)


def later(
    folder: Path, when: str, *arguments: str, env: dict[str, str] | None = PHRASES
) -> Result:
    """Run the script in a folder at another time, such as +2 days."""
    command: list[str | Path] = ["faketime", when, sys.executable, GENERATE, *arguments]
    clear_faketime()
    result = run(*command, cwd=folder, env=env)
    # An ordinary user can't clear what root has left.
    while "faketime: sem_open: File exists" in result.stderr:
        result = run(*command, cwd=folder, env=env)
    return result


def clear_faketime() -> None:
    """Remove what a killed faketime left: a later one of the same process ID would fail."""
    for path in Path("/dev/shm").glob("*faketime_s*"):
        _, _, process_id = path.name.rpartition("_")
        if not Path("/proc", process_id).exists():
            with suppress(OSError):
                path.unlink()


# --- In this process -------------------------------------------------------------------------


def generate_here(
    folder: Path,
    *arguments: str,
    now: datetime | None = None,
    env: Mapping[str, str] | None = PHRASES,
) -> Result:
    """Run simple_key_generation.py's main() in a folder; `now` overrides the clock.

    All warnings are errors, and there is no terminal. A run must not hang or leave files open.
    What a CA's `sign` prints on standard error is not in the result.
    """
    out, err = io.StringIO(), io.StringIO()
    before = opened()
    with ExitStack() as stack:
        stack.enter_context(deadline(20))
        stack.enter_context(mock.patch.dict(os.environ, environment(env), clear=True))
        stack.enter_context(mock.patch("getpass.getpass", side_effect=EOFError))
        # Thousands of these would stop other processes.
        stack.enter_context(mock.patch.object(os, "sync"))
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(err))
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(working_in(folder))
        warnings.simplefilter("error")
        try:
            status = simple_key_generation.main(arguments, now)
        except SystemExit as end:  # argparse's, for wrong use
            status = int(end.code or 0)
    assert opened() == before, "files left open"
    return Result(arguments, status, out.getvalue(), err.getvalue())


def in_days(days: float) -> datetime:
    """Return the moment so many days from now; a negative number: before it."""
    return datetime.now(timezone.utc) + timedelta(days=days)


def opened() -> set[str]:
    """Return what is open, but sockets. The script has none, and a test's threads may."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        # The one that this listing takes is closed by now.
        with suppress(FileNotFoundError):
            found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
    return {each for each in found if " socket:" not in each}


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Be in a folder while a block runs."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Fail if a block takes too long, by what is no Exception: the script can't catch it."""

    def hangs(_signal: int, _frame: FrameType | None) -> None:
        pytest.fail("hangs")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- What came of a run ----------------------------------------------------------------------


def fine(result: Result) -> Result:
    """Require a run without errors and warnings."""
    assert (result.returncode, result.stderr) == (0, "")
    return result


def complaints(result: Result, kind: str, status: int) -> list[str]:
    """Return the lines on standard error, without what they all must begin with."""
    start = f"{GENERATE.name}: {kind}: "
    lines = result.stderr.splitlines()
    assert all(line.startswith(start) for line in lines), result.stderr
    assert result.returncode == status, (result.stdout, result.stderr)
    return [line.removeprefix(start) for line in lines]


def refused(result: Result, *names: str) -> list[str]:
    """Require status 1 and one error line for each name, which it contains, in this order."""
    lines = complaints(result, "error", 1)
    assert len(lines) == len(names), lines
    assert all(name in line for name, line in zip(names, lines, strict=True)), lines
    return lines


def faults(result: Result, *texts: str) -> list[str]:
    """Require status 1 and one error line that contains each text. Warnings may appear."""
    lines = result.stderr.splitlines()
    wrong = [line for line in lines if line.startswith(f"{GENERATE.name}: error: ")]
    assert all(
        line.startswith(f"{GENERATE.name}: warning: ") for line in lines if line not in wrong
    )
    assert (result.returncode, len(wrong)) == (1, len(texts)), result.stderr
    assert all(text in line for text, line in zip(texts, wrong, strict=True)), result.stderr
    return wrong


def warned(result: Result, *names: str) -> list[str]:
    """Require status 0 and one warning for each name, which it contains, in any order."""
    lines = complaints(result, "warning", 0)
    assert len(lines) == len(names), lines
    assert all(any(name in line for line in lines) for name in names), lines
    return lines


def states(result: Result) -> dict[str, str]:
    """Return what a run printed of each entry: made, kept, renewed or revoked."""
    lines = [re.sub(r"^\[ *\d+/\d+\] ", "", line) for line in result.stdout.splitlines()]
    return {line.split()[0]: line.split()[1] for line in lines}


def poll(condition: Callable[[], bool], printed: Callable[[], str] = str) -> None:
    """Wait until a condition holds; fail with what was printed if it never does."""
    until = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < until, printed()
        select.select([], [], [], 0.02)


# --- At a terminal ---------------------------------------------------------------------------


class Terminal:
    """A process in a pseudo-terminal, to type at."""

    def __init__(
        self,
        *command: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.seen = ""
        self.fd, self.slave = pty.openpty()
        # The shell leads a session, so what it opens first becomes its controlling terminal.
        shell = ["sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(self.slave)]
        self.process = subprocess.Popen(
            [*shell, *map(str, command)], cwd=cwd, env=environment(env), start_new_session=True
        )

    def expect(self, text: str) -> None:
        """Read until a text that was not read before appears."""
        until = time.monotonic() + DEADLINE
        start = len(self.seen)
        while text not in self.seen[start:]:
            assert time.monotonic() < until, self.seen
            assert self.read(), f"ended: {self.seen}"

    def read(self) -> bool:
        """Read what is there; False once there is nothing and the process has ended."""
        ended = self.process.poll() is not None
        if not select.select([self.fd], [], [], 0 if ended else 0.05)[0]:
            return not ended
        self.seen += os.read(self.fd, 65536).decode().replace("\r\n", "\n")
        return True

    def type(self, text: str) -> None:
        """Type a text as it stands; a newline is the return key, \\x03 is Ctrl-C.

        A surrogate is an octet that is no text: \\udce4 is what Latin-1 has for ä.
        """
        os.write(self.fd, text.encode(errors="surrogateescape"))

    def finish(self) -> int:
        """Read to the end and return the exit status."""
        until = time.monotonic() + DEADLINE
        while self.read():
            assert time.monotonic() < until, self.seen
        os.close(self.fd)
        os.close(self.slave)
        return self.process.wait()
