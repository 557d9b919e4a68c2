#!/usr/bin/env python3
"""Make a certificate authority hierarchy, as sros_config.yml defines it, as a folder of PEM files.

The rule of walk() and Entry.visit(): keep what is there, make what is missing, verify everything.
"""

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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, cast

try:
    import yaml
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
    from OpenSSL import crypto
except ImportError as error:
    advice = "run it with .venv/bin/python, or pip install -r requirements.txt for this Python"
    sys.exit(f"simple_key_generation.py: error: {error}: {advice}")

ML_DSA: dict[str, Callable[[], Any]] = {}
try:  # cryptography has it from 47 on
    from cryptography.hazmat.primitives.asymmetric import mldsa
except ImportError:
    pass
else:
    ML_DSA["ml-dsa-44"] = mldsa.MLDSA44PrivateKey.generate
    ML_DSA["ml-dsa-65"] = mldsa.MLDSA65PrivateKey.generate
    ML_DSA["ml-dsa-87"] = mldsa.MLDSA87PrivateKey.generate

FLAGS = crypto.X509StoreFlags
PEM = serialization.Encoding.PEM
lists_in = cache(lambda keys: {x.read_bytes(): str(x) for x in Path(keys).glob("*/crl.pem") if x.is_file()})
RSA_PSS = bytes.fromhex("2a864886f70d01010a")  # id-RSASSA-PSS (RFC 4055, section 1.2), in DER

SCRIPT = "simple_key_generation.py"
NOW = datetime.now(timezone.utc).replace(microsecond=0) - timedelta(seconds=1)  # OpenSSL's may be behind
SAID: set[tuple[str, str]] = set()  # errors and warnings
PHRASES: dict[str, str] = {}  # by environment variable, once they were asked for
KEY_TYPES: dict[str, Callable[[], Any]] = {
    **{f"rsa:{n}": partial(rsa.generate_private_key, 65537, n) for n in (2048, 3072, 4096, 6144, 7680, 8192)},
    "ec:prime256v1": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ec:secp384r1": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ec:secp521r1": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ed448": ed448.Ed448PrivateKey.generate,
    **ML_DSA,
}
MAX_NESTING = 100  # levels of YAML; an entry needs five
NAME = "[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}"  # a name is a folder
TIME = "[+-]?[0-9]{1,5}[hdwy]|[0-9]{4}-[0-9]{2}-[0-9]{2}([Tt ].+)?"
KEY_USAGES = [  # in the order of their bits
    *("digitalSignature", "nonRepudiation", "keyEncipherment", "dataEncipherment"),
    *("keyAgreement", "keyCertSign", "cRLSign", "encipherOnly", "decipherOnly"),
]
PKIX = {"serverAuth": "3.1", "clientAuth": "3.2", "codeSigning": "3.3", "emailProtection": "3.4"}
PKIX |= {"timeStamping": "3.8", "OCSPSigning": "3.9", "OCSP": "48.1", "caIssuers": "48.2"}
PKIX = {name: f"1.3.6.1.5.5.7.{arc}" for name, arc in PKIX.items()}  # RFC 5280, 4.2.1.12 and 4.2.2.1
oid = x509.ObjectIdentifier
UNREADABLE = (x509.DuplicateExtension, x509.InvalidVersion, x509.UnsupportedGeneralNameType)
INVALID = (ValueError, OverflowError, UnsupportedAlgorithm, *UNREADABLE)  # what cryptography raises
OID = "([01][.][123]?[0-9]|2[.](0|[1-9][0-9]*))([.](0|[1-9][0-9]*))+"
FORMS = {  # of an entry's fields, as regular expressions, with the bounds of RFC 5280, appendix A.1
    "issuer": NAME,
    "key": "|".join({**KEY_TYPES, **dict.fromkeys(["ml-dsa-44", "ml-dsa-65", "ml-dsa-87"])}),
    "digest": "sha256|sha384|sha512",
    "cipher": "aes-256-cbc",
    "passphrase": "[A-Za-z_][A-Za-z0-9_]*",
    **dict.fromkeys(["validity.notBefore", "validity.notAfter", "validity.nextUpdate"], TIME),
    "subject.countryName": "[A-Z]{2}",
    **{f"subject.{x}": ".{1,128}" for x in ("stateOrProvinceName", "localityName")},
    **{f"subject.{x}": ".{1,64}" for x in ("organizationName", "organizationalUnitName", "commonName")},
    "subject.serialNumber": "[A-Za-z0-9 '()+,./:=?-]{1,64}",
    "subject.domainComponent": "[A-Za-z0-9-]{1,63}",
    "subject.emailAddress": "[!-?A-~]{1,64}@[A-Za-z0-9.-]{1,190}",
    "extensions.basicConstraints": "CA:TRUE|CA:FALSE|pathlen:[0-9]{1,4}",  # of each part, from here on
    "extensions.keyUsage": "|".join(KEY_USAGES),
    "extensions.extendedKeyUsage": "|".join([*[*PKIX][:6], OID]),  # the purposes
    "extensions.subjectKeyIdentifier": "hash",
    "extensions.authorityKeyIdentifier": "keyid|keyid:always",
    "extensions.subjectAltName": "(DNS|IP|URI|email):.+",
    "extensions.nameConstraints": "(permitted|excluded);(DNS|IP|URI|email):.+",
    "extensions.certificatePolicies": OID,
    "extensions.crlDistributionPoints": "URI:.+",
    "extensions.authorityInfoAccess": f"(OCSP|caIssuers|{OID});URI:.+",
}
INHERITED = {"2.5.29.30", "1.3.6.1.5.5.7.1.7", "1.3.6.1.5.5.7.1.8"}  # limit names and addresses down to nodes
KNOWN_OIDS = {"1.3.6.1.5.5.7.1.1", *(f"2.5.29.{n}" for n in (14, 15, 17, 19, 30, 31, 32, 35, 37))}
NEVER_CRITICAL = ".*KeyIdentifier|authorityInfoAccess|(?!2.5.29.(33|36|54)$)[0-9.]+"
CA_EXTENSIONS = [f"extensions.{x}" for x in ("basicConstraints", "keyUsage", "subjectKeyIdentifier")]
REASONS = [flag.value for flag in x509.ReasonFlags if flag.value != "removeFromCRL"]


class Fault(Exception):
    """What is wrong, where, and what to do, in one line: exit status 1."""


class ConfigurationError(Fault):
    """A fault of the configuration or the command line: exit status 2, and nothing is written."""


class Loader(yaml.CSafeLoader):
    """PyYAML's loader, less what it lets pass: fields twice, recursive aliases, merges in any order."""

    depth = 0  # of the node that is being read

    def descend_resolver(self, current_node: Any, current_index: Any) -> None:
        """Count a level of nesting: libyaml before PyYAML 6.0.4 crashes on 30,000. Raise MarkedYAMLError."""
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise yaml.MarkedYAMLError(
                None, None, f"nested more than {MAX_NESTING} levels deep", current_node.start_mark
            )
        super().descend_resolver(current_node, current_index)

    def ascend_resolver(self) -> None:
        """Count back."""
        self.depth -= 1
        super().ascend_resolver()

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Look at a mapping before its merges are resolved; raise MarkedYAMLError."""
        self.deep_construct = True  # makes PyYAML refuse recursive aliases
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise yaml.MarkedYAMLError(None, None, f"{twice[0]!r} stands twice", node.start_mark)
        for place, (key, value) in reversed([*enumerate(node.value)]):
            if key.value == "<<" and value is node:
                raise yaml.MarkedYAMLError(None, None, "an anchor merges itself", node.start_mark)
            if key.value == "<<" and isinstance(value, yaml.SequenceNode):  # the first one wins
                node.value[place : place + 1] = [(key, each) for each in reversed(value.value)]
        return cast(dict[Any, Any], super().construct_mapping(node, deep))


@contextmanager
def at(place: str) -> Iterator[None]:
    """Put the place in the configuration before what is wrong there."""
    try:
        yield
    except INVALID as error:
        raise ConfigurationError(f"{place}: {error}") from None


def read_configuration(path: str) -> "dict[str, Entry]":
    """Return all entries in walking order; else raise ConfigurationError with the place."""
    try:
        with open(path, "rb") as file:
            yaml.add_constructor("tag:yaml.org,2002:timestamp", Loader.construct_yaml_str, Loader)
            document = yaml.load(file, Loader)
    except (OSError, yaml.YAMLError, ValueError, LookupError, RecursionError) as error:
        problem = getattr(error, "strerror", " ".join(str(error).split()))
        raise ConfigurationError(f"{path}: {problem}") from None
    with at(path):
        if not isinstance(document, dict) or not isinstance(document.get("keys") or None, dict):
            raise ValueError("must be a mapping with the field keys, a mapping of entries")
        if unknown := [x for x in document if x != "keys" and not str(x).startswith("x-")]:
            raise ValueError(f"unknown field {unknown[0]!r}; there is keys, and x-… for anchors")
    entries, nodes = dict[str, Entry](), document["keys"].pop("nodes", None) or {}
    for place, group in (("keys", document["keys"]), ("keys.nodes", nodes)):
        with at(f"{path}: {place}"):
            if not isinstance(group, dict):
                raise ValueError("must be a mapping of entries")
            if both := group.keys() & entries.keys():
                raise ValueError(f"{min(both)} stands under keys, too, and would be the same folder")
        for name, value in group.items():
            entries[name] = read_entry(f"{path}: {place}.{name}", name, value, place == "keys")
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


def read_entry(where: str, name: Any, value: Any, is_ca: bool) -> "Entry":
    """Return one entry; else raise ConfigurationError with its place."""
    with at(where):
        read_text(name, "", NAME)
        if not isinstance(value, dict):
            raise ValueError("must be a mapping of fields to their values")
    texts = dict[str, str]()  # by path, as Entry.fields
    # An annotation, which does not run: the class is generic from cryptography 45 on.
    names: list[x509.NameAttribute[str | bytes]] = []
    times, extensions = {"notBefore": NOW}, dict[str, tuple[x509.ExtensionType | None, bool]]()
    for group, part in value.items():
        for field, item in part.items() if isinstance(part, dict) else [("", part)]:
            path = f"{group}.{field}".rstrip(".")
            with at(f"{where}.{path}: {type(item) if isinstance(item, (dict, list, set)) else item!r}"):
                is_oid = re.fullmatch(f"extensions[.]{OID}", path) and field not in KNOWN_OIDS
                unset = item is None and group in ("subject", "validity", "extensions")
                if path not in FORMS and not is_oid and not unset:
                    known = {x if x.startswith(f"{group}.") else x.split(".")[0]: 0 for x in FORMS}
                    raise ValueError(f"unknown field; there are {', '.join(known)}")
                if item is None:  # un-set
                    continue
                form = ".+" if group == "extensions" else FORMS[path]
                content = texts[group] = texts[path] = read_text(item, name, form)
                if group == "subject":
                    kind = getattr(x509.NameOID, re.sub("([A-Z])", r"_\1", field).upper())
                    names.append(x509.NameAttribute(kind, content))
                elif group == "validity":
                    times[field] = read_time(field, content)
                elif group == "extensions":
                    extensions[str(field)] = read_extension(str(field), content, is_ca)
    required = ["key", "subject", "validity.notAfter", *(CA_EXTENSIONS if is_ca else ["issuer"])]
    required += ["extensions.authorityKeyIdentifier"] * ("issuer" in texts)
    required += ["passphrase"] * ("cipher" in texts)
    if missing := [path for path in required if path not in texts]:
        raise ConfigurationError(f"{where}.{missing[0]}: is missing")
    if texts["key"] not in KEY_TYPES:
        raise ConfigurationError(f"{where}.key: {texts['key']} needs cryptography 47 or newer")
    if "digest" in texts and texts["key"].startswith(("ed", "ml-dsa")):
        raise ConfigurationError(f"{where}.digest: {texts['key']} signs without: un-set it with ~")
    if "nextUpdate" in times and not is_ca:
        raise ConfigurationError(f"{where}.validity.nextUpdate: only a CA has a revocation list")
    secret = texts["passphrase"] if "cipher" in texts else None
    return Entry(name, where, is_ca, texts.get("issuer"), secret, texts, x509.Name(names), times, extensions)


def read_time(field: str, value: str) -> datetime:
    """Return a timestamp, or an offset from now (a year has 365 days); else raise ValueError."""
    if offset := re.fullmatch("([+-]?[0-9]+)([hdwy])", value):
        hours = {"h": 1, "d": 24, "w": 7 * 24, "y": 365 * 24}[offset[2]]
        moment = NOW + timedelta(hours=int(offset[1]) * hours)
    else:
        moment = datetime.fromisoformat(value.replace("Z", "+00:00"))
        moment = moment.replace(tzinfo=moment.tzinfo or timezone.utc).astimezone(timezone.utc)
    if moment.year < 1950 or (moment <= NOW) != (field == "notBefore"):
        raise ValueError("is in the wrong part of time: notBefore <= now < all others")
    return moment.replace(microsecond=0)


def in_walking_order(entries: "dict[str, Entry]") -> "dict[str, Entry]":
    """Return the entries depth first from the roots; raise ConfigurationError for what can't be."""
    positions, paths = {name: number for number, name in enumerate(entries)}, dict[str, list[int]]()
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
    """Return a value of x509v3_config(5), None if a key decides, and if critical; else raise ValueError."""
    items = [item.strip() for item in value.split(",")]
    critical = items[0] == "critical"
    items = items[critical:]
    if critical and re.fullmatch(NEVER_CRITICAL, name):
        raise ValueError("must not be critical (RFC 5280), or OpenSSL would refuse it")
    form = FORMS.get(f"extensions.{name}", "DER:([0-9A-Fa-f]{2}[: ]?)+")
    for item in items or [""]:
        if not re.fullmatch(form, item) or items.count(item) > 1:
            raise ValueError(f"{item!r} stands twice, or is not of the form {form}")
    match name:
        case "basicConstraints":
            limit = re.fullmatch("CA:TRUE(?:,pathlen:([0-9]+))?" if is_ca else "CA:FALSE()", ",".join(items))
            if not limit or is_ca > critical:
                raise ValueError("must be CA:FALSE, for a CA like critical, CA:TRUE, pathlen:0")
            return x509.BasicConstraints(is_ca, int(limit[1]) if limit[1] else None), critical
        case "keyUsage":
            usage = x509.KeyUsage(*(each in items for each in KEY_USAGES))
            if not is_ca == usage.key_cert_sign == usage.crl_sign:
                raise ValueError("keyCertSign and cRLSign are for every CA, and for no node")
            return usage, critical
        case "extendedKeyUsage":
            return x509.ExtendedKeyUsage([oid(PKIX.get(item, item)) for item in items]), critical
        case "subjectKeyIdentifier" | "authorityKeyIdentifier":
            return None, critical
        case "subjectAltName":
            return x509.SubjectAlternativeName([read_name(item) for item in items]), critical
        case "nameConstraints":
            if not is_ca:
                raise ValueError("is for a CA only")
            permitted = [read_name(item[10:], True) for item in items if item.startswith("permitted")]
            excluded = [read_name(item[9:], True) for item in items if item.startswith("excluded")]
            return x509.NameConstraints(permitted or None, excluded or None), critical
        case "certificatePolicies":
            return x509.CertificatePolicies([x509.PolicyInformation(oid(x), None) for x in items]), critical
        case "crlDistributionPoints":
            points = [x509.DistributionPoint([read_name(x)], None, None, None) for x in items]
            return x509.CRLDistributionPoints(points), critical
        case "authorityInfoAccess":
            pairs = [item.split(";", 1) for item in items]
            accesses = [x509.AccessDescription(oid(PKIX.get(how, how)), read_name(uri)) for how, uri in pairs]
            return x509.AuthorityInformationAccess(accesses), critical
    content = bytes.fromhex("".join(items).removeprefix("DER:").replace(":", " "))
    extension = x509.UnrecognizedExtension(oid(name), content)
    request = x509.CertificateSigningRequestBuilder(x509.Name([])).add_extension(extension, critical)
    getattr(request.sign(ed25519.Ed25519PrivateKey.generate(), None), "extensions", None)  # is it sound?
    return extension, critical


def read_name(item: str, constraint: bool = False) -> x509.GeneralName:
    """Read ``DNS:localhost`` or a subtree of names (RFC 5280, 4.2.1.6); else raise ValueError."""
    kind, _, value = item.partition(":")
    if kind == "IP":
        return x509.IPAddress(ipaddress.ip_network(value) if constraint else ipaddress.ip_address(value))
    label = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
    front = "[.]?" if constraint else "(?:[*][.])?"
    host = f"(?=.{{1,253}}$)(?![0-9.]+$){front}{label}(?:[.]{label})*"
    email = f"(?:[!-?A-~]{{1,64}}@){'?' if constraint else ''}{host}"
    uri = host if constraint else "[A-Za-z][A-Za-z0-9+.-]*:[!-~]+"
    if not re.fullmatch({"DNS": host, "URI": uri, "email": email}[kind], value):
        raise ValueError(f"{value!r} can't be {kind} (what is not ASCII is written as xn--…)")
    general_name = {"DNS": x509.DNSName, "URI": x509.UniformResourceIdentifier}.get(kind, x509.RFC822Name)
    return general_name(value)


def pass_phrase(variable: str, new: bool = False) -> bytes:
    """Return a pass phrase from the environment, or ask, twice for a new key. Raises Fault."""
    phrase = PHRASES.get(variable, os.environ.get(variable))
    if phrase is None:
        try:
            os.close(os.open("/dev/tty", os.O_RDWR))
            phrase = getpass.getpass(f"Enter pass phrase ({variable}): ")
            again = getpass.getpass(f"Verifying - enter it again ({variable}): ") if new else phrase
        except (OSError, EOFError):
            raise Fault(f"{variable}: is no environment variable, and no terminal answers") from None
        if phrase != again:
            raise Fault(f"{variable}: the two pass phrases differ: run again")
        PHRASES[variable] = phrase
    if not 0 < len(os.fsencode(phrase)) < 1024:  # OpenSSL's PEM_BUFSIZE
        raise Fault(f"{variable}: a pass phrase must have 1 to 1023 bytes")
    return os.fsencode(phrase)


def complain(kind: str, problem: object) -> None:
    """Print an error or a warning as one line on standard error, and none twice."""
    if isinstance(problem, OSError):
        place = problem.filename2 or problem.filename  # of a rename, whereto
        problem = f"{place}: {problem.strerror}" if place else problem.strerror
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in f"{SCRIPT}: {kind}: {problem}")
    if (kind, line) not in SAID:
        print(line + "\n", end="", file=sys.stderr, flush=True)  # in one piece
    SAID.add((kind, line))


def say(line: str) -> None:
    """Print a line on standard output. Raises OSError, which names the place."""
    try:
        print(line, flush=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from None


def read_pem(path: str, load: Callable[[bytes], Any]) -> Any:
    """Return what a PEM file holds. Raises Fault, OSError."""
    try:
        loaded = load(Path(path).read_bytes())
        _ = loaded.extensions, loaded.public_key()  # what cryptography parses only when it is asked for
        return loaded
    except INVALID:
        raise Fault(f"{path}: is damaged, or not what its name says") from None


def pem(*objects: Any) -> bytes:
    """Return certificates, requests or lists as PEM, one after the other."""
    return b"".join(each.public_bytes(PEM) for each in objects)


def write(folder: str, files: dict[str, bytes], holds: set[str]) -> None:
    """Write what is new or differs, each file whole; what held nothing appears whole as well."""
    place = folder if holds else f"{os.path.dirname(folder)}/.{os.path.basename(folder)}.part"
    os.makedirs(place, 0o700, exist_ok=True)
    for name, data in files.items():
        path, part = f"{place}/{name}", f"{place}/{f'.{name}.part' if holds else name}"
        if name not in holds or Path(path).read_bytes() != data:
            mode = 0o600 if name == "key.pem" else 0o644  # from the first moment on
            try:
                with open(part, "xb", opener=partial(os.open, mode=mode)) as file:
                    file.write(data)
                os.rename(part, path)
            except OSError as error:  # ENOSPC has no name
                if os.path.lexists(part):
                    os.unlink(part)
                raise OSError(error.errno, error.strerror, f"{folder}/{name}") from None
    if not holds:
        os.rename(place, folder)  # over nothing, or an empty folder; never over a link


def key_type(path: str, key: Any) -> str:
    """Return a public key's type as the configuration spells it. Raises Fault for a weak one."""
    name = type(key).__name__.removesuffix("PublicKey").lower().replace("mldsa", "ml-dsa-")
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048:
        return f"rsa:{key.key_size}"
    if isinstance(key, ec.EllipticCurvePublicKey):
        name = f"ec:{key.curve.name.replace('secp256r1', 'prime256v1')}"
    if name not in KEY_TYPES:
        raise Fault(f"{path}: its key, {name}, is too weak or of a type that can't be used here")
    return name


def key_identifier(ca: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """Return the authorityKeyIdentifier of what a CA signs (RFC 5280, section 4.2.1.1)."""
    subject = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject)


def trust_store(anchor: x509.Certificate, lists: Any, flags: int) -> crypto.X509Store:
    """Return what OpenSSL verifies by, in strict mode: a trust anchor, revocation lists and flags."""
    store = crypto.X509Store()
    store.add_cert(crypto.X509.from_cryptography(anchor))
    for each in lists:
        store.add_crl(each)
    store.set_flags(flags | FLAGS.X509_STRICT | FLAGS.CHECK_SS_SIGNATURE | (FLAGS.CRL_CHECK if lists else 0))
    return store


@dataclass
class Entry:
    """What the configuration says of one folder, and, once it is visited, what stands there."""

    name: str
    where: str  # its place in the file, such as sros_config.yml: keys.nodes.server
    is_ca: bool
    issuer: str | None  # None: self-signed
    passphrase: str | None  # the environment variable; None: the key is not encrypted
    fields: dict[str, str]  # as they stand, by path, such as subject.commonName
    subject: x509.Name
    times: dict[str, datetime]  # notBefore, notAfter, nextUpdate, in UTC
    extensions: dict[str, tuple[x509.ExtensionType | None, bool]]  # field: value, critical
    new_key: Callable[[], Any] | None = None  # gives the key that is being made ahead
    lists: tuple[x509.CertificateRevocationList, ...] = ()  # a CA's own and those above, or none
    store: crypto.X509Store | None = None  # trusts this CA, once a whole chain through it was verified

    def visit(self, keys: str, above: "Entry | None", options: argparse.Namespace) -> None:
        """Keep, make or renew everything, verify it, and write what is new. Raises Fault, OSError."""
        self.folder, self.above = os.path.join(keys, self.name), above
        self.files: dict[str, bytes] = {}  # what the folder shall hold
        self.revoked: dict[int, x509.RevokedCertificate] = {}  # by a CA's own list
        path, self.issuers = f"{self.folder}/cert.pem", above.chain if above else []
        self.holds = {*os.listdir(self.folder)} if os.path.lexists(self.folder) else set()
        self.issued = {*os.listdir(f"{self.folder}/issued")} if "issued" in self.holds else set()
        self.state = "kept" if "cert.pem" in self.holds else "made"
        if self.state == "made":
            self.certificate = self.certify(self.requested_key())  # makes a new folder's key
        else:
            self.certificate = read_pem(path, x509.load_pem_x509_certificate)
        self.match(path)
        if self.state == "kept":
            begins, ends = self.certificate.not_valid_before_utc, self.certificate.not_valid_after_utc
            self.due = ends - (ends - begins) / 3 < NOW  # in the last third of its life, or past it
            if above and self.certificate.serial_number in above.revoked:
                self.state = "revoked"
            elif self.name in (options.renew or []) or (options.renew == [] and self.due):
                self.renew(path)
        self.chain: list[x509.Certificate] = [self.certificate, *self.issuers]  # the anchor is last
        lists = above.lists if above else ()
        own = self.own_list(options) if self.is_ca else lists
        self.files |= {"crl.pem": pem(*own)} if own else {}
        if "crl.pem" in self.holds and "crl.pem" in self.files:  # whatever fails below, revocations spread
            write(self.folder, {"crl.pem": self.files["crl.pem"]}, self.holds)
        self.lists = (*own, *lists) if own and (lists or not above) else ()  # of the whole chain, or none
        if self.state == "revoked":
            if self.name in options.revoke:
                return
            raise Fault(f"{path}: certificate revoked: rm -r {self.folder}, and run again")
        (above or self).verify(path, self.certificate)
        if self.holds:
            self.compare(path)
        cert, ca = pem(self.certificate), pem(self.chain[-1])
        self.files |= {"cert.pem": cert} if self.state != "kept" else {}
        self.files |= {"fullchain.pem": cert + pem(*self.issuers[:-1]) + self.cross, "ca.pem": ca}
        record = f"{self.name}-{self.certificate.serial_number:X}.pem"
        if above and record not in above.issued:  # before the certificate goes anywhere else
            write(f"{above.folder}/issued", {record: cert}, above.issued)
            above.issued.add(record)
        write(self.folder, self.files, self.holds)

    @cached_property
    def key(self) -> Any:
        """The private key, new in a new folder; None: it is elsewhere. Raises Fault, OSError."""
        path, variable = f"{self.folder}/key.pem", self.passphrase
        if not self.holds:
            phrase = pass_phrase(variable, new=True) if variable else None
            cipher = serialization.BestAvailableEncryption(phrase) if phrase else serialization.NoEncryption()
            key = (self.new_key or KEY_TYPES[self.fields["key"]])()
            self.files["key.pem"] = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, cipher)
            return key
        if not os.path.exists(path):  # perhaps a link to a stick that is not here
            return None
        data = Path(path).read_bytes()
        phrase = pass_phrase(variable) if variable and b"ENCRYPTED" in data else None
        try:
            return serialization.load_pem_private_key(data, phrase)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise Fault(f"{path}: is damaged, or its pass phrase ({variable}) is wrong or not set") from None

    @property
    def locked(self) -> bool:
        """Whether someone would have to be asked for the key's pass phrase."""
        path, variable = f"{self.folder}/key.pem", self.passphrase
        known = variable in PHRASES or (variable or "") in os.environ
        return not known and os.path.exists(path) and b"ENCRYPTED" in Path(path).read_bytes()

    def sign(self, builder: Any) -> Any:
        """Sign a certificate, request or list with this folder's key. Raises Fault."""
        digest = getattr(hashes, self.fields.get("digest", "sha256").upper())()
        hashes_first = isinstance(self.key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey))
        return builder.sign(self.key, digest if hashes_first else None)

    def requested_key(self) -> Any:
        """Return the public key of the request, which proves possession, or of key.pem. Raises Fault."""
        if "csr.pem" not in self.holds:
            if self.key is None:
                raise Fault(f"{self.folder}: no key.pem or csr.pem: put one there, or rm -r {self.folder}")
            return self.key.public_key()
        request = read_pem(f"{self.folder}/csr.pem", x509.load_pem_x509_csr)
        if not request.is_signature_valid or RSA_PSS in request.tbs_certrequest_bytes:
            raise Fault(f"{self.folder}/csr.pem: its signature is wrong or by SHA-1, or its key is RSA-PSS")
        return request.public_key()

    def certify(self, key: Any) -> x509.Certificate:
        """Return a new certificate for a public key, by the issuer's. Raises Fault, OSError."""
        path, signer = f"{self.folder}/csr.pem", self.above or self
        key_type(path, key)
        revoked = {f"{self.name}-{serial:X}.pem" for serial in (signer.revoked if self.holds else ())}
        if any(record.public_key() == key for record in signer.records(revoked & signer.issued)):
            raise Fault(f"{self.folder}: is revoked: rm -r {self.folder}, and run again for a new key")
        if signer.key is None:
            if "csr.pem" not in self.holds and self.key is not None:
                request = self.sign(x509.CertificateSigningRequestBuilder(self.subject))
                write(self.folder, {**self.files, "csr.pem": pem(request)}, self.holds)
            raise Fault(f"{path}: have {signer.folder} sign it, put cert.pem beside it, and run again")
        issuer = self.issuers[0].subject if self.issuers else self.subject
        builder = (
            x509.CertificateBuilder(issuer, self.subject, key)
            .serial_number(x509.random_serial_number())  # 159 random bits
            .not_valid_before(self.times["notBefore"])
            .not_valid_after(min([self.times["notAfter"], *(ca.not_valid_after_utc for ca in self.issuers)]))
        )
        for value, critical in self.profile(key):
            builder = builder.add_extension(value, critical)
        return cast(x509.Certificate, signer.sign(builder))

    def renew(self, path: str) -> None:
        """Replace the certificate by a new one for the same key; if that fails, it stays in force."""
        try:
            if self.is_ca and self.certificate.subject != self.subject:
                raise Fault(f"{path}: its children name this subject, not that of {self.where}")
            renewed = self.certify(self.certificate.public_key())
            if self.above:
                self.above.verify(path, renewed)
            self.certificate, self.state = renewed, "renewed"
        except (Fault, OSError) as error:
            complain("error", error)

    def profile(self, key: Any) -> Iterator[tuple[x509.ExtensionType, bool]]:
        """Yield the extensions that a certificate for a key has, and whether they are critical."""
        own = x509.SubjectKeyIdentifier.from_public_key(key)
        from_key = x509.AuthorityKeyIdentifier.from_issuer_public_key
        above = key_identifier(self.above.certificate) if self.above else from_key(key)
        for name, (value, critical) in self.extensions.items():
            if value is None:
                value = own if name == "subjectKeyIdentifier" else above
            yield value, critical

    def match(self, path: str) -> None:
        """Have the certificate match key, request and the higher CA's. Raises Fault, OSError."""
        public, key = cast(Any, self.certificate.public_key()), f"{self.folder}/key.pem"
        key_type(path, public)
        if os.path.exists(key) and os.stat(key).st_mode & 0o077:
            complain("warning", f"{key}: not for its owner only: chmod 600 {key}")
        if not self.locked and self.key is not None and self.key.public_key() != public:
            raise Fault(f"{path}: is for another key than {key}")
        found, needed = self.certificate.extensions, {"basicConstraints", "subjectKeyIdentifier"}
        if self.is_ca and not needed <= {x.oid._name for x in found if getattr(x.value, "ca", True)}:
            raise Fault(f"{path}: is no CA's certificate: it takes CA:TRUE and a subjectKeyIdentifier")
        if "csr.pem" in self.holds and self.requested_key() != public:
            raise Fault(f"{path}: is for another key than {self.folder}/csr.pem")
        self.cross: bytes = self.above.cross if self.above else b""
        if "cross.pem" in self.holds and not self.above:
            cross = read_pem(f"{self.folder}/cross.pem", x509.load_pem_x509_certificate)
            same = (cross.subject, cross.public_key()) == (self.certificate.subject, public)
            if not same or cross.issuer == self.certificate.subject:
                raise Fault(f"{self.folder}/cross.pem: is no higher CA's certificate for this name and key")
            self.cross = pem(cross)

    def compare(self, path: str) -> None:
        """Warn of what is not as the configuration says, and of a life that is nearly over."""
        public: Any = self.certificate.public_key()
        found = {(e.oid._name, e.critical, e.value.public_bytes()) for e in self.certificate.extensions}
        wanted = {(v.oid._name, critical, v.public_bytes()) for v, critical in self.profile(public)}
        differs = {name for name, _, _ in found ^ wanted} - {"authorityKeyIdentifier"}
        differs |= {"key type"} if key_type(path, public) != self.fields["key"] else set()
        differs |= {"subject"} if self.certificate.subject != self.subject else set()
        if differs:
            complain("warning", f"{path}: {self.where} has another {', '.join(sorted(differs))}")
        if self.state == "kept" and self.due:
            complain("warning", f"{path}: due for --renew, ends on {self.certificate.not_valid_after_utc:%F}")

    def newest_list(self) -> tuple[int, x509.CertificateRevocationList | None]:
        """Return the number and the CA's list, its own or else a node's copy. Raises Fault, OSError."""
        path, ca, kept = f"{self.folder}/crl.pem", self.certificate, "crl.pem" in self.holds
        own = Path(path).read_bytes() if kept else b""
        number, newest, newest_in = -1, None, None
        for data, place in ({own: path} | lists_in(os.path.dirname(self.folder))).items():  # read once
            try:
                for each in map(x509.load_pem_x509_crl, re.findall(b"-+BEGIN[^-]+-+[^-]+-+END[^-]+-+", data)):
                    found = max((getattr(x.value, "crl_number", 0) for x in each.extensions), default=0)
                    mine = each.issuer == ca.subject and each.is_signature_valid(cast(Any, ca.public_key()))
                    if mine and found > number:
                        number, newest, newest_in = found, each, data
            except INVALID:
                if not kept:  # else what is damaged of a node's is written anew
                    raise Fault(f"{place}: is damaged, or not what its name says") from None
        if kept and newest_in != own:
            raise Fault(f"{path}: is not this CA's newest list: rm {path}, and run again to restore it")
        if newest is None and self.issued and os.path.exists(f"{self.folder}/key.pem"):
            raise Fault(f"{path}: is lost, and no node has a copy: put back the newest there is")
        return number, newest

    def own_list(self, options: argparse.Namespace) -> tuple[x509.CertificateRevocationList, ...]:
        """Keep, extend, refresh or begin a CA's list (RFC 5280, section 5). Raises Fault, OSError."""
        path, ca, last = f"{self.folder}/crl.pem", self.certificate, self.certificate.not_valid_after_utc
        number, own = self.newest_list()
        self.revoked = {} if own is None else {each.serial_number: each for each in own}
        named = self.records({x for x in self.issued if x.rpartition("-")[0] in options.revoke})
        added = [x for x in named if x.not_valid_after_utc > NOW and x.serial_number not in self.revoked]
        if own is not None and not added:
            ends = own.next_update_utc or last
            if last <= NOW or ends - (ends - own.last_update_utc) / 3 >= NOW:
                return (own,)
            if self.locked or self.key is None:
                if ends <= NOW:
                    raise Fault(f"{path}: has expired: the next one takes {self.folder}/key.pem")
                complain("warning", f"{path}: ends on {ends:%F}: the next one takes {self.folder}/key.pem")
                return (own,)
        if self.key is None:
            what = "stays as it is" if added else "is missing, so no node below can check who is revoked"
            complain("error" if added else "warning", f"{path}: {what}: it takes {self.folder}/key.pem")
            return () if own is None else (own,)
        for certificate in added:
            entry = x509.RevokedCertificateBuilder(certificate.serial_number, NOW)
            if options.reason != "unspecified":  # is left out instead (RFC 5280, 5.3.1)
                reason = x509.ReasonFlags(options.reason or "cessationOfOperation")
                entry = entry.add_extension(x509.CRLReason(reason), False)
            self.revoked[certificate.serial_number] = entry.build()
        ends = min(self.times.get("nextUpdate", last), last)
        builder = (  # begins a little in the past, for clocks that are behind
            x509.CertificateRevocationListBuilder(ca.subject)
            .last_update(max(ca.not_valid_before_utc, NOW - min(timedelta(days=1), (ends - NOW) / 12)))
            .next_update(ends)
            .add_extension(x509.CRLNumber(max(number, 0) + 1), False)
            .add_extension(key_identifier(ca), False)
        )
        for each in self.revoked.values():
            builder = builder.add_revoked_certificate(each)
        return (self.sign(builder),)

    def records(self, names: set[str]) -> list[x509.Certificate]:
        """Return what the files of these names in a CA's issued/ hold. Raises Fault, OSError."""
        return [read_pem(f"{self.folder}/issued/{x}", x509.load_pem_x509_certificate) for x in sorted(names)]

    def verify(self, path: str, certificate: x509.Certificate) -> None:
        """Have OpenSSL verify what this CA signed: the first to the anchor, others to here. Raises Fault."""
        if (digest := getattr(certificate.signature_hash_algorithm, "name", "")) in ("md5", "sha1"):
            raise Fault(f"{path}: is signed with {digest}, which can be forged")
        store = self.store or trust_store(self.chain[-1], self.lists, FLAGS.CRL_CHECK_ALL)
        leaf = crypto.X509.from_cryptography(certificate)
        between = [] if self.store else [crypto.X509.from_cryptography(ca) for ca in self.chain[:-1]]
        try:
            *_, by = crypto.X509StoreContext(store, leaf, between).get_verified_chain()[:2]
        except crypto.X509StoreContextError as error:
            whose = error.certificate.to_cryptography().subject.rfc4514_string()
            advice = "set the clock" if "not yet" in str(error) else "--renew it, or mend its configuration"
            raise Fault(f"{path}: {error} ({whose}): {advice}") from None
        if not self.store and by.to_cryptography() != self.certificate:
            raise Fault(f"{path}: is not signed by {self.name}: --renew it, or mend its configuration")
        if not (self.store or INHERITED & {x.oid.dotted_string for ca in self.chain for x in ca.extensions}):
            self.store = trust_store(self.certificate, self.lists[:1], FLAGS.PARTIAL_CHAIN)

    def line(self) -> str:
        """Return what a person reads of it, indented as in the tree."""
        by, ends = self.issuer or "itself", self.certificate.not_valid_after_utc
        note = f", with {by}" if self.state in ("made", "renewed") and ends < self.times["notAfter"] else ""
        note += f", {len(self.revoked)} revoked" if self.revoked else ""
        note += "" if {"key.pem"} & (self.holds | self.files.keys()) else ", key elsewhere"
        name, key = "  " * len(self.issuers) + self.name, self.certificate.public_key()
        return f"{name:16}  {self.state:7}  {key_type(name, key):13}  by {by:10}  until {ends:%F}{note}"


def walk(keys: str, entries: dict[str, Entry], options: argparse.Namespace) -> int:
    """Visit every entry, the issuers first; return the exit status. Raises Fault, OSError."""
    issued = {x.name.rpartition("-")[0] for ca in entries for x in Path(keys, ca, "issued").glob("*.pem")}
    for name in {*(options.renew or [])} - {*entries} | {*options.revoke} - issued:
        raise ConfigurationError(f"{name}: there is no such entry, or no certificate of that name")
    if not os.path.lexists(keys):  # ask before anything is written, not in the midst of it
        for variable in filter(None, [entry.passphrase for entry in entries.values()]):
            pass_phrase(variable, new=True)
    os.makedirs(keys, 0o700, exist_ok=True)
    lock = os.open(keys, os.O_RDONLY | os.O_DIRECTORY)  # ends with this process, however it ends
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{SCRIPT}: waiting for another run on {keys}", file=sys.stderr, flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)
    for pattern in ("*/issued/.*.part", "*/.*.part", ".*.part"):  # what a killed run left
        for part in Path(keys).glob(pattern):
            shutil.rmtree(part) if part.is_dir() and not part.is_symlink() else part.unlink()
    pool = ThreadPoolExecutor(os.cpu_count())
    for name, entry in entries.items():  # RSA keys take long: they are made ahead, on all cores
        if entry.fields["key"].startswith("rsa:") and not os.path.lexists(f"{keys}/{name}"):
            entry.new_key = pool.submit(KEY_TYPES[entry.fields["key"]]).result
    failed: dict[str | None, str] = {}  # by name: the entry whose failure it hangs under
    for count, name in enumerate(names := [*entries], 1):
        entry = entries[name] if entries[name].is_ca else entries.pop(name)  # to be forgotten when done
        above, cause = entries.get(entry.issuer or ""), failed.get(entry.issuer)
        spreads = above is not None and above.lists and "crl.pem" in above.holds  # its list, no more
        if cause and not (spreads and os.path.exists(f"{keys}/{name}/cert.pem")):
            failed[name] = cause
            continue
        try:
            entry.visit(keys, above, options)
        except (Fault, OSError, *INVALID) as error:
            failed[name] = cause or name
            if not cause:
                complain("error", error if isinstance(error, (Fault, OSError)) else f"{keys}/{name}: {error}")
        else:
            failed |= {name: name} if entry.state == "revoked" else {}
            if not options.quiet:
                say(f"[{count:2}/{len(names)}] " * (len(names) > 9) + entry.line())
    for name, number in Counter(failed.values()).items():
        if number > 1:
            kind = "warning" if name in options.revoke else "error"
            complain(kind, f"{keys}: left alone: {number - 1} below {name}, which failed or is revoked")
    os.sync()
    return int(any(kind == "error" for kind, _ in SAID))


def main() -> int:
    """Return the exit status: 0 done, 1 something failed, 2 wrong use, nothing written."""
    parser = argparse.ArgumentParser(prog=SCRIPT, description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("-c", "--config", default="sros_config.yml", help="the hierarchy (%(default)s)")
    parser.add_argument("-k", "--keys", default="keys", help="the folder of PEM files (%(default)s)")
    change = parser.add_mutually_exclusive_group()
    change.add_argument("--renew", metavar="NAME", nargs="*", help="certify anew; no NAME: all that is due")
    change.add_argument("--revoke", metavar="NAME", nargs="+", default=[], help="put on their issuer's list")
    parser.add_argument("--reason", choices=REASONS, metavar="WHY", help="keyCompromise, … (RFC 5280, 5.3.1)")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors and warnings only")
    options = parser.parse_args()
    if options.reason and not options.revoke:
        parser.error("argument --reason: goes with --revoke")
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader such as head may leave early
    os.umask(0o022)  # the modes are chosen file by file
    try:
        return walk(options.keys, read_configuration(options.config), options)
    except KeyboardInterrupt:
        return 130
    except (Fault, OSError) as error:
        complain("error", error)
        return 2 if isinstance(error, ConfigurationError) else 1


if __name__ == "__main__":
    os._exit(main())  # all is flushed; keys still being made for what failed are not waited for
