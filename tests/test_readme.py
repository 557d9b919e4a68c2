"""The commands and transcripts of the pages, run as they stand (but on a free port)."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pages
import programs
import pytest
import test_fastdds
import test_languages
import test_programs
import test_recipes
import test_robots
import test_ros1
import test_zenoh
from exchanges import Server
from folders import seldom
from needs import PACKAGES, needs, needs_mldsa
from programs import answers, follow, free_port, plain, running, shell
from running import DEADLINE, PHRASES, ROOT, Terminal, environment, generate_here, openssl, run

README = pages.README
SECTIONS = pages.sections(README)
CURL, NGINX, OPENSSL = (f"tests/recipes/{name}.md" for name in ("curl", "nginx", "openssl"))
SERVICE = "tests/stories/outgrowing-one-machine.md"
DECADE = "tests/stories/a-fleets-decade.md"
YEAR = "tests/stories/a-fleets-year.md"
# Told as one session at one shell, and run as that.
STORIES = {
    "the README's Day to day": SECTIONS["Day to day"],
    **{
        path: pages.PAGES[path]
        for path in pages.PATHS
        if path.startswith("tests/stories/") and path != SERVICE
    },
}
COMPARISON = "tests/comparison.md"
SHA256 = r"\b[0-9a-f]{64}\b"
MOST_WORDS = 3500  # of the README, as wc counts them

# What each shell block is known by; those of the tests themselves run in .ci/run.
COMMANDS: dict[str, tuple[str, ...]] = {
    README: (
        "pip install -q -r requirements.txt",
        "./simple_https_server.py",
        "./simple_https_client.py",
        "openssl verify",
        "pip install -q -r tests/requirements.txt",
        "apt-get install -y openssl",
        "apt-get install -y apache2-utils",
    ),
    "tests/speed.md": ("benchmark.py",),
    SERVICE: ("mkdir keys/service", "cfssl serve", "cfssl sign", "--revoke client3"),
    CURL: ("curl --silent",),
    NGINX: ("-c nginx.conf",),
    OPENSSL: ("openssl s_client",),
}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A fresh copy of the project after the README's first command, and what that printed."""
    folder = tmp_path_factory.mktemp("fresh")
    for name in ("README.md", "requirements.txt", "sros_config.yml"):
        shutil.copy(ROOT / name, folder)
    for script in ROOT.glob("simple_*.py"):
        shutil.copy(script, folder)
    result = shell(
        folder,
        pages.block(README, "pip install -q -r requirements.txt"),
        {"PYTHONWARNINGS": ""},
    )
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
        f"exec {pages.block(README, './simple_https_server.py').strip()} --port {port}",
        cwd=folder,
    )
    server.expect("Enter PEM pass phrase:")
    server.type("sros\n")
    server.expect(f"port {port}\n")
    yield folder, port, server
    server.type("\x03")
    assert server.finish() == 130


def markers_of(path: str) -> list[str]:
    """What the tests know of a page's shell blocks, here and in other files."""
    markers = list(COMMANDS.get(path, ()))
    modules = (test_programs, test_languages, test_robots, test_zenoh, test_fastdds, test_ros1)
    for module in modules:
        for name, known in module.RECIPES.items():
            if programs.row(name)[0] == path:
                markers += known
    return markers


@pytest.mark.parametrize("path", pages.PATHS)
def test_every_shell_block_of_a_page_is_run_by_a_test(path: str) -> None:
    told = "".join([*STORIES.values(), *test_recipes.TOLD.values()])
    found = [
        text
        for kind, text in pages.blocks(pages.PAGES[path])
        if kind == "sh" and text not in told
    ]
    markers = markers_of(path)
    for text in found:
        assert [marker for marker in markers if marker in text], f"no test runs:\n{text}"
    for marker in markers:
        assert [text for text in found if marker in text], f"no block has {marker}"


def test_a_page_is_where_the_readme_links_it_and_its_own_links_lead_somewhere() -> None:
    for path in pages.PATHS:
        for target, anchor in re.findall(
            r"\]\((?!https:)([^)#]*)(?:#([^)]*))?\)", pages.PAGES[path]
        ):
            file = (ROOT / path).parent / target if target else ROOT / path
            assert file.is_file(), f"{path} links {target}"
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            names = [
                re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles
            ]
            assert not anchor or anchor in names, f"{path} links {target}#{anchor}"
    linked = re.findall(r"\]\(([^)#]*)", pages.PAGES[README])
    assert {*pages.PATHS} - {README} <= {*linked}


def test_the_readme_is_short() -> None:
    assert len(pages.PAGES[README].split()) <= MOST_WORDS


def test_the_refusals_that_people_meet_are_lines_of_the_atlas() -> None:
    lines = re.findall(r"^\| `([^`]*)` \|", SECTIONS["When a peer is refused"], re.MULTILINE)
    assert len(lines) == 6
    for line in lines:
        assert f"`…: {line}" in pages.PAGES["tests/refusals.md"]


def test_the_first_command_makes_the_keys_and_prints_the_tree(fresh: tuple[Path, str]) -> None:
    _, printed = fresh
    assert without_dates(printed) == without_dates(
        pages.transcript(README, "pip install -q -r requirements.txt")
    )


def without_dates(text: str) -> str:
    """The lines of a run, but for their dates and the SHA-256 of keys."""
    return re.sub(SHA256, "SHA-256", re.sub(r"\d{4}-\d\d-\d\d", "DATE", text))


@pytest.mark.slow
@pytest.mark.rustls
def test_uv_makes_the_keys_without_an_environment(tmp_path: Path) -> None:
    (text,) = re.findall(r"`(uv run [^`]+)`", SECTIONS["Make the keys"])
    for name in ("requirements.txt", "sros_config.yml", "simple_key_generation.py"):
        shutil.copy(ROOT / name, tmp_path)
    phrases = {"SROS_ROOT_PASSPHRASE": "root", "SROS_PASSPHRASE": "sros", "PYTHONWARNINGS": ""}
    result = shell(tmp_path, text, phrases)
    assert result.returncode == 0, result.stderr
    assert without_dates(result.stdout) == without_dates(
        pages.transcript(README, "pip install -q -r requirements.txt")
    )


def test_the_page_installs_every_program_that_a_test_can_lack() -> None:
    installed = re.findall(r"^apt-get install -y (.*)$", SECTIONS["Tests"], re.MULTILINE)
    named = {name for line in installed for name in line.split()}
    assert {*PACKAGES.values()} <= named


def test_two_terminals_show_the_transcripts_to_the_letter(
    talking: tuple[Path, int, Terminal],
) -> None:
    folder, port, server = talking
    client = Terminal(
        "bash",
        "-c",
        f"exec {pages.block(README, './simple_https_client.py').strip()} --port {port}",
        cwd=folder,
    )
    client.expect("Enter PEM pass phrase:")
    client.type("sros\n")
    assert client.finish() == 0
    assert client.seen == pages.transcript(README, "./simple_https_client.py")
    server.expect("closed\n")
    assert server.seen == pages.transcript(README, "./simple_https_server.py").replace(
        "8443", str(port)
    )


@pytest.mark.parametrize("page", [CURL, OPENSSL])
def test_other_clients_get_their_answer(
    talking: tuple[Path, int, Terminal], page: str
) -> None:
    folder, port, _ = talking
    (marker,) = COMMANDS[page]
    text = pages.block(page, marker).replace("8443", str(port))
    result = shell(folder, text, PHRASES)
    assert result.stdout.strip() == pages.transcript(page, marker).strip(), result.stderr
    # The same without a certificate gets nothing.
    bare = re.sub(r" --cert \S+ --key \S+| -cert .* -pass \S+", "", text)
    assert bare != text
    assert "hello" not in shell(folder, bare, PHRASES).stdout


def test_openssl_verifies_the_keys_as_the_readme_shows(fresh: tuple[Path, str]) -> None:
    folder, _ = fresh
    text = pages.block(README, "openssl verify")
    assert shell(folder, text).stdout == pages.transcript(README, "openssl verify")
    assert shell(folder, text.replace("sslserver", "sslclient")).returncode != 0


def test_nginx_serves_with_the_same_files(fresh: tuple[Path, str]) -> None:
    folder, _ = fresh
    port = free_port()
    configuration = pages.block(NGINX, "http {", "nginx")
    (folder / "nginx.conf").write_text(configuration.replace("8443", str(port)))
    with running(folder, pages.block(NGINX, "-c nginx.conf"), port):
        text = pages.block(CURL, "curl --silent").replace("8443", str(port))
        assert shell(folder, text, PHRASES).stdout == "hello\n"
        assert (folder / "passphrase").stat().st_mode & 0o777 == 0o600
        bare = re.sub(r" --cert \S+ --key \S+", "", text)
        assert "No required SSL certificate was sent" in shell(folder, bare, PHRASES).stdout


def test_a_service_gets_a_ca_of_its_own_by_request(
    fresh: tuple[Path, str], tmp_path: Path
) -> None:
    folder = tmp_path / "service"
    shutil.copytree(fresh[0], folder, symlinks=True)
    configuration = folder / "sros_config.yml"
    text = configuration.read_text()
    entry = pages.block(SERVICE, "service:", "yaml")
    command = pages.block(SERVICE, "mkdir keys/service")
    shown = pages.transcript(SERVICE, "mkdir keys/service")
    assert shell(folder, command, PHRASES).returncode != 0  # without the entry
    shutil.rmtree(folder / "keys/service")
    configuration.write_text(text.replace("  nodes:\n", f"{entry}\n  nodes:\n", 1))
    result = shell(folder, command, PHRASES)
    assert without_dates(result.stdout) == without_dates(shown), result.stderr
    of_the_sender, of_the_run = re.findall(SHA256, result.stdout)
    assert of_the_sender == of_the_run
    verify = "openssl verify -x509_strict -CAfile keys/root/cert.pem keys/service/cert.pem"
    assert shell(folder, verify).stdout == "keys/service/cert.pem: OK\n"
    assert (folder / "service-key.pem").stat().st_mode & 0o077 == 0


def test_masters_key_serves_as_that_of_a_ca_service(
    fresh: tuple[Path, str], tmp_path: Path
) -> None:
    needs("cfssl", "cfssljson")
    folder, port = tmp_path / "service", free_port()
    shutil.copytree(fresh[0], folder, symlinks=True)
    service = subprocess.Popen(
        ["bash", "-euc", f"exec {pages.block(SERVICE, 'cfssl serve').strip()} -port {port}"],
        cwd=folder,
        env=environment(PHRASES),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    server = Server("-k", "keys/server", cwd=folder)
    try:
        server.wait_for(lambda: answers(port))
        text = pages.block(SERVICE, "cfssl sign").replace("localhost", f"localhost:{port}")
        exchange = f"./simple_https_client.py --port {server.port} -k client3"
        result = shell(folder, text.replace("./simple_https_client.py -k client3", exchange))
        assert result.stdout == pages.transcript(SERVICE, "cfssl sign"), result.stderr
        revoked = shell(folder, pages.block(SERVICE, "--revoke client3"), PHRASES)
        assert plain(revoked.stdout) == plain(pages.transcript(SERVICE, "--revoke client3")), (
            revoked.stderr
        )
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(lambda: "hello" not in shell(folder, exchange).stdout)
        assert "certificate revoked" in shell(folder, exchange).stderr
        assert (
            "hello"
            in shell(folder, exchange.replace("client3", "keys/client"), PHRASES).stdout
        )
    finally:
        os.killpg(service.pid, signal.SIGKILL)
        service.wait(DEADLINE)
        server.stop()


@pytest.mark.parametrize("title", seldom(STORIES, DECADE))
def test_a_story_goes_as_it_is_told(
    fresh: tuple[Path, str], tmp_path: Path, title: str
) -> None:
    folder = tmp_path / "story"
    shutil.copytree(fresh[0], folder, symlinks=True)
    follow(folder, STORIES[title])


@pytest.mark.slow
def test_stories_told_in_one_folder_keep_each_others_keys(
    fresh: tuple[Path, str], tmp_path: Path
) -> None:
    folder = tmp_path / "stories"
    shutil.copytree(fresh[0], folder, symlinks=True)
    for title in ("the README's Day to day", YEAR, DECADE):
        follow(folder, STORIES[title])
    for key, certificate in (
        ("stick", "keys/root"),
        ("fleet-stick", "fleet/root"),
        ("decade/root2", "decade/root2"),
    ):
        words = ("-in", folder / key / "key.pem", "-passin", "pass:root", "-pubout")
        public = openssl("x509", "-in", folder / certificate / "cert.pem", "-noout", "-pubkey")
        assert openssl("pkey", *words) == public


def folders_made(text: str) -> set[str]:
    """Return the folders that a page's commands make, but for those in a folder of keys."""
    commands = "".join(content for kind, content in pages.blocks(text) if kind == "sh")
    made = re.findall(r"\bmkdir (?:-m \d+ |-p )*([\w./ -]+?)(?= &&|$)", commands, re.MULTILINE)
    return {name for names in made for name in names.split() if not name.startswith("keys/")}


def test_no_two_pages_make_the_same_folder() -> None:
    pages_of: dict[str, list[str]] = {}
    for path, text in pages.PAGES.items():
        for name in folders_made(text):
            pages_of.setdefault(name, []).append(path)
    assert pages_of["stick"] == [README] and pages_of["fleet-stick"] == [YEAR]
    assert [paths for paths in pages_of.values() if len(paths) > 1] == []


def test_the_comparison_counts_the_programs_of_the_readme() -> None:
    rows = re.findall(r"^\| \[", SECTIONS["Other programs"], re.MULTILINE)
    (count,) = re.findall(r"recipes for (\d+) programs", pages.PAGES[COMPARISON])
    assert len(rows) == int(count)


def test_every_test_module_has_a_theme() -> None:
    named = re.findall(
        r"`(test_\w+\.py)`", pages.PAGES["tests/changing.md"].split("| theme")[1]
    )
    assert sorted(named) == sorted(path.name for path in ROOT.glob("tests/test_*.py"))


def test_the_decade_leads_to_post_quantum_cas_in_the_same_way(
    fresh: tuple[Path, str], tmp_path: Path
) -> None:
    needs_mldsa()
    (new,) = re.findall(r"`(new_key='key: ml-dsa-65[^`]*)`", STORIES[DECADE])
    story, count = re.subn("^new_key=.*", lambda _: new, STORIES[DECADE], flags=re.MULTILINE)
    assert count == 1
    folder = tmp_path / "story"
    shutil.copytree(fresh[0], folder, symlinks=True)
    follow(folder, story.replace("ec:secp384r1 ", "ml-dsa-65    "))


@pytest.mark.parametrize("script", ["key_generation", "https_server", "https_client"])
def test_the_command_lines_are_those_of_the_help(script: str) -> None:
    (usage,) = re.findall(
        rf"^simple_{script}\.py +(\[.*)$", SECTIONS["Command lines"], re.MULTILINE
    )
    printed = run(sys.executable, ROOT / f"simple_{script}.py", "--help").stdout
    for option, default in re.findall(r"(--?\w+)(?: ([\w./]+)\])?", usage):
        assert re.search(rf"(^|[\s\[]){option}\b", printed), option
        assert default in printed


def test_the_tables_name_every_key_type_and_field_that_the_script_knows(
    tmp_path: Path,
) -> None:
    text, section = (ROOT / "sros_config.yml").read_text(), SECTIONS["The configuration"]

    def known(old: str, new: str, pattern: str) -> set[str]:
        (tmp_path / "sros_config.yml").write_text(text.replace(old, new, 1))
        said = generate_here(tmp_path).stderr
        return {*re.findall(pattern, said.partition(" the known ones are ")[2] or said)}

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
            "".join(
                re.findall(r"^\| (`[a-z]\w+`.*?) \|", section.split("| extension |")[1], re.M)
            ),
        )
    }
    fields = known("issuer: root", "x: root", r"\b\w+(?=[,\n])")
    assert fields == {
        name.partition(".")[0]
        for name in re.findall(r"^\| `([\w.]+)` \|", section.split("| extension |")[0], re.M)
    }
