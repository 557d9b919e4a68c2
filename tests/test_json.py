"""What --json prints, field by field, beside what openssl and the files themselves say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from certificates import moment
from configurations import add_client2, configure, edit
from folders import changed, drop, seldom, tree
from running import (
    GENERATE,
    complaints,
    fine,
    generate,
    generate_here,
    in_days,
    openssl,
    refused,
)

Object = dict[str, Any]

FIELDS = (
    "name",
    "issuer",
    "state",
    "key",
    "serial",
    "notBefore",
    "notAfter",
    "due",
    "crlNumber",
    "nextUpdate",
    "written",
    "problems",
)


def objects(result: subprocess.CompletedProcess[str]) -> dict[str, Object]:
    """Return what a run printed, by name."""
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert all(tuple(each) == FIELDS for each in found), found
    return {each["name"]: each for each in found}


# --- What openssl says -----------------------------------------------------------------------


def printed(what: str, path: Path, *options: str) -> dict[str, str]:
    """Return what openssl prints of a certificate or a list, as NAME=VALUE lines."""
    text = openssl(what, "-in", path, "-noout", *options)
    return dict(line.split("=", 1) for line in text.splitlines())


def printed_time(text: str) -> str:
    """Return a time that openssl printed, as in RFC 3339."""
    return f"{moment(text):%Y-%m-%dT%H:%M:%SZ}"


def key_of(path: Path) -> str:
    """Return the key type in a certificate, as the configuration spells it."""
    text = openssl("x509", "-in", path, "-noout", "-text")
    curve = re.search(r"ASN1 OID: (\w+)", text)
    bits = re.search(r"Public-Key: \((\d+) bit\)", text)
    if curve is not None:
        return f"ec:{curve[1]}"
    if "rsaEncryption" in text and bits is not None:
        return f"rsa:{bits[1]}"
    found = re.search(r"Public Key Algorithm: (ED\d+)", text)
    assert found is not None, text
    return found[1].lower()


def check_certificate(keys: Path, found: Object) -> None:
    """Compare an object with the certificate in its folder."""
    path = keys / found["name"] / "cert.pem"
    values = printed("x509", path, "-serial", "-startdate", "-enddate")
    assert found["serial"] == values["serial"]
    assert found["notBefore"] == printed_time(values["notBefore"])
    assert found["notAfter"] == printed_time(values["notAfter"])
    assert found["key"] == key_of(path)
    issuer = keys / (found["issuer"] or found["name"]) / "cert.pem"
    openssl("verify", "-partial_chain", "-no_check_time", "-trusted", issuer, path)


def check_list(keys: Path, found: Object, is_ca: bool) -> None:
    """Compare an object with the list in a CA's folder."""
    if not is_ca:
        assert (found["crlNumber"], found["nextUpdate"]) == (None, None)
        return
    path = keys / found["name"] / "crl.pem"
    values = printed("crl", path, "-crlnumber", "-nextupdate")
    assert found["crlNumber"] == int(values["crlNumber"], 16)
    assert found["nextUpdate"] == printed_time(values["nextUpdate"])


def check(folder: Path, found: dict[str, Object]) -> None:
    """Compare all objects with what openssl says."""
    for each in found.values():
        check_certificate(folder / "keys", each)
        check_list(folder / "keys", each, (folder / "keys" / each["name"] / "issued").exists())


def all_written(found: dict[str, Object]) -> set[str]:
    """Return the paths of all files that a run says it wrote, each of them once."""
    paths = [path for each in found.values() for path in each["written"]]
    assert len(set(paths)) == len(paths)
    return set(paths)


# --- Every state -----------------------------------------------------------------------------


class Telling(NamedTuple):
    """A run on the keys that the shipped configuration makes."""

    prepare: Callable[[Path], object]
    arguments: tuple[str, ...]
    states: dict[str, str]
    days: int = 0  # from now


def several_types(folder: Path) -> None:
    """Add nodes with other types of keys."""

    def change(keys: dict[str, Any]) -> None:
        for name, key in (("rsa", "rsa:2048"), ("edwards", "ed25519")):
            keys["nodes"][name] = {**keys["nodes"]["client"], "key": key, "digest": "sha256"}
        del keys["nodes"]["edwards"]["digest"]

    edit(folder, change)


def be_revoked(folder: Path) -> None:
    """Have a CA that is revoked."""
    generate_here(folder, "--revoke", "master")


def nothing(folder: Path) -> None:
    """Leave a folder as it is."""


CASES = {
    "kept": Telling(nothing, (), {"root": "kept", "server": "kept"}),
    "made": Telling(several_types, (), {"rsa": "made", "edwards": "made", "root": "kept"}),
    "renewed": Telling(
        nothing, ("--renew", "client"), {"client": "renewed", "server": "kept"}
    ),
    "revoked": Telling(nothing, ("--revoke", "client"), {"client": "revoked", "root": "kept"}),
    "due": Telling(nothing, (), {"server": "kept", "root": "kept"}, days=300),
    "expired": Telling(nothing, (), {"server": "failed", "root": "kept"}, days=400),
    "below": Telling(be_revoked, (), {"master": "failed", "client": "left alone"}),
}


@pytest.mark.parametrize("name", seldom(CASES, "kept", "renewed", "due", "expired"))
def test_every_field_is_what_openssl_and_the_files_say(copy: Path, name: str) -> None:
    case = CASES[name]
    case.prepare(copy)
    before = tree(copy)
    result = generate_here(copy, "--json", *case.arguments, now=in_days(case.days))
    found = objects(result)
    assert case.states.items() <= {key: each["state"] for key, each in found.items()}.items()
    check(copy, found)
    assert all_written(found) == changed(before, tree(copy))
    said = [problem for each in found.values() for problem in each["problems"]]
    lines = [f"{GENERATE.name}: {each['kind']}: {each['text']}" for each in said]
    assert set(lines) <= set(result.stderr.splitlines())
    assert [line for line in result.stderr.splitlines() if "left alone" not in line] == [
        *dict.fromkeys(lines)
    ]


@pytest.mark.slow
def test_what_is_due_is_in_the_last_third_of_its_life_or_begins_in_the_future(
    copy: Path,
) -> None:
    def due(when: datetime) -> dict[str, bool]:
        found = objects(generate_here(copy, "--json", now=when))
        return {name: each["due"] for name, each in found.items()}

    values = printed("x509", copy / "keys/server/cert.pem", "-startdate", "-enddate")
    begins, ends = (moment(values[name]) for name in ("notBefore", "notAfter"))
    third, hour = begins + (ends - begins) * 2 / 3, timedelta(hours=1)
    assert set(due(third - hour).values()) == {False}
    assert due(third + hour) == {
        "root": False,
        "master": False,
        "server": True,
        "client": True,
    }
    assert due(in_days(-3))["server"]


def test_what_cannot_be_read_is_null_and_its_problem_is_told(copy: Path) -> None:
    (copy / "keys/server/cert.pem").write_text("damaged")
    drop(copy / "keys", "client")
    drop(copy / "keys", "master/key.pem")
    result = generate_here(copy, "--json")
    found = objects(result)
    complaints(result, "error", 1)
    for name in ("server", "client"):
        each = found[name]
        assert each["state"] == "failed"
        assert {each[field] for field in FIELDS[3:10]} == {None}
        assert [problem["kind"] for problem in each["problems"]] == ["error"]
    assert found["client"]["written"] == ["keys/client/csr.pem", "keys/client/key.pem"]


def test_a_folder_that_no_entry_names_has_an_object_of_its_own(copy: Path) -> None:
    edit(copy, lambda keys: keys["nodes"].pop("client"))
    result = generate_here(copy, "--json")
    found = objects(result)
    (warning,) = complaints(result, "warning", 0)
    assert [*found] == ["root", "master", "server", "client"]
    client = found["client"]
    assert (client["state"], client["issuer"], client["written"]) == ("forgotten", None, [])
    assert client["problems"] == [{"kind": "warning", "text": warning}]
    values = printed("x509", copy / "keys/client/cert.pem", "-serial", "-enddate")
    assert client["serial"] == values["serial"]
    assert client["notAfter"] == printed_time(values["notAfter"])
    fine(generate_here(copy, "--revoke", "client"))
    assert [*objects(fine(generate_here(copy, "--json")))] == ["root", "master", "server"]


def test_a_name_that_steers_a_terminal_is_escaped(copy: Path) -> None:
    path = copy / "a\x1b[31m"
    (copy / "keys").rename(path)
    shutil.copy(path / "client/key.pem", path / "server/key.pem")
    result = generate_here(copy, "--json", "-k", path.name)
    assert "\x1b" not in result.stdout + result.stderr
    (problem,) = objects(result)["server"]["problems"]
    assert "\x1b" in problem["text"]


# --- With other options ----------------------------------------------------------------------


def test_a_dry_run_tells_no_numbers_and_times_of_what_is_new(copy: Path) -> None:
    add_client2(copy)
    arguments = ("--json", "--revoke", "server")
    dry = objects(fine(generate_here(copy, "-n", *arguments)))
    real = objects(fine(generate_here(copy, *arguments)))
    new, master = real["client2"], real["master"]
    for field in ("serial", "notBefore", "notAfter"):
        assert new[field] is not None
        new[field] = None
    assert master["crlNumber"] == 2 and master["nextUpdate"] is not None
    master["nextUpdate"] = None
    # The name of the record's file has the serial number, too.
    recorded = new["written"].pop(0)
    assert re.fullmatch(r"keys/master/issued/client2-[0-9A-F]+\.pem", recorded)
    assert dry == real


def test_lines_are_not_counted_and_stay_in_the_order_of_the_tree(tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        nodes = document["keys"]["nodes"]
        nodes.update({f"client{number}": nodes["client"] for number in range(8)})

    configure(tmp_path, change)
    as_json = objects(fine(generate(tmp_path, "--json")))
    text = fine(generate(tmp_path)).stdout
    assert text.startswith("[ 1/12] ")
    assert [*as_json] == re.findall(r"\] +(\S+)", text)


def test_with_q_there_are_no_objects_and_problems_are_still_told(copy: Path) -> None:
    (copy / "keys/server/cert.pem").write_text("damaged")
    result = generate_here(copy, "--json", "-q")
    refused(result, "keys/server/cert.pem")
    assert result.stdout == ""
    assert len(objects(generate_here(copy, "--json"))) == 4
