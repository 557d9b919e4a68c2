"""The keys folder: its state, to compare, and its files.

before = tree(folder)
fine(generate(folder, "--renew", "client"))
assert changed(before, tree(folder)) == {"keys/client/cert.pem", ...}

@once: a fixture from what changes the keys
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from certificates import serial

DERIVED = {"fullchain.pem", "ca.pem", "crl.pem"}
NODE_FILES = {"key.pem", "cert.pem", *DERIVED}


class State(NamedTuple):
    """What a file or folder is: equal means untouched."""

    inode: int
    mode: int
    mtime: int
    data: bytes | None


def tree(folder: Path) -> dict[str, State]:
    """Return the state of a folder and of all that is in it, by path."""
    states = {}
    for path in (folder, *folder.rglob("*")):
        stat = path.lstat()
        data = path.read_bytes() if path.is_file() else None
        name = str(path.relative_to(folder))
        states[name] = State(stat.st_ino, stat.st_mode, stat.st_mtime_ns, data)
    return states


def changed(before: dict[str, State], after: dict[str, State]) -> set[str]:
    """Return the paths of the files, not the folders, that came, went or were written."""
    names = {name for name in before | after if before.get(name) != after.get(name)}
    states = before | after
    return {name for name in names if states[name].data is not None}


def drop(folder: Path, *names: str) -> None:
    """Remove files and folders from a folder."""
    for name in names:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def keep_only(folder: Path, *names: str) -> None:
    """Remove all else from a folder."""
    drop(folder, *(path.name for path in folder.iterdir() if path.name not in names))


def record(keys: Path, name: str, ca: str = "master") -> Path:
    """Return where a CA's record of the certificate in force stands."""
    return keys / ca / "issued" / f"{name}-{serial(keys / name):X}.pem"


def seldom(cases: Collection[str], *slow: str) -> list[Any]:
    """Return the cases of a test, of which some are run with the slow tests only."""
    parameters = []
    for case in cases:
        marks = [pytest.mark.slow] if case in slow else []
        parameters.append(pytest.param(case, marks=marks))
    assert set(slow) <= set(cases)
    return parameters


def once(change: Callable[[Path], object]) -> Any:
    """Turn a change to a copy of the shipped keys into a fixture: a copy of what came of it.

    Each process of tests makes the change once. Each test may change its copy.

        @once
        def rootless(folder: Path) -> None:
            drop(folder, "keys/root/key.pem")

        def test_nodes_need_no_root(rootless: Path) -> None: ...
    """
    name = change.__name__
    results: list[Path] = []

    def fixture(made: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        if not results:
            folder = shutil.copytree(made, tmp_path_factory.mktemp(name) / name)
            change(folder)
            results.append(folder)
        return shutil.copytree(results[0], tmp_path / name)

    fixture.__doc__ = change.__doc__
    return pytest.fixture(name=name)(fixture)
