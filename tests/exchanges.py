"""Exchanges: the server and the client as processes, and peers in Python.

server = Server("-k", str(folder / "keys/server"), cwd=tmp_path)  # or the fixture serve
answered(client(server.port, folder / "keys/client"))
assert server.printed("accepted\nread: [hola]\nclosed\n")
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from cryptography import x509
from running import CLIENT, DEADLINE, PHRASES, SERVER, Result, environment, run


class Server:
    """A running simple_https_server.py: its port, and what it printed."""

    def __init__(
        self,
        *arguments: str,
        cwd: Path,
        env: Mapping[str, str] | None = PHRASES,
        script: Path = SERVER,
    ) -> None:
        self.out = cwd / f"out-{time.monotonic_ns()}"
        self.err = self.out.with_name(self.out.name.replace("out", "err"))
        command = [sys.executable, str(script), "--port", "0", *arguments]
        with self.out.open("a") as out, self.err.open("a") as err:
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
        self.descriptors = self.opened()

    def opened(self) -> int:
        """Return how many descriptors it has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def settle(self, keys: Path) -> None:
        """Wait until it has served all its clients, and forget what it printed of them."""
        self.wait_for(lambda: self.opened() == self.descriptors)
        with connect(self.port, keys) as connection:
            assert ask(connection, b"the last one") == b"the last one"
            connection.unwrap().close()
        self.wait_for(
            lambda: self.out.read_bytes().endswith(b"read: [the last one]\nclosed\n")
        )
        self.wait_for(lambda: self.opened() == self.descriptors)
        os.truncate(self.out, 0)
        self.err.write_text(f"listening on localhost port {self.port}\n")

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Poll until a condition holds, or fail with the end of what the server printed."""
        until = time.monotonic() + DEADLINE
        while not condition():
            if time.monotonic() > until or self.process.poll() is not None:
                printed = since(self.out, 0)[-1000:] + since(self.err, 0)[-2000:]
                pytest.fail(f"status {self.process.poll()}; printed: {printed.decode()}")
            select.select([], [], [], 0.01)

    def printed(self, text: str) -> bool:
        """Wait until the standard output is exactly a text."""
        self.wait_for(lambda: self.out.read_text() == text)
        return True

    def complained(self, text: str) -> bool:
        """Wait until a text stands on standard error."""
        self.wait_for(lambda: text in self.err.read_text())
        return True

    def errors(self, start: int = 0) -> list[str]:
        """Return its error lines from an offset on. Nothing else may stand beside them."""
        return errors(since(self.err, start), SERVER)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End the server and return its exit status."""
        self.process.send_signal(how)
        return self.process.wait(DEADLINE)


def since(path: Path, start: int) -> bytes:
    """Return what was printed from an offset on."""
    with path.open("rb") as file:
        file.seek(start)
        return file.read()


def printable(text: bytes) -> list[str]:
    """Return the lines of what was printed, which must be plain printable UTF-8."""
    lines = text.decode().split("\n")
    assert lines.pop() == "" and all(line.isprintable() for line in lines), text[:2000]
    return lines


def errors(stderr: bytes, script: Path) -> list[str]:
    """Return a script's error lines. Only `listening` may stand beside them."""
    lines = [line for line in printable(stderr) if not line.startswith("listening on ")]
    strange = [line for line in lines if not line.startswith(f"{script.name}: error: ")]
    assert not strange, f"{len(strange)} of {len(lines)} lines: {strange[:8]}"
    return lines


def client(
    port: int, keys: Path, *arguments: str, env: Mapping[str, str] | None = PHRASES
) -> Result:
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


Behaviour = Callable[[ssl.SSLSocket], None]


@contextmanager
def peer(keys: Path, behave: Behaviour) -> Iterator[int]:
    """Serve one client with a server of Python's own that behaves as told; yield its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(
        keys / "fullchain.pem", keys / "key.pem", PHRASES["SROS_PASSPHRASE"]
    )
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(DEADLINE)

    def serve_one() -> None:
        with suppress(OSError):
            raw, _ = listener.accept()
            raw.settimeout(DEADLINE)
            with raw, context.wrap_socket(raw, server_side=True) as connection:
                behave(connection)

    thread = threading.Thread(target=serve_one, daemon=True)
    thread.start()
    with listener:
        yield listener.getsockname()[1]
        thread.join(DEADLINE)


def answering(*answers: bytes, politely: bool = True) -> Behaviour:
    """Behave like a server that gives each line an answer, and closes after the last one."""

    def behave(connection: ssl.SSLSocket) -> None:
        for answer in answers:
            while not connection.recv(65536).endswith(b"\n"):
                pass
            connection.sendall(answer)
        if politely:
            connection.unwrap()

    return behave


def presented(port: int, keys: Path) -> int:
    """Return the serial number of the certificate that a newcomer is shown."""
    with connect(port, keys) as connection:
        der = connection.getpeercert(True)
        assert der and ask(connection, b"hola") == b"hello"
        connection.unwrap()
    return x509.load_der_x509_certificate(der).serial_number


SERVED = "accepted\nread: [hola]\nclosed\n"
ANSWERED = "connected\nread: [hello]\n"
Serve = Callable[..., Server]


def answered(result: Result) -> None:
    """Require that a client got its answer, and complained of nothing."""
    assert (result.returncode, result.stdout, result.stderr) == (0, ANSWERED, "")


def exchange(serve: Serve, server: Path, peer: Path) -> None:
    """Require a successful exchange of two folders."""
    started = serve("-k", str(server))
    answered(client(started.port, peer))
    assert started.printed(SERVED)


def refuse(serve: Serve, server: Path, peer: Path, by: str, reason: str, alert: str) -> None:
    """Require that one side refuses the other for a reason, which gets an alert."""
    started = serve("-k", str(server))
    result = client(started.port, peer)
    assert (result.returncode, result.stdout) == (1, "")
    assert started.complained("error: ") and started.out.read_text() == ""
    (mine,) = result.stderr.splitlines()
    (theirs,) = [line for line in started.err.read_text().splitlines() if "error: " in line]
    assert mine.startswith(f"{CLIENT.name}: error: ")
    assert theirs.startswith(f"{SERVER.name}: error: ")
    lines = {"client": mine, "server": theirs}
    verifier = lines.pop(by)
    (other,) = lines.values()
    assert reason in verifier and "alert" not in verifier
    assert f"alert {alert}" in other
