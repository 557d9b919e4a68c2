"""What pytest does around the tests, and the folders of keys that most of them start from."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from configurations import configure, without_ciphers
from exchanges import Server
from needs import packages_of
from running import PHRASES, SERVER, fine, generate, generate_here


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
    fine(generate(folder))
    return folder


@pytest.fixture(scope="session")
def strangers(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same by another CA with the same names, whose nodes still trust this CA."""
    folder = tmp_path_factory.mktemp("strangers")
    configure(folder)
    fine(generate_here(folder))
    for node in ("server", "client"):
        for name in ("ca.pem", "crl.pem"):
            shutil.copy(made / "keys" / node / name, folder / "keys" / node)
    return folder


@pytest.fixture(scope="session")
def made_plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, but that no key is encrypted: to read, not to change."""
    folder = tmp_path_factory.mktemp("plain")
    configure(folder, without_ciphers)
    fine(generate_here(folder, env=None))
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


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start servers that end with the test."""
    servers: list[Server] = []

    def start(
        *arguments: str, env: Mapping[str, str] | None = PHRASES, script: Path = SERVER
    ) -> Server:
        servers.append(Server(*arguments, cwd=tmp_path, env=env, script=script))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


@pytest.fixture(scope="session")
def shared() -> Iterator[list[Server]]:
    """The server that tests share, or none. It ends with the last test."""
    servers: list[Server] = []
    yield servers
    for server in servers:
        server.process.kill()
        server.process.wait()


@pytest.fixture
def server(
    shared: list[Server], made: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server with the shipped configuration's keys, as if it had just started.

    The tests share one process, as long as it serves a client after each of them.
    """
    if not shared:
        folder = tmp_path_factory.mktemp("shared")
        shared.append(Server("-k", str(made / "keys/server"), cwd=folder))
    yield shared[0]
    try:
        shared[0].settle(made / "keys/client")
    except BaseException:
        server = shared.pop()
        server.process.kill()
        server.process.wait()
        raise
