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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from functools import cache, cached_property
from typing import Any, cast

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
    known = ["issuer", "key", "digest", "cipher", "passphrase"]
    with at(where):
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}", name):
            raise ValueError("a name is a folder: letters, digits, '.', '_', '-', no dot in front")
        fields = mapping(value, [*known, "subject", "validity", "extensions"])
        required = {"key", "subject", "validity", "extensions"} | (set() if is_ca else {"issuer"})
        if missing := required - fields.keys():
            raise ValueError(f"the field {min(missing)} is missing")
    texts = {}
    for item in fields.keys() & set(known):
        with at(f"{where}.{item}"):
            texts[item] = text(fields[item], name)
    key, variable = texts["key"], texts.get("passphrase", "")
    with at(f"{where}.key"):
        bits = re.fullmatch("rsa:([0-9]{4})", key)
        if not (bits and 2048 <= int(bits[1]) <= 8192):
            choose(key, KEY_TYPES, "rsa:2048 … rsa:8192")
    with at(f"{where}.digest"):
        digest = choose(texts.get("digest", "sha256"), DIGESTS)
        if "digest" in texts and key.startswith(WITHOUT_DIGEST):
            raise ValueError(f"{key} signs without one: leave it out, or un-set it with ~")
    with at(f"{where}.passphrase"):
        if variable and not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", variable):
            raise ValueError(f"{variable!r} can't name an environment variable")
    with at(f"{where}.cipher"):
        if choose(texts.get("cipher", ""), {"aes-256-cbc": True, "": False}) and not variable:
            raise ValueError("needs the field passphrase, an environment variable's name")
    times = read_validity(f"{where}.validity", fields["validity"], is_ca)
    entry = Entry(
        name=name,
        where=where,
        is_ca=is_ca,
        issuer=texts.get("issuer"),
        key=key,
        digest=digest,
        passphrase=variable if "cipher" in texts else None,
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
            raise ValueError(
                f"{value!r} is neither like 2027-01-31T12:00:00Z nor like -1d, 12h, 10y"
            )
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


def choose(item: str, known: dict[str, Any], more: str = "") -> Any:
    """Return what a word stands for; else raise ValueError."""
    if item not in known:
        raise ValueError(f"{item!r} is none of {', '.join(filter(None, [*known, more]))}")
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
    if entry.is_ca and not (
        constraints[1] and signs and "subjectKeyIdentifier" in entry.extensions
    ):
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
            phrase = os.fsencode(ask(variable, new) if phrase is None else phrase)
            if not 0 < len(phrase) < 1024:  # OpenSSL's PEM_BUFSIZE
                raise Fault(f"{variable}: a pass phrase must have 1 to 1023 bytes")
            self.known[variable] = phrase
        return self.known[variable]


def ask(variable: str, new: bool) -> str:
    """Read a pass phrase from the terminal, without echo. Raises Fault."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR))
    except OSError:
        raise Fault(f"{variable} is not set, and there is no terminal to ask at") from None
    for _ in range(2):
        try:
            phrase = getpass.getpass(f"Enter pass phrase ({variable}): ")
            if not new or phrase == getpass.getpass(f"Verifying - enter it again ({variable}): "):
                return phrase
        except EOFError:
            raise Fault(f"{variable}: no pass phrase was entered") from None
        print("The two differ.", file=sys.stderr)
    raise Fault(f"{variable}: the two pass phrases differed twice")


def complain(kind: str, problem: object) -> None:
    """Print an error or a warning as one line on standard error."""
    if isinstance(problem, OSError):
        problem = f"{problem.filename}: {problem.strerror}"
    print(f"{SCRIPT}: {kind}: {problem}", file=sys.stderr, flush=True)


def pem(objects: Iterable[Any]) -> bytes:
    """Return certificates, requests or lists, one after the other."""
    return b"".join(each.public_bytes(PEM) for each in objects)


def read(path: str) -> bytes:
    """Return a file's content, up to far more than anything here needs."""
    with open(path, "rb") as file:
        return file.read(1 << 26)


def read_pem(path: str, load: Callable[[bytes], Any]) -> Any:
    """Return what a PEM file holds. Raises Fault, OSError."""
    try:
        return load(read(path))
    except (ValueError, UnsupportedAlgorithm):
        raise Fault(f"{path}: is damaged, or not what its name says") from None


def write_new(path: str, data: bytes) -> None:
    """Write a file that was not there; a key is its owner's only, from the first moment on."""
    mode = 0o600 if path.endswith("key.pem") else 0o644
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None  # ENOSPC comes without a name


def write(folder: str, files: dict[str, bytes], holds: set[str]) -> None:
    """Write what is new or differs: an empty folder whole, else each file whole, or not at all."""
    if not holds:
        part = os.path.join(os.path.dirname(folder), f".{os.path.basename(folder)}.part")
        os.mkdir(part, 0o700)
        for name, data in files.items():
            write_new(os.path.join(part, name), data)
        os.rename(part, folder)  # over nothing or an empty folder; a link in its place is an error
        return
    for name, data in files.items():
        path = os.path.join(folder, name)
        if name not in holds or read(path) != data:
            part = os.path.join(folder, f".{name}.part")
            write_new(part, data)
            os.rename(part, path)


def held(folder: str) -> set[str]:
    """Return the names of what a folder holds, cleared of what a killed run left there."""
    names = set(os.listdir(folder)) if os.path.lexists(folder) else set()
    for name in [name for name in names if re.fullmatch("[.].+[.]part", name)]:
        path = os.path.join(folder, name)
        remove = shutil.rmtree if os.path.isdir(path) and not os.path.islink(path) else os.unlink
        remove(path)
        names.remove(name)
    return names


def locked(keys: str) -> int:
    """Return a descriptor that holds the keys folder's lock, which dies with the process."""
    os.makedirs(keys, 0o700, exist_ok=True)
    lock = os.open(keys, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{SCRIPT}: waiting for another run on {keys}", file=sys.stderr, flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


# --- Keys, certificates and revocation lists ------------------------------------------------------


def key_type(path: str, key: Any) -> str:
    """Return a public key's type as the configuration spells it. Raises Fault for a weak one."""
    name = type(key).__name__.removesuffix("PublicKey").lower().replace("mldsa", "ml-dsa-")
    if isinstance(key, rsa.RSAPublicKey):
        name = f"rsa:{key.key_size}"
    elif isinstance(key, ec.EllipticCurvePublicKey):
        name = f"ec:{key.curve.name.replace('secp256r1', 'prime256v1')}"
    if name not in KEY_TYPES and not (isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048):
        raise Fault(f"{path}: a key of type {name} is too weak, or can't be used here")
    return name


def generate(name: str) -> PrivateKey:
    """Return a new private key of a type that the configuration names."""
    if name.startswith("rsa:"):
        return rsa.generate_private_key(public_exponent=65537, key_size=int(name[4:]))
    return KEY_TYPES[name]()


def digest(entry: Entry, key: PrivateKey) -> hashes.HashAlgorithm | None:
    """Return what a key signs with; it may be of another type than its entry says."""
    without = key_type(entry.name, key.public_key()).startswith(WITHOUT_DIGEST)
    return None if without else entry.digest


def key_identifier(certificate: x509.Certificate) -> x509.SubjectKeyIdentifier:
    """Return a CA's subjectKeyIdentifier, which strict verification has found to be there."""
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value


def profile(
    entry: Entry, key: PublicKey, issuer: x509.Certificate | None
) -> Iterator[tuple[x509.ExtensionType, bool]]:
    """Yield the extensions and whether they are critical (RFC 5280, section 4.2)."""
    own = x509.SubjectKeyIdentifier.from_public_key(key)
    for name, (value, critical) in entry.extensions.items():
        if name == "subjectKeyIdentifier":
            yield own, critical
        elif name == "authorityKeyIdentifier":
            above = key_identifier(issuer) if issuer else own
            from_issuer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier
            yield from_issuer(above), critical
        elif value is not None:
            yield value, critical


def certify(
    entry: Entry, key: PublicKey, issuer: Authority | None, signer: PrivateKey
) -> x509.Certificate:
    """Return a new certificate for a public key, ending with its issuer at the latest."""
    above = issuer.certificate if issuer else None
    ends = min(entry.not_after, above.not_valid_after_utc) if above else entry.not_after
    builder = x509.CertificateBuilder()
    builder = builder.issuer_name(above.subject if above else entry.subject)
    builder = builder.subject_name(entry.subject).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())  # 159 random bits
    builder = builder.not_valid_before(entry.not_before).not_valid_after(ends)
    for value, critical in profile(entry, key, above):
        builder = builder.add_extension(value, critical)
    return builder.sign(signer, digest(issuer.entry if issuer else entry, signer))


def differences(
    entry: Entry, path: str, certificate: x509.Certificate, issuer: x509.Certificate | None
) -> list[str]:
    """Return in what a certificate says something else than the configuration. Raises Fault."""
    key: Any = certificate.public_key()
    differs = ["subject"] * (certificate.subject != entry.subject)
    differs += ["key type"] * (key_type(path, key) != entry.key)
    found = {
        (each.oid, each.critical, each.value.public_bytes()) for each in certificate.extensions
    }
    wanted = {(v.oid, critical, v.public_bytes()) for v, critical in profile(entry, key, issuer)}
    names = {v.oid: name for name, (v, _) in entry.extensions.items() if v is not None}
    oids = {oid for oid, _, _ in found ^ wanted}
    return differs + sorted(names.get(oid, f"extension {oid.dotted_string}") for oid in oids)


def next_list(
    entry: Entry, ca: x509.Certificate, key: PrivateKey, old: x509.CertificateRevocationList | None
) -> x509.CertificateRevocationList:
    """Return a CA's next revocation list, with all entries of the old one (RFC 5280, section 5)."""
    identifier = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_identifier(ca))
    begins = max(ca.not_valid_before_utc, NOW - timedelta(days=1))  # for clocks that are behind
    ends = min(entry.next_update or ca.not_valid_after_utc, ca.not_valid_after_utc)
    builder = x509.CertificateRevocationListBuilder().issuer_name(ca.subject)
    builder = builder.last_update(begins).next_update(ends)
    builder = builder.add_extension(x509.CRLNumber(list_number(old) + 1), critical=False)
    builder = builder.add_extension(identifier, critical=False)
    for revoked in () if old is None else old:
        builder = builder.add_revoked_certificate(revoked)
    return builder.sign(key, digest(entry, key))


def list_number(revocation_list: x509.CertificateRevocationList | None) -> int:
    """Return a list's number (RFC 5280, section 5.2.3); 0 where there is none."""
    if revocation_list is None:
        return 0
    try:
        return revocation_list.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0


def is_list_of(ca: x509.Certificate, revocation_list: x509.CertificateRevocationList) -> bool:
    """Tell whether a CA signed a list."""
    key: Any = ca.public_key()
    return revocation_list.issuer == ca.subject and revocation_list.is_signature_valid(key)


def last_third(begins: datetime, ends: datetime) -> bool:
    """Tell whether the last third of a life has begun."""
    return NOW >= ends - (ends - begins) / 3


def cross_certificate(folder: str, ca: x509.Certificate) -> bytes:
    """Return a higher CA's certificate for the trust anchor's own name and key. Raises Fault."""
    path = os.path.join(folder, "cross.pem")
    cross: x509.Certificate = read_pem(path, x509.load_pem_x509_certificate)
    if (cross.subject, cross.public_key()) != (ca.subject, ca.public_key()) or cross == ca:
        raise Fault(f"{path}: is no higher CA's certificate for the name and the key of {folder}")
    return pem([cross])


@dataclass(frozen=True)
class Authority:
    """A CA that stands verified: all that its children need of it."""

    entry: Entry
    folder: str
    certificate: x509.Certificate
    key: PrivateKey | None  # None: not at hand
    chain: list[x509.Certificate]  # itself, then its issuers; the trust anchor is the last
    lists: list[x509.CertificateRevocationList]  # its own, then its issuers'; none if one lacks
    cross: bytes  # the trust anchor's cross.pem
    recorded: set[str]  # what its issued/ holds

    @cached_property
    def store(self) -> crypto.X509Store:
        """The trust anchor, the lists of all CAs down to this one, and OpenSSL's strict mode."""
        store = crypto.X509Store()
        store.add_cert(crypto.X509.from_cryptography(self.chain[-1]))
        store.set_flags(crypto.X509StoreFlags.X509_STRICT)
        for revocation_list in self.lists:
            store.add_crl(revocation_list)
            check_all = crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL
            store.set_flags(check_all)
        return store

    def verify(self, path: str, certificate: x509.Certificate) -> None:
        """Have OpenSSL verify a certificate up to the trust anchor. Raises Fault."""
        algorithm = certificate.signature_hash_algorithm
        if algorithm is not None and algorithm.name in ("md5", "sha1"):
            raise Fault(f"{path}: is signed with {algorithm.name}, which can be forged")
        between = [crypto.X509.from_cryptography(ca) for ca in self.chain[:-1]]
        leaf = crypto.X509.from_cryptography(certificate)
        try:
            crypto.X509StoreContext(self.store, leaf, between).verify_certificate()
        except crypto.X509StoreContextError as error:
            culprit = error.certificate.to_cryptography()
            whose = "" if culprit == certificate else f" ({culprit.subject.rfc4514_string()})"
            advice = f"rm -r {os.path.dirname(path)} and a new run make it anew"
            raise Fault(f"{path}: {error}{whose}; {advice}") from None

    def record(self, name: str, certificate: x509.Certificate) -> None:
        """Put a certificate that this CA signed on record, before it goes anywhere else."""
        file = f"{name}-{certificate.serial_number:X}.pem"
        if file not in self.recorded:
            write(os.path.join(self.folder, "issued"), {file: pem([certificate])}, self.recorded)
            self.recorded.add(file)


# --- The walk -------------------------------------------------------------------------------------


class Walk:
    """One run over a keys folder, from the roots to the nodes."""

    def __init__(self, keys: str, entries: dict[str, Entry]) -> None:
        self.keys = keys
        self.entries = entries
        self.phrases = PassPhrases()
        self.authorities: dict[str, Authority] = {}
        self.children: dict[str | None, list[str]] = {}
        for entry in entries.values():
            self.children.setdefault(entry.issuer, []).append(entry.name)

    def run(self, quiet: bool) -> int:
        """Visit every entry, the issuers first; return the exit status. Raises Fault, OSError."""
        for (
            entry
        ) in self.entries.values():  # ask before anything is written, not in the midst of it
            if entry.passphrase and not os.path.lexists(os.path.join(self.keys, entry.name)):
                self.phrases.get(entry.passphrase, new=True)
        lock = locked(self.keys)
        held(self.keys)
        depths: dict[str | None, int] = {None: -1}
        failed: dict[str | None, str] = {}  # by name: which entry's failure it hangs under
        for count, (name, entry) in enumerate(self.entries.items(), 1):
            depths[name] = depths[entry.issuer] + 1
            if entry.issuer in failed:
                failed[name] = failed[entry.issuer]
                continue
            try:
                state, certificate = self.visit(entry)
            except (Fault, OSError) as error:
                complain("error", error)
                failed[name] = name
                continue
            if not quiet:
                total = len(self.entries)
                progress = f"[{count:{len(str(total))}}/{total}] " if total > 9 else ""
                print(progress + self.line(entry, depths[name], state, certificate), flush=True)
        for name, number in Counter(failed.values()).items():
            if number > 1:
                complain(
                    "error", f"{self.keys}: left alone: {number - 1} below {name}, which failed"
                )
        os.sync()
        os.close(lock)
        return 1 if failed else 0

    def line(self, entry: Entry, depth: int, state: str, certificate: x509.Certificate) -> str:
        """Return what a person reads of an entry, indented as in the tree."""
        name = "  " * depth + entry.name
        key = key_type(name, certificate.public_key())
        ends = certificate.not_valid_after_utc
        issuer = self.authorities[entry.issuer].certificate if entry.issuer else certificate
        short = ends < entry.not_after and ends == issuer.not_valid_after_utc
        note = f", with {entry.issuer}" if entry.issuer and short else ""
        return (
            f"{name:16}  {state}  {key:13}  by {entry.issuer or 'itself':10}  until {ends:%F}{note}"
        )

    def visit(self, entry: Entry) -> tuple[str, x509.Certificate]:
        """Keep or make one entry, verify it, and write what is new. Raises Fault, OSError."""
        issuer = self.authorities[entry.issuer] if entry.issuer else None
        folder = os.path.join(self.keys, entry.name)
        path = os.path.join(folder, "cert.pem")
        holds = held(folder)
        files: dict[str, bytes] = {}
        key = self.key(entry, folder, holds)
        if "cert.pem" in holds:
            certificate: x509.Certificate = read_pem(path, x509.load_pem_x509_certificate)
        else:
            if not holds:
                key = generate(entry.key)
                files["key.pem"] = self.encrypted(entry, key)
            certificate = self.certified(entry, issuer, folder, holds, key, files)
            files["cert.pem"] = pem([certificate])
        self.compare(entry, issuer, folder, holds, key, certificate)

        chain = [certificate, *(issuer.chain if issuer else [])]
        lists = issuer.lists if issuer else []
        cross = issuer.cross if issuer else b""
        if entry.is_ca:
            own = self.own_list(entry, folder, holds, key, certificate)
            lists = [own, *lists] if own is not None and (lists or not issuer) else []
            files |= {} if own is None else {"crl.pem": pem([own])}
            cross = cross_certificate(folder, certificate) if "cross.pem" in holds else cross
            recorded = held(os.path.join(folder, "issued"))
            authority = Authority(entry, folder, certificate, key, chain, lists, cross, recorded)
        elif lists:
            files["crl.pem"] = pem(lists)
        (issuer or authority).verify(path, certificate)

        files["fullchain.pem"] = pem(chain[:-1] or chain) + cross
        files["ca.pem"] = pem(chain[-1:])
        if issuer:
            issuer.record(entry.name, certificate)
        write(folder, files, holds)
        if entry.is_ca:
            self.authorities[entry.name] = authority
        return "kept" if "cert.pem" in holds else "made", certificate

    def key(self, entry: Entry, folder: str, holds: set[str]) -> PrivateKey | None:
        """Return the folder's key, unless it would take a pass phrase that nothing needs."""
        path = os.path.join(folder, "key.pem")
        if not os.path.exists(path):  # a link to a stick that is not plugged in, for one
            return None
        if os.stat(path).st_mode & 0o077:
            complain("warning", f"{path}: others than its owner may read it: chmod 600 {path}")
        children = self.children.get(entry.name, ())
        needed = (
            not holds & {"cert.pem", "csr.pem"}
            or (entry.is_ca and "crl.pem" not in holds)
            or not all(os.path.exists(f"{self.keys}/{child}/cert.pem") for child in children)
        )
        data = read(path)
        try:
            try:
                key = serialization.load_pem_private_key(data, None)
                if entry.passphrase:
                    complain("warning", f"{path}: is not encrypted, though its entry has a cipher")
            except TypeError:  # it is encrypted
                variable = entry.passphrase
                if variable is None or not (needed or self.phrases.at_hand(variable)):
                    return None
                key = serialization.load_pem_private_key(data, self.phrases.get(variable))
        except (ValueError, UnsupportedAlgorithm):
            raise Fault(f"{path}: the pass phrase is wrong, or the file is damaged") from None
        key_type(path, key.public_key())
        return cast(PrivateKey, key)

    def encrypted(self, entry: Entry, key: PrivateKey) -> bytes:
        """Return a key as PKCS#8: PBES2 with AES-256-CBC, if its entry has a cipher."""
        how: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if entry.passphrase:
            phrase = self.phrases.get(entry.passphrase, new=True)
            how = serialization.BestAvailableEncryption(phrase)
        return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, how)

    def certified(
        self,
        entry: Entry,
        issuer: Authority | None,
        folder: str,
        holds: set[str],
        key: PrivateKey | None,
        files: dict[str, bytes],
    ) -> x509.Certificate:
        """Return a certificate for the folder's key or request. Raises Fault, OSError."""
        path = os.path.join(folder, "csr.pem")
        if "csr.pem" in holds:
            request: x509.CertificateSigningRequest = read_pem(path, x509.load_pem_x509_csr)
            if not request.is_signature_valid:
                raise Fault(
                    f"{path}: its signature is wrong: whoever made it does not have the key"
                )
            public: Any = request.public_key()
            key_type(path, public)
        elif key is None:
            raise Fault(
                f"{folder}: has no key.pem, csr.pem or cert.pem; rm -r {folder} to begin anew"
            )
        else:
            public = key.public_key()
        signer = issuer.key if issuer else key
        if signer is not None:
            return certify(entry, public, issuer, signer)
        if issuer is None:
            raise Fault(f"{folder}: is self-signed, and its key.pem is missing")
        if key is not None and "csr.pem" not in holds:
            builder = x509.CertificateSigningRequestBuilder().subject_name(entry.subject)
            files["csr.pem"] = pem([builder.sign(key, digest(entry, key))])
            write(folder, files, holds)
        raise Fault(
            f"{path}: take it to where {entry.issuer}'s key is, "
            f"put the certificate beside it as cert.pem, and run again"
        )

    def compare(
        self,
        entry: Entry,
        issuer: Authority | None,
        folder: str,
        holds: set[str],
        key: PrivateKey | None,
        certificate: x509.Certificate,
    ) -> None:
        """Compare a certificate with key, request and configuration. Raises Fault, OSError."""
        path = os.path.join(folder, "cert.pem")
        if key is not None and key.public_key() != certificate.public_key():
            raise Fault(f"{path}: is not for the key in {folder}/key.pem: put back the one that is")
        if "csr.pem" in holds:
            request = read_pem(f"{folder}/csr.pem", x509.load_pem_x509_csr)
            if request.public_key() != certificate.public_key():
                raise Fault(f"{path}: is not for the key of {folder}/csr.pem: one must go")
        differs = differences(entry, path, certificate, issuer.certificate if issuer else None)
        if differs:
            what = ", ".join(differs)
            complain("warning", f"{path}: differs from the configuration in {what}; kept as it is")
        ends = certificate.not_valid_after_utc
        if (
            "cert.pem" in holds
            and last_third(certificate.not_valid_before_utc, ends)
            and NOW < ends
        ):
            complain("warning", f"{path}: in the last third of its life, which ends on {ends:%F}")

    def own_list(
        self,
        entry: Entry,
        folder: str,
        holds: set[str],
        key: PrivateKey | None,
        certificate: x509.Certificate,
    ) -> x509.CertificateRevocationList | None:
        """Keep, refresh, restore or begin a CA's list. Raises Fault, OSError."""
        path = os.path.join(folder, "crl.pem")
        if "crl.pem" in holds:
            own = read_pem(path, x509.load_pem_x509_crl)
            if not is_list_of(certificate, own):
                raise Fault(f"{path}: is not signed by {folder}: put back the one that is")
        else:
            own = self.newest_copy(certificate)
        if own is None and (key is None or "issued" in holds):
            if "issued" in holds:
                raise Fault(
                    f"{path}: is lost, and no node has a copy: put back the newest there is"
                )
            complain("warning", f"{path}: missing: nobody can tell what {entry.name} has revoked")
            return None
        if key is not None and (
            own is None or last_third(own.last_update_utc, own.next_update_utc)
        ):
            return next_list(entry, certificate, key, own)
        if own is not None and NOW >= own.next_update_utc:
            raise Fault(f"{path}: has expired, and its key is not at hand to make the next one")
        return own

    def newest_copy(self, ca: x509.Certificate) -> x509.CertificateRevocationList | None:
        """Return a CA's list with the highest number from the copies in all folders."""
        copies = []
        for name in self.entries:
            path = os.path.join(self.keys, name, "crl.pem")
            if os.path.exists(path):
                blocks = re.findall(b"-----BEGIN X509 CRL-.*?-END X509 CRL-----", read(path), re.S)
                copies += [read_pem_bytes for read_pem_bytes in blocks]
        lists = [x509.load_pem_x509_crl(block) for block in copies]
        return max((each for each in lists if is_list_of(ca, each)), key=list_number, default=None)


def main() -> int:
    """Read the command line and walk; return the exit status."""
    parser = argparse.ArgumentParser(prog=SCRIPT, description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("-c", "--config", default="sros_config.yml", help="the hierarchy (default: %(default)s)")
    add("-k", "--keys", default="keys", help="the folder of PEM files (default: %(default)s)")
    add("-q", "--quiet", action="store_true", help="print errors and warnings only")
    arguments = parser.parse_args()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader such as head may leave early
    os.umask(0o022)  # the modes are chosen file by file
    try:
        entries = read_configuration(arguments.config)
        return Walk(arguments.keys, entries).run(arguments.quiet)
    except KeyboardInterrupt:
        return 130
    except (Fault, OSError) as error:
        complain("error", error)
        return 2 if isinstance(error, ConfigurationError) else 1


if __name__ == "__main__":
    sys.exit(main())
