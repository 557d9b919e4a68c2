"""The recipes for a CA: keys in hardware, new keys, monitoring, renewal at the node."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import pages
import pytest
from certificates import judge
from configurations import add_client2, edit
from folders import drop
from needs import PATH, needs
from programs import answers, follow, free_port, paste
from running import (
    GENERATE,
    PHRASES,
    ROOT,
    Result,
    environment,
    fine,
    generate,
    openssl,
    poll,
    run,
)

pytestmark = pytest.mark.slow

HARDWARE, MONITORING, NEW_KEY, NODE = (
    f"tests/recipes/{name}.md"
    for name in ("pkcs11", "monitoring", "new-key", "renewal-at-the-node")
)
# Each page is told as one session at one shell, and run as that.
TOLD = {path: pages.PAGES[path] for path in (HARDWARE, MONITORING, NEW_KEY, NODE)}


@pytest.fixture
def shop(copy: Path) -> Path:
    """A folder as it is after the README's first command."""
    for script in ROOT.glob("simple_*.py"):
        shutil.copy(script, copy)
    (copy / ".venv").symlink_to(sys.prefix)
    return copy


def block(path: str, marker: str) -> str:
    """Return the one shell block of a page that has a marker."""
    (found,) = [
        text
        for kind, text in pages.blocks(pages.PAGES[path])
        if kind == "sh" and marker in text
    ]
    return found


def pasted(folder: Path, text: str) -> Result:
    """Run a block in a folder with keys."""
    return paste(folder, text, free_port())


@pytest.mark.parametrize("path", [MONITORING, NEW_KEY])
def test_a_recipe_goes_as_it_is_told(shop: Path, path: str) -> None:
    follow(shop, TOLD[path])


# --- Keys in hardware -----------------------------------------------------------------------


def test_the_recipe_for_a_token_goes_as_it_is_told(shop: Path) -> None:
    needs("softhsm2-util", "pkcs11-tool")
    follow(shop, TOLD[HARDWARE])
    for folder in ("hardware", "hardware-rsa", "stick-keys"):
        assert not (shop / folder / "root/key.pem").exists()
        for node in ("server", "client"):
            assert judge(shop / folder / node).returncode == 0
    everything = [path.read_bytes() for path in shop.rglob("*.pem") if path.is_file()]
    assert not [data for data in everything if b"123456" in data]
    # A token signs what a later run needs, too: here a list, and a new certificate.
    env = {**PHRASES, "PIN": "123456", "SOFTHSM2_CONF": str(shop / "softhsm2.conf")}
    env["module"] = "/usr/lib/softhsm/libsofthsm2.so"
    result = generate(shop, "-k", "hardware", "--renew", "root", "master", env=env)
    assert result.returncode == 0, result.stderr
    assert judge(shop / "hardware/server").returncode == 0
    result = generate(shop, "-k", "hardware", "--revoke", "master", env=env)
    assert result.returncode == 0, result.stderr
    assert "certificate revoked" in judge(shop / "hardware/server").stderr


def test_no_process_of_the_recipe_for_a_token_has_a_pin_among_its_arguments() -> None:
    text = pages.PAGES[HARDWARE]
    assert "env:PIN" in text and "env:SO_PIN" in text
    for option in re.findall(r"--(?:so-|new-)?pin (\S+)", text):
        assert option.startswith("env:")


# --- Monitoring -----------------------------------------------------------------------------


def test_the_page_names_every_field_and_every_state(copy: Path) -> None:
    needs("jq")
    (first, *_) = generate(copy, "--json").stdout.splitlines()
    rows = re.findall(r"^\| (`.*?) \|", pages.PAGES[MONITORING], re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(rows)) == list(json.loads(first))
    (states,) = re.findall(r"^\| `state` \| (.*) \|$", pages.PAGES[MONITORING], re.MULTILINE)
    text = GENERATE.read_text()
    (known,) = re.findall(r"^    state: str  # (.*), or (.*)$", text, re.MULTILINE)
    assert re.findall(r"`([\w ]+)`", states) == [*known[0].split(", "), known[1]]


def test_what_ends_soon_is_told_of_certificates_and_lists(shop: Path) -> None:
    soon = block(MONITORING, "$soon")
    assert pasted(shop, soon).stdout == ""
    edit(shop, lambda keys: keys["master"]["validity"].update(nextUpdate="29d"))
    drop(shop, "keys")
    fine(generate(shop))
    add_client2(shop)
    result = pasted(shop, soon)
    assert re.fullmatch(r"master: list ends on \d{4}-\d\d-\d\d\n", result.stdout)


def test_the_nightly_run_passes_a_failure_on_and_does_not_reload(shop: Path) -> None:
    script = block(MONITORING, "cat >nightly").partition("./simple_https_server")[0]
    assert pasted(shop, script).returncode == 0
    # Started by nohup, these tests ignore SIGHUP, and so would what they start.
    server = subprocess.Popen(["env", "--default-signal=HUP", "sleep", "1000"])
    try:
        (shop / "server.pid").write_text(str(server.pid))
        (shop / "keys/client/cert.pem").write_text("damaged")
        result = pasted(shop, "./nightly")
        assert (result.returncode, result.stdout) == (1, "")
        assert "keys/client/cert.pem: is damaged" in result.stderr
        assert server.poll() is None
        drop(shop, "keys/server/ca.pem")
        assert pasted(shop, "./nightly").stdout == "reloaded\n"
        server.wait(10)
    finally:
        server.kill()
        server.wait()


def seconds(text: str) -> int:
    """Return a time as openssl prints it in seconds since 1970."""
    time = datetime.strptime(text.partition("=")[2].strip(), "%b %d %H:%M:%S %Y GMT")
    return int(time.replace(tzinfo=timezone.utc).timestamp())


def late(node: dict[str, Any]) -> dict[str, Any]:
    """Return a node like another, whose certificate is due on its first day."""
    return {**node, "validity": {"notBefore": "-20d", "notAfter": "5d"}}


def test_the_text_file_for_prometheus_says_what_openssl_says(shop: Path) -> None:
    edit(shop, lambda keys: keys["nodes"].update(late=late(keys["nodes"]["client"])))
    fine(generate(shop))
    (shop / "keys/client/key.pem").write_text("damaged")
    pasted(shop, block(MONITORING, "cat >metrics"))
    text = (shop / "textfile/sros.prom").read_text()
    # The text format: https://prometheus.io/docs/instrumenting/exposition_formats/
    line = r'[a-z_]+(\{name="[\w.-]+"\})? \d+|# TYPE [a-z_]+ gauge'
    assert all(re.fullmatch(line, each) for each in text.splitlines())
    values = dict(each.rsplit(" ", 1) for each in text.splitlines() if each[0] != "#")
    assert abs(int(values["sros_metrics_written_seconds"]) - time.time()) < 100
    for name in ("root", "master", "server", "client", "late"):
        ends = openssl("x509", "-in", shop / f"keys/{name}/cert.pem", "-noout", "-enddate")
        assert values[f'sros_certificate_end_seconds{{name="{name}"}}'] == str(seconds(ends))
        assert values[f'sros_errors{{name="{name}"}}'] == str(int(name == "client"))
        assert values[f'sros_certificate_due{{name="{name}"}}'] == str(int(name == "late"))
    for name in ("root", "master"):
        ends = openssl("crl", "-in", shop / f"keys/{name}/crl.pem", "-noout", "-nextupdate")
        assert values[f'sros_list_end_seconds{{name="{name}"}}'] == str(seconds(ends))
    assert len(values) == 18
    assert os.listdir(shop / "textfile") == ["sros.prom"]


# --- Renewal at the node --------------------------------------------------------------------


class Elsewhere(NamedTuple):
    """Another machine, which is an sshd on this one."""

    home: Path  # of its user
    config: Path  # by which ssh knows it


SSHD = """Port {port}
ListenAddress 127.0.0.1
HostKey {home}/host
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
AuthorizedKeysFile {home}/.ssh/authorized_keys
"""
SSH = """Host ca
  HostName 127.0.0.1
  Port {port}
  User {user}
  IdentityFile {folder}/server-ssh
  IdentitiesOnly yes
  StrictHostKeyChecking accept-new
  UserKnownHostsFile {home}/known
  LogLevel ERROR
"""


@pytest.fixture
def elsewhere(shop: Path, tmp_path: Path) -> Iterator[Elsewhere]:
    """Run an sshd for the user that runs the tests, on a port of the loopback interface."""
    needs("sshd", "ssh", "ssh-keygen", "rsync", "rrsync")
    home, port = tmp_path / "home", free_port()
    home.mkdir()
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / "host")
    names = {"home": home, "port": port, "folder": shop, "user": getpass.getuser()}
    (home / "sshd_config").write_text(SSHD.format(**names))
    (home / "ssh_config").write_text(SSH.format(**names))
    if os.geteuid() == 0:
        # Debian's sshd wants it, when root runs it.
        Path("/run/sshd").mkdir(exist_ok=True)
    program = shutil.which("sshd", path=PATH)
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            [str(program), "-D", "-e", "-f", str(home / "sshd_config")],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stderr=log,
        )
    try:
        poll(lambda: answers(port), (home / "log").read_text)
        yield Elsewhere(home, home / "ssh_config")
    finally:
        process.kill()
        process.wait()


def test_a_node_fetches_its_own_folder_and_nothing_else(
    shop: Path, elsewhere: Elsewhere
) -> None:
    ssh = f"ssh -F {elsewhere.config}"
    env = {"HOME": str(elsewhere.home), "RSYNC_RSH": ssh}
    follow(shop, TOLD[NODE], env)
    robot, own = shop / "robot", shop / "keys/server"
    assert {path.name: path.read_bytes() for path in robot.iterdir()} == {
        path.name: path.read_bytes() for path in own.iterdir()
    }
    assert (robot / "key.pem").stat().st_mode & 0o777 == 0o600
    (line,) = (elsewhere.home / ".ssh/authorized_keys").read_text().splitlines()
    assert line.startswith('restrict,command="rrsync -ro ')

    # What the key does not open, beside what it does.
    before = own.stat().st_mtime_ns
    for command in (
        f"{ssh} ca cat {shop}/keys/master/key.pem",
        f"rsync ca:{shop}/keys/master/key.pem stolen.pem",
        "rsync robot/ca.pem ca:",
    ):
        result = run("bash", "-c", command, cwd=shop, env=env)
        assert (result.returncode != 0, result.stdout) == (True, ""), command
    assert (own.stat().st_mtime_ns, (shop / "stolen.pem").exists()) == (before, False)
    assert run("rsync", "ca:key.pem", "own.pem", cwd=shop, env=env).returncode == 0
    assert (shop / "own.pem").read_bytes() == (own / "key.pem").read_bytes()
