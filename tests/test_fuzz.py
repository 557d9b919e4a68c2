"""Random configurations, values and folders, by Hypothesis: right, or refused in one line."""

from __future__ import annotations

import copy
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from ipaddress import ip_network
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from certificates import CA, certificate, certify, issue, lists, pem
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID
from folders import DERIVED
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from OpenSSL import crypto
from running import GENERATE, PHRASES, ROOT, Result, fine, generate, generate_here

STRICT = crypto.X509StoreFlags.X509_STRICT | crypto.X509StoreFlags.CHECK_SS_SIGNATURE
STRICT |= crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # None: where tempfile puts it
PREFIX = f"{GENERATE.name}: "
NOT_CONFIGURATION = [  # status 1: what the environment lacks, and what only OpenSSL can judge
    r"\w+: is not set, and there is no terminal to ask on",
    r"\w+: a pass phrase must have 1 to 1023 bytes",
    r"keys/\S+/cert\.pem: .+ \(.*\): --renew it, or (set the clock|mend its configuration)",
    r"sros_config\.yml: keys\.\S+\.validity\.\w+: \S+ (has passed|is in the future): .+",
    r"keys: left alone: \d+ below \S+, which failed or is revoked",
]
KEYS: dict[str, Callable[[], Any]] = {
    "ec:prime256v1": ec.SECP256R1,
    "ec:secp384r1": ec.SECP384R1,
    "ec:secp521r1": ec.SECP521R1,
    "ed25519": lambda: ed25519.Ed25519PublicKey,
    "ed448": lambda: ed448.Ed448PublicKey,
    "ml-dsa-44": lambda: mldsa.MLDSA44PublicKey,
    "ml-dsa-65": lambda: mldsa.MLDSA65PublicKey,
    "ml-dsa-87": lambda: mldsa.MLDSA87PublicKey,
}
SUBJECT = {
    "countryName": x509.NameOID.COUNTRY_NAME,
    "stateOrProvinceName": x509.NameOID.STATE_OR_PROVINCE_NAME,
    "localityName": x509.NameOID.LOCALITY_NAME,
    "organizationName": x509.NameOID.ORGANIZATION_NAME,
    "organizationalUnitName": x509.NameOID.ORGANIZATIONAL_UNIT_NAME,
    "commonName": x509.NameOID.COMMON_NAME,
    "serialNumber": x509.NameOID.SERIAL_NUMBER,
    "domainComponent": x509.NameOID.DOMAIN_COMPONENT,
    "emailAddress": x509.NameOID.EMAIL_ADDRESS,
}
NODE_USAGES = {
    "digitalSignature": "digital_signature",
    "nonRepudiation": "content_commitment",
    "keyEncipherment": "key_encipherment",
    "dataEncipherment": "data_encipherment",
    "keyAgreement": "key_agreement",
    "encipherOnly": "encipher_only",
    "decipherOnly": "decipher_only",
}
CA_USAGES = {**NODE_USAGES, "keyCertSign": "key_cert_sign", "cRLSign": "crl_sign"}
PURPOSES = {
    "serverAuth": ExtendedKeyUsageOID.SERVER_AUTH,
    "clientAuth": ExtendedKeyUsageOID.CLIENT_AUTH,
    "codeSigning": ExtendedKeyUsageOID.CODE_SIGNING,
    "emailProtection": ExtendedKeyUsageOID.EMAIL_PROTECTION,
    "timeStamping": ExtendedKeyUsageOID.TIME_STAMPING,
    "OCSPSigning": ExtendedKeyUsageOID.OCSP_SIGNING,
}
ACCESS = {
    "OCSP": AuthorityInformationAccessOID.OCSP,
    "caIssuers": AuthorityInformationAccessOID.CA_ISSUERS,
}
NEVER_CRITICAL = {"subjectKeyIdentifier", "authorityKeyIdentifier", "authorityInfoAccess"}
OPTIONAL = [
    "extendedKeyUsage",
    "certificatePolicies",
    "crlDistributionPoints",
    "authorityInfoAccess",
]
OPTIONAL += ["subjectAltName", "OID"]  # for CAs and nodes


# --- The script, for each example ------------------------------------------------------------


Clock = tuple[datetime, datetime]  # what a run takes for now, at the earliest and the latest
# The script's clock is a second behind, for OpenSSL's may be as well.
TICK = timedelta(seconds=1)


def run_here(folder: Path) -> tuple[Result, Clock]:
    """Run the script in this process, which takes a fifth of a new one's time."""
    now = datetime.now(timezone.utc).replace(microsecond=0)
    return generate_here(folder, now=now), (now - TICK, now - TICK)


def run_process(folder: Path) -> tuple[Result, Clock]:
    """Run the script as a process."""
    begun = datetime.now(timezone.utc).replace(microsecond=0)
    result = generate(folder)
    return result, (begun - TICK, datetime.now(timezone.utc))


def lines_of(result: Result) -> list[str]:
    """Return a run's complaints, each of which is one line that says what it is."""
    lines = result.stderr.split("\n")
    assert lines.pop() == "", result.stderr
    assert all(line.isprintable() for line in lines), result.stderr
    assert all(re.match(f"{PREFIX}(error|warning): ", line) for line in lines), result.stderr
    return [line.removeprefix(PREFIX) for line in lines]


@contextmanager
def scratch(text: str | bytes = b"") -> Iterator[Path]:
    """A folder in memory with a configuration."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        data = text if isinstance(text, bytes) else text.encode()
        Path(name, "sros_config.yml").write_bytes(data)
        yield Path(name)


def sizes(quick: int, slow: int) -> pytest.MarkDecorator:
    """Run a test with few examples, and in the run of its own with many."""
    return pytest.mark.parametrize(
        "examples", [quick, pytest.param(slow, marks=pytest.mark.slow)]
    )


def fuzz(
    examples: int, strategy: st.SearchStrategy[Any], check: Callable[[Any], object]
) -> None:
    """Have a check hold for examples: the same ones each time, or with FUZZ=1 others."""
    few = examples < 100  # in the suite
    size = settings(
        max_examples=examples,
        derandomize="FUZZ" not in os.environ,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
        phases=[Phase.generate] if few else [Phase.generate, Phase.shrink],
    )

    def example(value: Any) -> None:
        check(value)

    size(given(strategy)(example))()


# --- What came of it, by other eyes ----------------------------------------------------------


def verify(keys: Path) -> None:
    """Have OpenSSL verify every certificate in strict mode, a node by its own folder alone."""
    for folder in (path.parent for path in keys.glob("*/cert.pem")):
        chain = x509.load_pem_x509_certificates((folder / "fullchain.pem").read_bytes())
        leaf = certificate(folder / "cert.pem")
        assert chain[0] == leaf
        store = crypto.X509Store()
        store.add_cert(crypto.X509.from_cryptography(certificate(folder / "ca.pem")))
        is_ca = (folder / "issued").exists() or len(lists(folder / "crl.pem")) == 1
        for path in keys.glob("*/crl.pem") if is_ca else [folder / "crl.pem"]:
            for each in lists(path):
                store.add_crl(each)
        store.set_flags(STRICT)
        between = [crypto.X509.from_cryptography(each) for each in chain[1:]]
        crypto.X509StoreContext(
            store, crypto.X509.from_cryptography(leaf), between
        ).verify_certificate()
        key = serialization.load_pem_private_key(*unlocked(folder / "key.pem"))
        assert key.public_key() == leaf.public_key()
        assert (folder / "key.pem").stat().st_mode & 0o777 == 0o600
        for issuer in chain[1:]:
            assert leaf.not_valid_after_utc <= issuer.not_valid_after_utc


def unlocked(path: Path) -> tuple[bytes, bytes | None]:
    """Return a key as PEM, and its pass phrase."""
    data = path.read_bytes()
    phrase = PHRASES[
        "SROS_ROOT_PASSPHRASE" if path.parent.name == "root" else "SROS_PASSPHRASE"
    ]
    return data, phrase.encode() if b"ENCRYPTED" in data else None


class Want(NamedTuple):
    """What the YAML says of an entry."""

    issuer: str | None
    key: str
    digest: str | None
    subject: list[tuple[x509.ObjectIdentifier, str]]
    times: dict[str, timedelta | datetime]
    extensions: dict[x509.ObjectIdentifier, tuple[x509.ExtensionType | None, bool]]


def accepted(result: Result, clock: Clock, folder: Path, wants: dict[str, Want]) -> None:
    """Require that a run made what the YAML says, and nothing else."""
    fine(result)
    assert {path.name for path in (folder / "keys").iterdir()} == {*wants}
    verify(folder / "keys")
    for name, want in wants.items():
        made = certificate(folder / "keys" / name / "cert.pem")
        issuer, signer = made, want
        if want.issuer:
            issuer = certificate(folder / "keys" / want.issuer / "cert.pem")
            signer = wants[want.issuer]
        assert made.issuer == issuer.subject
        attributes = [each for rdn in made.subject.rdns for each in rdn]
        assert [(each.oid, each.value) for each in attributes] == want.subject
        has_key_and_digest(made, want, signer)
        has_times(made, name, wants, clock)
        has_list(made, folder / "keys" / name, want, clock)
        has_extensions(made, issuer, want)


def has_key_and_digest(made: x509.Certificate, want: Want, signer: Want) -> None:
    """Require the key type of an entry, and the digest of the one that signs."""
    public: Any = made.public_key()
    kind = KEYS[want.key]
    if want.key.startswith("ec:"):
        assert public.curve.name == kind().name
    else:
        assert isinstance(public, kind())
    digest = made.signature_hash_algorithm
    if signer.key.startswith("ec:"):
        assert digest and digest.name == signer.digest
    else:
        assert digest is None


def has_times(made: x509.Certificate, name: str, wants: dict[str, Want], clock: Clock) -> None:
    """Require an entry's begin, and its end or an earlier one of an issuer."""
    want = wants[name]
    begin, end = times(want, "notBefore", clock)
    assert begin <= made.not_valid_before_utc <= end
    ends = [times(want, "notAfter", clock)]
    while want.issuer:
        want = wants[want.issuer]
        ends.append(times(want, "notAfter", clock))
    assert min(x for x, _ in ends) <= made.not_valid_after_utc <= min(x for _, x in ends)


def has_list(made: x509.Certificate, path: Path, want: Want, clock: Clock) -> None:
    """Require that a CA has a list, which ends when it shall, or with the CA."""
    if not (path / "issued").exists() and "nextUpdate" not in want.times:
        return
    (own,) = lists(path / "crl.pem")
    field = "nextUpdate" if "nextUpdate" in want.times else "notAfter"
    first, last = times(want, field, clock)
    assert own.next_update_utc
    assert min(first, made.not_valid_after_utc) <= own.next_update_utc
    assert own.next_update_utc <= min(last, made.not_valid_after_utc)


def has_extensions(made: x509.Certificate, issuer: x509.Certificate, want: Want) -> None:
    """Require an entry's extensions, and key identifiers that are those of the keys."""
    extensions = dict(want.extensions)
    own: Any = made.public_key()
    above: Any = issuer.public_key()
    for value in (
        x509.SubjectKeyIdentifier.from_public_key(own),
        x509.AuthorityKeyIdentifier.from_issuer_public_key(above),
    ):
        if value.oid in extensions:
            extensions[value.oid] = (value, False)
    assert {each.oid: (each.value, each.critical) for each in made.extensions} == extensions


def times(want: Want, field: str, clock: Clock) -> tuple[datetime, datetime]:
    """Return the first and the last moment that a field can mean."""
    value = want.times.get(field, timedelta())
    if isinstance(value, datetime):
        return value, value
    earliest, latest = clock
    return earliest + value, latest + value


def in_one_line_or_right(result: Result, folder: Path) -> int:
    """Require one line and nothing written, or that all certificates verify."""
    lines = lines_of(result)
    if result.returncode == 2:
        assert (len(lines), result.stdout, (folder / "keys").exists()) == (1, "", False), (
            result
        )
        assert lines[0].startswith("error: sros_config.yml: ")
        return 2
    assert result.returncode == int(bool(lines)), result
    for line in lines:
        text = line.removeprefix("error: ")
        allowed = [form for form in NOT_CONFIGURATION if re.fullmatch(form, text)]
        assert allowed, result
        if allowed[0] in NOT_CONFIGURATION[:2]:
            assert not (folder / "keys").exists(), result
    verify(folder / "keys")
    return result.returncode


# --- Configurations that are valid, and what they mean ---------------------------------------


ALNUM = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
LETTERS = st.characters(exclude_categories=["C", "Z"]) | st.just(" ")
PRINTABLE = st.text(LETTERS, min_size=1, max_size=12)
ASCII = "".join(chr(n) for n in range(33, 127) if chr(n) not in ",$")
VISIBLE = st.text(ASCII, min_size=1, max_size=20)
LABELS = st.lists(st.text(ALNUM + "_", min_size=1, max_size=63), min_size=1, max_size=3)
HOST = LABELS.map(".".join).filter(lambda host: re.search("[^0-9.]", host))
ARCS = st.lists(st.integers(0, 2**40), min_size=1, max_size=4)
OIDS = ARCS.map(lambda arcs: ".".join(["1.3.6.1.4.1.32473", *map(str, arcs)]))
Item = tuple[str, Any]  # as it is written, and what it means
Content = tuple[list[str], x509.ExtensionType | None]  # the same of an extension, in parts
Value = tuple[str, x509.ExtensionType | None, bool]  # the same in one, and whether critical
URI = VISIBLE.map(lambda rest: f"urn:{rest}")
EMAIL = st.builds("{}@{}".format, st.text(ALNUM + "!#+-._", min_size=1, max_size=20), HOST)
NAMES: st.SearchStrategy[Item] = st.one_of(
    st.builds(lambda x: (f"DNS:{x}", x509.DNSName(x)), HOST),
    HOST.filter(lambda x: "." in x).map(lambda x: (f"DNS:*.{x}", x509.DNSName(f"*.{x}"))),
    st.ip_addresses().map(lambda x: (f"IP:{x}", x509.IPAddress(x))),
    URI.map(lambda x: (f"URI:{x}", x509.UniformResourceIdentifier(x))),
    EMAIL.map(lambda x: (f"email:{x}", x509.RFC822Name(x))),
)
# Subtrees that no entry's names are in.
RESERVED = st.ip_addresses(v=4, network="240.0.0.0/4")
SUBTREES: st.SearchStrategy[Item] = st.one_of(
    HOST.map(lambda x: (f"DNS:.{x}.invalid", x509.DNSName(f".{x}.invalid"))),
    RESERVED.map(lambda x: (f"IP:{x}/32", x509.IPAddress(ip_network(x)))),
    HOST.map(lambda x: (f"email:{x}.invalid", x509.RFC822Name(f"{x}.invalid"))),
)


def named(table: dict[str, x509.ObjectIdentifier]) -> st.SearchStrategy[Item]:
    """Draw what has a name, or a dotted one."""
    return st.sampled_from([*table.items()]) | POLICIES


def listed(
    items: st.SearchStrategy[Item], build: Callable[[list[Any]], x509.ExtensionType]
) -> st.SearchStrategy[Content]:
    """Draw an extension of one to four items."""
    several = st.lists(items, min_size=1, max_size=4, unique_by=lambda item: item[0])
    return several.map(lambda drawn: ([x for x, _ in drawn], build([y for _, y in drawn])))


def points(uris: list[Any]) -> x509.CRLDistributionPoints:
    """Return where a list is, one point for each URI."""
    return x509.CRLDistributionPoints(
        [x509.DistributionPoint([uri], None, None, None) for uri in uris]
    )


def accesses(pairs: list[Any]) -> x509.AuthorityInformationAccess:
    """Return where an issuer's services are, from pairs of a method and a URI."""
    return x509.AuthorityInformationAccess(
        [x509.AccessDescription(oid, x509.UniformResourceIdentifier(x)) for oid, x in pairs]
    )


POLICIES: st.SearchStrategy[Item] = OIDS.map(lambda x: (x, x509.ObjectIdentifier(x)))
LOCATIONS = URI.map(lambda x: (f"URI:{x}", x509.UniformResourceIdentifier(x)))
SERVICES = st.builds(lambda x, y: (f"{x[0]};URI:{y}", (x[1], y)), named(ACCESS), URI)
CONTENTS: dict[str, st.SearchStrategy[Content]] = {
    "subjectKeyIdentifier": st.just((["hash"], None)),
    "authorityKeyIdentifier": st.sampled_from([(["keyid"], None), (["keyid:always"], None)]),
    "extendedKeyUsage": listed(named(PURPOSES), x509.ExtendedKeyUsage),
    "subjectAltName": listed(NAMES, x509.SubjectAlternativeName),
    "nameConstraints": listed(
        SUBTREES.map(lambda x: (f"excluded;{x[0]}", x[1])),
        lambda values: x509.NameConstraints(None, values),
    ),
    "certificatePolicies": listed(
        POLICIES,
        lambda oids: x509.CertificatePolicies([x509.PolicyInformation(x, None) for x in oids]),
    ),
    "crlDistributionPoints": listed(LOCATIONS, points),
    "authorityInfoAccess": listed(SERVICES, accesses),
}


@st.composite
def constraints(draw: Any, is_ca: bool, below: int) -> Content:
    """Draw basicConstraints, for a CA with as many levels below it."""
    if not is_ca:
        return ["CA:FALSE"], x509.BasicConstraints(False, None)
    limit = draw(st.none() | st.integers(below, 9999))
    if limit is None:
        return ["CA:TRUE"], x509.BasicConstraints(True, None)
    return ["CA:TRUE", f"pathlen:{limit}"], x509.BasicConstraints(True, limit)


@st.composite
def usages(draw: Any, is_ca: bool) -> Content:
    """Draw a keyUsage that is consistent."""
    drawn = draw(st.sets(st.sampled_from([*NODE_USAGES]), min_size=int(not is_ca)))
    if is_ca:
        drawn |= {"keyCertSign", "cRLSign"}
    if drawn & {"encipherOnly", "decipherOnly"}:
        drawn |= {"keyAgreement"}
    flags = {argument: name in drawn for name, argument in CA_USAGES.items()}
    return draw(st.permutations(sorted(drawn))), x509.KeyUsage(**flags)


@st.composite
def octets(draw: Any, dotted: str) -> Content:
    """Draw an extension of any content, in hexadecimal."""
    content = draw(st.binary(min_size=1, max_size=20))
    between = draw(st.sampled_from(["", ":", " "]))
    value = x509.UnrecognizedExtension(x509.ObjectIdentifier(dotted), content)
    return [f"DER:{between.join(f'{octet:02x}' for octet in content)}"], value


@st.composite
def extension(draw: Any, field: str, is_ca: bool, below: int = 0) -> Value:
    """Draw an extension's value."""
    critical = field not in NEVER_CRITICAL and field[0].isalpha() and draw(st.booleans())
    if field == "basicConstraints":
        content = constraints(is_ca, below)
        critical |= is_ca
    elif field == "keyUsage":
        content = usages(is_ca)
    elif field in CONTENTS:
        content = CONTENTS[field]
    else:
        content = octets(field)
    texts, value = draw(content)
    if critical:
        texts = ["critical", *texts]
    return draw(st.sampled_from([", ", ",", " , "])).join(texts), value, critical


@st.composite
def moment(draw: Any, past: bool) -> tuple[str, timedelta | datetime]:
    """Draw an offset or a timestamp, and what it means."""
    if draw(st.booleans()):
        unit, hours, most = draw(
            st.sampled_from(
                [("h", 1, 99999), ("d", 24, 25000), ("w", 168, 3600), ("y", 8760, 70)]
            )
        )
        count = draw(st.integers(0 if past else 1, most))
        sign = "-" if past else draw(st.sampled_from(["", "+"]))
        number = draw(st.sampled_from([f"{count}", f"{count:05}"]))
        return f"{sign}{number}{unit}", timedelta(hours=(-1 if past else 1) * count * hours)
    first, last = (datetime(1950, 1, 3), datetime(2020, 1, 1))
    if not past:
        first, last = (datetime(2100, 1, 1), datetime(9999, 12, 29))
    drawn = draw(st.datetimes(first, last)).replace(microsecond=0)
    if draw(st.booleans()):
        drawn = drawn.replace(hour=0, minute=0, second=0)
        return f"{drawn:%Y-%m-%d}", drawn.replace(tzinfo=timezone.utc)
    minutes = draw(st.integers(-12 * 60, 14 * 60))
    zone = timezone(timedelta(minutes=minutes))
    mark, end = draw(st.sampled_from(["T", " "])), draw(st.sampled_from(["", "Z", "zone"]))
    local = drawn.replace(tzinfo=zone if end == "zone" else timezone.utc)
    text = local.isoformat(mark) if end == "zone" else drawn.isoformat(mark) + end
    return text, local.astimezone(timezone.utc)


# What a subject may have besides its commonName.
FURTHER: dict[str, st.SearchStrategy[str]] = {
    "countryName": st.text("ABCXYZ", min_size=2, max_size=2),
    "stateOrProvinceName": PRINTABLE,
    "localityName": PRINTABLE,
    "organizationName": PRINTABLE,
    "organizationalUnitName": PRINTABLE,
    "serialNumber": st.text(ALNUM + " '()+,./:=?-", min_size=1, max_size=64),
    "domainComponent": st.text(ALNUM + "-", min_size=1, max_size=63),
    "emailAddress": EMAIL.filter(lambda x: "_" not in x.partition("@")[2]),
}
IDENTIFIERS = {
    "subjectKeyIdentifier": x509.SubjectKeyIdentifier.oid,
    "authorityKeyIdentifier": x509.AuthorityKeyIdentifier.oid,
}


@st.composite
def entry(
    draw: Any, name: str, issuer: str | None, is_ca: bool, below: int = 0
) -> tuple[dict[str, Any], Want]:
    """Draw an entry, and what it means."""
    key = draw(st.sampled_from([*KEYS]))
    digest = None
    if key.startswith("ec:"):
        digest = draw(st.sampled_from([None, "sha256", "sha384", "sha512"]))
    subject = draw(subjects(name))
    when = {"notAfter": draw(moment(False))}
    if draw(st.booleans()):
        when["notBefore"] = draw(moment(True))
    if is_ca and draw(st.booleans()):
        when["nextUpdate"] = draw(moment(False))
    written, extensions = draw(all_extensions(issuer is not None, is_ca, below))

    as_is = {field: text.replace("$", "$$") for field, text in subject.items()}
    as_is["commonName"] = as_is["commonName"].removesuffix(name) + "$name"
    said: dict[str, Any] = {"issuer": issuer} if issuer else {}
    said |= {"key": key, "subject": as_is, "extensions": written}
    said["validity"] = {field: text for field, (text, _) in when.items()}
    if digest or draw(st.booleans()):
        said["digest"] = digest
    if draw(st.integers(0, 9)) == 9:
        said |= {"cipher": "aes-256-cbc", "passphrase": "SROS_PASSPHRASE"}
    oids = [(SUBJECT[field], text) for field, text in subject.items()]
    meant = {field: value for field, (_, value) in when.items()}
    return said, Want(issuer, key, digest or "sha256", oids, meant, extensions)


@st.composite
def subjects(draw: Any, name: str) -> dict[str, str]:
    """Draw a subject, whose commonName ends with the entry's name."""
    subject = {"commonName": f"{draw(PRINTABLE)}{name}"}
    for field, values in FURTHER.items():
        if draw(st.integers(0, 3)) == 0:
            subject[field] = draw(values)
    return {field: subject[field] for field in draw(st.permutations([*subject]))}


@st.composite
def all_extensions(
    draw: Any, has_issuer: bool, is_ca: bool, below: int
) -> tuple[dict[str, Any], dict[x509.ObjectIdentifier, Any]]:
    """Draw an entry's extensions, in any order: as they are written, and what they mean."""
    fields = []
    optional = [*OPTIONAL, "basicConstraints", "keyUsage", "subjectKeyIdentifier"]
    if is_ca:
        fields = ["basicConstraints", "keyUsage", "subjectKeyIdentifier"]
        optional = [*OPTIONAL, "nameConstraints"]
    if has_issuer:
        fields.append("authorityKeyIdentifier")
    fields += draw(st.lists(st.sampled_from(optional), unique=True, max_size=4))

    written, meant = {}, {}
    for field in draw(st.permutations(fields)):
        name = draw(OIDS) if field == "OID" else field
        written[name], value, critical = draw(extension(name, is_ca, below))
        oid = IDENTIFIERS.get(field) or value.oid
        meant[oid] = (value, critical)
    return written, meant


class Hierarchy(NamedTuple):
    """A configuration, as data and as text, and what it means."""

    document: dict[str, Any]
    text: str
    wants: dict[str, Want]


@st.composite
def hierarchies(draw: Any, most: int = 4) -> Hierarchy:
    """Draw one to three levels of CAs, and nodes, some with a part of theirs in an anchor."""
    stem = st.text(ALNUM + "_-", max_size=9)
    above: dict[str, str | None] = {f"{draw(stem)}c0": None}
    for number in range(1, draw(st.integers(1, most - 1))):
        higher = [None, *(ca for ca in above if depth(above, ca) < 3)]
        above[f"{draw(stem)}c{number}"] = draw(st.sampled_from(higher))
    cas = [*above]
    for number in range(draw(st.integers(1, most))):
        above[f"{draw(stem)}n{number}"] = draw(st.sampled_from(cas))

    nodes: dict[str, Any] = {}
    document: dict[str, Any] = {"keys": {"nodes": nodes}}
    wants = {}
    for name in draw(st.permutations([*above])):
        lowest = max(depth(above, ca) for ca in [name, *cas] if name in line(above, ca))
        levels = lowest - depth(above, name)
        said, wants[name] = draw(entry(name, above[name], name in cas, levels))
        if draw(st.booleans()):
            # A merge that the entry's own fields go before.
            moved = draw(st.sets(st.sampled_from([*said])))
            document[f"x-{name}"] = {x: said[x] if x in moved else None for x in said}
            own = {field: value for field, value in said.items() if field not in moved}
            said = {"<<": document[f"x-{name}"], **own}
        if name in cas:
            document["keys"][name] = said
        else:
            nodes[name] = said
    return Hierarchy(document, draw(dumped(document)), wants)


def line(above: dict[str, str | None], name: str | None) -> list[str]:
    """Return an entry and those above it."""
    return [name, *line(above, above[name])] if name else []


def depth(above: dict[str, str | None], name: str) -> int:
    """Return on which level an entry stands."""
    return len(line(above, name))


@st.composite
def dumped(draw: Any, document: Any) -> str:
    """Write YAML in one of its styles."""
    styles = {
        "default_style": st.sampled_from([None, '"', "'"]),
        "allow_unicode": st.booleans(),
    }
    styles |= {"default_flow_style": st.sampled_from([None, False, True])}
    how = {name: draw(values) for name, values in styles.items()}
    text: str = yaml.dump(document, Dumper=yaml.CSafeDumper, sort_keys=False, **how)
    return re.sub("""['"]<<['"]:""", "<<:", text)


@sizes(20, 600)
def test_a_valid_hierarchy_is_made_as_the_yaml_says_and_kept_by_the_next_run(
    examples: int,
) -> None:
    """All is certified as written, and a second run changes no certificate."""

    def check(hierarchy: Hierarchy) -> None:
        with scratch(hierarchy.text) as folder:
            result, clock = run_here(folder)
            accepted(result, clock, folder, hierarchy.wants)
            before = {path: path.read_bytes() for path in folder.glob("keys/*/cert.pem")}
            again = generate_here(folder)
            assert again.returncode == 0
            assert all("is due for --renew" in each for each in lines_of(again))
            assert {
                path: path.read_bytes() for path in folder.glob("keys/*/cert.pem")
            } == before

    fuzz(examples, hierarchies(), check)


# --- Configurations that are damaged ---------------------------------------------------------


SHIPPED = (ROOT / "sros_config.yml").read_text()
FULL = yaml.safe_load("""
keys:
  root:
    key: ed25519
    subject:
      countryName: US
      organizationName: Example
      commonName: $name
      emailAddress: a@b.example
    validity: {notBefore: -1d, notAfter: "2090-01-01T00:00:00Z", nextUpdate: 4w}
    extensions: &ca
      basicConstraints: critical, CA:TRUE, pathlen:1
      keyUsage: critical, keyCertSign, cRLSign
      subjectKeyIdentifier: hash
      authorityKeyIdentifier: keyid
      nameConstraints: critical, excluded;DNS:.robots.invalid, excluded;IP:10.0.0.0/8
  master:
    issuer: root
    key: ec:prime256v1
    digest: sha384
    subject: {commonName: $name}
    validity: {notAfter: 5y}
    extensions: *ca
  nodes:
    node:
      issuer: master
      key: ml-dsa-44
      cipher: aes-256-cbc
      passphrase: SROS_PASSPHRASE
      subject: {commonName: $name, serialNumber: "7", domainComponent: example}
      validity: {notBefore: -1h, notAfter: 10w}
      extensions:
        keyUsage: critical, digitalSignature
        extendedKeyUsage: serverAuth, 1.2.3
        authorityKeyIdentifier: keyid
        subjectAltName: DNS:localhost, IP:::1, URI:urn:x, email:a@b.example
        certificatePolicies: 1.3.6.1.4.1.32473.1
        crlDistributionPoints: URI:http://pki.example/x
        authorityInfoAccess: OCSP;URI:http://ocsp.example
        1.3.6.1.4.1.32473.2: DER:0403010203
""")
FULL["keys"]["master"]["extensions"] = {**FULL["keys"]["root"]["extensions"]}
FULL["keys"]["master"]["extensions"]["basicConstraints"] = "critical, CA:TRUE"


def parts(text: str) -> list[str]:
    """Return what stands between bars."""
    return text.split("|")


WORDS = [  # what is nearly a value
    *parts("NO|0123|null|~|| |$|$$|$nodes|${name}|critical|critical,|,|CA:TRUE|pathlen:0"),
    *parts("99999y|-99999y|0h|9999-12-31|0000-00-00|2026-13-45|1950-01-01|2090-01-01T"),
    *parts("2090-01-01T24:00:00|DNS:|DNS:a|IP:::/0|IP:fe80::1%1|URI:x:y|DER:|DER:00|DER:3003"),
    *parts("root|master|node|hash|keyid|ed448|sha256|permitted;DNS:a|..|a/b|<<|2.999|0.0"),
    *parts("excluded;IP:0.0.0.0/0|2.5.29.9|2.5.29.18|2.5.29.20|2.5.29.36|2.5.29.46"),
    *["1.3.6.1.5.5.7.1.24", "1.3.6.1.4.1.11129.2.4.3", "9" * 5000],
]
RAW = [  # what YAML makes something else of
    *parts("NO|0123|0x1F|1:30|1e999|.nan|.inf|2001-01-01|=|~|[[[]]]|*nobody|!!str|%|@|`|'"),
    *parts(
        "...|---|{a: 1, a: 2}|&a [*a]|&b {<<: *b}|{<<: [{key: a}, 1]}|{? [1] : 2}|- x|? |#"
    ),
    *parts(
        "{? {a: 1} : 2}|!!binary x|!x y|!!int x|!!float x|!!timestamp x|!!bool x|!!set {a}"
    ),
    *parts("!!python/object:os.system x|!!omap [a: 1]"),
    *[
        "!!pairs [1]",
        "!!null x",
        "!!merge x",
        "|\n  x",
        '"\\uD800"',
        '"\\0"',
        "\x00",
        "\t",
        "",
        "\ufeff",
        "\x85",
    ],
    *["[" * 3000, "9" * 5000, "0b" + "1" * 5000, "1:" * 500 + "1"],
]
SCALARS: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=9)
)
SCALARS |= (
    st.dates() | st.datetimes() | st.sampled_from(WORDS) | st.integers(-(10**400), 10**400)
)
JUNK = st.recursive(
    SCALARS,
    lambda x: st.lists(x, max_size=3) | st.dictionaries(SCALARS, x, max_size=3),
    max_leaves=5,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return every mapping in a value with each of its fields."""
    own = [(value, field) for field in value] if isinstance(value, dict) else []
    return own + [each for field in own for each in places(value[field[1]])]


FULLS = st.integers(1, 3).map(lambda _: FULL)  # cheaper than to draw one


FAULTS = ["junk", "word", "raw", "remove", "rename", "add", "twice", "edit", "move"]


@st.composite
def damaged(draw: Any) -> str:
    """Draw a configuration with one to three faults."""
    document = copy.deepcopy(draw(FULLS | hierarchies(2).map(lambda x: x.document)))
    raw: dict[str, str] = {}
    for _ in range(draw(st.integers(1, 3))):
        fields = places(document)
        if not fields:
            break
        mapping, field = draw(st.sampled_from(fields))
        match draw(st.sampled_from(FAULTS)):
            case "remove":
                del mapping[field]
            case "rename":
                mapping[draw(SCALARS)] = mapping.pop(field)
            case "add":
                mapping[draw(SCALARS)] = draw(SCALARS)
            case "twice":
                mapping[f"{field}@TWICE@"] = mapping[field]
            case "move":
                other, name = draw(st.sampled_from(fields))
                mapping[field] = copy.deepcopy(other.get(name))
            case fault:
                mapping[field] = draw(replaced(fault, mapping[field], raw))
    text: str = draw(dumped(document))
    for token, value in raw.items():
        text = value.join(re.split(f"""['"]?{token}['"]?""", text))
    return text.replace("@TWICE@", "")


@st.composite
def replaced(draw: Any, fault: str, value: Any, raw: dict[str, str]) -> Any:
    """Draw a value in another's place: junk, a word, an edited text, or YAML as it is."""
    if fault == "junk":
        return draw(JUNK)
    if fault == "word":
        return draw(st.sampled_from(WORDS))
    if fault == "edit":
        return draw(edited_text(str(value), st.text(max_size=2), 2))
    # A token, to be replaced once the rest is text.
    token = f"@@{len(raw)}@@"
    raw[token] = draw(st.sampled_from(RAW))
    return token


@st.composite
def edited_text(draw: Any, text: str, pieces: st.SearchStrategy[str], most: int) -> str:
    """Draw a text with a piece in place of some characters, `most` at the most."""
    place = draw(st.integers(0, len(text)))
    piece: str = draw(pieces)
    return text[:place] + piece + text[place + draw(st.integers(0, most)) :]


@st.composite
def faulty(draw: Any) -> str:
    """Draw a configuration that is valid but for one field that is unknown or stands twice."""
    document = copy.deepcopy(draw(FULLS | hierarchies(2).map(lambda x: x.document)))
    mapping, field = draw(st.sampled_from(places(document)))
    if draw(st.booleans()):
        mapping[f"{field}@TWICE@"] = mapping[field]
    else:
        mapping[draw(st.text("xyz", min_size=1))] = draw(
            st.text(max_size=5) | st.booleans() | st.integers()
        )
    text: str = draw(dumped(document))
    return text.replace("@TWICE@", "")


@st.composite
def edited(draw: Any) -> bytes:
    """Draw an edited text of the shipped configuration."""
    text: str = re.sub(" *#.*\n", "\n", SHIPPED)
    for _ in range(draw(st.integers(1, 3))):
        words = st.sampled_from([*RAW, *WORDS]) | st.sampled_from(text.split())
        text = draw(edited_text(text, st.text(max_size=3) | words, 12))
        if draw(st.integers(0, 3)) == 0:
            # A line goes elsewhere, is lost, or comes twice.
            lines = text.split("\n")
            taken = lines.pop(draw(st.integers(0, len(lines) - 1)))
            there = draw(st.integers(0, len(lines)))
            lines[there:there] = [taken] * draw(st.integers(0, 2))
            text = "\n".join(lines)
    encoding = draw(st.sampled_from(["utf-8"] * 8 + ["utf-16", "utf-8-sig"]))
    end: bytes = draw(st.sampled_from([b""] * 8 + [b"\xff", b"\0"]))
    return text.encode(encoding, "ignore") + end


def refused_or_right(examples: int, strategy: st.SearchStrategy[Any]) -> Counter[int]:
    """Require one line, or certificates that verify. Count the exit statuses."""
    seen: Counter[int] = Counter()

    def check(text: str | bytes) -> None:
        with scratch(text) as folder:
            result = generate_here(folder)
            seen[in_one_line_or_right(result, folder)] += 1

    fuzz(examples, strategy, check)
    return seen


@sizes(40, 2400)
def test_a_damaged_configuration_is_refused_in_one_line_or_makes_what_verifies(
    examples: int,
) -> None:
    """Junk, omissions, repetitions, unknown fields: nothing is written, or all is right."""
    seen = refused_or_right(examples, damaged())
    assert seen[2] > examples / 3 and seen[0]


@sizes(30, 600)
def test_a_field_that_is_unknown_or_stands_twice_is_refused_wherever_it_is(
    examples: int,
) -> None:
    """Otherwise a misspelt field would be ignored, and the second of two would win."""
    assert {*refused_or_right(examples, faulty())} == {2}


@sizes(60, 1800)
def test_an_edited_text_of_the_shipped_file_is_refused_in_one_line_or_makes_what_verifies(
    examples: int,
) -> None:
    """What a hand can do to the file in an editor: the same."""
    seen = refused_or_right(examples, edited())
    assert seen[2] > examples / 3 and seen[0]


# --- One value, in a root and a node ---------------------------------------------------------


def tiny(root: Any = None, node: Any = None, **times: Any) -> str:
    """Return a root and a node with further extensions, or other times of the node."""
    authority = {"basicConstraints": "critical, CA:TRUE", "keyUsage": "keyCertSign, cRLSign"}
    common = {"key": "ed25519", "subject": {"commonName": "$name"}}
    top = {**authority, "subjectKeyIdentifier": "hash", **(root or {})}
    leaf = {"authorityKeyIdentifier": "keyid", **(node or {})}
    entries: dict[str, Any] = {
        "root": {**common, "validity": {"notAfter": "9999-12-31"}, "extensions": top},
        "nodes": {
            "node": {
                **common,
                "issuer": "root",
                "validity": {"notAfter": "1d", **times},
                "extensions": leaf,
            }
        },
    }
    text: str = yaml.dump({"keys": entries}, Dumper=yaml.CSafeDumper)
    return text


FIELDS = [
    "basicConstraints",
    "keyUsage",
    "subjectKeyIdentifier",
    "authorityKeyIdentifier",
    "nameConstraints",
]
FIELDS += OPTIONAL
WIDE_OID = OIDS | st.sampled_from(
    ["2.5.29.9", "2.5.29.20", "2.5.29.36", "2.5.29.54", "1.3.6.1.5.5.7.1.24", "2.999.1"]
)


# The extensions that the root and the node have in any case.
OWN = {
    "root": {"basicConstraints", "keyUsage", "subjectKeyIdentifier"},
    "node": {"authorityKeyIdentifier"},
}


class Drawn(NamedTuple):
    """An extension of the root or the node: as it is written, and what it means."""

    holder: str
    field: str
    written: str
    value: x509.ExtensionType | None
    critical: bool


@st.composite
def one_extension(draw: Any) -> Drawn:
    """Draw whose an extension is, and all that it says."""
    holder = draw(st.sampled_from([*OWN]))
    fields = [x for x in FIELDS if holder == "root" or x != "nameConstraints"]
    field = draw(st.sampled_from(fields))
    if field == "OID":
        field = draw(OIDS)
    return Drawn(holder, field, *draw(extension(field, holder == "root")))


@sizes(40, 1000)
def test_an_extension_is_certified_as_it_is_written(examples: int) -> None:
    """Value and criticality, for a CA and for a node."""

    def check(drawn: Drawn) -> None:
        with scratch(tiny(**{drawn.holder: {drawn.field: drawn.written}})) as folder:
            fine(generate_here(folder))
            verify(folder / "keys")
            made = certificate(folder / "keys" / drawn.holder / "cert.pem")
            found = {each.oid: (each.value, each.critical) for each in made.extensions}
            assert len(found) == len(OWN[drawn.holder] | {drawn.field})
            if drawn.value is not None:
                assert found[drawn.value.oid] == (drawn.value, drawn.critical)

    fuzz(examples, one_extension(), check)


@st.composite
def any_extension(draw: Any) -> str:
    """Draw an extension with a value of parts of values and of text."""
    holder = draw(st.sampled_from([*OWN]))
    field = draw(st.sampled_from(FIELDS[:-1]) | WIDE_OID)
    fit = extension(field, holder == "root").map(lambda x: x[0])
    part = st.text(max_size=12) | st.sampled_from([*WORDS, *CA_USAGES, *PURPOSES]) | fit
    part |= st.builds(
        "{}{}".format,
        st.sampled_from(["DNS:", "IP:", "URI:", "email:", "DER:", "excluded;DNS:"]),
        part,
    )
    several = st.lists(part, min_size=1, max_size=3).map(", ".join)
    value = draw(st.one_of(fit, several, several, several))
    return tiny(**{holder: {field: draw(edited_text(value, st.text(max_size=1), 1))}})


@sizes(60, 1500)
def test_any_text_as_an_extension_is_refused_in_one_line_or_makes_what_verifies(
    examples: int,
) -> None:
    """Parts of values in the wrong place, with a letter too much or too few."""
    assert refused_or_right(examples, any_extension())[2] > examples / 4


@st.composite
def constrained(draw: Any) -> str:
    """Draw names, and the names that the CA above admits."""
    names = NAMES | st.sampled_from(
        [("DNS:a.b", 0), ("IP:10.0.0.1", 0), ("email:x@a.b", 0), ("DNS:A.B", 0)]
    )
    texts = names.map(lambda x: x[0])
    alternative = ", ".join(draw(st.lists(texts, min_size=1, max_size=3, unique_by=str.lower)))
    subtree = SUBTREES.map(lambda x: x[0]) | st.sampled_from(
        ["DNS:b", "DNS:.b", "DNS:a.b", "IP:10.0.0.0/8"]
    )
    subtree |= st.sampled_from(
        ["IP:::/0", "email:a.b", "email:x@a.b", "URI:.b", "IP:0.0.0.0/0"]
    )
    limits = st.builds("{};{}".format, st.sampled_from(["permitted", "excluded"]), subtree)
    constraints = ", ".join(draw(st.lists(limits, min_size=1, max_size=3, unique=True)))
    return tiny(
        {"nameConstraints": f"critical, {constraints}"}, {"subjectAltName": alternative}
    )


@sizes(30, 700)
def test_names_are_certified_only_where_the_constraints_admit_them(examples: int) -> None:
    """What OpenSSL refuses is an error line (status 1), and there is no certificate."""
    seen = refused_or_right(examples, constrained())
    assert seen[0] and seen[1] and not seen[2]


@sizes(30, 600)
def test_times_are_certified_as_they_are_written(examples: int) -> None:
    """Offsets, dates and timestamps in any zone."""

    def check(drawn: tuple[tuple[str, Any], tuple[str, Any]]) -> None:
        (first, begins), (last, ends) = drawn
        with scratch(tiny(notBefore=first, notAfter=last)) as folder:
            result, clock = run_here(folder)
            fine(result)
            made = certificate(folder / "keys" / "node" / "cert.pem")
            want = Want(None, "", None, [], {"notBefore": begins, "notAfter": ends}, {})
            for field, found in (
                ("notBefore", made.not_valid_before_utc),
                ("notAfter", made.not_valid_after_utc),
            ):
                early, late = times(want, field, clock)
                assert early <= found <= late

    fuzz(examples, st.tuples(moment(True), moment(False)), check)


DIGITS = st.text("0123456789+-:.TtZz hdwy\u0660\uff11", max_size=25)
TIMES = (
    st.sampled_from(WORDS)
    | DIGITS
    | st.builds("{:04}-{:02}-{:02}{}".format, *[st.integers(0, 9999)] * 3, DIGITS)
)
TIMES |= st.builds(
    "{:04}-{:02}-{:02}{}".format,
    st.integers(1, 9999),
    st.integers(0, 13),
    st.integers(0, 32),
    DIGITS,
)
TIMES |= st.builds("{}{}".format, st.integers(-100000, 100000), st.sampled_from("hdwyHm"))


@sizes(30, 700)
def test_any_text_as_a_time_is_refused_in_one_line_or_makes_what_verifies(
    examples: int,
) -> None:
    """Days and months that do not exist, years too far, digits of other scripts."""
    field = st.sampled_from(["notBefore", "notAfter"])
    assert refused_or_right(examples, st.builds(lambda x, y: tiny(**{x: y}), field, TIMES))[2]


# --- Folders that are damaged ----------------------------------------------------------------


@pytest.fixture(scope="session")
def whole(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with every kind of file: client has a request, root a cross-certificate."""
    folder = tmp_path_factory.mktemp("whole") / "whole"
    shutil.copytree(made, folder)
    data, phrase = unlocked(folder / "keys" / "client" / "key.pem")
    key: Any = serialization.load_pem_private_key(data, phrase)
    request = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, hashes.SHA256())
    (folder / "keys" / "client" / "csr.pem").write_bytes(
        request.public_bytes(serialization.Encoding.PEM)
    )
    root = certificate(folder / "keys/root/cert.pem")
    company, days = issue(None, "Company", CA), (-1, 4000)
    own = {str(each.oid): (each.value, each.critical) for each in root.extensions}
    cross = certify(company, root.subject, root.public_key(), days, own=None, **own)
    (folder / "keys/root/cross.pem").write_bytes(pem(cross))
    fine(generate_here(folder))
    return folder


class Damage(NamedTuple):
    """What happens to a file; place and other are parts of a whole, from 0 to 1."""

    kind: str
    place: float
    other: float


PARTS = st.floats(0, 1, exclude_max=True)
KINDS = ["truncated", "flipped", "swapped", "foreign", "emptied", "huge", "folder", "link"]


def harm(damage: Damage, path: Path, files: list[Path], foreign: Path) -> list[Path]:
    """Damage a file; return which files are others now."""
    data = path.read_bytes()
    place = int(damage.place * len(data))
    match damage.kind:
        case "truncated":
            path.write_bytes(data[:place])
        case "flipped":
            bit = 1 << int(damage.other * 8)
            path.write_bytes(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :])
        case "swapped":
            other = files[int(damage.other * len(files))]
            path.write_bytes(other.read_bytes())
            other.write_bytes(data)
            return [path, other]
        case "foreign":
            path.write_bytes(foreign.read_bytes())
        case "emptied":
            path.write_bytes(b"")
        case "huge":
            path.write_bytes(bytes(range(256)) * 8192)
        case "folder" | "link":
            path.unlink()
            path.mkdir() if damage.kind == "folder" else path.symlink_to("nowhere")
    return [path]


Mark = tuple[int, bytes | str | None]  # the mode, and what a file has or a link names
Marks = dict[Path, Mark]


def marks_of(folder: Path, names: Collection[Path]) -> Marks:
    """Return what stands at each of the names in a folder."""
    return {name: mark_of(folder / name) for name in names}


def mark_of(path: Path) -> Mark:
    """Return what stands at a path."""
    if path.is_symlink():
        return path.lstat().st_mode, os.readlink(path)
    return path.stat().st_mode, path.read_bytes() if path.is_file() else None


@sizes(30, 400)
def test_a_damaged_folder_loses_nothing_and_is_whole_again_once_the_damage_is_undone(
    examples: int, whole: Path, strangers: Path
) -> None:
    """Kept files are never overwritten. Derived ones are right, or an error says why."""
    names = sorted(path.relative_to(whole) for path in whole.glob("keys/**/*.pem"))
    original = marks_of(whole, names)

    def check(drawn: list[tuple[Path, Damage]]) -> None:
        with scratch() as place:
            folder = shutil.copytree(whole, place / "copy")
            harmed: set[Path] = set()
            for name, damage in drawn:
                if folder / name not in harmed:
                    files = [folder / each for each in names if folder / each not in harmed]
                    others = sorted(strangers.glob(f"keys/{name.parts[1]}/**/{name.name}"))
                    others += sorted(strangers.glob("keys/*/issued/*.pem"))
                    harmed |= {*harm(damage, folder / name, files, others[0])}
            before = marks_of(folder, names)
            result = generate_here(folder)
            complaints = [each for each in lines_of(result) if each.startswith("error: ")]
            assert result.returncode == int(bool(complaints)), result
            nothing_is_lost(original, before, marks_of(folder, names), result)
            undo(harmed, whole, folder)
            fine(generate_here(folder))
            assert {path.relative_to(folder) for path in folder.glob("keys/**/*.pem")} == {
                *names
            }
            after = marks_of(folder, names)
            assert all(after[name][1] == original[name][1] for name in names)

    damages = st.builds(Damage, st.sampled_from(KINDS), PARTS, PARTS)
    pairs = st.tuples(st.sampled_from(names), damages)
    fuzz(examples, st.lists(pairs, min_size=1, max_size=2), check)
    verify(whole / "keys")


def nothing_is_lost(original: Marks, before: Marks, after: Marks, result: Result) -> None:
    """Require kept files as before, and right derived ones unless there is an error."""
    for name in original:
        if is_derived(name):
            right = (original[name][1], with_cross(original, before, name))
            assert result.returncode == 1 or after[name][1] in right
        elif name.name == "crl.pem":
            # A CA's list may get back the form that it had.
            assert after[name] in (before[name], original[name]), (name, result)
        else:
            assert after[name] == before[name], (name, result)


CROSS = Path("keys/root/cross.pem")


def with_cross(original: Marks, before: Marks, name: Path) -> object:
    """Return what a derived file holds if cross.pem is harmed in a way that can't be noticed.

    Its signature can't be verified, as the higher CA's certificate is not there.
    """
    whole, harmed = original[CROSS][1], before[CROSS][1]
    content = original[name][1]
    if not isinstance(content, bytes) or not isinstance(harmed, bytes):
        return content
    assert isinstance(whole, bytes)
    return content.replace(whole, harmed)


def undo(harmed: Collection[Path], whole: Path, folder: Path) -> None:
    """Put back the files that were damaged."""
    for path in harmed:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
        shutil.copy2(whole / path.relative_to(folder), path)


def is_derived(name: Path) -> bool:
    """Tell whether a file follows from others. A CA's own list does not."""
    in_a_node = name.parts[1] in ("server", "client")
    return name.name in DERIVED and (name.name != "crl.pem" or in_a_node)


# --- And as a process ------------------------------------------------------------------------


@sizes(3, 20)
def test_the_same_holds_for_the_script_as_a_process(examples: int) -> None:
    """A sample of what the others see in one process: one valid, one damaged."""

    def check(drawn: tuple[Hierarchy, str]) -> None:
        hierarchy, text = drawn
        with scratch(hierarchy.text) as folder:
            result, clock = run_process(folder)
            accepted(result, clock, folder, hierarchy.wants)
        with scratch(text) as folder:
            in_one_line_or_right(generate(folder), folder)

    fuzz(examples, st.tuples(hierarchies(2), damaged()), check)
