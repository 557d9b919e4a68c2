#!/usr/bin/env python3
"""Make a certificate authority hierarchy, as sros_config.yml defines it, as a folder of PEM files.

One rule: walk the hierarchy from the top; keep what is there; make what is missing; verify
everything. The folder is the state. Exit status: 0 done; 1 something failed; 2 the command line or
the configuration is wrong, and nothing was written.
"""

from __future__ import annotations

import argparse
import fcntl
import getpass
import ipaddress
import os
import re
import shutil
import signal
import string
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from functools import cache, cached_property
from typing import Any

import yaml
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa, rsa, types
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID
from OpenSSL import crypto

PrivateKey = types.CertificateIssuerPrivateKeyTypes
PublicKey = types.CertificateIssuerPublicKeyTypes
Extensions = dict[str, tuple["x509.ExtensionType | None", bool]]  # field: value, critical

SCRIPT = "simple_key_generation.py"
NOW = datetime.now(timezone.utc).replace(microsecond=0)
PEM = serialization.Encoding.PEM

KEY_TYPES: dict[str, Callable[[], PrivateKey]] = {  # and rsa:2048 to rsa:8192
    "ec:prime256v1": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ec:secp384r1": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ec:secp521r1": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ed448": ed448.Ed448PrivateKey.generate,
    "ml-dsa-44": mldsa.MLDSA44PrivateKey.generate,
    "ml-dsa-65": mldsa.MLDSA65PrivateKey.generate,
    "ml-dsa-87": mldsa.MLDSA87PrivateKey.generate,
}
WITHOUT_DIGEST = ("ed25519", "ed448", "ml-dsa-")  # key types that hash by themselves
DIGESTS = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512()}

# Bounds in bytes, from RFC 5280, appendix A.1, and RFC 4519. NameOID spells commonName COMMON_NAME.
SUBJECT_FIELDS = {
    **{"countryName": 2, "stateOrProvinceName": 128, "localityName": 128, "streetAddress": 128},
    **{"postalCode": 40, "organizationName": 64, "organizationalUnitName": 64, "title": 64},
    **{"domainComponent": 63, "userId": 256, "givenName": 64, "surname": 64, "commonName": 64},
    **{"serialNumber": 64, "emailAddress": 255},
}
SUBJECT_FORMS = {
    "countryName": "[A-Z]{2}",
    "serialNumber": "[A-Za-z0-9 '()+,./:=?-]+",
    "domainComponent": "[ -~]+",
    "emailAddress": "[ -~]+@[ -~]+",
}
KEY_USAGES = [  # in the order of the bits, RFC 5280, section 4.2.1.3
    *("digitalSignature", "nonRepudiation", "keyEncipherment", "dataEncipherment"),
    *("keyAgreement", "keyCertSign", "cRLSign", "encipherOnly", "decipherOnly"),
]
EXTENDED_KEY_USAGES = {
    **{"serverAuth": "1.3.6.1.5.5.7.3.1", "clientAuth": "1.3.6.1.5.5.7.3.2"},
    **{"codeSigning": "1.3.6.1.5.5.7.3.3", "emailProtection": "1.3.6.1.5.5.7.3.4"},
    **{"timeStamping": "1.3.6.1.5.5.7.3.8", "OCSPSigning": "1.3.6.1.5.5.7.3.9"},
    **{"anyExtendedKeyUsage": "2.5.29.37.0"},
}
ACCESS_METHODS = {
    "OCSP": AuthorityInformationAccessOID.OCSP,
    "caIssuers": AuthorityInformationAccessOID.CA_ISSUERS,
}
# What OpenSSL enforces of the critical extensions that have no field here: it refuses all others.
CRITICAL_OIDS = ("2.5.29.33", "2.5.29.36", "2.5.29.54", "1.3.6.1.5.5.7.1.7", "1.3.6.1.5.5.7.1.8")


class Fault(Exception):
    """What is wrong, where, and what to do, in one line: exit status 1."""


class ConfigurationError(Fault):
    """A fault of the configuration or the command line: exit status 2, and nothing is written."""


# --- The configuration ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """What the configuration says of one folder. Times are UTC."""

    name: str
    where: str  # its path in the file, such as sros_config.yml: keys.nodes.server
    is_ca: bool
    issuer: str | None  # None: self-signed
    key: str
    digest: hashes.HashAlgorithm
    passphrase: str | None  # the environment variable; None: the key is not encrypted
    subject: x509.Name
    not_before: datetime
    not_after: datetime
    next_update: datetime | None  # of a CA's revocation list; None: as long as the CA
    extensions: Extensions


class Loader(yaml.CSafeLoader):
    """PyYAML's loader, less two things that it lets pass: fields twice, and recursive aliases."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.deep_construct = True  # makes PyYAML refuse an alias within its own anchor
        self.checked: set[yaml.Node] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Look at each mapping once, before its merges are resolved."""
        if node not in self.checked:
            self.checked.add(node)
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for name, count in Counter(names).items():
                if count > 1:
                    raise yaml.MarkedYAMLError(None, None, f"{name!r} twice", node.start_mark)
        super().flatten_mapping(node)


@contextmanager
def at(place: str) -> Iterator[None]:
    """Put the place in the configuration before what a ValueError says."""
    try:
        yield
    except ValueError as error:
        raise ConfigurationError(f"{place}: {error}") from None


def read_configuration(path: str) -> dict[str, Entry]:
    """Return all entries by name, each issuer before those that it issues (depth first).

    Raises ConfigurationError with the path in the file of what is wrong.
    """
    try:
        with open(path, "rb") as file:
            document = yaml.load(file, Loader)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise ConfigurationError(f"{path}: {line}{error.problem}") from None
    except RecursionError:
        raise ConfigurationError(f"{path}: an alias stands within its own anchor") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigurationError(f"{path}: not YAML: {str(error).splitlines()[0]}") from None
    with at(path):
        top = {} if not isinstance(document, dict) else document
        top = mapping({k: v for k, v in top.items() if not str(k).startswith("x-")}, ["keys"])
        if not top.get("keys"):
            raise ValueError("has no entries; they stand in the mapping keys")
    with at(f"{path}: keys"):
        authorities = mapping(top["keys"])
    with at(f"{path}: keys.nodes"):
        nodes = mapping(authorities.pop("nodes", {}))
        if both := authorities.keys() & nodes.keys():
            raise ValueError(f"{min(both)} stands under keys, too, and would be the same folder")
    entries = [read_entry(f"{path}: keys.{name}", name, authorities[name]) for name in authorities]
    entries += [read_entry(f"{path}: keys.nodes.{name}", name, nodes[name]) for name in nodes]
    return in_walking_order({entry.name: entry for entry in entries})


def mapping(value: Any, known: Any = None) -> dict[str, Any]:
    """Return the fields of a mapping, without those that ``~`` un-sets; else raise ValueError."""
    if not isinstance(value, dict):
        raise ValueError("must be a mapping: fields and their values")
    for name in value:
        if not isinstance(name, str):
            raise ValueError(f"the field {name!r} is not text for YAML: put it in quotes")
        if known is not None and name not in known:
            raise ValueError(f"unknown field {name!r}; there are {', '.join(known)}")
    return {name: item for name, item in value.items() if item is not None}


def text(value: Any, name: str) -> str:
    """Return a text value with the entry's name in place of ``$name``; else raise ValueError."""
    if isinstance(value, bool):
        word = str(value).lower()
        raise ValueError(f"YAML reads NO, off, yes and the like as {word}: put it in quotes")
    if not isinstance(value, str):
        raise ValueError(f"must be text; YAML reads {value!r} (0123 is octal): put it in quotes")
    try:
        return string.Template(value).substitute(name=name) if "$" in value else value
    except (KeyError, ValueError):
        raise ValueError(f"{value!r}: only $name is known; $$ is the sign itself") from None


def read_entry(where: str, name: str, value: Any) -> Entry:
    """Return one entry; else raise ConfigurationError with its place."""
    is_ca = not where.endswith(f".nodes.{name}")
    with at(where):
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}", name):
            raise ValueError("a name is a folder: letters, digits, '.', '_', '-', no dot in front")
        known = ["issuer", "key", "digest", "cipher", "passphrase"]
        fields = mapping(value, [*known, "subject", "validity", "extensions"])
        required = {"key", "subject", "validity", "extensions"} | (set() if is_ca else {"issuer"})
        if missing := required - fields.keys():
            raise ValueError(f"the field {min(missing)} is missing")
    texts = {}
    for item in fields.keys() & set(known):
        with at(f"{where}.{item}"):
            texts[item] = text(fields[item], name)
    key, digest, cipher = texts["key"], texts.get("digest", "sha256"), texts.get("cipher")
    with at(f"{where}.key"):
        bits = re.fullmatch("rsa:([0-9]{4})", key)
        if key not in KEY_TYPES and not (bits and 2048 <= int(bits[1]) <= 8192):
            raise ValueError(f"{key!r} is none of rsa:2048 … rsa:8192, {', '.join(KEY_TYPES)}")
    with at(f"{where}.digest"):
        if digest not in DIGESTS:
            raise ValueError(f"{digest!r} is none of {', '.join(DIGESTS)}")
        if "digest" in texts and key.startswith(WITHOUT_DIGEST):
            raise ValueError(f"{key} signs without one: leave it out, or un-set it with ~")
    with at(f"{where}.cipher"):
        if cipher not in (None, "aes-256-cbc"):
            raise ValueError(f"{cipher!r} is not aes-256-cbc, which is the only one")
        if cipher and "passphrase" not in texts:
            raise ValueError("needs the field passphrase, an environment variable's name")
    with at(f"{where}.passphrase"):
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", texts.get("passphrase", "_")):
            raise ValueError(f"{texts['passphrase']!r} can't name an environment variable")
    times = read_validity(f"{where}.validity", fields["validity"], is_ca)
    entry = Entry(
        name=name,
        where=where,
        is_ca=is_ca,
        issuer=texts.get("issuer"),
        key=key,
        digest=DIGESTS[digest],
        passphrase=texts["passphrase"] if cipher else None,
        subject=read_subject(f"{where}.subject", name, fields["subject"]),
        not_before=times.get("notBefore", NOW),
        not_after=times["notAfter"],
        next_update=times.get("nextUpdate"),
        extensions=read_extensions(f"{where}.extensions", name, fields["extensions"]),
    )
    with at(f"{where}.extensions"):
        check_profile(entry)
    return entry


def read_validity(where: str, value: Any, is_ca: bool) -> dict[str, datetime]:
    """Return notBefore, notAfter and a CA's nextUpdate; else raise ConfigurationError."""
    with at(where):
        fields = mapping(value, ["notBefore", "notAfter", "nextUpdate"][: 3 if is_ca else 2])
        if "notAfter" not in fields:
            raise ValueError("the field notAfter is missing")
    times = {}
    for name, item in fields.items():
        with at(f"{where}.{name}"):
            times[name] = read_time(item)
            if name == "notBefore" and times[name] > NOW:
                raise ValueError(f"{item} is in the future: nobody could verify it today")
            if name != "notBefore" and times[name] <= NOW:
                raise ValueError(f"{item} is in the past")
    return times


def read_time(value: Any) -> datetime:
    """Return a timestamp, or an offset from now (a year has 365 days); else raise ValueError."""
    offset = re.fullmatch("([+-]?[0-9]{1,7})([hdwy])", str(value))
    try:
        if offset:
            hours = {"h": 1, "d": 24, "w": 7 * 24, "y": 365 * 24}[offset[2]]
            moment = NOW + timedelta(hours=int(offset[1]) * hours)
        elif isinstance(value, datetime):
            moment = value if value.tzinfo else value.replace(tzinfo=timezone.utc)
            moment = moment.astimezone(timezone.utc).replace(microsecond=0)
        elif isinstance(value, date):
            moment = datetime(value.year, value.month, value.day, tzinfo=timezone.utc)
        else:
            raise ValueError(f"{value!r} is neither like 2027-01-31T12:00:00Z nor like -1d, 12h, 10y")
    except OverflowError:
        raise ValueError(f"{value} is beyond the year 9999") from None
    if moment.year < 1950:
        raise ValueError(f"{value} is before 1950, where certificates begin")
    return moment


def read_subject(where: str, name: str, value: Any) -> x509.Name:
    """Return the distinguished name, in the file's order; else raise ConfigurationError."""
    with at(where):
        fields = mapping(value, SUBJECT_FIELDS)
        if not fields:
            raise ValueError("is empty")
    attributes = []
    for item, limit in ((item, SUBJECT_FIELDS[item]) for item in fields):
        with at(f"{where}.{item}"):
            content = text(fields[item], name)
            if not 0 < len(content.encode()) <= limit or not content.isprintable():
                raise ValueError(f"{content!r} must be 1 to {limit} bytes that can be printed")
            if not re.fullmatch(SUBJECT_FORMS.get(item, ".+"), content):
                raise ValueError(f"{content!r} is not of the form {SUBJECT_FORMS[item]}")
            oid = getattr(NameOID, re.sub("([A-Z])", r"_\1", item).upper())
            attributes.append(x509.NameAttribute(oid, content))
    return x509.Name(attributes)


def in_walking_order(entries: dict[str, Entry]) -> dict[str, Entry]:
    """Return the entries depth first from the roots; raise ConfigurationError for what can't be."""
    children: dict[str | None, list[Entry]] = {}
    subjects: dict[str, str] = {}
    for entry in entries.values():
        with at(f"{entry.where}.issuer"):
            if entry.issuer and entry.issuer not in entries:
                raise ValueError(f"there is no entry {entry.issuer!r}")
            if entry.issuer and not entries[entry.issuer].is_ca:
                raise ValueError(f"{entry.issuer} is not a CA: those stand under keys, not nodes")
        children.setdefault(entry.issuer, []).append(entry)
    for entry in sorted(entries.values(), key=lambda entry: not entry.is_ca):
        with at(f"{entry.where}.subject"):  # as OpenSSL compares names: without case
            subject = entry.subject.rfc4514_string().casefold()
            if subject in subjects:
                raise ValueError(f"is that of {subjects[subject]}: chains can't tell them apart")
            if entry.is_ca:
                subjects[subject] = entry.name
    ordered: dict[str, Entry] = {}
    stack = [(entry, [entry]) for entry in reversed(children.get(None, []))]
    while stack:
        entry, path = stack.pop()
        ordered[entry.name] = entry
        for depth, ca in enumerate(reversed(path[:-1])) if entry.is_ca else ():
            limit = basic_constraints(ca).path_length
            with at(f"{entry.where}.issuer"):
                if limit is not None and depth >= limit:
                    raise ValueError(f"more CAs below {ca.name} than its pathlen:{limit} admits")
        below = children.get(entry.name, [])
        stack += [(child, [*path, child] if child.is_ca else []) for child in reversed(below)]
    for entry in entries.values():
        with at(f"{entry.where}.issuer"):
            if entry.name not in ordered:
                raise ValueError("leads to no self-signed CA, but round in a circle")
    return ordered


# --- Extensions, written as in OpenSSL's x509v3_config(5) -----------------------------------------


def read_extensions(where: str, name: str, value: Any) -> Extensions:
    """Return the extensions by field; else raise ConfigurationError."""
    with at(where):
        fields = mapping(value)
    extensions = {}
    for item in fields:
        with at(f"{where}.{item}"):
            extensions[item] = read_extension(item, text(fields[item], name))
    return extensions


@cache  # the entries of a fleet have most of their values in common
def read_extension(name: str, value: str) -> tuple[x509.ExtensionType | None, bool]:
    """Return a value, or None if it follows from a key, and whether it is critical.

    Raises ValueError. The forms are those of RFC 5280, section 4.2.
    """
    items = [item.strip() for item in value.split(",")]
    critical = items[0] == "critical"
    items = items[critical:]
    if not items or not all(items) or len(set(items)) < len(items):
        raise ValueError(f"{value!r} has an empty part, or one that stands twice")
    if critical and name.endswith("KeyIdentifier"):
        raise ValueError("must not be critical")
    extension: x509.ExtensionType | None = None
    match name:
        case "basicConstraints":
            form = re.fullmatch("CA:(TRUE|FALSE)(?:,pathlen:([0-9]{1,4}))?", ",".join(items))
            if not form or form[1] == "FALSE" and form[2]:
                raise ValueError(f"{value!r} is neither CA:FALSE nor like CA:TRUE, pathlen:0")
            path_length = int(form[2]) if form[2] else None
            extension = x509.BasicConstraints(form[1] == "TRUE", path_length)
        case "keyUsage":
            if unknown := set(items) - set(KEY_USAGES):
                raise ValueError(f"{min(unknown)!r} is none of {', '.join(KEY_USAGES)}")
            extension = x509.KeyUsage(*(usage in items for usage in KEY_USAGES))
        case "extendedKeyUsage":
            oids = [read_oid(EXTENDED_KEY_USAGES.get(item, item)) for item in items]
            extension = x509.ExtendedKeyUsage(oids)
        case "subjectKeyIdentifier":
            if items != ["hash"]:
                raise ValueError(f"{value!r} must be hash")
        case "authorityKeyIdentifier":
            if items not in (["keyid"], ["keyid:always"]):
                raise ValueError(f"{value!r} must be keyid (issuer breaks when that is renewed)")
        case "subjectAltName":
            extension = x509.SubjectAlternativeName([read_name(item) for item in items])
        case "nameConstraints":
            trees: dict[str, list[x509.GeneralName]] = {"permitted": [], "excluded": []}
            for kind, _, tree in (item.partition(";") for item in items):
                choose(kind, trees).append(read_name(tree, constraint=True))
            extension = x509.NameConstraints(trees["permitted"] or None, trees["excluded"] or None)
        case "certificatePolicies":
            policies = [x509.PolicyInformation(read_oid(item), None) for item in items]
            extension = x509.CertificatePolicies(policies)
        case "crlDistributionPoints":
            places = [[read_name(item, only="URI")] for item in items]
            points = [x509.DistributionPoint(place, None, None, None) for place in places]
            extension = x509.CRLDistributionPoints(points)
        case "authorityInfoAccess":
            accesses = [
                x509.AccessDescription(choose(method, ACCESS_METHODS), read_name(uri, only="URI"))
                for method, _, uri in (item.partition(";") for item in items)
            ]
            extension = x509.AuthorityInformationAccess(accesses)
        case _:
            form = re.fullmatch("DER:((?:[0-9A-Fa-f]{2}[: ]?)+)", ",".join(items))
            if not re.fullmatch("[0-9]+([.][0-9]+)+", name) or not form:
                raise ValueError("is no known field, nor a dotted OID with DER:hex")
            if critical and name not in CRITICAL_OIDS:
                raise ValueError("must not be critical: OpenSSL refuses those that it doesn't know")
            content = bytes.fromhex(form[1].replace(":", " "))
            extension = x509.UnrecognizedExtension(read_oid(name), content)
    return extension, critical


def choose(item: str, known: dict[str, Any]) -> Any:
    """Return what a word stands for; else raise ValueError."""
    if item not in known:
        raise ValueError(f"{item!r} is none of {', '.join(known)}")
    return known[item]


def read_oid(item: str) -> x509.ObjectIdentifier:
    """Return an object identifier; else raise ValueError."""
    try:
        return x509.ObjectIdentifier(item)
    except ValueError:
        raise ValueError(f"{item!r} is neither a known name nor a dotted OID") from None


def read_name(item: str, constraint: bool = False, only: str = "") -> x509.GeneralName:
    """Return a name such as ``DNS:localhost``, or a subtree of names; else raise ValueError.

    RFC 5280, sections 4.2.1.6 and 4.2.1.10. Underscores are let pass, as OpenSSL does.
    """
    kind, _, value = item.partition(":")
    label = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
    front = "[.]?" if constraint else "(?:[*][.])?"
    host = f"(?=.{{1,253}}$)(?![0-9.]+$){front}{label}(?:[.]{label})*"
    forms = {"DNS": host, "IP": ".+", "URI": "[A-Za-z][A-Za-z0-9+.-]*:[!-~]+"}
    forms["email"] = f"[!-?A-~]{{1,64}}@{host}"
    if constraint:
        forms |= {"URI": host, "email": f"(?:[!-?A-~]{{1,64}}@)?{host}"}
    if kind not in forms or (only and kind != only):
        raise ValueError(f"{item!r} must begin with {only or ':, '.join(forms)}:")
    if not re.fullmatch(forms[kind], value):
        raise ValueError(f"{value!r} can't be {kind} (what is not ASCII is written as xn--…)")
    if kind == "IP":
        return x509.IPAddress(
            ipaddress.ip_network(value) if constraint else ipaddress.ip_address(value)
        )
    if kind == "DNS":
        return x509.DNSName(value)
    return x509.UniformResourceIdentifier(value) if kind == "URI" else x509.RFC822Name(value)


def basic_constraints(entry: Entry) -> x509.BasicConstraints:
    """Return the entry's basicConstraints; without any, it is not a CA."""
    value, _ = entry.extensions.get("basicConstraints", (None, False))
    return value if isinstance(value, x509.BasicConstraints) else x509.BasicConstraints(False, None)


def check_profile(entry: Entry) -> None:
    """Raise ValueError for extensions that RFC 5280 and OpenSSL's strict mode would refuse later."""
    usage, _ = entry.extensions.get("keyUsage", (None, False))
    signs = isinstance(usage, x509.KeyUsage) and usage.key_cert_sign and usage.crl_sign
    constraints = entry.extensions.get("basicConstraints", (None, False))
    if basic_constraints(entry).ca != entry.is_ca:
        raise ValueError("CAs stand under keys and have CA:TRUE; nodes have it not")
    if entry.is_ca and not (constraints[1] and signs and "subjectKeyIdentifier" in entry.extensions):
        raise ValueError(
            "a CA needs basicConstraints: critical, CA:TRUE, "
            "keyUsage with keyCertSign and cRLSign, and subjectKeyIdentifier: hash"
        )
    if not entry.is_ca and isinstance(usage, x509.KeyUsage) and usage.key_cert_sign:
        raise ValueError("keyUsage: keyCertSign is a CA's")
    if not entry.is_ca and "nameConstraints" in entry.extensions:
        raise ValueError("nameConstraints are a CA's")
    if entry.issuer and "authorityKeyIdentifier" not in entry.extensions:
        raise ValueError("authorityKeyIdentifier: keyid is missing")


# --- Pass phrases and files -----------------------------------------------------------------------


class PassPhrases:
    """Pass phrases by environment variable: from there, else asked for once at the terminal."""

    def __init__(self) -> None:
        self.known: dict[str, bytes] = {}

    def at_hand(self, variable: str) -> bool:
        """Tell whether the pass phrase is there without a question."""
        return variable in self.known or variable in os.environ

    def get(self, variable: str, new: bool = False) -> bytes:
        """Return the pass phrase; ask twice where it encrypts a new key. Raises Fault."""
        if variable not in self.known:
            phrase = os.environ.get(variable)
            if phrase is None:
                phrase = self.ask(variable, new)
            if not 0 < len(os.fsencode(phrase)) < 1024:  # OpenSSL's PEM_BUFSIZE
                raise Fault(f"{variable}: a pass phrase has 1 to 1023 bytes")
            self.known[variable] = os.fsencode(phrase)
        return self.known[variable]

    def ask(self, variable: str, new: bool) -> str:
        """Read a pass phrase from the terminal, without echo."""
        try:
            os.close(os.open("/dev/tty", os.O_RDWR))
        except OSError:
            raise Fault(f"{variable} is not set, and there is no terminal to ask at") from None
        for _ in range(2):
            phrase = getpass.getpass(f"Enter pass phrase ({variable}): ")
            if not new or phrase == getpass.getpass(f"Verifying - enter it again ({variable}): "):
                return phrase
            print("they differ", file=sys.stderr)
        raise Fault(f"{variable}: the two pass phrases differed twice")


def private_key(path: str, phrase: Callable[[], bytes] | None) -> PrivateKey:
    """Load a key, with the pass phrase if it is encrypted. Raises Fault, OSError."""
    data = read(path)
    try:
        try:
            key = serialization.load_pem_private_key(data, None)
        except TypeError:  # it is encrypted
            if phrase is None:
                raise Fault(f"{path}: is encrypted, but its entry has no cipher") from None
            key = serialization.load_pem_private_key(data, phrase())
    except (ValueError, UnsupportedAlgorithm):
        raise Fault(f"{path}: the pass phrase is wrong, or the file is damaged") from None
    key_type(path, key.public_key())
    return key  # type: ignore[return-value]  # key_type has refused those that can't sign


def key_type(path: str, key: object) -> str:
    """Return a public key's type as the configuration spells it. Raises Fault if it is too weak."""
    name = ""
    if isinstance(key, rsa.RSAPublicKey):
        name = f"rsa:{key.key_size}" if key.key_size >= 2048 else ""
    elif isinstance(key, ec.EllipticCurvePublicKey):
        name = f"ec:{key.curve.name}".replace("secp256r1", "prime256v1")
    else:
        words = re.match("(Ed|MLDSA)([0-9]+)", type(key).__name__)
        name = f"{words[1]}{words[2]}".lower().replace("mldsa", "ml-dsa-") if words else ""
    if name not in KEY_TYPES and not name.startswith("rsa:"):
        raise Fault(f"{path}: its key is too weak, or of a type that can't be used here")
    return name


def read(path: str) -> bytes:
    """Return a file's content; one larger than anything that belongs here is refused."""
    with open(path, "rb") as file:
        data = file.read(1 << 26)
    return data


def read_pem(path: str, load: Callable[[bytes], Any]) -> Any:
    """Load an object from a PEM file. Raises Fault, OSError."""
    try:
        return load(read(path))
    except (ValueError, UnsupportedAlgorithm):
        raise Fault(f"{path}: damaged, or not what its name says") from None


def write_new(path: str, data: bytes) -> None:
    """Write a file that was not there; a key is for its owner only from the first moment on."""
    mode = 0o600 if path.endswith("key.pem") else 0o644
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        try:
            file.write(data)
            file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None  # ENOSPC names no file


def write(folder: str, files: dict[str, bytes]) -> bool:
    """Write what is new or differs, whole or not at all; tell whether anything was."""
    if not os.path.isdir(folder) or not os.listdir(folder):
        part = os.path.join(os.path.dirname(folder), f".{os.path.basename(folder)}.part")
        os.mkdir(part, 0o700)
        for name, data in files.items():
            write_new(os.path.join(part, name), data)
        os.rename(part, folder)  # a link in its place makes this fail
        return True
    changed = False
    for name, data in files.items():
        path = os.path.join(folder, name)
        if os.path.exists(path) and read(path) == data:
            continue
        part = os.path.join(folder, f".{name}.part")
        write_new(part, data)
        os.rename(part, path)
        changed = True
    return changed


def held(folder: str) -> set[str]:
    """Return the names of a folder's files, less what a killed run left there."""
    if not os.path.lexists(folder):
        return set()
    names = set(os.listdir(folder))
    for name in [name for name in names if name.startswith(".") and name.endswith(".part")]:
        path = os.path.join(folder, name)
        shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
        names.remove(name)
    return names


# --- Certificates and revocation lists ------------------------------------------------------------


@dataclass(frozen=True)
class Authority:
    """A CA that stands verified: all that its children need of it."""

    entry: Entry
    certificate: x509.Certificate
    key: Callable[[], PrivateKey] | None  # None: its key is not at hand
    chain: list[x509.Certificate]  # itself, then its issuers; the trust anchor is the last
    lists: list[x509.CertificateRevocationList]  # its own, then its issuers'; none if one lacks
    cross: bytes  # the anchor's certificate from a higher CA, as PEM
    recorded: set[str]  # the names of the files in its issued/

    @cached_property
    def store(self) -> crypto.X509Store:
        """What OpenSSL verifies its children by: the anchor, and the lists of all CAs between."""
        store = crypto.X509Store()
        store.add_cert(crypto.X509.from_cryptography(self.chain[-1]))
        flags = crypto.X509StoreFlags.X509_STRICT
        if self.lists:
            flags |= crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL
        for revocation_list in self.lists:
            store.add_crl(revocation_list)
        store.set_flags(flags)
        return store

    def verify(self, path: str, certificate: x509.Certificate) -> None:
        """Have OpenSSL verify a certificate up to the trust anchor. Raises Fault."""
        signed_with = certificate.signature_hash_algorithm
        if signed_with is not None and signed_with.name in ("md5", "sha1"):
            raise Fault(f"{path}: signed with {signed_with.name}, which can be forged")
        between = [crypto.X509.from_cryptography(ca) for ca in self.chain[:-1]]
        leaf = crypto.X509.from_cryptography(certificate)
        try:
            crypto.X509StoreContext(self.store, leaf, between).verify_certificate()
        except crypto.X509StoreContextError as error:
            culprit = error.certificate.to_cryptography()
            whose = "" if culprit == certificate else f" ({culprit.subject.rfc4514_string()})"
            folder = os.path.dirname(path)
            raise Fault(f"{path}: {error}{whose}; rm -r {folder} and a new run replace it") from None


def profile(
    entry: Entry, key: PublicKey, issuer: x509.Certificate | None
) -> Iterator[tuple[x509.ExtensionType, bool]]:
    """Yield the extensions, with those that follow from keys (RFC 5280, section 4.2.1.2)."""
    for name, (value, critical) in entry.extensions.items():
        if name == "subjectKeyIdentifier":
            value = x509.SubjectKeyIdentifier.from_public_key(key)
        elif name == "authorityKeyIdentifier" and issuer:
            known = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            value = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(known)
        elif name == "authorityKeyIdentifier":
            value = x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
        assert value is not None
        yield value, critical


def digest(entry: Entry, key: PrivateKey) -> hashes.HashAlgorithm | None:
    """Return what a CA's key signs with; the key may be of another type than its entry says."""
    name = key_type(entry.name, key.public_key())
    return None if name.startswith(WITHOUT_DIGEST) else entry.digest


def certify(
    entry: Entry, key: PublicKey, issuer: Authority | None, signer: PrivateKey
) -> x509.Certificate:
    """Return a new certificate for a public key, ending with its issuer at the latest."""
    ends = [entry.not_after] + ([issuer.certificate.not_valid_after_utc] if issuer else [])
    builder = x509.CertificateBuilder()
    builder = builder.issuer_name(issuer.certificate.subject if issuer else entry.subject)
    builder = builder.subject_name(entry.subject).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())  # 159 bits
    builder = builder.not_valid_before(entry.not_before).not_valid_after(min(ends))
    for value, critical in profile(entry, key, issuer.certificate if issuer else None):
        builder = builder.add_extension(value, critical)
    return builder.sign(signer, digest(issuer.entry if issuer else entry, signer))


def differences(
    entry: Entry, certificate: x509.Certificate, issuer: x509.Certificate | None, path: str
) -> list[str]:
    """Return in what a certificate does not say what the configuration says. Raises Fault."""
    key: Any = certificate.public_key()
    found = {(e.oid, e.critical, e.value.public_bytes()) for e in certificate.extensions}
    wanted = {(v.oid, critical, v.public_bytes()) for v, critical in profile(entry, key, issuer)}
    names = {oid._name if "nknown" not in oid._name else oid.dotted_string
             for oid, _, _ in found ^ wanted}
    differs = sorted(names)
    if key_type(path, key) != entry.key:
        differs.insert(0, "key type")
    if certificate.subject != entry.subject:
        differs.insert(0, "subject")
    return differs


def revocation_list(
    entry: Entry,
    certificate: x509.Certificate,
    key: PrivateKey,
    old: x509.CertificateRevocationList | None,
) -> x509.CertificateRevocationList:
    """Return a CA's next list, with all entries of the old one (RFC 5280, section 5)."""
    number = 0 if old is None else crl_number(old)
    ends = min(entry.next_update or certificate.not_valid_after_utc, certificate.not_valid_after_utc)
    begins = max(certificate.not_valid_before_utc, NOW - timedelta(days=1))  # clocks that are behind
    identifier = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
    builder = x509.CertificateRevocationListBuilder().issuer_name(certificate.subject)
    builder = builder.last_update(begins).next_update(ends)
    builder = builder.add_extension(x509.CRLNumber(number + 1), critical=False)
    builder = builder.add_extension(authority, critical=False)
    for revoked in old if old is not None else ():
        builder = builder.add_revoked_certificate(revoked)
    return builder.sign(key, digest(entry, key))


def crl_number(revocation_list: x509.CertificateRevocationList) -> int:
    """Return a list's number (RFC 5280, section 5.2.3); 0 if it has none."""
    try:
        return revocation_list.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0


def due(begins: datetime, ends: datetime) -> bool:
    """Tell whether the last third of a life has begun."""
    return NOW >= ends - (ends - begins) / 3


# --- The walk -------------------------------------------------------------------------------------


class Walk:
    """One run over a keys folder, from the roots to the nodes."""

    def __init__(self, keys: str, entries: dict[str, Entry]) -> None:
        self.keys = keys
        self.entries = entries
        self.phrases = PassPhrases()
        self.authorities: dict[str, Authority] = {}
        self.states: Counter[str] = Counter()
        self.children: dict[str | None, list[str]] = {}
        for entry in entries.values():
            self.children.setdefault(entry.issuer, []).append(entry.name)

    def run(self, quiet: bool) -> int:
        """Visit every entry; return the exit status."""
        depths: dict[str | None, int] = {None: -1}
        left: Counter[str] = Counter()  # what hangs under an entry that failed
        culprits: dict[str, str] = {}
        for count, (name, entry) in enumerate(self.entries.items(), 1):
            depths[name] = depths[entry.issuer] + 1
            if entry.issuer in culprits:
                culprits[name] = culprits[entry.issuer]
                left[culprits[name]] += 1
                continue
            try:
                state, certificate, note = self.visit(entry)
            except (Fault, OSError) as error:
                complain("error", error)
                culprits[name] = name
                continue
            self.states[state] += 1
            if not quiet:
                progress = f"[{count:{len(str(len(self.entries)))}}/{len(self.entries)}] "
                print(
                    progress * (len(self.entries) > 9)
                    + f"{'   ' * depths[name] + name:18} {state}  "
                    f"{key_type(name, certificate.public_key()):13}  by {entry.issuer or 'itself':10}  "
                    f"until {certificate.not_valid_after_utc:%Y-%m-%d}{note}"
                )
        for name, number in left.items():
            complain("error", f"{number} below {name} left as they are: mend {name}, then run again")
        if not quiet:
            print(f"{self.keys}: " + ", ".join(f"{n} {s}" for s, n in self.states.items())
                  + "; each chain verified by OpenSSL")
        return 1 if culprits else 0

    def visit(self, entry: Entry) -> tuple[str, x509.Certificate, str]:
        """Keep or make one entry; return what was done, its certificate, and a note. Raises Fault."""
        issuer = self.authorities[entry.issuer] if entry.issuer else None
        folder = os.path.join(self.keys, entry.name)
        holds = held(folder)
        key = self.key(entry, folder) if "key.pem" in holds else None
        files: dict[str, bytes] = {}
        note = ""
        state = "kept" if "cert.pem" in holds else "made"
        if state == "kept":
            certificate = read_pem(f"{folder}/cert.pem", x509.load_pem_x509_certificate)
        else:
            certificate, key = self.make(entry, issuer, folder, holds, key, files)
            if certificate.not_valid_after_utc < entry.not_after:
                note = f", with {entry.issuer}"
        self.check_kept(entry, issuer, folder, holds, key, certificate)
        ...
