"""What operators of mutual TLS reported, tried on server and client, each beside a twin."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import select
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import timeit
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from threading import Event
from types import ModuleType

import pytest
from certificates import CA, authority, certificate, certify, decrypt, pem
from exchanges import ANSWERED, Serve, Server, answered, ask, client, connect, peer
from needs import PATH, needs, needs_package, needs_root
from running import (
    CLIENT,
    DEADLINE,
    PHRASES,
    SERVER,
    Terminal,
    environment,
    fine,
    generate_here,
    openssl,
    poll,
    run,
)

import simple_https_client
import simple_https_server

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n"
BAD = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
SOON = 4.0  # seconds, less than any time limit of the scripts
RESET = struct.pack("ii", 1, 0)  # for SO_LINGER: close with a reset


def has_errors(server: Server, count: int) -> bool:
    """Tell whether a server has printed so many error lines since it listens."""
    return len(server.errors()) == count


def script(name: str, keys: Path) -> list[str | Path]:
    """Return the command that runs a script with a folder, on a port that nobody serves."""
    scripts = {"server": SERVER, "client": CLIENT}
    return [sys.executable, scripts[name], "-k", keys / name, "--port", "0"]


@contextlib.contextmanager
def background(words: list[str | Path], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Have a command run while a block does, with its standard error in a file."""
    command = [str(word) for word in words]
    with log.open("w") as err:
        process = subprocess.Popen(command, env=environment(PHRASES), stderr=err)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


# --- HTTP ------------------------------------------------------------------------------------


def read_all(connection: ssl.SSLSocket) -> bytes:
    """Read until the server closes, as many HTTP clients do."""
    connection.settimeout(SOON)
    received = b""
    with contextlib.suppress(ssl.SSLEOFError):
        while data := connection.recv(65536):
            received += data
    return received


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", OK + b"hello\n"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", OK + b"hello\n"),
        (b"\r\nGET / HTTP/1.1\r\n\r\n", OK + b"hello\n"),
        (b"\n\r\nM-SEARCH * HTTP/1.1\n\n", OK + b"hello\n"),
        (b"HEAD / HTTP/1.1\r\n\r\n", OK),
        (b"HEAD /x HTTP/1.0\n\n", OK),
        (b"get / http/1.1\r\n\r\n", BAD),
        (b"Get http://localhost/ Http/1.1\r\n\r\n", BAD),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", BAD),
        (b"GET / HTTP/3\r\n\r\n", BAD),
        (b" GET  /a b HTTP/1.1 \r\n\r\n", BAD),
        (b"\r\nget / http/1.1\r\n\r\n", BAD),
        (b"connect localhost:443 http/1.1\r\n\r\n", BAD),
        (b"Connect [::1]:443 HTTP/1.1\r\n\r\n", BAD),
        (b"get ftp://localhost/ http/1.1\r\n\r\n", BAD),
        (b"M_SEARCH * HTTP/1.1\r\n\r\n", BAD),
    ],
)
def test_http_is_answered_and_closed_as_announced_without_an_error_line(
    made: Path, server: Server, request_: bytes, answer: bytes
) -> None:
    with connect(server.port, made / "keys/client") as connection:
        connection.sendall(request_)
        begun = time.monotonic()
        assert read_all(connection) == answer
        assert time.monotonic() - begun < SOON
    line = request_.decode().lstrip("\r\n").splitlines()[0]
    assert server.printed(f"accepted\nread: [{line}]\nclosed\n")
    assert server.errors() == []


@pytest.mark.parametrize(
    "line",
    [
        "GET",
        "GET /",
        "I like HTTP/2",
        "Please read: HTTP/2",
        "GET / HTTP",
        "GET / HTTP/1.\N{ARABIC-INDIC DIGIT ONE}",
        "",
        "\r",
        "HTTP/1.1 200 OK",
    ],
)
def test_what_is_not_http_is_echoed(made: Path, server: Server, line: str) -> None:
    with connect(server.port, made / "keys/client") as connection:
        assert ask(connection, line.encode()) == line.encode()
        assert ask(connection, b"hola") == b"hello"


def test_a_client_that_leaves_before_its_hello_gets_other_words_than_a_cut_stream(
    server: Server,
) -> None:
    for reset in (False, True):
        raw = socket.create_connection(("127.0.0.1", server.port))
        if reset:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        peer = f"127.0.0.1 port {raw.getsockname()[1]}"
        raw.close()
        assert server.complained(f"{peer}: before a ClientHello: ")
    raw = socket.create_connection(("127.0.0.1", server.port))
    raw.sendall(b"\x16\x03\x01")
    raw.close()
    # Python's words, or those of OpenSSL in an older Python.
    server.wait_for(lambda: "eof" in server.err.read_text().lower())
    assert len(server.errors()) == 3
    assert sum("before a ClientHello" in line for line in server.errors()) == 2


def test_each_client_that_resets_is_one_line(made: Path, server: Server) -> None:
    for number in range(1, 21):
        raw = socket.create_connection(("127.0.0.1", server.port), SOON)
        raw.sendall(b"\x16")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        raw.close()
        server.wait_for(partial(has_errors, server, number))
    assert client(server.port, made / "keys/client").stdout == ANSWERED
    assert len(server.errors()) == 20


def test_a_line_ends_with_lf_or_cr_lf(made: Path, server: Server) -> None:
    with connect(server.port, made / "keys/client") as connection:
        assert ask(connection, b"hola\r") == b"hello"
        assert ask(connection, b"hola") == b"hello"
        assert ask(connection, b"hola\r\r") == b"hola\r\r"
    result = client(server.port, made / "keys/client", "uno\r")
    assert result.stdout == "connected\nread: [uno]\n"


def test_the_client_does_not_take_the_rest_of_an_answer_for_the_next_one(
    made: Path, server: Server
) -> None:
    result = client(server.port, made / "keys/client", "GET / HTTP/1.0", "hola")
    assert (result.returncode, result.stdout) == (1, "connected\nread: [HTTP/1.1 200 OK]\n")
    assert "more than one line" in result.stderr
    result = client(server.port, made / "keys/client", "GET / HTTP/1.0")
    assert (result.returncode, result.stderr) == (0, "")


# --- Programs that speak HTTP ----------------------------------------------------------------


@pytest.fixture
def both(made: Path, tmp_path: Path) -> Path:
    """A client's chain and unencrypted key in one file, beside its anchors."""
    keys = made / "keys/client"
    key = tmp_path / "key.pem"
    openssl("pkey", "-in", keys / "key.pem", "-passin", "pass:sros", "-out", key)
    for name in ("fullchain.pem", "ca.pem"):
        shutil.copy(keys / name, tmp_path / name)
    both = tmp_path / "both.pem"
    both.write_text((keys / "fullchain.pem").read_text() + key.read_text())
    return both


def anonymous(both: Path) -> None:
    """Leave no identity in a file of the client's."""
    shutil.copy(both.with_name("ca.pem"), both)


PHP = """$files = ["cafile" => $argv[2], "local_cert" => $argv[3]];
$answer = file_get_contents($argv[1], false, stream_context_create(["ssl" => $files]));
echo $answer; exit($answer === false ? 1 : 0);"""
NODE = """const [url, ca, both] = process.argv.slice(1), {readFileSync} = require("fs");
const files = {ca: readFileSync(ca), cert: readFileSync(both), key: readFileSync(both)};
require("https").get(url, files, (answer) => answer.pipe(process.stdout))
    .on("error", (error) => { console.error(error.message); process.exit(1); });"""
FETCH = """const [url, ca, both] = process.argv.slice(1), {readFileSync} = require("fs");
const files = {ca: readFileSync(ca), cert: readFileSync(both), key: readFileSync(both)};
(async () => {
    await fetch("data:,");  // creates the dispatcher, whose class takes certificates
    const Agent = globalThis[Symbol.for("undici.globalDispatcher.1")].constructor;
    const answer = await fetch(url, {dispatcher: new Agent({connect: files})});
    console.log(await answer.text());
})().catch((error) => { console.error(error.cause); process.exit(1); });"""
CHECK_HTTP = "/usr/lib/nagios/plugins/check_http"


def php(url: str, both: Path) -> list[str | Path]:
    """Return PHP's command."""
    needs("php")
    words = ["php", "-d", "default_socket_timeout=5", "-r", PHP]
    return [*words, url, both.with_name("ca.pem"), both]


def node(url: str, both: Path) -> list[str | Path]:
    """Return the command of Node's https."""
    needs("node")
    return ["node", "-e", NODE, url, both.with_name("ca.pem"), both]


def fetch(url: str, both: Path) -> list[str | Path]:
    """Return the command of Node's fetch."""
    needs("node")
    return ["node", "-e", FETCH, url, both.with_name("ca.pem"), both]


def check_http(url: str, both: Path) -> list[str | Path]:
    """Return the command of Nagios' check, which does not verify the server."""
    needs_package("monitoring-plugins-basic")
    port = url.rstrip("/").rpartition(":")[2]
    where = ["-H", "localhost", "-p", port, "-S", "-t", "5", "-u", "/", "-s", "hello"]
    return [CHECK_HTTP, *where, "-J", both, "-K", both.with_name("key.pem")]


@pytest.mark.slow
@pytest.mark.parametrize("program", [php, node, fetch, check_http])
def test_a_program_gets_the_answer_and_none_without_a_certificate(
    server: Server, both: Path, program: Callable[[str, Path], list[str | Path]]
) -> None:
    url = f"https://localhost:{server.port}/"
    begun = time.monotonic()
    result = run(*program(url, both))
    assert result.returncode == 0 and re.search("hello|HTTP OK", result.stdout), result
    assert time.monotonic() - begun < SOON
    assert server.errors() == []
    anonymous(both)
    assert run(*program(url, both)).returncode != 0
    assert server.out.read_text().count("accepted") == 1


@pytest.mark.slow
def test_ab_gets_200_answers_and_none_without_a_certificate(
    server: Server, both: Path
) -> None:
    needs("ab")
    url = f"https://localhost:{server.port}/"
    words = ["ab", "-q", "-s", "5", "-n", "200", "-c", "10"]
    begun = time.monotonic()
    all_good = re.compile(r"Failed requests: +0\n.*HTML transferred: +1200 bytes\n", re.S)
    result = run(*words, "-E", both, url)
    assert result.returncode == 0, result.stderr
    assert all_good.search(result.stdout) and "Non-2xx" not in result.stdout
    assert time.monotonic() - begun < 10 * SOON
    server.wait_for(lambda: server.out.read_text().count("closed\n") == 200)
    # At its end, ab leaves the handshakes that it has begun in advance.
    assert len(server.errors()) <= 10
    result = run(*words, url)
    assert not all_good.search(result.stdout)
    assert server.out.read_text().count("closed\n") == 200


HAPROXY = """defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
frontend entry
    bind 127.0.0.1:{entry}
    default_backend robots
backend robots
    option httpchk GET /
    default-server check inter 200 ssl verify required ca-file ca.pem sni str(localhost)
    server robot localhost:{port} {identity}
"""


def through_haproxy(folder: Path, port: int, identity: str) -> Generator[int, None, None]:
    """Yield the status of each request that HAProxy passes on to a port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        entry = listener.getsockname()[1]
    text = HAPROXY.format(entry=entry, port=port, identity=identity)
    (folder / "haproxy.cfg").write_text(text)
    command = ["haproxy", "-db", "-f", "haproxy.cfg"]
    environ = {**environment(), "PATH": PATH}
    process = subprocess.Popen(command, cwd=folder, env=environ, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + DEADLINE
        while time.monotonic() < until:
            connection = http.client.HTTPConnection("127.0.0.1", entry, timeout=DEADLINE)
            with contextlib.suppress(OSError), contextlib.closing(connection):
                connection.request("GET", "/")
                yield connection.getresponse().status
            select.select([], [], [], 0.1)
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_haproxy_s_check_finds_the_server_up_and_without_a_certificate_down(
    server: Server, both: Path
) -> None:
    needs("haproxy")
    statuses = through_haproxy(both.parent, server.port, "crt both.pem")
    assert next(statuses) == 200
    # By the second check, the server would be down if the first one had failed.
    server.wait_for(lambda: server.out.read_text().count("read: [GET / HTTP/1.0]") > 5)
    assert next(statuses) == 200
    statuses.close()
    assert server.errors() == []
    statuses = through_haproxy(both.parent, server.port, "")
    assert 503 in statuses
    statuses.close()


# --- Pass phrases are bytes ------------------------------------------------------------------


@pytest.mark.parametrize("phrase", [b"p\xe4ssw\xf6rd", "pässwörd".encode(), b"\xff\xfe\x01"])
def test_a_pass_phrase_of_any_bytes_opens_the_key_on_both_sides(
    plain: Path, serve: Serve, phrase: bytes
) -> None:
    env = {"SROS_PASSPHRASE": os.fsdecode(phrase)}
    for name in ("server", "client"):
        key = plain / "keys" / name / "key.pem"
        words = ("pkcs8", "-topk8", "-v2", "aes-256-cbc", "-passout", "env:SROS_PASSPHRASE")
        made = run("openssl", *words, "-in", key, "-out", key.with_name("new.pem"), env=env)
        assert made.returncode == 0, made.stderr
        key.with_name("new.pem").replace(key)
    server = serve("-k", str(plain / "keys/server"), env=env)
    result = client(server.port, plain / "keys/client", env=env)
    assert (result.stdout, result.stderr) == (ANSWERED, "")
    wrong = {"SROS_PASSPHRASE": os.fsdecode(phrase + b"x")}
    result = client(server.port, plain / "keys/client", env=wrong)
    assert result.returncode == 1 and "SROS_PASSPHRASE" in result.stderr
    assert not re.search(r"\\x|p.ss", result.stderr.partition("key.pem")[2])


@pytest.mark.parametrize("name", ["server", "client"])
def test_no_part_of_what_was_typed_is_shown(made: Path, name: str) -> None:
    at = Terminal(*script(name, made / "keys"), env={"LC_ALL": "C.UTF-8"})
    at.expect("Enter PEM pass phrase:")
    at.type("Xyzzy\udce4\n")
    assert at.finish() == 1
    assert "error: " in at.seen
    assert not re.search("Xyzzy|e4|position", at.seen.partition("error: ")[2])


# --- Addresses -------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["LOCALHOST", "localhost.", "127.0.0.1", "::1"])
def test_a_zone_a_final_dot_and_capitals_are_not_verified(
    made: Path, server: Server, host: str
) -> None:
    result = client(server.port, made / "keys/client", "--host", host)
    assert (result.stdout, result.stderr) == (ANSWERED, "")


def test_another_name_of_this_machine_is_refused(made: Path, server: Server) -> None:
    result = client(server.port, made / "keys/client", "--host", "127.0.0.2")
    assert (result.returncode, result.stdout) == (1, "")


def reaches(address: str, port: int) -> bool:
    """Tell whether something listens on an address."""
    try:
        socket.create_connection((address, port), SOON).close()
    except OSError:
        return False
    return True


def test_two_colons_are_all_addresses_of_both_families(made: Path, serve: Serve) -> None:
    for host, reached in (("::", [True, True]), ("127.0.0.1", [True, False])):
        server = serve("--host", host, "-k", str(made / "keys/server"))
        assert [reaches(each, server.port) for each in ("127.0.0.1", "::1")] == reached


MACHINES = {  # commands that make a machine, the host, and the addresses that it is reached by
    "a name with two addresses": ("", "robot1", "127.0.0.1 ::1"),
    "localhost without a hosts file": (": >hosts", "localhost", "127.0.0.1 ::1"),
    "no 127.0.0.1": ("ip address del 127.0.0.1/8 dev lo", "localhost", "::1"),
    "a name, and no 127.0.0.1": ("ip address del 127.0.0.1/8 dev lo", "robot1", "::1"),
    "a name, and an address without its zone": (
        "echo fe80::1 robot1 >>hosts",
        "robot1",
        "127.0.0.1 ::1",
    ),
    "no IPv6": ("echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6", "localhost", "127.0.0.1"),
    "a name, and no IPv6": (
        "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6",
        "robot1",
        "127.0.0.1",
    ),
}
MACHINE = """ip link set lo up
printf '127.0.0.1 robot1 localhost\\n::1 robot1 localhost\\n' >hosts
{change}
mount --bind hosts /etc/hosts
{python} {server} --host {host} --port 0 -k keys/server >out 2>err &
for i in $(seq 600); do grep -q 'listening\\|error' err && break; sleep 0.1; done
port=$(sed -n 's/^listening .* port //p' err)
for address in {addresses}; do
    {python} {client} --host $address --port $port -k keys/client || cat err
done
{python} {client} --port $port -k keys/client
kill $!
"""


@pytest.mark.slow
@pytest.mark.parametrize(("change", "host", "addresses"), MACHINES.values(), ids=MACHINES)
def test_a_machine_serves_on_the_addresses_that_it_has(
    copy: Path, change: str, host: str, addresses: str
) -> None:
    needs_root()
    needs("ip")
    text = MACHINE.format(
        change=change,
        python=sys.executable,
        server=SERVER,
        client=CLIENT,
        host=host,
        addresses=addresses,
    )
    result = run("unshare", "-mn", "sh", "-c", text, cwd=copy, env=PHRASES)
    assert result.stdout == ANSWERED * (len(addresses.split()) + 1), result.stderr


ZONE = """ip link set lo up
ip -6 address add fe80::1/64 dev lo nodad
{python} {server} --host fe80::1%lo --port 0 -k keys/server 2>err &
for i in $(seq 600); do grep -q 'listening\\|error' err && break; sleep 0.1; done
port=$(sed -n 's/^listening .* port //p' err)
{python} {client} --host fe80::1%lo --port $port -k keys/client 2>&1
{python} {client} --host fe80::2%lo --port $port -k keys/client
kill $!
"""


def call_with_a_zone(folder: Path) -> str:
    """Have a client call a server by a link-local address with a zone. Return what it said."""
    needs_root()
    needs("ip")
    text = ZONE.format(python=sys.executable, server=SERVER, client=CLIENT)
    return run("unshare", "-n", "sh", "-c", text, cwd=folder, env=PHRASES).stdout


def test_the_zone_of_a_link_local_address_is_not_verified(copy: Path) -> None:
    path = copy / "sros_config.yml"
    path.write_text(path.read_text().replace("IP:::1 ", "IP:::1, IP:fe80::1 ", 1))
    fine(generate_here(copy, "--renew", "server"))
    said = call_with_a_zone(copy)
    assert ANSWERED in said and "IP address mismatch" not in said


def test_a_link_local_address_is_verified(copy: Path) -> None:
    said = call_with_a_zone(copy)
    assert ANSWERED not in said and "IP address mismatch" in said


def test_an_address_without_its_zone_is_one_line(made: Path) -> None:
    result = run(*script("server", made / "keys"), "--host", "fe80::1", env=PHRASES)
    assert (result.returncode, result.stdout) == (1, "")
    assert "cannot serve fe80::1 port 0: " in result.stderr and result.stderr.count("\n") == 1


# --- Reload ----------------------------------------------------------------------------------


def test_a_list_that_has_gone_is_not_forgotten_by_a_reload(copy: Path, serve: Serve) -> None:
    keys = copy / "keys/server"
    server = serve("-k", str(keys))
    lists = keys / "crl.pem"
    lists.rename(keys / "away")
    server.process.send_signal(signal.SIGHUP)
    assert server.complained("crl.pem is gone")
    assert "are let in" not in server.err.read_text()
    assert client(server.port, copy / "keys/client").stdout == ANSWERED
    (keys / "away").rename(lists)
    before = server.err.read_text()
    server.process.send_signal(signal.SIGHUP)
    assert client(server.port, copy / "keys/client").stdout == ANSWERED
    assert server.err.read_text() == before


def test_a_reload_never_asks_for_a_pass_phrase(copy: Path) -> None:
    keys = copy / "keys/server"
    encrypted = (keys / "key.pem").read_bytes()
    decrypt(keys)
    at = Terminal(*script("server", copy / "keys"))
    at.expect("listening on")
    plain = (keys / "key.pem").read_bytes()
    (keys / "key.pem").write_bytes(encrypted)
    at.process.send_signal(signal.SIGHUP)
    at.expect("cannot reload, the old keys stay in force")
    assert "pass phrase:" not in at.seen
    (keys / "key.pem").write_bytes(plain)
    at.process.send_signal(signal.SIGHUP)
    at.type("\x03")
    assert at.finish() == 130


@pytest.mark.parametrize(("how", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_reload_that_hangs_stops_neither_clients_nor_the_end(
    copy: Path, serve: Serve, how: signal.Signals, status: int
) -> None:
    keys = copy / "keys/server"
    server = serve("-k", str(keys))
    (keys / "ca.pem").unlink()
    os.mkfifo(keys / "ca.pem")
    for _ in range(3):
        server.process.send_signal(signal.SIGHUP)
    assert client(server.port, copy / "keys/client").stdout == ANSWERED
    assert server.stop(how) == status


def test_a_signal_to_reload_that_comes_early_is_remembered(copy: Path, tmp_path: Path) -> None:
    anchors = copy / "keys/server/ca.pem"
    text = anchors.read_bytes()
    anchors.unlink()
    os.mkfifo(anchors)
    log = tmp_path / "log"
    with background(script("server", copy / "keys"), log) as process:
        # This waits until the server opens the pipe, and so until it loads its folder.
        with anchors.open("wb") as pipe:
            process.send_signal(signal.SIGHUP)
            anchors.unlink()
            anchors.write_text("damaged")
            pipe.write(text)
        poll(lambda: "cannot reload" in log.read_text(), log.read_text)
        process.terminate()
        assert process.wait(DEADLINE) == 0


# --- Signals while a script starts -----------------------------------------------------------

SENDS_A_SIGNAL = """import os
os.kill(os.getpid(), {how:d})
with open(os.__file__.replace("os.py", "{module}.py")) as file:
    exec(compile(file.read(), file.name, "exec"))
"""
MODULES = ["argparse", "getpass", "socket", "ssl"]  # from the first import to a late one


def signalled(folder: Path, module: str, how: signal.Signals) -> dict[str, str]:
    """Return an environment in which a script gets a signal when it imports a module."""
    place = folder / f"in-front-{module}"
    place.mkdir()
    (place / f"{module}.py").write_text(SENDS_A_SIGNAL.format(how=how, module=module))
    return {**PHRASES, "PYTHONPATH": str(place)}


@pytest.mark.parametrize(
    ("name", "how", "status"),
    [
        ("server", signal.SIGINT, 130),
        ("server", signal.SIGTERM, 0),
        ("client", signal.SIGINT, 130),
    ],
)
def test_a_signal_during_the_imports_ends_the_script_quietly(
    made: Path, tmp_path: Path, name: str, how: signal.Signals, status: int
) -> None:
    for module in MODULES:
        env = signalled(tmp_path, module, how)
        result = run(*script(name, made / "keys"), env=env)
        assert (result.returncode, result.stdout, result.stderr) == (status, "", "")


def test_a_signal_to_reload_during_the_imports_is_remembered(
    made: Path, serve: Serve, tmp_path: Path
) -> None:
    for module in MODULES:
        env = signalled(tmp_path, module, signal.SIGHUP)
        server = serve("-v", "-k", str(made / "keys/server"), env=env)
        assert server.complained("\nreloaded\n")
        assert client(server.port, made / "keys/client").stdout == ANSWERED
        assert server.stop() == 0


@pytest.mark.parametrize(("how", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_while_the_folder_is_loaded_ends_the_server_quietly(
    copy: Path, tmp_path: Path, how: signal.Signals, status: int
) -> None:
    anchors = copy / "keys/server/ca.pem"
    anchors.unlink()
    os.mkfifo(anchors)
    with background(script("server", copy / "keys"), tmp_path / "log") as process:
        # This waits until the server opens the pipe, and so until it loads its folder.
        with anchors.open("wb"):
            process.send_signal(how)
        assert process.wait(DEADLINE) == status
    assert (tmp_path / "log").read_text() == ""


@pytest.mark.parametrize("missing", ["ca", "crl"])  # an error, and a warning
@pytest.mark.parametrize(
    ("name", "how", "status"),
    [
        ("server", signal.SIGINT, 130),
        ("server", signal.SIGTERM, 0),
        ("client", signal.SIGINT, 130),
    ],
)
def test_a_signal_ends_a_script_whose_line_is_not_read(
    copy: Path, name: str, how: signal.Signals, status: int, missing: str
) -> None:
    (copy / "keys" / name / f"{missing}.pem").unlink()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x")
    # By default, Python buffers the line, and tries again to write it when it ends.
    env = environment({**PHRASES, "PYTHONUNBUFFERED": ""})
    process = subprocess.Popen(script(name, copy / "keys"), env=env, stderr=writing)
    # What the process waits for: here, for the pipe's reader.
    waits = Path(f"/proc/{process.pid}/wchan")
    poll(lambda: "pipe" in waits.read_text(), waits.read_text)
    process.send_signal(how)
    try:
        assert process.wait(DEADLINE) == status
    finally:
        process.kill()
        os.close(reading)
        os.close(writing)


def in_a_shell(ignored: bool, *command: str | Path) -> list[str | Path]:
    """Return a command that ignores SIGINT, as a shell's background job does, or does not."""
    trap = {True: "trap '' INT; ", False: ""}
    return ["sh", "-c", f'{trap[ignored]}exec "$@"', "sh", *command]


@pytest.mark.parametrize(("ignored", "status"), [(True, 0), (False, 130)])
def test_ctrl_c_ends_no_client_in_the_background(
    made: Path, server: Server, tmp_path: Path, ignored: bool, status: int
) -> None:
    words = in_a_shell(ignored, *script("client", made / "keys"), "--port", str(server.port))
    result = run(*words, env=signalled(tmp_path, "ssl", signal.SIGINT))
    assert (result.returncode, result.stdout == ANSWERED) == (status, ignored)


@pytest.mark.parametrize(("ignored", "status"), [(True, 0), (False, 130)])
def test_ctrl_c_ends_no_server_in_the_background(
    made: Path, tmp_path: Path, ignored: bool, status: int
) -> None:
    words = in_a_shell(ignored, *script("server", made / "keys"))
    with background(words, tmp_path / "log") as process:
        listening(tmp_path / "log")
        # The first one of two signals decides.
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == status


# --- Surroundings ----------------------------------------------------------------------------


def openssl_cnf(folder: Path, setting: str) -> dict[str, str]:
    """Return an environment with a system-wide setting of OpenSSL."""
    path = folder / "openssl.cnf"
    sections = "openssl_conf = x\n[x]\nssl_conf = s\n[s]\nsystem_default = d\n[d]\n"
    path.write_text(f"{sections}{setting}\n")
    return {**PHRASES, "OPENSSL_CONF": str(path)}


@pytest.mark.parametrize(
    "setting", ["MaxProtocol = TLSv1.2", "Protocol = ALL, -TLSv1.3", "MinProtocol = TLSv1"]
)
def test_tls_1_3_is_used_whatever_openssl_cnf_says(
    made: Path, serve: Serve, tmp_path: Path, setting: str
) -> None:
    env = openssl_cnf(tmp_path, setting)
    usual = serve("-k", str(made / "keys/server"))
    changed = serve("-k", str(made / "keys/server"), env=env)
    assert client(changed.port, made / "keys/client").stdout == ANSWERED
    result = client(usual.port, made / "keys/client", "-v", env=env)
    assert result.stdout == ANSWERED and "TLSv1.3" in result.stderr


@pytest.mark.parametrize("name", ["server", "client"])
def test_ciphers_that_cannot_be_overridden_are_a_line_that_names_the_file(
    made: Path, tmp_path: Path, name: str
) -> None:
    env = openssl_cnf(tmp_path, "Ciphersuites =")
    result = run(*script(name, made / "keys"), env=env)
    assert (result.returncode, result.stdout) == (1, "")
    assert f"{tmp_path}/openssl.cnf: " in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["server", "client"])
@pytest.mark.parametrize(
    "setting",
    [
        "SignatureAlgorithms = ECDSA+SHA256",
        "ClientSignatureAlgorithms = ECDSA+SHA256",
        "Ciphersuites = TLS_AES_128_GCM_SHA256",
        "1.ciphersuites = TLS_AES_128_GCM_SHA256",
    ],
)
def test_what_openssl_cnf_sets_for_good_is_a_line_that_names_the_file(
    made: Path, serve: Serve, tmp_path: Path, setting: str, name: str
) -> None:
    envs = {"server": PHRASES, "client": PHRASES, name: openssl_cnf(tmp_path, setting)}
    word = setting.partition(" =")[0].removeprefix("1.")
    server = serve("-k", str(made / "keys/server"), env=envs["server"])
    result = client(server.port, made / "keys/client", env=envs["client"])
    assert result.stdout == ANSWERED
    printed = {"server": server.err.read_text(), "client": result.stderr}
    for each, text in printed.items():
        assert (f"{tmp_path}/openssl.cnf: {word} applies" in text) == (each == name)


@pytest.mark.parametrize("name", ["server", "client"])
@pytest.mark.parametrize("setting", ["Groups = x", "CipherString = x", "Ciphersuites = x"])
def test_what_openssl_cannot_read_in_openssl_cnf_does_no_harm(
    made: Path, serve: Serve, tmp_path: Path, setting: str, name: str
) -> None:
    envs = {"server": PHRASES, "client": PHRASES}
    envs[name] = openssl_cnf(tmp_path, setting)
    server = serve("-k", str(made / "keys/server"), env=envs["server"])
    assert client(server.port, made / "keys/client", env=envs["client"]).stdout == ANSWERED


@pytest.mark.parametrize("name", ["server", "client"])
def test_an_openssl_cnf_that_leaves_no_algorithms_is_named(
    made: Path, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "openssl.cnf"
    path.write_text(
        "openssl_conf = x\n[x]\nproviders = p\n[p]\nlegacy = f\n[f]\nactivate = 1\n"
    )
    result = run(*script(name, made / "keys"), env={**PHRASES, "OPENSSL_CONF": str(path)})
    assert (result.returncode, result.stdout) == (1, "")
    assert f"{path}: " in result.stderr and result.stderr.count("\n") == 1


SILENT = """import resource, socket, sys
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
silent = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(1100)]
print("connected", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_a_good_client_is_served_beside_1100_silent_ones_under_the_usual_limit(
    made: Path, tmp_path: Path
) -> None:
    limited = ["sh", "-c", 'ulimit -Sn 1024; exec "$@"', "sh"]
    with background([*limited, *script("server", made / "keys")], tmp_path / "log"):
        port = listening(tmp_path / "log")
        silent = subprocess.Popen(
            [sys.executable, "-c", SILENT, port],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert silent.stdout and silent.stdout.readline() == "connected\n"
            begun = time.monotonic()
            assert client(int(port), made / "keys/client").stdout == ANSWERED
            assert time.monotonic() - begun < SOON
        finally:
            silent.communicate()


def listening(log: Path) -> str:
    """Wait until a server listens, and return its port."""
    poll(lambda: "listening " in log.read_text(), log.read_text)
    return log.read_text().partition(" port ")[2].split()[0]


def to_a_full_disk(name: str, keys: Path, *arguments: str) -> list[str | Path]:
    """Return the command that runs a script with a standard output that is full."""
    words = [*script(name, keys), *arguments]
    return ["sh", "-c", 'exec "$@" >/dev/full', "sh", *words]


FULL = "cannot print: No space left on device"


def test_a_client_names_a_full_disk_as_such(made: Path, server: Server) -> None:
    words = to_a_full_disk("client", made / "keys", "--port", str(server.port))
    result = run(*words, env=PHRASES)
    assert result.returncode == 1 and result.stderr.count("error: ") == 1
    assert FULL in result.stderr


def test_a_server_goes_on_and_names_a_full_disk_once(made: Path, tmp_path: Path) -> None:
    with background(to_a_full_disk("server", made / "keys"), tmp_path / "log") as process:
        port = int(listening(tmp_path / "log"))
        for _ in range(2):
            assert client(port, made / "keys/client").stdout == ANSWERED
        process.terminate()
        assert process.wait(DEADLINE) == 0
    said = (tmp_path / "log").read_text()
    assert said.count("error: ") == 1 and FULL in said


def test_the_client_is_quiet_when_head_has_seen_enough(made: Path, server: Server) -> None:
    words = [*script("client", made / "keys"), "--port", str(server.port), *["hola"] * 2000]
    result = run("sh", "-c", '"$@" | head -n 2', "sh", *words, env=PHRASES)
    assert (result.stdout, result.stderr) == (ANSWERED, "")


@pytest.mark.parametrize("redirections", ["2>&-", "2>/dev/full"])
def test_errors_never_reach_standard_output(made: Path, redirections: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    words = [*script("client", made / "keys"), "--port", str(port)]
    result = run("sh", "-c", f'exec "$@" {redirections}', "sh", *words, env=PHRASES)
    assert (result.returncode, result.stdout) == (1, "")


def test_a_reader_that_stalls_stops_no_client_and_loses_nothing(made: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    process = subprocess.Popen(
        script("server", made / "keys"),
        env=environment(PHRASES),
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    assert process.stderr
    port = int(process.stderr.readline().split()[-1])
    with connect(port, made / "keys/client") as connection:
        # This is ten times what a pipe holds.
        for number in range(700):
            line = b"%03d" % number + b"x" * 900
            assert ask(connection, line) == line
    assert client(port, made / "keys/client").stdout == ANSWERED
    with open(reading) as lines:
        assert next(lines) == "accepted\n"
        for number in range(700):
            assert next(lines).startswith(f"read: [{number:03}x")
        process.terminate()
        assert process.wait(DEADLINE) == 0
    process.stderr.close()


# --- Greedy peers ---------------------------------------------------------------------------


def peak(server: Server) -> float:
    """Return the MiB that a server has had in memory at most."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def served_within(seconds: float, server: Server, keys: Path) -> bool:
    """Tell whether a good client is served in time."""
    begun = time.monotonic()
    with connect(server.port, keys) as connection:
        assert ask(connection, b"hola") == b"hello"
    return time.monotonic() - begun < seconds


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [b"\xff" * 65535, b"\x1b" * 65535, b"x" * 65535, (b"\xff" * 999 + b"\n") * 65],
    ids=["no-utf-8", "control", "plain", "many-lines"],
)
def test_a_good_client_is_served_beside_500_lines_to_escape(
    made: Path, serve: Serve, text: bytes
) -> None:
    server = serve("-k", str(made / "keys/server"))
    keys = made / "keys/client"
    with contextlib.ExitStack() as stack:
        greedy = [stack.enter_context(connect(server.port, keys)) for _ in range(500)]
        for each in greedy:
            each.setblocking(False)
            with contextlib.suppress(ssl.SSLWantWriteError):
                each.send(text + b"\n")
        assert served_within(3, server, keys)
    assert peak(server) < 200


def test_many_blank_lines_cost_no_more_than_a_few() -> None:
    def seconds(lines: bytes) -> float:
        look = partial(simple_https_server.begins_with_http, lines)
        assert look() is False
        return min(timeit.repeat(look, number=20, repeat=50))

    assert seconds(b"\n" * 16384) < 8 * seconds(b"\n" * 16)


@pytest.mark.parametrize(
    "line", [b"a%b", b"%b/", b"a%b/HTTP/1.1", b"GET /%b", b"a /HTTP/1.1%bx"], ids=repr
)
@pytest.mark.parametrize("filling", [b" ", b"a", b"1", b"HTTP/"])
def test_to_find_that_a_long_line_is_not_http_takes_no_longer_than_for_a_short_one(
    line: bytes, filling: bytes
) -> None:
    def seconds(count: int) -> float:
        look = partial(simple_https_server.answer_to_http, line % (filling * count))
        return min(timeit.repeat(look, number=20, repeat=20))

    assert seconds(13000) < 8 * seconds(40)


def test_a_long_request_is_answered() -> None:
    answer = simple_https_server.answer_to_http(b"GET /" + b"a" * 60000 + b" HTTP/1.1")
    assert answer == OK + b"hello\n"


def printed_by_a_small_log(
    monkeypatch: pytest.MonkeyPatch, lines: int, reader: Event
) -> list[str]:
    """Have lines printed that a reader reads once it is set, and return what was printed."""
    printed: list[str] = []

    def say(text: str, _stream: object) -> None:
        reader.wait(DEADLINE)
        printed.append(text)

    monkeypatch.setattr(simple_https_server, "MAX_UNPRINTED", 20)
    monkeypatch.setattr(simple_https_server, "say", say)
    log = simple_https_server.Log()
    for number in range(lines):
        log.put(f"line {number}", None)
    reader.set()
    log.finish()
    return printed


def test_lines_are_never_lost_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simple_https_server, "PATIENCE", 0.01)
    printed = printed_by_a_small_log(monkeypatch, 50, Event())
    assert len(printed) < 50
    assert printed[0] == "line 0"
    assert [line for line in printed if "error: lines are lost" in line] == [printed[1]]


def test_lines_of_a_reader_that_keeps_up_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Event()
    reader.set()
    printed = printed_by_a_small_log(monkeypatch, 1000, reader)
    assert printed == [f"line {number}" for number in range(1000)]


def vector(size: int, content: bytes) -> bytes:
    """Return a vector of TLS: its length in so many bytes, and its content."""
    return len(content).to_bytes(size, "big") + content


def extension(number: int, content: bytes) -> bytes:
    """Return an extension of a ClientHello."""
    return number.to_bytes(2, "big") + vector(2, content)


def hello(group: bytes, share: bytes) -> bytes:
    """Return a ClientHello with one group and a key share for it (RFC 8446, section 4.1.2)."""
    extensions = (
        extension(43, vector(1, b"\x03\x04")),
        extension(10, vector(2, group)),
        extension(13, vector(2, b"\x04\x03\x08\x04")),
        extension(51, vector(2, group + vector(2, share))),
    )
    ciphers = vector(2, b"\x13\x01") + vector(1, b"\0")
    body = b"\x03\x03" + bytes(32) + vector(1, b"") + ciphers
    body += vector(2, b"".join(extensions))
    return b"\x16\x03\x01" + vector(2, b"\x01" + vector(3, body))


FFDHE8192 = b"\x01\x04"


@pytest.mark.slow
def test_a_good_client_is_served_beside_300_hellos_with_a_large_group(
    made: Path, serve: Serve
) -> None:
    server = serve("-k", str(made / "keys/server"))
    greedy = hello(FFDHE8192, b"\x7f" * 1024)
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            raw = socket.create_connection(("127.0.0.1", server.port))
            stack.enter_context(raw)
            raw.sendall(greedy)
        assert served_within(3, server, made / "keys/client")
    assert peak(server) < 200
    # The twin: without the restriction, OpenSSL accepts this hello.
    if ssl.OPENSSL_VERSION_INFO < (3, 5):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        keys = made / "keys/server"
        context.load_cert_chain(keys / "fullchain.pem", keys / "key.pem", "sros")
        sent = ssl.MemoryBIO()
        sent.write(greedy)
        with pytest.raises(ssl.SSLWantReadError):
            context.wrap_bio(sent, ssl.MemoryBIO(), server_side=True).do_handshake()


# --- Words -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["server", "client"])
@pytest.mark.parametrize("file", ["key", "fullchain", "ca", "crl"])
def test_a_file_that_cannot_be_loaded_is_named(copy: Path, name: str, file: str) -> None:
    path = copy / "keys" / name / f"{file}.pem"
    path.write_text(path.read_text(), encoding="utf-16")
    result = run(*script(name, copy / "keys"), env=PHRASES)
    assert (result.returncode, result.stdout) == (1, "")
    names = re.findall(r"(\w+)\.pem", result.stderr)
    assert names[:1] == [file], result.stderr


KINDS = {  # a file, another file in its place, and what the error line says
    "lists for a chain": ("fullchain", "crl", "has no certificate"),
    "lists for anchors": ("ca", "crl", "has no certificate"),
    "anchors for lists": ("crl", "ca", "has no revocation list"),
    "a chain for lists": ("crl", "fullchain", "has a certificate"),
}


@pytest.mark.parametrize("name", ["server", "client"])
@pytest.mark.parametrize(("file", "other", "words"), KINDS.values(), ids=KINDS)
def test_a_file_of_another_kind_is_named(
    copy: Path, name: str, file: str, other: str, words: str
) -> None:
    folder = copy / "keys" / name
    shutil.copy(folder / f"{other}.pem", folder / f"{file}.pem")
    result = run(*script(name, copy / "keys"), env=PHRASES)
    assert (result.returncode, result.stdout) == (1, "")
    assert f"{file}.pem: {words}" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["server", "client"])
@pytest.mark.parametrize("file", ["fullchain", "ca", "crl"])
def test_a_damaged_file_is_said_to_be_damaged(copy: Path, name: str, file: str) -> None:
    path = copy / "keys" / name / f"{file}.pem"
    text = path.read_text()
    path.write_text(text[: text.index("-----END")])
    result = run(*script(name, copy / "keys"), env=PHRASES)
    assert (result.returncode, result.stdout) == (1, "")
    assert f"{file}.pem: the file is damaged\n" in result.stderr


@pytest.mark.parametrize("name", ["server", "client"])
@pytest.mark.parametrize("folder", ["[E] keys", "sslv3 keys", "tlsv1 alert x", "(_ssl.c:1)"])
def test_a_folder_whose_name_looks_like_a_code_is_named_as_it_is(
    copy: Path, name: str, folder: str
) -> None:
    (copy / "keys").rename(copy / folder)
    (copy / folder / name / "ca.pem").unlink()
    result = run(*script(name, Path(folder)), cwd=copy, env=PHRASES)
    assert f" port 0: {folder}/{name}/ca.pem: No such file or directory\n" in result.stderr
    assert "refused" not in result.stderr


def turn_round(node: Path) -> None:
    """Put a chain in the wrong order."""
    chain = node / "fullchain.pem"
    issuer = chain.read_text().removeprefix((node / "cert.pem").read_text())
    chain.write_text(issuer + (node / "cert.pem").read_text())


def take_another_key(node: Path) -> None:
    """Put another key of the same type into a folder."""
    openssl("ecparam", "-genkey", "-noout", "-name", "prime256v1", "-out", node / "key.pem")


def take_a_key_of_another_type(node: Path) -> None:
    """Put a key of another type into a folder."""
    openssl("genrsa", "-out", node / "key.pem", "2048")


@pytest.mark.parametrize("name", ["server", "client"])
@pytest.mark.parametrize("change", [turn_round, take_another_key, take_a_key_of_another_type])
def test_a_key_that_does_not_match_its_certificate_is_named_as_such(
    copy: Path, name: str, change: Callable[[Path], None]
) -> None:
    change(copy / "keys" / name)
    result = run(*script(name, copy / "keys"), env=PHRASES)
    assert "key.pem: does not match the first certificate in " in result.stderr
    assert "PASSPHRASE" not in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["server", "client"])
def test_a_certificate_among_the_lists_is_an_error_and_never_an_anchor(
    copy: Path, strangers: Path, name: str
) -> None:
    lists = copy / "keys" / name / "crl.pem"
    lists.write_text(lists.read_text() + (strangers / "keys/root/cert.pem").read_text())
    result = run(*script(name, copy / "keys"), env=PHRASES)
    assert result.returncode == 1 and "crl.pem: has a certificate" in result.stderr


@pytest.mark.parametrize("name", ["server", "client"])
def test_a_folder_without_lists_is_a_warning(copy: Path, serve: Serve, name: str) -> None:
    (copy / "keys" / name / "crl.pem").unlink()
    server = serve("-k", str(copy / "keys/server"))
    result = client(server.port, copy / "keys/client")
    assert (result.returncode, result.stdout) == (0, ANSWERED)
    warnings = {"server": server.err.read_text(), "client": result.stderr}
    for each, text in warnings.items():
        expected = f"keys/{each}/crl.pem is missing: revoked peers are let in\n"
        assert (expected in text) == (each == name)


def test_a_level_that_openssl_cnf_raises_is_not_lowered(tmp_path: Path, made: Path) -> None:
    env = openssl_cnf(tmp_path, "CipherString = DEFAULT@SECLEVEL=3")
    show = "import ssl; print(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).security_level)"
    level = int(run(sys.executable, "-c", show, env=env).stdout)
    load = (
        f"import sys; sys.path.insert(0, {str(SERVER.parent)!r});"
        "import pathlib, simple_https_server as script;"
        f"print(script.make_context(pathlib.Path({str(made / 'keys/server')!r}), b'sros')"
        ".security_level)"
    )
    assert int(run(sys.executable, "-B", "-c", load, env=env).stdout) == max(level, 2)


@pytest.mark.parametrize("script_", [simple_https_server, simple_https_client])
def test_a_level_that_excludes_the_only_group_is_an_error_that_names_the_file(
    monkeypatch: pytest.MonkeyPatch, script_: ModuleType
) -> None:
    # As in Debian 12, whose Python takes its level from openssl.cnf.
    monkeypatch.setattr(ssl, "OPENSSL_VERSION_INFO", (3, 0, 0))
    monkeypatch.setattr(ssl.SSLContext, "security_level", 3)
    assert script_.new_context().minimum_version == ssl.TLSVersion.TLSv1_3
    monkeypatch.setattr(ssl.SSLContext, "security_level", 4)
    with pytest.raises(ValueError, match=r"openssl\.cnf: a SECLEVEL above 3 excludes"):
        script_.new_context()


# --- The client at the end -------------------------------------------------------------------


@pytest.mark.parametrize("answer", [b"hello\n", b"hello\r\n"])
def test_the_client_does_not_wait_for_the_end_of_a_server(made: Path, answer: bytes) -> None:
    over = Event()

    def neither_read_nor_close(connection: ssl.SSLSocket) -> None:
        connection.recv(100)
        connection.sendall(answer)
        over.wait(DEADLINE)

    with peer(made / "keys/server", neither_read_nor_close) as port:
        begun = time.monotonic()
        result = client(port, made / "keys/client", "--host", "127.0.0.1")
        seconds = time.monotonic() - begun
        over.set()
    answered(result)
    assert seconds < SOON


def alerting(port_of: list[int], code: int) -> None:
    """Answer one client with an alert."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port_of.append(listener.getsockname()[1])
        raw, _ = listener.accept()
        with raw:
            raw.recv(65536)
            raw.sendall(bytes([21, 3, 3, 0, 2, 2, code]))


ALERTS = {
    40: "handshake failure",
    48: "unknown ca",
    70: "protocol version",
    80: "internal error",
    109: "missing extension",
    110: "unsupported extension",
    111: "certificate unobtainable",
    112: "unrecognized name",
    113: "bad certificate status response",
    114: "bad certificate hash value",
    115: "unknown psk identity",
    116: "certificate required",
    120: "no application protocol",
}


@pytest.mark.parametrize("code", ALERTS)
def test_each_alert_is_said_to_be_a_refusal(made: Path, code: int) -> None:
    ports: list[int] = []
    thread = threading.Thread(target=alerting, args=(ports, code))
    thread.start()
    poll(lambda: bool(ports))
    result = client(ports[0], made / "keys/client", "--host", "127.0.0.1")
    thread.join()
    expected = f"refused by 127.0.0.1 port {ports[0]}: alert {ALERTS[code]}\n"
    assert result.stderr == f"{CLIENT.name}: error: {expected}"


@pytest.mark.parametrize("script_", [simple_https_server, simple_https_client])
def test_an_internal_error_does_not_read_like_one_s_own_fault(script_: ModuleType) -> None:
    error = ssl.SSLError(1, "[SSL: INTERNAL_ERROR] internal error (_ssl.c:1006)")
    assert "what the peer sent" in script_.describe_error(error)
    alert = ssl.SSLError(
        1, "[SSL: TLSV1_ALERT_INTERNAL_ERROR] tlsv1 alert internal error (_ssl.c:1)"
    )
    assert script_.describe_error(alert) == "alert internal error"


# --- One's own expired intermediate ----------------------------------------------------------


def expired(keys: Path) -> str:
    """Return a certificate of the intermediate CA's key and name that has expired."""
    master = certificate(keys / "master/cert.pem")
    root = authority(keys / "root", PHRASES["SROS_ROOT_PASSPHRASE"])
    made = certify(root, master.subject, master.public_key(), (-9, -1), **CA)
    return pem(made).decode()


def test_an_expired_issuer_of_ones_own_is_named_and_hides_no_valid_one(
    copy: Path, server: Server
) -> None:
    keys = copy / "keys/client"
    (keys / "fullchain.pem").write_text(
        (keys / "cert.pem").read_text() + expired(copy / "keys")
    )
    result = client(server.port, keys)
    assert result.stdout == ANSWERED
    assert f"{keys}/fullchain.pem: our own CA" in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_expired_issuer_of_the_peer_is_not_said_to_be_ones_own(
    copy: Path, serve: Serve
) -> None:
    keys = copy / "keys/server"
    (keys / "fullchain.pem").write_text(
        (keys / "cert.pem").read_text() + expired(copy / "keys")
    )
    server = serve("-k", str(keys))
    result = client(server.port, copy / "keys/client")
    assert "warning: " not in result.stderr and "fullchain" not in result.stderr
    assert "fullchain.pem: our own CA" in server.err.read_text()


# --- The page -------------------------------------------------------------------------------


FIGURES = {  # rows of the page's table, by the constant of the script that each is about
    "the first byte of a connection": (SERVER, "TIMEOUT"),
    "the handshake": (SERVER, "TIMEOUT"),
    "a line, from the answer before it to its newline": (SERVER, "IDLE_TIMEOUT"),
    "the client takes an answer": (SERVER, "IDLE_TIMEOUT"),
    "the client closes after the server": (SERVER, "TIMEOUT"),
    "a line, with its newline": (SERVER, "MAX_LINE"),
    "clients at once": (SERVER, "MAX_CONNECTIONS"),
    "a line that the server prints": (SERVER, "MAX_SHOWN"),
    "lines that wait to be printed": (SERVER, "MAX_UNPRINTED"),
    "the client's steps: connection, handshake, write, read": (CLIENT, "TIMEOUT"),
}


def test_the_page_has_the_limits_of_the_scripts() -> None:
    text = (SERVER.parent / "tests/on-the-wire.md").read_text()
    rows = dict(re.findall(r"^\| ([^|]+) \| ([0-9]+)[^|]* \|", text, re.M))
    expected = {}
    for row, (script_, name) in FIGURES.items():
        found = re.search(rf"^{name} = ([0-9]+) ", script_.read_text(), re.M)
        assert found, name
        expected[row] = found[1]
    assert rows == expected
