"""Measure the scripts against what one would use in their place: tables and a picture.

All programs take turns, so that a busy machine is busy for all of them; figures are medians.
Whatever is made or answered is verified: what is wrong ends the benchmark with status 1.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import resource
import shutil
import socket
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from html import escape
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import crypto
from peers import (
    ASYNCIO,
    BARE,
    GENERATE,
    HELLO,
    HOLA,
    PHRASES,
    PROGRAMS,
    ROOT,
    SERVE,
    Contender,
    Cost,
    WrongResult,
    check_with,
    here,
    installed,
    make_with,
    spend,
)

LOOP = "a bare loop over the library's calls"
PEM = serialization.Encoding.PEM
LOADERS = 4  # processes that call a server at the same time


@dataclass
class Measure:
    """One thing that was measured of several programs, the script first."""

    title: str
    unit: str
    figures: dict[str, list[float]] = field(default_factory=dict)

    def add(self, program: str, *figures: float) -> None:
        """Take down what was measured in one round."""
        self.figures.setdefault(program, []).extend(figures)

    def medians(self) -> dict[str, float]:
        """What is shown, by program."""
        return {
            program: statistics.median(figures) for program, figures in self.figures.items()
        }


@dataclass
class Sizes:
    """How much is done in each part, and where."""

    scripts: Path
    rounds: int = 5
    nodes: tuple[int, int, int] = (100, 1000, 10_000)
    few: int = 15  # nodes that are made by a process each, or several
    rsa: tuple[int, int] = (100, 50)  # nodes of 2048 and of 3072 bits
    exchanges: int = 1000
    calls: int = 100  # one after the other, at rest
    echoes: tuple[int, int, int] = (10_000, 5000, 2000)  # of 32 bytes, 16 KiB and 64 KiB
    idle: int = 1000


@contextmanager
def workplace(nodes: int, key: str = "", memory: bool = True) -> Iterator[Path]:
    """A folder, by default in memory, with the shipped configuration and further nodes."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if memory else None) as name:
        entry = f"{{<<: *client, key: {key}}}" if key else "*client"
        lines = "".join(f"    n{number}: {entry}\n" for number in range(nodes))
        path = Path(name, "sros_config.yml")
        path.write_text((ROOT / "sros_config.yml").read_text() + lines)
        yield Path(name)


def check_keys(keys: Path, names: list[str], sample: int = 20) -> None:
    """Have OpenSSL verify each node by its own folder, strictly; and some of the keys, too."""
    flags, root = crypto.X509StoreFlags, (keys / "root/cert.pem").read_bytes()
    for number, name in enumerate(names):
        files = {path.stem: path.read_bytes() for path in (keys / name).iterdir()}
        leaf, *between = map(
            crypto.X509.from_cryptography, x509.load_pem_x509_certificates(files["fullchain"])
        )
        found, store = leaf.to_cryptography(), crypto.X509Store()
        store.add_cert(crypto.load_certificate(crypto.FILETYPE_PEM, files["ca"]))
        for each in files["crl"].split(b"-----END X509 CRL-----\n")[:-1]:
            store.add_crl(x509.load_pem_x509_crl(each + b"-----END X509 CRL-----\n"))
        store.set_flags(flags.X509_STRICT | flags.CRL_CHECK | flags.CRL_CHECK_ALL)
        try:
            crypto.X509StoreContext(store, leaf, between).verify_certificate()
        except crypto.X509StoreContextError as error:
            raise WrongResult(f"{keys / name}: {error}") from None
        common = found.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        if (files["ca"], files["cert"], common[0].value) != (
            root,
            found.public_bytes(PEM),
            name,
        ):
            raise WrongResult(f"{keys / name}: not its own, or not from our root")
        if number % max(1, len(names) // sample) == 0:
            key = serialization.load_pem_private_key(
                files["key"], PHRASES["SROS_PASSPHRASE"].encode()
            )
            if key.public_key() != found.public_key():
                raise WrongResult(f"{keys / name}: not its key")


def per_node(cost: Cost, without: Cost, count: int) -> Cost:
    """What one node added to a run without any, in milliseconds."""
    return Cost(
        (cost.wall - without.wall) / count * 1000, (cost.cpu - without.cpu) / count * 1000, 0
    )


def bare_nodes(folder: Path, count: int) -> Cost:
    """What a node costs without a script around it, in a folder that has the CAs."""
    without = spend(folder, *here("bare_loop", "keys", 0))
    cost = spend(folder, *here("bare_loop", "keys", count))
    check_keys(folder / "keys", [f"n{number}" for number in range(count)])
    return per_node(cost, without, count)


def trustme_nodes(folder: Path, count: int) -> Cost:
    """What a node costs with trustme, in a folder that has the CAs."""
    shutil.copy(folder / "keys/master/cert.pem", folder / "ca.pem")
    decrypt = "openssl pkey -in keys/master/key.pem -passin env:SROS_PASSPHRASE -out ca.key"
    spend(folder, *decrypt.split())
    without = spend(folder, *here("with_trustme", folder, 0))
    cost = spend(folder, *here("with_trustme", folder, count))
    check_with(
        folder / "keys/root/cert.pem", folder / "ca.pem", [*folder.glob("t*.crt")], count
    )
    return per_node(cost, without, count)


class Issuing(NamedTuple):
    """What is measured of nodes with P-256 keys."""

    cpu: Measure
    wall: Measure
    disk: Measure
    again: Measure
    peak: Measure
    start: Measure

    def add(self, program: str, cost: Cost) -> None:
        """Note what a node costs in memory."""
        self.cpu.add(program, cost.cpu)
        self.wall.add(program, cost.wall)


def issuing(sizes: Sizes) -> list[Measure]:
    """Nodes with P-256 keys: what each costs, alone and in a large fleet."""
    measures = Issuing(
        cpu=Measure("CPU for a node's key and certificate", "ms"),
        wall=Measure("The same by the clock, in a file system in memory", "ms"),
        disk=Measure("The same by the clock, on disk", "ms"),
        again=Measure("CPU for each node of a run", "ms"),
        peak=Measure("Memory at its peak", "MiB"),
        start=Measure("CPU for a run with nothing to do", "ms"),
    )
    command = [sys.executable, str(sizes.scripts / GENERATE), "-q"]
    small, middle, large = sizes.nodes
    for _ in range(sizes.rounds):
        for count in (large, middle, *[small] * 3):
            issue_in_memory(measures, command, count, is_large=count == large)
        issue_with_others(measures, command, sizes)
        issue_on_disk(measures, command, middle)
    return [*measures]


def issue_in_memory(measures: Issuing, command: list[str], count: int, is_large: bool) -> None:
    """Measure runs of the script: without further nodes, with them and, if many, again."""
    with workplace(0) as folder, workplace(count) as full:
        none, begin = spend(folder, *command), spend(folder, *command)
        measures.start.add(f"{GENERATE}, 4 entries kept", begin.cpu * 1000)
        imports = spend(
            folder, sys.executable, "-c", "import yaml; from OpenSSL import crypto"
        )
        measures.start.add("python -c 'import yaml, OpenSSL.crypto'", imports.cpu * 1000)
        cost = spend(full, *command)
        made = per_node(cost, none, count)
        measures.add(f"{GENERATE}, {count:,} nodes", made)
        names = [f"n{number}" for number in range(count)]
        check_keys(full / "keys", ["server", "client", *names])
        if is_large:
            kept = keep(measures, full, command, begin, count)
            measures.again.add("made", made.cpu)
            measures.peak.add(f"{GENERATE}, {count:,} nodes made", cost.peak)
            measures.peak.add(f"{count:,} nodes kept", kept.peak)
            measures.peak.add("4 entries made", none.peak)


def keep(measures: Issuing, full: Path, command: list[str], begin: Cost, count: int) -> Cost:
    """Measure runs with nothing to do in a large fleet, with and without pass phrases."""
    before = [path.read_bytes() for path in sorted(full.glob("keys/*/*.pem"))]
    kept, asked = spend(full, *command), spend(full, *command, env={})
    if before != [path.read_bytes() for path in sorted(full.glob("keys/*/*.pem"))]:
        raise WrongResult("what was to be kept has changed")
    measures.again.add(f"{GENERATE}, {count:,} kept", per_node(kept, begin, count).cpu)
    measures.again.add("the same without pass phrases", per_node(asked, begin, count).cpu)
    return kept


def issue_with_others(measures: Issuing, command: list[str], sizes: Sizes) -> None:
    """Measure what other programs take for the same."""
    small, middle, _ = sizes.nodes
    with workplace(0) as folder:
        spend(folder, *command)
        measures.add(LOOP, bare_nodes(folder, middle))
        measures.add("trustme (plain keys)", trustme_nodes(folder, small))
        # Debian's minica makes RSA keys only.
        for peer in [peer for peer in PROGRAMS if "minica" not in peer]:
            if several := make_with(peer, folder, sizes.few):
                measures.add(peer, per_node(several, Cost(0, 0, 0), sizes.few))


def issue_on_disk(measures: Issuing, command: list[str], count: int) -> None:
    """Measure a run on disk, beside the floor."""
    with workplace(0, memory=False) as folder, workplace(count, memory=False) as full:
        none, cost = spend(folder, *command), spend(full, *command)
        check_keys(full / "keys", [f"n{number}" for number in range(count)])
        measures.disk.add(f"{GENERATE}, {count:,} nodes", per_node(cost, none, count).wall)
        measures.disk.add(LOOP, bare_nodes(folder, count).wall)


def rsa(sizes: Sizes) -> list[Measure]:
    """Nodes with RSA keys: what a second core brings, and minica, which makes no others."""
    measures = []
    for bits, nodes in zip((2048, 3072), sizes.rsa, strict=True):
        wall = Measure(f"{nodes} nodes with RSA keys of {bits} bits, by the clock", "s")
        cpu = Measure(f"CPU for a node with an RSA key of {bits} bits", "ms")
        for _ in range(sizes.rounds):
            for label, prefix in (
                (f"{GENERATE}, {os.cpu_count()} cores", []),
                ("1 core", ["taskset", "-c", "0"]),
            ):
                with workplace(nodes, f"rsa:{bits}") as folder:
                    cost = spend(
                        folder, *prefix, sys.executable, sizes.scripts / GENERATE, "-q"
                    )
                    check_keys(folder / "keys", [f"n{number}" for number in range(nodes)])
                    wall.add(label, cost.wall)
                    if bits == 2048 and not prefix:
                        cpu.add(GENERATE, cost.cpu / nodes * 1000)
                        if made := make_with("minica (plain keys)", folder, sizes.few):
                            cpu.add("minica (plain keys)", made.cpu / sizes.few * 1000)
        measures += [wall, cpu] if cpu.figures else [wall]
    return measures


@contextmanager
def serving(sizes: Sizes, *names: str) -> Iterator[tuple[Path, list[Contender]]]:
    """Keys of their own for some servers, those that are installed, and these running."""
    with workplace(0) as folder, ExitStack() as stack:
        spend(folder, sys.executable, sizes.scripts / GENERATE, "-q")
        servers = []
        for name in names:
            if name not in ("nginx", "openssl s_server") or installed(name.split()[0]):
                servers.append(Contender(name, folder, sizes.scripts))
                stack.callback(servers[-1].stop)
        yield folder / "keys/client", servers


def client_context(keys: Path) -> ssl.SSLContext:
    """A client's settings, which verify the server."""
    context = ssl.create_default_context(cafile=str(keys / "ca.pem"))
    context.load_cert_chain(
        keys / "fullchain.pem", keys / "key.pem", PHRASES["SROS_PASSPHRASE"]
    )
    return context


def greet(port: int, context: ssl.SSLContext, nodelay: bool = True) -> ssl.SSLSocket:
    """Make a connection and its handshake."""
    raw = socket.create_connection(("127.0.0.1", port), 20)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, nodelay)
    return context.wrap_socket(raw, server_hostname="localhost")


def read_answer(connection: ssl.SSLSocket, answer: bytes) -> None:
    """Read an answer, which must be as expected."""
    got = b""
    while len(got) < len(answer) and (data := connection.recv(65536)):
        got += data
    if got != answer:
        raise WrongResult(f"answered {got[:80]!r} instead of {answer[:80]!r}")


def exchange_line(
    port: int, context: ssl.SSLContext, answer: bytes, nodelay: bool = True
) -> float:
    """Do what simple_https_client.py does; return the milliseconds until the answer."""
    begin = time.perf_counter()
    with greet(port, context, nodelay) as connection:
        with suppress(OSError):  # nginx answers unasked, and may have closed already
            connection.sendall(HOLA)
        read_answer(connection, answer)
        took = time.perf_counter() - begin
        with suppress(OSError):
            connection.unwrap()
    return took * 1000


def load(port: int, keys: Path, answer: bytes, count: int) -> None:
    """Call a server as often as said, as fast as it goes, in one of several processes."""
    context = client_context(keys)
    for _ in range(count):
        exchange_line(port, context, answer)


def settle(server: Contender) -> None:
    """Wait until a server uses no more CPU, as the last ones have ended."""
    before, until = -1.0, time.monotonic() + 20
    while (now := server.cpu()) != before:
        if time.monotonic() > until:
            raise WrongResult(f"{server.name} does not come to rest")
        before = now
        time.sleep(0.05)


def exchanging(sizes: Sizes) -> list[Measure]:
    """Whole connections: the server's CPU, how many a second, and one's time at rest."""
    cpu = Measure("Server's CPU for one exchange", "ms")
    rate = Measure("Exchanges a second, more is better", "/s")
    latencies = {}
    for nodelay, client in ((True, ""), (False, ", client without TCP_NODELAY")):
        median = Measure(f"One exchange at rest, median{client}", "ms")
        last = Measure(f"One exchange at rest, 99th percentile{client}", "ms")
        latencies[nodelay] = (median, last)
    names = (SERVE, "nginx", "openssl s_server", ASYNCIO, BARE)
    with ProcessPoolExecutor(LOADERS) as pool, serving(sizes, *names) as (keys, servers):
        list(pool.map(time.sleep, [0.1] * LOADERS))  # all processes are there
        context = client_context(keys)
        for _ in range(sizes.rounds):
            for server in servers:
                before, begin = server.cpu(), time.perf_counter()
                share = sizes.exchanges // LOADERS
                task = partial(load, server.port, keys, server.answer, share)
                calls = [pool.submit(task) for _ in range(LOADERS)]
                for each in calls:
                    each.result()
                wall = time.perf_counter() - begin
                settle(server)
                cpu.add(server.name, (server.cpu() - before) / share / LOADERS * 1000)
                rate.add(server.name, share * LOADERS / wall)
                for nodelay, (median, last) in latencies.items():
                    call = (server.port, context, server.answer, nodelay)
                    times = [exchange_line(*call) for _ in range(sizes.calls)]
                    hundredths = statistics.quantiles(times, n=100, method="inclusive")
                    median.add(server.name, statistics.median(times))
                    last.add(server.name, hundredths[98])
        check_log(servers)
    return [cpu, rate, *latencies[True], *latencies[False]]


def check_log(servers: list[Contender]) -> None:
    """The script must have had nothing to complain of."""
    for server in servers:
        if server.name == SERVE and "error" in server.log.read_text():
            raise WrongResult(server.log.read_text())


def echoing(sizes: Sizes) -> list[Measure]:
    """Lines that are sent back on one connection, each after the answer to the one before."""
    measures = []
    with serving(sizes, SERVE, BARE, ASYNCIO) as (keys, servers):
        for size, count in zip((32, 16 << 10, 64 << 10), sizes.echoes, strict=True):
            title = f"{size} bytes" if size < 1024 else f"{size >> 10} KiB"
            rate = Measure(f"Lines of {title} a second, sent back, more is better", "/s")
            cpu = Measure(f"Server's CPU for a line of {title}", "µs")
            message = b"x" * (size - 1) + b"\n"
            for _ in range(sizes.rounds):
                for server in servers:
                    with greet(server.port, client_context(keys)) as connection:
                        before, begin = server.cpu(), time.perf_counter()
                        for _ in range(count):
                            connection.sendall(message)
                            read_answer(connection, message)
                        rate.add(server.name, count / (time.perf_counter() - begin))
                        cpu.add(server.name, (server.cpu() - before) / count * 1e6)
                        with suppress(OSError):
                            connection.unwrap()
            measures += [rate, cpu]
        check_log(servers)
    return measures


def idling(sizes: Sizes) -> list[Measure]:
    """Silent authenticated clients: the server's memory, and a newcomer's latency."""
    memory = Measure(f"Memory for each of {sizes.idle:,} idle connections", "KiB")
    latency = Measure(f"One exchange beside {sizes.idle:,} idle connections, median", "ms")
    for _ in range(sizes.rounds):
        for name in (SERVE, "nginx", ASYNCIO, BARE):
            with serving(sizes, name) as (keys, servers), ExitStack() as stack:
                for server in servers:
                    context, before = client_context(keys), server.memory()
                    for _ in range(sizes.idle):
                        port = server.http if name == "nginx" else server.port
                        connection = stack.enter_context(greet(port, context))
                        if name == "nginx":  # its stream's connections can't idle
                            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                            if not connection.recv(65536).startswith(b"HTTP/1.1 200 OK"):
                                raise WrongResult("nginx answers something else")
                        else:
                            connection.sendall(HOLA)
                            read_answer(connection, HELLO)
                    memory.add(name, (server.memory() - before) / sizes.idle)
                    times = [
                        exchange_line(server.port, context, server.answer)
                        for _ in range(sizes.calls // 2)
                    ]
                    latency.add(name, statistics.median(times))
    return [memory, latency]


def shown(figure: float) -> str:
    """A figure with three digits that count."""
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:#.3g}"


def table(measures: list[Measure]) -> str:
    """Markdown rows: a program's figure, and its ratio to the first one's, the script's."""
    lines = ["| measured | program | figure | ratio |", "|---|---|---|---|"]
    for measure in measures:
        medians = measure.medians()
        first = next(iter(medians.values()))
        for number, (program, figure) in enumerate(medians.items()):
            title = "" if number else measure.title
            value = f"{shown(figure)} {measure.unit}"
            lines.append(f"| {title} | {program} | {value} | {figure / first:.2f} |")
    return "\n".join(lines)


def picture(measures: list[Measure]) -> str:
    """The same as an SVG: bars, one scale for each measure, the script's in another colour."""
    height, body = 10, []
    for measure in measures:
        medians = measure.medians()
        height += 30
        title = f"{escape(measure.title)} ({measure.unit})"
        body.append(f'<text class="title" x="10" y="{height}">{title}</text>')
        for number, (program, figure) in enumerate(medians.items()):
            width, kind = 360 * figure / max(medians.values()), "peer" if number else "script"
            body.append(
                f'<text x="295" y="{height + 18}" text-anchor="end">{escape(program)}</text>'
            )
            bar = f'x="305" y="{height + 7}" width="{width:.1f}" height="13"'
            body.append(f'<rect class="{kind}" {bar}/>')
            body.append(
                f'<text x="{310 + width:.1f}" y="{height + 18}">{shown(figure)}</text>'
            )
            height += 18
    style = "text{font:12px sans-serif;fill:#222}.title{font-weight:bold}"
    style += ".script{fill:#c0392b}.peer{fill:#8aa}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="740" height="{height + 15}">\n'
        f"<style>{style}</style>\n"
        '<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def machine() -> str:
    """What all of it ran on."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    name = model[1] if model else platform.machine()
    python = f"Python {platform.python_version()}"
    return f"{name}, {os.cpu_count()} cores, {python}, {ssl.OPENSSL_VERSION}"


PARTS: dict[str, Callable[[Sizes], list[Measure]]] = {
    "issuing": issuing,
    "rsa": rsa,
    "exchange": exchanging,
    "echo": echoing,
    "idle": idling,
}


def main() -> int:
    """Measure what is asked for; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "parts", metavar="PART", nargs="*", help=f"of {', '.join(PARTS)} (default: all)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one round of little: that it works, no figures"
    )
    parser.add_argument("--svg", metavar="FILE", type=Path, help="draw what was measured")
    parser.add_argument(
        "--scripts", default=ROOT, type=Path, help="the folder of the scripts (%(default)s)"
    )
    options = parser.parse_args()
    if unknown := {*options.parts} - {*PARTS}:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    sizes = Sizes(options.scripts.resolve())
    if options.quick:
        sizes = Sizes(sizes.scripts, 1, (50, 100, 200), 3, (6, 4), 200, 20, (200, 50, 50), 50)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    drawn: list[Measure] = []
    print(f"{machine()}\n")
    try:
        for part in options.parts or PARTS:
            measures = PARTS[part](sizes)
            for measure in [x for x in measures if len(x.figures) < 2]:
                print(f"skipped: {measure.title}: nothing to compare with", file=sys.stderr)
                measures.remove(measure)
            print(f"{table(measures)}\n", flush=True)
            drawn += measures
    except (WrongResult, OSError, ValueError, LookupError) as error:
        print(f"benchmark.py: error: {error}", file=sys.stderr)
        return 1
    if options.svg:
        options.svg.write_text(picture(drawn))
    return 0


if __name__ == "__main__":
    sys.exit(main())
