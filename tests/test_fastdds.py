"""Fast DDS with the README's hierarchy: a talker, a listener, and those that they refuse.

Each test follows the page tests/recipes/ros2-fastdds.md, whose program is compiled once. Two
participants run in a domain of their own.
"""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path

import pages
import pytest
from needs import needs, needs_package, skip
from programs import Program, check_row, free_port, run_block, running, shell
from running import PHRASES, ROOT, fine, generate, openssl, poll, run
from test_robots import (
    Intrusion,
    alien,
    compile_trusting,
    ended,
    granted_by_itself,
    kept,
    not_granted,
    prepare,
    printed,
    refuse,
    revoked,
    sign,
    validity,
    wait_for,
    write_grant,
)

pytestmark = [pytest.mark.slow, pytest.mark.fastdds]

FAST_DDS = Program("Fast DDS", "OpenSSL", "dpkg-query -W libfastrtps-dev", True, True, True)
PAGE = "tests/recipes/ros2-fastdds.md"
FILES = ROOT / "tests/recipes/ros2-fastdds"
GOVERNANCE = ROOT / "tests/recipes/ros2-dds/governance.xml"
# What each shell block of the page is known by, in the page's order.
MAKE_KEYS = "cp tests/recipes"
MAKE_ENCLAVES = "bash enclaves.sh"
COMPILE = "g++"
SETTINGS = "FASTRTPS_DEFAULT_PROFILES_FILE"
TALK = "chatter talk"
LISTEN = "chatter listen"
RENEW = "--renew\n"
COMMANDS = (MAKE_KEYS, MAKE_ENCLAVES, COMPILE, SETTINGS, TALK, LISTEN, RENEW)
RECIPES = {"Fast DDS": COMMANDS}
# The page's table of who is refused: the participant, who reports it, and what it prints.
REFUSALS = re.findall(
    r"^\| (.+) \| (the other side|the participant) \| `(.*)` \|$",
    pages.PAGES[PAGE],
    re.MULTILINE,
)
NOT_VERIFIED = "(unable to get local issuer certificate) -> Function verify_certificate"
NO_PARTICIPANT = "[RTPS_PARTICIPANT Error] Cannot create participant"
# Nodes beside the page's two.
MORE = """
    camera: *client
    thief: *client
    edward: {<<: *client, key: ed25519, digest: ~}
"""
# A participant that listens with Fast DDS's own TLS, as strict as that gets.
TLS = """\
<dds xmlns="http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles"><profiles>
  <transport_descriptors><transport_descriptor>
    <transport_id>tls</transport_id>
    <type>TCPv4</type>
    <listening_ports><port>8443</port></listening_ports>
    <tls>
      <password>sros</password>
      <private_key_file>keys/server/key.pem</private_key_file>
      <cert_chain_file>keys/server/fullchain.pem</cert_chain_file>
      <verify_file>keys/server/ca.pem</verify_file>
      <verify_mode>
        <verify>VERIFY_PEER</verify>
        <verify>VERIFY_FAIL_IF_NO_PEER_CERT</verify>
      </verify_mode>
    </tls>
  </transport_descriptor></transport_descriptors>
  <participant profile_name="enclave"><rtps>
    <useBuiltinTransports>false</useBuiltinTransports>
    <userTransports><transport_id>tls</transport_id></userTransports>
  </rtps></participant>
</profiles></dds>
"""

# Lets the CA of the nodes sign documents.
SIGNS_DOCUMENTS = "keyUsage: critical, digitalSignature, keyCertSign"

Change = Callable[[str], str]


def test_the_row_of_fast_dds_says_what_is_tested_here() -> None:
    check_row(FAST_DDS)


# --- What the tests start from --------------------------------------------------------------


@pytest.fixture(scope="session")
def chatter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's program, compiled by the page's command."""
    needs("g++")
    needs_package("libfastrtps-dev")
    if not Path("/usr/include/fastrtps/fastrtps_all.h").exists():
        skip("without Fast DDS 2: its release 3 has another programming interface")
    folder = tmp_path_factory.mktemp("chatter")
    shutil.copy(FILES / "chatter.cpp", folder)
    run_block(folder, pages.block(PAGE, COMPILE))
    return folder / "chatter"


@pytest.fixture(scope="session")
def trusting(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a command starts with to run without checks of its own documents."""
    return compile_trusting(tmp_path_factory.mktemp("trusting"))


def follow(
    folder: Path, made: Path | None, configuration: Change = str, **files: Change
) -> Path:
    """Follow the page in a folder as far as the enclaves, with keys made before or new ones.

    sros_config.yml and the page's files are changed if need be. A file is named without its
    suffix.
    """
    prepare(folder)
    text = (ROOT / "sros_config.yml").read_text()
    (folder / "sros_config.yml").write_text(configuration(text))
    if made is not None:
        shutil.copytree(made / "keys", folder / "keys")
    copied = folder / "tests/recipes/ros2-fastdds"
    shutil.copytree(FILES, copied)
    (folder / "tests/recipes/ros2-dds").mkdir()
    shutil.copy(GOVERNANCE, folder / "tests/recipes/ros2-dds")
    for name, change in files.items():
        (path,) = copied.glob(f"{name}.*")
        text = path.read_text()
        assert change(text) != text
        path.write_text(change(text))
    run_block(folder, pages.block(PAGE, MAKE_KEYS))
    run_block(folder, pages.block(PAGE, MAKE_ENCLAVES))
    return folder


def more_nodes(text: str) -> str:
    """The nodes of the page, and others."""
    return f"{MORE}{text}"


@pytest.fixture(scope="session")
def enclaves(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's folder after its commands, with further nodes; one of them is revoked."""
    folder = follow(tmp_path_factory.mktemp("fastdds"), made, robots=more_nodes)
    shutil.copy(folder / "keys/thief/crl.pem", folder / "old.pem")
    fine(generate(folder, "--revoke", "thief"))
    run_block(folder, pages.block(PAGE, MAKE_ENCLAVES))
    return folder


@pytest.fixture(scope="session")
def aliens(enclaves: Path, strangers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same names by other CAs, who trust the CAs of the page's folder none the less."""
    folder = follow(tmp_path_factory.mktemp("aliens"), strangers)
    for node in ("talker", "listener"):
        theirs, ours = folder / "enclaves" / node, enclaves / "enclaves" / node
        append(
            theirs / "identity_ca.cert.pem", ours / "identity_ca.cert.pem", ours / "crl.pem"
        )
    return folder


def append(target: Path, *sources: Path) -> None:
    """Append files to a file."""
    with target.open("a") as file:
        for source in sources:
            file.write(source.read_text())


@pytest.fixture
def domain() -> Iterator[int]:
    """A domain of the test's own. The tests of Cyclone DDS take theirs from 1 up."""
    with kept(range(50, 100), socket.SOCK_STREAM) as number:
        yield number


Join = Callable[..., AbstractContextManager[Path]]


@pytest.fixture
def join(domain: int, enclaves: Path, chatter: Path) -> Join:
    """Have a participant talk or listen, by the page's commands, with some folder's enclave.

    The prefix is what the command starts with, such as a changed clock.
    """

    def start(
        role: str, enclave: Path | None = None, folder: Path = enclaves, prefix: str = ""
    ) -> AbstractContextManager[Path]:
        settings = pages.block(PAGE, SETTINGS).replace(
            "$PWD/fastdds.xml", str(FILES / "fastdds.xml")
        )
        command = pages.block(PAGE, {"talker": TALK, "listener": LISTEN}[role])
        command = command.replace(
            f"enclaves/{role}", str(enclave or folder / "enclaves" / role)
        )
        command = command.replace("../../chatter", f"{prefix}{chatter}")
        text = f"export ROS_DOMAIN_ID={domain}\n{settings}{command}"
        return running(folder, text, 0, ready=lambda: True)

    return start


def received(log: Path) -> bool:
    """Whether a listener has read a message."""
    return "read: [hola]" in log.read_text()


def plain(text: str) -> str:
    """What Fast DDS prints, without its colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def says(log: Path, line: str) -> bool:
    """Whether a log has a line as the page shows it, where … stands for anything."""
    return bool(re.search(re.escape(line).replace("…", ".*"), plain(log.read_text())))


def grant(node: str, ends: datetime | None = None, topic: str = "rt/chatter") -> str:
    """The page's grant for a node, good from yesterday on and for an hour unless told."""
    now = datetime.now(timezone.utc)
    text = (FILES / "permissions.xml").read_text().replace("NODE", node)
    text = text.replace("SUBJECT", f"CN={node},OU=Robots,O=SROS Example,C=US")
    text = text.replace("BEGINS", f"{now - timedelta(days=1):%Y-%m-%dT%H:%M:%S}")
    text = text.replace("ENDS", f"{ends or now + timedelta(hours=1):%Y-%m-%dT%H:%M:%S}")
    return text.replace("rt/chatter", topic)


# --- Who is refused -------------------------------------------------------------------------


intruding = partial(Intrusion, place="enclaves", grant=grant)


def granted_by_another_ca(intrusion: Intrusion) -> str:
    signer = intrusion.aliens / "keys/permissions"
    write_grant(intrusion.enclave, grant(intrusion.role), signer)
    return intrusion.trusting


def granted_other_topics(intrusion: Intrusion) -> str:
    text = grant(intrusion.role, topic="rt/nothing")
    intrusion.write_grant(text)
    return ""


def with_ed25519(intrusion: Intrusion) -> str:
    intrusion.take_name("edward")
    intrusion.write_grant(grant("edward"))
    return ""


def mistyped(intrusion: Intrusion) -> str:
    return "env SROS_PASSPHRASE=wrong "


def unsecured(intrusion: Intrusion) -> str:
    return leave_security(intrusion.enclave)


def leave_security(enclave: Path) -> str:
    """Put a profile without security into an enclave; return what makes a command use it."""
    text = (FILES / "fastdds.xml").read_text()
    profile = re.sub("<propertiesPolicy>.*</propertiesPolicy>", "", text, flags=re.DOTALL)
    assert profile != text
    (enclave / "unsecured.xml").write_text(profile)
    return "env FASTRTPS_DEFAULT_PROFILES_FILE=unsecured.xml "


INTRUDERS: dict[str, Callable[[Intrusion], str]] = {
    "of another CA": alien,
    "revoked": revoked,
    "without security": unsecured,
    "with a grant signed by itself": granted_by_itself,
    "with a grant signed by another CA": granted_by_another_ca,
    "with a grant that has ended": ended,
    "without a grant for its name": not_granted,
    "with a grant for other topics": granted_other_topics,
    "with a key of Ed25519": with_ed25519,
    "with a wrong pass phrase": mistyped,
}


def test_each_block_of_the_page_is_one_of_its_files_or_is_run_here() -> None:
    found = pages.blocks(pages.PAGES[PAGE])
    commands = [text for kind, text in found if kind == "sh"]
    for text, marker in zip(commands, COMMANDS, strict=True):
        assert marker in text and text == pages.block(PAGE, marker)
    shown = [text for kind, text in found if kind not in ("sh", "text")]
    assert sorted(shown) == sorted(path.read_text() for path in FILES.iterdir())
    assert len([kind for kind, _ in found if kind == "text"]) == 2
    assert [name for name, _, _ in REFUSALS] == [*INTRUDERS]


@pytest.mark.parametrize("role", ["talker", "listener"])
@pytest.mark.parametrize(
    ("name", "reporter", "line"), REFUSALS, ids=[row[0] for row in REFUSALS]
)
def test_who_is_refused_gets_and_sends_nothing_and_the_right_participant_does(
    join: Join,
    enclaves: Path,
    aliens: Path,
    trusting: str,
    tmp_path: Path,
    role: str,
    name: str,
    reporter: str,
    line: str,
) -> None:
    enclave = tmp_path / role
    shutil.copytree(enclaves / "enclaves" / role, enclave)
    prefix = INTRUDERS[name](intruding(enclaves, aliens, trusting, enclave, role))
    intrusion = join(role, enclave, prefix=prefix)
    refuse(join, role, intrusion, lambda log: says(log, line), reporter, received)


def test_two_participants_without_security_hear_each_other(
    join: Join, enclaves: Path, tmp_path: Path
) -> None:
    shutil.copytree(enclaves / "enclaves", tmp_path / "enclaves")
    for node in ("talker", "listener"):
        prefix = leave_security(tmp_path / "enclaves" / node)
    with (
        join("talker", folder=tmp_path, prefix=prefix) as talker,
        join("listener", folder=tmp_path, prefix=prefix) as listener,
    ):
        poll(lambda: received(listener), lambda: printed(talker, listener))


@pytest.mark.parametrize("wrong", [granted_by_itself, ended])
def test_its_own_library_stops_a_participant_with_such_a_grant(
    join: Join, enclaves: Path, tmp_path: Path, wrong: Callable[[Intrusion], str]
) -> None:
    enclave = tmp_path / "talker"
    shutil.copytree(enclaves / "enclaves/talker", enclave)
    # What its command would have to start with, to get past its own library, is not used.
    wrong(intruding(enclaves, Path(), "", enclave, "talker"))
    with join("listener") as listener:
        with join("talker", enclave) as talker:
            poll(lambda: says(talker, NO_PARTICIPANT), talker.read_text)
        assert not received(listener)
        with join("talker") as talker:
            poll(lambda: received(listener), lambda: printed(talker, listener))


# --- What the page shows and says -----------------------------------------------------------


def test_the_keys_are_made_as_the_page_shows(made: Path, tmp_path: Path) -> None:
    follow(tmp_path, made)
    shutil.rmtree(tmp_path / "keys")
    shutil.copytree(made / "keys", tmp_path / "keys")
    shutil.copy(ROOT / "sros_config.yml", tmp_path)
    shown = pages.transcript(PAGE, MAKE_KEYS)
    date = r"\d{4}-\d\d-\d\d"
    printed = run_block(tmp_path, pages.block(PAGE, MAKE_KEYS))
    assert re.sub(date, "DATE", printed) == re.sub(date, "DATE", shown)


def test_the_listener_prints_what_the_page_shows(join: Join) -> None:
    shown = pages.transcript(PAGE, LISTEN)
    with join("talker") as talker, join("listener") as listener:
        poll(
            lambda: len(listener.read_text()) >= len(shown), lambda: printed(talker, listener)
        )
        assert listener.read_text().startswith(shown)


def test_a_grant_has_the_subject_and_the_dates_of_the_certificate(enclaves: Path) -> None:
    for node in ("talker", "listener"):
        folder = enclaves / "enclaves" / node
        anchor = folder / "permissions_ca.cert.pem"
        document = folder / "permissions.p7s"
        text = openssl("smime", "-verify", "-text", "-in", document, "-CAfile", anchor)
        assert f"<subject_name>CN={node},OU=Robots,O=SROS Example,C=US<" in text
        begins, ends = validity(folder / "cert.pem")
        assert f"<not_before>{begins:%Y-%m-%dT%H:%M:%S}<" in text
        assert f"<not_after>{ends:%Y-%m-%dT%H:%M:%S}<" in text


def test_an_enclave_stays_as_it_was_when_a_new_one_can_not_be_signed(
    made: Path, tmp_path: Path
) -> None:
    follow(tmp_path, made)

    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in (tmp_path / "enclaves/talker").iterdir()}

    before = content()
    wrong = {**PHRASES, "SROS_PASSPHRASE": "wrong"}
    assert shell(tmp_path, pages.block(PAGE, MAKE_ENCLAVES), wrong).returncode != 0
    assert content() == before
    run_block(tmp_path, pages.block(PAGE, MAKE_ENCLAVES))
    assert content() != before
    names = sorted(path.name for path in (tmp_path / "enclaves").iterdir())
    assert names == ["listener", "talker"]


def test_renewed_enclaves_are_good(join: Join, made: Path, tmp_path: Path) -> None:
    follow(tmp_path, made)
    block = pages.block(PAGE, RENEW)
    run_block(tmp_path, block.replace("--renew", "--renew talker listener"))
    renewed = (tmp_path / "keys/talker/cert.pem").read_bytes()
    assert (tmp_path / "enclaves/talker/cert.pem").read_bytes() == renewed
    with (
        join("talker", folder=tmp_path) as talker,
        join("listener", folder=tmp_path) as listener,
    ):
        poll(lambda: received(listener), lambda: printed(talker, listener))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ec:prime256v1", "ec:secp384r1"),
        ("ec:prime256v1", "ec:secp521r1"),
        ("ec:prime256v1", "rsa:2048"),
        ("ec:prime256v1", "rsa:3072"),
        ("cipher: aes-256-cbc", "cipher: ~"),  # as ROS 2 wants it
        ("clientAuth", "codeSigning"),  # the handshake does not look at it
    ],
)
def test_the_hierarchy_can_be_as_the_page_says(
    join: Join, tmp_path: Path, old: str, new: str
) -> None:
    follow(tmp_path, None, lambda text: text.replace(old, new))
    with (
        join("talker", folder=tmp_path) as talker,
        join("listener", folder=tmp_path) as listener,
    ):
        poll(lambda: received(listener), lambda: printed(talker, listener))


def test_certificates_with_another_digest_than_sha_256_create_no_participant(
    join: Join, tmp_path: Path
) -> None:
    follow(tmp_path, None, lambda text: text.replace("digest: sha256", "digest: sha384"))
    with (
        join("talker", folder=tmp_path) as talker,
        join("listener", folder=tmp_path) as listener,
    ):
        poll(lambda: says(talker, NO_PARTICIPANT), talker.read_text)
        poll(lambda: says(listener, NO_PARTICIPANT), listener.read_text)


# --- What Fast DDS does not check -----------------------------------------------------------


def test_a_participant_goes_on_when_its_grant_ends(
    join: Join, enclaves: Path, tmp_path: Path
) -> None:
    enclave = tmp_path / "talker"
    shutil.copytree(enclaves / "enclaves/talker", enclave)
    ends = datetime.now(timezone.utc) + timedelta(seconds=8)
    document = sign(grant("talker", ends=ends), enclaves / "keys/permissions")
    (enclave / "permissions.p7s").write_text(document)

    def after_the_end() -> bool:
        return datetime.now(timezone.utc) > ends + timedelta(seconds=2)

    with join("listener") as listener:
        with join("talker", enclave) as talker:
            poll(lambda: received(listener), lambda: printed(talker, listener))
            poll(after_the_end, lambda: printed(talker, listener))
            seen = len(listener.read_text())
            wait_for(listener, "read: [hola]", seen)
        with join("talker", enclave) as talker:
            poll(lambda: says(talker, NO_PARTICIPANT), talker.read_text)


def test_an_older_wider_grant_stays_good_with_a_renewed_certificate_too(
    join: Join, made: Path, tmp_path: Path
) -> None:
    follow(tmp_path, made)
    grant_in_force = tmp_path / "enclaves/talker/permissions.p7s"
    older = grant_in_force.read_bytes()
    narrow = (FILES / "permissions.xml").read_text().replace("rt/chatter", "rt/nothing")
    (tmp_path / "permissions.xml").write_text(narrow)
    fine(generate(tmp_path, "--renew", "talker"))
    run_block(tmp_path, pages.block(PAGE, MAKE_ENCLAVES).replace(" listener", ""))
    with join("listener", folder=tmp_path) as listener:
        with join("talker", folder=tmp_path) as talker:
            poll(lambda: says(talker, "rt/chatter topic not found"), talker.read_text)
        assert not received(listener)
        grant_in_force.write_bytes(older)
        with join("talker", folder=tmp_path) as talker:
            poll(lambda: received(listener), lambda: printed(talker, listener))


def test_the_nodes_of_a_revoked_master_get_in(join: Join, made: Path, tmp_path: Path) -> None:
    follow(tmp_path, made)
    shutil.copytree(tmp_path / "enclaves", tmp_path / "old")
    result = generate(tmp_path, "--revoke", "master")
    assert result.returncode == 0, result.stderr
    run_block(tmp_path, pages.block(PAGE, MAKE_ENCLAVES))
    # The list of root now names master.
    assert "Serial Number" in openssl("crl", "-in", tmp_path / "keys/root/crl.pem", "-text")
    with (
        join("talker", tmp_path / "old/talker") as talker,
        join("listener", folder=tmp_path) as listener,
    ):
        poll(lambda: received(listener), lambda: printed(talker, listener))
    # An enclave without master's certificate keeps them out.
    root = tmp_path / "keys/root/cert.pem"
    shutil.copy(root, tmp_path / "enclaves/listener/identity_ca.cert.pem")
    with join("listener", folder=tmp_path) as listener:
        poll(lambda: says(listener, NOT_VERIFIED), listener.read_text)


def another_master(text: str) -> str:
    """The shipped configuration with a second CA for nodes."""
    master = text[text.index("  master:") : text.index("  nodes:")]
    return text.replace("  nodes:", f"{master.replace('master:', 'master2:')}  nodes:")


def test_nodes_of_two_issuers_take_both_lists_as_the_page_says(
    join: Join, tmp_path: Path
) -> None:
    def mixed(text: str) -> str:
        return text.replace("talker: *client", "talker: {<<: *client, issuer: master2}")

    follow(tmp_path, None, another_master, robots=mixed)
    keys, enclaves = tmp_path / "keys", tmp_path / "enclaves"
    own = {node: enclaves / node / "identity_ca.cert.pem" for node in ("talker", "listener")}
    for anchors in own.values():
        append(anchors, keys / "master2/cert.pem")
    error = "(unable to get certificate CRL) -> Function verify_certificate"
    with (
        join("talker", folder=tmp_path) as talker,
        join("listener", folder=tmp_path) as listener,
    ):
        poll(
            lambda: says(talker, error) or says(listener, error),
            lambda: printed(talker, listener),
        )
        assert not received(listener)
    for anchors in own.values():
        append(anchors, keys / "master/crl.pem", keys / "master2/crl.pem")
    with (
        join("talker", folder=tmp_path) as talker,
        join("listener", folder=tmp_path) as listener,
    ):
        poll(lambda: received(listener), lambda: printed(talker, listener))


@pytest.mark.parametrize(("purpose", "believed"), [("", True), ("clientAuth", False)])
def test_with_one_ca_a_node_can_grant_itself_permissions_but_for_its_purpose(
    join: Join, trusting: str, tmp_path: Path, purpose: str, believed: bool
) -> None:
    def hierarchy(text: str) -> str:
        text = text.replace("keyUsage: critical, keyCertSign", SIGNS_DOCUMENTS)
        if not purpose:
            text = re.sub("        extendedKeyUsage: clientAuth .*\n", "", text)
        return text

    def script(text: str) -> str:
        return text.replace("keys/permissions/", "keys/master/").replace(
            "cp keys/master/cert.pem", "cat keys/master/cert.pem keys/root/cert.pem >"
        )

    follow(tmp_path, None, hierarchy, enclaves=script)
    enclave = tmp_path / "enclaves/talker"
    with join("listener", folder=tmp_path) as listener:
        with join("talker", folder=tmp_path) as talker:
            poll(lambda: received(listener), lambda: printed(talker, listener))
        (enclave / "permissions.p7s").write_text(sign(grant("talker"), enclave))
        seen = len(listener.read_text())
        with join("talker", enclave, prefix=trusting) as talker:
            if believed:
                wait_for(listener, "read: [hola]", seen)
            else:
                error = "(Failed verification of the permissions file"
                poll(lambda: says(listener, error), lambda: printed(talker, listener))
                assert "read: [hola]" not in listener.read_text()[seen:]


def test_the_tls_of_fast_dds_asks_for_no_certificate(
    chatter: Path, copy: Path, tmp_path: Path
) -> None:
    port = free_port()
    (copy / "tls.xml").write_text(TLS.replace("8443", str(port)))
    command = f"FASTRTPS_DEFAULT_PROFILES_FILE=tls.xml exec {chatter} listen"
    call = ("openssl", "s_client", "-connect", f"localhost:{port}", "-verify_return_error")
    with running(copy, command, port):
        for anchor, status in ((copy / "keys/client/ca.pem", 0), (FILES / "chatter.cpp", 1)):
            result = run(*call, "-CAfile", anchor)
            assert result.returncode == status, result.stderr
            assert ("No client certificate CA names sent" in result.stdout) == (status == 0)
