"""Certificates, requests and lists by other means than the script, and OpenSSL's judgement.

ca = make_ca(folder / "other", "Other CA")  # a self-signed CA's folder, by openssl
sign(request, ca, "", SERVER_EXTENSIONS, folder / "cert.pem")
assert judge(node).returncode == 0  # by its own trust anchor and lists
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from running import Result, openssl, run

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


def certificate(path: Path) -> x509.Certificate:
    """Read a certificate."""
    return x509.load_pem_x509_certificate(path.read_bytes())


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


def make_list(ca: Path, phrase: str, number: int, *revoked: Path) -> bytes:
    """Sign a revocation list with a CA's key, as PEM."""
    key = serialization.load_pem_private_key((ca / "key.pem").read_bytes(), phrase.encode())
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    issuer, now = certificate(ca / "cert.pem"), datetime.now(timezone.utc)
    builder = (
        x509.CertificateRevocationListBuilder(issuer.subject)
        .last_update(now - timedelta(hours=1))
        .next_update(now + timedelta(days=1000))
        .add_extension(x509.CRLNumber(number), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), False
        )
    )
    for path in revoked:
        entry = x509.RevokedCertificateBuilder(certificate(path).serial_number, now)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def sign(
    request: Path, ca: Path, phrase: str, extensions: str, out: Path, digest: str = "sha256"
) -> None:
    """Sign a request elsewhere: with a CA's folder, by openssl."""
    pair = ("-CA", ca / "cert.pem", "-CAkey", ca / "key.pem", "-passin", f"pass:{phrase}")
    how = ("-days", "300", "-extfile", "/dev/stdin", f"-{digest}", "-out", out)
    openssl("x509", "-req", "-in", request, *pair, *how, stdin=extensions)


def make_ca(folder: Path, name: str, *key: str) -> Path:
    """Make a self-signed CA's folder elsewhere, by openssl."""
    folder.mkdir()
    files = ("-keyout", folder / "key.pem", "-out", folder / "cert.pem")
    extension = ("-addext", "keyUsage=critical,keyCertSign,cRLSign", "-days", "3000")
    openssl("req", "-x509", *(key or NEW_KEY), *files, "-subj", SUBJECT + name, *extension)
    return folder


def judge(node: Path, peer: Path | None = None) -> Result:
    """Have openssl verify a folder's chain, by a peer's trust anchor and lists or its own."""
    by, chain = peer or node, ("-untrusted", node / "fullchain.pem", node / "cert.pem")
    trust = ("-CAfile", by / "ca.pem", "-CRLfile", by / "crl.pem", "-no-CApath", "-no-CAstore")
    return run("openssl", "verify", "-x509_strict", "-crl_check_all", *trust, *chain)
