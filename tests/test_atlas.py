"""Who gets in: every intruder at both scripts' doors, beside a twin; and the atlas of it."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from certificates import (
    CA,
    Identity,
    identity,
    issue,
    key_identifier,
    lists,
    names,
    pem,
    sign_list,
)
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from exchanges import ANSWERED, SERVED, Server, client
from running import (
    CLIENT,
    DEADLINE,
    PHRASES,
    ROOT,
    SERVER,
    Result,
    complaints,
    fine,
    generate_here,
    in_days,
    openssl,
)

PAGE = ROOT / "tests/refusals.md"
VERIFYING = "certificate verify failed: "
HANDSHAKE, FIRST_READ = "in the handshake", "at the first read"

# --- The hierarchy: the verifiers are server and client, and the others come to them ---------

CAS = """
x-subject: &subject {countryName: US, organizationName: SROS Example, commonName: $name}
keys:
  root: &root
    key: ec:prime256v1
    subject: *subject
    validity: {notBefore: -1d, notAfter: 10y, nextUpdate: 1y}
    extensions: &root-extensions
      basicConstraints: critical, CA:TRUE, pathlen:2
      keyUsage: critical, keyCertSign, cRLSign
      subjectKeyIdentifier: hash
  master: &master
    <<: *root
    issuer: root
    extensions: &master-extensions
      <<: *root-extensions
      authorityKeyIdentifier: keyid
      basicConstraints: critical, CA:TRUE, pathlen:0
  legacy: {<<: *master, key: "rsa:2048"}
  stolen: *master
  stranger: *master
  deep:
    <<: *master
    extensions: {<<: *master-extensions, basicConstraints: "critical, CA:TRUE, pathlen:1"}
  deeper: {<<: *master, issuer: deep}
  narrow:
    <<: *master
    extensions: {<<: *master-extensions, nameConstraints: "permitted;DNS:localhost"}
  barred:
    <<: *master
    extensions: {<<: *master-extensions, nameConstraints: "excluded;DNS:intruder"}
  nodes:
    NAME: &talker
      key: ec:prime256v1
      issuer: master
      subject: *subject
      validity: {notBefore: -1d, notAfter: 1y}
      extensions: &extensions
        basicConstraints: critical, CA:FALSE
        keyUsage: critical, digitalSignature
        extendedKeyUsage: serverAuth, clientAuth
        subjectKeyIdentifier: hash
        authorityKeyIdentifier: keyid
        subjectAltName: DNS:localhost, IP:127.0.0.1, IP:::1
"""
NODES = """
    server: &encrypted {<<: *talker, cipher: aes-256-cbc, passphrase: SROS_PASSPHRASE}
    client: *encrypted
    gone: *talker
    of-stolen: {<<: *talker, issuer: stolen}
    of-stranger: {<<: *talker, issuer: stranger}
    of-deeper: {<<: *talker, issuer: deeper}
    server-only: {<<: *talker, extensions: {<<: *extensions, extendedKeyUsage: serverAuth}}
    client-only: {<<: *talker, extensions: {<<: *extensions, extendedKeyUsage: clientAuth}}
    elsewhere: {<<: *talker, extensions: {<<: *extensions, subjectAltName: "DNS:elsewhere"}}
    named:
      <<: *talker
      subject: {commonName: localhost}
      extensions: {<<: *extensions, subjectAltName: ~}
    wildcard:
      <<: *talker
      extensions: {<<: *extensions, subjectAltName: "DNS:*.robots.example"}
    partial:
      <<: *talker
      extensions: {<<: *extensions, subjectAltName: "DNS:arm.robots.example"}
"""
# The CAs below root that have a revocation list at the verifiers, as their own, master, has.
LISTED = ("legacy", "stolen", "deep", "deeper", "narrow", "barred")

SIDES = ("server", "client")

Lists = list[x509.CertificateRevocationList]


def tampered(whole: Identity) -> Identity:
    """Change a bit of the subject after it was signed."""
    der = whole.chain[0].public_bytes(serialization.Encoding.DER).replace(b"talker", b"talkes")
    return Identity(whole.key, [x509.load_der_x509_certificate(der), *whole.chain[1:]])


def hand_made(keys: Path, other: Path) -> tuple[dict[str, Identity], list[Identity]]:
    """Make the visitors that the script would not, and the CAs that some of them come from."""
    master, talker, legacy = (identity(keys / x) for x in ("master", "talker", "legacy"))
    narrow, barred = identity(keys / "narrow"), identity(keys / "barred")
    foreign, their_root = identity(other / "talker"), identity(other / "root").chain
    unknown = x509.UnrecognizedExtension(
        x509.ObjectIdentifier("1.3.6.1.4.1.32473.1"), b"\x05\x00"
    )
    cas = hand_made_cas(identity(keys / "root"))
    visitors = {
        "other-right": foreign._replace(chain=[foreign.chain[0], *master.chain]),
        "other-root": foreign._replace(chain=[*foreign.chain, *their_root]),
        "forged": issue(
            master._replace(key=foreign.key), issuer=key_identifier(master.chain[0])
        ),
        "tampered": tampered(issue(master)),
        "by-master": issue(master),
        "self-signed": issue(None),
        "by-leaf": issue(talker),
        "too-long": issue(issue(master, "below", CA)),
        "not-permitted": issue(narrow, names=names("localhost", "elsewhere")),
        "permitted": issue(narrow, names=names("localhost", "arm.localhost")),
        "excluded": issue(barred, names=names("localhost", "intruder")),
        "not-excluded": issue(barred, names=names("localhost", "elsewhere")),
        "partial-star": issue(master, names=names("a*.robots.example")),
        "text-ip": issue(master, names=names("127.0.0.1")),
        "small-key": issue(master, key=cas["small"].key),
        "large-key": issue(master, key=cas["large"].key),
        "leaf-md5": issue(legacy, digest="md5"),
        "leaf-sha1": issue(legacy, digest="sha1"),
        "leaf-sha256": issue(legacy),
        "no-key-identifier": issue(master, issuer=None),
        "unknown-critical": issue(master, unknown=(unknown, True)),
        "unknown-extension": issue(master, unknown=(unknown, False)),
        **{f"of-{name}": issue(ca) for name, ca in cas.items()},
    }
    return visitors, [*cas.values()]


def hand_made_cas(root: Identity) -> dict[str, Identity]:
    """Make CAs below root that the script would not."""
    small, large = (rsa.generate_private_key(65537, bits) for bits in (1024, 2048))
    unlimited = x509.BasicConstraints(True, None)
    return {
        "sister": issue(root, "sister", CA),
        "brief": issue(root, "brief", CA, days=(-99, -1)),
        "small": issue(root, "small", CA, small),
        "large": issue(root, "large", CA, large),
        "sha1": issue(root, "sha1", CA, digest="sha1"),
        "lax": issue(root, "lax", CA, constraints=(x509.BasicConstraints(True, 0), False)),
        "useless": issue(root, "useless", CA, usage=None, constraints=(unlimited, True)),
    }


class Stock(NamedTuple):
    """Everyone's folders: the visitors' by name, the verifiers' by side and their lists."""

    visitors: Path
    verifiers: Path
    other: Path


def make_stock(folder: Path) -> Stock:
    """Make the hierarchy with the script, in some years; then what it would not make."""
    stock = Stock(folder / "visitors", folder / "verifiers", folder / "other")
    keys, other = folder / "keys", folder / "other/keys"
    before = make_hierarchies(folder, stock.other)
    visitors, cas = hand_made(keys, other)
    make_verifiers(stock, keys, before, [sign_list(ca.chain[0], ca.key) for ca in cas])

    made = {path.name: identity(path) for path in keys.iterdir() if path.name not in SIDES}
    made |= {"other": identity(other / "talker"), **visitors}
    for name, each in made.items():
        place = stock.visitors / name
        place.mkdir(parents=True)
        each.write(place)
        # They judge others as the verifiers do.
        shutil.copy(keys / "server/ca.pem", place)
        shutil.copy(stock.verifiers / "client-strange/crl.pem", place)

    (folder / "names").mkdir()
    (folder / "names/sitecustomize.py").write_text(RESOLVER)
    (folder / "weak.cnf").write_text(WEAK_CONFIGURATION)
    (stock.other / "store").mkdir()
    for place in (stock.other / "store.pem", stock.other / "store/root.pem"):
        shutil.copy(other / "root/cert.pem", place)
    openssl("rehash", stock.other / "store")
    return stock


def make_hierarchies(folder: Path, other: Path) -> Lists:
    """Make our hierarchy and another CA's; revoke some. Return the lists of before that."""
    configuration = folder / "sros_config.yml"
    talker = CAS.replace("NAME", "talker")
    other.mkdir()
    (other / configuration.name).write_text(talker)
    fine(generate_here(other))
    configuration.write_text(CAS.replace("NAME", "old"))
    fine(generate_here(folder, now=in_days(-2 * 365)))
    configuration.write_text(talker + NODES)
    made_beside_others(generate_here(folder))
    configuration.write_text(CAS.replace("NAME", "early"))
    made_beside_others(generate_here(folder, now=in_days(30)))
    before = own_and_roots(folder / "keys/server")
    configuration.write_text(talker + NODES)
    made_beside_others(generate_here(folder, "--revoke", "gone", "stolen"))
    return before


def own_and_roots(node: Path) -> Lists:
    """Return the lists of master and of root from a node's crl.pem, which has all CAs'."""
    named = {}
    for crl in lists(node / "crl.pem"):
        (name,) = crl.issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        named[name.value] = crl
    return [named["master"], named["root"]]


def made_beside_others(result: Result) -> None:
    """Require a run that warns only of what is revoked or in another configuration."""
    for line in complaints(result, "warning", 0):
        assert "no entry has this name" in line or "below stolen" in line, line


def make_verifiers(stock: Stock, keys: Path, before: Lists, made: Sequence[bytes]) -> None:
    """Make the folders of server and client, with different lists of master and root."""
    now, old = own_and_roots(keys / "server"), own_and_roots(keys / "old")
    strange = (keys / "stranger/crl.pem").read_bytes()
    rest = b"".join([*((keys / name / "crl.pem").read_bytes() for name in LISTED), *made])
    known = {
        "now": now,
        "before": before,
        "old-master": [old[0], now[1]],
        "old-root": [now[0], old[1]],
        "only-root": now[1:],
        "strange": now,
    }
    for name, pair in known.items():
        text = pem(*pair) + rest
        if name == "strange":
            text += strange
        for side in SIDES:
            shutil.copytree(keys / side, stock.verifiers / f"{side}-{name}")
            (stock.verifiers / f"{side}-{name}/crl.pem").write_bytes(text)


# Python itself loads this before the script. Without a name server, robots.example is here.
RESOLVER = """import socket
real = socket.getaddrinfo
def getaddrinfo(host, *rest, **named):
    return real("localhost" if host.endswith("robots.example") else host, *rest, **named)
socket.getaddrinfo = getaddrinfo
"""
WEAK_CONFIGURATION = """openssl_conf = all
[all]
ssl_conf = ssl
[ssl]
system_default = system
[system]
CipherString = DEFAULT:@SECLEVEL=0
"""

# --- Peers that the scripts would not be -----------------------------------------------------


class Seen(NamedTuple):
    """What a refused one saw: the alert (or none, and its own error), and when."""

    alert: str
    when: str


def alert(words: str) -> str:
    """Return an alert's name, without the protocol that OpenSSL's versions put before it."""
    match = re.search(r"alert ([a-z ]+)", words)
    if match:
        return match[1].strip()
    return "none: " + re.sub(r"\[[^]]*\] | ?\(_ssl\.c:\d+\)", "", words)


class Peer(NamedTuple):
    """A peer that verifies no one and allows all that is weak. No folder: no certificate."""

    keys: Path | None
    newest: ssl.TLSVersion

    def context(self, protocol: int) -> ssl.SSLContext:
        """Return its settings."""
        context = ssl.SSLContext(protocol)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.maximum_version = self.newest
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        if self.keys:
            context.load_cert_chain(self.keys / "fullchain.pem", self.keys / "key.pem")
        return context

    def call(self, port: int) -> Seen | None:
        """Be a client: return what it saw, None if it was let in."""
        when, context = HANDSHAKE, self.context(ssl.PROTOCOL_TLS_CLIENT)
        raw = socket.create_connection(("127.0.0.1", port), DEADLINE)
        with context.wrap_socket(raw, do_handshake_on_connect=False) as tls:
            try:
                tls.do_handshake()
                when = FIRST_READ
                tls.sendall(b"hola\n")
                assert tls.recv(99) == b"hello\n"
                tls.unwrap()
            except ssl.SSLError as error:
                return Seen(alert(str(error)), when)
        return None

    def serve(self, listener: socket.socket) -> Seen | None:
        """Be a server for one client: return what it saw, None if it was taken in."""
        when, context = HANDSHAKE, self.context(ssl.PROTOCOL_TLS_SERVER)
        raw, _ = listener.accept()
        raw.settimeout(DEADLINE)
        with context.wrap_socket(raw, server_side=True, do_handshake_on_connect=False) as tls:
            try:
                tls.do_handshake()
                when = FIRST_READ
                assert tls.recv(99) == b"hola\n"
                tls.sendall(b"hello\n")
                tls.unwrap()
            except ssl.SSLError as error:
                return Seen(alert(str(error)), when)
        return None


def receive(connection: socket.socket, count: int) -> bytes:
    """Return exactly so many bytes, or what came before the end."""
    data = b""
    while len(data) < count and (more := connection.recv(count - len(data))):
        data += more
    return data


def receive_record(connection: socket.socket) -> bytes:
    """Return a TLS record."""
    head = receive(connection, 5)
    return head + receive(connection, int.from_bytes(head[3:5], "big"))


class Old(NamedTuple):
    """A peer that insists on an older version, and gets as far as hello."""

    version: bytes

    def hello(self, kind: int, ciphers: bytes) -> bytes:
        """Return a hello without extensions, in a record (RFC 5246, 7.4.1)."""
        body = self.version + bytes(range(32)) + b"\0" + ciphers
        message = bytes([kind]) + len(body).to_bytes(3, "big") + body
        return b"\x16" + self.version + len(message).to_bytes(2, "big") + message

    def answer(self, connection: socket.socket) -> Seen:
        """Return the alert that comes back."""
        record = receive_record(connection)
        assert (record[0], record[5]) == (21, 2), record  # an alert, and fatal
        return Seen({40: "handshake failure", 70: "protocol version"}[record[6]], HANDSHAKE)

    def call(self, port: int) -> Seen:
        """Be a client: return what it saw."""
        with socket.create_connection(("127.0.0.1", port), DEADLINE) as connection:
            connection.sendall(self.hello(1, b"\0\4\xc0\x2b\0\x2f\1\0"))
            return self.answer(connection)

    def serve(self, listener: socket.socket) -> Seen:
        """Be a server for one client: return what it saw."""
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(DEADLINE)
            receive_record(connection)
            connection.sendall(self.hello(2, b"\xc0\x2b\0"))
            return self.answer(connection)


# --- The matrix: who comes, and as which side ------------------------------------------------


class Visit(NamedTuple):
    """Who comes, and to whom."""

    keys: str | None  # None: without a certificate
    lists: str = "now"  # that the verifier has
    host: str = "localhost"  # that a server is called by
    machine: str = (
        ""  # the verifier's: store has the other CA as the system's, weak admits weak keys
    )
    speaks: str = (
        "script"  # or a version: a Peer's newest one, or the only one of an Old, as bytes
    )


class Intruder(NamedTuple):
    """One who is refused, the twin who is not, and the verifier's words.

    In those, … stands for `certificate verify failed`.
    """

    label: str
    visit: Visit
    twin: Visit
    words: str
    alert: str
    sides: tuple[str, ...] = ("client", "server")  # that it comes as


def lax(keys: str | None, speaks: str = "TLSv1_3") -> Visit:
    """Have one come that is not the script: it verifies no one, and its own keys neither."""
    return Visit(keys, speaks=speaks)


TALKER, SISTER, OURS = Visit("talker"), Visit("of-sister"), Visit("by-master")
STORED, ADDRESSED = TALKER._replace(machine="store"), TALKER._replace(host="127.0.0.1")
OTHER = "another CA's certificate with the same names, sent with"
STORE = f"{OTHER} either, where `SSL_CERT_FILE` and `SSL_CERT_DIR` name that CA's root"
DIGEST = "a signature with MD5 or SHA-1"
VERSION = "TLS 1.2, 1.1 or 1.0"
INSIST = "TLS 1.2, 1.1, 1.0 or SSL 3.0, whatever the client offers"
UNLISTED = "an intermediate CA whose list is not in `crl.pem`"
NO_ISSUER, NO_LIST = (
    "…: unable to get local issuer certificate",
    "…: unable to get certificate CRL",
)
WEAK = "…: CA signature digest algorithm too weak"
MISMATCH = "…: {} mismatch, certificate is not valid for '{}'."
ARM = "arm.robots.example"
CLIENT_ONLY, SERVER_ONLY = ("client",), ("server",)
# fmt: off
INTRUDERS = [
    Intruder("no certificate", lax(None), lax("talker"),
             "peer did not return a certificate", "certificate required", CLIENT_ONLY),
    Intruder("no certificate", lax(None), lax("talker"),
             "alert protocol version", "none: unsupported protocol", SERVER_ONLY),
    Intruder("a self-signed certificate", Visit("self-signed"), OURS,
             "…: self-signed certificate", "unknown ca"),
    Intruder(f"{OTHER} that CA's intermediate", Visit("other"), TALKER,
             NO_ISSUER, "unknown ca"),
    Intruder(f"{OTHER} our intermediate", Visit("other-right"), TALKER,
             NO_ISSUER, "unknown ca"),
    Intruder(STORE, Visit("other", machine="store"), STORED, NO_ISSUER, "unknown ca"),
    Intruder(STORE, Visit("other-right", machine="store"), STORED, NO_ISSUER, "unknown ca"),
    Intruder(f"{OTHER} that CA's intermediate and root", Visit("other-root"), TALKER,
             "…: self-signed certificate in certificate chain", "unknown ca"),
    Intruder("the same, where the two variables name that root",
             Visit("other-root", machine="store"), STORED,
             "…: self-signed certificate in certificate chain", "unknown ca"),
    Intruder("another CA's certificate with our names and key identifiers",
             Visit("forged"), OURS,
             "…: certificate signature failure", "decrypt error"),
    Intruder("a certificate that was changed after it was signed", Visit("tampered"), OURS,
             "…: certificate signature failure", "decrypt error"),
    Intruder("an expired certificate", Visit("old"), TALKER,
             "…: certificate has expired", "certificate expired"),
    Intruder("an expired intermediate CA", Visit("of-brief"), SISTER,
             "…: certificate has expired", "certificate expired"),
    Intruder("a certificate that is not valid yet", Visit("early"), TALKER,
             "…: certificate is not yet valid", "bad certificate"),
    Intruder("a server's certificate (`serverAuth` only)",
             Visit("server-only"), Visit("client-only"),
             "…: unsuitable certificate purpose", "unsupported certificate", CLIENT_ONLY),
    Intruder("a client's certificate (`clientAuth` only)",
             Visit("client-only"), Visit("server-only"),
             "…: unsuitable certificate purpose", "unsupported certificate", SERVER_ONLY),
    Intruder("the certificate of our intermediate CA itself", Visit("master"), TALKER,
             "…: unsuitable certificate purpose", "unsupported certificate"),
    Intruder("the certificate of our root CA itself", Visit("root"), TALKER,
             "…: unsuitable certificate purpose", "unsupported certificate"),
    Intruder("a certificate signed by a node, which is no CA", Visit("by-leaf"), OURS,
             "…: invalid CA certificate", "unknown ca"),
    Intruder("one CA in a row more than `pathlen` admits",
             Visit("too-long"), Visit("of-deeper"),
             "…: path length constraint exceeded", "unknown ca"),
    Intruder("a name that its CA's `nameConstraints` do not permit",
             Visit("not-permitted"), Visit("permitted"),
             "…: permitted subtree violation", "certificate unknown"),
    Intruder("a name that its CA's `nameConstraints` exclude",
             Visit("excluded"), Visit("not-excluded"),
             "…: excluded subtree violation", "certificate unknown"),
    Intruder("an intermediate CA whose `basicConstraints` are not critical",
             Visit("of-lax"), SISTER,
             "…: Basic Constraints of CA cert not marked critical", "certificate unknown"),
    Intruder("an intermediate CA without `keyUsage`", Visit("of-useless"), SISTER,
             "…: CA cert does not include key usage extension", "certificate unknown"),
    Intruder("no `authorityKeyIdentifier`", Visit("no-key-identifier"), OURS,
             "…: Missing Authority Key Identifier", "certificate unknown"),
    Intruder("an unknown critical extension",
             Visit("unknown-critical"), Visit("unknown-extension"),
             "…: unhandled critical extension", "certificate unknown"),
    Intruder("a revoked certificate", Visit("gone"), Visit("gone", "before"),
             "…: certificate revoked", "certificate revoked"),
    Intruder("a revoked intermediate CA", Visit("of-stolen"), Visit("of-stolen", "before"),
             "…: certificate revoked", "certificate revoked"),
    Intruder("anyone, once the list of the intermediate CA in `crl.pem` has expired",
             Visit("talker", "old-master"), TALKER,
             "…: CRL has expired", "certificate expired"),
    Intruder("anyone, once the list of the root CA in `crl.pem` has expired",
             Visit("talker", "old-root"), TALKER,
             "…: CRL has expired", "certificate expired"),
    Intruder(UNLISTED, Visit("of-stranger"), Visit("of-stranger", "strange"),
             NO_LIST, "unknown ca"),
    Intruder(UNLISTED, Visit("talker", "only-root"), TALKER, NO_LIST, "unknown ca"),
    Intruder("an RSA key of 1,024 bits", lax("small-key"), lax("large-key"),
             "…: EE certificate key too weak", "bad certificate"),
    Intruder("an intermediate CA with an RSA key of 1,024 bits",
             lax("of-small"), lax("of-large"),
             "…: CA certificate key too weak", "bad certificate"),
    Intruder(DIGEST, lax("leaf-md5"), lax("leaf-sha256"), WEAK, "bad certificate"),
    Intruder(DIGEST, lax("leaf-sha1"), lax("leaf-sha256"), WEAK, "bad certificate"),
    Intruder("an intermediate CA signed with SHA-1", lax("of-sha1"), lax("of-sister"),
             WEAK, "bad certificate"),
    Intruder(VERSION, lax("talker", "TLSv1_2"), lax("talker"),
             "unsupported protocol", "protocol version", CLIENT_ONLY),
    Intruder(VERSION, lax("talker", "0303"), lax("talker"),
             "unsupported protocol", "protocol version", CLIENT_ONLY),
    Intruder(VERSION, lax("talker", "0302"), lax("talker"),
             "unsupported protocol", "protocol version", CLIENT_ONLY),
    Intruder(VERSION, lax("talker", "0301"), lax("talker"),
             "unsupported protocol", "protocol version", CLIENT_ONLY),
    Intruder("SSL 3.0", lax("talker", "0300"), lax("talker"),
             "version too low", "handshake failure", CLIENT_ONLY),
    Intruder("TLS 1.2 at most", lax("talker", "TLSv1_2"), lax("talker"),
             "alert protocol version", "none: unsupported protocol", SERVER_ONLY),
    Intruder(INSIST, lax("talker", "0303"), lax("talker"),
             "unsupported protocol", "protocol version", SERVER_ONLY),
    Intruder(INSIST, lax("talker", "0302"), lax("talker"),
             "unsupported protocol", "protocol version", SERVER_ONLY),
    Intruder(INSIST, lax("talker", "0301"), lax("talker"),
             "unsupported protocol", "protocol version", SERVER_ONLY),
    Intruder(INSIST, lax("talker", "0300"), lax("talker"),
             "unsupported protocol", "protocol version", SERVER_ONLY),
    Intruder("another name than it is called by", Visit("elsewhere"), TALKER,
             MISMATCH.format("Hostname", "localhost"), "bad certificate", SERVER_ONLY),
    Intruder("the name in `commonName` only", Visit("named"), TALKER,
             MISMATCH.format("Hostname", "localhost"), "bad certificate", SERVER_ONLY),
    Intruder("no `IP:` in its certificate, called by its address",
             Visit("by-master", host="127.0.0.1"), ADDRESSED,
             MISMATCH.format("IP address", "127.0.0.1"), "bad certificate", SERVER_ONLY),
    Intruder("its address as a name, `DNS:127.0.0.1`", Visit("text-ip", host="127.0.0.1"),
             ADDRESSED,
             MISMATCH.format("IP address", "127.0.0.1"), "bad certificate", SERVER_ONLY),
    Intruder("`*.robots.example` for two labels", Visit("wildcard", host=f"left.{ARM}"),
             Visit("wildcard", host=ARM),
             MISMATCH.format("Hostname", f"left.{ARM}"), "bad certificate", SERVER_ONLY),
    Intruder("`*.robots.example` for no label", Visit("wildcard", host="robots.example"),
             Visit("wildcard", host=ARM),
             MISMATCH.format("Hostname", "robots.example"), "bad certificate", SERVER_ONLY),
    Intruder("`a*.robots.example` for a part of a label", Visit("partial-star", host=ARM),
             Visit("partial", host=ARM),
             MISMATCH.format("Hostname", ARM), "bad certificate", SERVER_ONLY),
]
# fmt: on
# Verified by what the scripts do, and not by what a machine's OpenSSL is configured to.
TOO_WEAK = [intruder for intruder in INTRUDERS if "too weak" in intruder.words]


# --- The doors -------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What the verifier said, and what the refused one saw."""

    words: str
    seen: Seen


def words(stderr: str, script: Path) -> str:
    """Return what a script's one error line says after the place."""
    match = re.fullmatch(rf"{script.name}: error: .*?port \d+: (.*)\n", stderr)
    assert match, stderr
    # OpenSSL 3.6 adds the second half.
    said = match[1].replace(
        "is not yet valid or the system clock is incorrect", "is not yet valid"
    )
    return re.sub("^certificate verify failed: ", "…: ", said)


def seen(stderr: str, script: Path) -> Seen:
    """Return what a refused script saw. With -v, it shows the session after its handshake."""
    # Before that, it may warn of its own expired issuer.
    stderr = re.sub(rf"^{script.name}: warning: .*our own CA's.*\n", "", stderr)
    match = re.fullmatch(rf"([^\n]*TLSv1\.3, TLS_.*\n)?{script.name}: error: (.*)\n", stderr)
    assert match, stderr
    return Seen(alert(match[2]), FIRST_READ if match[1] else HANDSHAKE)


class Doors:
    """The scripts as verifiers. A refused one and a twin may come at once, but not two."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.stock = folder, make_stock(folder)
        self.servers: dict[tuple[str, ...], Server] = {}
        self.visits: dict[tuple[str, Visit, str], Outcome | None] = {}

    def environment(self, visit: Visit) -> dict[str, str]:
        """Return the verifier's environment."""
        extra = {
            "store": {
                "SSL_CERT_FILE": self.stock.other / "store.pem",
                "SSL_CERT_DIR": self.stock.other / "store",
            },
            "weak": {"OPENSSL_CONF": self.folder / "weak.cnf"},
        }.get(visit.machine, {})
        resolver = (
            {"PYTHONPATH": self.folder / "names"} if visit.host.endswith("example") else {}
        )
        return {**PHRASES, **{name: str(path) for name, path in {**extra, **resolver}.items()}}

    def start(self, folder: Path, *arguments: str, env: Mapping[str, str] = PHRASES) -> Server:
        """Start the server script with a folder; it ends with the doors."""
        place = Path(tempfile.mkdtemp(dir=self.folder))
        return Server("-k", str(folder), *arguments, cwd=place, env=env)

    def our_server(self, visit: Visit, kind: str) -> Server:
        """Return the verifier, which goes on from one visit of a kind to the next."""
        how = ("verifier", visit.lists, visit.machine, kind)
        if how not in self.servers:
            keys = self.stock.verifiers / f"server-{visit.lists}"
            self.servers[how] = self.start(keys, env=self.environment(visit))
        return self.servers[how]

    def their_server(self, name: str, kind: str) -> Server:
        """Return a visitor as a server, which shows its sessions."""
        how = ("visitor", name, kind)
        if how not in self.servers:
            self.servers[how] = self.start(self.stock.visitors / name, "-v")
        return self.servers[how]

    def peer(self, visit: Visit) -> Peer | Old:
        """Return a visitor that is not the script."""
        if not visit.speaks.startswith("TLS"):
            return Old(bytes.fromhex(visit.speaks))
        keys = self.stock.visitors / visit.keys if visit.keys else None
        return Peer(keys, ssl.TLSVersion[visit.speaks])

    def call(self, visit: Visit, port: int) -> Seen | None:
        """Come as a client; return what it saw, None if it was let in."""
        if visit.speaks != "script":
            return self.peer(visit).call(port)
        assert visit.keys
        result = client(port, self.stock.visitors / visit.keys, "-v")
        if result.returncode == 0:
            assert result.stdout == ANSWERED
            return None
        assert (result.returncode, result.stdout) == (1, "")
        return seen(result.stderr, CLIENT)

    def meet_server(self, visit: Visit, kind: str) -> Outcome | None:
        """Have a client come to our server; return how it was refused, None if it was not."""
        server = self.our_server(visit, kind)
        out, err = server.out.read_text(), server.err.read_text()
        saw = self.call(visit, server.port)
        if saw is None:
            assert server.printed(out + SERVED) and server.err.read_text() == err
            return None
        server.wait_for(lambda: "\n" in server.err.read_text()[len(err) :])
        assert server.out.read_text() == out
        return Outcome(words(server.err.read_text()[len(err) :], SERVER), saw)

    def meet_client(self, visit: Visit, kind: str) -> Outcome | None:
        """Have our client come to a server. Return how that was refused, if it was."""

        def call(port: int) -> subprocess.CompletedProcess[str]:
            keys = self.stock.verifiers / f"client-{visit.lists}"
            return client(port, keys, "--host", visit.host, env=self.environment(visit))

        if visit.speaks == "script":
            assert visit.keys
            server = self.their_server(visit.keys, kind)
            out, err = server.out.read_text(), server.err.read_text()
            result, saw = call(server.port), None
            if result.returncode == 0:
                assert server.printed(out + SERVED)
            else:
                server.wait_for(
                    lambda: bool(re.search("error: .*\n", server.err.read_text()[len(err) :]))
                )
                assert server.out.read_text() == out == ""
                saw = seen(server.err.read_text()[len(err) :], SERVER)
        else:
            with (
                socket.create_server(("127.0.0.1", 0)) as listener,
                ThreadPoolExecutor(1) as pool,
            ):
                listener.settimeout(DEADLINE)
                future = pool.submit(self.peer(visit).serve, listener)
                result = call(listener.getsockname()[1])
                saw = future.result()
        if saw is None:
            assert (result.returncode, result.stdout, result.stderr) == (0, ANSWERED, "")
            return None
        assert (result.returncode, result.stdout) == (1, "")
        return Outcome(words(result.stderr, CLIENT), saw)

    def come(self, side: str, visit: Visit, kind: str) -> Outcome | None:
        """Have one come, or remember how it was: how was it refused, if it was?"""
        what = (side, visit, kind)
        if what not in self.visits:
            self.visits[what] = (self.meet_server if side == "client" else self.meet_client)(
                visit, kind
            )
        return self.visits[what]

    def refusals(self, intruder: Intruder) -> dict[str, Outcome]:
        """Have an intruder and its twin come as each side. Return how it was refused."""
        with ThreadPoolExecutor(4) as pool:
            twins = [
                pool.submit(self.come, side, intruder.twin, "twin") for side in intruder.sides
            ]
            visits = {
                side: pool.submit(self.come, side, intruder.visit, "intruder")
                for side in intruder.sides
            }
        assert [twin.result() for twin in twins] == [None] * len(twins), intruder
        refused = {
            side: outcome for side, visit in visits.items() if (outcome := visit.result())
        }
        assert [*refused] == [*intruder.sides], intruder
        return refused


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    """Both doors, closed at the end."""
    doors = Doors(tmp_path_factory.mktemp("atlas"))
    yield doors
    for server in doors.servers.values():
        server.process.kill()
        server.process.wait()


# --- The tests -------------------------------------------------------------------------------


def name_of(intruder: Intruder) -> str:
    """Return what a test is called by."""
    visit, usual = intruder.visit._asdict(), TALKER._asdict()
    others = [
        str(value)
        for name, value in visit.items()
        if value not in (usual[name], visit["keys"])
    ]
    one = intruder.sides if len(intruder.sides) == 1 else ()
    return "-".join([visit["keys"] or "nothing", *others, *one])


def expected(intruder: Intruder) -> dict[str, Outcome]:
    """Return how an intruder must be refused. A client is verified after its handshake."""
    verified = intruder.visit.speaks in ("script", "TLSv1_3")
    when = {"client": FIRST_READ if verified else HANDSHAKE, "server": HANDSHAKE}
    return {
        side: Outcome(intruder.words, Seen(intruder.alert, when[side]))
        for side in intruder.sides
    }


@pytest.mark.parametrize("intruder", INTRUDERS, ids=name_of)
def test_an_intruder_is_refused_and_told_so_and_its_twin_is_let_in(
    doors: Doors, intruder: Intruder
) -> None:
    assert doors.refusals(intruder) == expected(intruder)


@pytest.mark.parametrize("intruder", TOO_WEAK, ids=name_of)
def test_weak_peers_are_refused_even_where_openssl_is_configured_to_accept_them(
    doors: Doors, monkeypatch: pytest.MonkeyPatch, intruder: Intruder
) -> None:
    system = Path(
        "/usr/bin/python3"
    )  # Debian's leaves that level to openssl.cnf; others set their own
    monkeypatch.setattr(sys, "executable", str(system) if system.exists() else sys.executable)
    visit, twin = (each._replace(machine="weak") for each in (intruder.visit, intruder.twin))
    assert doors.refusals(intruder._replace(visit=visit, twin=twin)) == expected(intruder)


@pytest.mark.parametrize("machine", ["", "store"])
def test_a_server_that_refused_every_intruder_still_accepts_a_good_client(
    doors: Doors, machine: str
) -> None:
    visit = TALKER._replace(machine=machine)
    server = doors.our_server(visit, "intruder")
    clients = [each.visit for each in INTRUDERS if "client" in each.sides]
    # Each one comes once, here or before.
    intruders = {x for x in clients if (x.lists, x.machine) == (visit.lists, machine)}
    assert all(doors.come("client", intruder, "intruder") for intruder in intruders)
    assert server.err.read_text().count("\n") == 1 + len(intruders) > 2
    assert server.out.read_text() == ""
    assert doors.meet_server(visit, "intruder") is None
    assert server.out.read_text() == SERVED


def atlas(doors: Doors) -> str:
    """Return the tables of the page, from what happened."""
    titles = {
        ("client", "server"): "## Both refuse",
        ("client",): "## The server refuses these clients",
        ("server",): "## The client refuses these servers",
    }
    rows: dict[tuple[str, ...], dict[str, str]] = {sides: {} for sides in titles}
    moments: dict[tuple[str, ...], dict[str, str]] = {sides: {} for sides in titles}
    for intruder in INTRUDERS:
        refusals = doors.refusals(intruder)
        ((said, told),) = {(each.words, each.seen.alert) for each in refusals.values()}
        own = told.removeprefix("none: ")
        told = f"`{told}`" if own == told else f"none; its own error is `{own}`"
        line = f"`{said}` | {told}"
        when = " and ".join(f"a {side} {each.seen.when}" for side, each in refusals.items())
        assert rows[intruder.sides].setdefault(intruder.label, line) == line, intruder
        assert moments[intruder.sides].setdefault(intruder.label, when) == when, intruder
    return "\n\n".join(f"{titles[x]}\n\n{table(rows[x], moments[x])}" for x in titles)


def table(rows: Mapping[str, str], moments: Mapping[str, str]) -> str:
    """Return one table. If all of the refused learn of it at one time, a sentence says so."""
    head = "| intruder | the verifier's line | the alert that the refused one sees |"
    if len({*moments.values()}) == 1:
        sentence = f"The refusal reaches {next(iter(moments.values()))}."
        lines = [f"| {label} | {line} |" for label, line in rows.items()]
        return "\n".join([sentence, "", head, "|---|---|---|", *lines])
    lines = [f"| {label} | {line} | {moments[label]} |" for label, line in rows.items()]
    return "\n".join([f"{head} the refusal reaches |", "|---|---|---|---|", *lines])


def test_the_atlas_shows_what_happened(doors: Doors) -> None:
    text = atlas(doors)
    match = re.search(
        r"^<!-- atlas -->\n(.*)^<!-- end of atlas -->$", PAGE.read_text(), re.S | re.M
    )
    if match is None or match[1].strip() != text:
        pytest.fail(
            f"between its two marks, {PAGE} should have this atlas:\n\n{text}\n", pytrace=False
        )
