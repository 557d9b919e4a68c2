"""What the tests of the keys folder share: its state, its judges, and CAs by other means."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
from conftest import GENERATE, PHRASES, configure, openssl, run
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

Result = subprocess.CompletedProcess[str]

DERIVED = {"fullchain.pem", "ca.pem", "crl.pem"}
NODE_FILES = {"key.pem", "cert.pem", *DERIVED}
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


class State(NamedTuple):
    """What a file or folder is: equal means untouched."""

    inode: int
    mode: int
    mtime: int
    data: bytes | None


def tree(folder: Path) -> dict[str, State]:
    """Return the state of a folder and of all that is in it, by path."""
    states = {}
    for path in (folder, *folder.rglob("*")):
        stat = path.lstat()
        data = path.read_bytes() if path.is_file() else None
        name = str(path.relative_to(folder))
        states[name] = State(stat.st_ino, stat.st_mode, stat.st_mtime_ns, data)
    return states


def changed(before: dict[str, State], after: dict[str, State]) -> set[str]:
    """Return the paths of the files, not the folders, that came, went or were written."""
    names = {name for name in before | after if before.get(name) != after.get(name)}
    states = before | after
    return {name for name in names if states[name].data is not None}


def fine(result: Result) -> Result:
    """Require a run without errors and warnings."""
    assert (result.returncode, result.stderr) == (0, "")
    return result


def complaints(result: Result, kind: str, status: int) -> list[str]:
    """Return the lines on standard error, without what they all must begin with."""
    start = f"{GENERATE.name}: {kind}: "
    lines = result.stderr.splitlines()
    assert all(line.startswith(start) for line in lines), result.stderr
    assert result.returncode == status, (result.stdout, result.stderr)
    return [line.removeprefix(start) for line in lines]


def refused(result: Result, *names: str) -> list[str]:
    """Require status 1 and one error line for each name, which it contains, in this order."""
    lines = complaints(result, "error", 1)
    assert len(lines) == len(names), lines
    assert all(name in line for name, line in zip(names, lines, strict=True)), lines
    return lines


def faults(result: Result, *texts: str) -> list[str]:
    """Require status 1 and one error line that contains each text. Warnings may appear."""
    lines = result.stderr.splitlines()
    wrong = [line for line in lines if line.startswith(f"{GENERATE.name}: error: ")]
    assert all(
        line.startswith(f"{GENERATE.name}: warning: ") for line in lines if line not in wrong
    )
    assert (result.returncode, len(wrong)) == (1, len(texts)), result.stderr
    assert all(text in line for text, line in zip(texts, wrong, strict=True)), result.stderr
    return wrong


def warned(result: Result, *names: str) -> list[str]:
    """Require status 0 and one warning for each name, which it contains, in any order."""
    lines = complaints(result, "warning", 0)
    assert len(lines) == len(names), lines
    assert all(any(name in line for line in lines) for name in names), lines
    return lines


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Put the shipped configuration into a folder with a change to what stands under keys."""

    def apply(document: dict[str, object]) -> None:
        change(cast(dict[str, Any], document["keys"]))

    configure(folder, apply)


EXAMPLE = re.compile(r"^#    ([\w-]+):.*\n(?:#      .*\n)*", re.MULTILINE)


def examples(text: str) -> dict[str, str]:
    """Return the lines of each commented-out example of a configuration, by its name."""
    return {found[1]: found[0] for found in EXAMPLE.finditer(text)}


def uncomment(folder: Path, *names: str) -> None:
    """Remove the comment sign, and nothing else, from each line of some examples."""
    path = folder / "sros_config.yml"
    text = path.read_text()
    for name in names:
        lines = examples(text)[name]
        text = text.replace(lines, re.sub("^#", "", lines, flags=re.MULTILINE))
    path.write_text(text)


def add_client2(folder: Path) -> None:
    """Add a node like client to the configuration."""
    edit(folder, lambda keys: keys["nodes"].update(client2=keys["nodes"]["client"]))


def later(
    folder: Path, when: str, *arguments: str, env: dict[str, str] | None = PHRASES
) -> Result:
    """Run the script in a folder at another time, such as +2 days."""
    return run("faketime", when, sys.executable, GENERATE, *arguments, cwd=folder, env=env)


def certificate(path: Path) -> x509.Certificate:
    """Read a certificate."""
    return x509.load_pem_x509_certificate(path.read_bytes())


def lists(path: Path) -> list[x509.CertificateRevocationList]:
    """Read all revocation lists in a file."""
    end = b"-----END X509 CRL-----\n"
    blocks = path.read_bytes().split(end)
    assert blocks.pop() == b""
    return [x509.load_pem_x509_crl(block + end) for block in blocks]


def number(crl: x509.CertificateRevocationList) -> int:
    """Return a list's CRL number."""
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


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


def seldom(cases: Collection[str], *slow: str) -> list[Any]:
    """Return the cases of a test, of which some are run with the slow tests only."""
    parameters = []
    for case in cases:
        marks = [pytest.mark.slow] if case in slow else []
        parameters.append(pytest.param(case, marks=marks))
    assert set(slow) <= set(cases)
    return parameters


def drop(folder: Path, *names: str) -> None:
    """Remove files and folders from a folder."""
    for name in names:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def keep_only(folder: Path, *names: str) -> None:
    """Remove all else from a folder."""
    drop(folder, *(path.name for path in folder.iterdir() if path.name not in names))


def states(result: Result) -> dict[str, str]:
    """Return what a run printed of each entry: made, kept, renewed or revoked."""
    lines = [re.sub(r"^\[ *\d+/\d+\] ", "", line) for line in result.stdout.splitlines()]
    return {line.split()[0]: line.split()[1] for line in lines}


def serial(node: Path) -> int:
    """Return the serial number of a folder's certificate."""
    return certificate(node / "cert.pem").serial_number


def record(keys: Path, name: str, ca: str = "master") -> Path:
    """Return where a CA's record of the certificate in force stands."""
    return keys / ca / "issued" / f"{name}-{serial(keys / name):X}.pem"


def revoked_serials(path: Path) -> set[int]:
    """Return the serial numbers on a file's first list: a CA's own, or a node's issuer's."""
    return {entry.serial_number for entry in lists(path)[0]}


def judge(node: Path, peer: Path | None = None) -> Result:
    """Have openssl verify a folder's chain, by a peer's trust anchor and lists or its own."""
    by, chain = peer or node, ("-untrusted", node / "fullchain.pem", node / "cert.pem")
    trust = ("-CAfile", by / "ca.pem", "-CRLfile", by / "crl.pem", "-no-CApath", "-no-CAstore")
    return run("openssl", "verify", "-x509_strict", "-crl_check_all", *trust, *chain)
