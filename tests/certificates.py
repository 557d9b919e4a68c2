"""Certificates, requests and lists by other means than the script, and OpenSSL's judgement.

By cryptography, in this process, whatever it is that they shall say:

    other = issue(None, "Other CA", CA)  # it signs itself
    node = issue(other, "node", LEAF, names=names("elsewhere"), usage=None)
    crl = sign_list(other.chain[0], other.key, number=2, revoked=[on_list(serial)])

By openssl, as folders with a key.pem and a cert.pem:

    ca = make_ca(folder / "other", "Other CA")
    sign(request, ca, "", SERVER_EXTENSIONS, folder / "cert.pem")
    assert judge(node).returncode == 0  # by its own trust anchor and lists
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from running import PHRASES, Result, openssl, run

PEM = serialization.Encoding.PEM
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
Extension = tuple[x509.ExtensionType, bool]  # and whether it is critical
Profile = Mapping[str, Extension | None]  # by a name; None: left out


# --- Reading ---------------------------------------------------------------------------------


def certificate(path: Path) -> x509.Certificate:
    """Read a certificate."""
    return x509.load_pem_x509_certificate(path.read_bytes())


def chain(folder: Path) -> list[x509.Certificate]:
    """Read the certificates in a folder's fullchain.pem."""
    return x509.load_pem_x509_certificates((folder / "fullchain.pem").read_bytes())


def private_key(folder: Path, phrase: str = "") -> Key:
    """Read a folder's key. No phrase: it is not encrypted."""
    data = (folder / "key.pem").read_bytes()
    key = serialization.load_pem_private_key(data, phrase.encode() or None)
    assert isinstance(key, Key)
    return key


def serial(node: Path) -> int:
    """Return the serial number of a folder's certificate."""
    return certificate(node / "cert.pem").serial_number


def lists(path: Path) -> list[x509.CertificateRevocationList]:
    """Read all revocation lists in a file."""
    end = b"-----END X509 CRL-----\n"
    blocks = path.read_bytes().split(end)
    assert blocks.pop() == b""
    return [x509.load_pem_x509_crl(block + end) for block in blocks]


def number(crl: x509.CertificateRevocationList) -> int:
    """Return a list's CRL number."""
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def revoked_serials(path: Path) -> set[int]:
    """Return the serial numbers on a file's first list: a CA's own, or a node's issuer's."""
    return {entry.serial_number for entry in lists(path)[0]}


def pem(*objects: x509.Certificate | x509.CertificateRevocationList) -> bytes:
    """Return certificates or lists as PEM."""
    return b"".join(each.public_bytes(PEM) for each in objects)


# --- By cryptography -------------------------------------------------------------------------


class Identity(NamedTuple):
    """A key, and the certificates that are shown with it, the own one first."""

    key: Key
    chain: list[x509.Certificate]

    def files(self) -> dict[str, bytes]:
        """Return the two files of it."""
        key = self.key.private_bytes(
            PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return {"key.pem": key, "fullchain.pem": pem(*self.chain)}

    def write(self, folder: Path) -> None:
        """Write them into a folder."""
        for name, data in self.files().items():
            (folder / name).write_bytes(data)


def identity(folder: Path) -> Identity:
    """Read an identity whose key is not encrypted."""
    return Identity(private_key(folder), chain(folder))


def authority(ca: Path, phrase: str) -> Identity:
    """Read a CA's folder, to sign with its key."""
    return Identity(private_key(ca, phrase), [certificate(ca / "cert.pem")])


def names(*dns: str) -> Extension:
    """Return a subjectAltName."""
    return x509.SubjectAlternativeName([x509.DNSName(name) for name in dns]), False


def usage(*used: str) -> Extension:
    """Return a keyUsage."""
    every = ["content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    every += ["digital_signature", "key_cert_sign", "crl_sign"]
    every += ["encipher_only", "decipher_only"]
    return x509.KeyUsage(**{each: each in used for each in every}), True


def key_identifier(ca: x509.Certificate) -> Extension:
    """Return the authorityKeyIdentifier of what a CA signs."""
    own = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own), False


def purpose(*nodes: str) -> Extension:
    """Return the extendedKeyUsage of a server, a client, or both."""
    oids = {
        "server": ExtendedKeyUsageOID.SERVER_AUTH,
        "client": ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    return x509.ExtendedKeyUsage([oids[node] for node in nodes]), False


LEAF: Profile = {
    "constraints": (x509.BasicConstraints(False, None), True),
    "usage": usage("digital_signature"),
    "purpose": purpose("server", "client"),
    "names": names("localhost"),
}
CA: Profile = {
    "constraints": (x509.BasicConstraints(True, 0), True),
    "usage": usage("key_cert_sign", "crl_sign"),
}


def issue(
    by: Identity | None,
    name: str = "talker",
    profile: Profile = LEAF,
    key: Key | None = None,
    days: tuple[int, int] = (-99, 300),
    digest: str = "sha256",
    **changes: Extension | None,
) -> Identity:
    """Make an identity. Without an issuer, it signs itself.

    The extensions are those of the profile with changes, and the key identifiers. The days are
    those of begin and end, from now.
    """
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    above = by or Identity(key, [])
    made = certify(above, subject, key.public_key(), days, **{**profile, **changes})
    if digest != "sha256":
        made = sign_again(made, key, above, digest)
    # What the verifiers trust is not sent.
    between = [each for each in above.chain if each.issuer != each.subject]
    return Identity(key, [made, *between])


def certify(
    by: Identity,
    subject: x509.Name,
    key: Any,
    days: tuple[int, int],
    **extensions: Extension | None,
) -> x509.Certificate:
    """Certify a public key. Without a chain, the issuer has the same subject."""
    issuer = by.chain[0].subject if by.chain else subject
    above = x509.AuthorityKeyIdentifier.from_issuer_public_key(by.key.public_key())
    own = x509.SubjectKeyIdentifier.from_public_key(key)
    extensions = {"own": (own, False), "issuer": (above, False), **extensions}
    now = datetime.now(timezone.utc)
    builder = (
        x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
    )
    for extension in extensions.values():
        if extension is not None:
            builder = builder.add_extension(*extension)
    return builder.sign(by.key, hashes.SHA256())


def sign_again(
    made: x509.Certificate, key: Key, by: Identity, digest: str
) -> x509.Certificate:
    """Return a certificate, signed by openssl with a digest that cryptography gave up."""
    request = x509.CertificateSigningRequestBuilder(made.subject)
    for each in made.extensions:
        request = request.add_extension(each.value, each.critical)
    text = request.sign(key, hashes.SHA256()).public_bytes(PEM).decode()
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(by.files().values()))
        file.flush()
        how = (f"-{digest}", "-days", "300", "-copy_extensions", "copyall")
        signed = openssl("x509", "-req", "-CA", file.name, *how, stdin=text)
    return x509.load_pem_x509_certificate(signed.encode())


def sign_list(
    ca: x509.Certificate,
    key: Key,
    number: int = 1,
    revoked: Iterable[x509.RevokedCertificate] = (),
    named: Extension | None = None,
) -> bytes:
    """Sign a CA's revocation list, as PEM. It may name the CA's key in another way."""
    now = datetime.now(timezone.utc)
    builder = (
        x509.CertificateRevocationListBuilder(ca.subject, revoked_certificates=[*revoked])
        .last_update(now - timedelta(hours=1))
        .next_update(now + timedelta(days=1000))
        .add_extension(x509.CRLNumber(number), False)
        .add_extension(*(named or key_identifier(ca)))
    )
    return pem(builder.sign(key, hashes.SHA256()))


def on_list(
    serial_number: int, reason: str = "unspecified", since: datetime | None = None
) -> x509.RevokedCertificate:
    """Return an entry of a revocation list, by default since now."""
    when = since or datetime.now(timezone.utc)
    entry = x509.RevokedCertificateBuilder(serial_number, when)
    if reason != "unspecified":
        entry = entry.add_extension(x509.CRLReason(x509.ReasonFlags(reason)), False)
    return entry.build()


def make_list(ca: Path, phrase: str, number: int, *revoked: x509.RevokedCertificate) -> bytes:
    """Sign a revocation list with the key in a CA's folder, as PEM."""
    key, (issuer,) = authority(ca, phrase)
    return sign_list(issuer, key, number, revoked)


# --- By openssl ------------------------------------------------------------------------------


SUBJECT = "/C=US/O=SROS Example/OU=Robots/CN="
CA_EXTENSIONS = """basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""
SERVER_EXTENSIONS = """basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = DNS:localhost, IP:127.0.0.1, IP:::1
"""
NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def sign(
    request: Path, ca: Path, phrase: str, extensions: str, out: Path, *options: str
) -> None:
    """Sign a request with a CA's folder, by openssl."""
    pair = ("-CA", ca / "cert.pem", "-CAkey", ca / "key.pem", "-passin", f"pass:{phrase}")
    how = ("-days", "300", "-extfile", "/dev/stdin", "-out", out)
    openssl("x509", "-req", "-in", request, *pair, *how, *options, stdin=extensions)


def cross_certify(root: Path, folder: Path, out: Path, *options: str) -> None:
    """Have a higher CA in a new folder certify a root, whose key has the pass phrase root."""
    request = folder.with_suffix(".csr")
    higher = make_ca(folder, "higher", "-newkey", "rsa:2048", "-nodes")
    key = ("-signkey", root / "key.pem", "-passin", "pass:root")
    openssl("x509", "-x509toreq", "-in", root / "cert.pem", *key, "-out", request)
    sign(request, higher, "", CA_EXTENSIONS.replace(", pathlen:0", ""), out, *options)


def make_ca(folder: Path, name: str, *key: str) -> Path:
    """Make a self-signed CA's folder elsewhere, by openssl."""
    folder.mkdir()
    files = ("-keyout", folder / "key.pem", "-out", folder / "cert.pem")
    extension = ("-addext", "keyUsage=critical,keyCertSign,cRLSign", "-days", "3000")
    openssl("req", "-x509", *(key or NEW_KEY), *files, "-subj", SUBJECT + name, *extension)
    return folder


def decrypt(node: Path) -> None:
    """Take the pass phrase off a node's key."""
    key, plain = node / "key.pem", node / "plain.pem"
    openssl("pkey", "-in", key, "-passin", f"pass:{PHRASES['SROS_PASSPHRASE']}", "-out", plain)
    plain.replace(key)


def moment(text: str) -> datetime:
    """Return a time such as `Jan  2 03:04:05 2040 GMT`, as openssl prints it."""
    return datetime.strptime(text, "%b %d %H:%M:%S %Y GMT").replace(tzinfo=timezone.utc)


def judge(node: Path, peer: Path | None = None, purpose: str = "any") -> Result:
    """Have openssl verify a folder's chain, by a peer's trust anchor and lists or its own."""
    by, chain = peer or node, ("-untrusted", node / "fullchain.pem", node / "cert.pem")
    trust = ("-CAfile", by / "ca.pem", "-CRLfile", by / "crl.pem", "-no-CApath", "-no-CAstore")
    how = ("-x509_strict", "-crl_check_all", "-purpose", purpose)
    return run("openssl", "verify", *how, *trust, *chain)
