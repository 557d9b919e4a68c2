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
def test_what_is_no_mapping_in_yaml_is_refused(
    pair: Pair, broken: str | bytes, reason: str
) -> None:
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
    twice = (
        once + once if "\n    " in once or once[:4].isspace() else f"{once.rstrip()} {{}}\n{once}"
    )
    assert once in small()
    pair(
        small().replace(once, twice, 1), small(), "", rf"\b{name}\b.*line \d+|line \d+.*\b{name}\b"
    )


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


@pytest.mark.parametrize(
    ("broken", "sound"), [("pathlen:0", "pathlen:1"), ("pathlen:1", "pathlen:2")]
)
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
        (
            "authorityInfoAccess",
            "URI:http://a.example/",
            "OCSP;URI:http://a.example/",
            "OCSP|OID|U",
        ),
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
    broken, sound = small({place + oid: "DER:0500"}), small({place + "2.39.3": "DER:0500"})
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


# --- What a configuration says, and the certificates that come of it ------------------------------


def test_the_shipped_configuration_is_read_by_openssl_as_it_stands(made: Path) -> None:
    keys = made / "keys"
    assert "X509v3 Basic Constraints: critical CA:TRUE, pathlen:1 " in text_of(keys / "root")
    assert "X509v3 Basic Constraints: critical CA:TRUE, pathlen:0 " in text_of(keys / "master")
    for name, purpose, alternative in [
        ("server", "Server", "DNS:localhost, IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1 "),
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
        subjectAltName: DNS:$name, DNS:${name}.example, URI:urn:$name, email:$name@robots.example
        extendedKeyUsage: clientAuth
    leg:
      <<: *arm
      key: ed25519
      digest: ~
      subject: {<<: *subject, countryName: ~, localityName: $$5 for $name}
      extensions: {<<: *arm-extensions, extendedKeyUsage: ~}
    eye: {<<: *arm, issuer: root, passphrase: SROS_EYE_PASSPHRASE, cipher: aes-256-cbc}
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


def test_merges_anchors_names_and_unset_fields_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "sros_config.yml").write_text(ANCHORS + MERGES)
    result = generate(tmp_path, env={"SROS_EYE_PASSPHRASE": "eye"})
    assert (result.returncode, result.stderr) == (0, "")
    keys = tmp_path / "keys"
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
    marks = {path.parent.name: path.read_text().split("\n")[0] for path in keys.glob("*/key.pem")}
    assert [name for name, mark in marks.items() if mark == encrypted] == ["eye"]
    openssl("pkey", "-noout", "-passin", "pass:eye", "-in", keys / "eye" / "key.pem")
    assert all(verifies(keys / name) for name in ("arm", "leg", "eye", "ear"))
    assert not verifies(keys / "arm", anchor=keys / "master" / "issued")


def test_an_anchor_that_is_used_before_it_stands_is_refused(pair: Pair) -> None:
    sound = small({"keys/root": "{<<: *root}"}).replace("keys:", "x-root: &root\n" + "keys:")
    fields = (
        small(only="keys/root")
        .split("root:\n")[1]
        .replace("\n    ", "\n  ")
        .replace("    key", "  key")
    )
    sound = sound.replace("&root\n", f"&root\n{fields}".rstrip() + "\n")
    anchor, rest = sound[: sound.index("keys:")], sound[sound.index("keys:") :]
    pair(rest + anchor, anchor + rest, "", r"\broot\b.*line 2")


def begins_and_ends(folder: Path) -> list[datetime]:
    """Return when a certificate begins and ends, as openssl reads it."""
    printed = openssl("x509", "-noout", "-startdate", "-enddate", "-in", folder / "cert.pem")
    return [moment(line) for line in printed.splitlines()]


def moment(line: str) -> datetime:
    """Return what openssl prints as NAME=Jan  2 03:04:05 2040 GMT."""
    read = datetime.strptime(line.partition("=")[2], "%b %d %H:%M:%S %Y %Z")
    return read.replace(tzinfo=timezone.utc)


def in_turn(roots: Mapping[str, str]) -> str:
    """Return a configuration of self-signed entries, each with a field of validity of its own."""
    fields: dict[str, str] = {}
    for name, validity in roots.items():
        own = {k.replace("root", name): v for k, v in SMALL.items() if k.startswith("keys/root/")}
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


def test_relative_validity_counts_from_now(accept: Accept) -> None:
    hour, day = timedelta(hours=1), timedelta(days=1)
    cases = {
        "hours": ("{notBefore: -36h, notAfter: 1h}", -36 * hour, hour),
        "days": ("{notBefore: -1d, notAfter: 10d}", -day, 10 * day),
        "weeks": ("{notBefore: -2w, notAfter: +3w}", -14 * day, 21 * day),
        "years": ("{notBefore: -1y, notAfter: 20y}", -365 * day, 20 * 365 * day),
        "now": ("{notBefore: 0h, notAfter: 30d}", 0 * day, 30 * day),
        "left-out": ("{notAfter: 30d}", 0 * day, 30 * day),
    }
    before = datetime.now(timezone.utc).replace(microsecond=0)
    keys = accept(in_turn({name: validity for name, (validity, _, _) in cases.items()})) / "keys"
    after = datetime.now(timezone.utc)
    for name, (_, begin, end) in cases.items():
        begins, ends = begins_and_ends(keys / name)
        assert before + begin <= begins <= after + begin, name
        assert before + end <= ends <= after + end, name


def test_a_list_lives_as_long_as_its_ca_unless_it_says_otherwise(accept: Accept) -> None:
    roots = {"long": "{notAfter: 2040-01-02}", "short": "{notAfter: 2040-01-02, nextUpdate: 30d}"}
    keys = accept(in_turn(roots)) / "keys"
    ends = {
        name: moment(
            openssl("crl", "-noout", "-nextupdate", "-in", keys / name / "crl.pem").strip()
        )
        for name in roots
    }
    assert ends["long"] == datetime(2040, 1, 2, tzinfo=timezone.utc)
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
    lines = {line.split()[0]: line for line in (folder / "out").read_text().splitlines()}
    assert len(lines["node"].split()) > len(lines["twin"].split())
    extra = lines["node"].strip().removeprefix("node").replace(lines["twin"].strip()[4:], "", 1)
    assert "master" in extra
    assert extra != lines["node"].strip().removeprefix("node")


# --- The examples in the shipped configuration ----------------------------------------------------


def uncommented(folder: Path, name: str) -> None:
    """Take the comment sign away from an example, and from the lines that belong to it."""
    path = folder / "sros_config.yml"
    text, count = re.subn(
        rf"(?m)^#   ({name}:.*\n)((?:#     .*\n)*)",
        lambda match: f"    {match[1]}" + match[2].replace("#   ", "    "),
        path.read_text(),
    )
    assert count == 1
    path.write_text(text)


@pytest.mark.parametrize(
    ("name", "key", "purposes", "variable"),
    [
        ("client2", "NIST CURVE: P-256", "TLS Web Client Authentication", "SROS_PASSPHRASE"),
        (
            "talker",
            "NIST CURVE: P-256",
            "TLS Web Server Authentication, TLS Web Client Authentication",
            "SROS_PASSPHRASE",
        ),
        ("legacy", "Public-Key: (3072 bit)", "TLS Web Client Authentication", "SROS_PASSPHRASE"),
        ("camera", "NIST CURVE: P-256", "TLS Web Client Authentication", ""),
        ("arm", "NIST CURVE: P-256", "TLS Web Client Authentication", "SROS_ARM_PASSPHRASE"),
    ],
)
def test_a_commented_example_works_as_its_comment_says(
    copy: Path, name: str, key: str, purposes: str, variable: str
) -> None:
    uncommented(copy, name)
    phrases = PHRASES | {"SROS_ARM_PASSPHRASE": "of its own"}
    result = generate(copy, env=phrases)
    assert (result.returncode, result.stderr) == (0, "")
    folder = copy / "keys" / name
    text = text_of(folder)
    assert key in text
    assert f"X509v3 Extended Key Usage: {purposes} X509v3" in text
    assert f"X509v3 Subject Alternative Name: DNS:{name} " in text
    assert f"Subject: C = US, O = SROS Example, OU = Robots, CN = {name} " in text
    assert verifies(folder)
    opens = {
        each: run(
            "openssl", "pkey", "-noout", "-in", folder / "key.pem", "-passin", f"pass:{phrase}"
        )
        for each, phrase in phrases.items()
    }
    assert [each for each in opens if opens[each].returncode == 0] == (
        [variable] if variable else list(phrases)
    )


# --- Key types ------------------------------------------------------------------------------------

KEY_TYPES = {
    "ec:prime256v1": "NIST CURVE: P-256",
    "ec:secp384r1": "NIST CURVE: P-384",
    "ec:secp521r1": "NIST CURVE: P-521",
    "rsa:2048": "Public-Key: (2048 bit)",
    "rsa:3072": "Public-Key: (3072 bit)",
    "ed25519": "Public Key Algorithm: ED25519",
    "ed448": "Public Key Algorithm: ED448",
}


def all_of(key: str) -> str:
    """Return a root, a master and a node on keys of one type."""
    return small({f"keys/{name}/key": key for name in ("root", "master", "nodes/node")})


@pytest.mark.parametrize("key", KEY_TYPES)
def test_a_chain_of_one_key_type_verifies(accept: Accept, key: str) -> None:
    folder = accept(all_of(key))
    for name in ("root", "master", "node"):
        assert KEY_TYPES[key] in text_of(folder / "keys" / name)
    assert verifies(folder / "keys" / "node")
    assert not verifies(folder / "keys" / "node", anchor=accept(small()) / "keys" / "root")
    lines = (folder / "out").read_text().splitlines()
    assert len(lines) == 3 and all(key in line.split() for line in lines)


@pytest.mark.parametrize(
    ("key", "digest", "algorithm"),
    [
        ("rsa:2048", "sha256", "sha256WithRSAEncryption"),
        ("rsa:2048", "sha384", "sha384WithRSAEncryption"),
        ("ec:secp384r1", "~", "ecdsa-with-SHA256"),
        ("ec:prime256v1", "sha512", "ecdsa-with-SHA512"),
    ],
)
def test_a_digest_is_what_its_key_signs_with(
    accept: Accept, key: str, digest: str, algorithm: str
) -> None:
    master = {"keys/master/key": key, "keys/master/digest": digest}
    keys = accept(small(master)) / "keys"
    assert f"Signature Algorithm: {algorithm} " in text_of(keys / "node")
    assert "Signature Algorithm: ecdsa-with-SHA256 " in text_of(keys / "master")
    text = openssl("crl", "-noout", "-text", "-in", keys / "master" / "crl.pem")
    assert f"Signature Algorithm: {algorithm}\n" in text


def context(folder: Path, anchor: Path) -> SSL.Context:
    """Return a context with a node's files, which trusts an anchor and checks all its lists."""
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
    try:
        other.bio_write(end.bio_read(1 << 20))
    except SSL.WantReadError:
        pass


@pytest.mark.parametrize("level", ["44", "65", "87"])
def test_ml_dsa_makes_a_chain_that_verifies_and_a_mutual_handshake(
    accept: Accept, level: str
) -> None:
    key = f"ml-dsa-{level}"
    keys = accept(all_of(key)) / "keys"
    chain = [
        x509.load_pem_x509_certificate((keys / name / "cert.pem").read_bytes())
        for name in ("root", "master", "node")
    ]
    root, master, node = chain
    for certificate, issuer in [(root, root), (master, root), (node, master)]:
        certificate.verify_directly_issued_by(issuer)
        assert f"MLDSA{level}" in type(certificate.public_key()).__name__.upper()
        assert certificate.signature_hash_algorithm is None
    store = crypto.X509Store()
    store.add_cert(crypto.X509.from_cryptography(root))
    check_in_full(store, keys / "node")
    leaf, between = (crypto.X509.from_cryptography(each) for each in (node, master))
    crypto.X509StoreContext(store, leaf, [between]).verify_certificate()

    ours = context(keys / "node", anchor=keys / "node")
    for end in shake_hands(ours, ours):
        assert end.get_protocol_version_name() == "TLSv1.3"
        peer = end.get_peer_certificate()
        assert peer is not None and peer.to_cryptography() == node
    strange = accept(small()) / "keys" / "node"
    ours_too = context(strange, anchor=keys / "node")
    with pytest.raises(SSL.Error, match="certificate verify failed"):
        shake_hands(ours, ours_too)


# --- Five levels and every extension --------------------------------------------------------------

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
        permitted;IP:192.0.2.0/255.255.255.0, permitted;IP:2001:db8::/32, excluded;DNS:spam.example
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
        "critical TLS Web Server Authentication, TLS Web Client Authentication, E-mail Protection",
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
    after = r" (?:X509v3 |Authority Information Access|1\.3\.6|Signature Algorithm)"
    assert re.findall(rf"{re.escape(extension)}: (.*?){after}", text) == [value]


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


def test_five_levels_in_shuffled_order_are_walked_from_the_top_and_verify(accept: Accept) -> None:
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
    subject = openssl("x509", "-noout", "-subject", "-nameopt", "sep_comma_plus,utf8", "-in", path)
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
    (tmp_path / "sros_config.yml").write_text(text)
    result = generate(tmp_path)
    assert result.returncode == 1
    assert re.fullmatch(f"{GENERATE.name}: error: .*node.*permitted.*\n", result.stderr)
    assert not (tmp_path / "keys" / "node").exists()


# --- Many -----------------------------------------------------------------------------------------


def test_a_fleet_of_fifty_is_a_line_each_and_the_output_counts(accept: Accept) -> None:
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


def test_a_further_entry_is_all_that_the_next_run_makes(copy: Path) -> None:
    kept = {path: path.read_bytes() for path in copy.glob("keys/*/*.pem")}
    uncommented(copy, "client2")
    result = generate(copy)
    assert (result.returncode, result.stderr) == (0, "")
    made = {path: path.read_bytes() for path in copy.glob("keys/*/*.pem")}
    assert {path: made[path] for path in kept} == kept
    assert {path.parent.name for path in made.keys() - kept.keys()} == {"client2"}
