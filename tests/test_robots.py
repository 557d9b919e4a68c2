"""What robots talk by, with a node's folder: DDS (ROS 2), MQTT, gRPC, and a database.

Each test pastes the blocks of a recipe's page, and shows an exchange beside its
refusal.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pages
import pytest
from configurations import configure
from cryptography import x509
from needs import needs
from programs import Program, check_row, free_port, paste, recipe, run_block, running, shell
from running import PHRASES, ROOT, generate, openssl, poll, run

pytestmark = pytest.mark.slow

DDS = Program("Cyclone DDS", "OpenSSL", "dpkg-query -W cyclonedds-tools", True, True, True)
GRPC = Program(
    "gRPC", "BoringSSL", "python -c 'import grpc; print(grpc.__version__)'", True, True, True
)
MQTT = Program("mosquitto", "OpenSSL", "/usr/sbin/mosquitto -h | head -n 1", True, True, False)
SQL = Program("PostgreSQL", "OpenSSL", "psql --version", True, True, True)


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(DDS, marks=pytest.mark.cyclonedds),
        pytest.param(GRPC, marks=pytest.mark.grpc),
        pytest.param(MQTT, marks=pytest.mark.mosquitto),
        pytest.param(SQL, marks=pytest.mark.postgresql),
    ],
    ids=lambda program: program.name,
)
def test_the_row_of_a_program_says_what_is_tested_here(program: Program) -> None:
    check_row(program)


def prepare(folder: Path) -> None:
    """Put into a folder what a reader has there: the script, and the virtual environment."""
    shutil.copy(ROOT / "simple_key_generation.py", folder)
    (folder / ".venv").symlink_to(sys.prefix)


def wait_for(log: Path, text: str, start: int = 0) -> None:
    """Wait until a text stands in a log, from some place on."""
    poll(lambda: text in log.read_text()[start:], log.read_text)


@contextmanager
def handed_over(keys: Path, place: str, user: str) -> Iterator[tuple[Path, list[str]]]:
    """A service's own folder with a copy of its keys, and a command's start as its user."""
    root = os.geteuid() == 0
    with (
        tempfile.TemporaryDirectory() as name
    ):  # the tests' own folders are closed to other users
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(keys, folder / place)
        if root:
            subprocess.run(["chown", "-R", f"{user}:", name], check=True)
        yield (
            folder,
            ["setpriv", "--reuid", user, "--regid", user, "--init-groups"] if root else [],
        )


def replace_list(source: Path, target: Path, log: Path, pid: int, says: str) -> None:
    """Hand a newer revocation list to a service, in place, and wait until it has read it."""
    seen = len(log.read_text())
    (target / "crl.pem").write_bytes((source / "crl.pem").read_bytes())
    os.kill(pid, signal.SIGHUP)
    wait_for(log, says, seen)


# --- DDS -------------------------------------------------------------------------------------

DDS_PAGE = (ROOT / "tests/recipes/ros2-dds.md").read_text()
DDS_FILES = ROOT / "tests/recipes/ros2-dds"
DDS_BLOCKS = pages.blocks(DDS_PAGE)
# What each shell block of the page is known by, in the page's order.
MAKE_KEYS = "cp tests/recipes"
SETTINGS = "CYCLONEDDS_URI"
TALK = "ENCLAVE=keystore/enclaves/talker"
LISTEN = "ENCLAVE=keystore/enclaves/listener"
RENEW = "--renew\n"
CHANGE_OVER = "--renew dds"
# The last line of the page's first block, which makes the keystore again.
MAKE_KEYSTORE = "bash keystore.sh talker listener\n"
DDS_COMMANDS = (MAKE_KEYS, SETTINGS, TALK, LISTEN, RENEW, CHANGE_OVER)
# What stands in the shell blocks of the other pages.
GRPC_SERVER, GRPC_CLIENT = "grpc_server.py", "grpc_client.py"
BROKER, PUBLISH, SUBSCRIBE = "mosquitto -c", "mosquitto_pub", "mosquitto_sub"
QUERY = "psql"
RECIPES = {
    "Cyclone DDS": DDS_COMMANDS,
    "gRPC": (GRPC_SERVER, GRPC_CLIENT),
    "mosquitto": (BROKER, PUBLISH, SUBSCRIBE),
    "PostgreSQL": (QUERY,),
}
# The page's table of who is refused: the participant, who reports it, and the printed words.
REFUSALS = re.findall(
    r"^\| (.+) \| ((?:either|the other) side|the participant) \| `(.*)` \|$",
    DDS_PAGE,
    re.MULTILINE,
)
# A library that accepts its own documents, whoever signed them (0x20 is PKCS7_NOVERIFY). With
# it a participant passes its own checks, as an intruder would. Only the other side judges it.
TRUSTING = """
#define _GNU_SOURCE
#include <dlfcn.h>

typedef int verifier(void *, void *, void *, void *, void *, int);

int PKCS7_verify(void *document, void *others, void *anchors, void *in, void *out, int flags) {
    verifier *verify = (verifier *) dlsym(RTLD_NEXT, "PKCS7_verify");
    return verify(document, others, anchors, in, out, flags | 0x20);
}
"""


Change = Callable[[str], str]


def dds_block(kind: str, marker: str) -> str:
    """The page's first block of a kind that a marker stands in."""
    return next(text for found, text in DDS_BLOCKS if found == kind and marker in text)


def dds_file(name: str) -> str:
    """One of the files that the page shows."""
    return (DDS_FILES / name).read_text()


def without_measures(two_cas: bool, purposes: bool) -> dict[str, Change]:
    """How to change the page's files so that they take one of its measures, or neither.

    The measures are the second CA and the nodes' extendedKeyUsage. Without both, the files are
    those of release 1.0.
    """

    def hierarchy(text: str) -> str:
        if not two_cas:
            text = re.sub(r"^  permissions:.*?\n\n", "", text, flags=re.DOTALL | re.MULTILINE)
            text = text.replace(
                "critical, keyCertSign", "critical, digitalSignature, keyCertSign"
            )
        if not purposes:
            text = re.sub(r".*extendedKeyUsage.*\n", "", text)
        return text

    def script(text: str) -> str:
        return text.replace("keys/permissions", "keys/dds")

    changes: dict[str, Change] = {"dds.yml": hierarchy}
    if not two_cas:
        changes["keystore.sh"] = script
    return changes


def make_enclaves(folder: Path, **changes: Change) -> Path:
    """Follow the page as far as the enclaves, with its files changed if need be."""
    prepare(folder)
    copied = folder / "tests/recipes/ros2-dds"
    shutil.copytree(DDS_FILES, copied)
    for name, change in changes.items():
        text = (copied / name).read_text()
        assert change(text) != text
        (copied / name).write_text(change(text))
    run_block(folder, dds_block("sh", MAKE_KEYS))
    return folder


@pytest.fixture(scope="module")
def enclaves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's folder after its commands, with two further nodes, one of them revoked."""
    more = "    camera: *node\n    thief: *node\n"
    folder = make_enclaves(
        tmp_path_factory.mktemp("dds"), **{"dds.yml": lambda text: text + more}
    )
    shutil.copy(folder / "keys/thief/crl.pem", folder / "old.pem")
    assert generate(folder, "-c", "dds.yml", "--revoke", "thief").returncode == 0
    run_block(folder, MAKE_KEYSTORE)
    return folder


@pytest.fixture(scope="module")
def aliens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same names by other CAs."""
    return make_enclaves(tmp_path_factory.mktemp("aliens"))


def compile_trusting(folder: Path) -> str:
    """Return what a command starts with to run without checks of its own documents."""
    needs("gcc")
    source, library = folder / "trusting.c", folder / "trusting.so"
    source.write_text(TRUSTING)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    return f"env LD_PRELOAD={library} "


@pytest.fixture(scope="module")
def trusting(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a command starts with to run without checks of its own documents."""
    return compile_trusting(tmp_path_factory.mktemp("trusting"))


@contextmanager
def kept(numbers: range, kind: socket.SocketKind) -> Iterator[int]:
    """A domain of the test's own: it keeps the first of the domain's ports, of some kind."""
    for number in numbers:
        with socket.socket(socket.AF_INET, kind) as port:
            try:
                port.bind(("127.0.0.1", 7400 + 250 * number))
            except OSError:
                continue
            yield number
            return


@pytest.fixture
def domain() -> Iterator[int]:
    """A domain of the test's own, whose first port is not used on the loopback device."""
    with kept(range(1, 50), socket.SOCK_DGRAM) as number:
        yield number


Join = Callable[..., AbstractContextManager[Path]]


@pytest.fixture
def join(domain: int, enclaves: Path) -> Join:
    """Have a participant talk or listen, by the page's commands, with some folder's enclave.

    The prefix is what the command starts with, such as a changed clock. The topic is one of
    those that ddsperf knows; KS is its default.
    """

    def start(
        role: str,
        enclave: Path | None = None,
        folder: Path = enclaves,
        prefix: str = "",
        topic: str = "KS",
    ) -> AbstractContextManager[Path]:
        command = dds_block("sh", f"ENCLAVE=keystore/enclaves/{role}").replace(
            "-i 42", f"-i {domain}"
        )
        command = command.replace(
            f"keystore/enclaves/{role}", str(enclave or folder / "keystore/enclaves" / role)
        )
        command = command.replace("ddsperf", f"{prefix}ddsperf -T {topic}")
        return running(folder, dds_block("sh", SETTINGS) + command, 0, ready=lambda: True)

    return start


def received(log: Path) -> bool:
    """Whether a listener has counted samples."""
    return bool(re.search(r" total [1-9]", log.read_text()))


def printed(*logs: Path) -> str:
    """What participants printed, for the report of a failure."""
    return "\n---\n".join(log.read_text() for log in logs)


def partner(role: str) -> str:
    """The other role."""
    return {"talker": "listener", "listener": "talker"}[role]


def matches(log: Path, line: str) -> bool:
    """Whether a log has a line as the page shows it, where … stands for anything."""
    return bool(re.search(re.escape(line).replace("…", ".*"), log.read_text()))


def hour(hours: int) -> datetime:
    """The time in some hours, or some hours ago."""
    return datetime.now(timezone.utc) + timedelta(hours=hours)


def grant(node: str, *, begins: datetime | None = None, ends: datetime | None = None) -> str:
    """The page's grant for a node, by default from yesterday until an hour from now."""
    text = dds_file("permissions.xml").replace("NODE", node)
    text = text.replace("BEGINS", f"{begins or hour(-24):%Y-%m-%dT%H:%M:%S}")
    return text.replace("ENDS", f"{ends or hour(1):%Y-%m-%dT%H:%M:%S}")


def narrowed(text: str) -> str:
    """A grant for one topic with data, and for what the test program needs beside it."""
    topics = ("DDSPerfRDataKS", "DDSPerfRPing*", "DDSPerfRPong*", "DDSPerfCPUStats")
    return text.replace(
        "<topic>DDSPerf*</topic>", "".join(f"<topic>{topic}</topic>" for topic in topics)
    )


def sign(document: str, signer: Path) -> str:
    """Sign a document with the key and the certificate in a folder, as the page does."""
    arguments = ("smime", "-sign", "-text", "-passin", "env:SROS_PASSPHRASE")
    files = ("-signer", signer / "cert.pem", "-inkey", signer / "key.pem")
    result = run("openssl", *arguments, *files, env=PHRASES, stdin=document)
    assert result.returncode == 0, result.stderr
    return result.stdout


def sign_for_itself(enclave: Path, node: str) -> None:
    """Have a node sign a grant for itself, for all topics, with its own key."""
    (enclave / "permissions.p7s").write_text(sign(grant(node), enclave))


def write_grant(enclave: Path, text: str, signer: Path) -> None:
    """Sign a grant with the key in a folder, and put it into an enclave."""
    (enclave / "permissions.p7s").write_text(sign(text, signer))


@dataclass(frozen=True)
class Intrusion:
    """What a participant that is refused is made from: its enclave is in order at first."""

    enclaves: Path
    aliens: Path
    trusting: str  # what its command starts with, if it is to get past its own checks
    enclave: Path
    role: str
    place: str = "keystore/enclaves"  # of the enclaves, in the page's folder
    grant: Callable[..., str] = grant

    def take_name(self, node: str) -> None:
        """Give it the certificate and the key of some node, and a list without revocations."""
        for file in ("cert.pem", "key.pem"):
            shutil.copy(self.enclaves / "keys" / node / file, self.enclave)
        shutil.copy(self.enclaves / "old.pem", self.enclave / "crl.pem")

    def write_grant(self, text: str) -> None:
        """Put a grant into the enclave that the right CA signed."""
        write_grant(self.enclave, text, self.enclaves / "keys/permissions")


# Each of these makes one of the page's table, and returns what its command starts with.


def alien(intrusion: Intrusion) -> str:
    theirs = intrusion.aliens / intrusion.place / intrusion.role
    shutil.copytree(theirs, intrusion.enclave, dirs_exist_ok=True)
    return ""


def revoked(intrusion: Intrusion) -> str:
    intrusion.take_name("thief")
    intrusion.write_grant(intrusion.grant("thief"))
    return ""


def granted_by_itself(intrusion: Intrusion) -> str:
    write_grant(intrusion.enclave, intrusion.grant(intrusion.role), intrusion.enclave)
    return intrusion.trusting


def ended(intrusion: Intrusion) -> str:
    intrusion.write_grant(intrusion.grant(intrusion.role, ends=hour(-1)))
    return "faketime -f -2h "


def not_granted(intrusion: Intrusion) -> str:
    intrusion.take_name("camera")
    return ""


def granted_by_another_ca(intrusion: Intrusion) -> str:
    signer = intrusion.aliens / "keys/permissions"
    write_grant(intrusion.enclave, grant(intrusion.role), signer)
    shutil.copy(signer / "cert.pem", intrusion.enclave / "permissions_ca.cert.pem")
    theirs = intrusion.aliens / intrusion.place / intrusion.role
    shutil.copy(theirs / "governance.p7s", intrusion.enclave)
    return ""


def granted_other_topics(intrusion: Intrusion) -> str:
    intrusion.write_grant(grant(intrusion.role).replace("DDSPerf*", "Nothing*"))
    return ""


def unsecured(intrusion: Intrusion) -> str:
    path = intrusion.enclave / "unsecured.xml"
    text = dds_file("cyclonedds.xml")
    path.write_text(re.sub("<Security>.*</Security>", "", text, flags=re.DOTALL))
    return f"env CYCLONEDDS_URI=file://{path} "


INTRUDERS: dict[str, Callable[[Intrusion], str]] = {
    "of another CA": alien,
    "revoked": revoked,
    "with a grant signed by another CA": granted_by_another_ca,
    "with a grant signed by itself": granted_by_itself,
    "with a grant that has ended": ended,
    "without a grant for its name": not_granted,
    "with a grant for other topics": granted_other_topics,
    "without security": unsecured,
}


@pytest.mark.cyclonedds
def test_each_block_of_the_page_is_one_of_its_files_or_is_run_here() -> None:
    commands = [text for kind, text in DDS_BLOCKS if kind == "sh"]
    for text, marker in zip(commands, DDS_COMMANDS, strict=True):
        assert marker in text and text == dds_block("sh", marker)
    shown = [text for kind, text in DDS_BLOCKS if kind not in ("sh", "text")]
    assert sorted(shown) == sorted(path.read_text() for path in DDS_FILES.iterdir())
    # Two transcripts, and ROS 2's own commands, which are not run here.
    texts = [text for kind, text in DDS_BLOCKS if kind == "text"]
    assert ["ros2 run" in text for text in texts] == [False, False, True]
    assert [name for name, _, _ in REFUSALS] == [*INTRUDERS]
    assert dds_block("sh", MAKE_KEYS).endswith(f"\n{MAKE_KEYSTORE}")


@pytest.mark.cyclonedds
def test_the_keys_are_made_as_the_page_shows(tmp_path: Path) -> None:
    prepare(tmp_path)
    shutil.copytree(DDS_FILES, tmp_path / "tests/recipes/ros2-dds")
    made = run_block(tmp_path, dds_block("sh", MAKE_KEYS))
    date = r"\d{4}-\d\d-\d\d"
    assert re.sub(date, "DATE", made) == re.sub(date, "DATE", dds_block("text", "until"))


@pytest.mark.cyclonedds
def test_the_listener_prints_what_the_page_shows(join: Join) -> None:
    def plain(text: str) -> str:
        return re.sub(r"\d+", "N", re.sub(r"participant .*:", "participant HOST:", text))

    with join("listener") as listener, join("talker") as talker:
        poll(lambda: received(listener), lambda: printed(talker, listener))
        for line in dds_block("text", "participant").splitlines():
            assert plain(line) in plain(listener.read_text())


@pytest.mark.cyclonedds
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
    shutil.copytree(enclaves / "keystore/enclaves" / role, enclave)
    prefix = INTRUDERS[name](Intrusion(enclaves, aliens, trusting, enclave, role))
    intrusion = join(role, enclave, prefix=prefix)
    refuse(join, role, intrusion, lambda log: matches(log, line), reporter)


def refuse(
    join: Join,
    role: str,
    intrusion: AbstractContextManager[Path],
    reports: Callable[[Path], bool],
    reporter: str,
    hears: Callable[[Path], bool] = received,
) -> None:
    """Require that an intruder gets and sends nothing, and that the reporter says so.

    The right participant in its role gets or sends something.
    """
    with ExitStack() as participants:
        own = participants.enter_context(join(partner(role)))
        other = participants.enter_context(intrusion)
        logs = {"the other side": [own], "the participant": [other]}.get(
            reporter, [own, other]
        )
        poll(lambda: any(map(reports, logs)), lambda: printed(own, other))
        assert not hears(own) and not hears(other), printed(own, other)
        # The same with the right enclave.
        twin = participants.enter_context(join(role))
        poll(lambda: hears(own) or hears(twin), lambda: printed(own, twin))
        assert not hears(other), other.read_text()


@pytest.mark.cyclonedds
@pytest.mark.parametrize("role", ["talker", "listener"])
def test_a_limited_node_does_what_it_may_and_can_grant_itself_no_more(
    join: Join, trusting: str, tmp_path: Path, role: str
) -> None:
    make_enclaves(tmp_path)
    node, other = (tmp_path / "keystore/enclaves" / name for name in (role, partner(role)))
    with (
        join(role, node, topic="K32") as log,
        join(partner(role), other, topic="K32") as their,
    ):
        poll(lambda: received(log) or received(their), lambda: printed(log, their))

    # It does what it may.
    (tmp_path / f"permissions-{role}.xml").write_text(narrowed(dds_file("permissions.xml")))
    run_block(tmp_path, MAKE_KEYSTORE)
    with join(role, node) as log, join(partner(role), other) as their:
        poll(lambda: received(log) or received(their), lambda: printed(log, their))

    # Its own library keeps it from other topics.
    with (
        join(role, node, topic="K32") as log,
        join(partner(role), other, topic="K32") as their,
    ):
        poll(lambda: matches(log, "failed: -13"), lambda: printed(log, their))
        assert not received(log) and not received(their)

    # Without that library it grants itself all topics, and the other side refuses it.
    sign_for_itself(node, role)
    greedy = join(role, node, prefix=trusting, topic="K32")
    with greedy as log, join(partner(role), other, topic="K32") as their:
        said = "Could not get remote participant … unable to get local issuer certificate"
        poll(lambda: matches(their, said), lambda: printed(log, their))
        assert not received(log) and not received(their)


@pytest.mark.cyclonedds
@pytest.mark.parametrize("role", ["talker", "listener"])
@pytest.mark.parametrize(
    ("two_cas", "purposes", "said"),
    [
        (True, False, "unable to get local issuer certificate"),
        (False, True, "unsuitable certificate purpose"),
        (False, False, None),  # release 1.0: Cyclone DDS 0.10 believes the node
    ],
)
def test_each_of_the_two_measures_alone_refuses_a_node_that_grants_itself_permissions(
    join: Join,
    trusting: str,
    tmp_path: Path,
    role: str,
    two_cas: bool,
    purposes: bool,
    said: str | None,
) -> None:
    make_enclaves(tmp_path, **without_measures(two_cas, purposes))
    enclave = tmp_path / "keystore/enclaves" / role
    signer = tmp_path / "keys" / ("permissions" if two_cas else "dds")
    write_grant(enclave, grant(role).replace("DDSPerf*", "Nothing*"), signer)
    with join(partner(role), folder=tmp_path) as own:
        with join(role, enclave) as node:
            poll(lambda: matches(node, "failed: -13"), lambda: printed(own, node))
        sign_for_itself(enclave, role)
        with join(role, enclave, prefix=trusting) as node:
            if said is None:
                poll(lambda: received(own) or received(node), lambda: printed(own, node))
            else:
                line = f"Could not get remote participant … {said}"
                poll(lambda: matches(own, line), lambda: printed(own, node))
                assert not received(own) and not received(node)


def read_grant(folder: Path, node: str) -> tuple[datetime, datetime]:
    """When the grant in a node's enclave begins and ends, after a check of its signature."""
    enclave = folder / "keystore/enclaves" / node
    anchor = enclave / "permissions_ca.cert.pem"
    text = openssl(
        "smime", "-verify", "-text", "-in", enclave / "permissions.p7s", "-CAfile", anchor
    )
    assert f"<subject_name>CN=/{node}<" in text
    begins, ends = re.findall(r"<not_(?:before|after)>(.*)<", text)
    return (
        datetime.fromisoformat(begins).replace(tzinfo=timezone.utc),
        datetime.fromisoformat(ends).replace(tzinfo=timezone.utc),
    )


def validity(certificate: Path) -> tuple[datetime, datetime]:
    """When a certificate begins and ends."""
    read = x509.load_pem_x509_certificate(certificate.read_bytes())
    return read.not_valid_before_utc, read.not_valid_after_utc


@pytest.mark.cyclonedds
def test_a_grant_is_good_as_long_as_the_certificate_in_any_time_zone(tmp_path: Path) -> None:
    make_enclaves(tmp_path)
    run_block(tmp_path, f"export TZ=Pacific/Auckland LC_ALL=C\n{MAKE_KEYSTORE}")
    for node in ("talker", "listener"):
        assert read_grant(tmp_path, node) == validity(
            tmp_path / "keystore/enclaves" / node / "cert.pem"
        )


@pytest.mark.cyclonedds
def test_a_grant_with_an_end_of_its_own_is_refused(tmp_path: Path) -> None:
    make_enclaves(tmp_path)
    before = (tmp_path / "keystore/enclaves/talker/permissions.p7s").read_bytes()
    text = dds_file("permissions.xml").replace("ENDS", "2036-01-01T00:00:00")
    (tmp_path / "permissions-talker.xml").write_text(text)
    result = shell(tmp_path, MAKE_KEYSTORE, PHRASES)
    assert result.returncode == 1
    error = "keystore.sh: error: permissions-talker.xml: its not_after must be ENDS"
    assert result.stderr.startswith(error)
    assert (tmp_path / "keystore/enclaves/talker/permissions.p7s").read_bytes() == before


@pytest.mark.cyclonedds
def test_an_older_wider_grant_stays_good_until_it_ends_with_a_renewed_certificate_too(
    join: Join, tmp_path: Path
) -> None:
    make_enclaves(tmp_path)
    older = (tmp_path / "keystore/enclaves/talker/permissions.p7s").read_bytes()
    limits = dds_file("permissions.xml").replace("DDSPerf*", "Nothing*")
    (tmp_path / "permissions-talker.xml").write_text(limits)
    assert generate(tmp_path, "-c", "dds.yml", "--renew", "talker").returncode == 0
    run_block(tmp_path, MAKE_KEYSTORE)
    with join("listener", folder=tmp_path) as listener:
        with join("talker", folder=tmp_path) as talker:
            poll(lambda: matches(talker, "failed: -13"), talker.read_text)
        assert not received(listener)
        (tmp_path / "keystore/enclaves/talker/permissions.p7s").write_bytes(older)
        with join("talker", folder=tmp_path) as talker:
            poll(lambda: received(listener), lambda: printed(talker, listener))


@pytest.mark.cyclonedds
def test_a_running_participant_is_cut_off_when_its_grant_ends(
    join: Join, enclaves: Path, tmp_path: Path
) -> None:
    enclave = tmp_path / "talker"
    shutil.copytree(enclaves / "keystore/enclaves/talker", enclave)
    ends = datetime.now(timezone.utc) + timedelta(seconds=12)
    write_grant(enclave, grant("talker", ends=ends), enclaves / "keys/permissions")
    with join("listener") as listener, join("talker", enclave) as talker:
        poll(lambda: received(listener), lambda: printed(talker, listener))
        poll(
            lambda: matches(listener, "participant … gone"), lambda: printed(talker, listener)
        )
        assert datetime.now(timezone.utc) >= ends.replace(microsecond=0)


@pytest.mark.cyclonedds
def test_a_revocation_list_is_read_when_a_participant_starts(
    join: Join, enclaves: Path, tmp_path: Path
) -> None:
    for role in ("talker", "listener"):
        shutil.copytree(enclaves / "keystore/enclaves" / role, tmp_path / role)
    revoked(Intrusion(enclaves, enclaves, "", tmp_path / "talker", "talker"))
    newer = (tmp_path / "listener/crl.pem").read_bytes()
    shutil.copy(enclaves / "old.pem", tmp_path / "listener/crl.pem")
    with join("listener", tmp_path / "listener") as listener:
        poll(lambda: matches(listener, "(self)"), listener.read_text)
        (tmp_path / "listener/crl.pem").write_bytes(newer)
        with join("talker", tmp_path / "talker") as talker:
            poll(lambda: received(listener), lambda: printed(talker, listener))
    thief = join("talker", tmp_path / "talker")
    with join("listener", tmp_path / "listener") as listener, thief as talker:
        poll(
            lambda: matches(listener, "certificate revoked"), lambda: printed(talker, listener)
        )
        assert not received(listener)


@pytest.mark.cyclonedds
def test_renewal_makes_enclaves_with_grants_that_end_with_the_new_certificates(
    join: Join, tmp_path: Path
) -> None:
    def old(text: str) -> str:
        return text.replace("notBefore: -1d, notAfter: 1y", "notBefore: -300d, notAfter: 30d")

    make_enclaves(tmp_path, **{"dds.yml": old})
    before = {node: read_grant(tmp_path, node) for node in ("talker", "listener")}
    (tmp_path / "dds.yml").write_text(dds_file("dds.yml"))
    assert run_block(tmp_path, dds_block("sh", RENEW)).count(" renewed ") == 2
    for node, (_, ended) in before.items():
        begins, ends = read_grant(tmp_path, node)
        assert (begins, ends) == validity(tmp_path / "keys" / node / "cert.pem")
        assert ends > ended
    with (
        join("talker", folder=tmp_path) as talker,
        join("listener", folder=tmp_path) as listener,
    ):
        poll(lambda: received(listener), lambda: printed(talker, listener))


@pytest.mark.cyclonedds
def test_an_enclave_stays_as_it_was_when_a_new_one_can_not_be_signed(tmp_path: Path) -> None:
    make_enclaves(tmp_path)

    def content() -> dict[Path, bytes]:
        return {
            path: path.read_bytes()
            for path in (tmp_path / "keystore/enclaves/talker").iterdir()
        }

    before = content()
    wrong = {**PHRASES, "SROS_PASSPHRASE": "wrong"}
    assert shell(tmp_path, MAKE_KEYSTORE, wrong).returncode != 0
    assert content() == before
    run_block(tmp_path, MAKE_KEYSTORE)
    assert content() != before
    assert sorted(path.name for path in (tmp_path / "keystore/enclaves").iterdir()) == [
        "governance.p7s",
        "listener",
        "talker",
    ]


@pytest.mark.cyclonedds
def test_changing_over_from_release_1_closes_the_hole_in_every_new_enclave(
    join: Join, trusting: str, tmp_path: Path
) -> None:
    make_enclaves(tmp_path, **without_measures(two_cas=False, purposes=False))
    shutil.copytree(tmp_path / "keystore/enclaves", tmp_path / "old")
    keys = {
        node: (tmp_path / "keys" / node / "key.pem").read_bytes() for node in ("dds", "talker")
    }
    intruder = tmp_path / "intruder"
    shutil.copytree(tmp_path / "old/talker", intruder)
    sign_for_itself(intruder, "talker")

    for name in ("dds.yml", "keystore.sh"):
        shutil.copy(DDS_FILES / name, tmp_path)
    run_block(tmp_path, dds_block("sh", CHANGE_OVER))
    for node, key in keys.items():
        assert (tmp_path / "keys" / node / "key.pem").read_bytes() == key
    again = generate(tmp_path, "-c", "dds.yml")
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.count(" kept ") == 4

    # A participant with the old enclave refuses one with a new enclave, and still believes a
    # node that grants itself permissions.
    with join("listener", tmp_path / "old/listener") as listener:
        with join("talker", folder=tmp_path) as talker:
            poll(lambda: matches(listener, "self-signed"), lambda: printed(talker, listener))
        assert not received(listener)
        with join("talker", intruder, prefix=trusting) as talker:
            poll(lambda: received(listener), lambda: printed(talker, listener))

    # One with a new enclave believes neither that node nor a grant of release 1.0.
    with join("listener", folder=tmp_path) as listener:
        for enclave in (intruder, tmp_path / "old/talker"):
            seen = len(listener.read_text())
            with join("talker", enclave, prefix=trusting) as talker:
                wait_for(listener, "Could not get remote participant", seen)
                assert not received(listener), printed(talker, listener)
        with join("talker", folder=tmp_path) as talker:
            poll(lambda: received(listener), lambda: printed(talker, listener))


@pytest.mark.cyclonedds
@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("ec:prime256v1", "rsa:2048", ""),
        ("cipher: aes-256-cbc", "cipher: ~", ""),  # as ROS 2 wants it
        ("serverAuth, clientAuth", "codeSigning", ""),  # the handshake does not look at it
        ("ec:prime256v1", "ec:secp384r1", "Certificate authentication algorithm unknown"),
        ("ec:prime256v1", "rsa:3072", "Certificate authentication algorithm unknown"),
        ("digitalSignature, keyCertSign", "keyCertSign", "unsuitable certificate purpose"),
    ],
)
def test_the_hierarchy_can_be_as_the_page_says_and_not_otherwise(
    join: Join, tmp_path: Path, old: str, new: str, error: str
) -> None:
    make_enclaves(tmp_path, **{"dds.yml": lambda text: text.replace(old, new)})
    with (
        join("talker", folder=tmp_path) as talker,
        join("listener", folder=tmp_path) as listener,
    ):
        if error:
            wait_for(talker, error)
            wait_for(listener, error)
        else:
            poll(lambda: received(listener), lambda: printed(talker, listener))
        assert received(listener) == (not error)


@pytest.mark.cyclonedds
def test_cyclone_dds_verifies_no_chain_with_an_intermediate_ca(
    join: Join, tmp_path: Path
) -> None:
    master = """\
  master:
    <<: *defaults
    issuer: dds
    validity: {notAfter: 5y}
    extensions:
      basicConstraints: critical, CA:TRUE, pathlen:0
      keyUsage: critical, keyCertSign, cRLSign
      subjectKeyIdentifier: hash
      authorityKeyIdentifier: keyid
  nodes:
"""

    def longer(text: str) -> str:
        text = text.replace("pathlen:0", "pathlen:1").replace("issuer: dds", "issuer: master")
        return text.replace("  nodes:\n", master)

    make_enclaves(tmp_path, **{"dds.yml": longer})
    shutil.copy(
        tmp_path / "keys/talker/fullchain.pem", tmp_path / "keystore/enclaves/talker/cert.pem"
    )
    with join("talker", folder=tmp_path) as log:
        wait_for(log, "unable to get local issuer certificate")


# --- gRPC ------------------------------------------------------------------------------------


@pytest.mark.grpc
def test_grpc_calls_are_between_nodes_and_refused_to_strangers(
    made: Path, strangers: Path, tmp_path: Path
) -> None:
    port = free_port()
    folders = {}
    for name, keys in (("own", made), ("strange", strangers)):
        folder = folders[name] = tmp_path / name
        shutil.copytree(keys / "keys", folder / "keys")
        (folder / ".venv").symlink_to(sys.prefix)
        for role, marker in (("server", "add_secure_port"), ("client", "secure_channel")):
            text = recipe("gRPC", marker, "python").replace("8443", str(port))
            (folder / f"grpc_{role}.py").write_text(text)
    own, strange = folders["own"], folders["strange"]
    start, call = recipe("gRPC", GRPC_SERVER, "sh"), recipe("gRPC", GRPC_CLIENT, "sh")
    with running(own, start, port) as log:
        assert run_block(own, call) == "hello\n"
        caller = strange / "grpc_client.py"
        for credentials, error in (
            ("(ca, plain, chain)", "CERTIFICATE_VERIFY_FAILED"),
            ("(ca)", "PEER_DID_NOT_RETURN_A_CERTIFICATE"),
        ):
            caller.write_text(caller.read_text().replace("(ca, plain, chain)", credentials))
            refused = paste(strange, call, port)
            assert refused.returncode == 1 and "hello" not in refused.stdout
            assert "UNAVAILABLE" in refused.stderr
            wait_for(log, error)
        assert run_block(own, call) == "hello\n"
        assert (
            log.read_text().count("hola from client\n") == log.read_text().count("hola") == 2
        )
    with running(strange, start, port):
        refused = paste(own, call, port)
        assert refused.returncode == 1 and "CERTIFICATE_VERIFY_FAILED" in refused.stderr


# --- MQTT ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fleets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The hierarchy with the page's nodes for MQTT, and another CA's, which trusts it."""
    folders = tmp_path_factory.mktemp("own"), tmp_path_factory.mktemp("strange")
    for folder in folders:
        prepare(folder)
        configuration = configure(folder)
        configuration.write_text(
            configuration.read_text() + recipe("mosquitto", "broker:", "yaml")
        )
        assert generate(folder).returncode == 0
    for node in ("broker", "camera", "display"):
        for file in ("ca.pem", "crl.pem"):
            shutil.copy(folders[0] / "keys" / node / file, folders[1] / "keys" / node)
    return folders


@contextmanager
def broker(keys: Path, port: int) -> Iterator[tuple[Path, Path, int]]:
    """The page's broker with a copy of its keys: its folder, log and process."""
    with handed_over(keys / "keys/broker", "keys/broker", "mosquitto") as (folder, _):
        configuration = recipe("mosquitto", "require_certificate", "conf")
        (folder / "mosquitto.conf").write_text(configuration.replace("8443", str(port)))
        command = f"echo $$ >pid; exec {recipe('mosquitto', BROKER, 'sh')}"
        with running(folder, command, port) as log:
            yield folder / "keys/broker", log, int((folder / "pid").read_text())


@pytest.mark.mosquitto
def test_mqtt_messages_pass_between_nodes_and_not_to_or_from_strangers(
    fleets: tuple[Path, Path], tmp_path: Path
) -> None:
    own, strange = fleets
    port = free_port()
    publish, subscribe = (recipe("mosquitto", verb, "sh") for verb in (PUBLISH, SUBSCRIBE))
    spoof = publish.replace("hola", "spoofed")
    bare = re.sub(r" --cert \S+ --key \S+", "", spoof)
    assert bare != spoof
    with broker(own, port) as (keys, log, pid):
        with running(
            own, subscribe, port, ready=lambda: "u'display'" in log.read_text()
        ) as seen:
            for folder, command, error in (
                (strange, spoof, "certificate verify failed"),
                (own, bare, "peer did not return a certificate"),
                (
                    own,
                    "openssl s_client -tls1_2 -connect localhost:8443",
                    "unsupported protocol",
                ),
            ):
                assert paste(folder, command, port).returncode != 0
                wait_for(log, error)
            assert paste(own, publish, port).returncode == 0
            poll(lambda: seen.read_text() == "hola\n", seen.read_text)
            assert "u'camera'" in log.read_text()
        # The same camera once it is revoked.
        later = tmp_path / "later"
        shutil.copytree(own, later, symlinks=True)
        assert generate(later, "--revoke", "camera").returncode == 0
        replace_list(later / "keys/broker", keys, log, pid, "Reloading config.")
        assert paste(own, publish, port).returncode != 0
        poll(lambda: log.read_text().count("certificate verify failed") == 2, log.read_text)
    with broker(strange, port) as (_, log, _):
        assert paste(own, publish, port).returncode != 0
        wait_for(log, "alert unknown ca")


# --- PostgreSQL ------------------------------------------------------------------------------


@contextmanager
def database(keys: Path, port: int) -> Iterator[tuple[Path, Path, int]]:
    """The page's server in its own cluster: its copy of the keys, its log and process."""
    needs("psql")
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    newest = max(versions, key=lambda path: int(path.parent.name))
    with handed_over(keys / "keys/server", "server", "postgres") as (folder, prefix):
        cluster = folder / "cluster"
        postgres = [*prefix, str(newest / "postgres")]
        create = [*prefix, str(newest / "initdb"), "-D", str(cluster), "-U", "postgres"]
        create += ["--no-sync"]
        subprocess.run(create, cwd=folder, check=True, capture_output=True)
        (folder / "server").rename(cluster / "server")
        with (cluster / "postgresql.conf").open("a") as file:
            file.write(recipe("PostgreSQL", "ssl = on", "ini").replace("8443", str(port)))
            # The system's are another cluster's.
            file.write("unix_socket_directories = ''\n")
        (cluster / "pg_hba.conf").write_text(recipe("PostgreSQL", "hostssl", "conf"))
        subprocess.run(
            [*postgres, "--single", "-D", str(cluster), "postgres"],
            input=b"CREATE ROLE client LOGIN\n",
            cwd=folder,
            check=True,
            capture_output=True,
        )
        with running(folder, f"exec {' '.join(postgres)} -D cluster", port) as log:
            lock = cluster / "postmaster.pid"
            pid = int(lock.read_text().split()[0])
            try:
                yield cluster / "server", log, pid
            finally:  # killed, it would leave shared memory behind
                os.kill(pid, signal.SIGINT)
                poll(lambda: not lock.exists(), log.read_text)


VERIFY_FAILED = "certificate verify failed"
# What a node changes in its service file, and what the server then says.
LOGINS = [
    (None, r"sslcert=.*\nsslkey=.*\n", "", "connection requires a valid client certificate"),
    (
        None,
        "user=client",
        "user=postgres",
        'certificate authentication failed for user "postgres"',
    ),
    (None, "=TLSv1.3", "=TLSv1.2\nssl_max_protocol_version=TLSv1.2", "unsupported protocol"),
]


@pytest.mark.postgresql
def test_a_node_logs_into_postgresql_by_its_name_and_a_stranger_does_not(
    made: Path, strangers: Path, tmp_path: Path
) -> None:
    port = free_port()
    query = recipe("PostgreSQL", QUERY, "sh")
    folders = {}
    for name, source in (("own", made), ("strange", strangers)):
        folders[name] = tmp_path / name
        shutil.copytree(source, folders[name], symlinks=True)
        service = recipe("PostgreSQL", "[robots]", "ini").replace("8443", str(port))
        (folders[name] / "pg_service.conf").write_text(service)
    own, strange = folders["own"], folders["strange"]
    service = (own / "pg_service.conf").read_text()
    with database(own, port) as (keys, log, pid):
        assert run_block(own, query) == "client\n"
        version = query.replace("current_user", "version FROM pg_stat_ssl")
        assert run_block(own, version).strip() == "TLSv1.3"
        for folder, old, new, says in [(strange, "", "", VERIFY_FAILED), *LOGINS]:
            place = folder or own
            changed = re.sub(old, new, service) if old else service
            (place / "pg_service.conf").write_text(changed)
            refused = paste(place, query, port)
            assert refused.returncode != 0 and not refused.stdout, says
            wait_for(log, says)
        elsewhere = "host=elsewhere\nhostaddr=127.0.0.1"
        (own / "pg_service.conf").write_text(service.replace("host=localhost", elsewhere))
        assert "does not match host name" in paste(own, query, port).stderr
        (own / "pg_service.conf").write_text(service)
        assert run_block(own, query) == "client\n"
        # The same node once it is revoked.
        assert generate(own, "--revoke", "client").returncode == 0
        replace_list(own / "keys/server", keys, log, pid, "reloading configuration files")
        poll(lambda: paste(own, query, port).returncode != 0, log.read_text)
        assert "certificate revoked" in paste(own, query, port).stderr
    with database(strange, port):
        refused = paste(own, query, port)
        assert refused.returncode != 0 and VERIFY_FAILED in refused.stderr
