"""The README's commands and transcripts, run as they stand (on a free port instead of 8443)."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import DEADLINE, ROOT, Server, Terminal, environment, run
from programs import TITLE, answers, free_port

README = (ROOT / "README.md").read_text()
SECTIONS = dict(part.split("\n", 1) for part in README.split("\n## ")[1:])
# Sections that are run as a whole, as one reader at one shell would.
STORIES = ("A fleet's year", "When a key lives elsewhere")


PAIR = r"^```sh\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?"  # commands, and what they print


def blocks(text: str) -> list[tuple[str, str]]:
    """The kind and the content of each block in a part of the page."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


# The recipes for other programs have tests of their own.
PARTS = [text for title, text in SECTIONS.items() if title not in (*STORIES, TITLE)]
BLOCKS = [block for text in PARTS for block in blocks(text)]
# What each shell block is known by; those of the tests themselves run in .ci/run.
COMMANDS = (
    "pip install -q -r requirements.txt",
    "./simple_https_server.py",
    "./simple_https_client.py",
    "export SROS_PASSPHRASE",
    "curl",
    "openssl s_client",
    "openssl verify",
    "nginx -p",
    "cfssl serve",
    "cfssl sign",
    "--revoke client3",
    "benchmark.py",
    "pytest",
)


def command(marker: str) -> str:
    """The first shell block that a marker stands in."""
    return next(text for kind, text in BLOCKS if kind == "sh" and marker in text)


def transcript(marker: str) -> str:
    """The text block that follows that shell block."""
    place = BLOCKS.index(("sh", command(marker)))
    kind, text = BLOCKS[place + 1]
    assert kind == "text"
    return text


def shell(folder: Path, text: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a shell block in a folder, with this Python as python3."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
    return run("bash", "-euo", "pipefail", "-c", text, cwd=folder, env={**(env or {}), "PATH": path})


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A fresh copy of the project after the README's first command, and what that printed."""
    folder = tmp_path_factory.mktemp("fresh")
    for name in ("README.md", "requirements.txt", "sros_config.yml"):
        shutil.copy(ROOT / name, folder)
    for script in ROOT.glob("simple_*.py"):
        shutil.copy(script, folder)
    result = shell(folder, command("pip install -q -r requirements.txt"), {"PYTHONWARNINGS": ""})
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


@pytest.fixture
def talking(fresh: tuple[Path, str]) -> Iterator[tuple[Path, int, Terminal]]:
    """The README's server in a terminal of its own, with its pass phrase typed."""
    folder, _ = fresh
    port = free_port()
    server = Terminal(
        "bash",
        "-c",
        f"exec {command('./simple_https_server.py').strip()} --port {port}",
        cwd=folder,
    )
    server.expect("Enter PEM pass phrase:")
    server.type("sros\n")
    server.expect(f"port {port}\n")
    yield folder, port, server
    server.type("\x03")
    assert server.finish() == 130


def test_every_shell_block_is_run_by_a_test() -> None:
    for kind, text in BLOCKS:
        if kind == "sh":
            assert [text for marker in COMMANDS if marker in text], text
    assert len([kind for kind, _ in BLOCKS if kind == "sh"]) == len(COMMANDS)


def test_the_first_command_makes_the_keys_and_prints_the_tree(fresh: tuple[Path, str]) -> None:
    _, printed = fresh
    dates = r"\d{4}-\d\d-\d\d"
    expected = transcript("pip install -q -r requirements.txt")
    assert re.sub(dates, "DATE", printed) == re.sub(dates, "DATE", expected)


def test_two_terminals_show_the_transcripts_to_the_letter(
    talking: tuple[Path, int, Terminal],
) -> None:
    folder, port, server = talking
    client = Terminal(
        "bash",
        "-c",
        f"exec {command('./simple_https_client.py').strip()} --port {port}",
        cwd=folder,
    )
    client.expect("Enter PEM pass phrase:")
    client.type("sros\n")
    assert client.finish() == 0
    assert client.seen == transcript("./simple_https_client.py")
    server.expect("closed\n")
    assert server.seen == transcript("./simple_https_server.py").replace("8443", str(port))


@pytest.mark.parametrize("program", ["curl", "openssl s_client"])
def test_other_clients_get_their_answer(talking: tuple[Path, int, Terminal], program: str) -> None:
    folder, port, _ = talking
    text = f"{command('export SROS_PASSPHRASE')}{command(program)}".replace("8443", str(port))
    result = shell(folder, text)
    assert result.stdout.strip() == transcript(program).strip(), result.stderr
    # The same without a certificate gets nothing.
    bare = re.sub(r" --cert \S+ --key \S+| -cert .* -pass \S+", "", text)
    assert bare != text
    assert "hello" not in shell(folder, bare).stdout


def test_openssl_says_what_the_keys_are_worth(fresh: tuple[Path, str]) -> None:
    folder, _ = fresh
    text = command("openssl verify")
    assert shell(folder, text).stdout == transcript("openssl verify")
    assert shell(folder, text.replace("sslserver", "sslclient")).returncode != 0


def test_nginx_serves_with_the_same_files(fresh: tuple[Path, str]) -> None:
    folder, _ = fresh
    port = free_port()
    (configuration,) = [text for kind, text in BLOCKS if kind == "nginx"]
    (folder / "nginx.conf").write_text(configuration.replace("8443", str(port)))
    path = f"{os.environ['PATH']}:/usr/sbin"
    nginx = subprocess.Popen(
        ["bash", "-euc", f"{command('export SROS_PASSPHRASE')}{command('nginx -p')}"],
        cwd=folder,
        env=environment({"PATH": path}),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        text = f"{command('export SROS_PASSPHRASE')}{command('curl')}".replace("8443", str(port))
        retry = text.replace("curl ", f"curl --retry-connrefused --retry 20 --max-time {DEADLINE} ")
        assert shell(folder, retry).stdout == "hello\n"
        assert (folder / "passphrase").stat().st_mode & 0o777 == 0o600
        bare = re.sub(r" --cert \S+ --key \S+", "", text)
        assert "No required SSL certificate was sent" in shell(folder, bare).stdout
    finally:
        os.killpg(nginx.pid, 15)
        nginx.communicate(timeout=DEADLINE)


def test_masters_key_serves_as_that_of_a_ca_service(fresh: tuple[Path, str], tmp_path: Path) -> None:
    folder, port = tmp_path / "service", free_port()
    shutil.copytree(fresh[0], folder, symlinks=True)
    export = command("export SROS_PASSPHRASE")
    service = subprocess.Popen(
        ["bash", "-euc", f"{export}exec {command('cfssl serve').strip()} -port {port}"],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    server = Server("-k", "keys/server", cwd=folder)
    try:
        server.wait_for(lambda: answers(port))
        text = command("cfssl sign").replace("localhost", f"localhost:{port}")
        exchange = f"./simple_https_client.py --port {server.port} -k client3"
        result = shell(folder, text.replace("./simple_https_client.py -k client3", exchange))
        assert result.stdout == transcript("cfssl sign"), result.stderr
        revoked = shell(folder, f"{export}{command('--revoke client3')}")
        assert plain(revoked.stdout) == plain(transcript("--revoke client3")), revoked.stderr
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(lambda: "hello" not in shell(folder, exchange).stdout)
        assert "certificate revoked" in shell(folder, exchange).stderr
        assert "hello" in shell(folder, f"{export}{exchange.replace('client3', 'keys/client')}").stdout
    finally:
        os.killpg(service.pid, signal.SIGKILL)
        service.wait(DEADLINE)
        server.stop()


def plain(text: str) -> str:
    """Output without what differs from run to run, and without openssl's remarks."""
    text = re.sub(
        r"^([.+*-]+|Certificate request self-signature ok|subject=.*)\n", "", text, flags=re.MULTILINE
    )
    return re.sub(r"port \d+", "port PORT", re.sub(r"\d{4}-\d\d-\d\d", "DATE", text))


@pytest.mark.parametrize("title", STORIES)
def test_a_story_goes_as_it_is_told(fresh: tuple[Path, str], tmp_path: Path, title: str) -> None:
    folder, end, port = tmp_path / "story", "--- end of a block\n", free_port()
    shutil.copytree(fresh[0], folder, symlinks=True)
    told = re.findall(PAIR, SECTIONS[title], re.DOTALL | re.MULTILINE)
    script = "".join(f"{commands}echo '{end.strip()}'\n" for commands, _ in told)
    script = re.sub(r"(simple_https_\w+\.py) -k", rf"\1 --port {port} -k", script)
    result = shell(folder, f"exec 2>&1\n{script}")
    assert result.returncode == 0, result.stdout
    assert plain(result.stdout).split(end) == [*(plain(shown) for _, shown in told), ""]


@pytest.mark.parametrize("script", ["key_generation", "https_server", "https_client"])
def test_the_command_lines_are_those_of_the_help(script: str) -> None:
    (usage,) = re.findall(rf"^simple_{script}\.py +(\[.*)$", README, re.MULTILINE)
    printed = run(sys.executable, ROOT / f"simple_{script}.py", "--help").stdout
    for option, default in re.findall(r"(--?\w+)(?: ([\w./]+)\])?", usage):
        assert re.search(rf"(^|[\s\[]){option}\b", printed), option
        assert default in printed


def test_the_tables_name_every_key_type_and_field_that_the_script_knows(tmp_path: Path) -> None:
    text, section = (ROOT / "sros_config.yml").read_text(), SECTIONS["The configuration"]

    def known(old: str, new: str, pattern: str) -> set[str]:
        (tmp_path / "sros_config.yml").write_text(text.replace(old, new, 1))
        result = run(sys.executable, ROOT / "simple_key_generation.py", cwd=tmp_path)
        return {*re.findall(pattern, result.stderr.partition(" there are ")[2] or result.stderr)}

    def told(row: str) -> set[str]:
        (cells,) = re.findall(rf"^\| `{row}` \|.*\|(.*)\|$", section, re.MULTILINE)
        return {*re.findall(r"`([^`]+)`", cells)}

    key = known("key: ec:prime256v1", "key: x", r"(?:ec|rsa):\w+|ed\d+|ml-dsa-\d+")
    assert key == told("key") and len(key) > 10
    assert known("countryName:", "x:", r"subject\.(\w+)") == told("subject")
    extensions = known("basicConstraints:", "x:", r"extensions\.(\w+)")
    assert extensions == {
        *re.findall(
            r"`(\w+)`",
            "".join(re.findall(r"^\| (`[a-z]\w+`.*?) \|", section.split("| extension |")[1], re.M)),
        )
    }
    fields = known("issuer: root", "x: root", r"\b\w+(?=[,\n])")
    assert fields == {
        name.partition(".")[0]
        for name in re.findall(r"^\| `([\w.]+)` \|", section.split("| extension |")[0], re.M)
    }
