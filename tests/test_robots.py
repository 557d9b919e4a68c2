"""What robots talk by, with a node's folder: DDS (ROS 2), MQTT, gRPC, and a database to log into.

Each test pastes the README's blocks, and shows an exchange beside its refusal.
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
from pathlib import Path

import programs
import pytest
from conftest import ROOT, configure, generate
from programs import Program, check_row, free_port, paste, poll, recipe, running

pytestmark = pytest.mark.slow

DDS = Program("Cyclone DDS", "OpenSSL", "dpkg-query -W libddsc0debian", True, True, True)
GRPC = Program("gRPC", "BoringSSL", "python -c 'import grpc; print(grpc.__version__)'", True, True, True)
MQTT = Program("mosquitto", "OpenSSL", "mosquitto -h | head -n 1", True, True, False)
SQL = Program("PostgreSQL", "OpenSSL", "psql --version", True, True, True)
MARKERS = {
    "governance": "<allow_unauthenticated_participants>false<",
    "permissions": "<grant ",
    "cyclonedds": "<CycloneDDS>",
}
ROS_2 = dict(part.split("\n", 1) for part in programs.README.split("\n## ")[1:])["ROS 2"]


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


def run_block(folder: Path, text: str, port: int = 0) -> str:
    """Paste a block that must succeed, and return what it printed."""
    result = paste(folder, text, port)
    assert result.returncode == 0, result.stderr
    return result.stdout


def prepare(folder: Path) -> None:
    """Put into a folder what a reader has there: the script, and the virtual environment."""
    shutil.copy(ROOT / "simple_key_generation.py", folder)
    (folder / ".venv").symlink_to(sys.prefix)


def wait_for(log: Path, text: str, start: int = 0) -> None:
    """Wait until a text stands in a log, from some place on."""
    poll(lambda: text in log.read_text()[start:], log.read_text)


@contextmanager
def handed_over(keys: Path, place: str, user: str) -> Iterator[tuple[Path, list[str]]]:
    """A folder of a service's own with a copy of its keys, and what a command starts with to be its user."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:  # the tests' own folders are closed to other users
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(keys, folder / place)
        if root:
            subprocess.run(["chown", "-R", f"{user}:", name], check=True)
        yield folder, ["setpriv", "--reuid", user, "--regid", user, "--init-groups"] if root else []


def replace_list(source: Path, target: Path, log: Path, pid: int, says: str) -> None:
    """Hand a newer revocation list to a service, in place, and wait until it says that it read it."""
    seen = len(log.read_text())
    (target / "crl.pem").write_bytes((source / "crl.pem").read_bytes())
    os.kill(pid, signal.SIGHUP)
    wait_for(log, says, seen)


# --- DDS ----------------------------------------------------------------------------------------------------


def dds_block(kind: str, marker: str) -> str:
    """The README's block of ROS 2 that a marker stands in."""
    found = re.findall(rf"^```{kind}\n(.*?)^```$", ROS_2, re.DOTALL | re.MULTILINE)
    return next(str(text) for text in found if marker in text)


def make_enclaves(folder: Path, change: Callable[[str], str] = str) -> Path:
    """Make the README's files in a folder, its hierarchy changed if need be, and enclaves of them."""
    prepare(folder)
    (folder / "dds.yml").write_text(change(dds_block("yaml", "dds:")))
    for name, marker in MARKERS.items():
        (folder / f"{name}.xml").write_text(dds_block("xml", marker))
    run_block(folder, dds_block("sh", "smime"))
    return folder


@pytest.fixture(scope="module")
def enclaves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's folder after its commands, with two further nodes, one of them revoked."""
    folder = make_enclaves(
        tmp_path_factory.mktemp("dds"), lambda text: f"{text}    camera: *node\n    thief: *node\n"
    )
    shutil.copy(folder / "keys/thief/crl.pem", folder / "old.pem")
    assert generate(folder, "-c", "dds.yml", "--revoke", "thief").returncode == 0
    for role in ("talker", "listener"):
        shutil.copy(folder / "keys" / role / "crl.pem", folder / "enclaves" / role)
    return folder


@pytest.fixture(scope="module")
def aliens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same names by another CA."""
    return make_enclaves(tmp_path_factory.mktemp("aliens"))


@pytest.fixture
def domain() -> Iterator[int]:
    """A domain of the test's own: it keeps the first of the domain's ports, which goes unused on loopback."""
    for number in range(1, 100):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as port:
            try:
                port.bind(("127.0.0.1", 7400 + 250 * number))
            except OSError:
                continue
            yield number
            return


Join = Callable[..., AbstractContextManager[Path]]


@pytest.fixture
def join(domain: int, enclaves: Path) -> Join:
    """Have a participant talk or listen, by the README's commands, with an enclave of some folder."""

    def start(
        role: str, enclave: Path | None = None, folder: Path = enclaves
    ) -> AbstractContextManager[Path]:
        command = dds_block("sh", f"ENCLAVE=enclaves/{role}").replace("-i 42", f"-i {domain}")
        command = command.replace(f"enclaves/{role}", str(enclave or folder / "enclaves" / role))
        return running(folder, dds_block("sh", "CYCLONEDDS_URI") + command, 0, ready=lambda: True)

    return start


def received(log: Path) -> bool:
    """Whether a listener has counted samples."""
    return bool(re.search(r" total [1-9]", log.read_text()))


def printed(*logs: Path) -> str:
    """What participants printed, for the report of a failure."""
    return "\n---\n".join(log.read_text() for log in logs)


def enclave_of(intruder: str, role: str, enclaves: Path, aliens: Path, folder: Path) -> Path:
    """Make the enclave of an intruder in some role, from that of the right one."""
    enclave, signer, name = folder / role, enclaves / "keys/dds", role
    shutil.copytree((aliens if intruder == "another CA" else enclaves) / "enclaves" / role, enclave)
    if intruder == "another CA":
        return enclave
    permissions = dds_block("xml", MARKERS["permissions"])
    if intruder == "no topic":
        permissions = permissions.replace("DDSPerf*", "Other*")
    elif intruder in ("no grant", "revoked"):
        name = {"no grant": "camera", "revoked": "thief"}[intruder]
        for file in ("cert.pem", "key.pem"):
            shutil.copy(enclaves / "keys" / name / file, enclave)
        shutil.copy(enclaves / "old.pem", enclave / "crl.pem")
    elif intruder == "permissions of its own":
        signer = aliens / "keys/dds"
        shutil.copy(signer / "cert.pem", enclave / "permissions_ca.cert.pem")
        shutil.copy(aliens / "enclaves" / role / "governance.p7s", enclave)
    granted = role if intruder == "no grant" else name
    (enclave / "permissions.xml").write_text(permissions.replace("NODE", granted))
    sign = dds_block("sh", "smime").splitlines()[1].replace("keys/dds", str(signer))
    run_block(enclave, f"{sign}\nsign <permissions.xml >permissions.p7s")
    return enclave


@pytest.mark.cyclonedds
def test_the_hierarchy_for_dds_is_that_of_the_readme() -> None:
    assert (ROOT / "tests/dds.yml").read_text() == dds_block("yaml", "dds:")


@pytest.mark.cyclonedds
@pytest.mark.parametrize("role", ["talker", "listener"])
@pytest.mark.parametrize(
    ("intruder", "line", "says"),
    [
        ("another CA", "Certificate not valid: error: unable to get local issuer certificate", "either"),
        ("revoked", r"Certificate not valid: error: certificate revoked; subject: /CN=\\/thief", "own"),
        ("permissions of its own", r"Could not get remote participant \S+ permissions", "own"),
        ("no grant", "Subject name is invalid", "intruder"),
        ("no topic", "failed: -13", "intruder"),
        ("no security", r"\] [2-9]\.\d", "either"),  # nobody says anything for two seconds
    ],
)
def test_participants_exchange_data_with_their_own_kind_and_with_nobody_else(
    join: Join, enclaves: Path, aliens: Path, tmp_path: Path, role: str, intruder: str, line: str, says: str
) -> None:
    if intruder == "no security":
        settings = dds_block("xml", MARKERS["cyclonedds"])
        settings = re.sub("<Security>.*</Security>", "", settings, flags=re.DOTALL)
        (tmp_path / "cyclonedds.xml").write_text(settings)
        intrusion = join(role, folder=tmp_path)
    else:
        intrusion = join(role, enclave_of(intruder, role, enclaves, aliens, tmp_path))
    with ExitStack() as participants:
        own = participants.enter_context(join("listener" if role == "talker" else "talker"))
        other = participants.enter_context(intrusion)
        who = {"own": [own], "intruder": [other], "either": [own, other]}[says]
        poll(lambda: any(re.search(line, log.read_text()) for log in who), lambda: printed(own, other))
        assert not received(own) and not received(other), printed(own, other)
        # The same with the right enclave.
        twin = participants.enter_context(join(role))
        poll(lambda: received(own) or received(twin), lambda: printed(own, twin))
        assert not received(other), other.read_text()


@pytest.mark.cyclonedds
@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("ec:prime256v1", "rsa:2048", ""),
        ("cipher: aes-256-cbc", "cipher: ~", ""),  # as ROS 2 wants it
        ("ec:prime256v1", "ec:secp384r1", "Certificate authentication algorithm unknown"),
        ("digitalSignature, keyCertSign", "keyCertSign", "unsuitable certificate purpose"),
    ],
)
def test_the_hierarchy_can_be_as_its_comments_say_and_not_otherwise(
    join: Join, tmp_path: Path, old: str, new: str, error: str
) -> None:
    make_enclaves(tmp_path, lambda text: text.replace(old, new))
    with join("talker", folder=tmp_path) as talker, join("listener", folder=tmp_path) as listener:
        if error:
            wait_for(talker, error)
            wait_for(listener, error)
        else:
            poll(lambda: received(listener), lambda: printed(talker, listener))
        assert received(listener) == (not error)


@pytest.mark.cyclonedds
def test_cyclone_dds_verifies_no_chain_with_an_intermediate_ca(join: Join, tmp_path: Path) -> None:
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

    make_enclaves(tmp_path, longer)
    shutil.copy(tmp_path / "keys/talker/fullchain.pem", tmp_path / "enclaves/talker/cert.pem")
    with join("talker", folder=tmp_path) as log:
        wait_for(log, "unable to get local issuer certificate")


# --- gRPC ---------------------------------------------------------------------------------------------------


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
    start, call = recipe("gRPC", "grpc_server.py", "sh"), recipe("gRPC", "grpc_client.py", "sh")
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
        assert log.read_text().count("hola from client\n") == log.read_text().count("hola") == 2
    with running(strange, start, port):
        refused = paste(own, call, port)
        assert refused.returncode == 1 and "CERTIFICATE_VERIFY_FAILED" in refused.stderr


# --- MQTT ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fleets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The hierarchy with the README's nodes for MQTT, and the same by another CA, who trusts this one."""
    folders = tmp_path_factory.mktemp("own"), tmp_path_factory.mktemp("strange")
    for folder in folders:
        prepare(folder)
        configuration = configure(folder)
        configuration.write_text(configuration.read_text() + recipe("mosquitto", "broker:", "yaml"))
        assert generate(folder).returncode == 0
    for node in ("broker", "camera", "display"):
        for file in ("ca.pem", "crl.pem"):
            shutil.copy(folders[0] / "keys" / node / file, folders[1] / "keys" / node)
    return folders


@contextmanager
def broker(keys: Path, port: int) -> Iterator[tuple[Path, Path, int]]:
    """The README's broker with a copy of its keys: where those are, what it prints, its process."""
    with handed_over(keys / "keys/broker", "keys/broker", "mosquitto") as (folder, _):
        configuration = recipe("mosquitto", "require_certificate", "conf")
        (folder / "mosquitto.conf").write_text(configuration.replace("8443", str(port)))
        command = f"echo $$ >pid; exec {recipe('mosquitto', 'mosquitto -c', 'sh')}"
        with running(folder, command, port) as log:
            yield folder / "keys/broker", log, int((folder / "pid").read_text())


@pytest.mark.mosquitto
def test_mqtt_messages_pass_between_nodes_and_not_to_or_from_strangers(
    fleets: tuple[Path, Path], tmp_path: Path
) -> None:
    own, strange = fleets
    port = free_port()
    publish, subscribe = (recipe("mosquitto", f"mosquitto_{verb}", "sh") for verb in ("pub", "sub"))
    spoof = publish.replace("hola", "spoofed")
    bare = re.sub(r" --cert \S+ --key \S+", "", spoof)
    assert bare != spoof
    with broker(own, port) as (keys, log, pid):
        with running(own, subscribe, port, ready=lambda: "u'display'" in log.read_text()) as seen:
            for folder, command, error in (
                (strange, spoof, "certificate verify failed"),
                (own, bare, "peer did not return a certificate"),
                (own, "openssl s_client -tls1_2 -connect localhost:8443", "unsupported protocol"),
            ):
                assert paste(folder, command, port).returncode != 0
                wait_for(log, error)
            run_block(own, publish, port)
            poll(lambda: seen.read_text() == "hola\n", seen.read_text)
            assert "u'camera'" in log.read_text()
        # The same camera once it is revoked.
        later = tmp_path / "later"
        shutil.copytree(own, later, symlinks=True)
        assert generate(later, "--revoke", "camera").returncode == 0
        replace_list(later / "keys/broker", keys, log, pid, "Reloading config.")
        assert paste(own, publish, port).returncode != 0
        assert log.read_text().count("certificate verify failed") == 2
    with broker(strange, port) as (_, log, _):
        assert paste(own, publish, port).returncode != 0
        wait_for(log, "alert unknown ca")


# --- PostgreSQL ---------------------------------------------------------------------------------------------


@contextmanager
def database(keys: Path, port: int) -> Iterator[tuple[Path, Path, int]]:
    """The README's server in a cluster of its own: its copy of the keys, what it prints, its process."""
    installed = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    with handed_over(keys / "keys/server", "server", "postgres") as (folder, prefix):
        cluster = folder / "cluster"
        postgres = [*prefix, str(installed / "postgres")]
        subprocess.run(
            [*prefix, str(installed / "initdb"), "-D", str(cluster), "-U", "postgres", "--no-sync"],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        (folder / "server").rename(cluster / "server")
        with (cluster / "postgresql.conf").open("a") as file:
            file.write(recipe("PostgreSQL", "ssl = on", "ini").replace("8443", str(port)))
            file.write("unix_socket_directories = ''\n")  # those of the system are another cluster's
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


@pytest.mark.postgresql
def test_a_node_logs_into_postgresql_by_its_name_and_a_stranger_does_not(
    made: Path, strangers: Path, tmp_path: Path
) -> None:
    port = free_port()
    query = recipe("PostgreSQL", "psql", "sh")
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
        assert run_block(own, query.replace("current_user", "version FROM pg_stat_ssl")).strip() == "TLSv1.3"
        refusals = [
            (strange, "", "", "certificate verify failed"),
            (own, r"sslcert=.*\nsslkey=.*\n", "", "connection requires a valid client certificate"),
            (own, "user=client", "user=postgres", 'certificate authentication failed for user "postgres"'),
            (own, "=TLSv1.3", "=TLSv1.2\nssl_max_protocol_version=TLSv1.2", "unsupported protocol"),
        ]
        for folder, old, new, says in refusals:
            (folder / "pg_service.conf").write_text(re.sub(old, new, service) if old else service)
            refused = paste(folder, query, port)
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
        assert refused.returncode != 0 and "certificate verify failed" in refused.stderr
