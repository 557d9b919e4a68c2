"""What comes from elsewhere: other programs and people make it.

Requests, subjects, names, keys, pass phrases and serial numbers that are good are accepted.
What is not good is one clear line.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from certificates import (
    CA_EXTENSIONS,
    NEW_KEY,
    SERVER_EXTENSIONS,
    SUBJECT,
    certificate,
    judge,
    revoked_serials,
    serial,
    sign,
)
from configurations import Keys, configure, edit, without_ciphers
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtensionOID
from folders import drop, keep_only, seldom, tree
from needs import needs
from running import (
    Result,
    complaints,
    faults,
    fine,
    generate,
    generate_here,
    openssl,
    run,
    states,
)

pytestmark = pytest.mark.slow  # what other programs make, they make slowly
Entry = dict[str, Any]
EC, RSA, ED = "ec:prime256v1", "rsa:2048", "ed25519"


def edit_plain(folder: Path, change: Callable[[Keys], object]) -> None:
    """Put the configuration without ciphers into a folder, with a change to its entries."""

    def apply(document: dict[str, Any]) -> None:
        without_ciphers(document)
        change(document["keys"])

    configure(folder, apply)


def add_nodes(folder: Path, fields: dict[str, Entry]) -> None:
    """Configure further nodes like client, each with some fields of its own."""

    def add(keys: Keys) -> None:
        client = keys["nodes"]["client"]
        for name, own in fields.items():
            keys["nodes"][name] = {**client, **own}
            if own.get("key") == ED:
                del keys["nodes"][name]["digest"]

    edit_plain(folder, add)


def with_extensions(**own: object) -> Entry:
    """Return a node's extensions, with some of its own."""
    usual: Entry = {
        "basicConstraints": "critical, CA:FALSE",
        "keyUsage": "critical, digitalSignature",
        "subjectKeyIdentifier": "hash",
        "authorityKeyIdentifier": "keyid",
    }
    return {"extensions": {**usual, **own}}


# --- DER, as other programs write it ---------------------------------------------------------


def der(tag: int, *parts: bytes) -> bytes:
    """Return an element of DER with a tag: its length, then its parts."""
    content = b"".join(parts)
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content


SEQUENCE, SET, OCTETS, BITS, INTEGER, UTF8, PRINTABLE = 0x30, 0x31, 4, 3, 2, 12, 19
COMMON_NAME = bytes.fromhex("0603550403")
COUNTRY = bytes.fromhex("0603550406")
ECDSA_SHA256 = bytes.fromhex("06082a8648ce3d040302")
EC_KEY = bytes.fromhex("06072a8648ce3d0201")
P256 = bytes.fromhex("06082a8648ce3d030107")
WANTED_EXTENSIONS = bytes.fromhex("06092a864886f70d01090e")
CHALLENGE = bytes.fromhex("06092a864886f70d010907")
WINDOWS_VERSION = bytes.fromhex("060a2b0601040182370d0203")
WINDOWS_PROVIDER = bytes.fromhex("060a2b0601040182370d0202")
SUBJECT_ALT_NAME = bytes.fromhex("0603551d11")
KEY_USAGE = bytes.fromhex("0603551d0f")
PRIVATE_EXTENSION = bytes.fromhex("06062b0601040109")


def armoured(label: str, data: bytes) -> bytes:
    """Return data as PEM."""
    text = base64.encodebytes(data).decode()
    return f"-----BEGIN {label}-----\n{text}-----END {label}-----\n".encode()


# --- Requests with odd content that is never used --------------------------------------------


def named(oid: bytes, value: bytes) -> bytes:
    """Return a name of one attribute."""
    return der(SEQUENCE, der(SET, der(SEQUENCE, oid, value)))


def attribute(oid: bytes, *values: bytes) -> bytes:
    """Return an attribute of a request."""
    return der(SEQUENCE, oid, der(SET, *values))


def extension(oid: bytes, value: bytes, *critical: bytes) -> bytes:
    """Return a wish for one extension, as an attribute of a request."""
    wish = der(SEQUENCE, oid, *critical, der(OCTETS, value))
    return attribute(WANTED_EXTENSIONS, der(SEQUENCE, wish))


TRUE = der(1, b"\xff")
ROBOT = named(COMMON_NAME, der(UTF8, b"robot"))
PROVIDER = der(
    SEQUENCE, der(INTEGER, b"\1"), der(30, "Ä".encode("utf-16-be")), der(BITS, b"\0")
)


class Odd(NamedTuple):
    """What is odd about a request."""

    subject: bytes = ROBOT
    attributes: tuple[bytes, ...] = ()


ODD = {
    "usual": Odd(),
    "challenge-twice": Odd(
        attributes=(
            attribute(CHALLENGE, der(UTF8, b"one")),
            attribute(CHALLENGE, der(UTF8, b"two")),
        )
    ),
    "extensions-twice": Odd(
        attributes=(
            extension(SUBJECT_ALT_NAME, der(SEQUENCE, der(0x82, b"a"))),
            extension(KEY_USAGE, der(BITS, b"\7\x80")),
        )
    ),
    "windows": Odd(
        attributes=(
            attribute(WINDOWS_VERSION, der(22, b"10.0.20348.2")),
            attribute(WINDOWS_PROVIDER, PROVIDER),
        )
    ),
    "unknown-critical": Odd(attributes=(extension(PRIVATE_EXTENSION, b"\5\0", TRUE),)),
    "extension-that-is-no-der": Odd(attributes=(extension(KEY_USAGE, b"\xff\xff"),)),
    "usage-with-too-many-bits": Odd(
        attributes=(extension(KEY_USAGE, der(BITS, b"\0\x80\0\0")),)
    ),
    "address-of-five-octets": Odd(
        attributes=(extension(SUBJECT_ALT_NAME, der(SEQUENCE, der(0x87, b"\n\0\0\1\1"))),)
    ),
    "dns-name-in-latin-1": Odd(
        attributes=(extension(SUBJECT_ALT_NAME, der(SEQUENCE, der(0x82, b"k\xe4fer"))),)
    ),
    "no-subject": Odd(subject=der(SEQUENCE)),
    "empty-common-name": Odd(subject=named(COMMON_NAME, der(UTF8))),
    "long-common-name": Odd(subject=named(COMMON_NAME, der(UTF8, b"x" * 200))),
    "country-of-three-letters": Odd(subject=named(COUNTRY, der(PRINTABLE, b"USA"))),
    "universal-string": Odd(subject=named(COMMON_NAME, der(28, "Röb".encode("utf-32-be")))),
    "teletex-string": Odd(subject=named(COMMON_NAME, der(20, b"r\xf6b"))),
    "text-of-line-ends": Odd(subject=named(COMMON_NAME, der(UTF8, b"a\nb\0c"))),
}
LABEL = "CERTIFICATE REQUEST"


def odd_request(key: ec.EllipticCurvePrivateKey, odd: Odd) -> bytes:
    """Return a request with a good signature, in DER (RFC 2986)."""
    spki = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    attributes = der(0xA0, *odd.attributes)
    info = der(SEQUENCE, der(INTEGER, b"\0"), odd.subject, spki, attributes)
    signature = key.sign(info, ec.ECDSA(hashes.SHA256()))
    algorithm = der(SEQUENCE, ECDSA_SHA256)
    return der(SEQUENCE, info, algorithm, der(BITS, b"\0", signature))


def wrapped(form: str, data: bytes) -> bytes:
    """Return a request as some programs write it into a file."""
    usual = armoured(LABEL, data)
    forms = {
        "new": armoured(f"NEW {LABEL}", data),  # keytool, certreq
        "text": b"Certificate Request:\n    Data:\n        Version: 1 (0x0)\n" + usual,
        "crlf": usual.replace(b"\n", b"\r\n"),
        "unended": usual.rstrip(b"\n"),
        "mailed": b"Hello,\n\nhere is our request.\n\n" + usual + b"\n-- \nThe robots\n",
    }
    return forms[form]


WRAPPED = ["new", "text", "crlf", "unended", "mailed"]


class Requests(NamedTuple):
    """A folder of keys in which odd requests were signed, their keys, and the run."""

    folder: Path
    keys: dict[str, ec.EllipticCurvePublicKey]
    result: Result


@pytest.fixture(scope="module")
def requests(made_plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Requests:
    """All odd requests, signed in one run: to read only."""
    folder = shutil.copytree(made_plain, tmp_path_factory.mktemp("requests") / "copy")
    add_nodes(folder, {name: {} for name in [*ODD, *WRAPPED]})
    keys = {}
    for name in [*ODD, *WRAPPED]:
        key = ec.generate_private_key(ec.SECP256R1())
        data = odd_request(key, ODD.get(name, Odd()))
        keys[name] = key.public_key()
        path = folder / "keys" / name / "csr.pem"
        path.parent.mkdir(0o700)
        path.write_bytes(wrapped(name, data) if name in WRAPPED else armoured(LABEL, data))
    return Requests(folder, keys, generate_here(folder))


@pytest.mark.parametrize("name", [*ODD, *WRAPPED])
def test_a_request_that_openssl_verifies_is_signed_whatever_else_it_says(
    requests: Requests, name: str
) -> None:
    folder = requests.folder / "keys" / name
    result = run("openssl", "req", "-in", folder / "csr.pem", "-noout", "-verify")
    assert result.returncode == 0, result.stderr
    wrong = [line for line in requests.result.stderr.splitlines() if f"/{name}" in line]
    assert wrong == []
    signed = certificate(folder / "cert.pem")
    assert signed.public_key() == requests.keys[name]
    subject = openssl(
        "x509", "-in", folder / "cert.pem", "-noout", "-subject", "-nameopt", "compat"
    )
    assert subject == f"subject={SUBJECT}{name}\n", "it comes from the configuration"
    alternatives = signed.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert list(alternatives.value) == [x509.DNSName(name)]


def test_odd_requests_are_kept_and_serve_for_renewal(
    requests: Requests, tmp_path: Path
) -> None:
    folder = shutil.copytree(requests.folder, tmp_path / "copy")
    result = fine(generate_here(folder, "--renew", *requests.keys))
    assert all(states(result)[name] == "renewed" for name in requests.keys)
    before = tree(folder)
    fine(generate_here(folder))
    assert tree(folder) == before


def test_odd_requests_with_a_forged_signature_are_an_error_each(plain: Path) -> None:
    add_nodes(plain, {name: {} for name in ODD})
    key = ec.generate_private_key(ec.SECP256R1())
    for name, odd in ODD.items():
        data = bytearray(odd_request(key, odd))
        data[-1] ^= 1
        path = plain / "keys" / name / "csr.pem"
        path.parent.mkdir(0o700)
        path.write_bytes(armoured(LABEL, bytes(data)))
    lines = complaints(generate_here(plain), "error", 1)
    assert len(lines) == len(ODD)
    for name in ODD:
        assert any(f"keys/{name}/csr.pem" in line for line in lines)
        assert not (plain / "keys" / name / "cert.pem").exists()


# --- Subjects, alternative names and texts that are good -------------------------------------

CYRILLIC = "Робот-погрузчик-склад-" * 3
SUBJECTS: dict[str, tuple[Entry, str]] = {
    "one-each": ({"organizationName": "O", "commonName": "$name"}, "/O=O/CN=one-each"),
    "domain": (
        {"domainComponent": ["example", "robots"], "commonName": "$name"},
        "/DC=example/DC=robots/CN=domain",
    ),
    "units": (
        {"organizationalUnitName": ["Robots", "$name"], "commonName": "x"},
        "/OU=Robots/OU=units/CN=x",
    ),
    "list-of-one": ({"commonName": ["$name"]}, "/CN=list-of-one"),
    "numbered": (
        {"2.5.4.97": ["a", "b"], "commonName": "x"},
        "/organizationIdentifier=a/organizationIdentifier=b/CN=x",
    ),
    "names-twice": ({"commonName": ["one", "two", "three"]}, "/CN=one/CN=two/CN=three"),
    "person": (
        {
            "givenName": "Ada",
            "surname": "Lovelace",
            "title": "Countess",
            "userId": "ada",
            "pseudonym": "enchantress",
        },
        "/GN=Ada/SN=Lovelace/title=Countess/UID=ada/pseudonym=enchantress",
    ),
    "address": (
        {
            "countryName": "GB",
            "postalCode": "SW1Y 4JH",
            "streetAddress": ["12 St James's Square", "2nd floor"],
            "commonName": "$name",
        },
        "/C=GB/postalCode=SW1Y 4JH/street=12 St James's Square/street=2nd floor/CN=address",
    ),
}
TEXTS = {
    "cyrillic": CYRILLIC[:64],
    "emoji": "🤖" * 64,
    "ideographic-space": "山田\u3000太郎",
    "no-break-space": "Robot\u00a07",
    "narrow-no-break-space": "12\u202f000",
    "non-joiner": "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "joiner": "👩\u200d🔧",
    "soft-hyphen": "Robo\u00adter",
    "right-to-left-mark": "רובוט\u200f7",
    "combining": "e\u0301",
    "private-use": "\ue000",
}
USER = "otherName:1.3.6.1.4.1.311.20.2.3;UTF8:"
INTUNE = "tag:microsoft.com,2022-09-14:sid:S-1-5-21-3-4-5-6"
LDAP = "ldap:///CN=master,DC=robots,DC=example?certificateRevocationList?base"


class Written(NamedTuple):
    """An extension as the configuration has it, and as openssl's does."""

    name: str
    value: object
    sections: str  # the value in x509v3_config(5), with the sections that it needs


EXTENSIONS = {
    "text": Written("subjectAltName", "DNS:a.example, IP:::1", "DNS:a.example, IP:::1"),
    "list": Written("subjectAltName", ["DNS:a", "DNS:b"], "DNS:a, DNS:b"),
    "tag": Written(
        "subjectAltName", ["DNS:x", f"URI:{INTUNE}"], f"@s\n[s]\nDNS=x\nURI={INTUNE}"
    ),
    "critical-list": Written("subjectAltName", ["critical", "DNS:a"], "critical, DNS:a"),
    "user": Written("subjectAltName", f"{USER}ada@x.example", f"{USER}ada@x.example"),
    "user-with-comma": Written(
        "subjectAltName",
        [f"{USER}Lovelace, Ada"],
        f"@s\n[s]\n{USER.replace(':', '=', 1)}Lovelace, Ada",
    ),
    "user-in-cyrillic": Written(
        "subjectAltName",
        f"{USER}робот@x",
        # By itself, openssl takes the octets for Latin-1.
        f"@s\n[s]\n{USER.replace(':', '=', 1).replace('UTF8', 'FORMAT:UTF8,UTF8')}робот@x",
    ),
    "xmpp": Written(
        "subjectAltName",
        "otherName:1.3.6.1.5.5.7.8.5;UTF8:a@b.example, DNS:b.example",
        "otherName:1.3.6.1.5.5.7.8.5;UTF8:a@b.example, DNS:b.example",
    ),
    # The length of a text has another form in DER from 128 octets on, and from 256 on.
    **{
        f"user-of-{count}": Written("subjectAltName", USER + "x" * count, USER + "x" * count)
        for count in (127, 128, 255, 256)
    },
    "registered": Written("subjectAltName", "RID:1.2.840.113549", "RID:1.2.840.113549"),
    "ldap": Written("crlDistributionPoints", [f"URI:{LDAP}"], f"@s\n[s]\nURI={LDAP}"),
    "points": Written(
        "crlDistributionPoints",
        ["URI:http://a/1,2.crl", "URI:http://b/x.crl"],
        "@s\n[s]\nURI.1=http://a/1,2.crl\nURI.2=http://b/x.crl",
    ),
    "access": Written(
        "authorityInfoAccess",
        ["OCSP;URI:http://o/", f"caIssuers;URI:{LDAP}"],
        f"@s\n[s]\nOCSP;URI=http://o/\ncaIssuers;URI={LDAP}",
    ),
    "purposes": Written(
        "extendedKeyUsage",
        ["serverAuth", "1.3.6.1.5.5.7.3.17"],
        "serverAuth, 1.3.6.1.5.5.7.3.17",
    ),
    "usages": Written(
        "keyUsage",
        ["critical", "digitalSignature", "keyAgreement"],
        "critical, digitalSignature, keyAgreement",
    ),
    "policies": Written("certificatePolicies", ["1.2.3.4", "1.2.3.5"], "1.2.3.4, 1.2.3.5"),
}
NAMELESS = {
    "spiffe": "critical, URI:spiffe://robots.example/arm",
    "by-dns": "critical, DNS:$name.robots.example",
    "by-address": ["critical", "IP:192.0.2.7"],
    "by-mail": "critical, email:arm@robots.example",
}
NO_FIELDS = {
    "countryName": None,
    "organizationName": None,
    "organizationalUnitName": None,
    "commonName": None,
}
# Each of these is right, though one much like it is among the errors below.
RIGHT_NAMES = {
    "wildcard": "DNS:*.robots.local",
    "twins": "DNS:robot.example, DNS:www.robot.example",
    "link-local": "IP:fe80::1",
    "mapped": "IP:192.0.2.1, IP:::ffff:192.0.2.1",
    "name-and-mail": "DNS:robot.example, email:robot@robot.example",
    "paths": "URI:http://robot.example/A, URI:http://robot.example/a",
    "users": "URI:ssh://A@robot.example, URI:ssh://a@robot.example",
    "numbers": "RID:2.999.1, RID:1.39.1, RID:0.9.2342",
}


def nodes_of_all_kinds() -> dict[str, Entry]:
    """Return the nodes of the tables above."""
    nodes: dict[str, Entry] = {
        name: {"subject": subject} for name, (subject, _) in SUBJECTS.items()
    }
    for name, text in TEXTS.items():
        nodes[name] = {"subject": {"commonName": text}}
    for name, written in EXTENSIONS.items():
        nodes[name] = with_extensions(**{written.name: written.value})
    for name, value in NAMELESS.items():
        nodes[name] = {"subject": {}, **with_extensions(subjectAltName=value)}
    removed = {"subject": NO_FIELDS, **with_extensions(subjectAltName="critical, DNS:x")}
    nodes["fields-removed"] = removed
    for name, text in RIGHT_NAMES.items():
        nodes[name] = with_extensions(subjectAltName=text)
    # A subject may be a sibling's, or that of an issuer's issuer.
    nodes["sibling"] = {"subject": nodes["one-each"]["subject"] | {"commonName": "one-each"}}
    return nodes


class AllKinds(NamedTuple):
    """A folder with a node of each kind, and the run that made it."""

    folder: Path
    result: Result


@pytest.fixture(scope="module")
def all_kinds(made_plain: Path, tmp_path_factory: pytest.TempPathFactory) -> AllKinds:
    """Nodes with subjects, texts and extensions of all kinds: to read only."""
    folder = shutil.copytree(made_plain, tmp_path_factory.mktemp("kinds") / "copy")
    add_nodes(folder, nodes_of_all_kinds())
    return AllKinds(folder, generate_here(folder))


def made_node(all_kinds: AllKinds, name: str) -> Path:
    """Return the folder of a node, which must have been made without a word."""
    fine(all_kinds.result)
    return all_kinds.folder / "keys" / name


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_subject_has_its_fields_in_order_and_as_often_as_they_stand_there(
    all_kinds: AllKinds, name: str
) -> None:
    path = made_node(all_kinds, name) / "cert.pem"
    printed = openssl("x509", "-in", path, "-noout", "-subject", "-nameopt", "compat")
    assert printed == f"subject={SUBJECTS[name][1]}\n"


@pytest.mark.filterwarnings("ignore:Attribute's length")
@pytest.mark.parametrize("name", TEXTS)
def test_a_text_may_have_64_characters_of_any_script_and_spaces_of_all_kinds(
    all_kinds: AllKinds, name: str
) -> None:
    made = certificate(made_node(all_kinds, name) / "cert.pem")
    (attribute,) = made.subject
    assert attribute.value == TEXTS[name]


def by_openssl(name: str, sections: str) -> bytes:
    """Return an extension's content as openssl makes it."""
    config = f"[req]\ndistinguished_name = n\n[n]\n[e]\n{name} = {sections}\n"
    how = ("-utf8", "-subj", "/CN=x", "-extensions", "e", "-config", "/dev/stdin")
    pem = openssl("req", "-x509", *NEW_KEY, "-keyout", "/dev/null", *how, stdin=config)
    extensions = x509.load_pem_x509_certificate(pem.encode()).extensions
    (found,) = [each for each in extensions if NAMES.get(each.oid) == name]
    content: bytes = found.value.public_bytes()
    return content


NAMES = {
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME: "subjectAltName",
    ExtensionOID.CRL_DISTRIBUTION_POINTS: "crlDistributionPoints",
    ExtensionOID.AUTHORITY_INFORMATION_ACCESS: "authorityInfoAccess",
    ExtensionOID.EXTENDED_KEY_USAGE: "extendedKeyUsage",
    ExtensionOID.KEY_USAGE: "keyUsage",
    ExtensionOID.CERTIFICATE_POLICIES: "certificatePolicies",
}


@pytest.mark.parametrize("name", EXTENSIONS)
def test_an_extension_has_the_octets_that_openssl_gives_it(
    all_kinds: AllKinds, name: str
) -> None:
    extensions = certificate(made_node(all_kinds, name) / "cert.pem").extensions
    written = EXTENSIONS[name]
    (ours,) = [each for each in extensions if NAMES.get(each.oid) == written.name]
    assert ours.value.public_bytes() == by_openssl(written.name, written.sections)
    assert ours.critical == ("critical" in str(written.value))


@pytest.mark.parametrize("name", [*NAMELESS, "fields-removed"])
def test_a_node_may_be_known_by_its_critical_alternative_name_alone(
    all_kinds: AllKinds, name: str
) -> None:
    folder = made_node(all_kinds, name)
    made = certificate(folder / "cert.pem")
    assert len(made.subject) == 0
    alternatives = made.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert alternatives.critical and len(list(alternatives.value)) == 1
    result = judge(folder)
    assert result.returncode == 0, result.stderr


def test_nodes_of_all_kinds_are_kept_renewed_and_revoked_like_others(
    all_kinds: AllKinds, tmp_path: Path
) -> None:
    fine(all_kinds.result)
    folder = shutil.copytree(all_kinds.folder, tmp_path / "copy")
    before = tree(folder)
    fine(generate_here(folder))
    assert tree(folder) == before
    names = ["spiffe", "domain", "emoji", "user-with-comma"]
    assert len(set(names) & {*NAMELESS, *SUBJECTS, *TEXTS, *EXTENSIONS}) == 4
    fine(generate_here(folder, "--renew", *names))
    result = generate_here(folder, "--revoke", *names)
    assert result.returncode == 0
    assert all(states(result)[name] == "revoked" for name in names)
    assert len(revoked_serials(folder / "keys/server/crl.pem")) == 2 * len(names)


@pytest.mark.parametrize("name", RIGHT_NAMES)
def test_names_that_only_look_alike_are_accepted(all_kinds: AllKinds, name: str) -> None:
    made = certificate(made_node(all_kinds, name) / "cert.pem")
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert len(list(names)) == len(RIGHT_NAMES[name].split(","))


# --- Subjects, alternative names and texts that are not --------------------------------------


class Wrong(NamedTuple):
    """Fields of a node that are an error, where it is, and what the line must say."""

    fields: Entry
    place: str
    reason: str = ""


def wrong_names(value: object, reason: str = "") -> Wrong:
    """Return a node with a subjectAltName that is an error."""
    return Wrong(with_extensions(subjectAltName=value), "extensions.subjectAltName", reason)


def wrong_text(text: object, reason: str = "") -> Wrong:
    """Return a node with a commonName that is an error."""
    return Wrong({"subject": {"commonName": text}}, "subject.commonName", reason)


WRONG = {
    # Subjects (the twins are in SUBJECTS and NAMELESS).
    "a number in a list": wrong_text(["a", 7]),
    "a list in a list": wrong_text(["a", ["b"]]),
    "an empty list": wrong_text([], "is an empty list: ~ leaves"),
    "nothing in a list": wrong_text(["a", None], "is empty"),
    "an attribute by number that has a name": Wrong(
        {"subject": {"2.5.4.3": "a"}}, "subject.2.5.4.3", "unknown field"
    ),
    "an attribute by half a number": Wrong({"subject": {"2.5": "a"}}, "subject.2.5"),
    "an empty text in a list": wrong_text(["a", ""]),
    "a mapping": wrong_text({"a": "b"}),
    "one of a list is too long": wrong_text(["a", "b" * 65]),
    "no subject and an alternative name that is not critical": Wrong(
        {"subject": {}, **with_extensions(subjectAltName="DNS:x")}, "subject", "critical"
    ),
    "no subject and no alternative name": Wrong(
        {"subject": {}, **with_extensions()}, "subject", "subjectAltName"
    ),
    "a subject that is missing": Wrong({"subject": None}, "subject"),
    # Texts (the twins are in TEXTS).
    "65 characters": wrong_text("ж" * 65, "64"),
    "a line separator": wrong_text("a\u2028b", "2028"),
    "a paragraph separator": wrong_text("a\u2029b", "2029"),
    "a bell": wrong_text("a\ab", r"\\x07"),
    "a next line": wrong_text("a\u0085b", r"\\x85"),
    "a tab": wrong_text("a\tb", r"\\t|\\x09"),
    # Extensions (the twins are in EXTENSIONS).
    "a list with an empty part": wrong_names(["DNS:a", ""]),
    "an empty list of names": wrong_names([]),
    "a list of critical alone": wrong_names(["critical"]),
    "a number among the parts": wrong_names(["DNS:a", 7]),
    "a list of lists": wrong_names([["DNS:a"], ["DNS:b"]]),
    "an other name without a type": wrong_names("otherName:1.2.3.4;ada"),
    "an other name without an identifier": wrong_names("otherName:UTF8:ada"),
    "an identifier that is none": wrong_names("RID:3.1", "is not of the form"),
    "an identifier with a zero in front": wrong_names("RID:1.2.03", "is not of the form"),
    "an identifier with a second part of 40": wrong_names("RID:1.40.3", "is not of the form"),
    # Names that no verifier accepts, or that are there twice (the twins are in RIGHT_NAMES).
    "a wildcard below .local": wrong_names("DNS:*.local", "at least two others follow"),
    "a wildcard in the middle": wrong_names("DNS:a.*.example", "wildcard is the first label"),
    "a letter that is not ASCII": wrong_names("DNS:köln.example", "xn--"),
    "a URI's host in two cases": wrong_names("URI:http://A.example/, URI:HTTP://a.example/"),
    "a distribution point twice": Wrong(
        with_extensions(crlDistributionPoints="URI:http://a.example/, URI:http://A.example/"),
        "extensions.crlDistributionPoints",
        "twice",
    ),
    "a wildcard below .lan": wrong_names("DNS:*.lan", "lan"),
    "a wildcard alone": wrong_names("DNS:*"),
    "a wildcard in a list": wrong_names(["DNS:a", "DNS:*.LOCAL"], "LOCAL"),
    "a zone": wrong_names("IP:fe80::1%eth0", "zone|%eth0"),
    "a zone that is a number": wrong_names("DNS:a, IP:fe80::1%2", "zone|%2"),
    "one host name in two cases": wrong_names("DNS:robot.example, DNS:Robot.Example", "twice"),
    "one IPv6 address in two forms": wrong_names("IP:::1, IP:0:0:0:0:0:0:0:1", "twice"),
    "one IPv6 address in two cases": wrong_names("IP:fe80::a, IP:FE80::A", "twice"),
    "one address in a list": wrong_names(["IP:::1", "DNS:a", "IP:0::1"], "twice"),
    "a mail domain in two cases": wrong_names("email:a@x.example, email:a@X.example", "twice"),
    "one purpose by name and by number": Wrong(
        with_extensions(extendedKeyUsage="serverAuth, 1.3.6.1.5.5.7.3.1"),
        "extensions.extendedKeyUsage",
        "twice",
    ),
    "the issuer's own subject": Wrong(
        {
            "subject": {
                "countryName": "US",
                "organizationName": "SROS Example",
                "organizationalUnitName": "Robots",
                "commonName": "master",
            }
        },
        "subject",
        "issuer",
    ),
}


MUCH_LIKE_OTHERS = [
    "a number in a list",
    "a list in a list",
    "a mapping",
    "an empty text in a list",
    "a list of lists",
    "a list with an empty part",
    "a list of critical alone",
    "an empty list of names",
    "an other name without an identifier",
    "a tab",
    "a next line",
    "a wildcard alone",
    "a zone that is a number",
    "one IPv6 address in two cases",
]


@pytest.mark.parametrize("what", seldom(WRONG, *MUCH_LIKE_OTHERS))
def test_a_value_that_was_never_valid_is_an_error_before_anything_is_written(
    tmp_path: Path, what: str
) -> None:
    wrong = WRONG[what]
    add_nodes(tmp_path, {"wrong": wrong.fields})
    (line,) = complaints(generate_here(tmp_path), "error", 2)
    assert line.startswith(f"sros_config.yml: keys.nodes.wrong.{wrong.place}"), line
    assert re.search(wrong.reason, line.partition(wrong.place)[2]), line
    assert [path.name for path in tmp_path.iterdir()] == ["sros_config.yml"]


@pytest.mark.parametrize("ca", ["root", "master"])
def test_a_ca_must_have_a_subject_and_not_that_of_its_issuer(tmp_path: Path, ca: str) -> None:
    def nameless(keys: Keys) -> None:
        keys[ca]["subject"] = {}
        keys[ca]["extensions"]["subjectAltName"] = "critical, DNS:ca.example"

    edit_plain(tmp_path, nameless)
    (line,) = complaints(generate_here(tmp_path), "error", 2)
    assert f"keys.{ca}.subject" in line

    edit_plain(tmp_path, lambda keys: keys["master"].update(subject={"commonName": "root"}))
    fine(generate_here(tmp_path))  # the twin: root has further fields
    shutil.rmtree(tmp_path / "keys")
    edit_plain(tmp_path, lambda keys: keys["master"]["subject"].update(commonName="root"))
    (line,) = complaints(generate_here(tmp_path), "error", 2)
    assert "keys.master.subject" in line and "issuer" in line


@pytest.mark.parametrize("name", ["Robots  CA", "ROBOTS CA"])
def test_a_subject_that_openssl_takes_for_that_of_the_issuer_is_refused(
    tmp_path: Path, name: str
) -> None:
    def call(keys: Keys, master: str) -> None:
        keys["root"]["subject"] = {"commonName": "Robots CA"}
        keys["master"]["subject"] = {"commonName": master}

    edit_plain(tmp_path, lambda keys: call(keys, name))
    (line,) = complaints(generate_here(tmp_path), "error", 2)
    assert "keys.master.subject" in line and "issuer" in line
    edit_plain(tmp_path, lambda keys: call(keys, "RobotsCA"))
    fine(generate_here(tmp_path))


def test_a_zone_in_a_constraint_is_an_error_too(tmp_path: Path) -> None:
    def constrain(keys: Keys, text: str) -> None:
        keys["master"]["extensions"]["nameConstraints"] = f"critical, excluded;IP:{text}"

    edit_plain(tmp_path, lambda keys: constrain(keys, "fe80::%eth0/64"))
    (line,) = complaints(generate_here(tmp_path), "error", 2)
    assert "keys.master.extensions.nameConstraints" in line
    edit_plain(tmp_path, lambda keys: constrain(keys, "fe80::/64"))
    fine(generate_here(tmp_path))


# --- Keys of other programs ------------------------------------------------------------------


def ec_key(size: int, label: str) -> bytes:
    """Return a P-256 key whose number has 31 or 33 octets, in SEC1 or PKCS#8."""
    number = 1 << 240 | 4711
    public = ec.derive_private_key(number, ec.SECP256R1()).public_key()
    point = public.public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    curve = der(0xA0, P256) if label == "EC PRIVATE KEY" else b""
    octets = der(OCTETS, number.to_bytes(size, "big"))
    sec1 = der(
        SEQUENCE, der(INTEGER, b"\1"), octets, curve, der(0xA1, der(BITS, b"\0", point))
    )
    if label == "EC PRIVATE KEY":
        return armoured(label, sec1)
    algorithm = der(SEQUENCE, EC_KEY, P256)
    return armoured(label, der(SEQUENCE, der(INTEGER, b"\0"), algorithm, der(OCTETS, sec1)))


def with_its_public_key() -> bytes:
    """Return an Ed25519 key in the second version of PKCS#8 (RFC 5958), as Java writes it."""
    key = ed25519.Ed25519PrivateKey.generate()
    algorithm = der(SEQUENCE, bytes.fromhex("06032b6570"))
    secret = der(OCTETS, der(OCTETS, key.private_bytes_raw()))
    public = der(0x81, b"\0", key.public_key().public_bytes_raw())
    return armoured(
        "PRIVATE KEY", der(SEQUENCE, der(INTEGER, b"\1"), algorithm, secret, public)
    )


def by_shell(command: str) -> Callable[[], bytes]:
    """Return a maker of a key by a shell command."""
    return lambda: subprocess.run(command, shell=True, capture_output=True, check=True).stdout


def ssh(kind: str) -> Callable[[], bytes]:
    """Return a maker of a key by ssh-keygen, in OpenSSH's own form."""
    return by_shell(
        f"d=$(mktemp -d) && ssh-keygen -q -t {kind} -N '' -f $d/k >&2 && cat $d/k && rm -r $d"
    )


P256_KEY = "openssl ecparam -name prime256v1 -genkey"
ED_KEY = "openssl genpkey -algorithm ed25519"
SELF_SIGNED = (
    "d=$(mktemp -d) && openssl req -x509 -subj /CN=x -noenc -newkey ec"
    " -pkeyopt ec_paramgen_curve:P-256 -keyout $d/k -out $d/c 2>$d/e"
)
FOREIGN_KEYS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "ec-31-sec1": (EC, lambda: ec_key(31, "EC PRIVATE KEY")),
    "ec-31-pkcs8": (EC, lambda: ec_key(31, "PRIVATE KEY")),
    "ec-33-sec1": (EC, lambda: ec_key(33, "EC PRIVATE KEY")),
    "ec-33-pkcs8": (EC, lambda: ec_key(33, "PRIVATE KEY")),
    "ec-with-parameters": (EC, by_shell(P256_KEY)),
    "ec-sec1": (EC, by_shell(f"{P256_KEY} -noout")),
    "ec-explicit": (EC, by_shell(f"{P256_KEY} -noout -param_enc explicit")),
    "rsa-pkcs1": (RSA, by_shell("openssl genrsa -traditional 2048")),
    "ed-with-public-key": (ED, with_its_public_key),
    "ssh-ecdsa": (EC, ssh("ecdsa")),
    "ssh-rsa": (RSA, ssh("rsa -b 2048")),
    "ssh-ed25519": (ED, ssh("ed25519")),
    "binary": (EC, by_shell(f"{P256_KEY} -noout | openssl pkey -outform DER")),
    "crlf": (EC, by_shell(f"{P256_KEY} -noout | openssl pkey | sed 's/$/\\r/'")),
    "text-after": (EC, by_shell(f"{P256_KEY} -noout | openssl pkey -text")),
    "with-its-certificate": (EC, by_shell(f"{SELF_SIGNED} && cat $d/k $d/c && rm -r $d")),
}
PASSED = "-passout pass:sros"
ENCRYPTED_KEYS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "traditional-ec": (EC, by_shell(f"{P256_KEY} -noout | openssl ec -aes128 {PASSED}")),
    "traditional-rsa": (RSA, by_shell(f"openssl genrsa -traditional -aes256 {PASSED} 2048")),
    "triple-des": (
        ED,
        by_shell(f"{ED_KEY} | openssl pkcs8 -topk8 -v1 PBE-SHA1-3DES {PASSED}"),
    ),
    "scrypt": (ED, by_shell(f"{ED_KEY} | openssl pkcs8 -topk8 -scrypt {PASSED}")),
}
ENCRYPTED = {"cipher": "aes-256-cbc", "passphrase": "SROS_PASSPHRASE"}


class Keyed(NamedTuple):
    """A folder with a node for each key of another program, and the run on it."""

    folder: Path
    result: Result


@pytest.fixture(scope="module")
def keyed(made_plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Keyed:
    """Nodes with keys of other programs, certified in one run: to read only."""
    folder = shutil.copytree(made_plain, tmp_path_factory.mktemp("keyed") / "copy")
    nodes: dict[str, Entry] = {}
    for name, (kind, make) in {**FOREIGN_KEYS, **ENCRYPTED_KEYS}.items():
        # Without ssh-keygen, only the tests of its keys are skipped.
        if not name.startswith("ssh-") or shutil.which("ssh-keygen"):
            nodes[name] = {"key": kind}
            put_key(folder, name, make())
    for name in ENCRYPTED_KEYS:
        nodes[name].update(ENCRYPTED)
    add_nodes(folder, nodes)
    return Keyed(folder, generate(folder))


def put_key(folder: Path, name: str, pem: bytes) -> None:
    """Make a folder that holds a key and nothing else."""
    path = folder / "keys" / name / "key.pem"
    path.parent.mkdir(0o700)
    path.write_bytes(pem)
    path.chmod(0o600)


def loads(folder: Path) -> None:
    """Have Python's TLS load a folder's certificate and key: the two must fit."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "fullchain.pem", folder / "key.pem", "sros")


def complaint(result: Result, name: str) -> str:
    """Return what a run said of a node's key; empty if it said nothing."""
    lines = [line for line in result.stderr.splitlines() if f"keys/{name}/" in line]
    assert len(lines) < 2, lines
    return "".join(lines)


@pytest.mark.parametrize("name", [*FOREIGN_KEYS, *ENCRYPTED_KEYS])
def test_a_key_of_another_program_is_accepted_or_a_command_says_what_to_do(
    keyed: Keyed, tmp_path: Path, name: str
) -> None:
    if name.startswith("ssh-"):
        needs("ssh-keygen")
    said = complaint(keyed.result, name)
    assert "None" not in said
    if not said:
        loads(keyed.folder / "keys" / name)
        return
    command = re.search("(openssl [a-z]|ssh-keygen -|rm -).*", said)
    assert command, said
    folder = shutil.copytree(keyed.folder, tmp_path / "copy")
    advised = run("sh", "-c", command[0], cwd=folder, env={"SROS_PASSPHRASE": "sros"})
    assert advised.returncode == 0, (said, advised.stderr)
    assert complaint(generate_here(folder), name) == ""
    loads(folder / "keys" / name)


@pytest.mark.parametrize(
    "name", ["ec-with-parameters", "ec-sec1", "rsa-pkcs1", "traditional-ec"]
)
def test_the_forms_that_openssl_and_tls_read_are_accepted_as_they_are(
    keyed: Keyed, name: str
) -> None:
    assert complaint(keyed.result, name) == ""
    loads(keyed.folder / "keys" / name)


PSS = "openssl genpkey -algorithm RSA-PSS -pkeyopt rsa_keygen_bits:2048"
USELESS_KEYS = {
    "pss": (RSA, by_shell(PSS)),
    "pss-bound": (RSA, by_shell(f"{PSS} -pkeyopt rsa_pss_keygen_md:sha256")),
    "x25519": (ED, by_shell("openssl genpkey -algorithm x25519")),
    "diffie-hellman": (
        RSA,
        by_shell("openssl genpkey -algorithm DH -pkeyopt group:ffdhe2048"),
    ),
    "in-one-line": (EC, lambda: ec_key(32, "PRIVATE KEY").replace(b"\n", b"")),
    "dsa": (RSA, by_shell("openssl dsaparam -genkey -noout 2048")),
    "short": (RSA, by_shell("openssl genrsa 1024")),
    "curve": (EC, by_shell("openssl ecparam -name secp256k1 -genkey -noout")),
    "public": (EC, by_shell(f"{P256_KEY} -noout | openssl pkey -pubout")),
    "cut": (EC, lambda: ec_key(32, "PRIVATE KEY")[:100]),
    "empty": (EC, lambda: b""),
    "good": (EC, lambda: ec_key(32, "PRIVATE KEY")),
}


def test_keys_that_cannot_serve_are_an_error_each_that_says_what_to_do(plain: Path) -> None:
    add_nodes(plain, {name: {"key": kind} for name, (kind, _) in USELESS_KEYS.items()})
    for name, (_, make) in USELESS_KEYS.items():
        put_key(plain, name, make())
    result = generate_here(plain)
    *bad, good = USELESS_KEYS
    assert complaint(result, good) == "" and " made " in result.stdout
    for name in bad:
        line = complaint(result, name)
        assert f"error: keys/{name}/key.pem" in line, result.stderr
        assert "None" not in line and "csr.pem" not in line
        assert not (plain / "keys" / name / "cert.pem").exists()
    for name in ("pss", "pss-bound"):
        assert "PSS" in complaint(result, name) and f"keys/{name}" in complaint(result, name)


def test_an_encrypted_key_of_an_entry_without_a_pass_phrase_is_an_error_that_helps(
    plain: Path,
) -> None:
    add_nodes(plain, {"node": {}, "twin": {**ENCRYPTED}})
    pem = by_shell(f"{P256_KEY} -noout | openssl pkcs8 -topk8 {PASSED}")()
    for name in ("node", "twin"):
        put_key(plain, name, pem)
    (line,) = faults(generate_here(plain), "keys/node/key.pem")
    assert "None" not in line and "cipher" in line
    loads(plain / "keys/twin")


def test_a_masters_key_in_another_programs_form_signs(plain: Path) -> None:
    path = plain / "keys/master/key.pem"
    path.write_text(openssl("ec", "-in", path, "-no_public"))
    assert "BEGIN EC PRIVATE KEY" in path.read_text()
    add_nodes(plain, {"client2": {}})
    assert states(fine(generate_here(plain)))["client2"] == "made"


# --- Pass phrases that end in a line end -----------------------------------------------------

VARIABLE = "SROS_PASSPHRASE"


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"], ids=ascii)
def test_a_new_key_is_not_encrypted_with_a_pass_phrase_that_ends_in_a_line_end(
    copy: Path, end: str
) -> None:
    edit(copy, lambda keys: keys["nodes"].update(client2=new_node(keys)))
    before = tree(copy)
    (line,) = faults(generate_here(copy, env={VARIABLE: "sros", "ARM": f"arm{end}"}), "ARM")
    assert "line" in line and "arm" not in line
    assert tree(copy) == before

    for good in ("arm ", " arm", f"a{end}m", "arm\t"):
        fine(generate_here(copy, env={VARIABLE: "sros", "ARM": good}))
        key = copy / "keys/client2/key.pem"
        opened = run(
            "openssl", "pkey", "-in", key, "-noout", "-passin", "env:ARM", env={"ARM": good}
        )
        assert opened.returncode == 0 or "\n" in good, opened.stderr
        drop(copy / "keys", "client2")


def new_node(keys: Keys) -> Entry:
    """Return a node with a pass phrase of its own."""
    return {**keys["nodes"]["client"], "passphrase": "ARM"}


def test_a_new_folder_is_not_begun_with_such_a_pass_phrase(tmp_path: Path) -> None:
    configure(tmp_path)
    phrases = {"SROS_ROOT_PASSPHRASE": "root\n", VARIABLE: "sros"}
    faults(generate_here(tmp_path, env=phrases), "SROS_ROOT_PASSPHRASE")
    assert [path.name for path in tmp_path.iterdir()] == ["sros_config.yml"]


def test_a_key_that_has_such_a_pass_phrase_is_still_opened_with_it(copy: Path) -> None:
    edit(copy, lambda keys: keys["nodes"].update(client2=new_node(keys)))
    phrase = "arm\r"
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(phrase.encode()),
    )
    put_key(copy, "client2", pem)
    result = fine(generate_here(copy, env={VARIABLE: "sros", "ARM": phrase}))
    assert states(result)["client2"] == "made"
    assert certificate(copy / "keys/client2/cert.pem").public_key() == key.public_key()


# --- Serial numbers that are zero or negative ------------------------------------------------

TOO_LONG = "0x" + "ff" * 20
SERIALS = ["0", "-5", "-0x80", TOO_LONG]
LONGEST = "0x7f" + "ff" * 19


def self_signed(folder: Path, number: str) -> None:
    """Make root's certificate elsewhere, with a serial number."""
    root = folder / "keys/root"
    text = CA_EXTENSIONS.replace("authorityKeyIdentifier = keyid\n", "")
    text = text.replace("pathlen:0", "pathlen:1")
    config = f"[req]\ndistinguished_name = n\n[n]\n[e]\n{text}"
    own = ("-key", root / "key.pem", "-subj", f"{SUBJECT}root", "-set_serial", number)
    what = ("-days", "3000", "-config", "/dev/stdin", "-extensions", "e")
    keep_only(root, "key.pem")
    openssl("req", "-x509", "-new", *own, *what, "-out", root / "cert.pem", stdin=config)


WARNINGS = {"as errors": {}, "shown": {"PYTHONWARNINGS": "default"}}


def test_a_root_whose_serial_number_is_1_is_kept(plain: Path) -> None:
    self_signed(plain, "1")
    drop(plain / "keys", "master", "server", "client")
    assert states(fine(generate_here(plain)))["server"] == "made"


@pytest.mark.parametrize("warnings", WARNINGS.values(), ids=WARNINGS)
@pytest.mark.parametrize("number", SERIALS)
def test_a_root_whose_serial_number_is_not_positive_gives_one_error(
    plain: Path, number: str, warnings: dict[str, str]
) -> None:
    self_signed(plain, number)
    drop(plain / "keys", "master", "server", "client")
    result = generate(plain, env=warnings)
    line, _ = faults(result, "keys/root/cert.pem", "below root")
    assert "serial number" in line
    assert len(result.stderr.splitlines()) == 2, result.stderr
    assert not (plain / "keys/server").exists()


@pytest.mark.parametrize("number", ["1", LONGEST])
def test_a_node_with_the_lowest_or_the_longest_serial_number_is_kept_and_can_be_revoked(
    plain: Path, number: str
) -> None:
    signed_elsewhere(plain, "server", number, plain / "keys/server/cert.pem")
    fine(generate_here(plain))
    fine(generate_here(plain, "--revoke", "server"))
    assert int(number, 0) in revoked_serials(plain / "keys/client/crl.pem")


@pytest.mark.parametrize("number", SERIALS)
def test_a_node_with_a_serial_number_that_is_not_positive_is_one_error(
    plain: Path, number: str
) -> None:
    signed_elsewhere(plain, "server", number, plain / "keys/server/cert.pem")
    (line,) = faults(generate_here(plain), "keys/server/cert.pem")
    assert "serial number" in line
    (object_,) = [
        fields
        for fields in map(json.loads, generate_here(plain, "--json").stdout.splitlines())
        if fields["name"] == "server"
    ]
    assert object_["serial"] is None and object_["problems"][0]["text"] in line
    records = {path.name for path in (plain / "keys/master/issued").glob("server-*")}
    assert len(records) == 1, "only that of the first certificate"


def signed_elsewhere(folder: Path, name: str, number: str, out: Path) -> None:
    """Have openssl certify a node's key by master, with a serial number."""
    request = folder / "request.pem"
    key = folder / "keys" / name / "key.pem"
    openssl("req", "-new", "-key", key, "-subj", SUBJECT + name, "-out", request)
    sign(request, folder / "keys/master", "", SERVER_EXTENSIONS, out, "-set_serial", number)
    request.unlink()


def test_a_record_with_such_a_number_is_one_error_when_it_is_to_be_revoked(
    plain: Path,
) -> None:
    issued = plain / "keys/master/issued"
    signed_elsewhere(plain, "client", "0", issued / "ghost-0.pem")
    signed_elsewhere(plain, "client", "77", issued / "spirit-4D.pem")
    before = tree(plain)
    result = generate_here(plain, "--revoke", "ghost")
    line = faults(result, "issued/ghost-0.pem")[0]
    assert "serial number" in line
    assert tree(plain) == before
    fine(generate_here(plain, "--revoke", "spirit"))
    assert revoked_serials(plain / "keys/server/crl.pem") == {77}
    assert serial(plain / "keys/client") != 77
