"""What sros_config.yml may say, and what becomes of it; what it may not say, and what is said then."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from functools import cache
from pathlib import Path

import pytest
from conftest import GENERATE, PHRASES, ROOT, configure, generate, openssl, run
from cryptography import x509
from OpenSSL import SSL, crypto

# A root, a master and a node on unencrypted keys: where each field stands, and its YAML as it is
# written. A broken configuration is this one but for one field, so the field is what is refused.
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
LONG = "a" * 63


def small(changes: Mapping[str, str] | None = None, only: str = "") -> str:
    """Return SMALL as YAML with changes, each in place of the field and all that is in it."""
    fields = {place: value for place, value in SMALL.items() if place.startswith(only)}
    for place, value in (changes or {}).items():
        fields = {k: v for k, v in fields.items() if not k.startswith(f"{place}/")}
        fields[place] = value
    return written(fields)


def written(fields: Mapping[str, str], indent: str = "") -> str:
    """Return fields by place as YAML: what has the same place up to a slash stands together."""
    text = ""
    for name in dict.fromkeys(place.split("/")[0] for place in fields):
        inner = {k[len(name) + 1 :]: v for k, v in fields.items() if k.startswith(f"{name}/")}
        if inner:
            text += f"{indent}{name}:\n{written(inner, indent + '  ')}"
        else:
            text += f"{indent}{name}: {fields[name]}\n"
    return text


def refuse(folder: Path, text: str | bytes, place: str, reason: str) -> None:
    """Run on a configuration: one line must name the place and the reason, and nothing is made."""
    folder.mkdir()
    data = text if isinstance(text, bytes) else text.encode()
    (folder / "sros_config.yml").write_bytes(data)
    result = generate(folder)
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    said = refusal(result.stderr)
    assert re.match(re.escape(place) + "[.:]", said) or not place, said
    assert re.search(reason, said.removeprefix(place), re.IGNORECASE), said
    assert [path.name for path in folder.iterdir()] == ["sros_config.yml"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def refusal(stderr: str) -> str:
    """Return what follows the script and the file in the only line of an error."""
    start = f"{GENERATE.name}: error: sros_config.yml: "
    assert stderr.startswith(start) and stderr.endswith("\n") and stderr.count("\n") == 1, stderr
    return stderr.removeprefix(start)


Accept = Callable[[str], Path]
Pair = Callable[[str | bytes, str, str, str], None]


@pytest.fixture(scope="session")
def accept(tmp_path_factory: pytest.TempPathFactory) -> Accept:
    """Make keys from a configuration, which must succeed: the folder, to read; each is made once."""

    @cache
    def make(text: str) -> Path:
        folder = tmp_path_factory.mktemp("accepted")
        (folder / "sros_config.yml").write_text(text)
        result = generate(folder)
        assert (result.returncode, result.stderr) == (0, ""), text
        (folder / "out").write_text(result.stdout)
        return folder

    return make


@pytest.fixture
def pair(accept: Accept, tmp_path: Path) -> Pair:
    """Have a broken configuration refused and its sound twin accepted, side by side."""

    def check(broken: str | bytes, sound: str, place: str, reason: str) -> None:
        with ThreadPoolExecutor(2) as pool:
            twin = pool.submit(accept, sound)
            refuse(tmp_path / "broken", broken, place, reason)
            folder = twin.result()
        made = {path.parent.name for path in folder.glob("keys/*/cert.pem")}
        assert made == {line.split()[0] for line in (folder / "out").read_text().splitlines()}
        assert made

    return check


def field(pair: Pair, place: str, broken: str, sound: str, reason: str) -> None:
    """Check a pair of values of one field."""
    pair(small({place: broken}), small({place: sound}), place.replace("/", "."), reason)


def text_of(folder: Path) -> str:
    """Return what openssl says of a folder's certificate, each white space as one blank."""
    return " ".join(openssl("x509", "-noout", "-text", "-in", folder / "cert.pem").split())


def verifies(folder: Path, anchor: Path | None = None) -> bool:
    """Tell whether openssl accepts a node by its own files, in strict mode, with all lists."""
    command = ["openssl", "verify", "-x509_strict", "-crl_check_all"]
    files = ["-CRLfile", folder / "crl.pem", "-CAfile", (anchor or folder) / "ca.pem"]
    result = run(*command, *files, "-untrusted", folder / "fullchain.pem", folder / "cert.pem")
    return (result.returncode, result.stdout) == (0, f"{folder / 'cert.pem'}: OK\n")


# --- The file as a whole --------------------------------------------------------------------------


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    result = generate(tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert "no such file" in refusal(result.stderr).lower()
    assert not any(tmp_path.iterdir())
    configure(tmp_path)
    assert generate(tmp_path).returncode == 0


def test_a_missing_file_is_named_as_it_was_given(tmp_path: Path) -> None:
    result = generate(tmp_path, "-c", "other/robots.yml")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"{GENERATE.name}: error: other/robots.yml: ")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "robots.yml").write_text(small())
    assert generate(tmp_path, "-c", "other/robots.yml").returncode == 0
    assert (tmp_path / "keys" / "node" / "cert.pem").exists()


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sros_config.yml").mkdir()
    result = generate(tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert "directory" in refusal(result.stderr).lower()
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("", "keys|empty"),
        ("# keys:\n", "keys|empty"),
        ("---\n", "keys|empty"),
        ("keys\n", "mapping"),
        ("5\n", "mapping"),
        ("[keys]\n", "mapping"),
        ("keys:\n", "mapping"),
        ("keys: root\n", "mapping"),
        ("keys: [root]\n", "mapping"),
        ("x-keys: {}\n", "keys"),
        ("keys: [\n", "line [12]"),
        ("keys: {root: {}\n", "line [12]"),
        ("keys:\n\troot: {}\n", "line 2"),
        ("keys: {}\n  root: x: y\n", "line 2"),
        ("keys: *root\n", "root.*line 1"),
        ("keys: !!python/name:os.system\n", "line 1"),
        ("keys: !robots {}\n", "robots.*line 1"),
        ("keys: {}\n---\nkeys: {}\n", "document"),
        ("keys: {? [a] : b, ? {c: d} : e}\n", "."),
        ("[" * 5000, "."),
        (b"\xff\xfe\xff", "."),
        (b"keys: \x00\n", "."),
        (b"keys: {root: {subject: {commonName: \xe9}}}\n", "."),
    ],
)
def test_what_is_no_mapping_in_yaml_is_refused(pair: Pair, broken: str | bytes, reason: str) -> None:
    pair(broken, small(), "", reason)


@pytest.mark.parametrize(
    ("broken", "sound"),
    [
        ("x-a: &a {b: *a}\n", "x-a: &a {b: c}\nx-d: {b: *a}\n"),
        ("x-a: &a [*a]\n", "x-a: &a [b]\nx-c: [*a]\n"),
        ("x-a: &a {b: {c: [*a]}}\n", "x-a: {b: {c: [&a d]}}\n"),
        ("x-a: &a {<<: *a}\n", "x-a: &a {b: c}\nx-d: {<<: *a}\n"),
    ],
)
def test_recursive_aliases_are_refused(pair: Pair, broken: str, sound: str) -> None:
    pair(broken + small(), sound + small(), "", "recursive|itself|circle|cycle|loop")


@pytest.mark.parametrize(
    ("once", "name"),
    [
        ("    key: ec:prime256v1\n", "key"),
        ("      commonName: $name\n", "commonName"),
        ("      notAfter: 10y\n", "notAfter"),
        ("      subjectKeyIdentifier: hash\n", "subjectKeyIdentifier"),
        (small(only="keys/root").removeprefix("keys:\n"), "root"),
        ("  nodes:\n", "nodes"),
        ("keys:\n", "keys"),
    ],
)
def test_a_duplicate_field_is_refused(pair: Pair, once: str, name: str) -> None:
    twice = once + once if "\n    " in once or once[:4].isspace() else f"{once.rstrip()} {{}}\n{once}"
    assert once in small()
    pair(small().replace(once, twice, 1), small(), "", rf"\b{name}\b.*line \d+|line \d+.*\b{name}\b")


def test_a_duplicate_merge_is_refused_and_a_list_of_merges_is_not(pair: Pair) -> None:
    anchors = "x-a: &a {key: ed25519}\nx-b: &b {digest: ~}\n"
    root = "  root:\n"
    broken = small().replace(root, f"{root}    <<: *a\n    <<: *b\n", 1)
    sound = small().replace(root, f"{root}    <<: [*a, *b]\n", 1)
    pair(anchors + broken, anchors + sound, "", r"<<.*line \d+")


# --- Fields: a broken value, a sound one ----------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("colour", "colour"),
        ("key", "key"),
        ("nodes", "nodes"),
        ("keys/root/colour", "colour"),
        ("keys/root/Key", "Key"),
        ("keys/root/nodes", "nodes"),
        ("keys/root/subject/planet", "planet"),
        ("keys/root/subject/CN", "CN"),
        ("keys/root/subject/mro", "mro"),
        ("keys/root/validity/days", "days"),
        ("keys/nodes/node/colour", "colour"),
        ("keys/nodes/node/extensions/colour", "colour"),
        ("keys/nodes/node/extensions/nsComment", "nsComment"),
        ("keys/nodes/node/extensions/1", "1"),
    ],
)
def test_an_unknown_field_is_refused(pair: Pair, place: str, name: str) -> None:
    dotted = place.replace("/", ".") if "/" in place else ""
    reason = "unknown|no known|no field" if dotted else rf"\b{name}\b"
    pair(small({place: "red"}), small({"x-" + place: "red"}), dotted, reason)


@pytest.mark.parametrize(
    ("place", "broken"),
    [
        ("keys/nodes", "[node]"),
        ("keys/nodes", "node"),
        ("keys/root", "~"),
        ("keys/root", "text"),
        ("keys/root", "[key, subject]"),
        ("keys/root", "5"),
        ("keys/root/key", "[ed25519]"),
        ("keys/root/key", "{rsa: 2048}"),
        ("keys/root/key", "2048"),
        ("keys/root/key", "true"),
        ("keys/root/subject", "root"),
        ("keys/root/subject", "[root]"),
        ("keys/root/subject/commonName", "[root]"),
        ("keys/root/subject/commonName", "{a: b}"),
        ("keys/root/subject/commonName", "5"),
        ("keys/root/validity", "1y"),
        ("keys/root/validity/notAfter", "10"),
        ("keys/root/validity/notAfter", "[10y]"),
        ("keys/root/extensions", "hash"),
        ("keys/root/extensions", "[hash]"),
        ("keys/root/extensions/keyUsage", "[keyCertSign, cRLSign]"),
        ("keys/root/extensions/keyUsage", "{critical: keyCertSign}"),
        ("keys/nodes/node", "[]"),
        ("keys/nodes/node/issuer", "[master]"),
        ("keys/nodes/node/issuer", "{root: master}"),
    ],
)
def test_a_wrong_type_is_refused(pair: Pair, place: str, broken: str) -> None:
    reason = "mapping|text|unknown|quotes"
    pair(small({place: broken}), small(), place.replace("/", "."), reason)


@pytest.mark.parametrize(
    "place",
    [
        "keys/root/key",
        "keys/root/subject/commonName",
        "keys/root/validity/notAfter",
        "keys/root/extensions/basicConstraints",
        "keys/root/extensions/keyUsage",
        "keys/root/extensions/subjectKeyIdentifier",
        "keys/master/extensions/authorityKeyIdentifier",
        "keys/nodes/node/issuer",
        "keys/nodes/node/key",
    ],
)
def test_a_missing_field_is_refused(pair: Pair, place: str) -> None:
    dotted = place.replace("/", ".").removesuffix(".commonName")
    pair(small({place: "~"}), small(), dotted, "missing")


@pytest.mark.parametrize(
    ("broken", "sound", "reason"),
    [
        ("rsa:1024", "rsa:2048", "2048"),
        ("rsa:2047", "rsa:2048", "2048"),
        ("rsa:8193", "rsa:2048", "8192"),
        ("rsa:16384", "rsa:2048", "8192"),
        ("rsa:0", "rsa:2048", "2048"),
        ("rsa:-2048", "rsa:2048", "rsa"),
        ("rsa", "rsa:2048", "rsa"),
        ("ec:secp256k1", "ec:secp384r1", "prime256v1"),
        ("ec:prime192v1", "ec:prime256v1", "prime256v1"),
        ("ec:P-521", "ec:secp521r1", "secp521r1"),
        ("ec", "ec:prime256v1", "prime256v1"),
        ("dsa:2048", "rsa:2048", "rsa"),
        ("x25519", "ed25519", "ed25519"),
        ("ml-dsa-66", "ml-dsa-65", "ml-dsa"),
        ('""', "ed448", "ed448"),
    ],
)
def test_a_bad_key_type_is_refused(pair: Pair, broken: str, sound: str, reason: str) -> None:
    field(pair, "keys/root/key", broken, sound, reason)


@pytest.mark.parametrize(
    ("broken", "sound"),
    [
        ("md5", "sha256"),
        ("sha1", "sha256"),
        ("SHA-1", "sha256"),
        ("sha224", "sha384"),
        ("sha3-512", "sha512"),
        ("none", "~"),
    ],
)
def test_a_bad_digest_is_refused(pair: Pair, broken: str, sound: str) -> None:
    field(pair, "keys/root/digest", broken, sound, "sha256")


@pytest.mark.parametrize("key", ["ed25519", "ed448", "ml-dsa-44"])
def test_a_digest_for_a_key_that_hashes_by_itself_is_refused(pair: Pair, key: str) -> None:
    signs = {"keys/root/key": key}
    broken, sound = {"keys/root/digest": "sha512"}, {"keys/root/digest": "~"}
    pair(small(signs | broken), small(signs | sound), "keys.root.digest", "digest|without|hash")


@pytest.mark.parametrize(
    ("place", "broken", "reason"),
    [
        ("keys/root/cipher", "aes-128-cbc", "aes-256-cbc"),
        ("keys/root/cipher", "des", "aes-256-cbc"),
        ("keys/root/cipher", "true", "text|quotes"),
        ("keys/root/passphrase", "~", "missing"),
        ("keys/root/passphrase", "SROS-PASSPHRASE", "A-Z|name"),
        ("keys/root/passphrase", "1SROS", "A-Z|name"),
        ("keys/root/passphrase", '""', "A-Z|name|empty"),
        ("keys/root/passphrase", "my secret words", "A-Z|name"),
    ],
)
def test_a_bad_cipher_or_passphrase_is_refused(
    pair: Pair, place: str, broken: str, reason: str
) -> None:
    sound = {"keys/root/cipher": "aes-256-cbc", "keys/root/passphrase": "SROS_PASSPHRASE"}
    dotted = place.replace("/", ".")
    pair(small({**sound, place: broken}), small(sound), dotted, reason)


@pytest.mark.parametrize(
    ("place", "broken", "sound", "reason"),
    [
        ("keys/nodes/node/issuer", "nobody", "root", "nobody"),
        ("keys/nodes/node/issuer", "node", "root", "CA"),
        ("keys/nodes/node/issuer", "Master", "master", "Master"),
        ("keys/nodes/node/issuer", "../root", "root", "form|name|CA"),
        ("keys/master/issuer", "node", "root", "CA"),
        ("keys/master/issuer", "master", "root", "circle|cycle|itself"),
    ],
)
def test_a_bad_issuer_is_refused(
    pair: Pair, place: str, broken: str, sound: str, reason: str
) -> None:
    field(pair, place, broken, sound, reason)


def test_issuers_in_a_circle_are_refused(pair: Pair) -> None:
    known = {"keys/root/extensions/authorityKeyIdentifier": "keyid"}
    broken = small({**known, "keys/root/issuer": "master"})
    sound = small({**known, "keys/root/issuer": "~"})
    pair(broken, sound, "keys", "^.(root|master).issuer:.*(circle|cycle|loop)")


@pytest.mark.parametrize(("broken", "sound"), [("pathlen:0", "pathlen:1"), ("pathlen:1", "pathlen:2")])
def test_a_chain_longer_than_its_path_length_is_refused(
    pair: Pair, broken: str, sound: str
) -> None:
    low = {k.replace("master", "low"): v for k, v in SMALL.items() if "/master/" in k}
    below = low | {"keys/low/issuer": "master"} if sound == "pathlen:2" else {}
    changes = {
        text: below | {"keys/root/extensions/basicConstraints": f"critical, CA:TRUE, {text}"}
        for text in (broken, sound)
    }
    place = "keys.low" if below else "keys.master"
    pair(small(changes[broken]), small(changes[sound]), place, f"root.*{broken}|path.?len")


@pytest.mark.parametrize(
    ("broken", "sound", "reason"),
    [
        ({"notAfter": "-1h"}, {"notAfter": "1h"}, "notAfter|now|past"),
        ({"notAfter": "0d"}, {"notAfter": "1d"}, "notAfter|now|past"),
        ({"notAfter": "2001-01-01"}, {"notAfter": "2040-01-01"}, "notAfter|now|past"),
        ({"notBefore": "-1d", "notAfter": "-2d"}, {"notAfter": "2d"}, "notAfter|now|past"),
        ({"notAfter": "soon"}, {"notAfter": "+1w"}, "form|offset"),
        ({"notAfter": "1m"}, {"notAfter": "1w"}, "form|offset"),
        ({"notAfter": "1.5y"}, {"notAfter": "13140h"}, "form|offset"),
        ({"notAfter": "10 y"}, {"notAfter": "10y"}, "form|offset"),
        ({"notAfter": "2040-02-30"}, {"notAfter": "2040-02-29"}, "day"),
        ({"notAfter": "2040-13-01"}, {"notAfter": "2040-12-01"}, "month"),
        ({"notAfter": "2040-01-01T24:30:00Z"}, {"notAfter": "2040-01-01T23:30:00Z"}, "hour|form"),
        ({"notAfter": "9999999y"}, {"notAfter": "10y"}, "year"),
        ({"nextUpdate": "-1d"}, {"nextUpdate": "1d"}, "nextUpdate|now|past|others"),
    ],
)
def test_a_bad_validity_is_refused(
    pair: Pair, broken: dict[str, str], sound: dict[str, str], reason: str
) -> None:
    texts = [
        small({f"keys/root/validity/{name}": value for name, value in each.items()})
        for each in (broken, sound)
    ]
    pair(texts[0], texts[1], f"keys.root.validity.{list(broken)[-1]}", reason)


def test_a_life_that_ends_before_it_begins_is_refused(pair: Pair) -> None:
    start, end = "keys/nodes/node/validity/notBefore", "keys/nodes/node/validity/notAfter"
    broken = small({start: "2041-01-01", end: "2040-01-01"})
    sound = small({start: "2021-01-01", end: "2040-01-01"})
    pair(broken, sound, "keys.nodes.node.validity", "notBefore.*(now|notAfter|past)")


def test_a_list_of_a_node_is_refused(pair: Pair) -> None:
    wanted = "keys.nodes.node.validity.nextUpdate"
    sound = small({"keys/master/validity/nextUpdate": "30d"})
    pair(small({wanted.replace(".", "/"): "30d"}), sound, wanted, "CA")


@pytest.mark.parametrize(
    ("name", "broken", "sound", "reason"),
    [
        ("countryName", "NO", '"NO"', "quotes"),
        ("countryName", "no", "SE", "quotes"),
        ("countryName", "USA", "US", "form|two|A-Z"),
        ("countryName", "U", "US", "form|two|A-Z"),
        ("countryName", "U1", "US", "form|two|A-Z"),
        ("serialNumber", "0123", '"0123"', "quotes"),
        ("serialNumber", "1_000", '"1000"', "quotes"),
        ("organizationalUnitName", "yes", "'yes'", "quotes"),
        ("organizationName", '""', "Robots & Söhne", "form|empty|1"),
        ("organizationName", LONG + "ab", LONG + "a", "64"),
        ("commonName", LONG + "ab", LONG + "a", "64"),
        ("commonName", '"a\\nb"', "a b", "."),
        ("commonName", '"a\\0b"', "a b", "."),
        ("commonName", "$nom", "$name", r"\$name"),
        ("commonName", "${nom}", "${name}", r"\$name"),
        ("commonName", "5$", "5$$", r"\$name"),
        ("commonName", "$ name", "$$ name", r"\$name"),
        ("emailAddress", "robots", "robots@robots.example", "form|@"),
        ("domainComponent", "a.b", "a-b", "form"),
    ],
)
def test_a_bad_subject_is_refused(
    pair: Pair, name: str, broken: str, sound: str, reason: str
) -> None:
    field(pair, f"keys/nodes/node/subject/{name}", broken, sound, reason)


@pytest.mark.parametrize(
    ("place", "broken", "sound", "reason"),
    [
        ("root/extensions/basicConstraints", "CA:TRUE", "critical, CA:TRUE", "critical"),
        ("root/extensions/basicConstraints", "critical, CA:FALSE", "critical, CA:TRUE", "CA:TRUE"),
        ("root/extensions/basicConstraints", "critical", "critical, CA:TRUE", "CA:TRUE|empty"),
        ("root/extensions/basicConstraints", "critical, CA:MAYBE", "critical, CA:TRUE", "CA:TRUE"),
        (
            "root/extensions/basicConstraints",
            "critical, CA:TRUE, pathlen:-1",
            "critical, CA:TRUE, pathlen:1",
            "pathlen",
        ),
        (
            "root/extensions/basicConstraints",
            "critical, CA:TRUE, pathlen:one",
            "critical,CA:TRUE,pathlen:1",
            "pathlen",
        ),
        ("root/extensions/keyUsage", "keyCertSign", "keyCertSign, cRLSign", "cRLSign"),
        ("root/extensions/keyUsage", "cRLSign", "cRLSign, keyCertSign", "keyCertSign"),
        ("root/extensions/subjectKeyIdentifier", "critical, hash", "hash", "critical"),
        ("root/extensions/subjectKeyIdentifier", "none", "hash", "hash"),
        ("root/extensions/subjectKeyIdentifier", '""', "hash", "."),
        ("master/extensions/authorityKeyIdentifier", "issuer", "keyid", "keyid"),
        ("master/extensions/authorityKeyIdentifier", "keyid, issuer", "keyid", "keyid"),
        ("master/extensions/authorityKeyIdentifier", "critical, keyid", "keyid", "critical"),
        (
            "master/extensions/nameConstraints",
            "allowed;DNS:example",
            "permitted;DNS:example",
            "permitted",
        ),
        (
            "master/extensions/nameConstraints",
            "permitted:DNS:example",
            "permitted;DNS:.example",
            "permitted",
        ),
        (
            "master/extensions/nameConstraints",
            "critical, excluded;IP:10.0.0.1/8",
            "critical, excluded;IP:10.0.0.0/8",
            "host|10.0.0.1/8",
        ),
        (
            "master/extensions/nameConstraints",
            "excluded;IP:10.0.0.0/255.0.255.0",
            "excluded;IP:10.0.0.0/255.255.0.0",
            "mask|10.0.0.0",
        ),
    ],
)
def test_a_bad_extension_of_a_ca_is_refused(
    pair: Pair, place: str, broken: str, sound: str, reason: str
) -> None:
    field(pair, f"keys/{place}", broken, sound, reason)


@pytest.mark.parametrize(
    ("name", "broken", "sound", "reason"),
    [
        ("basicConstraints", "CA:TRUE", "CA:FALSE", "CA:FALSE|CA:TRUE"),
        ("basicConstraints", "CA:FALSE, pathlen:0", "CA:FALSE", "pathlen"),
        ("keyUsage", "digitalSignature, keyCertSign", "digitalSignature", "keyCertSign"),
        ("keyUsage", "digitalSignature, cRLSign", "digitalSignature", "cRLSign"),
        ("keyUsage", "digitalSignature, flying", "digitalSignature, keyAgreement", "keyAgreement"),
        ("keyUsage", "digitalSignature,, keyAgreement", "digitalSignature, keyAgreement", "empty"),
        ("keyUsage", "digitalSignature, digitalSignature", "digitalSignature", "twice"),
        ("extendedKeyUsage", "serverAuth, coffee", "serverAuth, 1.3.6.1.5.5.7.3.17", "coffee"),
        ("extendedKeyUsage", "1.2.", "1.2.3", "OID|object identifier|1.2."),
        ("extendedKeyUsage", "3.2.1", "2.5.29.37.0", "OID|object identifier|3.2.1"),
        ("certificatePolicies", "1.40.1", "1.3.6.1.4.1.99999.1", "OID|object identifier|1.40"),
        ("certificatePolicies", "gold", "2.5.29.32.0", "OID|object identifier|gold"),
        ("subjectAltName", "localhost", "DNS:localhost", "DNS:"),
        ("subjectAltName", "dns:localhost", "DNS:localhost", "DNS:"),
        ("subjectAltName", "DNS:localhost,", "DNS:localhost, DNS:node", "empty"),
        ("subjectAltName", '"DNS:"', "DNS:localhost", "DNS"),
        ("subjectAltName", "DNS:robot arm", "DNS:robot-arm", "DNS"),
        ("subjectAltName", "DNS:robot..example", "DNS:robot.example", "DNS"),
        ("subjectAltName", "DNS:-robot", "DNS:robot-1", "DNS"),
        ("subjectAltName", f"DNS:{LONG}a.example", f"DNS:{LONG}.example", "DNS"),
        ("subjectAltName", "DNS:a.*.example", "DNS:*.example", "DNS"),
        ("subjectAltName", "DNS:192.0.2.1", "IP:192.0.2.1", "DNS"),
        ("subjectAltName", "DNS:bücher.example", "DNS:xn--bcher-kva.example", "ASCII|xn--"),
        ("subjectAltName", "DNS:$nom", "DNS:$name", r"\$name"),
        ("subjectAltName", "IP:192.0.2.256", "IP:192.0.2.255", "address|octet|IP"),
        ("subjectAltName", "IP:192.0.2.0/24", "IP:192.0.2.24", "address|IP"),
        ("subjectAltName", "IP:192.0.2.010", "IP:192.0.2.10", "zero|address|IP"),
        ("subjectAltName", "IP:localhost", "IP:127.0.0.1", "address|IP"),
        ("subjectAltName", "IP:1::2::3", "IP:1::2:3", "address|::|IP"),
        ("subjectAltName", "URI:robot", "URI:urn:robot", "URI"),
        ("subjectAltName", "email:robot", "email:robot@robots.example", "email"),
        ("subjectAltName", "dirName:robot", "DNS:robot", "DNS:"),
        ("crlDistributionPoints", "http://a.example/c", "URI:http://a.example/c", "URI"),
        ("crlDistributionPoints", "DNS:a.example", "URI:http://a.example/b", "URI"),
        ("authorityInfoAccess", "OCSP;http://a.example/", "OCSP;URI:http://a.example/", "URI"),
        ("authorityInfoAccess", "URI:http://a.example/", "OCSP;URI:http://a.example/", "OCSP|OID|U"),
        ("authorityInfoAccess", "wave;URI:a:b", "1.3.6.1.5.5.7.48.3;URI:a:b", "OCSP|OID|wave"),
        ("authorityInfoAccess", "critical, OCSP;URI:a:b", "OCSP;URI:a:b", "critical"),
        ("nameConstraints", "permitted;DNS:example", "~", "CA"),
        ("1.3.6.1.4.1.99999.1", "0500", "DER:0500", "DER"),
        ("1.3.6.1.4.1.99999.1", "DER:050", "DER:05 00", "DER"),
        ("1.3.6.1.4.1.99999.1", "DER:0x0500", "DER:05:00", "DER"),
        ("1.3.6.1.4.1.99999.1", '"DER:"', "DER:0500", "DER"),
        ("1.3.6.1.4.1.99999.1", "ASN1:NULL", "DER:0500", "DER"),
    ],
)
def test_a_bad_extension_of_a_node_is_refused(
    pair: Pair, name: str, broken: str, sound: str, reason: str
) -> None:
    field(pair, f"keys/nodes/node/extensions/{name}", broken, sound, reason)


@pytest.mark.parametrize("oid", ["1.40.3", "3.1.2", "1.2.x", "2.5.29.19", "2.5.29.17"])
def test_a_bad_or_a_named_object_identifier_is_refused(pair: Pair, oid: str) -> None:
    place = "keys/nodes/node/extensions/"
    broken, sound = small({place + oid: "DER:0500"}), small({place + "1.40.3"[:2] + "3": "DER:0500"})
    pair(broken, sound, f"keys.nodes.node.extensions.{oid}", "OID|object identifier|field")


# --- Names are folders ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../x", "x"),
        ("..", "form|name"),
        (".", "form|name"),
        ("a/b", "a/b"),
        ("/x", "/x"),
        ('""', "form|name"),
        (".hidden", "hidden"),
        ("a b", "a b"),
        ('"a\\nb"', "form|name"),
        ('"a\\0b"', "form|name"),
        ("é", "form|name"),
        ("a:b", "a:b"),
        ("$name", "form|name"),
        ("5", "quotes"),
        ("no", "quotes"),
        ("~", "quotes"),
        ("[a]", "."),
        (LONG + LONG + LONG, "form|name|long"),
    ],
)
@pytest.mark.parametrize("kind", ["ca", "node"])
def test_a_name_that_is_no_folder_is_refused(
    pair: Pair, tmp_path: Path, kind: str, name: str, reason: str
) -> None:
    old, place = ("  master:\n", "") if kind == "ca" else ("    node:\n", "")
    name = name.replace("/x", f"{tmp_path}/x") if name == "/x" else name
    broken = small().replace(old, old.replace(old.strip(), f"{name}:"), 1)
    assert broken != small()
    pair(broken, small(), place, reason if reason != "/x" else re.escape(name))


@pytest.mark.parametrize("name", ["root", "master"])
def test_a_name_under_keys_and_under_nodes_is_refused(pair: Pair, name: str) -> None:
    broken = small().replace("    node:\n", f"    {name}:\n")
    sound = small().replace("    node:\n", f"    {name}2:\n")
    pair(broken, sound, "keys.nodes", rf"\b{name}\b")


@pytest.mark.parametrize("name", ["a", "-a", "_", "A.b-c_9", '"5"', "'no'", "nodes", LONG])
def test_a_name_that_is_a_folder_is_accepted(accept: Accept, name: str) -> None:
    folder = accept(small().replace("    node:\n", f"    {name}:\n"))
    plain = name.strip("\"'")
    assert verifies(folder / "keys" / plain)
    assert f"CN = {plain}" in text_of(folder / "keys" / plain)
