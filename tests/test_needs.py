"""A test without its program is skipped, and its package named; NO_SKIPS=1 fails it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from needs import programs_of
from running import ROOT, run

LACKING = """\
from needs import needs, needs_those_of

def test_that_needs_two_programs_of_one_package():
    needs("gnutls-cli", "certtool")

def test_that_pastes_a_block():
    needs_those_of("echo hola | /usr/sbin/nginx -p keys/curl")

def test_that_needs_nothing():
    needs("sh")
"""
CLOSING = (
    "Tests were skipped for want of programs. To run them: "
    "apt-get install gnutls-bin nginx-light\n"
)


@pytest.mark.parametrize(
    ("variables", "status", "counted"),
    [({}, 0, "1 passed, 2 skipped"), ({"NO_SKIPS": "1"}, 1, "2 failed, 1 passed")],
    ids=["skips", "no-skips"],
)
def test_what_is_missing_is_named_in_a_closing_line(
    tmp_path: Path, variables: dict[str, str], status: int, counted: str
) -> None:
    (tmp_path / "test_lacking.py").write_text(LACKING)
    (tmp_path / "needs.py").write_text(
        # Nothing is installed there.
        (ROOT / "tests/needs.py").read_text().replace("/usr/sbin:/sbin", "")
    )
    (tmp_path / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    (tmp_path / "empty").mkdir()
    env = {"NO_SKIPS": "", **variables, "PATH": str(tmp_path / "empty"), "PYTHONWARNINGS": ""}
    env |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    result = run(sys.executable, "-m", "pytest", "-q", tmp_path, cwd=tmp_path, env=env)
    assert result.returncode == status, result.stdout
    assert counted in result.stdout
    assert (CLOSING in result.stdout) == (status == 0)


@pytest.mark.parametrize(
    ("commands", "programs"),
    [
        (
            "for node in server client; do openssl x509 -in keys/$node/cert.pem; done",
            ["openssl"],
        ),
        ("for node in server client; do node keys/$node.js; done", ["node"]),
        ("cat keys/node.pem  # what a node trusts", []),
        ("cat keys/node.pem | node -", ["node"]),
        ("node=server; echo ${node}", []),
        ("/usr/sbin/nginx -p keys/curl", ["nginx"]),
    ],
)
def test_a_block_needs_only_the_programs_that_it_calls(
    commands: str, programs: list[str]
) -> None:
    assert programs_of(commands) == programs
