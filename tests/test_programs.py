"""Other programs with a node's folder, by their pages' recipes; and whom each refuses."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from exchanges import Serve, client
from needs import needs_package
from programs import Program, check_row, free_port, paste, recipe, running
from running import DEADLINE, PHRASES, generate, poll

pytestmark = pytest.mark.slow

PROGRAMS = (
    Program("OpenSSL", "OpenSSL", "openssl version", True, True, True),
    Program("curl", "OpenSSL", "curl --version", True, False, True),
    Program("Wget", "GnuTLS", "wget --version", True, False, False),
    Program("GnuTLS", "GnuTLS", "gnutls-cli --version", True, True, True),
    Program("NSS", "NSS", "dpkg-query --show libnss3-tools", True, True, True),
    Program("nginx", "OpenSSL", "/usr/sbin/nginx -v", False, True, True),
    Program("Caddy", "Go's crypto/tls", "caddy version", True, True, False),
    Program("Chromium", "BoringSSL and NSS", "chromium --version", True, False, False),
)

# The recipes as a client, by what stands in their shell blocks.
CLIENTS: dict[str, tuple[str, ...]] = {
    "OpenSSL": ("openssl s_client",),
    "curl": ("curl --silent",),
    "Wget": ("wget",),
    "GnuTLS": ("gnutls-cli",),
    "NSS": ("certutil", "tstclnt"),
    "Caddy": ("Caddyfile.client",),
    "Chromium": ("certutil", "--dump-dom"),
}


@dataclass(frozen=True)
class Serving:
    """A program's recipe as a server, and what comes of it."""

    recipes: tuple[str, ...]  # what stands in its shell blocks
    answer: str  # what simple_https_client.py reads
    refusal: str  # what it says, if only in its log, of a stranger
    files: dict[str, str] = field(
        default_factory=dict
    )  # the configuration, and what stands in it


SERVERS = {
    "OpenSSL": Serving(("s_server",), "aloh", "certificate verify failed"),
    "GnuTLS": Serving(("gnutls-serv",), "hola", "Error in the certificate"),
    "NSS": Serving(("certutil", "selfserv"), "GET / HTTP/1.1", "issuer is not recognized"),
    "nginx": Serving(
        ("-c stream.conf",),
        "hello",
        "certificate verify error",
        {"stream.conf": "load_module"},
    ),
    "Caddy": Serving(
        ("Caddyfile.server",),
        "HTTP/1.1 400 Bad Request",
        "x509: certificate signed by unknown authority",
        {"Caddyfile.server": "require_and_verify"},
    ),
}

LENT = "curl"  # what stands in the shell block that calls the Caddy of a client

# What stands in each program's shell blocks that are run here.
RECIPES = {
    **{name: markers for name, markers in CLIENTS.items() if name not in SERVERS},
    **{name: (*CLIENTS.get(name, ()), *program.recipes) for name, program in SERVERS.items()},
}
RECIPES["Caddy"] += (LENT,)

# A change of a recipe, whom it lets in (True: a stranger with a certificate, False: anyone
# without one), and the name or address that they call the server by.
WARNINGS = (
    ("OpenSSL", " -verify_return_error", "", True, "localhost"),
    ("GnuTLS", " --verify-client-cert", "", True, "localhost"),
    ("GnuTLS", " --require-client-cert", "", False, "localhost"),
    ("NSS", " -rr", " -r", False, "localhost"),
    ("Caddy", "https://:8443", "https://localhost:8443", False, "127.0.0.1"),
)

# Who looks at revocation lists; the pages of the others say that they do not.
LISTS = {"client": ("curl", "Wget"), "server": ("OpenSSL", "GnuTLS", "nginx")}

# A browser that root runs, and that leaves the network alone.
FLAGS = "--no-sandbox --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"

Copy = Callable[[Path], Path]


def marked(name: str, *values: object) -> Any:
    """A parameter of a program's, with the marker that is named after it."""
    return pytest.param(name, *values, marks=getattr(pytest.mark, name.lower()), id=name)


def each(names: Iterable[str]) -> pytest.MarkDecorator:
    """Run a test for each of some programs."""
    return pytest.mark.parametrize("name", [marked(name) for name in names])


@pytest.fixture(scope="module")
def revoked(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder after both nodes were revoked: their lists name each other."""
    folder = tmp_path_factory.mktemp("revoked") / "revoked"
    shutil.copytree(made, folder)
    result = generate(folder, "--revoke", "client", "server")
    lists = {(folder / f"keys/{node}/crl.pem").read_text() for node in ("client", "server")}
    assert len(lists) == 1 and lists != {(made / "keys/client/crl.pem").read_text()}, result
    return folder


@pytest.fixture
def copied(tmp_path: Path) -> Copy:
    """Copy a folder's nodes, for the recipes leave files beside them."""

    def copy(source: Path) -> Path:
        place = tmp_path / source.name
        for node in ("client", "server"):
            shutil.copytree(source / "keys" / node, place / "keys" / node)
        return place

    return copy


def home(place: Path) -> dict[str, str]:
    """The environment of someone whose home is a folder, with the pass phrases."""
    return {**PHRASES, "HOME": str(place)}


def call(name: str, place: Path, port: int) -> subprocess.CompletedProcess[str]:
    """Have a program ask the server at a port, by its recipe, with the client's keys."""
    text = "".join(recipe(name, marker, "sh") for marker in CLIENTS[name])
    if name != "Caddy":
        return paste(
            place, text.replace("--headless", f"--headless {FLAGS}"), port, home(place)
        )
    lent = free_port()
    proxy = recipe(name, "tls_client_auth", "caddyfile").replace("8080", str(lent))
    (place / "Caddyfile.client").write_text(proxy.replace("8443", str(port)))
    with running(place, text, lent, env=home(place)):
        return paste(
            place, recipe(name, LENT, "sh").replace("8080", str(lent)), port, home(place)
        )


@contextmanager
def serving(
    name: str, place: Path, old: str = "", new: str = ""
) -> Iterator[tuple[int, Path]]:
    """Run a program as a server, perhaps by a changed recipe. Yield port and log."""
    program, port = SERVERS[name], free_port()
    if name == "nginx":
        needs_package("libnginx-mod-stream")
    text = "".join(recipe(name, marker, "sh") for marker in program.recipes)
    files = {
        file: recipe(name, marker, f"{name.lower()}\\w*")
        for file, marker in program.files.items()
    }
    assert old in "".join((text, *files.values()))
    for file, content in files.items():
        (place / file).write_text(content.replace(old, new).replace("8443", str(port)))
    with running(place, text.replace(old, new), port, env=home(place)) as log:
        yield port, log


def answer_of(name: str, place: Path, port: int) -> subprocess.CompletedProcess[str]:
    """Ask a program that serves: with our client, or curl where only HTTP is answered."""
    return call("curl", place, port) if name == "NSS" else client(port, place / "keys/client")


def told(keys: Path, port: int, *, certified: bool, host: str = "localhost") -> bytes:
    """What a server tells a client, with or without its certificate, by a name or address."""
    context = ssl.create_default_context(cafile=str(keys / "ca.pem"))
    if certified:
        context.load_cert_chain(
            keys / "fullchain.pem", keys / "key.pem", PHRASES["SROS_PASSPHRASE"]
        )
    with (
        socket.create_connection(("127.0.0.1", port), DEADLINE) as raw,
        context.wrap_socket(raw, server_hostname=host) as connection,
    ):
        try:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return connection.recv(65536)
        except (ssl.SSLError, ConnectionError):  # and not TimeoutError: silence is no refusal
            return b""


@pytest.mark.parametrize(("name", "program"), [marked(row.name, row) for row in PROGRAMS])
def test_a_row_of_the_table_says_what_is_tested_here(name: str, program: Program) -> None:
    check_row(program)
    assert (program.client, program.server) == (name in CLIENTS, name in SERVERS)


@each(CLIENTS)
def test_a_client_is_answered(name: str, made: Path, copied: Copy, serve: Serve) -> None:
    server = serve("-k", str(made / "keys/server"))
    result = call(name, copied(made), server.port)
    assert "hello" in result.stdout, result
    server.wait_for(
        lambda: re.search("^accepted\\n(.*\\n)*read: ", server.out.read_text()) is not None
    )


@each(CLIENTS)
def test_a_stranger_s_client_is_refused(
    name: str, made: Path, strangers: Path, copied: Copy, serve: Serve
) -> None:
    server = serve("-k", str(made / "keys/server"))
    result = call(name, copied(strangers), server.port)
    assert "hello" not in result.stdout, result
    assert server.complained(
        "certificate verify failed: unable to get local issuer certificate"
    )
    assert server.out.read_text() == ""


@each(CLIENTS)
def test_a_client_refuses_a_stranger_s_server(
    name: str, made: Path, strangers: Path, copied: Copy, serve: Serve
) -> None:
    server = serve("-k", str(strangers / "keys/server"))
    result = call(name, copied(made), server.port)
    assert "hello" not in result.stdout, result
    assert server.complained("error: ")
    assert "verify failed" not in server.err.read_text()  # it was not the server that refused
    assert (
        "read: " not in server.out.read_text()
    )  # Wget verifies a peer once its handshake is done


@each(CLIENTS)
def test_a_client_looks_at_lists_or_its_page_says_so(
    name: str, made: Path, revoked: Path, copied: Copy, serve: Serve
) -> None:
    server = serve("-k", str(made / "keys/server"))
    result = call(name, copied(revoked), server.port)
    assert ("hello" in result.stdout) == (name not in LISTS["client"]), result


@each(SERVERS)
def test_a_server_looks_at_lists_or_its_page_says_so(
    name: str, revoked: Path, copied: Copy
) -> None:
    with serving(name, copied(revoked)) as (port, _):
        answer = told(revoked / "keys/client", port, certified=True)
    assert (answer != b"") == (name not in LISTS["server"])


@each(SERVERS)
def test_a_server_answers_our_client_and_nobody_else(
    name: str, made: Path, strangers: Path, copied: Copy
) -> None:
    ours, theirs = copied(made), copied(strangers)
    with serving(name, ours) as (port, log):
        for _ in ("before", "after"):
            result = answer_of(name, ours, port)
            assert result.returncode == 0 and SERVERS[name].answer in result.stdout, result
            assert told(ours / "keys/client", port, certified=True)
            for host in ("localhost", "127.0.0.1"):
                assert told(ours / "keys/client", port, certified=False, host=host) == b""
            result = answer_of(name, theirs, port)
            assert result.returncode != 0 and result.stdout == "", result
            poll(
                lambda: SERVERS[name].refusal in log.read_text(errors="replace"), log.read_text
            )


@each(SERVERS)
def test_our_client_refuses_a_stranger_s_server(
    name: str, made: Path, strangers: Path, copied: Copy
) -> None:
    with serving(name, copied(strangers)) as (port, _):
        result = answer_of(name, copied(made), port)
    assert result.returncode != 0 and result.stdout == "", result
    assert re.search("certificate (verify failed|problem): unable to get", result.stderr), (
        result
    )


@pytest.mark.parametrize(
    ("name", "old", "new", "certified", "host"), [marked(*warning) for warning in WARNINGS]
)
def test_what_a_page_warns_of_lets_strangers_in(
    name: str,
    old: str,
    new: str,
    certified: bool,
    host: str,
    made: Path,
    strangers: Path,
    copied: Copy,
) -> None:
    with serving(name, copied(made), old, new) as (port, _):
        assert told(strangers / "keys/client", port, certified=certified, host=host)
