"""When a run is killed, fails to write, or meets others: no key is lost, nothing is half done.

Most runs here are forked from a process that has imported the script, to save its start-up.
Each is held before main() begins: strace can take hold of it, and several can start together.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import importlib
import inspect
import itertools
import json
import os
import re
import select
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, TypeVar

import pytest
from certificates import judge, make_list, number
from configurations import add_client2, configure
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from folders import NODE_FILES, drop, tree
from needs import needs, needs_root, skip
from running import (
    DEADLINE,
    GENERATE,
    PHRASES,
    Result,
    complaints,
    environment,
    fine,
    generate,
    generate_here,
    openssl,
    poll,
    refused,
    run,
)

T = TypeVar("T")
R = TypeVar("R")

CAS, NODES = ["root", "master"], ["server", "client"]
WAITING = f"{GENERATE.name}: waiting for another run on keys\n"
KILLS = 15  # at moments spread over each case
ROUNDS = 3  # of runs that start together


# --- Runs without the start-up ---------------------------------------------------------------


class Fork(socketserver.StreamRequestHandler):
    """A run of the script's main(), in the process that was forked for it."""

    def handle(self) -> None:
        order = json.loads(self.rfile.readline())
        os.chdir(order["folder"])
        for standard, path in enumerate(("/dev/null", order["out"], order["err"])):
            fd = os.open(path, os.O_RDWR)
            os.dup2(fd, standard)
            os.close(fd)
        ctypes.CDLL(None).prctl(
            0x59616D61, ctypes.c_ulong(-1), 0, 0, 0
        )  # Yama: any strace may attach
        self.wfile.write(b"%d\n" % os.getpid())
        if self.rfile.readline() == b"go\n":
            try:
                status = importlib.import_module("simple_key_generation").main(
                    order["arguments"]
                )
            except SystemExit as ended:
                status = ended.code
            except BaseException:
                traceback.print_exc()
                status = 1
            self.wfile.write(b"%d\n" % status)
        os._exit(0)


class Forks(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    """Forks, as they are ordered."""

    request_queue_size = max_children = 64


def serve(script: str) -> None:
    """Fork runs of a script, as they are ordered at a socket in this folder, for ever."""
    sys.path.insert(0, os.path.dirname(script))
    importlib.import_module("simple_key_generation").main(["-q"])  # loads and compiles it once
    with Forks("socket", Fork) as server:
        server.serve_forever()


class Held:
    """A run that is held until it is let go."""

    count = itertools.count()

    def __init__(self, path: str, folder: Path, *arguments: str) -> None:
        self.arguments, place = arguments, next(self.count)
        self.out, self.err = folder / f"out-{place}", folder / f"err-{place}"
        self.out.touch()
        self.err.touch()
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(2 * DEADLINE)
        self.socket.connect(path)
        self.lines = self.socket.makefile("r")
        files = {"folder": str(folder), "out": str(self.out), "err": str(self.err)}
        self.say(json.dumps({"arguments": arguments, **files}))
        self.pid = int(self.lines.readline())
        self.process = os.pidfd_open(self.pid)

    def say(self, line: str) -> None:
        """Write a line to its socket."""
        self.socket.sendall(f"{line}\n".encode())

    def go(self) -> Held:
        """Let it go."""
        self.say("go")
        return self

    def waits(self) -> bool:
        """Return whether it says that it waits for another run."""
        return WAITING in self.err.read_text()

    def kill(self) -> None:
        """End it as a machine does that runs out of memory."""
        with suppress(ProcessLookupError):  # it has ended
            signal.pidfd_send_signal(self.process, signal.SIGKILL)

    def end(self) -> Result:
        """Wait for its end, and return what came of it."""
        with self.socket, self.lines:
            self.socket.shutdown(socket.SHUT_WR)
            hangs = not select.select([self.process], [], [], 2 * DEADLINE)[0]
            if hangs:
                self.kill()
            status: int = (
                -signal.SIGKILL
            )  # which leaves no time for a word, or even to be let go
            with suppress(ConnectionResetError):
                status = int(self.lines.readline() or status)
        os.close(self.process)
        assert not hangs, self.err.read_text()
        return Result(self.arguments, status, self.out.read_text(), self.err.read_text())


Hold = Callable[..., Held]


@pytest.fixture(scope="session")
def hold(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hold]:
    """Start runs that are held: they end with the tests."""
    folder = tmp_path_factory.mktemp("forks")
    configure(folder)
    modules = "import ctypes, importlib, json, os, socketserver, sys, traceback"
    sources = [inspect.getsource(Fork), inspect.getsource(Forks), inspect.getsource(serve)]
    parts = [modules, *sources, f"serve({str(GENERATE)!r})"]
    command = [
        sys.executable,
        "-c",
        "\n".join(parts),
    ]  # without pytest, a fork takes half the time
    process = subprocess.Popen(
        command, cwd=folder, env=environment(PHRASES), start_new_session=True
    )
    try:
        poll(lambda: (folder / "socket").exists() or process.poll() is not None)
        yield functools.partial(Held, str(folder / "socket"))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# --- What has to hold ------------------------------------------------------------------------


class Errand(NamedTuple):
    """Something to do: how a folder with all keys is prepared, and what may change."""

    prepare: Callable[[Path], object]
    arguments: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()


def revoke_another(folder: Path) -> None:
    """Have an entry on the list, of a node that is no more."""
    add_client2(folder)
    fine(generate_here(folder))
    fine(generate_here(folder, "--revoke", "client2"))
    drop(folder / "keys", "client2")
    configure(folder)
    fine(generate_here(folder))


def request(folder: Path) -> None:
    """Have two requests wait for their issuer's key: one with its own key, and one without."""
    keys = folder / "keys"
    (keys / "master/key.pem").rename(folder / "stick.pem")
    drop(keys, *NODES)
    refused(generate_here(folder), "keys/server/csr.pem", "keys/client/csr.pem")
    drop(keys, "client/key.pem")
    (folder / "stick.pem").rename(keys / "master/key.pem")


def spoil(folder: Path) -> None:
    """Alter or remove all that follows from what is kept."""
    for name in (*CAS, *NODES):
        (folder / f"keys/{name}/fullchain.pem").write_bytes(ALTERED)
    drop(folder / "keys", "root/ca.pem", "server/ca.pem", "server/crl.pem", "master/issued")
    (folder / "keys/client/crl.pem").write_bytes(ALTERED)


def leave(folder: Path) -> None:
    """Leave what a killed run leaves, wherever it can."""
    keys = folder / "keys"
    (keys / "server").rename(keys / ".server.part")
    shutil.copytree(keys / "client", keys / ".client.part")
    for name in (
        "root/.issued.part/.x.pem.part",
        "master/issued/.x.pem.part",
        "client/.crl.pem.part",
    ):
        (keys / name).parent.mkdir(0o700, exist_ok=True)
        (keys / name).write_text("half a f")


ALTERED = b"altered\n"
CASES = {
    "the first run": Errand(lambda folder: drop(folder, "keys")),
    "a new node": Errand(add_client2),
    "a renewal": Errand(
        configure, ("--renew", "server", "master"), ("server/cert.pem", "master/cert.pem")
    ),
    "a revocation": Errand(revoke_another, ("--revoke", "client"), ("master/crl.pem",)),
    "a request": Errand(request),
    "derived files": Errand(spoil),
    "what was left": Errand(leave),
}
# The suite has time for one case; `pytest -m slow` runs them all.
SLOWLY = [
    pytest.param(name, marks=() if name == "a revocation" else pytest.mark.slow)
    for name in CASES
]
KEPT = re.compile(
    "[^/.]+/(key|csr|cert|cross).pem|(root|master)/crl.pem|[^/.]+/issued/[^/.]+.pem"
)
BLOCK = (
    b"-----BEGIN [A-Z0-9 ]+-----\n"
    b"([A-Za-z0-9+/]{64}\n)*[A-Za-z0-9+/]{1,64}={0,2}\n"
    b"-----END [A-Z0-9 ]+-----\n"
)
Files = dict[str, bytes]


def contents(keys: Path) -> Files:
    """Return what the files in a folder hold, by their paths in it."""
    places = [(Path(place), names) for place, _, names in os.walk(keys)]
    return {
        str((place / x).relative_to(keys)): (place / x).read_bytes()
        for place, names in places
        for x in names
    }


class Holdings(NamedTuple):
    """What must not be lost: the kept files, and each CA's list, number and entries."""

    kept: Files
    lists: dict[str, tuple[int, set[int]]]


def take_holdings(files: Files) -> Holdings:
    """Return what a folder has."""
    kept = {name: data for name, data in files.items() if KEPT.fullmatch(name)}
    own = {
        ca: x509.load_pem_x509_crl(kept[f"{ca}/crl.pem"])
        for ca in CAS
        if f"{ca}/crl.pem" in kept
    }
    return Holdings(
        kept,
        {ca: (number(crl), {each.serial_number for each in crl}) for ca, crl in own.items()},
    )


def require_nothing_lost(
    before: Holdings, after: Holdings, changes: Sequence[str] = ()
) -> None:
    """Require the same kept files, except for what may change, and no list that is older."""
    for name in before.kept.keys() - {*changes}:
        assert after.kept.get(name) == before.kept[name], name
    for ca, (count, revoked) in before.lists.items():
        is_new = after.kept[f"{ca}/crl.pem"] != before.kept[f"{ca}/crl.pem"]
        assert after.lists[ca][0] >= count + is_new, f"{ca}'s list is older"
        assert after.lists[ca][1] >= revoked, f"{ca}'s list has lost an entry"


@functools.cache
def public_key(pem: bytes, name: str) -> str:
    """Return the public key of a certificate or a private key, which openssl must read."""
    if b"PRIVATE" in pem:
        phrase = "root" if name == "root" else "sros"
        return openssl("pkey", "-passin", f"pass:{phrase}", "-pubout", stdin=pem.decode())
    key = x509.load_pem_x509_certificate(pem).public_key()
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()


@functools.cache
def is_whole(pem: bytes) -> bool:
    """Return whether a file is PEM from its beginning to its end."""
    return re.fullmatch(b"(%b)+" % BLOCK, pem) is not None


@functools.cache
def serial_number(pem: bytes) -> int:
    """Return a certificate's serial number."""
    return x509.load_pem_x509_certificate(pem).serial_number


def require_sound(keys: Path, before: Holdings, case: Errand) -> Holdings:
    """Require that all that can be seen in a folder is whole, and that nothing was lost."""
    files = {name: data for name, data in contents(keys).items() if "/." not in f"/{name}"}
    now = take_holdings(files)
    require_nothing_lost(before, now, case.changes)
    for name, data in files.items():
        assert is_whole(data) or (case.prepare is spoil and data == ALTERED), name
    for path in keys.rglob("*"):  # what is hidden, being half-written, too
        if path.is_dir() or "key.pem" in path.name:
            assert path.stat().st_mode & 0o077 == 0, f"{path} is for others"
    for folder in {name.partition("/")[0] for name in files}:
        held = {name for name in NODE_FILES if f"{folder}/{name}" in files}
        if not any(name.startswith(f"{folder}/") for name in before.kept):
            assert held == NODE_FILES, f"{folder} appeared before it was whole"
        key, pem = (files.get(f"{folder}/{name}") for name in ("key.pem", "cert.pem"))
        if key is not None:
            assert pem is None or public_key(key, folder) == public_key(pem, folder)
        if pem is not None and folder != "root" and case.prepare is not spoil:
            issuer = "root" if folder in CAS else "master"
            record = f"{issuer}/issued/{folder}-{serial_number(pem):X}.pem"
            assert files.get(record) == pem, f"{folder} is not on record"
    return now


def require_complete(keys: Path) -> Holdings:
    """Require that all is there, that nothing is left over, and that every chain verifies."""
    files, names = contents(keys), {*os.listdir(keys)}
    now = take_holdings(files)
    assert names >= {*CAS, *NODES}
    assert not [path.name for path in keys.rglob("*") if path.name.startswith(".")]
    for name in names:
        above = {"root": [], "master": ["root"]}.get(name, ["master", "root"])
        chain = [files[f"{each}/cert.pem"] for each in (name, *above)]
        assert (
            NODE_FILES - {"key.pem"}
            <= {*os.listdir(keys / name)}
            <= NODE_FILES | {"csr.pem", "issued"}
        )
        if name in CAS or not is_revoked(now, name):  # what is revoked is left alone
            assert files[f"{name}/fullchain.pem"] == b"".join(chain[:-1] or chain), (
                f"{name}/fullchain.pem"
            )
            assert files[f"{name}/ca.pem"] == chain[-1], f"{name}/ca.pem"
    for name in names - {*CAS}:
        assert files[f"{name}/crl.pem"] == files["master/crl.pem"] + files["root/crl.pem"]
        error = verify(
            keys / name,
            *(files[f"{name}/{each}.pem"] for each in ("cert", "fullchain", "ca", "crl")),
        )
        assert error == ("certificate revoked" if is_revoked(now, name) else ""), error
    return now


VERDICTS: dict[tuple[bytes, ...], str] = {}


def verify(folder: Path, *state: bytes) -> str:
    """Have openssl verify a node's certificate by its own folder. Return what is wrong."""
    if state not in VERDICTS:
        said = judge(folder).stderr
        VERDICTS[state] = "".join(re.findall("lookup: (.*)", said)) or said
    return VERDICTS[state]


def is_revoked(stock: Holdings, name: str) -> bool:
    """Return whether master's list has all certificates issued under a name, or none."""
    serials = [
        path[:-4].rpartition("-")[2]
        for path in stock.kept
        if path.startswith(f"master/issued/{name}-")
    ]
    (found,) = {int(serial, 16) in stock.lists["master"][1] for serial in serials}
    return found


def require_next(hold: Hold, folder: Path, case: Errand, before: Holdings) -> None:
    """Require the next run, the same or a plain one, to lose nothing and complete the work."""
    left = require_sound(folder / "keys", before, case)
    if case.arguments:
        copy = folder.with_name(f"{folder.name}-again")
        shutil.copytree(folder, copy)
        again = hold(copy, *case.arguments).go().end()
        # An order that the killed run has carried out is done already, which a warning says.
        done = re.sub(".*: has client already .*\n", "", again.stderr)
        assert (again.returncode, done) == (0, ""), again.stderr
        now = require_complete(copy / "keys")
        require_nothing_lost(left, now, case.changes)
        assert all(now.kept[name] != before.kept[name] for name in case.changes)
        assert is_revoked(now, "client") == ("--revoke" in case.arguments)
    result = hold(folder).go().end()
    now = require_complete(folder / "keys")
    require_nothing_lost(left, now)
    if is_revoked(now, "client"):
        assert "--revoke" in case.arguments
        (line,) = refused(result, "keys/client/cert.pem: ")
        assert "revoked" in line
    else:
        fine(result)


# --- Many folders ----------------------------------------------------------------------------


Prepare = Callable[[str], Path]


@pytest.fixture(scope="session")
def prepared(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepare:
    """Prepare a folder for a case: to copy, not to change."""

    @functools.cache
    def prepare(name: str) -> Path:
        folder = tmp_path_factory.mktemp("prepared") / "folder"
        shutil.copytree(made, folder)
        CASES[name].prepare(folder)
        return folder

    return prepare


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A place for many folders: in memory, where the system has a place for that."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


def each_in_a_copy(
    folder: Path, place: Path, points: Iterable[T], check: Callable[[Path, T], R]
) -> list[R]:
    """Check each point in a copy of a folder of its own, several at a time."""

    def one(numbered: tuple[int, T]) -> R:
        copy = place / str(numbered[0])
        shutil.copytree(folder, copy)
        return check(copy, numbered[1])

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        return list(pool.map(one, enumerate(points)))


CALLS = (  # that write, on any architecture
    "?mkdir,?mkdirat,?open,?openat,?creat,?write,?writev,?pwrite64,?rename,?renameat,?renameat2,?unlink,"
    "?unlinkat,?rmdir,?link,?linkat,?symlink,?symlinkat,?chmod,?fchmod,?fchmodat,?truncate,?ftruncate,?sync"
)


class Call(NamedTuple):
    """A system call: which one of its kind in a run, and what it names under keys/."""

    kind: str
    ordinal: int
    paths: tuple[str, ...]


def strace(held: Held, *options: str) -> tuple[Result, list[Call]]:
    """Let a run go under strace. Return its result, and the calls that write to the folder."""
    log = held.out.with_name(f"{held.out.name}-calls")
    command = ["strace", "-y", "-s", "0", "-o", str(log), "-p", str(held.pid), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        line = process.stderr.readline()
        if " attached" not in line:
            held.kill()
            skip(f"strace can't attach to a process here: {line}")
        result = held.go().end()
        process.wait(DEADLINE)
    counts: Counter[str] = Counter()
    calls = []
    for line in log.read_text().splitlines():
        kind = line.partition("(")[0]
        counts[kind] += 1
        what, _, came = line.rpartition(" = ")
        paths = re.findall(
            '(?<=[/"])(keys(?:/[^>"]*)?)[>"]', re.sub('>, "(?=[^"])', "/", what)
        )
        if kind == "sync" or (
            paths and ("open" not in kind or "O_CREAT" in what) and not came.startswith("-")
        ):
            calls.append(Call(kind, counts[kind], tuple(map(unnumbered, paths))))
    return result, calls


def unnumbered(text: str) -> str:
    """Return a text without the serial numbers of records."""
    return re.sub("-[0-9A-F]{20,40}[.]pem", "-N.pem", text)


def visible(text: str) -> str:
    """Return a text with the names that files have in the end."""
    return re.sub("[.]([^/]+)[.]part", r"\1", unnumbered(text))


Trace = Callable[[str], list[Call]]


@pytest.fixture
def trace(hold: Hold, prepared: Prepare, place: Path) -> Trace:
    """Find a case's calls that write to the folder, and the last, which has all on disk."""
    needs("strace")

    def find(name: str) -> list[Call]:
        folder = place / "traced"
        shutil.copytree(prepared(name), folder)
        result, calls = strace(hold(folder, *CASES[name].arguments), "-e", f"trace={CALLS}")
        fine(result)
        assert calls[-1].kind == "sync"
        return calls

    return find


def inject(held: Held, call: Call, what: str) -> tuple[Result, list[Call]]:
    """Have something happen to a run instead of a call."""
    options = (f"trace={call.kind}", f"inject={call.kind}:{what}:when={call.ordinal}")
    return strace(held, *(part for option in options for part in ("-e", option)))


# --- Killed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SLOWLY)
def test_killed_before_any_call_that_writes_nothing_is_lost(
    name: str, hold: Hold, prepared: Prepare, trace: Trace, place: Path
) -> None:
    case, before = CASES[name], take_holdings(contents(prepared(name) / "keys"))

    def check(folder: Path, call: Call) -> None:
        result, seen = inject(hold(folder, *case.arguments), call, "signal=KILL")
        assert (result.returncode, result.stderr, seen[-1]) == (-signal.SIGKILL, "", call)
        require_next(hold, folder, case, before)

    each_in_a_copy(prepared(name), place, trace(name), check)


@pytest.mark.parametrize("name", SLOWLY)
def test_killed_at_any_moment_nothing_is_lost(
    name: str, hold: Hold, prepared: Prepare, place: Path
) -> None:
    case, before = CASES[name], take_holdings(contents(prepared(name) / "keys"))

    def measure(folder: Path, _: int) -> float:
        held = hold(folder, *case.arguments)
        start = time.monotonic()
        fine(held.go().end())
        return time.monotonic() - start

    whole = max(each_in_a_copy(prepared(name), place / "measured", range(4), measure))

    def check(folder: Path, share: float) -> None:
        for attempt in itertools.count():
            copy = folder / str(attempt)
            shutil.copytree(prepared(name), copy)
            held = hold(copy, *case.arguments).go()
            time.sleep(share * whole * 0.9**attempt)
            held.kill()
            if held.end().returncode == -signal.SIGKILL:  # else it was faster than that
                break
        require_next(hold, copy, case, before)

    # A run reads and computes before it writes, so the square root puts most moments later.
    each_in_a_copy(
        prepared(name), place, [(point / KILLS) ** 0.5 for point in range(KILLS)], check
    )


# --- What cannot be written ------------------------------------------------------------------


ERRORS = {
    "mkdir": "ENOSPC",
    "open": "EROFS",
    "write": "ENOSPC",
    "rename": "EIO",
    "unlink": "EACCES",
    "rmdir": "EACCES",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "step"),
    {"the first run": 4, "a renewal": 2, "a revocation": 1, "what was left": 4}.items(),
)
def test_a_call_that_fails_is_one_line_and_the_next_run_goes_on(
    name: str, step: int, hold: Hold, prepared: Prepare, trace: Trace, place: Path
) -> None:
    case, before = CASES[name], take_holdings(contents(prepared(name) / "keys"))

    def check(folder: Path, call: Call) -> None:
        (error,) = (error for start, error in ERRORS.items() if call.kind.startswith(start))
        reason = os.strerror(getattr(errno, error))
        result, _ = inject(hold(folder, *case.arguments), call, f"error={error}")
        line, *others = map(visible, complaints(result, "error", 1))
        path = visible(call.paths[0])
        # Where a leftover folder can't be cleared, the line names the folder.
        named = [path]
        if call.kind in ("unlinkat", "rmdir"):
            named.append(os.path.dirname(path))
        assert line in [f"{where}: {reason}" for where in named]
        # A leftover that can't be cleared is in its own entry's way, and stops no other one.
        in_the_way = os.strerror(errno.EEXIST)
        assert all("left alone" in other or other.endswith(in_the_way) for other in others), (
            others
        )
        require_next(hold, folder, case, before)

    each_in_a_copy(prepared(name), place, trace(name)[:-1:step], check)


@contextmanager
def disk(keys: Path, name: str, prepared: Prepare) -> Iterator[Callable[[str], None]]:
    """Have the folder of a case on a disk of its own; yield what changes that disk."""

    def mount(*options: str | Path) -> None:
        needs_root()
        result = run("mount", *options, keys)
        if result.returncode:
            skip(f"no disk can be mounted here; strace's errors remain: {result.stderr}")

    keys.mkdir(exist_ok=True)
    mount("-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs")
    try:
        if (prepared(name) / "keys").exists():
            shutil.copytree(prepared(name) / "keys", keys, dirs_exist_ok=True)
        yield lambda options: mount("-o", f"remount,{options}")
    finally:
        run("umount", "--lazy", keys)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rooms"),
    {
        "the first run": range(1, 30, 2),
        "a new node": range(0, 9, 2),
        "a renewal": range(4),
        "a revocation": range(3),
    }.items(),
)
@pytest.mark.parametrize("of", ["size", "nr_inodes"])
def test_a_full_disk_costs_nothing_but_the_run(
    name: str, rooms: range, of: str, hold: Hold, prepared: Prepare, place: Path
) -> None:
    case = CASES[name]

    def check(folder: Path, room: int) -> int:
        keys = folder / "keys"
        with disk(keys, name, prepared) as change:
            before, stat = take_holdings(contents(keys)), os.statvfs(keys)
            pages, inodes = stat.f_blocks - stat.f_bfree, stat.f_files - stat.f_ffree
            left = {"size": (pages + room) * stat.f_frsize, "nr_inodes": inodes + room}
            change(f"{of}={left[of]}")
            result = hold(folder, *case.arguments).go().end()
            if result.returncode:
                for line in complaints(result, "error", 1):
                    assert re.fullmatch(
                        "keys/.+: No space left on device|keys: left alone: .*", line
                    ), line
            else:
                fine(result)
            change("size=16m,nr_inodes=1000")
            require_next(hold, folder, case, before)
            return result.returncode

    statuses = each_in_a_copy(prepared(name), place, rooms, check)
    assert (statuses[0], statuses[-1]) == (1, 0)
    assert statuses == sorted(statuses, reverse=True)


@pytest.mark.parametrize("name", SLOWLY)
def test_a_disk_that_cannot_be_written_is_an_error_and_stays_as_it_is(
    name: str, hold: Hold, prepared: Prepare, place: Path
) -> None:
    folder, case = place / "folder", CASES[name]
    shutil.copytree(prepared(name), folder)
    with disk(folder / "keys", name, prepared) as change:
        change("ro")
        before = tree(folder / "keys")
        for line in complaints(hold(folder, *case.arguments).go().end(), "error", 1):
            assert re.fullmatch("keys/.+: Read-only file system|keys: left alone: .*", line), (
                line
            )
        assert tree(folder / "keys") == before
        change("rw")
        require_next(hold, folder, case, take_holdings(contents(prepared(name) / "keys")))
        change("ro")
        if name != "a revocation":
            fine(hold(folder).go().end())  # with nothing to write, nothing is wrong


# --- Several at once -------------------------------------------------------------------------


@contextmanager
def locked(keys: Path) -> Iterator[None]:
    """Hold the lock on a folder, as a run does."""
    keys.mkdir(0o700, exist_ok=True)
    lock = os.open(keys, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)


def let_go(runs: Sequence[Held]) -> list[Result]:
    """Let runs go together, and return what came of them."""
    return [each.end() for each in [each.go() for each in runs]]


def release(keys: Path, runs: Sequence[Held]) -> None:
    """Let runs go, and give them the folder once all of them wait for it."""
    with locked(keys):
        before = tree(keys)
        for each in runs:
            each.go()
        poll(lambda: all(each.waits() for each in runs))
        assert tree(keys) == before


def require_one_set(folder: Path, results: list[Result]) -> None:
    """Require that one run made everything, and that the others found it and say the same."""
    require_complete(folder / "keys")
    made = [result.stdout.count(" made ") for result in results]
    assert sorted(made) == [0] * (len(results) - 1) + [4]
    assert [result.stdout.count(" kept ") for result in results] == [4 - each for each in made]
    assert len({result.stdout.replace(" made ", " kept ") for result in results}) == 1


@pytest.mark.parametrize("count", [2, 3, 8])
def test_runs_that_begin_together_make_one_set_of_keys(
    count: int, hold: Hold, place: Path
) -> None:
    for turn in range(ROUNDS):
        folder = place / str(turn)
        folder.mkdir()
        configure(folder)
        results = let_go([hold(folder) for _ in range(count)])
        assert [result.returncode for result in results] == [0] * count
        assert {result.stderr for result in results} <= {"", WAITING}
        require_one_set(folder, results)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_runs_that_find_the_folder_taken_say_so_and_wait(
    count: int, hold: Hold, place: Path
) -> None:
    configure(place)
    runs = [hold(place) for _ in range(count)]
    release(place / "keys", runs)
    results = [each.end() for each in runs]
    assert {(result.returncode, result.stderr) for result in results} == {(0, WAITING)}
    require_one_set(place, results)
    fine(hold(place).go().end())  # nobody is there, so it does not wait


def test_changes_by_simultaneous_runs_are_all_kept(
    hold: Hold, prepared: Prepare, place: Path
) -> None:
    commands = [
        ("--renew", "server", "client"),
        (),
        ("--revoke", "client"),
        (),
        ("--renew", "master"),
        (),
    ]
    before = take_holdings(contents(prepared("a revocation") / "keys"))
    renewed = {"server/cert.pem", "master/cert.pem"}

    def check(folder: Path, turn: int) -> None:
        keys = folder / "keys"
        runs = [hold(folder, *command) for command in commands[turn:] + commands[:turn]]
        release(keys, runs)
        for result in [each.end() for each in runs]:
            assert result.stderr.startswith(WAITING)
            own = Result(
                result.args,
                result.returncode,
                result.stdout,
                result.stderr.removeprefix(WAITING),
            )
            if own.returncode and own.args[:1] != ("--revoke",):
                (line,) = refused(own, "keys/client/cert.pem: ")
                assert "revoked" in line
            else:
                fine(own)
        changes = (*renewed, "client/cert.pem", "master/crl.pem")
        require_sound(keys, before, Errand(leave, changes=changes))
        after = require_complete(keys)
        assert is_revoked(after, "client") and not is_revoked(after, "server")
        assert all(after.kept[name] != before.kept[name] for name in renewed)

    each_in_a_copy(prepared("a revocation"), place, range(len(commands)), check)


def test_those_that_wait_for_a_killed_run_take_over_at_once(hold: Hold, place: Path) -> None:
    configure(place)
    read, write = os.pipe()
    os.set_blocking(write, False)
    with suppress(BlockingIOError):
        while os.write(write, bytes(4096)):
            pass
    os.set_blocking(write, True)  # and full: the run stops at the first line that it prints
    command = [sys.executable, str(GENERATE)]
    with subprocess.Popen(command, cwd=place, env=environment(PHRASES), stdout=write) as first:
        try:
            poll((place / "keys/root").exists)
            root = tree(place / "keys/root")
            waiting = [hold(place).go() for _ in range(2)]
            poll(lambda: all(each.waits() for each in waiting))
            assert sorted(os.listdir(place / "keys")) == [
                "master",
                "root",
            ]  # all CAs, before any line
        finally:
            first.kill()
    start = time.monotonic()
    results = [each.end() for each in waiting]
    assert time.monotonic() - start < DEADLINE / 4
    os.close(read)
    os.close(write)
    assert {(result.returncode, result.stderr) for result in results} == {(0, WAITING)}
    assert sorted(result.stdout.count(" made ") for result in results) == [0, 2]
    require_complete(place / "keys")
    assert tree(place / "keys/root")["key.pem"] == root["key.pem"]


def test_many_runs_that_are_killed_one_after_the_other_lose_nothing(
    hold: Hold, place: Path
) -> None:
    for turn in range(ROUNDS):
        folder = place / str(turn)
        folder.mkdir()
        configure(folder)
        runs = [hold(folder) for _ in range(8)]
        release(folder / "keys", runs)
        for each in runs:
            time.sleep(0.01)
            each.kill()
        assert {each.end().returncode for each in runs} <= {0, -signal.SIGKILL}
        require_next(hold, folder, CASES["the first run"], Holdings({}, {}))


# --- The means -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [[], ["-x"], ["-c", "absent.yml"], ["-k", "sros_config.yml"]]
)
def test_a_forked_run_behaves_like_the_command(
    arguments: list[str], hold: Hold, copy: Path
) -> None:
    forked, command = hold(copy, *arguments).go().end(), generate(copy, *arguments)
    for what in ("returncode", "stdout", "stderr"):
        assert getattr(forked, what) == getattr(command, what)


LOSSES: dict[str, Callable[[Path], object]] = {
    "server/key.pem": lambda keys: drop(keys, "server/key.pem"),
    "client/key.pem": lambda keys: shutil.copy(
        keys / "server/key.pem", keys / "client/key.pem"
    ),
    "client/ca.pem": lambda keys: os.truncate(keys / "client/ca.pem", 400),
    "server/crl.pem": lambda keys: (keys / "server/crl.pem").write_bytes(b""),
    "master/issued/": lambda keys: drop(keys, "master/issued"),
    "new appeared before it was whole": lambda keys: shutil.copytree(
        keys / "root/issued", keys / "new"
    ),
    "key.pem is for others": lambda keys: (keys / "root/key.pem").chmod(0o644),
    "master's list is older": lambda keys: put_list(keys, 1),
    "master's list has lost": lambda keys: put_list(keys, 9),
    ".x.part": lambda keys: (keys / ".x.part").mkdir(),
    "master/fullchain.pem": lambda keys: shutil.copy(
        keys / "root/cert.pem", keys / "master/fullchain.pem"
    ),
    "server/ca.pem": lambda keys: shutil.copy(
        keys / "master/cert.pem", keys / "server/ca.pem"
    ),
}


def put_list(keys: Path, count: int) -> None:
    """Put a list of that number in place of master's, with no entry."""
    (keys / "master/crl.pem").write_bytes(make_list(keys / "master", "sros", count))


@pytest.mark.parametrize("loss", LOSSES)
def test_these_tests_notice_a_loss(loss: str, prepared: Prepare, place: Path) -> None:
    keys, case = place / "keys", CASES["a revocation"]
    shutil.copytree(prepared("a revocation") / "keys", keys)
    before = take_holdings(contents(keys))
    require_sound(keys, before, case)
    require_complete(keys)
    LOSSES[loss](keys)
    with pytest.raises(AssertionError, match=re.escape(loss)):
        require_sound(keys, before, case)
        require_complete(keys)
