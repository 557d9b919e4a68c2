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
from functools import cache
from typing import Any

import yaml
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa, rsa, types
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID
from OpenSSL import crypto

PrivateKey = types.CertificateIssuerPrivateKeyTypes
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
