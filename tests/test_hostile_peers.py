"""Peers that mean harm: what they must not stop, hide or forge. `-m slow`: in full number."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import random
import re
import resource
import select
import shutil
import signal
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from certificates import NEW_KEY, Identity, authority, certify, purpose
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from exchanges import ANSWERED, Server, ask, client, printable, since
from needs import skip
from running import CLIENT, DEADLINE, PHRASES, SERVER, environment, openssl, run, started

pytestmark = pytest.mark.slow
MAX_LINE = 65536  # bytes, with its newline: the design's
SHOWN = 1000  # characters of a line that the server prints
PATIENCE = 60.0  # seconds that a good client waits here; it has its turn long before
RESET = struct.pack("ii", 1, 0)  # for SO_LINGER: close with a reset
# Before 3.11.8 and 3.12.2, wrap_socket leaves a reset socket to the garbage collector, as the
# server does with a socket that gets no thread. That warns (python/cpython#113280).
LENIENT = {**PHRASES, "PYTHONWARNINGS": "error,ignore::ResourceWarning"}
MENDED = sys.version_info >= (3, 12, 2) or (3, 11, 8) <= sys.version_info < (3, 12)
Record = Callable[[str, object], None]
Tune = Callable[..., Server]


# --- What the tests make ---------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def descriptors() -> Iterator[int]:
    """Let this process and its servers have the descriptors that a thousand clients take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 8192 if hard == resource.RLIM_INFINITY else min(hard, 8192)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    yield max(soft, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def identify(context: ssl.SSLContext, keys: Path) -> ssl.SSLContext:
    """Give a context a folder's key and chain."""
    context.load_cert_chain(
        keys / "fullchain.pem", keys / "key.pem", PHRASES["SROS_PASSPHRASE"]
    )
    return context


def trusting(keys: Path) -> ssl.SSLContext:
    """Return a client's context with a folder's trust anchor, and no identity."""
    return ssl.create_default_context(cafile=str(keys / "ca.pem"))


@pytest.fixture(scope="module")
def good(made: Path) -> ssl.SSLContext:
    """The context of a client that the server accepts."""
    return identify(trusting(made / "keys/client"), made / "keys/client")


@pytest.fixture(scope="module")
def answering(made: Path) -> ssl.SSLContext:
    """The context of a server that the client accepts."""
    return identify(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), made / "keys/server")


def plain(port: int, buffer: int | None = None) -> socket.socket:
    """Connect and say nothing."""
    raw = socket.socket()
    raw.settimeout(PATIENCE)
    if buffer:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    raw.connect(("127.0.0.1", port))
    return raw


def tls(port: int, context: ssl.SSLContext, buffer: int | None = None) -> ssl.SSLSocket:
    """Connect and complete the handshake."""
    return context.wrap_socket(
        plain(port, buffer), server_hostname="localhost", suppress_ragged_eofs=False
    )


def timed_exchange(port: int, context: ssl.SSLContext) -> float:
    """Be a good client from connection to close_notify; return the seconds that it took."""
    begun = time.perf_counter()
    with tls(port, context) as connection:
        assert ask(connection, b"hola") == b"hello"
        connection.unwrap().close()
    return time.perf_counter() - begun


class Latency(NamedTuple):
    """Of good exchanges, in milliseconds."""

    median: float
    worst: float  # the 99th percentile

    def __str__(self) -> str:
        return f"median {self.median:.1f} ms, 99th percentile {self.worst:.1f} ms"


def measure(count: int, port: int, context: ssl.SSLContext) -> Latency:
    """Return the latency of exchanges, one after the other."""
    times = sorted(timed_exchange(port, context) * 1000 for _ in range(count))
    return Latency(statistics.median(times), times[math.ceil(0.99 * count) - 1])


class Footprint(NamedTuple):
    """What a process holds."""

    threads: int
    descriptors: int
    memory: int  # KiB


def footprint(server: Server) -> Footprint:
    """Return what a server holds."""
    folder = Path(f"/proc/{server.process.pid}")
    status = dict(
        re.findall(r"^(Threads|VmRSS):\s+(\d+)", (folder / "status").read_text(), re.M)
    )
    return Footprint(
        int(status["Threads"]), len(os.listdir(folder / "fd")), int(status["VmRSS"])
    )


def settled(server: Server, before: Footprint) -> Footprint:
    """Wait until a server has its threads and descriptors of before. Return what it holds."""
    until = time.monotonic() + DEADLINE
    while (held := footprint(server))[:2] != before[:2]:
        assert time.monotonic() < until, f"before: {before}, at the end: {held}"
        select.select([], [], [], 0.01)
    return held


TUNED = """import os, resource, sys, threading
sys.dont_write_bytecode = True
sys.path.insert(0, {folder!r})
import {name} as script
known = set(vars(script))
{settings}
assert set(vars(script)) == known  # a constant that the script no longer has changes nothing
os._exit(script.main())  # as the scripts do
"""


def tuned(script: Path, folder: Path, *settings: str) -> Path:
    """Return a program that is one of the scripts, with other constants or limits."""
    path = folder / f"tuned_{script.stem}_{len(list(folder.iterdir()))}.py"
    path.write_text(
        TUNED.format(folder=str(script.parent), name=script.stem, settings="\n".join(settings))
    )
    return path


@pytest.fixture
def tune(made: Path, tmp_path: Path, serve: Callable[..., Server]) -> Tune:
    """Start servers with other constants or limits, given as lines of Python."""

    def start(*settings: str, env: dict[str, str] = PHRASES) -> Server:
        script = tuned(SERVER, tmp_path, *settings)
        return serve("-k", str(made / "keys/server"), env=env, script=script)

    return start


@pytest.fixture(scope="module")
def server(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server as it stands, that one attack after the other goes against."""
    folder = tmp_path_factory.mktemp("attacked")
    running = Server(
        "-k", str(made / "keys/server"), cwd=folder, env=PHRASES if MENDED else LENIENT
    )
    yield running
    running.process.kill()
    running.process.wait()


@pytest.fixture(scope="module")
def rest(server: Server) -> Footprint:
    """What that server holds while it has not yet met anyone."""
    return footprint(server)


@pytest.fixture(scope="module")
def quiet(server: Server, rest: Footprint, good: ssl.SSLContext) -> Latency:
    """The latency of good exchanges while no one else is there."""
    measure(10, server.port, good)
    return measure(50, server.port, good)


# --- Hostile clients: each is a generator, which begins, and goes on whenever it is told to --

Hostile = Callable[[int, ssl.SSLContext], Generator[None, None, None]]


def client_hello() -> bytes:
    """Return the first flight of a client."""
    sent = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost").do_handshake()
    return sent.read()


HELLO = client_hello()
CHANCE = random.Random(8446)


def idle() -> Generator[None, None, None]:
    """Go on with nothing."""
    while True:
        yield


def says_nothing(port: int, context: ssl.SSLContext) -> Generator[None, None, None]:
    with plain(port):
        yield from idle()


def sends_a_byte_at_a_time(port: int, context: ssl.SSLContext) -> Generator[None, None, None]:
    with plain(port) as raw:
        for byte in HELLO:
            raw.sendall(bytes([byte]))
            yield
        yield from idle()


def stops_mid_handshake(port: int, context: ssl.SSLContext) -> Generator[None, None, None]:
    with plain(port) as raw:
        raw.sendall(HELLO)
        yield from idle()


def half_closes_at_once(port: int, context: ssl.SSLContext) -> Generator[None, None, None]:
    with plain(port) as raw:
        raw.shutdown(socket.SHUT_WR)
        yield from idle()


def resets(port: int, context: ssl.SSLContext) -> Generator[None, None, None]:
    for length in itertools.cycle([0, 1, len(HELLO) // 2, len(HELLO)]):
        with plain(port) as raw:
            raw.sendall(HELLO[:length])
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        yield


def half_closes_and_resets(port: int, context: ssl.SSLContext) -> Generator[None, None, None]:
    for length in itertools.cycle([0, 0, 1, len(HELLO)]):
        with plain(port) as raw:
            raw.sendall(HELLO[:length])
            raw.shutdown(socket.SHUT_WR)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        yield


def sends_plain_http(port: int, context: ssl.SSLContext) -> Generator[None, None, None]:
    while True:
        with plain(port) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            yield


def sends_random_bytes(port: int, context: ssl.SSLContext) -> Generator[None, None, None]:
    while True:
        with plain(port) as raw:
            raw.sendall(CHANCE.randbytes(CHANCE.randrange(1, 3000)))
            yield


def resets_its_exchange(port: int, context: ssl.SSLContext) -> Generator[None, None, None]:
    with tls(port, context) as connection:
        assert ask(connection, b"hola") == b"hello"
        yield
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def sends_what_is_no_record(port: int, context: ssl.SSLContext) -> Generator[None, None, None]:
    with tls(port, context) as connection:
        assert ask(connection, b"hola") == b"hello"
        with socket.socket(fileno=os.dup(connection.fileno())) as raw:
            raw.sendall(b"\x17\x03\x03\x00\x20" + CHANCE.randbytes(32))
        yield from idle()


def sends_64_kib_and_no_newline(
    port: int, context: ssl.SSLContext
) -> Generator[None, None, None]:
    with tls(port, context) as connection:
        connection.sendall(b"a" * MAX_LINE)
        yield from idle()


def sends_half_a_line(port: int, context: ssl.SSLContext) -> Generator[None, None, None]:
    with tls(port, context) as connection:
        connection.sendall(b"hol")
        yield from idle()


def sends_megabytes_and_reads_nothing(
    port: int, context: ssl.SSLContext
) -> Generator[None, None, None]:
    record = (b"a" * 1023 + b"\n") * 16  # goes whole or not at all
    with tls(port, context, buffer=4096) as connection:
        connection.settimeout(0)
        sent = 0
        while True:
            with contextlib.suppress(ssl.SSLWantWriteError):
                while sent < 8 << 20:
                    sent += connection.send(record)
            yield


def half_closes(port: int, context: ssl.SSLContext) -> Generator[None, None, None]:
    with tls(port, context) as connection:
        assert ask(connection, b"hola") == b"hello"
        with socket.socket(fileno=os.dup(connection.fileno())) as raw:
            raw.shutdown(socket.SHUT_WR)  # of the TCP connection: no close_notify
        yield from idle()


def never_closes(port: int, context: ssl.SSLContext) -> Generator[None, None, None]:
    with tls(port, context) as connection:
        assert ask(connection, b"hola") == b"hello"
        yield from idle()


def says_goodbye_and_stays(port: int, context: ssl.SSLContext) -> Generator[None, None, None]:
    with tls(port, context) as connection:
        assert ask(connection, b"hola") == b"hello"
        raw = connection.unwrap()
        with raw:
            yield from idle()


WITHOUT_KEYS: list[Hostile] = [
    says_nothing,
    sends_a_byte_at_a_time,
    stops_mid_handshake,
    half_closes_at_once,
    resets,
    half_closes_and_resets,
    sends_plain_http,
    sends_random_bytes,
]
WITH_KEYS: list[Hostile] = [
    resets_its_exchange,
    sends_what_is_no_record,
    sends_64_kib_and_no_newline,
    sends_half_a_line,
    sends_megabytes_and_reads_nothing,
    half_closes,
    never_closes,
    says_goodbye_and_stays,
]


@contextlib.contextmanager
def horde(
    clients: Sequence[Hostile], port: int, context: ssl.SSLContext, pace: float = 1.0
) -> Iterator[None]:
    """Begin hostile clients, and go on with each at intervals, until the block ends."""
    going = [hostile(port, context) for hostile in clients]
    over = threading.Event()

    def drive() -> None:
        for each in itertools.cycle(going):
            if over.wait(pace / len(going)):
                return
            with contextlib.suppress(OSError):  # the server has had enough of this one
                next(each, None)

    driver = threading.Thread(target=drive)
    with contextlib.ExitStack() as stack:
        for each in going:
            stack.callback(end, each)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(next, going))
        driver.start()
        stack.callback(driver.join)
        stack.callback(over.set)
        yield


def end(hostile: Generator[None, None, None]) -> None:
    """End a hostile client, whatever its connection has become."""
    with contextlib.suppress(OSError):
        hostile.close()


# --- Who must not stop it --------------------------------------------------------------------


def attacks() -> Iterator[object]:
    """Yield every attack in small numbers for the suite, and in the full number."""
    for hostile in [*WITHOUT_KEYS, *WITH_KEYS]:
        few, many = (100, 1000) if hostile in WITHOUT_KEYS else (10, 300)
        many = 50 if hostile is sends_megabytes_and_reads_nothing else many
        yield pytest.param(hostile, few, 10, id=f"{few}-{hostile.__name__}")
        yield pytest.param(
            hostile, many, 200, id=f"{many}-{hostile.__name__}", marks=pytest.mark.slow
        )


@pytest.mark.parametrize(("hostile", "count", "exchanges"), list(attacks()))
def test_an_attack_stops_no_good_client_and_leaves_nothing_behind(
    server: Server,
    rest: Footprint,
    quiet: Latency,
    good: ssl.SSLContext,
    descriptors: int,
    record_property: Record,
    hostile: Hostile,
    count: int,
    exchanges: int,
) -> None:
    if count + 100 > descriptors:
        skip(f"{descriptors} descriptors are too few for {count} clients")
    before = settled(server, rest)
    out, err = server.out.stat().st_size, server.err.stat().st_size
    for _ in range(
        5
    ):  # memory that was never needed before stays; a leak grows by the same each time
        with horde([hostile] * count, server.port, good):
            latency = measure(exchanges, server.port, good)
        after = settled(server, rest)
        growth = after.memory - before.memory
        if growth <= 0.02 * before.memory:
            break
        before = after
    else:
        pytest.fail(f"each of five attacks left memory behind, the last one {growth} KiB")
    result = f"{latency} (quiet: {quiet}); memory {before.memory} KiB, then {after.memory} KiB"
    record_property(f"{count} x {hostile.__name__}", result)
    print(f"\n{count} x {hostile.__name__}: {result}")
    server.errors(err)
    # Lines are printed by a thread of their own.
    server.wait_for(lambda: since(server.out, out).count(b"closed\n") >= exchanges)


def test_only_connections_that_never_finish_their_handshake_are_closed(
    tune: Tune, good: ssl.SSLContext
) -> None:
    server = tune("script.TIMEOUT = 1", "script.MIN_THREADS = 1")
    with tls(server.port, good) as held:
        assert ask(held, b"hola") == b"hello"
        before = footprint(server)
        slow = [says_nothing, sends_a_byte_at_a_time, stops_mid_handshake]
        with horde(slow * 10, server.port, good, pace=0.2):
            server.wait_for(lambda: footprint(server).threads == before.threads + 30)
            server.wait_for(lambda: footprint(server)[:2] == before[:2])
        assert ask(held, b"still here") == b"still here"
    lines = server.errors()
    assert len([line for line in lines if "timed out" in line]) == 30, lines


def test_those_who_stop_after_their_handshake_are_ended_and_those_who_go_on_are_not(
    tune: Tune, good: ssl.SSLContext
) -> None:
    server = tune("script.IDLE_TIMEOUT = 1.5", "script.TIMEOUT = 1")
    idlers = [hostile for hostile in WITH_KEYS if hostile is not resets_its_exchange]
    with tls(server.port, good) as held:
        assert ask(held, b"hola") == b"hello"
        before = footprint(server)
        with horde(idlers * 2, server.port, good):
            server.wait_for(
                lambda: (
                    ask(held, b"still here") == b"still here"
                    and footprint(server)[:2] == before[:2]
                )
            )
            assert ask(held, b"hola") == b"hello"
    text = "\n".join(server.errors())
    assert text.count("timed out") == 6, text  # half a line, nothing read, never closed
    assert text.count(f"longer than {MAX_LINE} bytes") == 2, text


def test_a_request_of_http_without_an_end_is_ended(tune: Tune, good: ssl.SSLContext) -> None:
    server = tune("script.TIMEOUT = 1.5")
    before = footprint(server)
    with tls(server.port, good) as connection, tls(server.port, good) as held:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        assert connection.recv(MAX_LINE).endswith(b"hello\n")
        connection.setblocking(False)

        def drip() -> bool:
            select.select([], [], [], 0.1)
            with contextlib.suppress(OSError):
                connection.send(b"x: y\r\n")
            assert ask(held, b"hola") == b"hello"
            return footprint(server).descriptors == before.descriptors + 1

        server.wait_for(drip)
        assert server.errors() == []


def test_a_line_without_an_end_is_ended_and_lines_that_end_are_not(
    tune: Tune, good: ssl.SSLContext
) -> None:
    server = tune("script.IDLE_TIMEOUT = 1.5", "script.TIMEOUT = 1")
    with tls(server.port, good) as connection, tls(server.port, good) as held:
        connection.setblocking(False)

        def drip() -> bool:
            select.select([], [], [], 0.1)
            with contextlib.suppress(OSError):
                connection.send(b"x")
            assert ask(held, b"hola") == b"hello"
            return "timed out" in "".join(server.errors())

        server.wait_for(drip)
        assert ask(held, b"hola") == b"hello"
        assert len(server.errors()) == 1


def test_above_the_limit_new_clients_wait_and_connected_ones_continue(
    tune: Tune, good: ssl.SSLContext
) -> None:
    limit = 12
    server = tune(
        f"script.MAX_CONNECTIONS = {limit}", "script.PAUSE = 0.1", "script.MIN_THREADS = 1"
    )
    first = footprint(server).threads
    with ThreadPoolExecutor(20) as pool:
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(tls(server.port, good)) for _ in range(limit - first)]
            assert [ask(each, b"hola") for each in held] == [b"hello"] * len(held)
            for _ in range(
                10
            ):  # one more takes the last place, or hangs on nothing for two minutes
                stack.enter_context(plain(server.port))
            server.wait_for(lambda: footprint(server).threads > limit)
            newcomers = [pool.submit(timed_exchange, server.port, good) for _ in range(20)]
            for number in range(50):
                assert [ask(each, b"%d" % number) for each in held] == [b"%d" % number] * len(
                    held
                )
                assert (
                    footprint(server).threads <= limit + 2
                )  # at most one too many for each address
            assert not any(each.done() for each in newcomers)
        assert all(each.result(PATIENCE) > 0 for each in newcomers)
    server.wait_for(lambda: footprint(server).threads == first)
    server.wait_for(lambda: server.out.read_text().count("closed\n") == 20)
    server.errors()


@pytest.mark.parametrize(
    ("limit", "count"), [(64, 150), pytest.param(256, 1000, marks=pytest.mark.slow)]
)
def test_a_flood_that_takes_all_descriptors_harms_no_one_being_served_and_passes(
    tune: Tune, good: ssl.SSLContext, record_property: Record, limit: int, count: int
) -> None:
    quiet = tune()
    with horde([says_nothing] * count, quiet.port, good):
        timed_exchange(quiet.port, good)
        quiet.process.send_signal(signal.SIGHUP)
        timed_exchange(quiet.port, good)
    assert quiet.stop() == 0
    assert "Too many open files" not in "\n".join(quiet.errors())

    server = tune(f"resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))")
    before = footprint(server)
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        held = [stack.enter_context(tls(server.port, good)) for _ in range(5)]
        assert [ask(each, b"hola") for each in held] == [b"hello"] * 5
        with horde([says_nothing] * count, server.port, good):
            begun = time.monotonic()
            assert server.complained("cannot accept: Too many open files")
            for number in range(50):
                assert [ask(each, b"%d" % number) for each in held] == [b"%d" % number] * 5
            server.process.send_signal(signal.SIGHUP)
            assert server.complained("cannot reload, the old keys stay in force")
            newcomer = pool.submit(timed_exchange, server.port, good)
            assert [ask(each, b"hola") for each in held] == [b"hello"] * 5
            lasted = time.monotonic() - begun
            refusals = server.err.read_text().count("cannot accept")
        waited = newcomer.result(PATIENCE)
        assert [ask(each, b"hola") for each in held] == [b"hello"] * 5
    record_property("newcomer", f"waited {waited:.1f} s for the flood of {count} to pass")
    assert refusals <= 2 * (lasted / 0.5 + 2)  # no busy loop, and no flood of lines
    assert timed_exchange(server.port, good) < PATIENCE
    server.wait_for(lambda: footprint(server)[:2] == before[:2])
    server.errors()


def test_without_threads_newcomers_are_refused_and_those_being_served_are_not_harmed(
    tune: Tune, good: ssl.SSLContext
) -> None:
    server = tune(  # 20 GiB of addresses hold less than 20 stacks of 1 GiB
        "script.PAUSE = 0.1",
        "threading.stack_size(1 << 30)",
        "resource.setrlimit(resource.RLIMIT_AS, (20 << 30, 20 << 30))",
        env=LENIENT,
    )
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(tls(server.port, good)) for _ in range(5)]
        before = footprint(server)
        with horde([says_nothing] * 30, server.port, good):
            assert server.complained("cannot accept: can't start new thread")
            for number in range(50):
                assert [ask(each, b"%d" % number) for each in held] == [b"%d" % number] * 5
        server.wait_for(lambda: footprint(server)[:2] == before[:2])
        assert timed_exchange(server.port, good) < PATIENCE
        assert [ask(each, b"hola") for each in held] == [b"hello"] * 5
    server.errors()


# --- Long uptime -----------------------------------------------------------------------------


def in_parallel(work: Callable[[], object], count: int, threads: int = 4) -> None:
    """Do something many times, in several threads."""
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda _: work(), range(count)):
            pass


@pytest.mark.slow
def test_20000_exchanges_leave_memory_threads_and_descriptors_flat(
    made: Path, serve: Callable[..., Server], good: ssl.SSLContext, record_property: Record
) -> None:
    server = serve("-k", str(made / "keys/server"))
    first = footprint(server)

    def row() -> None:
        """Ask ten times on one connection, after nine connections that ask once."""
        for _ in range(9):
            timed_exchange(server.port, good)
        with tls(server.port, good) as connection:
            for number in range(10):
                assert ask(connection, b"%d" % number) == b"%d" % number
            connection.unwrap().close()

    in_parallel(row, 500)
    early = settled(server, first)
    begun = time.monotonic()
    in_parallel(row, 1000)
    for _ in range(500):
        row()
    lasted = time.monotonic() - begun
    late = settled(server, first)
    result = (
        f"{early.memory} KiB after 5000, {late.memory} KiB after 20000, {15000 / lasted:.0f}/s"
    )
    record_property("memory", result)
    print(f"\nuptime: {result}")
    assert late.memory <= early.memory * 1.05, result
    assert server.errors() == []
    server.wait_for(lambda: server.out.read_text().count("closed\n") == 20000)
    counts = Counter(server.out.read_text().splitlines())
    assert (counts["accepted"], counts["read: [hola]"], counts["closed"]) == (
        20000,
        18000,
        20000,
    )
    assert (
        all(counts[f"read: [{number}]"] == 2000 for number in range(10)) and len(counts) == 13
    )


@pytest.mark.parametrize("count", [20, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("how", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_within_two_seconds_after_what_was_sent_is_answered(
    made: Path,
    serve: Callable[..., Server],
    good: ssl.SSLContext,
    how: signal.Signals,
    status: int,
    count: int,
) -> None:
    server = serve("-k", str(made / "keys/server"))
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(tls(server.port, good)) for _ in range(count)]
        assert [ask(each, b"hola") for each in held] == [b"hello"] * count
        for number, each in enumerate(held):
            each.sendall(b"%d\n" % number)
        begun = time.monotonic()
        server.process.send_signal(how)
        assert [each.recv(99) for each in held] == [
            b"%d\n" % number for number in range(count)
        ]
        assert server.process.wait(DEADLINE) == status
        lasted = time.monotonic() - begun
        again = serve("--port", str(server.port), "-k", str(made / "keys/server"))
        assert again.port == server.port and timed_exchange(again.port, good) < PATIENCE
    assert lasted < 2, lasted
    assert server.errors() == []


@pytest.mark.parametrize("count", [50, pytest.param(600, marks=pytest.mark.slow)])
def test_sighup_every_50_ms_loses_no_exchange(
    copy: Path, serve: Callable[..., Server], good: ssl.SSLContext, count: int
) -> None:
    server = serve("-k", str(copy / "keys/server"))
    rest = footprint(server)
    over = threading.Event()
    sent = 0

    def reload() -> None:
        nonlocal sent
        while not over.wait(0.05):
            server.process.send_signal(signal.SIGHUP)
            sent += 1

    def under_reloads() -> Footprint:
        over.clear()
        reloader = threading.Thread(target=reload)
        reloader.start()
        try:
            in_parallel(lambda: timed_exchange(server.port, good), count)
        finally:
            over.set()
            reloader.join()
        return settled(server, rest)

    early = under_reloads()
    late = under_reloads()
    assert late.memory <= early.memory * 1.05 + 1024
    assert sent >= count / 100 and server.errors() == []
    (copy / "keys/server/key.pem").write_text("damaged\n")  # the twin: each reload is one
    under_reloads()
    assert server.complained("cannot reload")
    lines = server.errors()
    assert lines and all("cannot reload, the old keys stay in force" in line for line in lines)
    server.wait_for(lambda: server.out.read_text().count("closed\n") == 3 * count)


# --- A refused client always learns why ------------------------------------------------------


def make_named(
    folder: Path,
    made: Path,
    node: str,
    names: Sequence[x509.NameAttribute[str]],
    others: x509.ExtensionType,
) -> Path:
    """Make a node's folder with a certificate for any names, by the master CA. Return it."""
    master = authority(made / "keys/master", "sros")
    key = ec.generate_private_key(ec.SECP256R1())
    # A certificate without a subject has critical names.
    extensions = {"purpose": purpose(node), "others": (others, not names)}
    leaf = certify(master, x509.Name(names), key.public_key(), (-1, 9), **extensions)
    folder.mkdir()
    Identity(key, [leaf, *master.chain]).write(folder)
    for name in ("ca.pem", "crl.pem"):
        shutil.copy(made / "keys" / node / name, folder)
    return folder


def self_signed(folder: Path, made: Path) -> Path:
    """Make a client's folder whose certificate is signed by itself; return it."""
    folder.mkdir()
    files = ("-keyout", folder / "key.pem", "-out", folder / "fullchain.pem")
    openssl("req", "-x509", *NEW_KEY, *files, "-subj", "/CN=client")
    for name in ("ca.pem", "crl.pem"):
        shutil.copy(made / "keys/client" / name, folder)
    return folder


class Refusal(NamedTuple):
    """What a client learns whose data was in flight when it was refused."""

    write: str  # the error that its write met
    alert: str
    rest: str  # what came after the alert: the end, or a reset


class Reason(NamedTuple):
    """A client that is refused, and why."""

    keys: Path | None  # None: it has no certificate
    context: ssl.SSLContext
    alert: str  # as the client gets it
    words: str  # of the server


def learn(port: int, context: ssl.SSLContext, writes: Sequence[bytes]) -> Refusal:
    """Write at once after the handshake, then read."""
    write = alert = rest = ""
    with tls(port, context) as connection:
        try:
            for data in writes:
                connection.sendall(data)
        except OSError as error:
            write = str(error)
        try:
            alert = f"answered: {connection.recv(99)!r}"
        except OSError as error:
            alert = re.sub(r"^\[.*?\] | \(_ssl.*|(ssl|tls)v\d+ |ssl/tls ", "", str(error))
        with socket.socket(fileno=connection.detach()) as raw:
            raw.settimeout(PATIENCE)
            try:
                rest = raw.recv(99).decode("latin-1")
            except OSError as error:
                rest = str(error)
    return Refusal(write, alert, rest)


IN_FLIGHT = [[b"hola\n"], [b"a" * 65535 + b"\n"], [b"a" * 16000] * 4, [b"hola\n"] * 200]


@pytest.fixture(scope="module")
def reasons(made: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Reason]:
    """Why clients are refused: each with the client that is."""
    keys = made / "keys"
    stranger = self_signed(tmp_path_factory.mktemp("peers") / "stranger", made)
    return [
        Reason(
            None,
            trusting(keys / "client"),
            "alert certificate required",
            "did not return a certificate",
        ),
        Reason(
            stranger,
            identify(trusting(stranger), stranger),
            "alert unknown ca",
            "self-signed certificate",
        ),
        Reason(
            keys / "server",
            identify(trusting(keys / "server"), keys / "server"),
            "alert unsupported certificate",
            "unsuitable certificate purpose",
        ),
    ]


def test_an_accepted_client_with_data_in_flight_is_answered(
    made: Path, serve: Callable[..., Server], good: ssl.SSLContext
) -> None:
    server = serve("-k", str(made / "keys/server"))
    for writes in IN_FLIGHT:
        with tls(server.port, good) as connection:
            for data in [*writes, b"\n"]:
                connection.sendall(data)
            assert connection.recv(1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    # The connections were cut off on this side.
    server.wait_for(lambda: len(server.errors()) == len(IN_FLIGHT))


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_refused_client_with_data_in_flight_always_learns_why(
    made: Path, serve: Callable[..., Server], reasons: list[Reason], count: int
) -> None:
    server = serve("-k", str(made / "keys/server"))
    every = [(reason, writes) for reason in reasons for writes in IN_FLIGHT]
    tasks = [every[number % len(every)] for number in range(count)]
    with ThreadPoolExecutor(4) as pool:
        learnt = pool.map(lambda task: learn(server.port, task[0].context, task[1]), tasks)
    assert list(learnt) == [Refusal("", reason.alert, "") for reason, _ in tasks]
    logged(server, [reason.words for reason, _ in tasks])


@pytest.mark.parametrize("count", [3, pytest.param(36, marks=pytest.mark.slow)])
def test_our_refused_client_with_data_in_flight_always_says_why(
    made: Path, serve: Callable[..., Server], reasons: list[Reason], count: int
) -> None:
    server = serve("-k", str(made / "keys/server"))
    # Our client always has a certificate.
    refused = [reasons[1 + number % 2] for number in range(count)]

    def come(reason: Reason) -> subprocess.CompletedProcess[str]:
        assert reason.keys
        return client(server.port, reason.keys, "a" * 65535, "hola")

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(come, refused))
    for reason, result in zip(refused, results, strict=True):
        assert (result.returncode, result.stdout) == (1, ""), result
        assert result.stderr.count("\n") == 1 and reason.alert in result.stderr, result.stderr
        assert "refused by localhost port" in result.stderr
    logged(server, [reason.words for reason in refused])


def logged(server: Server, expected: Sequence[str]) -> None:
    """Require one complaint of a server for each of the expected words."""
    server.wait_for(lambda: len(server.errors()) == len(expected))
    lines = server.errors()
    for words, count in Counter(expected).items():
        assert sum(words in line for line in lines) == count, lines


# --- Hostile servers -------------------------------------------------------------------------


@contextlib.contextmanager
def hostile_server(
    behave: Callable[[socket.socket], None], buffer: int | None = None
) -> Iterator[int]:
    """Serve each client in a thread as told, until the block ends; yield the port."""
    listener = socket.socket()
    if buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    listener.bind(("127.0.0.1", 0))
    listener.listen()

    def serve_one(raw: socket.socket) -> None:
        raw.settimeout(DEADLINE)
        with contextlib.suppress(OSError), raw:
            behave(raw)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                raw, _ = listener.accept()
                threading.Thread(target=serve_one, args=(raw,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        listener.close()
        thread.join(DEADLINE)


Behaviour = Callable[[ssl.SSLSocket], None]


def accepting(context: ssl.SSLContext, behave: Behaviour) -> Callable[[socket.socket], None]:
    """Complete the handshake and read the first line, then go on as told."""

    def serve_one(raw: socket.socket) -> None:
        with context.wrap_socket(raw, server_side=True) as connection:
            while not connection.recv(MAX_LINE).endswith(b"\n"):
                pass
            behave(connection)

    return serve_one


def wait_for_the_end(connection: socket.socket) -> None:
    """Read until the client has closed."""
    connection.settimeout(None)
    while connection.recv(MAX_LINE):
        pass


def stop_mid_answer(connection: ssl.SSLSocket) -> None:
    connection.sendall(b"hel")
    wait_for_the_end(connection)


def pour(connection: ssl.SSLSocket) -> None:
    while True:
        connection.sendall(b"a")


def drip(connection: ssl.SSLSocket) -> None:
    while True:
        connection.sendall(b"a")
        select.select([], [], [], 0.2)


def cut_mid_answer(connection: ssl.SSLSocket) -> None:
    connection.sendall(b"hel")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def cut_mid_record(connection: ssl.SSLSocket) -> None:
    with socket.socket(fileno=connection.detach()) as raw:
        raw.sendall(b"\x17\x03\x03\x00\x40half")


def damage_a_record(connection: ssl.SSLSocket) -> None:
    with socket.socket(fileno=connection.detach()) as raw:
        raw.sendall(b"\x17\x03\x03\x00\x20" + b"x" * 32)
        wait_for_the_end(raw)


def answer_slowly(connection: ssl.SSLSocket) -> None:
    for byte in b"hello\n":
        select.select([connection], [], [], 0.05)
        connection.sendall(bytes([byte]))
    wait_for_the_end(connection)


def stop_mid_handshake(raw: socket.socket) -> None:
    raw.sendall(b"\x16\x03\x03\x00\x7a\x02\x00\x00")
    wait_for_the_end(raw)


def drip_mid_handshake(raw: socket.socket) -> None:
    raw.sendall(b"\x16\x03\x03\x40\x00\x02\x00\x3f")
    raw.setblocking(False)
    while True:
        with contextlib.suppress(BlockingIOError):
            if not raw.recv(MAX_LINE):
                return
        raw.sendall(b"\x03")
        select.select([], [], [], 0.2)


def reset_at_once(raw: socket.socket) -> None:
    assert raw.recv(1)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


ENDS: dict[str, tuple[Behaviour, str]] = {
    "stops-mid-answer": (stop_mid_answer, "timed out"),
    "pours-without-a-newline": (pour, "longer than|timed out|slow"),
    "drips-for-ever": (drip, "timed out"),
    "resets-mid-answer": (cut_mid_answer, "reset|end of input|EOF|cut short"),
    "cuts-mid-record": (cut_mid_record, "EOF|unexpected eof|end of input|cut short"),
    "damages-a-record": (
        damage_a_record,
        "bad record mac|decryption failed|record layer failure",
    ),
}
PLAIN_ENDS: dict[str, tuple[Callable[[socket.socket], None], str]] = {
    "stops-mid-handshake": (stop_mid_handshake, "timed out"),
    "drips-its-handshake": (drip_mid_handshake, "timed out|too large|excessive|length"),
    "resets-at-once": (reset_at_once, "reset"),
}


class Verdict(NamedTuple):
    """A client that runs against a hostile server."""

    process: subprocess.Popen[str]
    patience: float


@pytest.mark.parametrize("count", [6, pytest.param(36, marks=pytest.mark.slow)])
def test_a_client_learns_why_from_a_server_that_resets_while_it_writes(
    made: Path, count: int
) -> None:
    context = identify(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), made / "keys/server")
    context.verify_mode = ssl.CERT_REQUIRED  # and trusts no one

    def refuse(raw: socket.socket) -> None:
        with pytest.raises(ssl.SSLError):
            context.wrap_socket(raw, server_side=True)  # closes with data unread, which resets

    with hostile_server(
        refuse, buffer=2048
    ) as port:  # so small that the client's write has to wait
        for _ in range(count):
            result = client(port, made / "keys/client", "a" * 65535)
            assert (result.returncode, result.stdout) == (1, "")
            line = f"{CLIENT.name}: error: refused by localhost port {port}: "
            line += "[a-z0-9 ]*alert unknown ca\n"
            assert re.fullmatch(line, result.stderr), result.stderr


@pytest.fixture(
    scope="module",
    params=[1, pytest.param(10, marks=pytest.mark.slow)],
    ids=["hasty", "as-it-stands"],
)
def clients(
    request: pytest.FixtureRequest,
    made: Path,
    tmp_path_factory: pytest.TempPathFactory,
    answering: ssl.SSLContext,
) -> Iterator[dict[str, Verdict]]:
    """The client, perhaps with a short timeout, against all hostile servers at once."""
    timeout: int = request.param
    settings = [f"script.TIMEOUT = {timeout}"] if timeout != 10 else []
    program = (
        tuned(CLIENT, tmp_path_factory.mktemp("client"), *settings) if settings else CLIENT
    )
    behaviours = {name: accepting(answering, behave) for name, (behave, _) in ENDS.items()}
    behaviours["answers-slowly"] = accepting(answering, answer_slowly)
    behaviours |= {name: behave for name, (behave, _) in PLAIN_ENDS.items()}
    verdicts = {}
    with contextlib.ExitStack() as stack:
        for name, behave in behaviours.items():
            port = stack.enter_context(hostile_server(behave))
            options = ("--port", str(port), "-k", made / "keys/client")
            process = started(sys.executable, program, *options, env=PHRASES)
            stack.callback(process.communicate)
            stack.callback(process.kill)
            verdicts[name] = Verdict(process, 3 * timeout + 7)
        yield verdicts


@pytest.mark.parametrize("name", [*ENDS, *PLAIN_ENDS])
def test_a_client_of_a_hostile_server_ends_by_itself_with_a_line_that_says_so(
    clients: dict[str, Verdict], name: str
) -> None:
    process, patience = clients[name]
    try:
        out, err = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        pytest.fail(f"the client was still there after {patience} seconds")
    assert (process.returncode, out) == (1, "")
    assert err.startswith(f"{CLIENT.name}: error: ") and err.count("\n") == 1, err
    assert re.search(ENDS.get(name, PLAIN_ENDS.get(name, (None, "")))[1], err), err


def test_a_client_of_a_slow_server_that_answers_in_time_is_answered(
    clients: dict[str, Verdict],
) -> None:
    process, patience = clients["answers-slowly"]
    out, err = process.communicate(timeout=patience)
    assert (process.returncode, out, err) == (0, "connected\nread: [hello]\n", "")


# --- Text from the peer is untrusted ---------------------------------------------------------


def characters(*codes: int | range) -> list[bytes]:
    """Return characters as UTF-8, without the newline, which is the end of a line."""
    each = itertools.chain.from_iterable([c] if isinstance(c, int) else c for c in codes)
    return [chr(code).encode("utf-8", "surrogatepass") for code in each if code != 0x0A]


UNITS: dict[str, list[bytes]] = {
    "c0-and-delete": characters(range(0x20), 0x7F),
    "c1": characters(range(0x80, 0xA0)),
    "line-separators": characters(0x0B, 0x0C, 0x0D, 0x1C, 0x1D, 0x1E, 0x85, 0x2028, 0x2029),
    "bidirectional": characters(
        0x061C, 0x200E, 0x200F, range(0x202A, 0x202F), range(0x2066, 0x206A)
    ),
    "zero-width": characters(
        0xAD,
        0x180E,
        range(0x200B, 0x200E),
        range(0x2060, 0x2065),
        0xFEFF,
        range(0xFFF9, 0xFFFC),
    ),
    "spaces": characters(0xA0, 0x1680, range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000),
    "tags": characters(0xE0001, range(0xE0020, 0xE0080)),
    "no-characters": characters(
        range(0xFDD0, 0xFDF0), 0xFFFE, 0xFFFF, 0x1FFFF, 0x10FFFF, 0xE000, 0xF8FF
    ),
    "surrogates": characters(0xD800, 0xDBFF, 0xDC00, 0xDC80, 0xDCFF, 0xDFFF),
    "invalid": [bytes([byte]) for byte in range(0x80, 0x100)],
    "overlong": [
        b"\xc0\x8a",
        b"\xe0\x80\x8a",
        b"\xf0\x80\x80\x8a",
        b"\xc1\x9b",
        b"\xf4\x90\x80\x80",
        b"\xe2\x80",
    ],
    "escape-sequences": [
        b"\x1b[2J\x1b[H",  # clears the screen
        b"\x1b]0;title\x07\x1b]52;c;aG9sYQ==\x07",  # sets the title and the clipboard
        b"\x1bP$q\x1b\\\x1b[6n\x1bc\x1b(0",  # asks for answers, resets, changes the alphabet
        b"\x9b31m\x9d0;title\x9c\xc2\x9b31m",  # the same in eight bits
        b"\x1b[1A\x1b[2K\rclosed\r",  # overwrites the line above
        b"]\rclosed\x1b[K\raccepted\r\x08\x08\x08",
    ],
    "forgeries": [
        b"]\\nclosed\\nread: [",  # with a backslash and an n: harmless, and kept as it stands
        b"]\rclosed\r",
        "]\u2028closed\u2028accepted".encode(),
        b"%s%n {0} $(reboot) `reboot`",
    ],
}
UNITS["everything"] = [unit for units in UNITS.values() for unit in units]


def fill(units: Sequence[bytes], length: int, chance: random.Random) -> bytes:
    """Return so many bytes of units in any order, the last one perhaps cut."""
    text = b""
    while len(text) < length:
        text += b"".join(chance.choices(units, k=1000))
    return text[:length]


def hostile_lines(units: Sequence[bytes], seed: str) -> list[bytes]:
    """Return lines that hold each unit, mixtures of them, and one as long as a line may be."""
    chance = random.Random(seed)
    lines = [b"x" + unit + b"y" for unit in units]
    lines += [
        fill([*units, b"ab ", "é".encode()], length, chance) for length in (3, 10, 100, 1000)
    ]
    lines.append(fill(units, MAX_LINE - 1, chance))
    return [line.replace(b"\n", b"") for line in lines]


@pytest.fixture(scope="module")
def mirror(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for all hostile text."""
    running = Server("-k", str(made / "keys/server"), cwd=tmp_path_factory.mktemp("mirror"))
    yield running
    running.process.kill()
    running.process.wait()


def transcript(server: Server, start: int) -> list[str]:
    """Wait for the end of an exchange, and return its lines, which are harmless."""
    server.wait_for(lambda: since(server.out, start).endswith(b"\nclosed\n"))
    first, *lines, last = printable(since(server.out, start))
    assert (first, last) == ("accepted", "closed")
    return lines


def quoted(line: str) -> str:
    """Return what stands in the frame of a line that was read."""
    found = re.fullmatch(r"read: \[(.*)\]( and [0-9]+ bytes more)?", line)
    assert found, line[:200]
    return found[1]


def beginning(line: bytes) -> bytes:
    """Return the part of a line that the server prints."""
    return line.decode(errors="surrogateescape")[:SHOWN].encode(errors="surrogateescape")


@pytest.mark.parametrize("kind", UNITS)
def test_the_server_quotes_hostile_lines_on_one_printable_line_each(
    mirror: Server, good: ssl.SSLContext, kind: str
) -> None:
    lines, start = hostile_lines(UNITS[kind], kind), mirror.out.stat().st_size
    with tls(mirror.port, good) as connection:
        for line in lines:
            assert ask(connection, line) == line
        connection.unwrap().close()
    shown = transcript(mirror, start)
    assert len(shown) == len(lines)
    for whole, text in zip(lines, map(quoted, shown), strict=True):
        line = beginning(whole)
        harmless = re.findall(r"[!-~]", line.decode(errors="ignore"))
        iterator = iter(text)
        assert all(letter in iterator for letter in harmless), (line[:200], text[:200])
        plain_text = line.decode(errors="backslashreplace")
        assert (text == plain_text) == plain_text.isprintable()
    assert mirror.errors() == []


def test_the_client_quotes_hostile_answers_on_one_printable_line_each(
    made: Path, answering: ssl.SSLContext
) -> None:
    lines = [
        line for kind in UNITS for line in hostile_lines(UNITS[kind], kind) if len(line) < 2000
    ]
    lines += [line for line in hostile_lines(UNITS["everything"], "long") if len(line) > 2000]
    assert len(lines) > 700 and len(lines[-1]) == MAX_LINE - 1

    def behave(raw: socket.socket) -> None:
        with answering.wrap_socket(raw, server_side=True) as connection:
            with connection.makefile("rb") as asked:
                for answer, _ in zip(lines, asked, strict=False):
                    connection.sendall(answer + b"\n")
            connection.unwrap()

    with hostile_server(behave) as port:
        result = subprocess.run(
            [
                sys.executable,
                CLIENT,
                "--port",
                str(port),
                "-k",
                made / "keys/client",
                *["x"] * len(lines),
            ],
            env=environment(PHRASES),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
    assert (result.returncode, result.stderr) == (0, b"")
    connected, *shown = printable(result.stdout)
    assert connected == "connected" and len(shown) == len(lines)
    for line, text in zip(lines, map(quoted, shown), strict=True):
        plain_text = line.decode(errors="backslashreplace")
        assert (text == plain_text) == plain_text.isprintable()


def test_text_that_is_harmless_is_shown_as_it_stands(
    made: Path, mirror: Server, good: ssl.SSLContext
) -> None:
    start = mirror.out.stat().st_size
    texts = [
        "¡olé! 你好 🤖",
        "שלום",
        "مرحبا",
        "नमस्ते",
        "Ünïcödé",
        "\\n \\x1b",
        "a" * 65535,
        "😀" * 16000,
    ]
    result = client(mirror.port, made / "keys/client", *texts)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == ["connected", *(f"read: [{text}]" for text in texts)]
    shown = [quoted(line) for line in transcript(mirror, start)]
    assert shown == [text[:SHOWN] for text in texts]


def test_characters_that_the_terminal_lacks_are_shown_as_codes(
    made: Path, mirror: Server, serve: Callable[..., Server]
) -> None:
    env = {**PHRASES, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    expected = ["read: [robot: ok]", r"read: [\xdc \U0001f916]"]
    texts = ("robot: ok", "Ü 🤖")
    result = client(mirror.port, made / "keys/client", *texts, env=env)
    assert (result.returncode, result.stderr, result.stdout.splitlines()[1:]) == (
        0,
        "",
        expected,
    )
    plain = serve("-k", str(made / "keys/server"), env=env)
    result = client(plain.port, made / "keys/client", *texts)
    assert (result.returncode, result.stderr) == (0, "")
    plain.wait_for(lambda: "closed" in plain.out.read_text())
    assert plain.out.read_text().splitlines() == ["accepted", *expected, "closed"]


@pytest.mark.parametrize(
    ("redirections", "printed"), [(">&-", ""), ("2>&-", ANSWERED), (">&- 2>&-", "")]
)
def test_closed_outputs_do_no_harm(
    made: Path, mirror: Server, redirections: str, printed: str
) -> None:
    command = f'exec "$0" "$1" --port {mirror.port} -k keys/client hola {redirections}'
    result = run("sh", "-c", command, sys.executable, CLIENT, cwd=made, env=PHRASES)
    assert (result.returncode, result.stdout, result.stderr) == (0, printed, "")


def test_long_lines_of_clients_at_once_never_mix(
    made: Path, mirror: Server, good: ssl.SSLContext
) -> None:
    start = mirror.out.stat().st_size
    said = [chr(ord("a") + number) + "\x1b" * 16000 for number in range(8)]

    def shout(text: str) -> None:
        with tls(mirror.port, good) as connection:
            for _ in range(2):
                assert ask(connection, text.encode()) == text.encode()
            connection.unwrap().close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(shout, said))
    mirror.wait_for(lambda: since(mirror.out, start).split(b"\n").count(b"closed") == 8)
    counts = Counter(printable(since(mirror.out, start)))
    escaped = "\\x1b" * (SHOWN - 1)
    more = f"and {16001 - SHOWN} bytes more"
    expected = {f"read: [{text[0]}{escaped}] {more}": 2 for text in said}
    assert counts == Counter({**expected, "accepted": 8, "closed": 8})


@pytest.mark.parametrize("kind", UNITS)
def test_a_hostile_request_line_of_http_is_answered_and_quoted(
    mirror: Server, good: ssl.SSLContext, kind: str
) -> None:
    start = mirror.out.stat().st_size
    path = b"".join(
        unit for unit in UNITS[kind] if not re.search(r"\s", unit.decode(errors="ignore"))
    )
    with tls(mirror.port, good) as connection:
        connection.sendall(b"GET /" + path + b" HTTP/1.1\r\nX: \x1b[2J\r\n\r\n")
        answer = b""
        while not answer.endswith(b"hello\n"):
            data = connection.recv(MAX_LINE)
            assert data
            answer += data
        connection.unwrap().close()
    assert (
        answer == b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n"
    )
    (line,) = transcript(mirror, start)
    assert quoted(line).startswith("GET /")
    assert line.endswith((" HTTP/1.1]", " bytes more"))


def test_hostile_bytes_instead_of_tls_are_one_printable_line_on_both_sides(
    made: Path, mirror: Server, good: ssl.SSLContext
) -> None:
    out, start = mirror.out.stat().st_size, mirror.err.stat().st_size
    texts = [b"".join(units) for units in UNITS.values()]
    for text in texts:
        with plain(mirror.port) as raw:
            raw.sendall(b"\x1b[2J" + text + b"\n" * 8)
            with contextlib.suppress(OSError):
                while raw.recv(MAX_LINE):
                    pass
    mirror.wait_for(lambda: len(mirror.errors(start)) == len(texts))
    assert mirror.out.stat().st_size == out

    def behave(raw: socket.socket) -> None:
        raw.sendall(b"\x1b[2Jconnected\nread: [hello]\n" + UNITS["everything"][0] * 99)
        wait_for_the_end(raw)

    with hostile_server(behave) as port:
        result = client(port, made / "keys/client")
    assert (result.returncode, result.stdout) == (1, "")
    assert len(printable(result.stderr.encode())) == 1


# --- So are the names in its certificate -----------------------------------------------------

UTF8 = [
    "x\nclosed",
    "x\r\nread: [forged]\r",
    "\x1b[2J\x1b]0;title\x07\x9b31m",
    "\u202eolleh\u202c\u2066x\u2069",
    "ho\u200bla\ufeff\U000e0041",
    "x\x85closed\u2028closed\u2029closed\x0bclosed\x0cclosed\x1cclosed",
    "x\x00y",
    "\ufffe\ue000 \u3000 \x7f",
]


def attributes(text: str) -> list[x509.NameAttribute[str]]:
    """Return a subject with a text in several places."""
    places = (
        NameOID.COMMON_NAME,
        NameOID.ORGANIZATION_NAME,
        NameOID.ORGANIZATIONAL_UNIT_NAME,
        NameOID.TITLE,
    )
    return [x509.NameAttribute(place, text) for place in places]


def directory(text: str) -> x509.GeneralName:
    """Return a subject alternative name that is a whole subject."""
    return x509.DirectoryName(x509.Name(attributes(text)))


LOCALHOST = x509.DNSName("localhost")
PLAIN_SUBJECT = attributes("plain")
NAMES: dict[str, tuple[list[x509.NameAttribute[str]], x509.ExtensionType]] = {
    "plain": (PLAIN_SUBJECT, x509.SubjectAlternativeName([LOCALHOST])),
    "subject": (
        [attributes(text)[number % 4] for number, text in enumerate(UTF8)],
        x509.SubjectAlternativeName([LOCALHOST]),
    ),
    "subject-of-60-kib": (
        [*attributes("x")[:1], x509.NameAttribute(NameOID.TITLE, "\x1b\n" * 30000)],
        x509.SubjectAlternativeName([LOCALHOST]),
    ),
    "no-subject": ([], x509.SubjectAlternativeName([LOCALHOST])),
    "dns-and-uri": (
        PLAIN_SUBJECT,
        x509.SubjectAlternativeName(
            [
                LOCALHOST,
                x509.DNSName("x\nclosed\x1b[2J\r\x00"),
                x509.UniformResourceIdentifier("x:\nclosed\x1b[2J" + "\x07" * 9000),
            ]
        ),
    ),
    "directory": (PLAIN_SUBJECT, x509.SubjectAlternativeName([LOCALHOST, directory(UTF8[0])])),
    "others": (
        PLAIN_SUBJECT,
        x509.SubjectAlternativeName(
            [
                LOCALHOST,
                x509.RegisteredID(NameOID.TITLE),
                x509.OtherName(NameOID.TITLE, b"\x0c\x04\x1b[2J"),
            ]
        ),
    ),
}
INVALID = x509.UnrecognizedExtension(  # DNS:localhost, then a URI of bytes that are no ASCII
    x509.SubjectAlternativeName.oid, b"\x30\x13\x82\x09localhost\x86\x06\x9b2J\xff\xfe\x0a"
)


@pytest.fixture(scope="module")
def named(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Return the folder of a node with certain names."""
    folder = tmp_path_factory.mktemp("named")

    def get(node: str, case: str) -> Path:
        path = folder / f"{node}-{case}"
        names, others = NAMES[case] if case != "invalid" else (PLAIN_SUBJECT, INVALID)
        return path if path.exists() else make_named(path, made, node, names, others)

    return get


@pytest.fixture(scope="module")
def verbose(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that shows whom it serves."""
    running = Server(
        "-v", "-k", str(made / "keys/server"), cwd=tmp_path_factory.mktemp("verbose")
    )
    yield running
    running.process.kill()
    running.process.wait()


@pytest.mark.parametrize("case", NAMES)
def test_a_verbose_server_shows_hostile_names_on_one_printable_line(
    verbose: Server, named: Callable[[str, str], Path], case: str
) -> None:
    keys = named("client", case)
    out, err = verbose.out.stat().st_size, verbose.err.stat().st_size
    assert timed_exchange(verbose.port, identify(trusting(keys), keys)) < PATIENCE
    assert [quoted(line) for line in transcript(verbose, out)] == ["hola"]
    (line,) = printable(since(verbose.err, err))
    assert line.startswith("127.0.0.1 port ") and "TLSv1.3" in line and "DNS=localhost" in line
    assert ("=plain" in line) == (NAMES[case][0] == PLAIN_SUBJECT)


@pytest.mark.parametrize("case", NAMES)
def test_a_verbose_client_shows_hostile_names_on_one_printable_line(
    made: Path, named: Callable[[str, str], Path], case: str
) -> None:
    context = identify(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), named("server", case))

    def behave(connection: ssl.SSLSocket) -> None:
        connection.sendall(b"hello\n")
        connection.unwrap()

    with hostile_server(accepting(context, behave)) as port:
        result = client(port, made / "keys/client", "-v")
    assert (result.returncode, result.stdout) == (0, "connected\nread: [hello]\n"), (
        result.stderr
    )
    (line,) = printable(result.stderr.encode())
    assert "TLSv1.3" in line and "DNS=localhost" in line
    assert ("=plain" in line) == (NAMES[case][0] == PLAIN_SUBJECT)


def test_names_that_are_not_text_give_at_most_an_error_line(
    made: Path, verbose: Server, named: Callable[[str, str], Path], answering: ssl.SSLContext
) -> None:
    keys = named("client", "invalid")
    err = verbose.err.stat().st_size
    with contextlib.suppress(OSError, AssertionError):
        timed_exchange(verbose.port, identify(trusting(keys), keys))
    verbose.wait_for(lambda: since(verbose.err, err).endswith(b"\n"))
    assert len(printable(since(verbose.err, err))) == 1
    context = identify(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), named("server", "invalid"))
    with hostile_server(
        accepting(context, lambda connection: connection.sendall(b"hello\n"))
    ) as port:
        result = client(port, made / "keys/client", "-v")
    assert len(printable(result.stderr.encode())) == 1
