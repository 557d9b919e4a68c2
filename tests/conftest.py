"""What the tests share: the scripts as processes, folders of keys, terminals to type at."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from needs import needs, packages_of

ROOT = Path(__file__).resolve().parent.parent
GENERATE = ROOT / "simple_key_generation.py"
SERVER = ROOT / "simple_https_server.py"
CLIENT = ROOT / "simple_https_client.py"
PHRASES = {"SROS_ROOT_PASSPHRASE": "root", "SROS_PASSPHRASE": "sros"}
DEADLINE = 60.0  # seconds; what takes longer hangs, even on a busy machine
LIMIT = 300.0  # seconds for a whole command, which may make RSA keys of 8,192 bits


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This environment without pass phrases, warnings as errors, and what is extra."""
    kept = {k: v for k, v in os.environ.items() if not k.endswith("_PASSPHRASE")}
    return {**kept, "PYTHONWARNINGS": "error", **(extra or {})}


def run(
    *command: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
) -> subprocess.CompletedProcess[str]:
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


def generate(
    folder: Path, *arguments: str, env: Mapping[str, str] | None = PHRASES
) -> subprocess.CompletedProcess[str]:
    """Run simple_key_generation.py in a folder."""
    return run(sys.executable, GENERATE, *arguments, cwd=folder, env=env)


def configure(folder: Path, change: Callable[[dict[str, object]], None] | None = None) -> Path:
    """Put the shipped configuration into a folder, perhaps changed, its merges written out."""
    path = folder / "sros_config.yml"
    if change is None:
        shutil.copy(ROOT / "sros_config.yml", path)
    else:
        document = yaml.safe_load((ROOT / "sros_config.yml").read_text())
        # A round trip through text without aliases: a change in one entry stays in that entry.
        document = yaml.safe_load(yaml.dump(document, Dumper=PlainDumper, sort_keys=False))
        change(document)
        path.write_text(yaml.dump(document, Dumper=PlainDumper, sort_keys=False))
    return path


def without_ciphers(document: dict[str, object]) -> None:
    """Leave no key encrypted."""
    entries = cast(dict[str, Any], document["keys"])
    for entry in (entries["root"], entries["master"], *entries["nodes"].values()):
        del entry["cipher"], entry["passphrase"]


class PlainDumper(yaml.SafeDumper):
    """Writes every mapping out instead of naming it."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def openssl(*arguments: str | Path, stdin: str = "") -> str:
    """Run openssl, which must succeed, and return what it printed."""
    result = run("openssl", *arguments, stdin=stdin)
    assert result.returncode == 0, result.stderr
    return result.stdout


def pytest_configure() -> None:
    """Have SIGINT end what the tests start, even where a shell's background ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what would run the tests that were skipped."""
    skipped = terminalreporter.stats.get("skipped", [])
    packages = packages_of([report.longrepr[2] for report in skipped])
    if packages:
        terminalreporter.ensure_newline()
        terminalreporter.write_line(
            "Tests were skipped for want of programs. To run them: "
            f"apt-get install {' '.join(packages)}"
        )


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shipped configuration and keys made from it. Read only."""
    folder = tmp_path_factory.mktemp("made")
    configure(folder)
    result = generate(folder)
    assert (result.returncode, result.stderr) == (0, "")
    return folder


@pytest.fixture(scope="session")
def strangers(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same by another CA with the same names, whose nodes still trust this CA."""
    folder = tmp_path_factory.mktemp("strangers")
    configure(folder)
    assert generate(folder).returncode == 0
    for node in ("server", "client"):
        for name in ("ca.pem", "crl.pem"):
            shutil.copy(made / "keys" / node / name, folder / "keys" / node)
    return folder


@pytest.fixture(scope="session")
def made_plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, but that no key is encrypted: to read, not to change."""
    folder = tmp_path_factory.mktemp("plain")
    configure(folder, without_ciphers)
    result = generate(folder, env=None)
    assert (result.returncode, result.stderr) == (0, "")
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to change."""
    folder = tmp_path / "copy"
    shutil.copytree(made, folder, symlinks=True)
    return folder


@pytest.fixture
def plain(made_plain: Path, tmp_path: Path) -> Path:
    """A copy of the folder in which no key is encrypted, to change."""
    return shutil.copytree(made_plain, tmp_path / "plain")


class Server:
    """A running simple_https_server.py: its port, and what it printed."""

    def __init__(
        self, *arguments: str, cwd: Path, env: Mapping[str, str] | None = PHRASES
    ) -> None:
        self.out = cwd / f"out-{time.monotonic_ns()}"
        self.err = self.out.with_name(self.out.name.replace("out", "err"))
        command = [sys.executable, str(SERVER), "--port", "0", *arguments]
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                env=environment(env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        try:
            self.wait_for(lambda: "listening" in self.err.read_text())
        except BaseException:
            self.process.kill()
            raise
        match = re.search(r"listening on \S+ port ([0-9]+)", self.err.read_text())
        assert match, self.err.read_text()
        self.port = int(match[1])

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Poll until a condition holds, or fail with all that the server printed."""
        until = time.monotonic() + DEADLINE
        while not condition():
            printed = f"{self.out.read_text()}{self.err.read_text()}"
            assert time.monotonic() < until and self.process.poll() is None, printed
            select.select([], [], [], 0.01)

    def printed(self, text: str) -> bool:
        """Wait until the standard output is exactly a text."""
        self.wait_for(lambda: self.out.read_text() == text)
        return True

    def complained(self, text: str) -> bool:
        """Wait until a text stands on standard error."""
        self.wait_for(lambda: text in self.err.read_text())
        return True

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End the server and return its exit status."""
        self.process.send_signal(how)
        return self.process.wait(DEADLINE)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start servers that end with the test."""
    servers: list[Server] = []

    def start(*arguments: str, env: Mapping[str, str] | None = PHRASES) -> Server:
        servers.append(Server(*arguments, cwd=tmp_path, env=env))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


def client(
    port: int, keys: Path, *arguments: str, env: Mapping[str, str] | None = PHRASES
) -> subprocess.CompletedProcess[str]:
    """Run simple_https_client.py against a port."""
    return run(sys.executable, CLIENT, "--port", str(port), "-k", keys, *arguments, env=env)


def connect(port: int, keys: Path) -> ssl.SSLSocket:
    """Connect as a client of Python's own, which the test can keep, cut or make speak."""
    context = ssl.create_default_context(cafile=str(keys / "ca.pem"))
    context.load_cert_chain(
        keys / "fullchain.pem", keys / "key.pem", PHRASES["SROS_PASSPHRASE"]
    )
    raw = socket.create_connection(("127.0.0.1", port), DEADLINE)
    return context.wrap_socket(raw, server_hostname="localhost")


def ask(connection: ssl.SSLSocket, line: bytes) -> bytes:
    """Send a line and return the line that comes back."""
    connection.sendall(line + b"\n")
    answer = b""
    while not answer.endswith(b"\n"):
        data = connection.recv(65536)
        assert data, "the server closed"
        answer += data
    return answer[:-1]


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
