"""Other CAs: one that has the key instead, one above, one beside; keys that never travel."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from certificates import NEW_KEY, SUBJECT, certificate, judge, lists, number
from configurations import configure, edit
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from exchanges import ANSWERED, SERVED, Serve, Server, client
from folders import DERIVED, NODE_FILES, changed, drop, tree
from needs import needs
from programs import run_block
from running import (
    CLIENT,
    DEADLINE,
    MASTERS,
    PHRASES,
    SERVER,
    Result,
    complaints,
    environment,
    fine,
    generate,
    generate_here,
    openssl,
    refused,
    run,
)

pytestmark = pytest.mark.slow
UNTRUSTED = "unable to get (local )?issuer|self.signed certificate|signature failure"
RSA = ("-newkey", "rsa:3072", "-nodes")


# --- A CA that is not the script, and the exchange -------------------------------------------

CONFIGURATION = """
[ca]
default_ca = here
[here]
dir = {folder}
database = $dir/index.txt
new_certs_dir = $dir
certificate = $dir/cert.pem
private_key = $dir/key.pem
crlnumber = $dir/crlnumber
rand_serial = yes
unique_subject = no
default_md = sha256
default_days = 900
default_crl_days = 900
policy = whole
crl_extensions = list
[numberless]
dir = {folder}
database = $dir/index.txt
certificate = $dir/cert.pem
private_key = $dir/key.pem
default_md = sha256
default_crl_days = 900
[whole]
countryName = optional
organizationName = optional
organizationalUnitName = optional
commonName = supplied
[short]
countryName = optional
organizationName = optional
commonName = supplied
[list]
authorityKeyIdentifier = keyid
[req]
distinguished_name = empty
[empty]
[anchor]
basicConstraints = critical, CA:TRUE, pathlen:{length}
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[ca-above-cas]
basicConstraints = critical, CA:TRUE, pathlen:1
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[ca-above-nodes]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[node]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


class Authority:
    """A CA as `openssl ca` keeps it, with its database, in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        subject: str,
        *key: str,
        above: Authority | None = None,
        length: int = 1,
    ) -> None:
        folder.mkdir()
        self.folder, self.cert, self.conf = folder, folder / "cert.pem", folder / "ca.cnf"
        self.conf.write_text(CONFIGURATION.format(folder=folder, length=length))
        (folder / "index.txt").touch()
        (folder / "crlnumber").write_text("01\n")
        new: list[str | Path] = [
            *(key or NEW_KEY),
            "-keyout",
            folder / "key.pem",
            "-subj",
            subject,
        ]
        if above is None:
            how = ("-x509", "-extensions", "anchor", "-days", "1000", "-out", self.cert)
            openssl("req", "-config", self.conf, *new, *how)
        else:
            openssl("req", "-config", self.conf, "-new", *new, "-out", folder / "csr.pem")
            above.sign(folder / "csr.pem", self.cert, "-extensions", "ca-above-nodes")

    def ca(self, *arguments: str | Path) -> None:
        """Run `openssl ca`."""
        openssl("ca", "-batch", "-config", self.conf, *arguments)

    def sign(self, request: Path, out: Path, *how: str) -> None:
        """Sign a request. The certificate comes after its text, as from `openssl ca`."""
        self.ca("-in", request, "-out", out, *how)

    def put_list(self, out: Path, *how: str) -> None:
        """Make a revocation list."""
        self.ca("-gencrl", "-out", out, *how)


def make_request(folder: Path, subject: str, *more: str) -> Path:
    """Make a key and a request in a folder, by openssl."""
    files = ("-keyout", folder / "key.pem", "-out", folder / "csr.pem")
    openssl("req", "-new", *NEW_KEY, *files, "-subj", subject, *more)
    return folder / "csr.pem"


def pem_of(path: Path) -> str:
    """Return a file's first certificate without the text around it."""
    return certificate(path).public_bytes(Encoding.PEM).decode()


def make_client(folder: Path, signer: Authority, trust: Path, *chain: Path) -> Path:
    """Make a client's folder, signed by an Authority, with a chain and a trust anchor."""
    folder.mkdir()
    request = make_request(folder, "/O=Their Organisation/CN=theirs")
    signer.sign(request, folder / "cert.pem", "-extensions", "node")
    (folder / "fullchain.pem").write_text("".join(map(pem_of, [folder / "cert.pem", *chain])))
    (folder / "ca.pem").write_text(pem_of(trust))
    return folder


def accepts(server: Server, keys: Path) -> None:
    """Require that server and client accept each other, and that each has its answer."""
    before = server.out.read_text()
    result = client(server.port, keys)
    expected = (0, ANSWERED, warning_of_lists(keys))
    assert (result.returncode, result.stdout, result.stderr) == expected
    assert server.printed(before + SERVED)


def warning_of_lists(keys: Path) -> str:
    """Return the warning that a client prints if its folder has no lists."""
    lists = keys / "crl.pem"
    if lists.exists():
        return ""
    return f"{CLIENT.name}: warning: {lists} is missing: revoked peers are let in\n"


def turns_away(server: Server, keys: Path, reason: str, alert: str) -> None:
    """Require that a server refuses a client for a reason, and the client gets the alert."""
    said, known = server.out.read_text(), server.err.read_text()
    result = client(server.port, keys)
    assert (result.returncode, result.stdout) == (1, "")
    warning = warning_of_lists(keys)
    assert result.stderr.startswith(warning)
    (line,) = result.stderr.removeprefix(warning).splitlines()
    assert line.startswith(f"{CLIENT.name}: error: ") and f"alert {alert}" in line, line
    server.wait_for(lambda: server.err.read_text().count("\n") > known.count("\n"))
    (line,) = server.err.read_text().removeprefix(known).splitlines()
    assert line.startswith(f"{SERVER.name}: error: ") and re.search(reason, line), line
    assert server.out.read_text() == said


def turns_from(result: Result, reason: str) -> None:
    """Require that a client refused its server for a reason."""
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{CLIENT.name}: error: ") and re.search(reason, line), line


def curl(port: int, keys: Path | None, trust: Path, *more: str, what: str = "") -> Result:
    """Run curl with the identity of a folder, if any, trusting one certificate."""
    identity = ("--cert", keys / "fullchain.pem", "--key", keys / "key.pem") if keys else ()
    quiet = (
        "--silent",
        "--show-error",
        "--noproxy",
        "*",
        "--max-time",
        str(DEADLINE),
        "--config",
        "-",
    )
    url = f"https://localhost:{port}/{what}"
    return run(
        "curl", *quiet, "--cacert", trust, *identity, *more, url, stdin='pass = "sros"\n'
    )


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Start servers that end with the last test."""
    servers: list[Server] = []

    def start(keys: Path) -> Server:
        servers.append(Server("-k", str(keys), cwd=tmp_path_factory.mktemp("server")))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
        server.process.wait()


# --- A root whose key is elsewhere -----------------------------------------------------------


class Asking(NamedTuple):
    """A folder in which master's request waits, and the CA that has root's key."""

    folder: Path
    root: Authority
    result: Result


@pytest.fixture(scope="module")
def once_asked(tmp_path_factory: pytest.TempPathFactory) -> Asking:
    """A folder that was given a root's certificate and list after a run. Read only."""
    base = tmp_path_factory.mktemp("asking")
    root = Authority(base / "elsewhere", f"{SUBJECT}root", *RSA)
    folder = base / "here"
    (folder / "keys/root").mkdir(parents=True)
    shutil.copy(root.cert, folder / "keys/root")
    root.put_list(folder / "keys/root/crl.pem")
    edit(folder, lambda keys: keys["root"].update(key="rsa:3072"))
    return Asking(folder, root, generate_here(folder, env=MASTERS))


@pytest.fixture
def asking(once_asked: Asking, tmp_path: Path) -> Asking:
    """Copies of both, to change."""
    folder, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    shutil.copytree(once_asked.folder, folder)
    shutil.copytree(once_asked.root.folder, elsewhere)
    root = Authority.__new__(Authority)
    root.folder, root.cert, root.conf = elsewhere, elsewhere / "cert.pem", elsewhere / "ca.cnf"
    root.conf.write_text(CONFIGURATION.format(folder=elsewhere, length=1))
    return Asking(folder, root, once_asked.result)


def test_without_roots_key_master_gets_a_request_and_a_line_says_who_must_sign_it(
    once_asked: Asking,
) -> None:
    folder, root, result = once_asked
    first, _ = refused(result, "keys/master/csr.pem", "2 below master")
    assert "keys/root" in first and "cert.pem" in first
    master = folder / "keys/master"
    assert {path.name for path in master.iterdir()} == {"key.pem", "csr.pem"}
    assert (master / "key.pem").stat().st_mode & 0o777 == 0o600
    assert {path.name for path in (folder / "keys").iterdir()} == {"root", "master"}
    assert (folder / "keys/root/cert.pem").read_bytes() == root.cert.read_bytes()
    named = ("-subject", "-nameopt", "oneline")
    shown = openssl("req", "-in", master / "csr.pem", "-verify", "-noout", *named, "-pubkey")
    assert "CN = master" in shown
    assert (
        openssl("pkey", "-in", master / "key.pem", "-passin", "pass:sros", "-pubout") in shown
    )


def sign_master(asking: Asking) -> None:
    """Have the root elsewhere sign master's request."""
    master = asking.folder / "keys/master"
    how = ("-extensions", "ca-above-nodes")
    asking.root.sign(master / "csr.pem", master / "cert.pem", *how)


def test_master_signed_by_an_rsa_root_elsewhere_goes_on_down_to_nodes_that_talk(
    asking: Asking, serve: Serve
) -> None:
    folder, root, _ = asking
    keys = folder / "keys"
    sign_master(asking)
    assert (keys / "master/cert.pem").read_text().startswith("Certificate:\n")
    before = tree(keys)
    result = fine(generate(folder, env=MASTERS))
    assert [line.split()[:3] for line in result.stdout.splitlines()] == [
        ["root", "kept", "rsa:3072"],
        ["master", "kept", "ec:prime256v1"],
        ["server", "made", "ec:prime256v1"],
        ["client", "made", "ec:prime256v1"],
    ]
    after = tree(keys)
    for name in (
        "root/cert.pem",
        "root/crl.pem",
        *(f"master/{x}.pem" for x in ("key", "csr", "cert")),
    ):
        assert after[name] == before[name]
    assert not (keys / "root/key.pem").exists()
    for node in ("server", "client"):
        assert {path.name for path in (keys / node).iterdir()} == NODE_FILES
        assert pem_of(keys / node / "ca.pem") == pem_of(root.cert)
        assert [crl.issuer for crl in lists(keys / node / "crl.pem")] == [
            certificate(keys / f"{ca}/cert.pem").subject for ca in ("master", "root")
        ]
    accepts(serve("-k", str(keys / "server")), keys / "client")
    fine(generate(folder, env=None))
    assert tree(keys) == after


def test_a_root_that_brings_no_list_is_an_error_and_its_nodes_get_none(
    asking: Asking, serve: Serve
) -> None:
    folder = asking.folder
    keys = folder / "keys"
    brought = (keys / "root/crl.pem").read_bytes()
    drop(keys / "root", "crl.pem")
    sign_master(asking)
    refused(generate_here(folder), "keys/root/crl.pem: is missing")
    assert {path.name for path in (keys / "server").iterdir()} == NODE_FILES - {"crl.pem"}
    assert {path.name for path in (keys / "client").iterdir()} == NODE_FILES - {"crl.pem"}
    assert not (keys / "root/crl.pem").exists()
    accepts(serve("-k", str(keys / "server")), keys / "client")

    (keys / "root/crl.pem").write_bytes(brought)
    before = tree(keys)
    fine(generate_here(folder, env=None))
    assert changed(before, tree(keys)) == {"server/crl.pem", "client/crl.pem"}
    assert [len(lists(keys / node / "crl.pem")) for node in ("server", "client")] == [2, 2]


def certify_another_key(asking: Asking, cert: Path) -> None:
    """Have root sign a request of the same name for another key."""
    asking.root.sign(
        make_request(asking.root.folder.parent, f"{SUBJECT}master"),
        cert,
        "-extensions",
        "ca-above-nodes",
    )


def certify_by_a_stranger(asking: Asking, cert: Path) -> None:
    """Have a CA sign that is called root, too."""
    stranger = Authority(asking.folder.with_name("stranger"), f"{SUBJECT}root")
    stranger.sign(cert.with_name("csr.pem"), cert, "-extensions", "ca-above-nodes")


def certify_no_ca(asking: Asking, cert: Path) -> None:
    """Have root sign with CA:FALSE."""
    asking.root.sign(cert.with_name("csr.pem"), cert, "-extensions", "node")


def certify_nothing(asking: Asking, cert: Path) -> None:
    """Have root sign without any extension, as `openssl ca` does when it is told none."""
    asking.root.sign(cert.with_name("csr.pem"), cert)


@pytest.mark.parametrize(
    "mistake", [certify_another_key, certify_by_a_stranger, certify_no_ca, certify_nothing]
)
def test_a_masters_certificate_that_cannot_be_one_is_refused_and_changes_nothing(
    asking: Asking, mistake: Callable[[Asking, Path], None]
) -> None:
    # Its twin is above.
    master = asking.folder / "keys/master"
    mistake(asking, master / "cert.pem")
    before = tree(asking.folder)
    refused(generate_here(asking.folder), "keys/master/cert.pem", "2 below master")
    assert tree(asking.folder) == before


def test_what_the_root_elsewhere_revokes_reaches_the_nodes_with_its_next_list(
    asking: Asking, serve: Serve
) -> None:
    folder, root, _ = asking
    keys = folder / "keys"
    sign_master(asking)
    fine(generate_here(folder))
    unaware = folder.with_name(
        "unaware"
    )  # a client that has no list, so that the server decides
    shutil.copytree(keys / "client", unaware)
    drop(unaware, "crl.pem")
    server = serve("-k", str(keys / "server"))
    accepts(server, unaware)

    root.ca("-revoke", keys / "master/cert.pem")
    root.put_list(keys / "root/crl.pem")
    first, _ = refused(
        generate_here(folder, env=None), "keys/master/cert.pem", "2 below master"
    )
    assert "revoked" in first
    for node in ("server", "client"):
        assert [number(crl) for crl in lists(keys / node / "crl.pem")] == [1, 2]
        assert [len(crl) for crl in lists(keys / node / "crl.pem")] == [0, 1]
    server = serve("-k", str(keys / "server"))
    turns_away(server, unaware, "certificate revoked", "certificate revoked")


def test_a_list_without_a_number_is_the_first_one(asking: Asking) -> None:
    folder, root, _ = asking  # whose list has a number, and was accepted
    root.put_list(folder / "keys/root/crl.pem", "-name", "numberless")
    before = tree(folder)
    refused(generate_here(folder), "keys/master/csr.pem", "2 below master")
    assert tree(folder) == before


# --- A higher CA -----------------------------------------------------------------------------


class Crossed(NamedTuple):
    """A folder whose trust anchor a higher CA certified, that CA, and servers for both."""

    folder: Path
    higher: Authority
    ours: Server
    theirs: Server


def trusting(node: Path, trust: Path, out: Path) -> Path:
    """Copy a node's folder, and have it trust another certificate, without lists."""
    shutil.copytree(node, out)
    drop(out, "crl.pem")
    (out / "ca.pem").write_text(pem_of(trust))
    return out


@pytest.fixture(scope="module")
def under_a_higher_ca(
    made: Path, tmp_path_factory: pytest.TempPathFactory, lasting: Serve
) -> Crossed:
    """A copy of the keys with a cross.pem, by `openssl ca`, RSA above EC: to read only."""
    base = tmp_path_factory.mktemp("higher")
    higher = Authority(base / "higher", "/O=Group/CN=Higher", *RSA, length=2)
    folder = base / "here"
    shutil.copytree(made, folder)
    root, request = folder / "keys/root", higher.folder / "root.csr"
    pair = ("-in", root / "cert.pem", "-signkey", root / "key.pem", "-passin", "pass:root")
    openssl("x509", "-x509toreq", *pair, "-out", request)
    higher.sign(request, root / "cross.pem", "-extensions", "ca-above-cas")
    fine(generate_here(folder, env=None))
    theirs = trusting(folder / "keys/server", higher.cert, base / "theirs")
    return Crossed(folder, higher, lasting(folder / "keys/server"), lasting(theirs))


@pytest.fixture
def crossed(under_a_higher_ca: Crossed, tmp_path: Path) -> Crossed:
    """A copy of the keys, to change."""
    folder = tmp_path / "crossed"
    shutil.copytree(under_a_higher_ca.folder, folder)
    return under_a_higher_ca._replace(folder=folder)


def verdicts(folder: Path, higher: Authority, name: str) -> list[Result]:
    """Return what OpenSSL and GnuTLS say of a node when only the higher CA is trusted."""
    node, trust = folder / "keys" / name, ("-no-CApath", "-no-CAstore", "-CAfile", higher.cert)
    chain = ("-untrusted", node / "fullchain.pem", node / "cert.pem")
    return [
        run("openssl", "verify", *trust, *chain),
        run("openssl", "verify", "-x509_strict", *trust, *chain),
        run(
            *("certtool", "--verify", "--verify-profile", "medium"),
            *("--load-ca-certificate", higher.cert, "--infile", node / "fullchain.pem"),
        ),
    ]


def test_those_who_trust_a_higher_ca_verify_our_nodes_through_cross_pem(
    made: Path, under_a_higher_ca: Crossed, serve: Serve
) -> None:
    folder, higher, server, _ = under_a_higher_ca
    cross = folder / "keys/root/cross.pem"
    assert cross.read_text().startswith("Certificate:\n")
    for name in ("server", "client"):
        chain = (folder / f"keys/{name}/fullchain.pem").read_text()
        assert chain == (made / f"keys/{name}/fullchain.pem").read_text() + pem_of(cross)
        for judged in verdicts(folder, higher, name):
            assert judged.returncode == 0, judged.stdout + judged.stderr
        for judged in verdicts(made, higher, name):
            assert judged.returncode != 0, judged.stdout
    # In the exchange, with a client that has no cross.pem itself.
    without = serve("-k", str(made / "keys/server"))
    answer = curl(server.port, made / "keys/client", higher.cert)
    assert (answer.returncode, answer.stdout) == (0, "hello\n"), answer.stderr
    answer = curl(without.port, made / "keys/client", higher.cert)
    assert answer.returncode != 0 and "unable to get" in answer.stderr and not answer.stdout
    for each in (server, without):
        accepts(each, made / "keys/client")


def only_the_higher_ca_lets_in(crossed: Crossed, theirs: Path, *between: Path) -> None:
    """Require that our server refuses a client of the higher CA, whatever chain it sends."""
    folder, higher, server, trusting_higher = crossed
    cross = folder / "keys/root/cross.pem"
    turns_away(server, theirs, UNTRUSTED, "unknown ca")
    for more in ([cross], [cross, higher.cert]):
        chain = [theirs / "cert.pem", *between, *more]
        (theirs / "fullchain.pem").write_text("".join(map(pem_of, chain)))
        turns_away(server, theirs, UNTRUSTED, "unknown ca")
    accepts(server, folder / "keys/client")
    accepts(trusting_higher, theirs)  # the same client is sound


def test_a_client_of_the_higher_ca_is_refused_even_with_cross_pem_in_its_chain(
    under_a_higher_ca: Crossed, tmp_path: Path
) -> None:
    higher = under_a_higher_ca.higher
    theirs = make_client(tmp_path / "theirs", higher, higher.cert)
    only_the_higher_ca_lets_in(under_a_higher_ca, theirs)


@pytest.mark.parametrize("subject", ["/O=Group/CN=Beside", f"{SUBJECT}master"])
def test_a_client_of_a_ca_below_the_higher_ca_is_refused_even_if_it_has_our_masters_name(
    under_a_higher_ca: Crossed, tmp_path: Path, subject: str
) -> None:
    higher = under_a_higher_ca.higher
    beside = Authority(tmp_path / "sub", subject, above=higher)
    theirs = make_client(tmp_path / "theirs", beside, higher.cert, beside.cert)
    only_the_higher_ca_lets_in(under_a_higher_ca, theirs, beside.cert)


def test_cross_pem_stays_good_when_root_is_renewed(
    made: Path, crossed: Crossed, tmp_path: Path, serve: Serve
) -> None:
    folder, higher, *_ = crossed
    keys = folder / "keys"
    cross = (keys / "root/cross.pem").read_bytes()
    old = certificate(keys / "root/cert.pem")
    fine(generate_here(folder, "--renew", "root"))
    new = certificate(keys / "root/cert.pem")
    assert new.serial_number != old.serial_number and new.public_key() == old.public_key()
    assert (keys / "root/cross.pem").read_bytes() == cross
    for name in ("server", "client"):
        assert certificate(keys / f"{name}/ca.pem") == new
        for judged in verdicts(folder, higher, name):
            assert judged.returncode == 0, judged.stdout + judged.stderr
    server = serve("-k", str(keys / "server"))
    accepts(server, keys / "client")
    accepts(server, made / "keys/client")  # which has the old one still
    accepts(server, trusting(keys / "client", higher.cert, tmp_path / "partner"))
    before = tree(folder)
    fine(generate_here(folder, env=None))
    assert tree(folder) == before


def for_another_key(higher: Authority, cross: Path) -> None:
    """Have the higher CA certify another key of root's name."""
    elsewhere = higher.folder / "elsewhere"
    elsewhere.mkdir()
    request = make_request(elsewhere, f"{SUBJECT}root")
    higher.sign(request, cross, "-extensions", "ca-above-cas")


def for_another_name(higher: Authority, cross: Path) -> None:
    """Have the higher CA certify root's key, by a policy that omits a part of its name."""
    how = ("-extensions", "ca-above-cas", "-policy", "short")
    higher.sign(higher.folder / "root.csr", cross, *how)
    root = certificate(cross.with_name("cert.pem"))
    assert certificate(cross).public_key() == root.public_key()


def of_the_higher_ca(higher: Authority, cross: Path) -> None:
    """Take the higher CA's own certificate for one that it signed."""
    shutil.copy(higher.cert, cross)


@pytest.mark.parametrize("mistake", [for_another_key, for_another_name, of_the_higher_ca])
def test_a_cross_pem_for_another_key_or_name_is_refused_and_changes_nothing(
    crossed: Crossed, mistake: Callable[[Authority, Path], None]
) -> None:
    folder, higher, *_ = crossed  # in which a sound one was accepted
    mistake(higher, folder / "keys/root/cross.pem")
    before = tree(folder)
    refused(generate_here(folder), "keys/root/cross.pem")
    assert tree(folder) == before


# --- Keys that never travel ------------------------------------------------------------------

FORGED = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Mallory")])
FORGED_NAMES = x509.SubjectAlternativeName([x509.DNSName("mallory.example")])


def request_by_openssl(folder: Path) -> Path:
    """One `openssl req` command, on the robot."""
    forged = ("basicConstraints=critical,CA:TRUE", "subjectAltName=DNS:mallory.example")
    return make_request(folder, "/CN=Mallory", "-addext", forged[0], "-addext", forged[1])


def request_by_cryptography(
    folder: Path,
    key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey,
    digest: hashes.SHA256 | None,
) -> Path:
    """A few lines of Python, on the robot."""
    request = (
        x509.CertificateSigningRequestBuilder(FORGED)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(FORGED_NAMES, critical=False)
        .sign(key, digest)
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(private)
    (folder / "csr.pem").write_bytes(request.public_bytes(Encoding.PEM))
    return folder / "csr.pem"


def request_by_rsa(folder: Path) -> Path:
    """Python, with an RSA key."""
    return request_by_cryptography(
        folder, rsa.generate_private_key(65537, 2048), hashes.SHA256()
    )


def request_by_ed25519(folder: Path) -> Path:
    """Python, with an Ed25519 key."""
    return request_by_cryptography(folder, ed25519.Ed25519PrivateKey.generate(), None)


def request_by_gnutls(folder: Path) -> Path:
    """GnuTLS: its file begins with a text, and calls itself a NEW CERTIFICATE REQUEST."""
    key, template, request = (folder / name for name in ("key.pem", "template", "csr.pem"))
    template.write_text('cn = "Mallory"\ndns_name = "mallory.example"\nca\ncert_signing_key\n')
    make = ("certtool", "--generate-privkey", "--key-type", "ecdsa", "--curve", "secp256r1")
    ask = ("certtool", "--generate-request", "--load-privkey", key, "--template", template)
    for command in ((*make, "--outfile", key), (*ask, "--outfile", request)):
        assert run(*command).returncode == 0
    assert "-----BEGIN NEW CERTIFICATE REQUEST-----" in request.read_text()
    return request


def request_by_cfssl(folder: Path) -> Path:
    """Cfssl, which asks for a CA with -initca only."""
    asked = {"CN": "Mallory", "hosts": ["mallory.example"], "ca": {"expiry": "1h"}}
    result = run("cfssl", "genkey", "-initca", "-", stdin=json.dumps(asked))
    assert result.returncode == 0, result.stderr
    made = json.loads(result.stdout)
    (folder / "key.pem").write_text(made["key"])
    (folder / "csr.pem").write_text(made["csr"])
    return folder / "csr.pem"


ROBOTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "openssl": (request_by_openssl, "ec:prime256v1"),
    "rsa": (request_by_rsa, "rsa:2048"),
    "ed25519": (request_by_ed25519, "ed25519"),
    "gnutls": (request_by_gnutls, "ec:prime256v1"),
    "cfssl": (request_by_cfssl, "ec:prime256v1"),
}


def add_clients(folder: Path, keys: dict[str, str]) -> None:
    """Add nodes like client to the configuration, each with its type of key."""

    def add(all_: dict[str, Any]) -> None:
        nodes = all_["nodes"]
        for name, key in keys.items():
            extensions = {**nodes["client"]["extensions"], "subjectAltName": "DNS:$name"}
            nodes[name] = {**nodes["client"], "key": key, "extensions": extensions}
            if key == "ed25519":
                del nodes[name]["digest"]

    edit(folder, add)


class Robots(NamedTuple):
    """Where robots keep their keys, the folder that signed their requests, and its server."""

    there: Path
    here: Path
    server: Server


@pytest.fixture(scope="module")
def robots(made: Path, tmp_path_factory: pytest.TempPathFactory, lasting: Serve) -> Robots:
    """Robots whose requests travelled here, and whose certificates travelled back."""
    base = tmp_path_factory.mktemp("robots")
    here, there = base / "here", base / "there"
    shutil.copytree(made, here)
    add_clients(here, {name: key for name, (_, key) in ROBOTS.items()})
    for name, (request, _) in ROBOTS.items():
        (there / name).mkdir(parents=True)
        (here / "keys" / name).mkdir()
        shutil.copy(request(there / name), here / "keys" / name / "csr.pem")
    before = tree(here)
    fine(generate_here(here, env=MASTERS))
    written = {x for x in changed(before, tree(here)) if "/issued/" not in x}
    assert written == {f"keys/{x}/{file}" for x in ROBOTS for file in ("cert.pem", *DERIVED)}
    for name in ROBOTS:
        for file in ("cert.pem", *DERIVED):
            shutil.copy(here / "keys" / name / file, there / name)
    return Robots(there, here, lasting(here / "keys/server"))


@pytest.mark.parametrize("name", ROBOTS)
def test_a_robot_that_keeps_its_key_gets_what_it_needs_to_talk(
    robots: Robots, name: str
) -> None:
    folder = robots.here / "keys" / name
    assert {path.name for path in folder.iterdir()} == NODE_FILES - {"key.pem"} | {"csr.pem"}
    accepts(robots.server, robots.there / name)


@pytest.mark.parametrize("name", ROBOTS)
def test_subject_and_extensions_come_from_the_configuration_never_from_the_request(
    robots: Robots, name: str
) -> None:
    asked = x509.load_pem_x509_csr((robots.here / f"keys/{name}/csr.pem").read_bytes())
    assert asked.subject == FORGED
    assert asked.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert (
        asked.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        == FORGED_NAMES
    )
    signed = certificate(robots.there / name / "cert.pem")
    assert signed.public_key() == asked.public_key()
    assert [x.value for x in signed.subject] == ["US", "SROS Example", "Robots", name]
    usual = certificate(robots.here / "keys/client/cert.pem")
    own = (x509.SubjectKeyIdentifier, x509.SubjectAlternativeName)
    for ours, theirs in zip(usual.extensions, signed.extensions, strict=True):
        assert ours == theirs or (ours.oid == theirs.oid and isinstance(theirs.value, own))
    names = signed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.DNSName(name)]


def test_what_a_robot_got_is_of_no_use_with_another_key(
    robots: Robots, tmp_path: Path
) -> None:
    thief = tmp_path / "thief"
    shutil.copytree(robots.there / "openssl", thief)
    shutil.copy(robots.there / "gnutls/key.pem", thief)
    said = robots.server.out.read_text()
    turns_from(client(robots.server.port, thief), "mismatch|match")
    assert robots.server.out.read_text() == said
    accepts(robots.server, robots.there / "openssl")


def weak(*key: str) -> Callable[[Path, Path], None]:
    """Return what makes a request for a new key of a kind."""

    def make(request: Path, sound: Path) -> None:
        out = ("-keyout", request.with_name("unused"), "-out", request)
        openssl("req", "-new", "-newkey", *key, "-nodes", "-subj", "/CN=x", *out)
        request.with_name("unused").unlink()

    return make


def by_dsa(request: Path, sound: Path) -> None:
    """Make a request for a DSA key."""
    key = openssl("dsaparam", "-genkey", "-noout", "1024")
    openssl("req", "-new", "-key", "/dev/stdin", "-subj", "/CN=x", "-out", request, stdin=key)
    assert x509.load_pem_x509_csr(request.read_bytes()).is_signature_valid


def of_another(request: Path, sound: Path) -> None:
    """Put another's public key into a request, which whoever signed it does not have."""
    der = x509.load_pem_x509_csr(sound.read_bytes()).public_bytes(Encoding.DER)
    mine = x509.load_pem_x509_csr(sound.read_bytes()).public_key()
    other = certificate(request.parents[1] / "server/cert.pem").public_key()
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    forged = der.replace(mine.public_bytes(*form), other.public_bytes(*form))
    assert forged != der
    text = base64.encodebytes(forged).decode()
    request.write_text(
        f"-----BEGIN CERTIFICATE REQUEST-----\n{text}-----END CERTIFICATE REQUEST-----\n"
    )


def emptied(request: Path, sound: Path) -> None:
    """Leave nothing in it."""
    request.touch()


def of_text(request: Path, sound: Path) -> None:
    """Have it be no PEM."""
    request.write_text("please sign\n")


def a_certificate(request: Path, sound: Path) -> None:
    """Put a certificate in its place."""
    shutil.copy(request.parents[1] / "client/cert.pem", request)


def a_key(request: Path, sound: Path) -> None:
    """Put a private key in its place, which the robot should have kept."""
    shutil.copy(request.parents[1] / "client/key.pem", request)


def in_binary(request: Path, sound: Path) -> None:
    """Put it there as DER."""
    openssl("req", "-in", sound, "-outform", "der", "-out", request)


BAD_REQUESTS: dict[str, Callable[[Path, Path], None]] = {
    "empty": emptied,
    "text": of_text,
    "certificate": a_certificate,
    "private-key": a_key,
    "der": in_binary,
    "of-another": of_another,
    "rsa-1024": weak("rsa:1024"),
    "secp256k1": weak("ec", "-pkeyopt", "ec_paramgen_curve:secp256k1"),
    "dsa": by_dsa,
}


def test_a_damaged_forged_or_weak_request_gives_one_error_line_and_changes_nothing(
    copy: Path, tmp_path: Path
) -> None:
    add_clients(copy, dict.fromkeys(BAD_REQUESTS, "ec:prime256v1"))
    sound = make_request(tmp_path, "/CN=x")
    for name, spoil in BAD_REQUESTS.items():
        (copy / "keys" / name).mkdir()
        spoil(copy / "keys" / name / "csr.pem", sound)
    before = tree(copy)
    refused(generate_here(copy), *(f"keys/{name}/csr.pem" for name in BAD_REQUESTS))
    assert tree(copy) == before

    for name in BAD_REQUESTS:
        shutil.copy(sound, copy / "keys" / name)
    fine(generate_here(copy))


def test_a_request_for_a_key_of_pss_only_is_not_certified_as_another_kind_of_key(
    copy: Path,
) -> None:
    # Its owner could not use it: TLS says "no certificate assigned". Plain RSA keys are above.
    add_clients(copy, {"pss": "rsa:2048"})
    (copy / "keys/pss").mkdir()
    request = copy / "keys/pss/csr.pem"
    weak("rsa-pss", "-pkeyopt", "rsa_keygen_bits:2048")(request, request)
    before = tree(copy)
    refused(generate_here(copy), "keys/pss/csr.pem")
    assert tree(copy) == before


# --- More than one machine: cfssl serves with the folder's master ----------------------------

# As on the page about CA services, but for the port.
SERVE = """
cfssl serve -ca keys/master/cert.pem \
-ca-key <(openssl pkey -in keys/master/key.pem -passin env:SROS_PASSPHRASE) \
-config <(echo '{"signing": {"default": \
{"expiry": "720h", "usages": ["signing", "client auth"]}}}')
"""
ENROL = """
mkdir client3 && cp keys/client/ca.pem keys/client/crl.pem client3
openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -keyout client3/key.pem \
-subj /CN=client3 | cfssl sign -remote localhost - | cfssljson -bare client3/cert
cat client3/cert.pem keys/master/fullchain.pem >client3/fullchain.pem
"""
RECORD = """
cp client3/cert.pem "keys/master/issued/client3-$(
openssl x509 -in client3/cert.pem -noout -serial | cut -d= -f2).pem"
"""
# And over a network: mutual TLS with the folder's own server, for those called client only.
OVER_TLS = """-tls-cert keys/server/fullchain.pem \
-tls-key <(openssl pkey -in keys/server/key.pem -passin env:SROS_PASSPHRASE) \
-mutual-tls-ca keys/server/ca.pem -mutual-tls-cn '^client$'
"""


class Service:
    """A running `cfssl serve`, on a free port of 127.0.0.1."""

    def __init__(self, folder: Path, more: str = "") -> None:
        needs("cfssl")
        for _ in range(5):  # as someone else may take the port meanwhile
            with socket.create_server(("127.0.0.1", 0)) as listener:
                self.port: int = listener.getsockname()[1]
            command = f"exec {SERVE.strip()} {more.strip()} -port {self.port}"
            self.log = folder / f"cfssl-{self.port}.log"
            with self.log.open("w") as log:
                self.process = subprocess.Popen(
                    ["bash", "-c", command],
                    cwd=folder,
                    env=environment(PHRASES),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            try:
                if self.answers():
                    return
            except BaseException:
                self.stop()
                raise
        raise AssertionError(self.log.read_text())

    def answers(self) -> bool:
        """Poll until it listens; False if it ended instead."""
        until = time.monotonic() + DEADLINE
        while self.process.poll() is None:
            assert time.monotonic() < until, self.log.read_text()
            if "Now listening" in self.log.read_text():
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                        return self.process.poll() is None
            select.select([], [], [], 0.01)
        return False

    def ask(self, what: str, body: dict[str, str]) -> dict[str, Any]:
        """Post JSON to its API, and return what comes back."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        connection.request("POST", f"/api/v1/cfssl/{what}", json.dumps(body))
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    def enrol(self, folder: Path) -> Path:
        """Have it sign a request as the page does, and return the new client's folder."""
        run_block(folder, ENROL.replace("-remote localhost", f"-remote localhost:{self.port}"))
        assert {path.name for path in (folder / "client3").iterdir()} == NODE_FILES | {
            "cert.csr"
        }
        return folder / "client3"

    def stop(self) -> None:
        """End it."""
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(DEADLINE)


@pytest.fixture(scope="module")
def served(
    made: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Service]]:
    """A copy of the keys, and a service with its master."""
    folder = tmp_path_factory.mktemp("served") / "here"
    shutil.copytree(made, folder)
    before = tree(folder / "keys")
    service = Service(folder)
    assert tree(folder / "keys") == before
    yield folder, service
    service.stop()


@pytest.fixture
def service(served: tuple[Path, Service], tmp_path: Path) -> tuple[Path, Service]:
    """A copy of the keys, to change, and the service with the same master."""
    folder = tmp_path / "here"
    shutil.copytree(served[0] / "keys", folder / "keys")
    configure(folder)
    return folder, served[1]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with another master, of the same names."""
    folder = tmp_path_factory.mktemp("foreign")
    configure(folder)
    fine(generate_here(folder))
    service = Service(folder)
    yield service
    service.stop()


def test_our_server_accepts_what_cfssl_issues_with_our_master_and_not_with_another(
    service: tuple[Path, Service], foreign: Service, serve: Serve
) -> None:
    folder, ours = service
    server = serve("-k", str(folder / "keys/server"))
    accepts(server, ours.enrol(folder))
    (folder / "client3").rename(folder / "ours")
    theirs = foreign.enrol(folder)
    turns_away(server, theirs, UNTRUSTED, "unknown ca")
    # Neither does it help to send the master that really signed it.
    sent = foreign.ask("info", {})["result"]["certificate"]
    (theirs / "fullchain.pem").write_text((theirs / "cert.pem").read_text() + sent)
    turns_away(server, theirs, UNTRUSTED, "unknown ca")
    accepts(server, folder / "ours")


def test_the_unencrypted_key_of_master_is_never_a_file(served: tuple[Path, Service]) -> None:
    folder, service = served
    clear = (f"BEGIN {kind}PRIVATE KEY" for kind in ("", "EC ", "RSA "))
    marks = [mark.encode() for mark in clear]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert folder / "keys/master/key.pem" in files
    assert not [path for path in files if any(mark in path.read_bytes() for mark in marks)]
    assert b"PRIVATE KEY" in (folder / "keys/master/key.pem").read_bytes()
    command_line = Path(f"/proc/{service.process.pid}/cmdline").read_bytes()
    assert (
        b"cfssl" in command_line
        and b"PRIVATE" not in command_line
        and b"sros\0" not in command_line
    )


def test_the_api_issues_a_strict_certificate_of_a_client_whatever_the_request_asks(
    service: tuple[Path, Service], tmp_path: Path, serve: Serve
) -> None:
    folder, ours = service
    node = folder / "client4"
    node.mkdir()
    wishes = (
        "subjectAltName=DNS:client4",
        "keyUsage=keyCertSign",
        "extendedKeyUsage=serverAuth",
    )
    options = [word for wish in wishes for word in ("-addext", wish)]
    request = make_request(node, "/O=SROS Example/CN=client4", *options)
    answer = ours.ask("sign", {"certificate_request": request.read_text()})
    assert answer["success"], answer
    text = answer["result"]["certificate"]
    (node / "cert.pem").write_text(text)
    (node / "fullchain.pem").write_text(text + (folder / "keys/master/cert.pem").read_text())
    for name in ("ca.pem", "crl.pem"):
        shutil.copy(folder / "keys/client" / name, node)

    is_strict_client(node, certificate(folder / "keys/master/cert.pem"))
    accepts(serve("-k", str(folder / "keys/server")), node)

    ca = make_request(tmp_path, "/CN=client4", "-addext", "basicConstraints=critical,CA:TRUE")
    answer = ours.ask("sign", {"certificate_request": ca.read_text()})
    assert not answer["success"] and answer["result"] is None


def is_strict_client(node: Path, master: x509.Certificate) -> None:
    """Require a client's certificate of 30 days for client4, and nothing that it asked for."""
    issued = certificate(node / "cert.pem")
    get = issued.extensions.get_extension_for_class
    assert [x.value for x in issued.subject] == ["SROS Example", "client4"]
    assert issued.serial_number.bit_length() >= 64
    assert (issued.not_valid_after_utc - issued.not_valid_before_utc).days == 30
    assert get(x509.BasicConstraints).critical and not get(x509.BasicConstraints).value.ca
    usage = get(x509.KeyUsage)
    assert usage.critical and usage.value.digital_signature and not usage.value.key_cert_sign
    assert list(get(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert list(get(x509.SubjectAlternativeName).value) == [x509.DNSName("client4")]
    own = x509.SubjectKeyIdentifier.from_public_key(issued.public_key())
    assert get(x509.SubjectKeyIdentifier).value == own
    above = master.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert get(x509.AuthorityKeyIdentifier).value.key_identifier == above
    assert judge(node, purpose="sslclient").returncode == 0
    assert judge(node, purpose="sslserver").returncode != 0


def test_what_cfssl_issued_is_revoked_by_its_record_though_no_entry_has_its_name(
    service: tuple[Path, Service], serve: Serve
) -> None:
    folder, ours = service
    client3 = ours.enrol(folder)
    accepts(serve("-k", str(folder / "keys/server")), client3)
    before = tree(folder / "keys")
    complaints(generate_here(folder, "--revoke", "client3"), "error", 2)
    assert tree(folder / "keys") == before

    run_block(folder, RECORD)
    serial = certificate(client3 / "cert.pem").serial_number
    (record,) = folder.glob("keys/master/issued/client3-*.pem")
    assert re.fullmatch(f"client3-0?{serial:X}", record.stem)
    before = tree(folder / "keys")
    result = fine(generate_here(folder, "--revoke", "client3"))
    assert "1 revoked" in result.stdout
    rewritten = {f"{name}/crl.pem" for name in ("master", "server", "client")}
    assert changed(before, tree(folder / "keys")) == rewritten
    (crl, _) = lists(folder / "keys/server/crl.pem")
    assert [entry.serial_number for entry in crl] == [serial]
    server = serve("-k", str(folder / "keys/server"))
    turns_away(server, client3, "certificate revoked", "certificate revoked")
    accepts(server, folder / "keys/client")
    fine(generate_here(folder, env=None))


def test_over_tls_cfssl_serves_only_clients_of_our_ca(service: tuple[Path, Service]) -> None:
    folder, plain = service
    request = make_request(folder, "/CN=client4")
    (folder / "body.json").write_text(json.dumps({"certificate_request": request.read_text()}))
    over_tls = Service(folder, OVER_TLS)

    def ask(keys: Path | None) -> str:
        body, what = ("--data", f"@{folder}/body.json"), "api/v1/cfssl/sign"
        return curl(
            over_tls.port, keys, folder / "keys/client/ca.pem", *body, what=what
        ).stdout

    try:
        issued = json.loads(ask(folder / "keys/client"))["result"]["certificate"]
        issuer = x509.load_pem_x509_certificate(issued.encode()).issuer
        assert issuer == certificate(folder / "keys/master/cert.pem").subject
        for other in (None, folder / "keys/server", plain.enrol(folder)):
            assert "CERTIFICATE" not in ask(other)
        assert over_tls.log.read_text().count("signed certificate") == 1
    finally:
        over_tls.stop()
