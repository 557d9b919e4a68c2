"""A dry run prints what the run that follows it prints, and changes nothing: -n, --dry-run."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from configurations import add_client2, add_master2, configure, edit, trust
from folders import drop, keep_only, record, seldom, tree
from needs import needs
from running import (
    DEADLINE,
    GENERATE,
    PHRASES,
    Terminal,
    environment,
    generate,
    generate_here,
    in_days,
    poll,
    run,
)

# --- The same lines, and nothing written -----------------------------------------------------


class Situation(NamedTuple):
    """A folder, and a run on it."""

    prepare: Callable[[Path], object]  # changes a copy of the keys that the shipped YAML makes
    arguments: tuple[str, ...] = ()
    days: int = 0  # from now
    wrong: int = 0  # the exit status


def nothing(folder: Path) -> None:
    """Leave a folder as it is."""


def start_again(folder: Path) -> None:
    """Remove all keys."""
    drop(folder, "keys")


def issue_elsewhere(folder: Path) -> None:
    """Have a new node's issuer elsewhere."""
    add_client2(folder)
    drop(folder, "keys/master/key.pem")


def be_asked(folder: Path) -> None:
    """Have a request to be signed."""
    issue_elsewhere(folder)
    shutil.copy(folder / "keys/root/key.pem", folder / "stick.pem")
    generate_here(folder)
    drop(folder, "keys/client2/key.pem")
    fetch = folder.parent / "fetched"
    shutil.copytree(folder.parent / "origin/keys/master", fetch)
    shutil.copy(fetch / "key.pem", folder / "keys/master/key.pem")


def damage(folder: Path) -> None:
    """Damage the certificate of a CA, so that nothing below can be made."""
    add_client2(folder)
    (folder / "keys/master/cert.pem").write_text("damaged")


def break_root(folder: Path) -> None:
    """Have a root that fails to verify, above a list that can still be extended."""
    (folder / "keys/root/cert.pem").write_text("damaged")


def leave_parts(folder: Path) -> None:
    """Have what a killed run leaves, in a folder with nothing else and elsewhere."""
    keep_only(folder / "keys/server")
    (folder / "keys/server/.cert.pem.part").write_text("half")
    (folder / "keys/master/issued/.server-1.pem.part").write_text("half")
    (folder / "keys/.client2.part").mkdir()


def lose_the_derived(folder: Path) -> None:
    """Have derived files that are lost or out of date."""
    drop(folder, "keys/server/ca.pem", "keys/client/crl.pem", "keys/master/crl.pem")
    (folder / "keys/client/fullchain.pem").write_text("")


def put_a_file(folder: Path) -> None:
    """Have a file in place of the keys folder."""
    drop(folder, "keys")
    (folder / "keys").write_text("")


def link_nowhere(folder: Path) -> None:
    """Have a link to an absent stick in place of the keys folder."""
    drop(folder, "keys")
    (folder / "keys").symlink_to("/media/stick/absent")


def forget_a_record(folder: Path) -> None:
    """Have a node that is not on record."""
    record(folder / "keys", "server").unlink()


def change_the_ca(folder: Path) -> None:
    """Change master's subject, which its children name."""
    edit(folder, lambda keys: keys["master"]["subject"].update(organizationName="Other"))


def revoke_master(folder: Path) -> None:
    """Have a CA that is revoked, and a warning that only those who get its list are given."""
    generate_here(folder, "--revoke", "master")
    (folder / "keys/client/key.pem").chmod(0o644)


def leave_a_request(folder: Path) -> None:
    """Have a request that a renewal left, whose issuer's key was elsewhere."""
    (folder / "keys/master/key.pem").rename(folder / "stick.pem")
    generate_here(folder, "--renew", "server")
    (folder / "stick.pem").rename(folder / "keys/master/key.pem")
    assert (folder / "keys/server/csr.pem").exists()


def add_a_ca(folder: Path) -> None:
    """Add a second CA below root, and nodes below it."""
    edit(folder, add_master2)


def move_a_node(folder: Path) -> None:
    """Have a node that is to move to another CA."""

    def change(keys: dict[str, Any]) -> None:
        add_master2(keys)
        keys["nodes"]["client"]["issuer"] = "master2"

    edit(folder, change)


def add_an_anchor(folder: Path) -> None:
    """Add a second hierarchy, whose root all nodes trust beside the first."""
    edit(folder, trust("root", "root2"))


def forget(folder: Path) -> None:
    """Remove an entry whose folder stays."""
    edit(folder, lambda keys: keys["nodes"].pop("client"))


def lose_the_list(folder: Path) -> None:
    """Lose the list of a CA whose key is elsewhere."""
    add_a_ca(folder)
    generate_here(folder)
    drop(folder, "keys/master2/key.pem", "keys/master2/crl.pem")
    for node in ("server", "client", "server2", "client2"):
        drop(folder, f"keys/{node}/crl.pem")


def many(folder: Path) -> None:
    """Add enough nodes for lines to be counted, one of them with an RSA key."""

    def change(keys: dict[str, Any]) -> None:
        nodes = keys["nodes"]
        for number in range(6):
            nodes[f"client{number}"] = nodes["client"]
        nodes["rsa"] = {**nodes["client"], "key": "rsa:2048"}

    edit(folder, change)


CASES = {
    "all-is-new": Situation(start_again),
    "nothing-to-do": Situation(nothing),
    "a-node-is-new": Situation(add_client2),
    "many-are-new": Situation(many),
    "renew": Situation(nothing, ("--renew", "server", "master")),
    "renew-what-is-due": Situation(nothing, ("--renew",), days=300),
    "renewal-is-refused": Situation(change_the_ca, ("--renew", "master"), wrong=1),
    "all-is-due": Situation(nothing, days=300),
    "all-has-expired": Situation(nothing, days=4000, wrong=1),
    "revoke-a-node": Situation(nothing, ("--revoke", "server")),
    "revoke-a-ca": Situation(nothing, ("--revoke", "master", "--reason", "keyCompromise")),
    "revoke-below-a-broken-root": Situation(break_root, ("--revoke", "server"), wrong=1),
    "revoke-below-a-revoked-ca": Situation(revoke_master, ("--revoke", "server"), wrong=1),
    "request-was-left": Situation(leave_a_request, ("--renew", "server")),
    "a-ca-is-new": Situation(add_a_ca),
    "a-node-moves": Situation(move_a_node, ("--renew", "client")),
    "an-anchor-is-new": Situation(add_an_anchor),
    "an-entry-is-forgotten": Situation(forget),
    "a-list-is-missing": Situation(lose_the_list, wrong=1),
    "request-is-made": Situation(issue_elsewhere, wrong=1),
    "request-is-signed": Situation(be_asked),
    "ca-is-damaged": Situation(damage, wrong=1),
    "parts-are-left": Situation(leave_parts),
    "derived-is-lost": Situation(lose_the_derived),
    "record-is-lost": Situation(forget_a_record),
    "keys-is-a-file": Situation(put_a_file, wrong=1),
    "keys-leads-nowhere": Situation(link_nowhere, wrong=1),
    "name-is-unknown": Situation(nothing, ("--renew", "robot"), wrong=2),
    "quiet": Situation(damage, ("-q",), wrong=1),
}
OFTEN = (
    "all-is-new",
    "renew",
    "revoke-a-ca",
    "revoke-below-a-revoked-ca",
    "a-ca-is-new",
    "parts-are-left",
)


@pytest.mark.parametrize("name", seldom(CASES, *(CASES.keys() - {*OFTEN})))
def test_a_dry_run_has_the_lines_and_the_status_of_the_run_that_follows(
    made: Path, tmp_path: Path, name: str
) -> None:
    case, folder = CASES[name], tmp_path / "case"
    shutil.copytree(made, tmp_path / "origin", symlinks=True)
    shutil.copytree(made, folder, symlinks=True)
    case.prepare(folder)
    before = tree(folder)
    dry = generate_here(folder, "-n", *case.arguments, now=in_days(case.days))
    assert tree(folder) == before
    real = generate_here(folder, *case.arguments, now=in_days(case.days))
    assert (dry.returncode, dry.stdout, dry.stderr) == (case.wrong, real.stdout, real.stderr)
    assert dry.returncode == real.returncode
    assert real.stdout + real.stderr, "a case in which there is nothing to compare"


def test_the_long_name_does_the_same(tmp_path: Path) -> None:
    configure(tmp_path)
    dry = generate(tmp_path, "--dry-run")
    assert os.listdir(tmp_path) == ["sros_config.yml"]
    assert (dry.stdout, dry.stderr) == (generate(tmp_path).stdout, "")


# --- No call writes --------------------------------------------------------------------------

WRITES = (
    "?mkdir,?mkdirat,?open,?openat,?openat2,?creat,?write,?writev,?pwrite64,?rename,?renameat,"
    "?renameat2,?unlink,?unlinkat,?rmdir,?link,?linkat,?symlink,?symlinkat,?chmod,?fchmod,"
    "?fchmodat,?chown,?fchown,?fchownat,?truncate,?ftruncate,?utimensat,?sync,?fsync,?syncfs"
)
READING = re.compile(r"open(at2?)?\(.*O_RDONLY")


def writing_calls(folder: Path, *arguments: str) -> list[str]:
    """Return the system calls of a run that write below its keys folder, or sync the disk."""
    needs("strace")
    log = folder.with_name("calls")
    # -y adds the path of each descriptor. Python then needs no file of its own.
    command = ("strace", "-f", "-y", "-o", log, "-e", f"trace={WRITES}")
    run(*command, sys.executable, "-B", GENERATE, *arguments, cwd=folder, env=PHRASES)
    calls = []
    for line in log.read_text().splitlines():
        call = line.partition(" ")[2].strip()
        if READING.match(call) and "O_CREAT" not in call:
            continue
        if "sync(" in call or re.search(r'["/]keys["/>]', call):
            calls.append(call)
    return calls


@pytest.mark.parametrize(
    "name",
    seldom(
        ("all-is-new", "renew", "revoke-a-node", "parts-are-left"), "renew", "parts-are-left"
    ),
)
def test_no_system_call_of_a_dry_run_writes(copy: Path, name: str) -> None:
    case = CASES[name]
    case.prepare(copy)
    assert writing_calls(copy, "-n", *case.arguments) == []
    assert len(writing_calls(copy, *case.arguments)) > 3


# --- Questions and the lock ------------------------------------------------------------------


def questions(folder: Path, *arguments: str) -> list[str]:
    """Run at a terminal, answer each question for a pass phrase, and return the questions."""
    terminal = Terminal(sys.executable, GENERATE, *arguments, cwd=folder)
    asked = 0
    while terminal.read():
        prompts = re.findall(r"^.*\((\w+)\): ", terminal.seen, re.MULTILINE)
        if len(prompts) > asked:
            asked += 1
            terminal.type(f"{PHRASES[prompts[-1]]}\n")
    assert terminal.finish() == 0, terminal.seen
    return [line for line in terminal.seen.splitlines() if "pass phrase" in line]


@pytest.mark.parametrize(
    ("name", "count"), [("all-is-new", 2), ("a-node-is-new", 1), ("nothing-to-do", 0)]
)
def test_a_dry_run_asks_for_the_same_pass_phrases(copy: Path, name: str, count: int) -> None:
    case = CASES[name]
    case.prepare(copy)
    asked = questions(copy, "-n", *case.arguments)
    assert asked == questions(copy, *case.arguments)
    assert len(asked) == count


@contextmanager
def lock(keys: Path, kind: int) -> Iterator[None]:
    """Hold a lock on the keys folder."""
    descriptor = os.open(keys, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


def test_dry_runs_share_the_lock_and_wait_for_a_run_that_writes(copy: Path) -> None:
    with lock(copy / "keys", fcntl.LOCK_SH):
        assert generate_here(copy, "-n").stderr == ""
    waiting = f"{GENERATE.name}: waiting for another run on keys\n"
    for kind, arguments in ((fcntl.LOCK_EX, ["-n"]), (fcntl.LOCK_SH, [])):
        with (copy / "err").open("w+") as err:
            with lock(copy / "keys", kind):
                process = subprocess.Popen(
                    [sys.executable, GENERATE, "-q", *arguments],
                    cwd=copy,
                    env=environment(PHRASES),
                    stderr=err,
                )
                poll(lambda: (copy / "err").read_text() == waiting, lambda: "no line")
                assert process.poll() is None
            assert process.wait(DEADLINE) == 0
