"""ROS 1's master behind nginx: who may call it with a node's folder, and who is refused.

Each test follows the page tests/recipes/ros1.md, with ports from the kernel.
"""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pages
import pytest
from needs import needs_package
from programs import Program, check_row, free_port, paste, running, shell
from running import PHRASES, fine, generate, poll

pytestmark = [pytest.mark.slow, pytest.mark.rosmaster]

ROS_1 = Program("ROS 1", "OpenSSL", "dpkg-query -W python3-rosmaster", True, True, True)
PAGE = "tests/recipes/ros1.md"
NGINX = "tests/recipes/nginx.md"
# What each shell block of the page is known by, in the page's order.
MASTER = "rosmaster --core"
FRONT = "rosmaster.conf -g"
CALL = "call_master.py"
ROBOT = "robot.conf -g"
LIBRARY = "rosgraph"
RELOAD = "-s reload"
COMMANDS = (MASTER, FRONT, CALL, ROBOT, LIBRARY, RELOAD)
RECIPES = {"ROS 1": COMMANDS}
# The page's table: the peer, who reports it, and what that one prints.
REFUSALS = {
    (peer, reporter): line
    for peer, reporter, line in re.findall(
        r"^\| (an? .+) \| (.+) \| `(.*)` \|$", pages.PAGES[PAGE], re.MULTILINE
    )
}
OTHER_PROGRAM = {**PHRASES, "PYTHONWARNINGS": ""}  # its warnings are not ours


Change = Callable[[str], str]
Answer = tuple[int, str, str]  # what became of a program: its status, output and errors


@dataclass(frozen=True)
class Master:
    """A running master, and nginx in front of it."""

    folder: Path
    inner: int  # the port of the master itself
    port: int  # nginx's
    log: Path  # what nginx prints

    def call(self, folder: Path, change: Change = str) -> Answer:
        """Run the page's program in a folder with keys."""
        program = pages.block(PAGE, "xmlrpc", "python")
        program = change(program).replace("8443", str(self.port))
        (folder / "call_master.py").write_text(program)
        result = paste(folder, pages.block(PAGE, CALL), self.port)
        return result.returncode, result.stdout, result.stderr

    def reports(self, line: str) -> None:
        """Wait until nginx has printed a line."""
        poll(lambda: line in self.log.read_text(), self.log.read_text)


@contextmanager
def serving(folder: Path) -> Iterator[Master]:
    """Start the master and nginx by the page's commands, with a folder's server keys."""
    needs_package("python3-rosmaster")
    inner, port = free_port(), free_port()
    block = pages.block(NGINX, "http {", "nginx")
    (folder / "nginx.conf").write_text(block.replace("8443", str(port)))
    command = f"HOME=$PWD {pages.block(PAGE, MASTER)}".replace("11311", str(inner))
    front = pages.block(PAGE, FRONT).replace("11311", str(inner))
    with (
        running(folder, command, inner, env=OTHER_PROGRAM),
        running(folder, front, port) as log,
    ):
        yield Master(folder, inner, port, log)


@pytest.fixture
def master(copy: Path) -> Iterator[Master]:
    """A running master with keys that may be changed."""
    with serving(copy) as running_master:
        yield running_master


def answered(result: Answer) -> bool:
    """Whether the master has answered the page's program as the page shows."""
    return (result[0], result[1]) == (0, pages.transcript(PAGE, CALL))


def refused(result: Answer, error: str) -> bool:
    """Whether the page's program has failed with an error."""
    return result[0] == 1 and result[1] == "" and error in result[2]


def without_certificate(program: str) -> str:
    """The page's program, which then shows no certificate."""
    return re.sub(r"context\.load_cert_chain\(.*?\n\)\n", "", program, flags=re.DOTALL)


def with_old_tls(program: str) -> str:
    """The page's program, which then speaks TLS 1.2."""
    limit = "context.maximum_version = ssl.TLSVersion.TLSv1_2"
    return re.sub(r"context\.minimum_version = .*", limit, program)


def by_another_name(program: str) -> str:
    """The page's program, with a name of this machine that the certificate does not have."""
    return program.replace("https://localhost", "https://127.1")


def test_the_row_of_ros_1_says_what_is_tested_here() -> None:
    check_row(ROS_1)


def test_each_block_of_the_page_is_run_here() -> None:
    commands = [text for kind, text in pages.blocks(pages.PAGES[PAGE]) if kind == "sh"]
    for text, marker in zip(commands, COMMANDS, strict=True):
        assert marker in text and text == pages.block(PAGE, marker)
    assert len(REFUSALS) == 8


def test_the_nginx_block_changes_in_one_line(master: Master) -> None:
    before, after = (
        (master.folder / name).read_text().splitlines()
        for name in ("nginx.conf", "rosmaster.conf")
    )
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    proxy = f"location / {{ proxy_pass http://127.0.0.1:{master.inner}; }}"
    assert [line.strip() for line in changed] == [proxy]


# --- Who is refused -------------------------------------------------------------------------


def test_a_client_of_another_ca_is_refused(master: Master, strangers: Path) -> None:
    theirs = master.folder.parent / "strangers"
    shutil.copytree(strangers, theirs)
    assert refused(master.call(theirs), "400 Bad Request")
    master.reports(REFUSALS["a client of another CA", "nginx"])
    assert answered(master.call(master.folder))


def test_a_revoked_client_is_refused(master: Master) -> None:
    assert answered(master.call(master.folder))
    fine(generate(master.folder, "--revoke", "client"))
    seen = len(master.log.read_text())
    result = paste(master.folder, pages.block(PAGE, RELOAD), master.port)
    assert result.returncode == 0, result.stderr
    poll(
        lambda: master.log.read_text()[seen:].count("exited with code 0") > 0,
        master.log.read_text,
    )
    assert refused(master.call(master.folder), "400 Bad Request")
    master.reports(REFUSALS["a revoked client", "nginx"])


@pytest.mark.parametrize(
    ("peer", "change", "error"),
    [
        ("a client without a certificate", without_certificate, "400 Bad Request"),
        ("a client with TLS 1.2", with_old_tls, "alert protocol version"),
    ],
)
def test_a_client_that_shows_too_little_is_refused(
    master: Master, peer: str, change: Change, error: str
) -> None:
    assert refused(master.call(master.folder, change), error)
    master.reports(REFUSALS[peer, "nginx"])
    assert answered(master.call(master.folder))


def test_a_client_without_tls_is_refused(master: Master) -> None:
    def bare(program: str) -> str:
        return program.replace("https:", "http:").replace(", context=context", "")

    assert refused(master.call(master.folder, bare), "400 Bad Request")
    master.reports(REFUSALS["a client without TLS", "nginx"])
    assert answered(master.call(master.folder))


def test_a_client_refuses_a_master_of_another_ca_or_name(
    made: Path, strangers: Path, tmp_path: Path
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    shutil.copytree(made, ours)
    shutil.copytree(strangers, theirs)
    with serving(theirs) as master:
        error = REFUSALS["a master of another CA", "`call_master.py`"]
        assert refused(master.call(ours), error)
    with serving(ours) as master:
        error = REFUSALS["a master by another name", "`call_master.py`"]
        assert refused(master.call(ours, by_another_name), error)
        assert answered(master.call(ours))


@pytest.mark.parametrize("key", ["rsa:3072", "ec:secp384r1", "ec:secp521r1", "ed25519"])
def test_the_key_of_a_client_may_be_of_any_type(master: Master, key: str) -> None:
    digest = ""
    if key == "ed25519":
        digest = ", digest: ~"
    with (master.folder / "sros_config.yml").open("a") as file:
        file.write(f"\n    robot: {{<<: *client, key: {key}{digest}}}\n")
    fine(generate(master.folder))
    call = master.call(
        master.folder, lambda program: program.replace("keys/client", "keys/robot")
    )
    assert answered(call), call


# --- What the page says besides -------------------------------------------------------------


def reachable(address: str, port: int) -> bool:
    """Whether something listens on an address of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


def test_the_master_is_reachable_past_nginx_without_ros_ip_only(
    master: Master, tmp_path: Path
) -> None:
    # All of 127.0.0.0/8 is this machine, and 127.0.0.2 is not 127.0.0.1.
    assert reachable("127.0.0.1", master.inner) and not reachable("127.0.0.2", master.inner)
    port = free_port()
    command = pages.block(PAGE, MASTER).replace("ROS_IP=127.0.0.1", "HOME=$PWD")
    with running(tmp_path, command.replace("11311", str(port)), port, env=OTHER_PROGRAM):
        assert reachable("127.0.0.2", port)


@contextmanager
def robot(folder: Path, master: Master) -> Iterator[tuple[int, Path]]:
    """Start the page's nginx of a robot; yield its port, and what it prints."""
    needs_package("libnginx-mod-stream")
    port = free_port()
    settings = pages.block(PAGE, "proxy_ssl ", "nginx").replace("11312", str(port))
    (folder / "robot.conf").write_text(settings.replace("8443", str(master.port)))
    with running(folder, pages.block(PAGE, ROBOT), port) as log:
        yield port, log


def test_the_library_of_ros_1_calls_the_master_through_a_robot_s_nginx(
    made: Path, strangers: Path, tmp_path: Path
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    shutil.copytree(made, ours)
    shutil.copytree(strangers, theirs)
    block = pages.block(PAGE, LIBRARY)
    with serving(ours) as master:
        with robot(ours, master) as (port, _):
            result = shell(ours, block.replace("11312", str(port)), OTHER_PROGRAM)
            assert result.stdout == pages.transcript(PAGE, LIBRARY), result.stderr
        with robot(theirs, master) as (port, _):
            result = shell(theirs, block.replace("11312", str(port)), OTHER_PROGRAM)
            assert result.returncode == 1 and result.stdout == ""
            master.reports(REFUSALS["a client of another CA", "nginx"])
    with serving(theirs) as master, robot(ours, master) as (port, log):
        result = shell(ours, block.replace("11312", str(port)), OTHER_PROGRAM)
        assert result.returncode == 1 and result.stdout == ""
        error = REFUSALS["a master of another CA", "the robot's nginx"]
        poll(lambda: error in log.read_text(), log.read_text)
