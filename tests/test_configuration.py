"""What sros_config.yml may say, and what comes of it; what it may not, and the error lines.

A refused configuration has a sound twin, which differs in one place. Most runs are calls of
main() in this process. One test compares some of them with runs as processes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

import pytest
from certificates import judge, lists, moment
from configurations import configure, uncomment
from cryptography import x509
from OpenSSL import SSL, crypto
from running import GENERATE, PHRASES, Result, fine, generate, generate_here, openssl, run

# cryptography has it from 47 on, and OpenSSL's commands from 3.5 on.
ML_DSA: list[str] = []
if importlib.util.find_spec("cryptography.hazmat.primitives.asymmetric.mldsa"):
    ML_DSA = ["ml-dsa-44", "ml-dsa-65", "ml-dsa-87"]

# A root, a master and a node with unencrypted keys: where each field stands, and its YAML.
# A broken configuration differs from this one in one field, so that field is what is refused.
SMALL = {
    "keys/root/key": "ec:prime256v1",
    "keys/root/subject/commonName": "$name",
    "keys/root/validity/notBefore": "-1d",
    "keys/root/validity/notAfter": "10y",
    "keys/root/extensions/basicConstraints": "critical, CA:TRUE, pathlen:1",
    "keys/root/extensions/keyUsage": "critical, keyCertSign, cRLSign",
    "keys/root/extensions/subjectKeyIdentifier": "hash",
    "keys/master/issuer": "root",
    "keys/master/key": "ec:prime256v1",
    "keys/master/subject/commonName": "$name",
    "keys/master/validity/notBefore": "-1d",
    "keys/master/validity/notAfter": "5y",
    "keys/master/extensions/basicConstraints": "critical, CA:TRUE",
    "keys/master/extensions/keyUsage": "critical, keyCertSign, cRLSign",
    "keys/master/extensions/subjectKeyIdentifier": "hash",
    "keys/master/extensions/authorityKeyIdentifier": "keyid",
    "keys/nodes/node/issuer": "master",
    "keys/nodes/node/key": "ec:prime256v1",
    "keys/nodes/node/subject/commonName": "$name",
    "keys/nodes/node/validity/notBefore": "-1d",
    "keys/nodes/node/validity/notAfter": "1y",
    "keys/nodes/node/extensions/basicConstraints": "critical, CA:FALSE",
    "keys/nodes/node/extensions/keyUsage": "critical, digitalSignature",
    "keys/nodes/node/extensions/subjectKeyIdentifier": "hash",
    "keys/nodes/node/extensions/authorityKeyIdentifier": "keyid",
}
ROOT, MASTER, NODE = "keys/root", "keys/master", "keys/nodes/node"
BASIC, USAGE = "extensions/basicConstraints", "extensions/keyUsage"
PURPOSE, ABOVE = "extensions/extendedKeyUsage", "extensions/authorityKeyIdentifier"
NAMES, ACCESS = "extensions/nameConstraints", "extensions/authorityInfoAccess"
L63 = "a" * 63


def small(changes: Mapping[str, str] | None = None) -> str:
    """Return SMALL as YAML with changes, each in place of the field and all that is in it."""
    fields = SMALL
    for place, value in (changes or {}).items():
        fields = {k: v for k, v in fields.items() if not k.startswith(f"{place}/")}
        fields = {**fields, place: value}
    return written(fields)


def written(fields: Mapping[str, str], indent: str = "") -> str:
    """Return fields by place as YAML. Places that begin alike stand together."""
    by_name: dict[str, dict[str, str]] = {}
    for place, value in fields.items():
        name, _, rest = place.partition("/")
        by_name.setdefault(name, {})[rest] = value
    text = ""
    for name, inner in by_name.items():
        own = inner.pop("", "")
        below = f"\n{written(inner, indent + '  ')}" if inner else f" {own}\n"
        text += f"{indent}{name}:{below}"
    return text


def another(place: str, name: str) -> dict[str, str]:
    """Return the fields of an entry like the one at a place, under another name."""
    own = {k[len(place) :]: v for k, v in SMALL.items() if k.startswith(f"{place}/")}
    return {f"{os.path.dirname(place)}/{name}{rest}": value for rest, value in own.items()}


# --- A broken configuration beside a sound one -----------------------------------------------


class Twins(NamedTuple):
    """A broken configuration, its sound twin, and what must be said of the broken one."""

    broken: str | bytes
    sound: str
    place: str  # what the line says first, after the file
    reason: str  # what it says further on, a regular expression
    label: str = ""


def cases(each: list[Twins]) -> pytest.MarkDecorator:
    """Run a test once for each of the cases."""
    return pytest.mark.parametrize(
        "case", each, ids=lambda case: case.label or case.place or None
    )


def table(entry: str, *rows: tuple[str, str, str, str]) -> list[Twins]:
    """Return cases of a field, its broken value, its sound value, and the reason.

    The sound values stand in entries like the one that is broken, all in one configuration.
    """
    fields: dict[str, str] = {}
    for number, (field, _, sound, _) in enumerate(rows):
        name = f"{os.path.basename(entry)}-{number}"
        fields |= another(entry, name) | {f"{os.path.dirname(entry)}/{name}/{field}": sound}
    return [
        Twins(
            small({f"{entry}/{field}": broken}),
            small(fields),
            f"{entry}/{field}".replace("/", "."),
            reason,
            f"{field}={broken}",
        )
        for field, broken, _, reason in rows
    ]


Accept = Callable[[str], Path]
Compare = Callable[[Twins], None]


@pytest.fixture(scope="module")
def accept(tmp_path_factory: pytest.TempPathFactory) -> Accept:
    """Make keys from a configuration, which must succeed. Return the folder, to read only.

    Several tests may read what one configuration makes. The first of them makes it.
    """

    @functools.cache
    def make(text: str) -> Path:
        folder = tmp_path_factory.mktemp("accepted")
        result = fine(generate_from(folder, text))
        made = sorted(path.parent.name for path in folder.glob("keys/*/cert.pem"))
        assert made and made == sorted(name for name, _ in lines(result.stdout))
        (folder / "out").write_text(result.stdout)
        return folder

    return make


@pytest.fixture
def compare(tmp_path: Path, accept: Accept) -> Compare:
    """Require one line with place and reason, nothing made, and an accepted twin."""

    def check(case: Twins) -> None:
        folder = tmp_path / "here"
        folder.mkdir()
        result = generate_from(folder, case.broken)
        assert (result.returncode, result.stdout) == (2, ""), result.stderr
        said = refusal(result.stderr)
        assert re.match(re.escape(case.place) + "[.:]", said) or not case.place, said
        assert re.search(case.reason, said.removeprefix(case.place), re.IGNORECASE), said
        assert [path.name for path in folder.iterdir()] == ["sros_config.yml"]
        assert [path.name for path in tmp_path.iterdir()] == [folder.name]
        accept(case.sound)

    return check


def generate_from(folder: Path, text: str | bytes, now: datetime | None = None) -> Result:
    """Run the script in this process with a configuration."""
    data = text if isinstance(text, bytes) else text.encode()
    (folder / "sros_config.yml").write_bytes(data)
    return generate_here(folder, now=now)


def lines(stdout: str) -> list[tuple[str, str]]:
    """Return the lines of a run by name, without a count in front and without the indent."""
    stripped = [re.sub(r"^(\[ *\d+/\d+\])? *", "", line) for line in stdout.splitlines()]
    return [(line.split()[0], line) for line in stripped]


def refusal(stderr: str) -> str:
    """Return what follows the script and the file in the only line of an error."""
    begin = f"{GENERATE.name}: error: sros_config.yml: "
    assert stderr.startswith(begin) and stderr.endswith("\n") and stderr.count("\n") == 1, (
        stderr
    )
    return stderr.removeprefix(begin)


def text_of(folder: Path) -> str:
    """Return what openssl says of a folder's certificate, each white space as one blank."""
    # `C = US`, which newer versions write `C=US` unless told otherwise.
    how = ("-noout", "-text", "-nameopt", "oneline")
    return " ".join(openssl("x509", *how, "-in", folder / "cert.pem").split())


def verifies(folder: Path) -> bool:
    """Tell whether openssl accepts a node by its own files, in strict mode, with all lists."""
    return judge(folder).returncode == 0


# --- What a configuration says, and the certificates that come of it -------------------------


def test_the_shipped_configuration_is_read_by_openssl_as_it_stands(made: Path) -> None:
    keys = made / "keys"
    assert "X509v3 Basic Constraints: critical CA:TRUE, pathlen:1 " in text_of(keys / "root")
    assert "X509v3 Basic Constraints: critical CA:TRUE, pathlen:0 " in text_of(keys / "master")
    for name, purpose, alternative in [
        (
            "server",
            "Server",
            "DNS:localhost, IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1 ",
        ),
        ("client", "Client", "DNS:client "),
    ]:
        text = text_of(keys / name)
        subject = f"C = US, O = SROS Example, OU = Robots, CN = {name} "
        assert f"Subject: {subject}" in text
        assert "X509v3 Basic Constraints: critical CA:FALSE " in text
        assert "X509v3 Key Usage: critical Digital Signature X509v3" in text
        assert f"X509v3 Extended Key Usage: TLS Web {purpose} Authentication X509v3" in text
        assert f"X509v3 Subject Alternative Name: {alternative}" in text
        assert verifies(keys / name)


MERGES = """\
keys:
  nodes:
    arm: &arm
      <<: [*strong, *common]
      issuer: master
      subject: {<<: *subject, organizationalUnitName: Arms of $name}
      validity: &year {notAfter: 1y}
      extensions: &arm-extensions
        basicConstraints: critical, CA:FALSE
        keyUsage: digitalSignature
        subjectKeyIdentifier: hash
        authorityKeyIdentifier: keyid
        subjectAltName: DNS:$name, DNS:${name}.example, URI:urn:$name,
          email:$name@robots.example
        extendedKeyUsage: clientAuth
    leg:
      <<: *arm
      key: ed25519
      digest: ~
      subject: {<<: *subject, countryName: ~, localityName: $$5 for $name}
      extensions: {<<: *arm-extensions, extendedKeyUsage: ~}
    eye: {<<: *arm, issuer: root, passphrase: SROS_ROOT_PASSPHRASE, cipher: aes-256-cbc}
    ear: {<<: *arm, cipher: ~, passphrase: ~}
  master:
    <<: *common
    issuer: root
    subject: *subject
    validity: {notAfter: 2y}
    extensions: {<<: *ca, authorityKeyIdentifier: keyid}
  root: {<<: *common, subject: *subject, validity: {notAfter: 3y}, extensions: *ca}
"""
ANCHORS = """\
x-strong: &strong {key: ec:secp384r1, digest: sha384}
x-common: &common {key: ec:prime256v1}
x-subject: &subject {countryName: US, commonName: $name}
x-ca: &ca
  basicConstraints: critical, CA:TRUE
  keyUsage: critical, keyCertSign, cRLSign
  subjectKeyIdentifier: hash
x-unused: [1, 2.5, ~, 2040-01-01, {a: no}]
"""


def test_merges_anchors_names_and_unset_fields_in_any_order(accept: Accept) -> None:
    keys = accept(ANCHORS + MERGES) / "keys"
    arm, leg, eye, ear = (text_of(keys / name) for name in ("arm", "leg", "eye", "ear"))
    assert "Subject: C = US, CN = arm, OU = Arms of arm " in arm
    assert "Issuer: C = US, CN = master " in arm
    assert "NIST CURVE: P-384" in arm
    names = "DNS:arm, DNS:arm.example, URI:urn:arm, email:arm@robots.example "
    assert f"X509v3 Subject Alternative Name: {names}" in arm
    assert "X509v3 Extended Key Usage: TLS Web Client Authentication " in arm
    assert "Subject: CN = leg, L = $5 for leg " in leg
    assert "Public Key Algorithm: ED25519 " in leg
    assert names.replace("arm", "leg") in leg
    assert "Extended Key Usage" not in leg
    assert "Issuer: C = US, CN = root " in eye
    assert "Subject: C = US, CN = ear, OU = Arms of ear " in ear
    encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----"
    marks = {
        path.parent.name: path.read_text().split("\n")[0] for path in keys.glob("*/key.pem")
    }
    assert [name for name, mark in marks.items() if mark == encrypted] == ["eye"]
    openssl("pkey", "-noout", "-passin", "pass:root", "-in", keys / "eye" / "key.pem")
    assert all(verifies(keys / name) for name in ("arm", "leg", "eye", "ear"))


@cases([Twins(MERGES + ANCHORS, ANCHORS + MERGES, "", "alias.*line 4")])
def test_a_yaml_alias_before_its_anchor_is_refused(compare: Compare, case: Twins) -> None:
    compare(case)


def begins_and_ends(folder: Path) -> list[datetime]:
    """Return when a certificate begins and ends, as openssl reads it."""
    printed = openssl("x509", "-noout", "-startdate", "-enddate", "-in", folder / "cert.pem")
    return [moment(line.partition("=")[2]) for line in printed.splitlines()]


def in_turn(roots: Mapping[str, str]) -> str:
    """Return a configuration of self-signed entries, each with its own field of validity."""
    fields: dict[str, str] = {}
    for name, validity in roots.items():
        own = {
            k.replace("root", name): v for k, v in SMALL.items() if k.startswith("keys/root/")
        }
        fields |= {k: v for k, v in own.items() if "/validity" not in k}
        fields |= {f"keys/{name}/validity": validity}
    return written(fields)


def test_absolute_validity_is_what_the_certificate_says(accept: Accept) -> None:
    begins = datetime(2020, 2, 29, 0, 0, 0, tzinfo=timezone.utc)
    ends = datetime(2040, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    midnight = datetime(2040, 1, 2, tzinfo=timezone.utc)
    late = datetime(2060, 12, 31, 23, 59, 59, tzinfo=timezone.utc)
    cases = {
        "zulu": ("2040-01-02T03:04:05Z", ends),
        "quoted": ('"2040-01-02T03:04:05Z"', ends),
        "blank": ("2040-01-02 03:04:05", ends),
        "east": ("2040-01-02T05:04:05+02:00", ends),
        "west": ("2040-01-01T22:04:05-05:00", ends),
        "fraction": ("2040-01-02T03:04:05.678Z", ends),
        "date": ("2040-01-02", midnight),
        "late": ("2060-12-31T23:59:59Z", late),
    }
    roots = {
        name: f"{{notBefore: 2020-02-29, notAfter: {end}}}" for name, (end, _) in cases.items()
    }
    keys = accept(in_turn(roots)) / "keys"
    read = {name: begins_and_ends(keys / name) for name in cases}
    assert read == {name: [begins, end] for name, (_, end) in cases.items()}


def test_relative_validity_counts_from_now(tmp_path: Path) -> None:
    hour, day = timedelta(hours=1), timedelta(days=1)
    cases = {
        "hours": ("{notBefore: -36h, notAfter: 1h}", -36 * hour, hour),
        "days": ("{notBefore: -1d, notAfter: 10d}", -day, 10 * day),
        "weeks": ("{notBefore: -2w, notAfter: +3w}", -14 * day, 21 * day),
        "years": ("{notBefore: -1y, notAfter: 20y}", -365 * day, 20 * 365 * day),
        "now": ("{notBefore: 0h, notAfter: 30d}", 0 * day, 30 * day),
        "left-out": ("{notAfter: 30d}", 0 * day, 30 * day),
    }
    now = datetime.now(timezone.utc).replace(microsecond=0)
    text = in_turn({name: validity for name, (validity, _, _) in cases.items()})
    fine(generate_from(tmp_path, text, now))
    # What begins now has begun for a clock that is a tick behind.
    second = timedelta(seconds=1)
    for name, (_, begin, end) in cases.items():
        times = [now - second + begin, now - second + end]
        assert begins_and_ends(tmp_path / "keys" / name) == times, name


def test_a_list_ends_with_its_ca_unless_next_update_is_set(accept: Accept) -> None:
    roots = {
        "long": "{notAfter: 2040-01-02}",
        "short": "{notAfter: 2040-01-02, nextUpdate: 30d}",
    }
    keys = accept(in_turn(roots)) / "keys"
    ends = {name: lists(keys / name / "crl.pem")[0].next_update_utc for name in roots}
    assert ends["long"] == datetime(2040, 1, 2, tzinfo=timezone.utc)
    assert ends["short"]
    left = ends["short"] - datetime.now(timezone.utc)
    assert timedelta(days=30) - timedelta(minutes=5) < left < timedelta(days=30)


def test_a_child_that_would_outlive_its_issuer_ends_with_it_and_the_output_says_so(
    accept: Accept,
) -> None:
    end = "2035-06-07T08:09:10Z"
    twin = {k.replace("/node/", "/twin/"): v for k, v in SMALL.items() if "/node/" in k}
    changes = {
        "keys/master/validity/notAfter": end,
        "keys/nodes/node/validity/notAfter": "2035-06-07T08:09:11Z",
    }
    folder = accept(small(changes | twin | {"keys/nodes/twin/validity/notAfter": end}))
    for name in ("master", "node", "twin"):
        expected = datetime(2035, 6, 7, 8, 9, 10, tzinfo=timezone.utc)
        assert begins_and_ends(folder / "keys" / name)[1] == expected
    said = {name: line.split() for name, line in lines((folder / "out").read_text())}
    assert said["node"].count("master") == 2 and said["twin"].count("master") == 1


# --- The examples in the shipped configuration -----------------------------------------------


PURPOSES = {"s": "TLS Web Server Authentication", "c": "TLS Web Client Authentication"}
P_256, P_3072 = "NIST CURVE: P-256", "Public-Key: (3072 bit)"
OWN_NAME = "DNS:talker, DNS:localhost, IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1"
ROOTS, USUAL, ARMS = "SROS_ROOT_PASSPHRASE", "SROS_PASSPHRASE", "SROS_ARM_PASSPHRASE"


@pytest.mark.parametrize(
    ("name", "key", "purposes", "names", "opened_by"),
    [
        ("client2", P_256, "c", "DNS:client2", [USUAL]),
        ("talker", P_256, "sc", OWN_NAME, [USUAL]),
        ("legacy", P_3072, "c", "DNS:legacy", [USUAL]),
        # A key that is not encrypted opens with any pass phrase.
        ("camera", P_256, "c", "DNS:camera", [ROOTS, USUAL, ARMS]),
        ("arm", P_256, "c", "DNS:arm", [ARMS]),
    ],
)
def test_a_commented_example_works_as_its_comment_says(
    copy: Path, name: str, key: str, purposes: str, names: str, opened_by: list[str]
) -> None:
    uncomment(copy, name)
    phrases = PHRASES | {ARMS: "of its own"}
    fine(generate_here(copy, env=phrases))
    folder = copy / "keys" / name
    text = text_of(folder)
    assert key in text
    used = ", ".join(PURPOSES[each] for each in purposes)
    assert f"X509v3 Extended Key Usage: {used} X509v3" in text
    assert f"X509v3 Subject Alternative Name: {names} " in text
    assert f"Subject: C = US, O = SROS Example, OU = Robots, CN = {name} " in text
    assert verifies(folder)
    command = ("openssl", "pkey", "-noout", "-in", folder / "key.pem", "-passin")
    results = {each: run(*command, f"pass:{phrase}") for each, phrase in phrases.items()}
    assert [each for each in results if results[each].returncode == 0] == opened_by


# --- Key types -------------------------------------------------------------------------------

KEY_TYPES = {
    "ec:prime256v1": "NIST CURVE: P-256",
    "ec:secp384r1": "NIST CURVE: P-384",
    "ec:secp521r1": "NIST CURVE: P-521",
    "rsa:2048": "Public-Key: (2048 bit)",
    "rsa:3072": "Public-Key: (3072 bit)",
    "ed25519": "Public Key Algorithm: ED25519",
    "ed448": "Public Key Algorithm: ED448",
}


def chain_of(key: str) -> dict[str, str]:
    """Return a root, a master and a node on keys of one type; their names begin with it."""
    name = key.replace(":", "-")
    fields: dict[str, str] = {}
    for entry, issuer in [(ROOT, "~"), (MASTER, f"{name}-root"), (NODE, f"{name}-master")]:
        place = f"{os.path.dirname(entry)}/{name}-{os.path.basename(entry)}"
        fields |= another(entry, os.path.basename(place))
        fields |= {f"{place}/key": key, f"{place}/issuer": issuer}
    return fields


CHAINS = written({k: v for key in [*KEY_TYPES, *ML_DSA] for k, v in chain_of(key).items()})


@pytest.mark.parametrize("key", KEY_TYPES)
def test_a_chain_of_one_key_type_verifies(accept: Accept, key: str) -> None:
    folder = accept(CHAINS)
    name = key.replace(":", "-")
    said = dict(lines((folder / "out").read_text()))
    for entry in (f"{name}-root", f"{name}-master", f"{name}-node"):
        assert KEY_TYPES[key] in text_of(folder / "keys" / entry)
        assert key in said[entry].split()
    assert verifies(folder / "keys" / f"{name}-node")
    strange = next(each for each in KEY_TYPES if each != key).replace(":", "-")
    stranger = folder / "keys" / f"{strange}-node"
    assert judge(folder / "keys" / f"{name}-node", stranger).returncode != 0


def test_a_digest_is_what_its_key_signs_with(accept: Accept) -> None:
    digests = {
        "a": ("rsa:2048", "sha256", "sha256WithRSAEncryption"),
        "b": ("rsa:2048", "sha384", "sha384WithRSAEncryption"),
        "c": ("ec:secp384r1", "~", "ecdsa-with-SHA256"),
        "d": ("ec:prime256v1", "sha512", "ecdsa-with-SHA512"),
    }
    fields = SMALL
    for name, (key, digest, _) in digests.items():
        fields = fields | another(MASTER, name) | another(NODE, f"{name}-node")
        fields |= {f"keys/{name}/key": key, f"keys/{name}/digest": digest}
        fields |= {f"keys/nodes/{name}-node/issuer": name}
    keys = accept(written(fields)) / "keys"
    for name, (_, _, algorithm) in digests.items():
        assert f"Signature Algorithm: {algorithm} " in text_of(keys / f"{name}-node")
        assert "Signature Algorithm: ecdsa-with-SHA256 " in text_of(keys / name)
        crl = openssl("crl", "-noout", "-text", "-in", keys / name / "crl.pem")
        assert f"Signature Algorithm: {algorithm}\n" in crl


def context(folder: Path, anchor: Path) -> SSL.Context:
    """Return a context with a node's files, which trusts an anchor and checks all lists."""
    made = SSL.Context(SSL.TLS_METHOD)
    made.set_min_proto_version(SSL.TLS1_3_VERSION)
    made.use_certificate_chain_file(folder / "fullchain.pem")
    made.use_privatekey_file(folder / "key.pem")
    made.check_privatekey()
    made.load_verify_locations(anchor / "ca.pem")
    made.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    store = made.get_cert_store()
    assert store is not None
    check_in_full(store, anchor)
    return made


def check_in_full(store: crypto.X509Store, folder: Path) -> None:
    """Have a store check strictly, with all revocation lists of a node's folder."""
    lists = re.findall(
        r"-----BEGIN[^-]+-----[^-]+-----END[^-]+-----\n", (folder / "crl.pem").read_text()
    )
    assert len(lists) == 2
    for each in lists:
        store.add_crl(x509.load_pem_x509_crl(each.encode()))
    flags = crypto.X509StoreFlags
    store.set_flags(flags.X509_STRICT | flags.CRL_CHECK | flags.CRL_CHECK_ALL)


def shake_hands(server: SSL.Context, client: SSL.Context) -> list[SSL.Connection]:
    """Connect two contexts in memory, and return both ends after an exchange."""
    ends = [SSL.Connection(server), SSL.Connection(client)]
    ends[0].set_accept_state()
    ends[1].set_connect_state()
    for _ in range(4):  # flights
        for end, other in (ends, ends[::-1]):
            try:
                end.do_handshake()
            except SSL.WantReadError:
                pass
            finally:
                carry(end, other)
    for end, other in (ends, ends[::-1]):
        end.send(b"hola\n")
        carry(end, other)
        assert other.recv(9) == b"hola\n"
    return ends


def carry(end: SSL.Connection, other: SSL.Connection) -> None:
    """Take what one end has written to the other."""
    with contextlib.suppress(SSL.WantReadError):  # it has written nothing
        other.bio_write(end.bio_read(1 << 20))


def require_newer_cryptography(folder: Path, key: str) -> None:
    """Require the one line that says that a type of key is too new, and nothing made."""
    result = generate_from(folder, small({f"{NODE}/key": key}))
    assert (result.returncode, result.stdout) == (2, "")
    said = refusal(result.stderr)
    assert said == f"keys.nodes.node.key: {key} needs cryptography 47 or newer\n"
    assert [path.name for path in folder.iterdir()] == ["sros_config.yml"]


@pytest.mark.parametrize("key", ["ml-dsa-44", "ml-dsa-65", "ml-dsa-87"])
def test_ml_dsa_makes_a_chain_and_a_handshake_or_a_line_names_what_it_takes(
    tmp_path: Path, accept: Accept, key: str
) -> None:
    if key not in ML_DSA:
        require_newer_cryptography(tmp_path, key)
        return

    keys = accept(CHAINS) / "keys"
    chain = [
        x509.load_pem_x509_certificate((keys / f"{key}-{name}" / "cert.pem").read_bytes())
        for name in ("root", "master", "node")
    ]
    root, master, node = chain
    for certificate, issuer in [(root, root), (master, root), (node, master)]:
        certificate.verify_directly_issued_by(issuer)
        assert key.upper().replace("-", "") in type(certificate.public_key()).__name__.upper()
        assert certificate.signature_hash_algorithm is None
    store = crypto.X509Store()
    store.add_cert(crypto.X509.from_cryptography(root))
    check_in_full(store, keys / f"{key}-node")
    leaf, between = (crypto.X509.from_cryptography(each) for each in (node, master))
    crypto.X509StoreContext(store, leaf, [between]).verify_certificate()

    ours = context(keys / f"{key}-node", anchor=keys / f"{key}-node")
    for end in shake_hands(ours, ours):
        assert end.get_protocol_version_name() == "TLSv1.3"
        peer = end.get_peer_certificate()
        assert peer is not None and peer.to_cryptography() == node
    strange = keys / "ed25519-node"
    ours_too = context(strange, anchor=keys / f"{key}-node")
    with pytest.raises(SSL.Error, match="certificate verify failed"):
        shake_hands(ours, ours_too)


# --- Five levels and every extension ---------------------------------------------------------

FIVE_LEVELS = """\
keys:
  cell:
    issuer: plant
    key: ed448
    subject: {commonName: $name}
    validity: {notAfter: 4y}
    extensions:
      subjectKeyIdentifier: hash
      authorityKeyIdentifier: keyid
      keyUsage: critical, digitalSignature, keyCertSign, cRLSign
      basicConstraints: critical, CA:TRUE, pathlen:0
      certificatePolicies: critical, 2.5.29.32.0
      extendedKeyUsage: critical, serverAuth, clientAuth, emailProtection
  nodes:
    sensor:
      issuer: cell
      key: ec:secp384r1
      subject: {commonName: $name}
      validity: {notAfter: 1y}
      extensions:
        basicConstraints: CA:FALSE
        keyUsage: digitalSignature, nonRepudiation, keyAgreement, encipherOnly, decipherOnly
        authorityKeyIdentifier: keyid
        subjectAltName: critical, DNS:sensor.example
        crlDistributionPoints: critical, URI:http://ca.example/cell.crl
        certificatePolicies: 1.3.6.1.4.1.99999.5, 1.3.6.1.4.1.99999.6
    robot:
      issuer: cell
      key: rsa:2048
      subject:
        domainComponent: robots
        countryName: NL
        stateOrProvinceName: Zuid-Holland
        localityName: Delft
        organizationName: Robots & Söhne
        organizationalUnitName: Arms
        serialNumber: "0123"
        commonName: $name
        emailAddress: $name@robots.example
      validity: {notAfter: 1y}
      extensions:
        1.3.6.1.4.1.99999.1: DER:0c:05:68:65:6c:6c:6f
        basicConstraints: critical, CA:FALSE
        keyUsage: critical, keyEncipherment, digitalSignature, dataEncipherment
        extendedKeyUsage: serverAuth, clientAuth, emailProtection, 1.3.6.1.4.1.99999.2
        subjectKeyIdentifier: hash
        authorityKeyIdentifier: keyid
        subjectAltName: DNS:$name.example, DNS:*.$name.example, IP:192.0.2.7, IP:2001:db8::7,
          URI:https://$name.example/a?b=c, email:$name@robots.example
        certificatePolicies: 1.3.6.1.4.1.99999.5
        crlDistributionPoints: URI:http://ca.example/cell.crl, URI:http://cb.example/cell.crl
        authorityInfoAccess: OCSP;URI:http://ocsp.example/, caIssuers;URI:http://ca.example/cell.cer
  root:
    key: rsa:2048
    digest: sha512
    subject: {commonName: $name}
    validity: {notAfter: 10y}
    extensions:
      basicConstraints: critical, CA:TRUE, pathlen:3
      keyUsage: keyCertSign, cRLSign
      subjectKeyIdentifier: hash
      authorityKeyIdentifier: keyid
  plant:
    issuer: region
    key: ed25519
    subject: {commonName: $name}
    validity: {notAfter: 6y}
    extensions:
      basicConstraints: critical, CA:TRUE, pathlen:1
      keyUsage: critical, keyCertSign, cRLSign
      subjectKeyIdentifier: hash
      authorityKeyIdentifier: keyid
      nameConstraints: excluded;email:spam.example, excluded;URI:.spam.example
  region:
    issuer: root
    key: ec:secp384r1
    digest: sha384
    subject: {commonName: $name}
    validity: {notAfter: 8y}
    extensions:
      2.5.29.54: critical, DER:02 01 05
      basicConstraints: critical, CA:TRUE, pathlen:2
      keyUsage: critical, keyCertSign, cRLSign
      subjectKeyIdentifier: hash
      authorityKeyIdentifier: keyid
      nameConstraints: critical, permitted;DNS:example, permitted;email:robots.example,
        permitted;IP:192.0.2.0/255.255.255.0, permitted;IP:2001:db8::/32,
        excluded;DNS:spam.example
"""
# What openssl prints of them: entry, name of the extension, value.
PRINTED = [
    ("root", "X509v3 Basic Constraints", "critical CA:TRUE, pathlen:3"),
    ("root", "X509v3 Key Usage", "Certificate Sign, CRL Sign"),
    ("region", "X509v3 Basic Constraints", "critical CA:TRUE, pathlen:2"),
    ("region", "X509v3 Key Usage", "critical Certificate Sign, CRL Sign"),
    (
        "region",
        "X509v3 Name Constraints",
        "critical Permitted: DNS:example email:robots.example IP:192.0.2.0/255.255.255.0 "
        "IP:2001:DB8:0:0:0:0:0:0/FFFF:FFFF:0:0:0:0:0:0 Excluded: DNS:spam.example",
    ),
    ("region", "X509v3 Inhibit Any Policy", "critical 5"),
    ("plant", "X509v3 Basic Constraints", "critical CA:TRUE, pathlen:1"),
    ("plant", "X509v3 Name Constraints", "Excluded: email:spam.example URI:.spam.example"),
    ("cell", "X509v3 Basic Constraints", "critical CA:TRUE, pathlen:0"),
    ("cell", "X509v3 Key Usage", "critical Digital Signature, Certificate Sign, CRL Sign"),
    ("cell", "X509v3 Certificate Policies", "critical Policy: X509v3 Any Policy"),
    (
        "cell",
        "X509v3 Extended Key Usage",
        "critical TLS Web Server Authentication, TLS Web Client Authentication, "
        "E-mail Protection",
    ),
    ("robot", "X509v3 Basic Constraints", "critical CA:FALSE"),
    (
        "robot",
        "X509v3 Key Usage",
        "critical Digital Signature, Key Encipherment, Data Encipherment",
    ),
    (
        "robot",
        "X509v3 Extended Key Usage",
        "TLS Web Server Authentication, TLS Web Client Authentication, E-mail Protection, "
        "1.3.6.1.4.1.99999.2",
    ),
    (
        "robot",
        "X509v3 Subject Alternative Name",
        "DNS:robot.example, DNS:*.robot.example, IP Address:192.0.2.7, "
        "IP Address:2001:DB8:0:0:0:0:0:7, URI:https://robot.example/a?b=c, "
        "email:robot@robots.example",
    ),
    ("robot", "X509v3 Certificate Policies", "Policy: 1.3.6.1.4.1.99999.5"),
    (
        "robot",
        "X509v3 CRL Distribution Points",
        "Full Name: URI:http://ca.example/cell.crl Full Name: URI:http://cb.example/cell.crl",
    ),
    (
        "robot",
        "Authority Information Access",
        "OCSP - URI:http://ocsp.example/ CA Issuers - URI:http://ca.example/cell.cer",
    ),
    ("robot", "1.3.6.1.4.1.99999.1", "..hello"),
    ("sensor", "X509v3 Basic Constraints", "CA:FALSE"),
    (
        "sensor",
        "X509v3 Key Usage",
        "Digital Signature, Non Repudiation, Key Agreement, Encipher Only, Decipher Only",
    ),
    ("sensor", "X509v3 Subject Alternative Name", "critical DNS:sensor.example"),
    (
        "sensor",
        "X509v3 CRL Distribution Points",
        "critical Full Name: URI:http://ca.example/cell.crl",
    ),
    (
        "sensor",
        "X509v3 Certificate Policies",
        "Policy: 1.3.6.1.4.1.99999.5 Policy: 1.3.6.1.4.1.99999.6",
    ),
]
LEVELS = ["root", "region", "plant", "cell", "robot"]


@pytest.mark.parametrize(("name", "extension", "value"), PRINTED)
def test_an_extension_is_read_back_as_it_was_written(
    accept: Accept, name: str, extension: str, value: str
) -> None:
    text = text_of(accept(FIVE_LEVELS) / "keys" / name)
    after = (
        r"(?:X509v3 (?!Any)[\w ]+|Authority Information Access|1[.0-9]+|Signature Algorithm):"
    )
    assert re.findall(rf"{re.escape(extension)}: (.*?) (?={after})", text) == [value]


def test_key_identifiers_lead_from_each_level_to_the_next(accept: Accept) -> None:
    keys = accept(FIVE_LEVELS) / "keys"
    bytes_in_hex = "((?:[0-9A-F]{2}:){19}[0-9A-F]{2}) "
    own, issuers = {}, {}
    for name in [*LEVELS, "sensor"]:
        text = text_of(keys / name)
        own[name] = re.findall(f"X509v3 Subject Key Identifier: {bytes_in_hex}", text)
        issuers[name] = re.findall(f"X509v3 Authority Key Identifier: {bytes_in_hex}", text)
    assert own.pop("sensor") == []
    assert len({tuple(each) for each in own.values()}) == len(LEVELS)
    for name, above in zip([*LEVELS, "sensor"], ["root", *LEVELS[:4], "cell"], strict=True):
        assert issuers[name] == own[above] and len(own[above]) == 1


def test_five_levels_in_shuffled_order_are_walked_from_the_top_and_verify(
    accept: Accept,
) -> None:
    folder = accept(FIVE_LEVELS)
    lines = (folder / "out").read_text().splitlines()
    assert [line.split()[0] for line in lines] in (
        [*LEVELS, "sensor"],
        [*LEVELS[:4], "sensor", "robot"],
    )
    indents = {line.split()[0]: len(line) - len(line.lstrip()) for line in lines}
    assert len({indents[name] for name in LEVELS}) == 5
    assert indents["robot"] == indents["sensor"] > indents["cell"] > indents["plant"]
    for name in ("robot", "sensor"):
        assert verifies(folder / "keys" / name)
        path = folder / "keys" / name / "fullchain.pem"
        subjects = openssl("storeutl", "-noout", "-text", "-certs", path).count("Subject: ")
        assert subjects == 4
    algorithms = {
        "region": "sha512WithRSAEncryption",
        "plant": "ecdsa-with-SHA384",
        "cell": "ED25519",
        "robot": "ED448",
    }
    for name, algorithm in algorithms.items():
        assert f"Signature Algorithm: {algorithm} " in text_of(folder / "keys" / name)


def test_a_subject_is_in_the_order_in_which_it_is_written(accept: Accept) -> None:
    path = accept(FIVE_LEVELS) / "keys" / "robot" / "cert.pem"
    subject = openssl(
        "x509", "-noout", "-subject", "-nameopt", "sep_comma_plus,utf8", "-in", path
    )
    assert subject.strip() == (
        "subject=DC=robots,C=NL,ST=Zuid-Holland,L=Delft,O=Robots & Söhne,OU=Arms,"
        "serialNumber=0123,CN=robot,emailAddress=robot@robots.example"
    )


def test_a_name_outside_of_its_cas_constraints_is_an_error_and_is_not_written(
    accept: Accept, tmp_path: Path
) -> None:
    allowed = {
        "keys/master/extensions/nameConstraints": "critical, permitted;DNS:example",
        "keys/nodes/node/extensions/subjectAltName": "DNS:node.example",
    }
    assert verifies(accept(small(allowed)) / "keys" / "node")
    text = small({**allowed, "keys/nodes/node/extensions/subjectAltName": "DNS:node.test"})
    result = generate_from(tmp_path, text)
    assert result.returncode == 1
    assert re.fullmatch(f"{GENERATE.name}: error: .*node.*permitted.*\n", result.stderr)
    assert not (tmp_path / "keys" / "node").exists()


# --- Many ------------------------------------------------------------------------------------


def test_fifty_nodes_take_one_line_of_yaml_each_and_the_output_counts_them(
    accept: Accept,
) -> None:
    text = small().replace("    node:\n", "    node: &node\n").replace("DNS:node", "DNS:$name")
    fleet = [f"robot-{number}" for number in range(1, 50)]
    folder = accept(text + "".join(f"    {name}: {{<<: *node}}\n" for name in fleet))
    lines = (folder / "out").read_text().splitlines()
    assert len(lines) == 52
    for number, line in enumerate(lines, 1):
        assert re.search(rf"\b{number}(/| of )52\b", line), line
    for name in ("node", fleet[0], fleet[-1]):
        assert verifies(folder / "keys" / name)
        assert f"Subject: CN = {name} " in text_of(folder / "keys" / name)
    assert len(list((folder / "keys").glob("*/cert.pem"))) == 52


def test_the_next_run_makes_only_the_new_entry(copy: Path) -> None:
    kept = {path: path.read_bytes() for path in copy.glob("keys/*/*.pem")}
    uncomment(copy, "client2")
    fine(generate_here(copy))
    made = {path: path.read_bytes() for path in copy.glob("keys/*/*.pem")}
    assert {path: made[path] for path in kept} == kept
    assert {path.parent.name for path in made.keys() - kept.keys()} == {"client2"}


# --- The file as a whole ---------------------------------------------------------------------


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    result = generate_here(tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert "no such file" in refusal(result.stderr).lower()
    assert not any(tmp_path.iterdir())
    configure(tmp_path)
    assert generate_here(tmp_path).returncode == 0


def test_a_missing_file_is_named_as_it_was_given(tmp_path: Path) -> None:
    result = generate_here(tmp_path, "-c", "other/robots.yml")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"{GENERATE.name}: error: other/robots.yml: ")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "robots.yml").write_text(small())
    assert generate_here(tmp_path, "-c", "other/robots.yml").returncode == 0
    assert (tmp_path / "keys" / "node" / "cert.pem").exists()


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sros_config.yml").mkdir()
    result = generate_here(tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert "directory" in refusal(result.stderr).lower()
    assert not (tmp_path / "keys").exists()


def names_in(folder: Path) -> set[str]:
    """Return the names of the keys folder's files. Those on record have random ones."""
    return {str(path.relative_to(folder)) for path in folder.glob("keys/*/*.pem")}


@pytest.mark.parametrize(
    "text",
    [
        small(),
        small({f"{NODE}/key": "rsa:1024"}),
        "keys: [root]\n",
        "[" * 5000,
        b"\xff\xfe\xff",
    ],
    ids=["sound", "a field", "the file", "deep", "no text"],
)
def test_a_process_prints_and_makes_the_same_as_main(
    tmp_path_factory: pytest.TempPathFactory, text: str | bytes
) -> None:
    here, there = (tmp_path_factory.mktemp(name) for name in ("here", "there"))
    expected = generate_from(here, text)
    shutil.copy(here / "sros_config.yml", there)
    result = generate(there)
    assert result.returncode == expected.returncode
    assert (result.stdout, result.stderr) == (expected.stdout, expected.stderr)
    assert names_in(there) == names_in(here)


WHOLE: list[tuple[str | bytes, str]] = [
    ("", "keys|empty"),
    ("# keys:\n", "keys|empty"),
    ("[keys]\n", "mapping"),
    ("keys:\n", "mapping"),
    ("keys: [root]\n", "mapping"),
    ("keys: {}\n", "mapping"),
    ("keys:\n\troot: {}\n", "line 2"),
    ("keys: *root\n", "alias.*line 1"),
    ("keys: !!python/name:os.system\n", "line 1"),
    ("keys: {}\n---\nkeys: {}\n", "document"),
    ("keys: {? [a] : b, ? {c: d} : e}\n", "line 1"),
    ("[" * 5000, "line [12]|recursion|depth|deep"),
    ("{a: " * 100_000, "deep.*line 1|depth.*line 1"),
    ("- " * 100_000, "deep.*line 1"),
    ("? " * 100_000, "deep.*line 1"),
    ("[" * 101 + "]" * 101, "nested more than 100 levels deep .*line 1"),
    ("[" * 99 + "]" * 99, "must be a mapping"),
    (b"\xff\xfe\xff", "utf|character|decod|stream|position"),
    (b"keys: \x00\n", "character|position|null"),
    (b"keys: {root: {subject: {commonName: \xe9}}}\n", "utf|character|decod|position"),
]


@cases([Twins(text, small(), "", reason) for text, reason in WHOLE])
def test_yaml_that_is_not_a_mapping_is_refused(compare: Compare, case: Twins) -> None:
    compare(case)


ALIASES = [
    ("x-a: &a {b: *a}\n", "x-a: &a {b: c}\nx-d: {b: *a}\n"),
    ("x-a: &a [*a]\n", "x-a: &a [b]\nx-c: [*a]\n"),
    ("x-a: &a {b: {c: [*a]}}\n", "x-a: {b: {c: [&a d]}}\n"),
    ("x-a: &a {<<: *a}\n", "x-a: &a {b: c}\nx-d: {<<: *a}\n"),
]


@cases(
    [
        Twins(broken + small(), sound + small(), "", "recursive|itself|circle|cycle|loop")
        for broken, sound in ALIASES
    ]
)
def test_recursive_aliases_are_refused(compare: Compare, case: Twins) -> None:
    compare(case)


BOMB = "x-0: &a0 [x]\n" + "".join(
    f"x-{depth + 1}: &a{depth + 1} [{', '.join([f'*a{depth}'] * 9)}]\n" for depth in range(8)
)
KEY = f"{ROOT}/key"


@cases(
    [
        Twins(
            BOMB + small({KEY: "*a8"}),
            BOMB + small(),
            "keys.root.key",
            "list",
            "aliases of aliases",
        ),
        Twins(
            small({KEY: "!!bool x"}),
            small({KEY: "!!str ed25519"}),
            "",
            "'x'",
            "no truth value",
        ),
        Twins(
            small({f"{NODE}/extensions/1.2.3.04": "DER:0500"}),
            small({f"{NODE}/extensions/1.2.3.4": "DER:0500"}),
            f"{NODE}/extensions/1.2.3.04".replace("/", "."),
            "field",
            "a zero in front",
        ),
    ]
)
def test_absurd_yaml_gives_one_error_line_at_once(compare: Compare, case: Twins) -> None:
    before = time.process_time()
    compare(case)
    assert time.process_time() - before < 3


DUPLICATES = [
    ("    key: ec:prime256v1\n", "    key: ed25519\n", "key"),
    ("      commonName: $name\n", "      commonName: $name\n", "commonName"),
    ("      notAfter: 10y\n", "      notAfter: 9y\n", "notAfter"),
    (
        "      subjectKeyIdentifier: hash\n",
        "      subjectKeyIdentifier: ~\n",
        "subjectKeyIdent",
    ),
    ("  root:\n", "  root: {}\n", "root"),
    ("    node:\n", "    node: {}\n", "node"),
    ("keys:\n", "keys: {}\n", "keys"),
]


@cases(
    [
        Twins(small().replace(once, again + once, 1), small(), "", rf"\b{name}.*line \d+")
        for once, again, name in DUPLICATES
    ]
)
def test_a_duplicate_field_is_refused(compare: Compare, case: Twins) -> None:
    compare(case)


TWO = "x-a: &a {key: ed25519}\nx-b: &b {digest: ~}\n" + small()


@cases(
    [
        Twins(
            TWO.replace("  root:\n", "  root:\n    <<: *a\n    <<: *b\n"),
            TWO.replace("  root:\n", "  root:\n    <<: [*a, *b]\n"),
            "",
            r"<<.*line \d+",
        )
    ]
)
def test_a_duplicate_merge_is_refused_and_a_list_of_merges_is_not(
    compare: Compare, case: Twins
) -> None:
    compare(case)


# --- Fields: broken and sound ----------------------------------------------------------------

ON_TOP = ["colour", "nodes"]
UNKNOWN = [
    *(f"{ROOT}/colour", f"{ROOT}/Key"),
    *(f"{ROOT}/subject/planet", f"{ROOT}/subject/mro", f"{ROOT}/validity/days"),
    *(f"{NODE}/colour", f"{NODE}/extensions/nsComment"),
    f"{NODE}/extensions/1",
]


@cases(
    [
        Twins(
            small({place: "red"}),
            small({f"x-{each}": "red" for each in ON_TOP}),
            where,
            reason,
            place,
        )
        for place, where, reason in [
            *((each, "", rf"\b{each}\b.*unknown|unknown.*\b{each}\b") for each in ON_TOP),
            *((each, each.replace("/", "."), "unknown|no known") for each in UNKNOWN),
        ]
    ]
)
def test_an_unknown_field_is_refused(compare: Compare, case: Twins) -> None:
    compare(case)


WRONG_TYPES = [
    ("keys/nodes", "[node]"),
    (ROOT, "~"),
    (NODE, "node"),
    (f"{ROOT}/key", "[ed25519]"),
    (f"{ROOT}/key", "{rsa: 2048}"),
    (f"{ROOT}/key", "2048"),
    (f"{ROOT}/subject/commonName", "{root: 1}"),
    (f"{ROOT}/validity", "1y"),
    (f"{ROOT}/validity/notAfter", "10"),
    (f"{ROOT}/extensions/keyUsage", "{keyCertSign: 1}"),
    (f"{NODE}/issuer", "[master]"),
]


@cases(
    [
        Twins(
            small({place: broken}),
            small(),
            place.replace("/", "."),
            "mapping|not? text|unknown|no known|quotes",
        )
        for place, broken in WRONG_TYPES
    ]
)
def test_a_wrong_type_is_refused(compare: Compare, case: Twins) -> None:
    compare(case)


MISSING = [
    (ROOT, "key"),
    (ROOT, "subject/commonName"),
    (ROOT, "validity/notAfter"),
    (ROOT, BASIC),
    (ROOT, USAGE),
    (MASTER, ABOVE),
    (NODE, "issuer"),
]


@cases(
    [
        Twins(
            small({f"{entry}/{field}": "~"}),
            small(),
            entry.replace("/", "."),
            f"{field.replace('/', '.').removesuffix('.commonName')}.*missing",
        )
        for entry, field in MISSING
    ]
)
def test_a_missing_field_is_refused(compare: Compare, case: Twins) -> None:
    compare(case)


@cases(
    table(
        NODE,
        ("key", "rsa:1024", "rsa:2048", "rsa:2048"),
        ("key", "rsa:2047", "rsa:2048", "rsa:2048"),
        ("key", "rsa:16384", "rsa:4096", "8192"),
        ("key", "rsa", "rsa:2048", "rsa:"),
        ("key", "ec:secp256k1", "ec:secp384r1", "prime256v1"),
        ("key", "ec:P-521", "ec:secp521r1", "secp521r1"),
        ("key", "dsa:2048", "ed25519", "ed25519"),
        ("key", "ml-dsa-66", ML_DSA[0] if ML_DSA else "ed25519", "ml-dsa-(65|.*65)"),
        ("key", '""', "ed448", "ed448"),
        ("digest", "md5", "sha256", "sha256"),
        ("digest", "sha1", "sha384", "sha256"),
        ("digest", "sha3-512", "sha512", "sha256"),
    )
)
def test_a_bad_key_type_or_digest_is_refused(compare: Compare, case: Twins) -> None:
    compare(case)


@pytest.mark.slow  # up to a minute
def test_the_largest_rsa_key_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "sros_config.yml").write_text(small({f"{NODE}/key": "rsa:8192"}))
    fine(generate(tmp_path))
    assert "Public-Key: (8192 bit)" in text_of(tmp_path / "keys/node")


@cases(
    [
        Twins(
            small({f"{NODE}/key": key, f"{NODE}/digest": "sha512"}),
            small({f"{NODE}/key": key, f"{NODE}/digest": "~"}),
            "keys.nodes.node.digest",
            "without|itself|no digest|none",
        )
        for key in ("ed25519", "ed448", *ML_DSA)
    ]
)
def test_a_digest_for_a_key_that_hashes_by_itself_is_refused(
    compare: Compare, case: Twins
) -> None:
    compare(case)


ENCRYPTED = {f"{NODE}/cipher": "aes-256-cbc", f"{NODE}/passphrase": "SROS_PASSPHRASE"}


@cases(
    [
        Twins(
            small({**ENCRYPTED, f"{NODE}/{field}": broken}),
            small(ENCRYPTED),
            f"keys.nodes.node{place}",
            reason,
        )
        for field, broken, place, reason in [
            ("cipher", "aes-128-cbc", ".cipher", "aes-256-cbc"),
            ("cipher", "true", ".cipher", "text|quotes"),
            ("passphrase", "~", "", "passphrase.*(missing|needs)"),
            ("passphrase", "my secret words", ".passphrase", "A-Z|name"),
        ]
    ]
)
def test_a_bad_cipher_or_passphrase_is_refused(compare: Compare, case: Twins) -> None:
    compare(case)


LEAF = another(NODE, "leaf")


@cases(
    [
        *table(
            NODE,
            ("issuer", "nobody", "root", "nobody"),
            ("issuer", "node", "master", r"\bCA\b"),
            ("issuer", "../root", "root", "form|name|CA"),
        ),
        *table(
            MASTER,
            ("issuer", "node", "root", r"\bCA\b"),
            ("issuer", "master", "root", "circle|cycle|itself"),
        ),
        Twins(
            small({**LEAF, "keys/nodes/leaf/issuer": "node"}),
            small(LEAF),
            "keys.nodes.leaf.issuer",
            "there is no CA 'node'",
        ),
        Twins(
            small({f"{ROOT}/issuer": "master", f"{ROOT}/{ABOVE}": "keyid"}),
            small({f"{ROOT}/issuer": "~", f"{ROOT}/{ABOVE}": "keyid"}),
            "keys",
            "^.(root|master).issuer:.*(circle|cycle|loop)",
        ),
    ]
)
def test_an_issuer_that_is_not_a_ca_or_leads_in_a_circle_is_refused(
    compare: Compare, case: Twins
) -> None:
    compare(case)


LOW = another(MASTER, "low") | {"keys/low/issuer": "master"}
LIMIT = f"{ROOT}/extensions/basicConstraints"


@cases(
    [
        Twins(
            small({**below, LIMIT: f"critical, CA:TRUE, pathlen:{limit}"}),
            small({**below, LIMIT: f"critical, CA:TRUE, pathlen:{limit + 1}"}),
            place,
            f"root.*pathlen:{limit}",
        )
        for below, limit, place in [({}, 0, "keys.master"), (LOW, 1, "keys.low")]
    ]
)
def test_a_chain_longer_than_its_path_length_is_refused(compare: Compare, case: Twins) -> None:
    compare(case)


PAST = "in the (future|past)"
FORM = "form|offset"


@cases(
    [
        *table(
            NODE,
            ("validity/notAfter", "-1h", "1h", PAST),
            ("validity/notAfter", "soon", "+1w", FORM),
            ("validity/notAfter", "1m", "1w", FORM),
            ("validity/notAfter", "2040-02-30", "2040-02-29", "day"),
            ("validity/notAfter", "2040-01-01T25:00:00Z", "2040-01-01T23:00:00Z", "hour|form"),
            ("validity/notAfter", "9999999y", "10y", "year|form"),
            ("validity/notBefore", "1990", '"1990-01-01"', "text|quotes"),
            ("validity/notBefore", "1949-12-31", "1950-01-01", "before 1950"),
        ),
        *table(ROOT, ("validity/nextUpdate", "-1d", "1d", PAST)),
        *[
            Twins(
                small({f"{NODE}/validity/notBefore": begin, f"{NODE}/validity/notAfter": end}),
                small({f"{NODE}/validity/notBefore": "2021-01-01"}),
                "keys.nodes.node.validity",
                f"notBefore|notAfter|{PAST}",
            )
            for begin, end in [("2041-01-01", "2040-01-01"), ("-1d", "-2d")]
        ],
        Twins(
            small({f"{NODE}/validity/nextUpdate": "30d"}),
            small({f"{MASTER}/validity/nextUpdate": "30d"}),
            "keys.nodes.node.validity.nextUpdate",
            r"\bCA\b",
        ),
    ]
)
def test_a_bad_validity_is_refused(compare: Compare, case: Twins) -> None:
    compare(case)


@cases(
    table(
        NODE,
        ("subject/countryName", "NO", '"NO"', "quotes"),
        ("subject/countryName", "USA", "US", "form|two|A-Z"),
        ("subject/serialNumber", "0123", '"0123"', "octal.*quotes|quotes.*octal"),
        ("subject/organizationalUnitName", "yes", "'yes'", "quotes"),
        ("subject/organizationName", '""', "Robots & Söhne", "form|empty"),
        ("subject/commonName", f"{L63}ab", f"{L63}a", "64"),
        ("subject/commonName", '"a\\nb"', "a b", "form|print|control|character"),
        ("subject/commonName", "$nom", "$name", r"\$name"),
        ("subject/commonName", "5$", "5$$", r"\$\$"),
        ("subject/emailAddress", "robots", "robots@robots.example", "form|@"),
        ("extensions/subjectAltName", "DNS:$nom", "DNS:$name", r"\$name"),
    )
)
def test_a_bad_text_is_refused(compare: Compare, case: Twins) -> None:
    compare(case)


CA_TRUE = "critical, CA:TRUE"


@cases(
    [
        *table(
            ROOT,
            (BASIC, "CA:TRUE", CA_TRUE, "critical"),
            (BASIC, "critical, CA:FALSE", CA_TRUE, "CA:TRUE"),
            (BASIC, f"{CA_TRUE}, pathlen:-1", f"{CA_TRUE}, pathlen:1", "len"),
            (BASIC, f"{CA_TRUE}, pathlen:x", f"{CA_TRUE}, pathlen:0", "len"),
            (USAGE, "keyCertSign", "keyCertSign, cRLSign", "cRLSign"),
            ("extensions/subjectKeyIdentifier", "critical, hash", "hash", "not.*critical"),
            ("extensions/subjectKeyIdentifier", "none", "hash", "hash"),
        ),
        *table(
            MASTER,
            (ABOVE, "issuer", "keyid", "keyid"),
            (ABOVE, "critical, keyid", "keyid", "not.*critical"),
            (ABOVE, "keyid:always, issuer", "keyid:always", "keyid"),
            (NAMES, "allowed;DNS:a", "permitted;DNS:a", "permitted"),
            (NAMES, "permitted:DNS:a", "permitted;DNS:.a", "permitted"),
            (NAMES, "excluded;IP:10.0.0.1/8", "excluded;IP:10.0.0.0/8", "bits"),
            (
                NAMES,
                "critical, excluded;IP:10.0.0.0/255.0.255.0",
                "critical, excluded;IP:10.0.0.0/255.255.0.0",
                "mask|network",
            ),
        ),
    ]
)
def test_a_bad_extension_of_a_ca_is_refused(compare: Compare, case: Twins) -> None:
    compare(case)


SAN, OID = "extensions/subjectAltName", "extensions/1.3.6.1.4.1.99999.1"


@cases(
    table(
        NODE,
        (BASIC, "CA:TRUE", "CA:FALSE", "CA:FALSE|none under nodes"),
        (BASIC, "CA:FALSE, pathlen:0", "CA:FALSE", "pathlen"),
        (USAGE, "digitalSignature, cRLSign", "digitalSignature", "no node"),
        (USAGE, "digitalSignature, flying", "keyAgreement", "keyAgreement"),
        (USAGE, "keyAgreement, keyAgreement", "keyAgreement", "twice"),
        (PURPOSE, "coffee", "serverAuth", "coffee|OID|identifier"),
        ("extensions/certificatePolicies", "1.40.1", "1.39.1", "form"),
        (SAN, "localhost", "DNS:localhost", "DNS"),
        (SAN, "DNS:localhost,", "DNS:localhost, DNS:node", "form"),
        (SAN, "DNS:robot..example", "DNS:robot.example", "DNS"),
        (SAN, f"DNS:{L63}a.example", f"DNS:{L63}.example", "DNS"),
        (SAN, "DNS:a.*.example", "DNS:*.robots.example", "DNS"),
        (SAN, "DNS:192.0.2.1", "IP:192.0.2.1", "DNS"),
        (SAN, "DNS:bücher.example", "DNS:xn--bcher-kva.example", "ASCII|xn--"),
        (SAN, "IP:192.0.2.256", "IP:192.0.2.255", "address|octet|255"),
        (SAN, "IP:192.0.2.0/24", "IP:192.0.2.24", "address|octet"),
        (SAN, "IP:localhost", "IP:127.0.0.1", "address"),
        (SAN, "email:robot", "email:robot@robots.example", "not a valid email name"),
        ("extensions/crlDistributionPoints", "http://a/", "URI:http://a/", "URI:"),
        (ACCESS, "OCSP;http://a/", "OCSP;URI:http://a/", "URI:"),
        (ACCESS, "w;URI:a:b", "caIssuers;URI:a:b", "OCSP|OID|identifier"),
        (ACCESS, "critical, OCSP;URI:a:b", "OCSP;URI:a:b", "not.*critical"),
        (NAMES, "permitted;DNS:a", "~", r"\bCA\b"),
        (OID, "DER:050", "DER:05 00", "DER:"),
        ("extensions/1.3.6.1.5.5.7.1.24", "DER:5641", "DER:3003020105", "asn1"),
        ("extensions/2.5.29.18", "DER:3002a300", "DER:30058203613162", "not supported"),
        ("extensions/1.40.3", "DER:0500", "~", "field"),
        ("extensions/2.5.29.19", "DER:3000", "~", "field"),
    )
)
def test_a_bad_extension_of_a_node_is_refused(compare: Compare, case: Twins) -> None:
    compare(case)


# --- Names are folders -----------------------------------------------------------------------

OUTSIDE = f"{os.path.realpath('/tmp')}/test-configuration-{os.getpid()}"
BAD_NAMES = [
    *("../x", "..", "a/b", OUTSIDE, '""', ".hidden", '"a\\nb"', "é", "$name"),
    *("5", "no", L63 + L63 + L63),
]


@cases(
    [
        Twins(small().replace(f"{name}:\n", f"{bad}:\n"), small(), place, "form|name|quotes")
        for name, place, bads in [
            ("    node", "keys.nodes", BAD_NAMES),
            ("  master", "keys", ["../x", OUTSIDE, '""']),
        ]
        for bad in [name[: -len(name.strip())] + bad for bad in bads]
    ]
)
def test_a_name_that_cannot_be_a_folder_is_refused(compare: Compare, case: Twins) -> None:
    compare(case)
    assert not os.path.lexists(OUTSIDE)


@cases(
    [
        Twins(
            small().replace("    node:\n", f"    {name}:\n"),
            small().replace("    node:\n", f"    {name}2:\n"),
            "keys.nodes",
            rf"\b{name}\b",
        )
        for name in ("root", "master")
    ]
)
def test_a_name_under_keys_and_under_nodes_is_refused(compare: Compare, case: Twins) -> None:
    compare(case)


def test_a_name_that_can_be_a_folder_is_accepted(accept: Accept) -> None:
    names = ["a", "-a", "_", "A.b-c_9", '"5"', "'no'", "nodes", L63]
    nodes = [another(NODE, name) for name in names]
    folder = accept(written(SMALL | {k: v for each in nodes for k, v in each.items()}))
    for name in (name.strip("\"'") for name in names):
        assert verifies(folder / "keys" / name)
        assert f"Subject: CN = {name} " in text_of(folder / "keys" / name)
