#!/usr/bin/env python3
"""Make a certificate authority hierarchy, as sros_config.yml defines it, as a folder of PEM files.

One rule: walk it from the top; keep what is there; make what is missing; verify everything.
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
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, cast

import yaml
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa, rsa, types
from OpenSSL import crypto

PrivateKey = types.CertificateIssuerPrivateKeyTypes
X509_STRICT = crypto.X509StoreFlags.X509_STRICT | crypto.X509StoreFlags.CHECK_SS_SIGNATURE
CRL_CHECK = crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL
RevocationList = x509.CertificateRevocationList
PEM = serialization.Encoding.PEM

SCRIPT = "simple_key_generation.py"
NOW = datetime.now(timezone.utc).replace(microsecond=0)

KEY_TYPES: dict[str, Callable[[], PrivateKey]] = {
    **{f"rsa:{n}": partial(rsa.generate_private_key, 65537, n) for n in range(2048, 8193, 8)},
    "ec:prime256v1": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ec:secp384r1": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ec:secp521r1": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ed448": ed448.Ed448PrivateKey.generate,
    **{f"ml-dsa-{n}": getattr(mldsa, f"MLDSA{n}PrivateKey").generate for n in (44, 65, 87)},
}
WITHOUT_DIGEST = ("ed25519", "ed448", "ml-dsa-")  # the key types that hash by themselves
NAME = "[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}"  # a name is a folder
TIME = "[+-]?[0-9]{1,5}[hdwy]|[0-9]{4}-[0-9]{2}-[0-9]{2}([Tt ].+)?"
FORMS = {  # of an entry's fields, as regular expressions, with the bounds of RFC 5280, appendix A.1
    "issuer": NAME,
    "key": "ec:(prime256v1|secp384r1|secp521r1)|rsa:[0-9]+|ed25519|ed448|ml-dsa-(44|65|87)",
    "digest": "sha256|sha384|sha512",
    "cipher": "aes-256-cbc",
    "passphrase": "[A-Za-z_][A-Za-z0-9_]*",
    **dict.fromkeys(["validity.notBefore", "validity.notAfter", "validity.nextUpdate"], TIME),
    "subject.countryName": "[A-Z]{2}",
    **dict.fromkeys(["subject.stateOrProvinceName", "subject.localityName"], ".{1,128}"),
    **dict.fromkeys(["subject.organizationName", "subject.organizationalUnitName"], ".{1,64}"),
    "subject.commonName": ".{1,64}",
    "subject.serialNumber": "[A-Za-z0-9 '()+,./:=?-]{1,64}",
    "subject.domainComponent": "[A-Za-z0-9-]{1,63}",
    "subject.emailAddress": "[!-?A-~]{1,64}@[A-Za-z0-9.-]{1,190}",
}
KEY_USAGES = [  # in the order of their bits
    *("digitalSignature", "nonRepudiation", "keyEncipherment", "dataEncipherment"),
    *("keyAgreement", "keyCertSign", "cRLSign", "encipherOnly", "decipherOnly"),
]
EXTENDED_KEY_USAGES = {
    **{"serverAuth": "1.3.6.1.5.5.7.3.1", "clientAuth": "1.3.6.1.5.5.7.3.2"},
    **{"codeSigning": "1.3.6.1.5.5.7.3.3", "emailProtection": "1.3.6.1.5.5.7.3.4"},
    **{"timeStamping": "1.3.6.1.5.5.7.3.8", "OCSPSigning": "1.3.6.1.5.5.7.3.9"},
}
NEVER_CRITICAL = ".*KeyIdentifier|authorityInfoAccess|(?!2.5.29.(33|36|54)$)[0-9.]+"
KNOWN_OIDS = {"1.3.6.1.5.5.7.1.1", *(f"2.5.29.{n}" for n in (14, 15, 17, 19, 30, 31, 32, 35, 37))}
ACCESS_METHODS = {"OCSP": "1.3.6.1.5.5.7.48.1", "caIssuers": "1.3.6.1.5.5.7.48.2"}


class Fault(Exception):
    """What is wrong, where, and what to do, in one line: exit status 1."""


class ConfigurationError(Fault):
    """A fault of the configuration or the command line: exit status 2, and nothing is written."""


@dataclass(frozen=True)
class Entry:
    """What the configuration says of one folder. Times are UTC."""

    name: str
    where: str  # its place in the file, such as sros_config.yml: keys.nodes.server
    is_ca: bool
    issuer: str | None  # None: self-signed
    passphrase: str | None  # the environment variable; None: the key is not encrypted
    fields: dict[str, str]  # as they stand, by path, such as subject.commonName
    subject: x509.Name
    times: dict[str, datetime]  # notBefore, notAfter, nextUpdate
    extensions: dict[str, tuple[x509.ExtensionType | None, bool]]  # field: value, critical


class Loader(yaml.CSafeLoader):
    """PyYAML's loader, less two things that it lets pass: fields twice, and recursive aliases."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.deep_construct = True  # makes PyYAML refuse recursive aliases
        self.checked: set[yaml.Node] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Look at each mapping once, before its merges are resolved."""
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if node not in self.checked and len(set(names)) < len(names):
            name = Counter(names).most_common(1)[0][0]
            raise yaml.MarkedYAMLError(None, None, f"{name!r} stands twice", node.start_mark)
        self.checked.add(node)
        for place, (key, value) in reversed([*enumerate(node.value)]):
            if key.value == "<<" and value is node:
                raise yaml.MarkedYAMLError(None, None, "an anchor merges itself", node.start_mark)
            if key.value == "<<" and isinstance(value, yaml.SequenceNode):  # the first one wins
                node.value[place : place + 1] = [(key, each) for each in reversed(value.value)]
        super().flatten_mapping(node)


@contextmanager
def at(place: str) -> Iterator[None]:
    """Put the place in the configuration before what a ValueError says."""
    try:
        yield
    except (ValueError, OverflowError) as error:
        raise ConfigurationError(f"{place}: {error}") from None


def read_configuration(path: str) -> dict[str, Entry]:
    """Return all entries in walking order; else raise ConfigurationError with the place."""
    try:
        with open(path, "rb") as file:
            yaml.add_constructor("tag:yaml.org,2002:timestamp", Loader.construct_yaml_str, Loader)
            document = yaml.load(file, Loader)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: {' '.join(str(error).split())}") from None
    with at(path):
        if not isinstance(document, dict) or not isinstance(document.get("keys") or None, dict):
            raise ValueError("must be a mapping with the field keys, a mapping of entries")
        if unknown := [x for x in document if x != "keys" and not str(x).startswith("x-")]:
            raise ValueError(f"unknown field {unknown[0]!r}; there is keys, and x-… for anchors")
    nodes = document["keys"].pop("nodes", None) or {}
    with at(f"{path}: keys.nodes"):
        if not isinstance(nodes, dict):
            raise ValueError("must be a mapping of entries")
        if both := nodes.keys() & document["keys"].keys():
            raise ValueError(f"{min(both)} stands under keys, too, and would be the same folder")
    entries = {
        name: read_entry(f"{path}: {place}.{name}", name, value, place == "keys")
        for place, group in (("keys", document["keys"]), ("keys.nodes", nodes))
        for name, value in group.items()
    }
    return in_walking_order(entries)


def read_text(value: Any, name: str, form: str = ".+") -> str:
    """Return a text value, with the entry's name in place of ``$name``; else raise ValueError."""
    if not isinstance(value, str):
        raise ValueError("YAML reads no text here (NO is false, 0123 is octal): put it in quotes")
    try:
        content = string.Template(value).substitute(name=name) if "$" in value else value
    except (KeyError, ValueError):
        raise ValueError("only $name is known; $$ is the sign itself") from None
    if not re.fullmatch(form, content) or not content.isprintable():
        raise ValueError(f"is not of the form {form}")
    return content


def read_entry(where: str, name: Any, value: Any, is_ca: bool) -> Entry:
    """Return one entry; else raise ConfigurationError with its place."""
    with at(where):
        read_text(name, "", NAME)
        if not isinstance(value, dict):
            raise ValueError("must be a mapping of fields to their values")
    texts: dict[str, str] = {}  # by path, such as subject.commonName
    subject: list[x509.NameAttribute[str | bytes]] = []
    times = {"notBefore": NOW}
    extensions = {}
    for group, part in value.items():
        for field, item in part.items() if isinstance(part, dict) else [("", part)]:
            path = f"{group}.{field}".rstrip(".")
            with at(f"{where}.{path}: {item!r}"):
                known = path in FORMS or group == "extensions"
                if not known and not (item is None and path in ("subject", "validity")):
                    raise ValueError(f"unknown field; there are {', '.join(FORMS)}, extensions")
                if item is None:  # un-set
                    continue
                content = texts[group] = texts[path] = read_text(item, name, FORMS.get(path, ".+"))
                if group == "subject":
                    oid = getattr(x509.NameOID, re.sub("([A-Z])", r"_\1", field).upper())
                    subject.append(x509.NameAttribute(oid, content))
                elif group == "validity":
                    times[field] = read_time(field, content)
                elif group == "extensions":
                    extensions[str(field)] = read_extension(str(field), content, is_ca)
    required = ["key", "subject", "validity.notAfter", *([] if is_ca else ["issuer"])]
    required += [f"extensions.{x}" for x in ("basicConstraints", "keyUsage", "subjectKeyIdentifier") if is_ca]
    required += ["extensions.authorityKeyIdentifier"] * ("issuer" in texts)
    required += ["passphrase"] * ("cipher" in texts)
    if missing := [path for path in required if path not in texts]:
        raise ConfigurationError(f"{where}.{missing[0]}: is missing")
    if texts["key"] not in KEY_TYPES:
        raise ConfigurationError(f"{where}.key: {texts['key']} is not of 2048 to 8192 bits, by 8")
    if "digest" in texts and texts["key"].startswith(WITHOUT_DIGEST):
        raise ConfigurationError(f"{where}.digest: {texts['key']} signs without: un-set it with ~")
    if "nextUpdate" in times and not is_ca:
        raise ConfigurationError(f"{where}.validity.nextUpdate: only a CA has a revocation list")
    variable = texts["passphrase"] if "cipher" in texts else None
    return Entry(
        name, where, is_ca, texts.get("issuer"), variable, texts, x509.Name(subject), times, extensions
    )


def read_time(field: str, value: str) -> datetime:
    """Return a timestamp, or an offset from now (a year has 365 days); else raise ValueError."""
    offset = re.fullmatch("([+-]?[0-9]+)([hdwy])", value)
    if offset:
        hours = {"h": 1, "d": 24, "w": 7 * 24, "y": 365 * 24}[offset[2]]
        moment = NOW + timedelta(hours=int(offset[1]) * hours)
    else:
        moment = datetime.fromisoformat(value.replace("Z", "+00:00"))
        moment = moment.replace(tzinfo=moment.tzinfo or timezone.utc).astimezone(timezone.utc)
    if moment.year < 1950 or (moment <= NOW) != (field == "notBefore"):
        raise ValueError("is in the wrong part of time: notBefore <= now < all others")
    return moment.replace(microsecond=0)


def in_walking_order(entries: dict[str, Entry]) -> dict[str, Entry]:
    """Return the entries depth first from the roots; raise ConfigurationError for what can't be."""
    positions = {name: position for position, name in enumerate(entries)}
    paths = {}
    for name, entry in entries.items():
        path = [name]
        with at(f"{entry.where}.issuer"):
            while (issuer := entries[path[0]].issuer) is not None:
                if issuer not in entries or not entries[issuer].is_ca:
                    raise ValueError(f"there is no CA {issuer!r} under keys")
                if issuer in path:
                    raise ValueError("leads round in a circle, to no self-signed CA")
                limit = getattr(entries[issuer].extensions["basicConstraints"][0], "path_length", None)
                if limit is not None and len(path) - (not entry.is_ca) > limit:
                    raise ValueError(f"more CAs in a row than {issuer}'s pathlen:{limit} admits")
                path.insert(0, issuer)
        paths[name] = [positions[each] for each in path]
    return {name: entries[name] for name in sorted(entries, key=paths.__getitem__)}


@cache  # the entries of a fleet have most of their values in common
def read_extension(name: str, value: str, is_ca: bool) -> tuple[x509.ExtensionType | None, bool]:
    """Read a value as OpenSSL's x509v3_config(5) writes it; else raise ValueError.

    Return it, or None if it follows from a key, and whether it is critical (RFC 5280, 4.2).
    """
    items = [item.strip() for item in value.split(",")]
    critical = items[0] == "critical"
    items = items[critical:]
    if not items or not all(items) or len(set(items)) < len(items):
        raise ValueError("has an empty part, or one that stands twice")
    if critical and re.fullmatch(NEVER_CRITICAL, name):
        raise ValueError("must not be critical (RFC 5280), or OpenSSL would refuse it")
    extension: x509.ExtensionType | None = None
    match name:
        case "basicConstraints":
            wanted = "CA:TRUE(?:,pathlen:([0-9]{1,4}))?" if is_ca else "CA:FALSE()"
            form = re.fullmatch(wanted, ",".join(items))
            if not form or is_ca > critical:
                raise ValueError("must be CA:FALSE, for a CA like critical, CA:TRUE, pathlen:0")
            extension = x509.BasicConstraints(is_ca, int(form[1]) if form[1] else None)
        case "keyUsage":
            extension = x509.KeyUsage(*(usage in items for usage in KEY_USAGES))
            if not set(items) <= set(KEY_USAGES):
                raise ValueError(f"must be some of {', '.join(KEY_USAGES)}")
            if not is_ca == extension.key_cert_sign == extension.crl_sign:
                raise ValueError("keyCertSign and cRLSign are for every CA, and for no node")
        case "extendedKeyUsage":
            extension = x509.ExtendedKeyUsage([read_oid(item, EXTENDED_KEY_USAGES) for item in items])
        case "subjectKeyIdentifier" | "authorityKeyIdentifier":
            forms = ["hash"] if name.startswith("s") else ["keyid", "keyid:always"]
            if len(items) > 1 or items[0] not in forms:
                raise ValueError(f"must be {forms[0]}")
        case "subjectAltName":
            extension = x509.SubjectAlternativeName([read_name(item) for item in items])
        case "nameConstraints":
            trees: dict[str, list[x509.GeneralName]] = {"permitted": [], "excluded": []}
            for kind, _, tree in (item.partition(";") for item in items):
                if kind not in trees or not is_ca:
                    raise ValueError("must be like permitted;DNS:.example, excluded;…, for a CA")
                trees[kind].append(read_name(tree, constraint=True))
            extension = x509.NameConstraints(trees["permitted"] or None, trees["excluded"] or None)
        case "certificatePolicies":
            extension = x509.CertificatePolicies(x509.PolicyInformation(read_oid(x, {}), None) for x in items)
        case "crlDistributionPoints":
            points = [x509.DistributionPoint([read_name(x, "URI")], None, None, None) for x in items]
            extension = x509.CRLDistributionPoints(points)
        case "authorityInfoAccess":
            accesses = []
            for method, _, uri in (item.partition(";") for item in items):
                oid = read_oid(method, ACCESS_METHODS)
                accesses.append(x509.AccessDescription(oid, read_name(uri, only="URI")))
            extension = x509.AuthorityInformationAccess(accesses)
        case _:
            form = re.fullmatch("DER:((?:[0-9A-Fa-f]{2}[: ]?)+)", ",".join(items))
            if not form or not re.fullmatch("[0-9]+([.][0-9]+)+", name) or name in KNOWN_OIDS:
                raise ValueError("is no known field, nor another dotted OID with DER:hex")
            content = bytes.fromhex(form[1].replace(":", " "))
            extension = x509.UnrecognizedExtension(read_oid(name, {}), content)
    return extension, critical


def read_oid(item: str, names: dict[str, str]) -> x509.ObjectIdentifier:
    """Return the object identifier of a name, or a dotted one; else raise ValueError."""
    try:
        return x509.ObjectIdentifier(names.get(item, item))
    except ValueError:
        raise ValueError(f"{item!r} is none of {', '.join([*names, 'dotted OIDs'])}") from None


def read_name(item: str, only: str = "", constraint: bool = False) -> x509.GeneralName:
    """Read ``DNS:localhost`` or a subtree of names (RFC 5280, 4.2.1.6); else raise ValueError."""
    kind, _, value = item.partition(":")
    label = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
    front = "[.]?" if constraint else "(?:[*][.])?"
    host = f"(?=.{{1,253}}$)(?![0-9.]+$){front}{label}(?:[.]{label})*"
    email = f"(?:[!-?A-~]{{1,64}}@){'?' if constraint else ''}{host}"
    uri = host if constraint else "[A-Za-z][A-Za-z0-9+.-]*:[!-~]+"
    forms = {"DNS": host, "IP": "[0-9A-Fa-f:./]+", "URI": uri, "email": email}
    if kind not in forms or (only and kind != only):
        raise ValueError(f"{item!r} does not begin with {only or 'DNS:, IP:, URI: or email'}:")
    if not re.fullmatch(forms[kind], value):
        raise ValueError(f"{value!r} can't be {kind} (what is not ASCII is written as xn--…)")
    if kind == "IP":
        return x509.IPAddress(ipaddress.ip_network(value) if constraint else ipaddress.ip_address(value))
    if kind == "DNS":
        return x509.DNSName(value)
    return x509.RFC822Name(value) if kind == "email" else x509.UniformResourceIdentifier(value)


PHRASES: dict[str, bytes] = {}  # by environment variable, once they were needed


def pass_phrase(variable: str, new: bool = False) -> bytes:
    """Return a pass phrase from the environment, or ask, twice for a new key. Raises Fault."""
    if variable not in PHRASES:
        phrase = os.fsencode(os.environ[variable] if variable in os.environ else ask(variable, new))
        if not 0 < len(phrase) < 1024:  # OpenSSL's PEM_BUFSIZE
            raise Fault(f"{variable}: a pass phrase must have 1 to 1023 bytes")
        PHRASES[variable] = phrase
    return PHRASES[variable]


def ask(variable: str, new: bool) -> str:
    """Read a pass phrase from the terminal, without echo. Raises Fault."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR))
        for _ in range(2):
            phrase = getpass.getpass(f"Enter pass phrase ({variable}): ")
            if not new or phrase == getpass.getpass(f"Verifying - enter it again ({variable}): "):
                return phrase
            print("The two differ.", file=sys.stderr)
    except (OSError, EOFError):
        raise Fault(f"{variable} is not set, and no terminal answers: set it") from None
    raise Fault(f"{variable}: the two pass phrases differed twice")


def complain(kind: str, problem: object) -> None:
    """Print an error or a warning as one line on standard error."""
    if isinstance(problem, OSError):
        problem = f"{problem.filename}: {problem.strerror}"
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(problem))
    print(f"{SCRIPT}: {kind}: {line}", file=sys.stderr, flush=True)


def read_pem(path: str, load: Callable[[bytes], Any]) -> Any:
    """Return what a PEM file holds. Raises Fault, OSError."""
    try:
        loaded = load(Path(path).read_bytes())
        for each in loaded if isinstance(loaded, list) else [loaded, loaded.public_key()]:
            getattr(each, "extensions", None)  # what cryptography parses only when it is asked for
        return loaded
    except (ValueError, UnsupportedAlgorithm):
        raise Fault(f"{path}: is damaged, or not what its name says") from None


def load_lists(data: bytes) -> list[RevocationList]:
    """Return all revocation lists in a file; else raise ValueError."""
    return [x509.load_pem_x509_crl(x) for x in re.findall(b"-+BEGIN[^-]+-+[^-]+-+END[^-]+-+", data)]


def pem(*objects: Any) -> bytes:
    """Return certificates, requests or lists as PEM, one after the other."""
    return b"".join(each.public_bytes(PEM) for each in objects)


def write(folder: str, files: dict[str, bytes], holds: set[str]) -> None:
    """Write what is new or differs, each file whole; what held nothing appears whole as well."""
    place = folder if holds else f"{os.path.dirname(folder)}/.{os.path.basename(folder)}.part"
    if not holds:
        os.mkdir(place, 0o700)
    for name, data in files.items():
        path, part = f"{place}/{name}", f"{place}/.{name}.part"
        if name in holds and Path(path).read_bytes() == data:
            continue
        mode = 0o600 if name == "key.pem" else 0o644  # from the first moment on
        try:
            with open(part, "xb", opener=partial(os.open, mode=mode)) as file:
                file.write(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None  # ENOSPC has no name
        os.rename(part, path)
    if not holds:
        os.rename(place, folder)  # over nothing, or an empty folder; never over a link


def held(folder: str) -> set[str]:
    """Return the names of what a folder holds, cleared of what a killed run left there."""
    names = set(os.listdir(folder)) if os.path.lexists(folder) else set()
    for name in [name for name in names if re.fullmatch("[.].+[.]part", name)]:
        path = os.path.join(folder, name)
        is_folder = os.path.isdir(path) and not os.path.islink(path)
        shutil.rmtree(path) if is_folder else os.unlink(path)
        names.remove(name)
    return names


def key_type(path: str, key: Any) -> str:
    """Return a public key's type as the configuration spells it. Raises Fault for a weak one."""
    name = type(key).__name__.removesuffix("PublicKey").lower().replace("mldsa", "ml-dsa-")
    if isinstance(key, rsa.RSAPublicKey):
        name = f"rsa:{key.key_size}"
    elif isinstance(key, ec.EllipticCurvePublicKey):
        name = f"ec:{key.curve.name.replace('secp256r1', 'prime256v1')}"
    if name not in KEY_TYPES:
        raise Fault(f"{path}: its key, {name}, is too weak or of a type that can't be used here")
    return name


def key_identifier(ca: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """Return the authorityKeyIdentifier of what a CA signs (RFC 5280, section 4.2.1.1)."""
    subject = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject)


class Folder:
    """An entry's folder on its way to being verified; a CA's stays for those that it issues."""

    certificate: x509.Certificate
    chain: list[x509.Certificate]  # its certificate, then its issuers'; the trust anchor's is last
    lists: list[RevocationList]  # a CA's own, then its issuers'; empty if one has none
    cross: bytes  # the trust anchor's cross.pem

    def __init__(self, keys: str, entry: Entry, issuer: Folder | None) -> None:
        self.entry, self.issuer = entry, issuer
        self.above = issuer.chain if issuer else []
        self.depth: int = issuer.depth + 1 if issuer else 0
        self.path = os.path.join(keys, entry.name)
        self.holds = held(self.path)
        self.issued = held(f"{self.path}/issued")
        self.files: dict[str, bytes] = {}  # what it shall hold
        self.key: PrivateKey | None = None  # None: not at hand, or nothing needs it

    def visit(self, needs_key: bool) -> None:
        """Keep or make everything, verify it, and write what is new. Raises Fault, OSError."""
        if not self.holds:
            self.make_key()
        elif os.path.exists(f"{self.path}/key.pem"):  # no link to a stick that is elsewhere
            self.load_key(needs_key)
        path, above = f"{self.path}/cert.pem", self.issuer
        if "cert.pem" in self.holds:
            self.certificate = read_pem(path, x509.load_pem_x509_certificate)
        else:
            self.certificate = self.certify()
            self.files["cert.pem"] = pem(self.certificate)
        self.compare(path)
        self.chain = [self.certificate, *self.above]
        self.lists = above.lists if above else []
        self.cross = above.cross if above else self.read_cross()
        if self.entry.is_ca:
            own = self.own_list()
            self.files |= {} if own is None else {"crl.pem": pem(own)}
            self.lists = [] if own is None or (above and not above.lists) else [own, *self.lists]
        elif self.lists:
            self.files["crl.pem"] = pem(*self.lists)
        (above or self).verify(path, self.certificate)
        self.files["fullchain.pem"] = pem(*self.chain[:-1] or self.chain) + self.cross
        self.files["ca.pem"] = pem(self.chain[-1])
        record = f"{self.entry.name}-{self.certificate.serial_number:X}.pem"
        if above and record not in above.issued:  # before the certificate goes anywhere else
            write(f"{above.path}/issued", {record: pem(self.certificate)}, above.issued)
            above.issued.add(record)
        write(self.path, self.files, self.holds)

    def make_key(self) -> None:
        """Make a key: PKCS#8, with a cipher PBES2 and AES-256-CBC (RFC 8018). Raises Fault."""
        how: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if self.entry.passphrase:
            phrase = pass_phrase(self.entry.passphrase, new=True)
            how = serialization.BestAvailableEncryption(phrase)
        key = self.key = KEY_TYPES[self.entry.fields["key"]]()
        self.files["key.pem"] = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, how)

    def load_key(self, needed: bool) -> None:
        """Load the key, unless that takes a pass phrase that nothing needs. Raises Fault."""
        path, variable = f"{self.path}/key.pem", self.entry.passphrase
        if "csr.pem" in self.holds and "cert.pem" not in self.holds and self.issuer:
            needed = self.issuer.key is not None
        data = Path(path).read_bytes()
        encrypted = b"ENCRYPTED" in data
        if os.stat(path).st_mode & 0o077:
            complain("warning", f"{path}: not for its owner only: chmod 600 {path}")
        needed = needed or not self.holds & {"cert.pem", "csr.pem"}
        needed = needed or (self.entry.is_ca and not self.holds & {"crl.pem", "csr.pem"})
        if encrypted and not needed and not {variable} & {*os.environ, *PHRASES}:
            return
        if encrypted and not variable:
            raise Fault(f"{path}: is encrypted, and its entry has no cipher")
        phrase = pass_phrase(variable) if encrypted and variable else None
        try:
            key: Any = serialization.load_pem_private_key(data, phrase)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise Fault(f"{path}: the pass phrase is wrong, or the file is damaged") from None
        key_type(path, key.public_key())
        self.key = key

    def sign(self, builder: Any) -> Any:
        """Sign a certificate, request or list with this folder's key."""
        key: Any = self.key
        digest = getattr(hashes, self.entry.fields.get("digest", "sha256").upper())()
        without = key_type(self.path, key.public_key()).startswith(WITHOUT_DIGEST)
        return builder.sign(key, None if without else digest)

    def certify(self) -> x509.Certificate:
        """Return a certificate for the folder's request or key. Raises Fault, OSError."""
        path, signer = f"{self.path}/csr.pem", self.issuer or self
        if "csr.pem" in self.holds:
            request = read_pem(path, x509.load_pem_x509_csr)
        elif self.key is not None:
            request = self.sign(x509.CertificateSigningRequestBuilder(self.entry.subject))
        else:
            raise Fault(f"{self.path}: has no key.pem, csr.pem or cert.pem: rm -r {self.path}")
        key = request.public_key()
        key_type(path, key)
        if not request.is_signature_valid:
            raise Fault(f"{path}: its signature is wrong: its maker did not have the key")
        if signer.key is None:
            if "csr.pem" not in self.holds:
                write(self.path, {**self.files, "csr.pem": pem(request)}, self.holds)
            raise Fault(f"{path}: have {signer.path} sign it, put cert.pem beside it, and run again")
        ends = [self.entry.times["notAfter"], *(ca.not_valid_after_utc for ca in self.above)]
        issuer = self.above[0].subject if self.above else self.entry.subject
        builder = (
            x509.CertificateBuilder(issuer, self.entry.subject, key)
            .serial_number(x509.random_serial_number())  # 159 random bits
            .not_valid_before(self.entry.times["notBefore"])
            .not_valid_after(min(ends))
        )
        for value, critical in self.profile(key):
            builder = builder.add_extension(value, critical)
        return cast(x509.Certificate, signer.sign(builder))

    def profile(self, key: Any) -> Iterator[tuple[x509.ExtensionType, bool]]:
        """Yield the extensions that a certificate for a key has, and whether they are critical."""
        own = x509.SubjectKeyIdentifier.from_public_key(key)
        above = x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
        if self.issuer:
            above = key_identifier(self.issuer.certificate)
        for name, (value, critical) in self.entry.extensions.items():
            if value is None:
                value = own if name == "subjectKeyIdentifier" else above
            yield value, critical

    def compare(self, path: str) -> None:
        """Compare the certificate with key, request and configuration. Raises Fault, OSError."""
        certificate = self.certificate
        public: Any = certificate.public_key()
        if self.key is not None and self.key.public_key() != public:
            raise Fault(f"{path}: is for another key than {self.path}/key.pem")
        if "csr.pem" in self.holds:
            request = read_pem(f"{self.path}/csr.pem", x509.load_pem_x509_csr)
            if request.public_key() != public:
                raise Fault(f"{path}: is for another key than {self.path}/csr.pem")
        found = {(e.oid, e.critical, e.value.public_bytes()) for e in certificate.extensions}
        wanted = {(v.oid, critical, v.public_bytes()) for v, critical in self.profile(public)}
        differs = sorted({oid._name for oid, _, _ in found ^ wanted} - {"authorityKeyIdentifier"})
        differs += ["key type"] * (key_type(path, public) != self.entry.fields["key"])
        differs += ["subject"] * (certificate.subject != self.entry.subject)
        if what := ", ".join(differs):
            complain("warning", f"{path}: kept, but {self.entry.where} has another {what}")
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if "cert.pem" in self.holds and ends - (ends - begins) / 3 < NOW < ends:
            complain("warning", f"{path}: in the last third of its life, which ends on {ends:%F}")

    def read_cross(self) -> bytes:
        """Return the higher CA's certificate for this trust anchor, if any. Raises Fault."""
        if "cross.pem" not in self.holds:
            return b""
        path, anchor = f"{self.path}/cross.pem", self.certificate
        cross: x509.Certificate = read_pem(path, x509.load_pem_x509_certificate)
        same = (cross.subject, cross.public_key()) == (anchor.subject, anchor.public_key())
        if not same or cross.issuer == anchor.subject:
            raise Fault(f"{path}: is no higher CA's certificate for {self.path}'s name and key")
        return pem(cross)

    def own_list(self) -> RevocationList | None:
        """Keep, refresh, restore or begin a CA's list (RFC 5280, section 5). Raises Fault."""
        path, ca = f"{self.path}/crl.pem", self.certificate
        public: Any = ca.public_key()
        places = [path]
        if "crl.pem" not in self.holds:  # the nodes have copies of it
            places = [str(copy) for copy in Path(self.path).parent.glob("*/crl.pem")]
        numbered = {
            each.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number: each
            for place in places
            for each in read_pem(place, load_lists)
            if each.issuer == ca.subject and each.is_signature_valid(public)
        }
        number = max(numbered, default=0)
        own: RevocationList | None = numbered.get(number)
        if own is None and (self.issued or "crl.pem" in self.holds):
            raise Fault(f"{path}: is lost, or not this CA's own: put back the newest there is")
        last = ca.not_valid_after_utc
        if own is not None:
            ends = own.next_update_utc or last
            fresh = ends - (ends - own.last_update_utc) / 3 > NOW
            if fresh or last <= NOW or (self.key is None and ends > NOW):
                return own
            if self.key is None:
                raise Fault(f"{path}: has expired; the next one takes {self.path}/key.pem")
        if self.key is None:
            complain("warning", f"{path}: is missing: no node below can check who is revoked")
            return None
        ends = min(self.entry.times.get("nextUpdate", last), last)
        builder = (  # begins a little in the past, for clocks that are behind
            x509.CertificateRevocationListBuilder(ca.subject)
            .last_update(max(ca.not_valid_before_utc, NOW - min(timedelta(days=1), (ends - NOW) / 12)))
            .next_update(ends)
            .add_extension(x509.CRLNumber(number + 1), False)
            .add_extension(key_identifier(ca), False)
        )
        for revoked in [] if own is None else own:
            builder = builder.add_revoked_certificate(revoked)
        return cast(RevocationList, self.sign(builder))

    @cached_property
    def store(self) -> crypto.X509Store:
        """What OpenSSL verifies this CA's children by: the anchor, all lists, strict mode."""
        store = crypto.X509Store()
        store.add_cert(crypto.X509.from_cryptography(self.chain[-1]))
        for each in self.lists:
            store.add_crl(each)
        store.set_flags(X509_STRICT | (CRL_CHECK if self.lists else 0))
        return store

    def verify(self, path: str, certificate: x509.Certificate) -> None:
        """Have OpenSSL verify what this CA signed, up to the trust anchor. Raises Fault."""
        algorithm = certificate.signature_hash_algorithm
        if algorithm is not None and algorithm.name in ("md5", "sha1"):
            raise Fault(f"{path}: is signed with {algorithm.name}, which can be forged")
        between = [crypto.X509.from_cryptography(ca) for ca in self.chain[:-1]]
        try:
            crypto.X509StoreContext(
                self.store, crypto.X509.from_cryptography(certificate), between
            ).verify_certificate()
        except crypto.X509StoreContextError as error:
            whose = error.certificate.to_cryptography().subject.rfc4514_string()
            raise Fault(f"{path}: {error} ({whose}); to replace it, rm -r {os.path.dirname(path)}") from None

    def line(self) -> str:
        """Return what a person reads of it, indented as in the tree."""
        state, key = "kept" if "cert.pem" in self.holds else "made", self.certificate.public_key()
        by, ends = self.entry.issuer or "itself", self.certificate.not_valid_after_utc
        note = f", with {by}" if state == "made" and ends < self.entry.times["notAfter"] else ""
        name = "  " * self.depth + self.entry.name
        return f"{name:16}  {state}  {key_type(name, key):13}  by {by:10}  until {ends:%F}{note}"


def walk(keys: str, entries: dict[str, Entry], quiet: bool) -> int:
    """Visit every entry, the issuers first; return the exit status. Raises Fault, OSError."""
    signers = {e.issuer for e in entries.values() if not os.path.exists(f"{keys}/{e.name}/cert.pem")}
    begun: set[str | None] = {None}  # what is made from nothing
    for name, entry in entries.items():
        above_is_there = os.path.exists(f"{keys}/{entry.issuer}/cert.pem")
        if not os.path.lexists(f"{keys}/{name}") and (entry.issuer in begun or above_is_there):
            begun.add(name)
            if entry.passphrase:  # ask before anything is written, not in the midst of it
                pass_phrase(entry.passphrase, new=True)
    os.makedirs(keys, 0o700, exist_ok=True)
    lock = os.open(keys, os.O_RDONLY | os.O_DIRECTORY)  # ends with this process, however it ends
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{SCRIPT}: waiting for another run on {keys}", file=sys.stderr, flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)
    held(keys)
    authorities: dict[str | None, Folder] = {}
    failed: dict[str | None, str] = {}  # by name: the entry whose failure it hangs under
    for count, (name, entry) in enumerate(entries.items(), 1):
        if entry.issuer in failed:
            failed[name] = failed[entry.issuer]
            continue
        try:
            folder = Folder(keys, entry, authorities.get(entry.issuer))
            folder.visit(needs_key=name in signers)
        except (Fault, OSError, ValueError, UnsupportedAlgorithm, x509.ExtensionNotFound) as error:
            complain("error", error if isinstance(error, (Fault, OSError)) else f"{keys}/{name}: {error}")
            failed[name] = name
            continue
        if entry.is_ca:
            authorities[name] = folder
        if not quiet:
            print(f"[{count}/{len(entries)}] " * (len(entries) > 9) + folder.line(), flush=True)
    for name, number in Counter(failed.values()).items():
        if number > 1:
            complain("error", f"{keys}: left alone: {number - 1} below {name}, which failed")
    os.sync()
    return 1 if failed else 0


def main() -> int:
    """Return the exit status: 0 done, 1 something failed, 2 wrong use, nothing written."""
    parser = argparse.ArgumentParser(prog=SCRIPT, description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("-c", "--config", default="sros_config.yml", help="the hierarchy (%(default)s)")
    parser.add_argument("-k", "--keys", default="keys", help="the folder of PEM files (%(default)s)")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors and warnings only")
    arguments = parser.parse_args()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader such as head may leave early
    os.umask(0o022)  # the modes are chosen file by file
    try:
        return walk(arguments.keys, read_configuration(arguments.config), arguments.quiet)
    except KeyboardInterrupt:
        return 130
    except (Fault, OSError) as error:
        complain("error", error)
        return 2 if isinstance(error, ConfigurationError) else 1


if __name__ == "__main__":
    sys.exit(main())
