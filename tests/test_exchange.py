"""The exchange of the two scripts, and with other programs; each refusal beside its twin."""

from __future__ import annotations

import contextlib
import re
import select
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from certificates import authority, certificate, issue, lists, make_list, on_list, pem, purpose
from configurations import configure, edit
from exchanges import (
    ANSWERED,
    SERVED,
    Behaviour,
    Serve,
    Server,
    answered,
    answering,
    ask,
    client,
    connect,
    errors,
    exchange,
    peer,
    presented,
    printable,
)
from needs import needs
from running import (
    CLIENT,
    DEADLINE,
    PHRASES,
    SERVER,
    Terminal,
    environment,
    fine,
    generate_here,
    run,
    started,
)

PROMPT = "Enter PEM pass phrase:"
UNTRUSTED = "unable to get (local )?issuer|self.signed|signature failure"
PEM_FILES = ["key.pem", "fullchain.pem", "ca.pem", "crl.pem"]


# --- What the tests make ---------------------------------------------------------------------


def put_list(folder: Path, node: str, serial_number: int) -> None:
    """Replace master's list in a node's crl.pem by a newer one that revokes a certificate."""
    path, master = folder / "keys" / node / "crl.pem", folder / "keys/master"
    newer = make_list(master, "sros", 9_999_999_999, on_list(serial_number))
    (roots,) = [x for x in lists(path) if x.issuer != certificate(master / "cert.pem").subject]
    path.write_bytes(newer + pem(roots))


def rename(folder: Path, node: str, name: str) -> None:
    """Give a node a new key, and a certificate for any name by the master CA."""
    master = authority(folder / "keys/master", "sros")
    issue(master, name, purpose=purpose(node)).write(folder / "keys" / node)


def remake(folder: Path, node: str, **fields: object) -> None:
    """Make a node's key and certificate again, from a configuration with other fields."""

    def change(document: dict[str, object]) -> None:
        keys = document["keys"]
        assert isinstance(keys, dict)
        entry = keys["nodes"][node]
        for field, value in fields.items():
            target = (
                entry if field in ("cipher", "passphrase", "subject") else entry["extensions"]
            )
            if value is None:
                del target[field]
            else:
                target[field] = value

    configure(folder, change)
    shutil.rmtree(folder / f"keys/{node}")
    result = generate_here(folder)
    assert result.returncode == 0, result.stderr


def make_keys(folder: Path, root: str, master: str, server: str, client: str) -> None:
    """Make the shipped configuration's keys, of these types."""
    types = {"root": root, "master": master, "server": server, "client": client}

    def change(keys: dict[str, Any]) -> None:
        entries = {"root": keys["root"], "master": keys["master"], **keys["nodes"]}
        for name, entry in entries.items():
            entry["key"] = types[name]
            if types[name].startswith(("ed", "ml-dsa")):
                entry["digest"] = None

    edit(folder, change)
    fine(generate_here(folder))


@pytest.mark.parametrize(
    "key", ["ec:secp384r1", "ec:secp521r1", "rsa:2048", "rsa:3072", "ed25519", "ed448"]
)
def test_each_type_of_key_makes_an_exchange(tmp_path: Path, serve: Serve, key: str) -> None:
    make_keys(tmp_path, key, key, key, key)
    exchange(serve, tmp_path / "keys/server", tmp_path / "keys/client")


EC = "ec:prime256v1"
ML_DSA = {  # the types of the keys of root, master, server and client
    "44": ("ml-dsa-44", "ml-dsa-44", "ml-dsa-44", "ml-dsa-44"),
    "65": ("ml-dsa-65", "ml-dsa-65", "ml-dsa-65", "ml-dsa-65"),
    "87": ("ml-dsa-87", "ml-dsa-87", "ml-dsa-87", "ml-dsa-87"),
    "CAs": ("ml-dsa-87", "ml-dsa-65", EC, EC),
    "nodes": (EC, EC, "ml-dsa-44", "ml-dsa-65"),
    "root": ("ml-dsa-87", EC, EC, EC),
}


@pytest.mark.parametrize("types", ML_DSA.values(), ids=ML_DSA.keys())
def test_ml_dsa_makes_an_exchange_or_a_line_says_that_openssl_is_too_old(
    tmp_path: Path, serve: Serve, types: tuple[str, str, str, str]
) -> None:
    make_keys(tmp_path, *types)
    if ssl.OPENSSL_VERSION_INFO >= (3, 5):
        exchange(serve, tmp_path / "keys/server", tmp_path / "keys/client")
    else:
        version = re.escape(ssl.OPENSSL_VERSION)
        reason = f"ML-DSA takes OpenSSL 3.5, this Python's ssl has {version}$"
        for script, node in ((SERVER, "server"), (CLIENT, "client")):
            keys = tmp_path / "keys" / node
            for env in (PHRASES, {}):  # before it asks for a pass phrase
                failed(run(*command(script, keys), "--port", "0", env=env), script, reason)


class Program:
    """Another program: a pipe to its standard input, and a file of all that it printed."""

    def __init__(
        self, log: Path, *command: str | Path, env: Mapping[str, str] | None = PHRASES
    ):
        self.log = log
        needs(*map(str, command))
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                env=environment(env),
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def say(self, text: str) -> None:
        """Write to its standard input."""
        assert self.process.stdin
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def expect(self, pattern: str) -> re.Match[str]:
        """Poll until it has printed what a pattern matches, and return the match."""
        until = time.monotonic() + DEADLINE
        while not (match := re.search(pattern, self.log.read_text(errors="replace"), re.M)):
            assert time.monotonic() < until, self.log.read_text(errors="replace")
            assert self.process.poll() is None or re.search(
                pattern, self.log.read_text(errors="replace"), re.M
            ), self.log.read_text(errors="replace")
            select.select([], [], [], 0.01)
        return match

    def finish(self) -> int:
        """Close its standard input, and return its exit status."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        return self.process.wait(DEADLINE)


Start = Callable[..., Program]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start programs that end with the test."""
    programs: list[Program] = []

    def begin(*command: str | Path, env: Mapping[str, str] | None = PHRASES) -> Program:
        programs.append(Program(tmp_path / f"log-{len(programs)}", *command, env=env))
        return programs[-1]

    yield begin
    for program in programs:
        if program.process.poll() is None:
            program.process.kill()
        with contextlib.suppress(BrokenPipeError):
            program.finish()


def s_client(port: int, keys: Path, *arguments: str | Path) -> list[str | Path]:
    """Return the command of OpenSSL's client: quiet, with the trust anchor and a deadline."""
    words = ["openssl", "s_client", "-quiet", "-no_ign_eof", "-connect", f"localhost:{port}"]
    return [*words, "-CAfile", keys / "ca.pem", "-verify_return_error", *arguments]


def own_options(keys: Path, *, leaf_only: bool = False) -> list[str | Path]:
    """Return OpenSSL's options for a folder's key and certificates."""
    chain: list[str | Path] = [] if leaf_only else ["-cert_chain", keys / "fullchain.pem"]
    words: list[str | Path] = ["-cert", keys / "cert.pem", "-key", keys / "key.pem", *chain]
    return [*words, "-pass", "env:SROS_PASSPHRASE"]


def failed(result: subprocess.CompletedProcess[str], script: Path, *texts: str) -> str:
    """Check that a script failed with one line, which holds all texts. Return the line."""
    assert (result.returncode, result.stdout) == (1, ""), result
    lines = errors(result.stderr.encode(), script)
    assert len(lines) == 1, result.stderr
    for text in texts:
        assert re.search(text, lines[0], re.I), (text, lines[0])
    return lines[0]


def refusals(server: Server, count: int) -> list[str]:
    """Wait for a server's error lines, and return them; it may not have accepted anyone."""
    server.wait_for(lambda: server.err.read_text().count("error: ") >= count)
    lines = server.errors()
    assert len(lines) == count, lines
    assert server.out.read_text() == ""
    return lines


def command(script: Path, keys: Path, *arguments: str) -> list[str | Path]:
    """Return the command that runs one of the scripts with a folder."""
    return [sys.executable, script, "-k", keys, *arguments]


def read_until(terminal: Terminal, pattern: str) -> re.Match[str]:
    """Read a terminal until all that was seen matches a pattern."""
    until = time.monotonic() + DEADLINE
    while not (match := re.search(pattern, terminal.seen)):
        assert time.monotonic() < until and terminal.read(), terminal.seen
    return match


# --- The two clients that wait for nothing, begun before the first test ----------------------


@pytest.fixture(scope="module", autouse=True)
def waiting(
    made: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[subprocess.Popen[str]]]:
    """Clients of two servers: one is silent from the start, one after its handshake."""
    silent = socket.create_server(("127.0.0.1", 0))

    def listen_only(connection: ssl.SSLSocket) -> None:
        while connection.recv(65536):
            pass

    with silent, peer(made / "keys/server", listen_only) as mute:
        processes = [
            started(*command(CLIENT, made / "keys/client", "--port", str(port)), env=PHRASES)
            for port in (silent.getsockname()[1], mute)
        ]
        yield processes
        for process in processes:
            process.kill()
            process.communicate()


# --- The exchange ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1"])
def test_both_sides_print_exactly_the_design_s_lines(
    made: Path, server: Server, name: str
) -> None:
    answered(client(server.port, made / "keys/client", "--host", name))
    assert server.printed(SERVED)
    assert server.err.read_text() == f"listening on localhost port {server.port}\n"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_server_on_one_address_says_so_and_serves_it(
    made: Path, serve: Serve, host: str
) -> None:
    server = serve("--host", host, "-k", str(made / "keys/server"))
    assert server.err.read_text() == f"listening on {host} port {server.port}\n"
    assert client(server.port, made / "keys/client", "--host", host).stdout == ANSWERED
    elsewhere = {"127.0.0.1": "::1", "::1": "127.0.0.1"}[host]
    failed(client(server.port, made / "keys/client", "--host", elsewhere), CLIENT, "refused")


def test_the_defaults_are_the_design_s_folders(made: Path, start: Start) -> None:
    server = start("env", "-C", made, sys.executable, SERVER, "--port", "0")
    port = server.expect(r"listening on localhost port (\d+)$")[1]
    result = run(sys.executable, CLIENT, "--port", port, cwd=made, env=PHRASES)
    assert (result.returncode, result.stdout, result.stderr) == (0, ANSWERED, "")


def test_pass_phrases_are_typed_at_the_terminal(made: Path) -> None:
    server = Terminal(*command(SERVER, made / "keys/server", "--port", "0"))
    server.expect(PROMPT)
    server.type("sros\n")
    port = read_until(server, r"listening on localhost port (\d+)\n")[1]
    user = Terminal(*command(CLIENT, made / "keys/client", "--port", port))
    user.expect(PROMPT)
    user.type("sros\n")
    assert user.finish() == 0
    assert user.seen == f"{PROMPT}\n{ANSWERED}"
    read_until(server, "closed\n")
    server.type("\x03")
    assert server.finish() == 130
    assert server.seen.replace("^C", "").rstrip("\n") == (
        f"{PROMPT}\nlistening on localhost port {port}\n{SERVED}".rstrip("\n")
    )


@pytest.mark.parametrize("node", ["server", "client"])
def test_a_wrong_pass_phrase_typed_at_the_terminal_is_one_line(made: Path, node: str) -> None:
    script = {"server": SERVER, "client": CLIENT}[node]
    terminal = Terminal(*command(script, made / f"keys/{node}", "--port", "0"))
    terminal.expect(PROMPT)
    terminal.type("Xyzzy-17\n")
    assert terminal.finish() == 1
    assert terminal.seen.startswith(f"{PROMPT}\n{script.name}: error: ")
    assert terminal.seen.count("\n") == 2 and "Xyzzy-17" not in terminal.seen
    assert ": the pass phrase is wrong, or the file is damaged" in terminal.seen
    assert "SROS_PASSPHRASE" not in terminal.seen


@pytest.mark.parametrize("node", ["server", "client"])
def test_ctrl_c_at_the_prompt_ends_quietly(made: Path, node: str) -> None:
    script = {"server": SERVER, "client": CLIENT}[node]
    terminal = Terminal(*command(script, made / f"keys/{node}", "--port", "0"))
    terminal.expect(PROMPT)
    terminal.type("\x03")
    assert terminal.finish() == 130
    assert terminal.seen.replace("^C", "").strip() == PROMPT


def test_sigterm_at_the_prompt_ends_the_server_quietly_and_the_terminal_echoes_again(
    made: Path,
) -> None:
    terminal = Terminal(*command(SERVER, made / "keys/server", "--port", "0"))
    terminal.expect(PROMPT)
    terminal.process.terminate()
    assert terminal.process.wait(DEADLINE) == 0
    assert termios.tcgetattr(terminal.slave)[3] & termios.ECHO
    assert terminal.finish() == 0
    assert terminal.seen.strip() == PROMPT


@pytest.mark.parametrize("node", ["server", "client"])
def test_the_end_of_input_at_the_prompt_is_one_line(made: Path, node: str) -> None:
    script = {"server": SERVER, "client": CLIENT}[node]
    terminal = Terminal(*command(script, made / f"keys/{node}", "--port", "0"))
    terminal.expect(PROMPT)
    terminal.type("\x04")
    assert terminal.finish() == 1
    assert terminal.seen.endswith("key.pem: no pass phrase was typed\n")
    assert terminal.seen.count("error: ") == 1


def test_ctrl_c_ends_a_waiting_client_quietly(made: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(DEADLINE)
        port = str(silent.getsockname()[1])
        user = Terminal(*command(CLIENT, made / "keys/client", "--port", port), env=PHRASES)
        connection, _ = silent.accept()
        with connection:
            connection.settimeout(DEADLINE)
            assert connection.recv(1)
            user.type("\x03")
            assert user.finish() == 130
    assert user.seen.replace("^C", "").strip() == ""


def test_an_unencrypted_key_needs_no_prompt(copy: Path) -> None:
    remake(copy, "server", cipher=None, passphrase=None)
    remake(copy, "client", cipher=None, passphrase=None)
    server = Terminal(*command(SERVER, copy / "keys/server", "--port", "0"))
    port = read_until(server, r"listening on localhost port (\d+)\n")[1]
    user = Terminal(*command(CLIENT, copy / "keys/client", "--port", port))
    assert user.finish() == 0
    assert user.seen == ANSWERED
    read_until(server, "closed\n")
    server.type("\x03")
    assert server.finish() == 130
    assert PROMPT not in server.seen


def test_several_messages_are_sent_and_answered_in_turn(made: Path, server: Server) -> None:
    said = [
        "hola",
        "eins",
        "zwei drei",
        "hola",
        "",
        " hola ",
        "hola!",
        "Hola",
        "¡olé! 你好 🤖",
    ]
    result = client(server.port, made / "keys/client", *said)
    assert (result.returncode, result.stderr) == (0, "")
    answers = ["hello" if line == "hola" else line for line in said]
    assert result.stdout == "connected\n" + "".join(f"read: [{line}]\n" for line in answers)
    read = "".join(f"read: [{line}]\n" for line in said)
    assert server.printed(f"accepted\n{read}closed\n")


@pytest.mark.parametrize("filler", ["a", "é"], ids=["ascii", "two-byte"])
def test_a_line_of_64_kib_passes_and_a_longer_one_is_a_usage_error(
    made: Path, server: Server, filler: str
) -> None:
    message = "a" + filler * (65534 // len(filler.encode()))
    assert len(message.encode()) == 65535
    result = client(server.port, made / "keys/client", message)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"connected\nread: [{message}]\n"
    more = len(message.encode()) - len(message[:1000].encode())
    shown = f"[{message[:1000]}] and {more} bytes more"
    assert server.printed(f"accepted\nread: {shown}\nclosed\n")
    result = client(server.port, made / "keys/client", message + "a")
    assert (result.returncode, result.stdout) == (2, "") and "error: " in result.stderr
    assert server.printed(f"accepted\nread: {shown}\nclosed\n")


@pytest.mark.parametrize("end", [b"\n", b"", b"aaaaaaaaaaaaaaaaaaaaaaaaaa\nhola\n"])
def test_a_longer_line_from_another_peer_is_an_error_and_never_closed(
    made: Path, server: Server, end: bytes
) -> None:
    with connect(server.port, made / "keys/client") as connection:
        assert ask(connection, b"a" * 65535) == b"a" * 65535
        connection.sendall(b"a" * 65536 + end)
        assert server.complained(f"{SERVER.name}: error: ")
    assert client(server.port, made / "keys/client").stdout == ANSWERED
    shown = f"[{'a' * 1000}] and 64535 bytes more"
    assert server.printed(f"accepted\nread: {shown}\n{SERVED}")
    assert len(server.errors()) == 1


def test_thirty_simultaneous_clients_each_get_their_own_answer(
    made: Path, server: Server
) -> None:

    def talk(number: int) -> list[bytes]:
        with connect(server.port, made / "keys/client") as connection:
            lines = [b"%da" % number, b"hola", b"%db" % number]
            answers = [ask(connection, line) for line in lines]
            connection.unwrap().close()
        return answers

    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(talk, range(30)))
    assert answers == [[b"%da" % number, b"hello", b"%db" % number] for number in range(30)]
    server.wait_for(lambda: server.out.read_text().count("closed\n") == 30)
    each = [f"read: [{n}{part}]" for n in range(30) for part in "ab"]
    expected_lines = sorted(["accepted", "closed", "read: [hola]"] * 30 + each)
    assert sorted(server.out.read_text().splitlines()) == expected_lines


def test_silent_clients_do_not_hold_up_others(made: Path, server: Server) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        held = [
            stack.enter_context(connect(server.port, made / "keys/client")) for _ in range(20)
        ]
        assert client(server.port, made / "keys/client").stdout == ANSWERED
        for number, connection in reversed(list(enumerate(held))):
            assert ask(connection, b"%d" % number) == b"%d" % number


def test_verbose_shows_the_session_and_the_peer_on_standard_error_only(
    made: Path, serve: Serve
) -> None:
    server = serve("-v", "-k", str(made / "keys/server"))
    result = client(server.port, made / "keys/client", "-v")
    assert (result.returncode, result.stdout) == (0, ANSWERED)
    assert server.printed(SERVED)
    for shown, names in (
        (result.stderr, ["server", "SROS Example", "localhost", r"127\.0\.0\.1", "(::|:0:)1"]),
        (server.err.read_text(), ["client", "SROS Example"]),
    ):
        for name in [r"TLSv1\.3, TLS_\w+_SHA\d+, \w+=", *names]:
            assert re.search(name, shown), (name, shown)
        assert "error" not in shown
    assert (
        server.err.read_text().count("=client") == 2
    )  # the subject's, and the subjectAltName's


def test_both_scripts_need_only_python(made: Path, tmp_path: Path, start: Start) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for script in (SERVER, CLIENT):
        shutil.copy(script, alone)
    python = [sys.executable, "-I", "-S", "-W", "error"]
    keys = made / "keys"
    server = start(*python, alone / SERVER.name, "--port", "0", "-k", keys / "server", "-v")
    port = server.expect(r"listening on localhost port (\d+)$")[1]
    result = run(
        *python, alone / CLIENT.name, "-k", keys / "client", "--port", port, "-v", env=PHRASES
    )
    assert (result.returncode, result.stdout) == (0, ANSWERED)
    server.expect("^closed$")
    assert "rror" not in server.log.read_text() + result.stderr
    server.process.terminate()
    assert server.finish() == 0


# --- Signals ---------------------------------------------------------------------------------


def test_sigterm_ends_with_0_and_the_next_server_has_the_port_at_once(
    made: Path, serve: Serve
) -> None:
    first = serve("-k", str(made / "keys/server"))
    with connect(first.port, made / "keys/client") as held:
        assert ask(held, b"hola") == b"hello"
        assert first.stop() == 0
    second = serve("--port", str(first.port), "-k", str(made / "keys/server"))
    assert second.port == first.port
    for name in ("127.0.0.1", "::1"):
        assert client(first.port, made / "keys/client", "--host", name).stdout == ANSWERED
    assert first.errors() + second.errors() == []
    assert second.stop(signal.SIGINT) == 130


def test_after_sighup_the_server_uses_the_renewed_certificate_and_open_connections_continue(
    copy: Path, serve: Serve
) -> None:
    keys = copy / "keys/client"
    server = serve("-k", str(copy / "keys/server"))
    old = certificate(copy / "keys/server/cert.pem").serial_number
    with connect(server.port, keys) as held:
        assert ask(held, b"hola") == b"hello"
        remake(copy, "server")
        new = certificate(copy / "keys/server/cert.pem").serial_number
        assert presented(server.port, keys) == old != new
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(lambda: presented(server.port, keys) == new)
        assert ask(held, b"still here") == b"still here"
    assert client(server.port, keys).stdout == ANSWERED


def test_sighup_reads_a_newer_revocation_list(copy: Path, serve: Serve) -> None:
    keys = copy / "keys/client"
    server = serve("-k", str(copy / "keys/server"))
    assert client(server.port, keys).stdout == ANSWERED
    with connect(server.port, keys) as held:
        assert ask(held, b"hola") == b"hello"
        put_list(copy, "server", certificate(keys / "cert.pem").serial_number)
        assert client(server.port, keys).stdout == ANSWERED
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(lambda: client(server.port, keys).returncode == 1)
        failed(client(server.port, keys), CLIENT, "alert.*certificate revoked")
        assert "certificate revoked" in server.err.read_text()
        assert ask(held, b"hola") == b"hello"
        held.unwrap()


@pytest.mark.parametrize("name", PEM_FILES)
def test_a_folder_that_cannot_be_loaded_is_reported_and_the_old_one_stays(
    copy: Path, serve: Serve, name: str
) -> None:
    server = serve("-k", str(copy / "keys/server"))
    with connect(server.port, copy / "keys/client") as held:
        (copy / "keys/server" / name).write_text("damaged\n")
        server.process.send_signal(signal.SIGHUP)
        assert server.complained(f"{SERVER.name}: error: ")
        assert str(copy / "keys/server") in server.err.read_text()
        assert ask(held, b"hola") == b"hello"
    assert client(server.port, copy / "keys/client").stdout == ANSWERED
    assert server.err.read_text().count(str(copy / "keys/server")) >= 1


# --- Streams that end before their end -------------------------------------------------------


def close(connection: ssl.SSLSocket) -> None:
    """Close the TCP connection. Python sends no close_notify here."""
    connection.close()


def reset(connection: ssl.SSLSocket) -> None:
    """Close the TCP connection with a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("sent", [b"", b"hol"], ids=["nothing", "half"])
@pytest.mark.parametrize("cut", [close, reset])
def test_a_stream_cut_short_is_an_error_line_and_never_closed(
    made: Path, server: Server, sent: bytes, cut: Callable[[ssl.SSLSocket], None]
) -> None:
    connection = connect(server.port, made / "keys/client")
    server.printed("accepted\n")
    connection.sendall(sent)
    cut(connection)
    assert server.complained(f"{SERVER.name}: error: ")
    assert client(server.port, made / "keys/client").stdout == ANSWERED
    assert server.printed("accepted\n" + SERVED)
    assert len(server.errors()) == 1


@pytest.mark.parametrize("cut", [close, reset])
def test_a_stream_cut_short_after_a_whole_line_is_an_error_line_and_never_closed(
    made: Path, server: Server, cut: Callable[[ssl.SSLSocket], None]
) -> None:
    connection = connect(server.port, made / "keys/client")
    assert ask(connection, b"hola") == b"hello"
    cut(connection)
    assert server.complained(f"{SERVER.name}: error: ")
    assert client(server.port, made / "keys/client").stdout == ANSWERED
    assert server.printed("accepted\nread: [hola]\n" + SERVED)
    assert len(server.errors()) == 1


def test_a_stream_that_ends_with_close_notify_is_closed(made: Path, server: Server) -> None:
    with connect(server.port, made / "keys/client") as connection:
        assert ask(connection, b"hola") == b"hello"
        connection.unwrap().close()
    assert server.printed(SERVED)
    assert server.errors() == []


@pytest.mark.parametrize(
    "behave",
    [
        answering(b""),
        answering(b"", politely=False),
        answering(b"hel"),
        answering(b"hel", politely=False),
        answering(b"a" * 65536 + b"\n"),
    ],
    ids=["none", "none-cut", "half", "half-cut", "too-long"],
)
def test_a_client_without_a_whole_answer_fails_and_never_says_connected(
    made: Path, behave: Behaviour
) -> None:
    with peer(made / "keys/server", behave) as port:
        failed(client(port, made / "keys/client"), CLIENT, f"localhost port {port}")


def test_a_client_with_a_whole_answer_from_another_server_is_connected(made: Path) -> None:
    with peer(made / "keys/server", answering(b"a" * 65535 + b"\n")) as port:
        result = client(port, made / "keys/client")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"connected\nread: [{'a' * 65535}]\n"


def test_a_client_prints_the_answers_that_it_got_before_the_stream_ended(made: Path) -> None:
    with peer(made / "keys/server", answering(b"uno\n", b"", politely=False)) as port:
        result = client(port, made / "keys/client", "one", "two")
    assert (result.returncode, result.stdout) == (1, "connected\nread: [uno]\n")
    assert len(errors(result.stderr.encode(), CLIENT)) == 1


# --- What a hostile peer sends ---------------------------------------------------------------

HOSTILE = {
    "ansi": b"\x1b[2J\x1b[31mclosed",
    "c1-csi": "\x9b2Jclosed".encode(),
    "carriage-return": b"x]\rclosed\rread: [",
    "backspace": b"x\x08\x08\x08\x7f",
    "nul": b"x\x00y",
    "bell": b"\x07",
    "vertical": b"x]\x0bclosed\x0cclosed\x1cclosed\x1dclosed\x1eclosed",
    "next-line": "x]\x85closed\x85read: [".encode(),
    "line-separator": "x]\u2028closed\u2029read: [".encode(),
    "bidi": "\u202eolleh\u202c \u2066x\u2069 \u200fx".encode(),
    "zero-width": "ho\u200bla\ufeff".encode(),
    "tag": "x\U000e0041".encode(),
    "invalid": b"x\xff\xfe\xc3(",
    "overlong": b"x\xc0\x8ay\xe0\x80\x8a",
    "surrogate": b"x\xed\xa0\x80",
}


@pytest.mark.parametrize("message", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_message_is_escaped_and_forges_no_line(
    made: Path, server: Server, message: bytes
) -> None:
    with connect(server.port, made / "keys/client") as connection:
        assert ask(connection, message) == message
        connection.unwrap().close()
    server.wait_for(lambda: server.out.read_bytes().endswith(b"]\nclosed\n"))
    accepted, read, closed = printable(server.out.read_bytes())
    assert (accepted, closed) == ("accepted", "closed")
    assert read.startswith("read: [") and read.endswith("]") and "\\" in read


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (rb"C:\x1b", r"C:\x1b"),
        (b"C:\\x1b \x1b", r"C:\\x1b \x1b"),
        (b"\\udc41 \x1b", r"\\udc41 \x1b"),
        (b"\\udcff \xff", r"\\udcff \xff"),
    ],
)
def test_a_backslash_is_no_code_beside_one(
    made: Path, server: Server, message: bytes, shown: str
) -> None:
    with connect(server.port, made / "keys/client") as connection:
        assert ask(connection, message) == message
        connection.unwrap().close()
    assert server.printed(f"accepted\nread: [{shown}]\nclosed\n")


def test_hostile_answers_are_escaped_and_forge_no_line(made: Path) -> None:
    lines = [message + b"\n" for message in HOSTILE.values()]
    with peer(made / "keys/server", answering(*lines)) as port:
        result = subprocess.run(
            command(CLIENT, made / "keys/client", "--port", str(port), *HOSTILE),
            env=environment(PHRASES),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )
    assert (result.returncode, result.stderr) == (0, b"")
    connected, *read = printable(result.stdout)
    assert connected == "connected" and len(read) == len(lines)
    for line in read:
        assert line.startswith("read: [") and line.endswith("]") and "\\" in line


def test_a_hostile_subject_is_escaped_where_verbose_shows_it(copy: Path, serve: Serve) -> None:
    rename(copy, "client", "x\nclosed\x1b[2J\u2028\u202ex")
    rename(copy, "server", "y\nconnected\x1b[2J\u2028\u202ey")
    server = serve("-v", "-k", str(copy / "keys/server"))
    result = client(server.port, copy / "keys/client", "-v")
    assert (result.returncode, result.stdout) == (0, ANSWERED)
    assert server.printed(SERVED)
    shown = printable(result.stderr.encode()), printable(server.err.read_bytes())
    assert not {"closed", "connected"} & {line[:9] for lines in shown for line in lines}


# --- Other programs as peers -----------------------------------------------------------------


@pytest.mark.parametrize("leaf_only", [False, True], ids=["chain", "leaf-only"])
def test_openssl_completes_the_exchange_as_a_client(
    made: Path, server: Server, start: Start, leaf_only: bool
) -> None:
    keys = made / "keys/client"
    other = start(*s_client(server.port, keys, *own_options(keys, leaf_only=leaf_only)))
    other.say("hola\n")
    other.expect("^hello$")
    assert other.finish() == 0
    assert server.printed(SERVED)
    assert server.errors() == []


def gnutls(port: int, keys: Path) -> list[str | Path]:
    """Return the command of GnuTLS's client; the key's pass phrase is in GNUTLS_PIN."""
    words: list[str | Path] = ["gnutls-cli", f"--port={port}", "localhost"]
    words += [f"--x509cafile={keys / 'ca.pem'}", f"--x509certfile={keys / 'fullchain.pem'}"]
    return [*words, f"--x509keyfile={keys / 'key.pem'}"]


def test_gnutls_completes_the_exchange_as_a_client(
    made: Path, server: Server, start: Start
) -> None:
    pin = {"GNUTLS_PIN": PHRASES["SROS_PASSPHRASE"]}
    other = start("stdbuf", "-oL", *gnutls(server.port, made / "keys/client"), env=pin)
    other.expect("Handshake was completed")
    other.say("hola\n")
    other.expect("hello")
    assert other.finish() == 0
    assert server.printed(SERVED)
    assert server.errors() == []


def curl(
    port: int, keys: Path, *arguments: str | Path, scheme: str = "https"
) -> subprocess.CompletedProcess[str]:
    """Run curl with a folder's trust anchor; the key's pass phrase goes through its stdin."""
    words: list[str | Path] = ["curl", "-sS", "--config", "-", "--cacert", keys / "ca.pem"]
    url = f"{scheme}://localhost:{port}/"
    return run(*words, *arguments, url, stdin=f'pass = "{PHRASES["SROS_PASSPHRASE"]}"\n')


@pytest.mark.parametrize("name", ["127.0.0.1", "[::1]"])
def test_curl_is_a_client(made: Path, server: Server, name: str) -> None:
    keys = made / "keys/client"
    pair: list[str | Path] = ["--cert", keys / "fullchain.pem", "--key", keys / "key.pem"]
    result = curl(server.port, keys, *pair, "--connect-to", f"::{name}:", "--include")
    assert (result.returncode, result.stderr) == (0, "")
    head, _, body = result.stdout.partition("\n\n")
    assert body == "hello\n"
    lines = head.splitlines()
    assert lines[0].startswith("HTTP/1.1 200")
    assert {"content-length: 6", "connection: close"} <= {line.lower() for line in lines}
    assert server.printed("accepted\nread: [GET / HTTP/1.1]\nclosed\n")
    assert server.errors() == []


def test_curl_uploads_without_harm_to_the_answer(
    made: Path, server: Server, tmp_path: Path
) -> None:
    keys = made / "keys/client"
    (tmp_path / "body").write_bytes(b"hola\n" * 20000)
    pair: list[str | Path] = ["--cert", keys / "fullchain.pem", "--key", keys / "key.pem"]
    result = curl(
        server.port, keys, *pair, "--data-binary", f"@{tmp_path / 'body'}", "-H", "Expect:"
    )
    assert (result.stdout, result.returncode) == ("hello\n", 0), result.stderr
    assert server.printed("accepted\nread: [POST / HTTP/1.1]\nclosed\n")


def test_a_client_of_http_that_resets_after_the_whole_answer_is_no_error(
    made: Path, server: Server
) -> None:
    with connect(server.port, made / "keys/client") as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while not answer.endswith(b"hello\n"):
            answer += connection.recv(65536)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    served = "accepted\nread: [GET / HTTP/1.1]\nclosed\n"
    assert server.printed(served)
    # Until another client has been served, the server has noticed the end of the first one.
    assert client(server.port, made / "keys/client").stdout == ANSWERED
    assert server.printed(served + SERVED)
    assert server.errors() == []


def s_server(keys: Path, *, leaf_only: bool = False) -> list[str | Path]:
    """Return the command of OpenSSL's server that answers each line with its reverse."""
    words: list[str | Path] = ["openssl", "s_server", "-accept", "localhost:0", "-rev"]
    words += [
        "-CAfile",
        keys / "ca.pem",
        "-Verify",
        "2",
        "-verify_return_error",
        "-naccept",
        "1",
    ]
    return [*words, *own_options(keys, leaf_only=leaf_only)]


@pytest.mark.parametrize("leaf_only", [False, True], ids=["chain", "leaf-only"])
def test_the_client_completes_the_exchange_with_openssl_as_a_server(
    made: Path, start: Start, leaf_only: bool
) -> None:
    other = start(*s_server(made / "keys/server", leaf_only=leaf_only))
    port = int(other.expect(r"^ACCEPT .*:(\d+)$")[1])
    host = "::1" if "[::1]" in other.log.read_text() else "127.0.0.1"
    result = client(port, made / "keys/client", "--host", host, "hola", "uno dos")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "connected\nread: [aloh]\nread: [sod onu]\n"


def test_openssl_as_a_server_refuses_a_foreign_client(
    copy: Path, strangers: Path, start: Start
) -> None:
    swap(copy, strangers / "keys/client", "client")
    program = start(*s_server(copy / "keys/server"))
    port = int(program.expect(r"^ACCEPT .*:(\d+)$")[1])
    host = "::1" if "[::1]" in program.log.read_text() else "127.0.0.1"
    failed(client(port, copy / "keys/client", "--host", host), CLIENT, "alert.*unknown ca")


# --- Refusals, each with its twin ------------------------------------------------------------


def swap(folder: Path, source: Path, node: str) -> None:
    """Give a node another key and chain, but leave it whom it trusts."""
    for name in ("key.pem", "fullchain.pem", "cert.pem"):
        shutil.copy(source / name, folder / f"keys/{node}/{name}")


VERIFIER = {"client": "server", "server": "client"}


def test_a_client_without_a_certificate_is_refused(
    made: Path, server: Server, start: Start
) -> None:
    keys = made / "keys/client"
    bare = start(*s_client(server.port, keys))
    bare.expect("alert certificate required")
    result = curl(server.port, keys)
    assert (
        result.returncode != 0
        and result.stdout == ""
        and "certificate required" in result.stderr
    )
    lines = refusals(server, 2)
    assert all("did not return a certificate" in line for line in lines), lines
    assert client(server.port, keys).stdout == ANSWERED  # the server goes on


def test_a_saved_session_does_not_replace_the_certificate(
    made: Path, server: Server, start: Start, tmp_path: Path
) -> None:
    keys = made / "keys/client"
    saved = tmp_path / "session.pem"
    first = start(*s_client(server.port, keys, *own_options(keys), "-sess_out", saved))
    first.say("hola\n")
    first.expect("^hello$")
    assert first.finish() == 0
    again: list[str | Path] = ["-sess_in", saved] if saved.exists() else []
    second = start(*s_client(server.port, keys, *again))
    second.expect("alert certificate required")
    assert server.complained("did not return a certificate")
    assert server.out.read_text() == SERVED
    third = start(*s_client(server.port, keys, *again, *own_options(keys)))
    third.say("hola\n")
    third.expect("^hello$")


def test_a_client_of_tls_1_2_is_refused_and_one_of_tls_1_3_is_not(
    made: Path, server: Server, start: Start
) -> None:
    keys = made / "keys/client"
    old = start(*s_client(server.port, keys, *own_options(keys), "-tls1_2"))
    old.expect("alert protocol version")
    assert server.complained("unsupported protocol")
    assert server.out.read_text() == ""
    new = start(*s_client(server.port, keys, *own_options(keys), "-tls1_3"))
    new.say("hola\n")
    new.expect("^hello$")
    assert len(server.errors()) == 1


def test_plain_http_is_refused_with_a_line(made: Path, server: Server) -> None:
    result = curl(server.port, made / "keys/client", scheme="http")
    assert result.returncode != 0 and "hello" not in result.stdout
    assert server.complained(f"{SERVER.name}: error: ")
    assert "http request" in server.errors()[0]
    assert client(server.port, made / "keys/client").stdout == ANSWERED
    assert server.printed(SERVED)


def test_a_server_that_speaks_no_tls_is_one_line(made: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain, ThreadPoolExecutor(1) as pool:
        plain.settimeout(DEADLINE)
        port = plain.getsockname()[1]
        result = pool.submit(client, port, made / "keys/client")
        connection, _ = plain.accept()
        with connection:
            connection.sendall(b"220 mail.example ESMTP\r\n")
            failed(result.result(), CLIENT, f"port {port}")


# --- What keeps a script from beginning ------------------------------------------------------


@pytest.fixture(params=["server", "client"])
def side(request: pytest.FixtureRequest) -> str:
    """Each of the two scripts in turn."""
    return str(request.param)


SCRIPTS = {"server": SERVER, "client": CLIENT}


def begin(
    side: str, keys: Path, *arguments: str, env: Mapping[str, str] = PHRASES, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a script that ends before it would need its peer."""
    return run(*command(SCRIPTS[side], keys, "--port", "0", *arguments), env=env, stdin=stdin)


def works(side: str, folder: Path, serve: Serve, env: Mapping[str, str] = PHRASES) -> None:
    """Check that a side of a folder, with an environment, completes the exchange."""
    server = serve("-k", str(folder / "keys/server"), env=env if side == "server" else PHRASES)
    answered(
        client(server.port, folder / "keys/client", env=env if side == "client" else PHRASES)
    )


def take_away(path: Path) -> None:
    """Leave nothing under a name."""
    path.unlink()


def make_unreadable(path: Path) -> None:
    """Leave what even root cannot read as a file."""
    path.unlink()
    path.mkdir()


def damage(path: Path) -> None:
    """Spoil the base64 between the lines of dashes."""
    path.write_text(re.sub(r"(?m)^(?!-)....", "!!!!", path.read_text()))


def empty(path: Path) -> None:
    """Leave a file without content."""
    path.write_text("")


def cut(path: Path) -> None:
    """Leave the first half of the file's first part."""
    text = path.read_text()
    path.write_text(text[: text.index("-----END") // 2])


@pytest.mark.parametrize("harm", [take_away, make_unreadable])
def test_a_missing_or_unreadable_file_is_named(
    copy: Path, serve: Serve, side: str, harm: Callable[[Path], None]
) -> None:
    works(side, copy, serve)
    for name in ("key.pem", "fullchain.pem", "ca.pem"):
        folder = copy / f"without-{name}" / side
        shutil.copytree(copy / "keys" / side, folder)
        harm(folder / name)
        failed(begin(side, folder), SCRIPTS[side], re.escape(f"{side}/{name}"))


@pytest.mark.parametrize("name", PEM_FILES)
@pytest.mark.parametrize("harm", [damage, empty, cut])
def test_a_damaged_file_is_one_line_that_names_its_folder(
    copy: Path, side: str, name: str, harm: Callable[[Path], None]
) -> None:
    folder = copy / "keys" / side
    harm(folder / name)
    failed(begin(side, folder), SCRIPTS[side], re.escape(str(folder)))


def test_a_list_whose_end_is_missing_lets_no_one_in(copy: Path, serve: Serve) -> None:
    server = serve("-k", str(copy / "keys/server"))
    keys = copy / "keys/client"
    whole = (keys / "crl.pem").read_text()
    (keys / "crl.pem").write_text(whole[:-99])
    failed(client(server.port, keys), CLIENT)
    assert server.out.read_text() == ""
    (keys / "crl.pem").write_text(whole)
    assert client(server.port, keys).stdout == ANSWERED


def test_an_unreadable_revocation_list_is_not_treated_as_missing(
    copy: Path, side: str
) -> None:
    make_unreadable(copy / f"keys/{side}/crl.pem")
    failed(begin(side, copy / "keys" / side), SCRIPTS[side], re.escape(f"keys/{side}"))


def test_a_key_of_another_certificate_is_one_line(copy: Path, side: str) -> None:
    folder = copy / "keys" / side
    shutil.copy(copy / f"keys/{VERIFIER[side]}/key.pem", folder / "key.pem")
    failed(begin(side, folder), SCRIPTS[side], re.escape(str(folder)), "mismatch|match")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, side: str) -> None:
    failed(begin(side, tmp_path / "none"), SCRIPTS[side], re.escape(str(tmp_path / "none")))


def test_the_system_s_store_is_never_used_instead_of_ca_pem(
    copy: Path, strangers: Path, serve: Serve, side: str
) -> None:
    store = {**PHRASES, "SSL_CERT_FILE": str(copy / "keys/root/cert.pem")}
    works(side, copy, serve, store)
    path = copy / f"keys/{side}/ca.pem"
    shutil.copy(strangers / "keys/root/cert.pem", path)
    server = serve("-k", str(copy / "keys/server"), env=store)
    result = client(server.port, copy / "keys/client", env=store)
    failed(result, CLIENT, UNTRUSTED if side == "client" else "alert unknown ca")
    assert server.out.read_text() == ""
    path.unlink()
    failed(begin(side, path.parent, env=store), SCRIPTS[side], "ca.pem")


@pytest.mark.parametrize("phrase", ["Xyzzy-17", "", "sros ", "SROS"])
def test_a_wrong_pass_phrase_is_one_line_without_it(
    made: Path, side: str, phrase: str
) -> None:
    result = begin(side, made / "keys" / side, env={"SROS_PASSPHRASE": phrase})
    line = failed(result, SCRIPTS[side], ": SROS_PASSPHRASE is wrong, or the file is damaged")
    assert "Xyzzy" not in line


def test_without_a_pass_phrase_and_a_terminal_the_error_comes_at_once(
    made: Path, serve: Serve, side: str
) -> None:
    begun = time.monotonic()
    result = begin(side, made / "keys" / side, env={}, stdin="sros\n")
    failed(result, SCRIPTS[side], "SROS_PASSPHRASE|pass ?phrase")
    assert time.monotonic() - begun < 5
    works(side, made, serve)


def test_an_unencrypted_key_needs_neither_a_pass_phrase_nor_a_terminal(
    copy: Path, serve: Serve, side: str
) -> None:
    remake(copy, side, cipher=None, passphrase=None)
    works(side, copy, serve, {})


def test_nothing_listening_is_one_line_that_names_the_place(made: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    failed(client(port, made / "keys/client"), CLIENT, f"localhost port {port}", "refused")


def test_a_name_that_does_not_resolve_is_named(made: Path, side: str) -> None:
    result = begin(side, made / "keys" / side, "--host", "no-such-host.invalid")
    failed(result, SCRIPTS[side], r"no-such-host\.invalid", "name|known|resol")


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_a_port_in_use_on_either_family_is_named(
    made: Path, serve: Serve, family: int, address: str
) -> None:
    with socket.create_server((address, 0), family=family) as listener:
        port = listener.getsockname()[1]
        result = begin("server", made / "keys/server", "--port", str(port))
        failed(result, SERVER, f"port {port}", "in use")
    again = serve("--port", str(port), "-k", str(made / "keys/server"))
    assert client(again.port, made / "keys/client").stdout == ANSWERED


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "65536"],
        ["--port=-1"],
        ["--port", "https"],
        ["--port", ""],
        ["--port", "1.5"],
        ["--no-such-option"],
        ["-k"],
    ],
    ids=" ".join,
)
def test_a_usage_error_has_status_2(made: Path, side: str, arguments: list[str]) -> None:
    result = begin(side, made / "keys" / side, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert f"{SCRIPTS[side].name}: error: " in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("message", ["two\nlines", "hola\n", "\n"])
def test_a_message_of_more_than_one_line_has_status_2(made: Path, message: str) -> None:
    result = begin("client", made / "keys/client", "hola", message)
    assert (result.returncode, result.stdout) == (2, "")
    assert f"{CLIENT.name}: error: " in result.stderr


def test_the_server_takes_no_message(made: Path) -> None:
    result = begin("server", made / "keys/server", "hola")
    assert (result.returncode, result.stdout) == (2, "")


# --- Last, for they have been waiting since the first test -----------------------------------


def test_a_client_of_a_hanging_server_ends_with_an_error_line(
    waiting: list[subprocess.Popen[str]],
) -> None:
    for process in waiting:
        out, err = process.communicate(timeout=DEADLINE)
        assert (process.returncode, out) == (1, "")
        lines = errors(err.encode(), CLIENT)
        assert len(lines) == 1 and "timed out" in lines[0]
