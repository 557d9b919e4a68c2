"""Recipes in several languages, each on its page, as clients and servers of our scripts."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pages
import programs
import pytest
import yaml
from configurations import configure
from exchanges import Server, client
from needs import needs_package
from programs import Program, free_port, paste, recipe, running
from running import DEADLINE, generate, poll

pytestmark = pytest.mark.slow

NODE = Program(
    "Node.js", "OpenSSL", "node --version", client=True, server=True, encrypted=True
)
JAVA = Program("Java", "JSSE", "java -version", client=True, server=True, encrypted=True)
WOLFSSL = Program("wolfSSL", "wolfSSL", "dpkg-query -W libwolfssl-dev", True, True, True)
UV = Program("uv", "rustls", "uv --version", client=True, server=False, encrypted=False)
PYTHON = Program(
    "Python", "OpenSSL", "python3 --version", client=True, server=True, encrypted=True
)
HTTPX = Program(
    "httpx",
    "OpenSSL",
    "python3 -c 'import httpx; print(httpx.__version__)'",
    True,
    False,
    True,
)
MARKS = {
    NODE: "node",
    JAVA: "java",
    WOLFSSL: "wolfssl",
    UV: "rustls",
    PYTHON: "python",
    HTTPX: "python",
}
# What makes a program ready, where its shell block does not do so itself.
PREPARATIONS = {JAVA: "openssl pkcs12"}
# A program, and a marker of the shell block that runs it.
CLIENTS = (
    (NODE, "node client.js"),
    (JAVA, "Sros.java client"),
    (JAVA, "Sros.java https"),
    (WOLFSSL, "./client"),
    (UV, "uv pip"),
    (PYTHON, "python3 client.py"),
    (PYTHON, "python3 get.py"),
    (HTTPX, "python3 get_httpx.py"),
)
SERVERS = (
    (NODE, "node server.js"),
    (JAVA, "Sros.java server"),
    (WOLFSSL, "./server"),
    (PYTHON, "python3 server.py"),
)
# What stands in each program's shell blocks that are run here.
RECIPES: dict[str, tuple[str, ...]] = {
    program.name: (text,) for program, text in PREPARATIONS.items()
}
for known, text in (*CLIENTS, *SERVERS):
    RECIPES[known.name] = (*RECIPES.get(known.name, ()), text)
WITHOUT_LISTS = (WOLFSSL, UV)  # as their pages say
SILENT = (PYTHON,)  # asyncio logs no failed handshake
# What programs say of a peer of another CA, of one with another name, and of a revoked one.
REASONS = {
    "strangers": "verify failed|get.(local.)?issuer|get.(certificate.)?CRL|trust anchors|"
    "BadSignature",
    "renamed": "altnames: DNS:elsewhere|name matching localhost|not valid for|name mismatch",
    "revoked": "revoked",
}


def marked(rows: tuple[tuple[Program, str], ...]) -> pytest.MarkDecorator:
    """Run a test for each of these rows, under the marker of its program."""
    params = [
        pytest.param(*row, id=row[1], marks=getattr(pytest.mark, MARKS[row[0]]))
        for row in rows
    ]
    return pytest.mark.parametrize(("program", "marker"), params)


@pytest.fixture(scope="session")
def renamed(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same folder, whose server was certified for another name by the same CA."""
    folder = tmp_path_factory.mktemp("renamed") / "renamed"
    shutil.copytree(made, folder, symlinks=True)

    def change(document: dict[str, object]) -> None:
        text = yaml.dump(document["keys"]).replace(
            "DNS:localhost, IP:127.0.0.1, IP:::1", "DNS:elsewhere"
        )
        document["keys"] = yaml.safe_load(text)

    configure(folder, change)
    assert generate(folder, "--renew", "server").returncode == 0
    return folder


@pytest.fixture(scope="session")
def revoked(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same folder after both nodes were revoked: only here do their lists say so."""
    folder = tmp_path_factory.mktemp("revoked") / "revoked"
    shutil.copytree(made, folder, symlinks=True)
    generate(folder, "--revoke", "server", "client")
    assert "2 revoked" in generate(folder).stdout
    return folder


def prepare(program: Program, folder: Path, tmp_path: Path, port: int) -> Path:
    """Copy a folder of keys, and put the files of a program's page into it."""
    if program == WOLFSSL:
        needs_package("libwolfssl-dev")
    place = tmp_path / program.name / folder.name
    shutil.copytree(folder, place, symlinks=True)
    page, _ = programs.row(program.name)
    for text in [text for kind, text in pages.blocks(pages.PAGES[page]) if kind != "sh"]:
        name = text.split("\n", 1)[0].split()[1]
        (place / name).write_text(text.replace("8443", str(port)))
    if program in PREPARATIONS:
        result = paste(place, recipe(program.name, PREPARATIONS[program], "sh"), port)
        assert result.returncode == 0, result.stderr
    return place


def call(program: Program, marker: str, folder: Path, tmp_path: Path, port: int) -> str:
    """What a program prints as a client with a folder's keys."""
    place = prepare(program, folder, tmp_path, port)
    result = paste(place, recipe(program.name, marker, "sh"), port)
    for path in (path for path in place.rglob("*.p[1e]*") if path.stat().st_mode & 0o077):
        assert path.suffix != ".p12" and "PRIVATE" not in path.read_text(), (
            f"for all to read: {path}"
        )
    printed = result.stdout + result.stderr
    if program != UV:  # which can do nothing with the answer
        assert (result.returncode == 0) == ("hello" in printed), printed
    return printed


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(program, id=program.name, marks=getattr(pytest.mark, MARKS[program]))
        for program in MARKS
    ],
)
def test_the_table_says_what_is_tested(program: Program) -> None:
    programs.check_row(program)
    assert program.client == any(program == row[0] for row in CLIENTS)
    assert program.server == any(program == row[0] for row in SERVERS)


@marked(CLIENTS)
def test_a_client_is_answered_and_a_stranger_with_the_same_recipe_is_not(
    program: Program,
    marker: str,
    made: Path,
    strangers: Path,
    tmp_path: Path,
    server: Server,
) -> None:
    assert "hello" not in call(program, marker, strangers, tmp_path, server.port)
    assert server.complained("certificate verify failed")
    assert "accepted" not in server.out.read_text()
    assert "hello" in call(program, marker, made, tmp_path, server.port)
    server.wait_for(lambda: "accepted\nread: [" in server.out.read_text())


def says_why(printed: str, impostor: str, server: Server) -> None:
    """Require that a client has refused a server for a reason."""
    assert re.search(REASONS[impostor], printed, re.IGNORECASE), printed
    assert "hello" not in printed
    server.complained("simple_https_server.py: error: ")
    assert "read" not in server.out.read_text()


@marked(CLIENTS)
@pytest.mark.parametrize("impostor", ["strangers", "renamed"])
def test_a_client_refuses_a_server_and_says_why(
    program: Program,
    marker: str,
    impostor: str,
    made: Path,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    serve: Callable[..., Server],
) -> None:
    folder: Path = request.getfixturevalue(impostor)
    server = serve("-k", str(folder / "keys/server"))
    says_why(call(program, marker, made, tmp_path, server.port), impostor, server)


# Nothing but the lists of the client's own folder tells that a server was revoked.
@marked(tuple(row for row in CLIENTS if row[0] not in WITHOUT_LISTS))
def test_a_client_refuses_a_server_on_its_list(
    program: Program, marker: str, revoked: Path, tmp_path: Path, server: Server
) -> None:
    says_why(call(program, marker, revoked, tmp_path, server.port), "revoked", server)


@marked(tuple(row for row in CLIENTS if row[0] in WITHOUT_LISTS))
def test_a_client_without_lists_lets_a_revoked_server_in_as_its_page_says(
    program: Program, marker: str, revoked: Path, tmp_path: Path, server: Server
) -> None:
    assert "hello" in call(program, marker, revoked, tmp_path, server.port)


def answered_without_certificate(port: int, folder: Path) -> bool:
    """Whether a server says anything to a client that shows no certificate."""
    context = ssl.create_default_context(cafile=str(folder / "keys" / "client" / "ca.pem"))
    with (
        socket.create_connection(("127.0.0.1", port), DEADLINE) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as connection,
    ):
        try:
            connection.sendall(b"hola\n")
            return bool(connection.recv(100))
        except OSError:
            return False


def gives_reason(program: Program, log: Path, impostor: str) -> bool:
    """Wait until a server that can has said why it refused a client."""

    def said() -> bool:
        return program in SILENT or bool(
            re.search(REASONS[impostor], log.read_text(), re.IGNORECASE)
        )

    poll(said, log.read_text)
    return True


@marked(SERVERS)
def test_a_server_answers_its_clients_and_no_stranger(
    program: Program, marker: str, made: Path, strangers: Path, tmp_path: Path
) -> None:
    port = free_port()
    place = prepare(program, made, tmp_path, port)
    with running(place, recipe(program.name, marker, "sh"), port) as log:
        stranger = client(port, strangers / "keys" / "client")
        assert (stranger.returncode, stranger.stdout) == (1, ""), stranger.stderr
        assert gives_reason(program, log, "strangers")
        assert not answered_without_certificate(port, made)
        good = client(port, made / "keys" / "client")
        assert (good.returncode, good.stdout) == (0, "connected\nread: [hello]\n"), good.stderr


@marked(SERVERS)
def test_a_server_of_another_ca_is_refused(
    program: Program, marker: str, made: Path, strangers: Path, tmp_path: Path
) -> None:
    port = free_port()
    place = prepare(program, strangers, tmp_path, port)
    with running(place, recipe(program.name, marker, "sh"), port):
        good = client(port, made / "keys" / "client")
        assert (good.returncode, good.stdout) == (1, "")
        assert (
            "certificate verify failed: unable to get local issuer certificate" in good.stderr
        )


@marked(tuple(row for row in SERVERS if row[0] not in WITHOUT_LISTS))
def test_a_server_refuses_a_client_on_its_list(
    program: Program, marker: str, made: Path, revoked: Path, tmp_path: Path
) -> None:
    port = free_port()
    place = prepare(program, revoked, tmp_path, port)
    with running(place, recipe(program.name, marker, "sh"), port) as log:
        refused = client(port, made / "keys" / "client")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert gives_reason(program, log, "revoked")
        assert (
            "certificate verify failed" not in refused.stderr
        )  # it was the server that refused
