"""Every state has a way out.

A clock was wrong, another program made a CA, a date has passed, a folder can't be read, a
higher CA's certificate is no good, a key is not encrypted as the configuration says, or the
reason for a revocation was worse than it seemed.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from certificates import (
    CA_EXTENSIONS,
    SERVER_EXTENSIONS,
    SUBJECT,
    Identity,
    Profile,
    certificate,
    certify,
    chain,
    cross_certify,
    issue,
    judge,
    lists,
    make_list,
    number,
    on_list,
    pem,
    private_key,
    revoked_serials,
    serial,
    sign,
    sign_list,
    usage,
)
from configurations import Keys, add_client2, add_master2, configure, edit
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from folders import changed, drop, once, seldom, tree
from needs import needs
from running import (
    GENERATE,
    MASTERS,
    PHRASES,
    Result,
    Terminal,
    complaints,
    faults,
    fine,
    generate,
    generate_here,
    in_days,
    later,
    openssl,
    refused,
    run,
    states,
    warned,
)

pytestmark = pytest.mark.slow  # years pass in nearly all of them
CAS, NODES = ["root", "master"], ["server", "client"]


def now() -> datetime:
    """Return this moment."""
    return datetime.now(timezone.utc)


def day(days: int) -> str:
    """Return a day from now, as a configuration writes it."""
    return (now() + timedelta(days=days)).strftime("%Y-%m-%d")


def errors(result: Result) -> list[str]:
    """Return the error lines of a run."""
    return [line for line in result.stderr.splitlines() if ": error: " in line]


def begins(crl: Path) -> datetime:
    """Return when the first list in a file begins."""
    return lists(crl)[0].last_update_utc


# --- A clock that was ahead ------------------------------------------------------------------


def monthly(keys: Keys) -> None:
    """Have both CAs make a new list every month."""
    for name in CAS:
        keys[name]["validity"]["nextUpdate"] = "30d"


@once
def month(folder: Path) -> None:
    """Keys whose CAs make a new list every month."""
    drop(folder, "keys")
    edit(folder, monthly)
    fine(generate_here(folder))


def test_a_list_from_the_future_is_replaced_and_nothing_on_it_is_lost(month: Path) -> None:
    keys = month / "keys"
    revoked = serial(keys / "client")
    assert generate_here(month, "--revoke", "client", now=in_days(25)).returncode == 0
    numbers = [number(*lists(keys / name / "crl.pem")) for name in CAS]
    assert all(begins(keys / name / "crl.pem") > now() for name in CAS)

    drop(keys, "client")
    assert states(fine(generate_here(month)))["client"] == "made"
    for name, old in zip(CAS, numbers, strict=True):
        (crl,) = lists(keys / name / "crl.pem")
        assert number(crl) == old + 1 and crl.last_update_utc < now()
    assert revoked_serials(keys / "server/crl.pem") == {revoked}
    assert [judge(keys / name).returncode for name in NODES] == [0, 0]

    before = tree(month)
    fine(generate_here(month))
    assert tree(month) == before, "a list that has begun is kept"


def test_a_list_from_the_future_waits_for_its_key_and_others_do_not(month: Path) -> None:
    keys = month / "keys"
    fine(generate_here(month, now=in_days(25)))
    (keys / "root/key.pem").rename(month / "stick.pem")
    first, *_ = complaints(generate_here(month), "error", 1)
    assert "keys/root/crl.pem" in first and "keys/root/key.pem" in first
    assert begins(keys / "root/crl.pem") > now()

    (month / "stick.pem").rename(keys / "root/key.pem")
    fine(generate_here(month))
    assert all(begins(keys / name / "crl.pem") < now() for name in [*CAS, *NODES])
    assert judge(keys / "server").returncode == 0


@pytest.mark.parametrize("names", ["", "root master server client"])
def test_a_whole_folder_that_was_made_ahead_is_mended_by_renewal(
    tmp_path: Path, names: str
) -> None:
    keys = tmp_path / "keys"
    configure(tmp_path)
    fine(later(tmp_path, "+10 days"))
    before = tree(keys)
    result = generate(tmp_path)
    assert result.returncode == 1 and "--renew" in result.stderr
    assert tree(keys) == before

    result = fine(generate(tmp_path, "--renew", *names.split()))
    assert set(states(result).values()) == {"renewed"}
    fine(generate(tmp_path, env=None))
    assert all(begins(keys / name / "crl.pem") < now() for name in [*CAS, *NODES])
    assert [judge(keys / name).returncode for name in NODES] == [0, 0]
    after = tree(keys)
    assert all(
        after[f"{name}/key.pem"] == before[f"{name}/key.pem"] for name in [*CAS, *NODES]
    )


def test_renewal_without_names_includes_exactly_what_begins_in_the_future(copy: Path) -> None:
    add_client2(copy)
    fine(generate_here(copy, now=in_days(10), env=MASTERS))
    (line,) = refused(generate_here(copy, env=MASTERS), "keys/client2/cert.pem")
    assert "--renew" in line and "clock" in line
    result = fine(generate_here(copy, "--renew", env=MASTERS))
    expected = {**dict.fromkeys([*CAS, *NODES], "kept"), "client2": "renewed"}
    assert states(result) == expected
    assert judge(copy / "keys/client2", copy / "keys/server").returncode == 0


def test_a_master_that_was_renewed_ahead_is_mended_without_touching_the_rest(
    copy: Path,
) -> None:
    fine(generate_here(copy, "--renew", "master", now=in_days(10)))
    assert generate_here(copy).returncode == 1
    result = fine(generate_here(copy, "--renew"))
    expected = {**dict.fromkeys(["root", *NODES], "kept"), "master": "renewed"}
    assert states(result) == expected
    assert [judge(copy / "keys" / name).returncode for name in NODES] == [0, 0]


def test_a_clock_that_was_decades_ahead_is_mended_in_the_same_way(copy: Path) -> None:
    far = generate_here(copy, "--renew", now=in_days(20 * 365))
    assert set(states(far).values()) == {"renewed"}, far.stderr
    result = fine(generate_here(copy, "--renew"))
    assert set(states(result).values()) == {"renewed"}
    fine(generate_here(copy, env=None))
    assert [judge(copy / "keys" / name).returncode for name in NODES] == [0, 0]


def test_a_clock_that_is_behind_changes_nothing(month: Path) -> None:
    before = tree(month)
    lines = complaints(generate_here(month, now=in_days(-30)), "error", 1)
    assert any("--renew" in line and "clock" in line for line in lines)
    assert tree(month) == before
    fine(generate_here(month, env=None))


# --- A CA that other software made -----------------------------------------------------------


FOREIGN = """[req]
distinguished_name = name
prompt = no
utf8 = yes
string_mask = {mask}
[name]
C = US
O = SROS Example
OU = Robots
CN = {name}
"""
ENCRYPTED_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-passout")
IDENTIFIERS = {"root": "00112233445566778899", "master": "0a0b0c0d0e0f"}


def foreign_ca(folder: Path, name: str, mask: str, issuer: Path | None) -> None:
    """Make a CA's key and certificate by openssl, with names and identifiers of its own."""
    shutil.rmtree(folder)
    folder.mkdir(0o700)
    path, request = folder / "key.pem", folder.parent / f"{name}.csr"
    phrase = "root" if name == "root" else "sros"
    text = FOREIGN.format(mask=mask, name=name)
    made = (*ENCRYPTED_KEY, f"pass:{phrase}", "-keyout", path, "-out", request)
    openssl("req", "-new", *made, "-config", "/dev/stdin", stdin=text)
    path.chmod(0o600)
    extensions = CA_EXTENSIONS.replace("hash", IDENTIFIERS[name])
    if issuer is not None:
        sign(request, issuer, "root", extensions, folder / "cert.pem")
    else:
        extensions = extensions.replace("pathlen:0", "pathlen:1")
        extensions = extensions.replace("authorityKeyIdentifier = keyid\n", "")
        own = ("-signkey", path, "-passin", f"pass:{phrase}", "-days", "3000")
        how = ("-extfile", "/dev/stdin", "-out", folder / "cert.pem")
        openssl("x509", "-req", "-in", request, *own, *how, stdin=extensions)
    request.unlink()


# PrintableString, TeletexString and BMPString (openssl-req(1), string_mask)
MASKS = ["nombstr", "MASK:0x4", pytest.param("MASK:0x800", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=MASKS)
def adopted(
    request: pytest.FixtureRequest, made: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Keys with a root and a master of other software, and the same after both were renewed.

    Their names have another type of string than the script's, and their key identifiers are
    not made with SHA-1. To read only.
    """
    folder = tmp_path_factory.mktemp("adopted") / "before"
    shutil.copytree(made, folder)
    keys = folder / "keys"
    foreign_ca(keys / "root", "root", request.param, None)
    foreign_ca(keys / "master", "master", request.param, keys / "root")
    drop(keys, *NODES)
    assert generate_here(folder).returncode == 0
    after = shutil.copytree(folder, folder.parent / "after")
    result = generate_here(after, "--renew", "root", "master")
    assert result.returncode == 0, result.stderr
    assert [states(result)[name] for name in CAS] == ["renewed", "renewed"]
    return keys, after / "keys"


def identifier(folder: Path) -> bytes:
    """Return the subjectKeyIdentifier of a folder's certificate."""
    found = certificate(folder / "cert.pem").extensions
    return found.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest


def test_renewal_keeps_a_foreign_cas_name_as_encoded_and_its_key_identifier(
    adopted: tuple[Path, Path],
) -> None:
    before, after = adopted
    for name in CAS:
        old, new = (certificate(keys / name / "cert.pem") for keys in adopted)
        assert new.serial_number != old.serial_number
        assert new.subject.public_bytes() == old.subject.public_bytes()
        assert new.issuer.public_bytes() == old.issuer.public_bytes()
        assert identifier(after / name) == identifier(before / name)


def test_robots_from_before_and_after_a_foreign_cas_renewal_accept_each_other(
    adopted: tuple[Path, Path],
) -> None:
    before, after = adopted
    assert generate_here(after.parent).returncode == 0
    for node, peer in ((before, after), (after, before), (after, after)):
        result = judge(node / "server", peer / "client")
        assert result.returncode == 0, result.stderr


def test_a_roots_old_certificate_stays_in_its_own_record_and_cannot_be_revoked(
    adopted: tuple[Path, Path],
) -> None:
    before, after = adopted
    old = before / "root/cert.pem"
    kept = after / f"root/issued/root-{certificate(old).serial_number:X}.pem"
    assert kept.read_bytes() == old.read_bytes()
    files = tree(after)
    complaints(generate_here(after.parent, "--revoke", "root"), "error", 2)
    assert tree(after) == files


PHRASES_OF = {"root": "root", "master": "sros"}
CHILDREN = {"root": "master", "master": "server"}


def reissue(folder: Path, name: str, issuer: str, names: str) -> None:
    """Have openssl sign a folder's key anew, with another authorityKeyIdentifier."""
    keys = folder / "keys"
    request, certified = folder / "again.csr", folder / "again.pem"
    pair = ("-key", keys / name / "key.pem", "-passin", "pass:sros")
    openssl("req", "-new", *pair, "-subj", SUBJECT + name, "-out", request)
    extensions = CA_EXTENSIONS if name == "master" else SERVER_EXTENSIONS
    extensions = extensions.replace("keyid\n", f"{names}\n")
    sign(request, keys / issuer, PHRASES_OF[issuer], extensions, certified)
    request.unlink()
    certified.rename(keys / name / "cert.pem")


@pytest.mark.parametrize("ca", CAS)
def test_a_ca_is_renewed_while_its_child_names_its_key(copy: Path, ca: str) -> None:
    reissue(copy, CHILDREN[ca], ca, "keyid")
    fine(generate_here(copy))
    assert states(fine(generate_here(copy, "--renew", ca)))[ca] == "renewed"


@pytest.mark.parametrize("ca", CAS)
def test_a_ca_is_not_renewed_while_a_child_names_its_serial_number(
    copy: Path, ca: str
) -> None:
    reissue(copy, CHILDREN[ca], ca, "keyid, issuer:always")
    fine(generate_here(copy))
    before = tree(copy)
    result = generate_here(copy, "--renew", ca)
    (line,) = faults(result, f"keys/{ca}/cert.pem")
    assert "serial number" in line
    assert states(result)[ca] == "kept"
    assert tree(copy) == before


def test_a_robot_in_the_field_counts_even_if_only_the_record_knows_it(copy: Path) -> None:
    reissue(copy, "server", "master", "keyid, issuer:always")
    fine(generate_here(copy))
    edit(copy, lambda keys: keys["nodes"].pop("server"))
    drop(copy / "keys", "server")
    before = tree(copy)
    (line,) = faults(generate_here(copy, "--renew", "master"), "keys/master/cert.pem")
    assert "serial number" in line
    assert tree(copy) == before
    # That certificate has expired by then, so it counts no more. The twin.
    result = generate_here(copy, "--renew", "master", now=in_days(400))
    assert states(result)["master"] == "renewed", result.stderr


def test_a_root_that_names_only_its_own_serial_number_is_renewed(copy: Path) -> None:
    root = copy / "keys/root"
    text = CA_EXTENSIONS.replace("keyid", "keyid, issuer:always")
    text = text.replace("pathlen:0", "pathlen:1")
    own = ("-key", root / "key.pem", "-passin", "pass:root", "-days", "3000")
    config = FOREIGN.format(mask="utf8only", name="root") + f"[extensions]\n{text}"
    what = ("-extensions", "extensions", "-config", "/dev/stdin", "-out", root / "cert.pem")
    openssl("req", "-x509", "-new", *own, *what, stdin=config)
    assert generate_here(copy).returncode == 0
    result = fine(generate_here(copy, "--renew", "root"))
    assert states(result)["root"] == "renewed"
    fine(generate_here(copy))
    assert [judge(copy / "keys" / name).returncode for name in NODES] == [0, 0]


def by_key(ca: Path) -> x509.AuthorityKeyIdentifier:
    """Name a CA by its key alone."""
    return x509.AuthorityKeyIdentifier(identifier(ca), None, None)


def by_serial_number(ca: Path) -> x509.AuthorityKeyIdentifier:
    """Name a CA by its key, its issuer and its serial number."""
    named = certificate(ca / "cert.pem")
    issuer = [x509.DirectoryName(named.issuer)]
    return x509.AuthorityKeyIdentifier(identifier(ca), issuer, named.serial_number)


@pytest.mark.parametrize(
    ("name", "number_afterwards"), [(by_key, 7), (by_serial_number, 8)], ids=["key", "serial"]
)
def test_a_list_is_made_anew_on_renewal_if_it_names_its_cas_old_serial_number(
    copy: Path, name: Callable[[Path], x509.AuthorityKeyIdentifier], number_afterwards: int
) -> None:
    master = copy / "keys/master"
    ca, key = certificate(master / "cert.pem"), private_key(master, "sros")
    old = sign_list(ca, key, 7, [on_list(4711)], (name(master), False))
    (master / "crl.pem").write_bytes(old)
    fine(generate_here(copy))
    fine(generate_here(copy, "--renew", "master"))
    assert ((master / "crl.pem").read_bytes() == old) == (number_afterwards == 7)
    assert number(*lists(master / "crl.pem")) == number_afterwards
    assert revoked_serials(copy / "keys/server/crl.pem") == {4711}
    assert judge(copy / "keys/server").returncode == 0


# --- A date that has passed ------------------------------------------------------------------


def test_a_date_that_has_passed_holds_up_nothing_but_its_own_entry(tmp_path: Path) -> None:
    def with_guest(keys: Keys) -> None:
        for name in CAS:
            keys[name]["validity"]["nextUpdate"] = "7d"
        guest = {**keys["nodes"]["client"], "validity": {"notAfter": day(10)}}
        keys["nodes"]["guest"] = guest

    keys = tmp_path / "keys"
    edit(tmp_path, with_guest)
    fine(generate_here(tmp_path))
    fine(generate_here(tmp_path, "--renew", now=in_days(5)))
    numbers = [number(*lists(keys / name / "crl.pem")) for name in CAS]

    result = generate_here(tmp_path, "--renew", now=in_days(12))
    wrong = errors(result)
    assert result.returncode == 1 and wrong
    assert all("guest" in line for line in wrong), wrong
    assert any("passed" in line and "notAfter" in line for line in wrong), wrong
    refreshed = [number(*lists(keys / name / "crl.pem")) for name in CAS]
    assert refreshed == [each + 1 for each in numbers]

    order = ("--revoke", "server", "--reason", "keyCompromise")
    result = generate_here(tmp_path, *order, now=in_days(12))
    assert result.returncode == 1 and states(result)["server"] == "revoked"
    assert serial(keys / "server") in revoked_serials(keys / "master/crl.pem")


DATES = {
    "an end that has passed": {"notAfter": "2020-01-01"},
    "a beginning that is to come": {"notBefore": "2090-01-01", "notAfter": "2099-01-01"},
    "a time of day that has passed": {"notAfter": "2020-01-01T12:00:00+02:00"},
}


def generate_with_guest(folder: Path, dates: dict[str, str]) -> Result:
    """Run with a new node guest that has dates, and a new one after it that has none."""

    def with_guest(keys: Keys) -> None:
        client = keys["nodes"]["client"]
        guest = {**client, "validity": dates}
        keys["nodes"] = {"guest": guest, **keys["nodes"], "client2": client}

    edit(folder, with_guest)
    return generate_here(folder, env=MASTERS)


def test_a_new_entry_whose_dates_hold_is_made(copy: Path) -> None:
    dates = {"notBefore": "2020-01-01", "notAfter": "2048-01-01"}
    made = states(fine(generate_with_guest(copy, dates)))
    assert (made["guest"], made["client2"]) == ("made", "made")


@pytest.mark.parametrize("dates", DATES.values(), ids=DATES)
def test_a_new_entry_with_a_date_out_of_time_is_the_only_one_that_is_not_made(
    copy: Path, dates: dict[str, str]
) -> None:
    result = generate_with_guest(copy, dates)
    assert states(result)["client2"] == "made"
    (line,) = faults(result, "guest")
    assert "notAfter" in line or "notBefore" in line
    assert not (copy / "keys/guest").exists()


def test_a_kept_certificate_is_judged_by_itself_and_not_by_the_configurations_date(
    copy: Path,
) -> None:
    def rewrite(keys: Keys) -> None:
        keys["master"]["validity"]["notAfter"] = "2020-01-01"
        keys["nodes"]["client2"] = keys["nodes"]["client"]

    edit(copy, rewrite)
    result = generate_here(copy, env=MASTERS)
    assert (result.returncode, errors(result)) == (0, []), result.stderr
    assert states(result)["master"] == "kept" and states(result)["client2"] == "made"
    before = tree(copy)
    result = generate_here(copy, "--renew", "master")
    assert any("notAfter" in line for line in errors(result)) and result.returncode == 1
    assert tree(copy) == before


def test_what_an_expired_root_can_not_renew_is_one_line_that_names_the_way(
    tmp_path: Path,
) -> None:
    edit(tmp_path, lambda keys: keys["root"]["validity"].update(notAfter=day(30)))
    assert generate_here(tmp_path).returncode == 0
    root, again, below = errors(generate_here(tmp_path, "--renew", now=in_days(40)))
    assert "keys.root.validity.notAfter" in root and "keys/root/cert.pem" in again
    assert "left alone: 3 below root" in below
    _, master, _ = errors(generate_here(tmp_path, "--renew", "master", now=in_days(40)))
    assert master.endswith(
        "keys/master/cert.pem: can't be made anew: a certificate above it has expired: "
        "--renew that one first"
    )
    edit(tmp_path, lambda keys: keys["root"]["validity"].update(notAfter="10y"))
    assert errors(generate_here(tmp_path, "--renew", now=in_days(40))) == [], "the twin"


@pytest.mark.parametrize("arguments", ["--revoke client", ""])
def test_a_lists_end_that_has_passed_is_an_error_and_the_list_is_made_all_the_same(
    tmp_path: Path, arguments: str
) -> None:
    keys, ends = tmp_path / "keys", day(10)
    edit(tmp_path, lambda keys: keys["master"]["validity"].update(nextUpdate=ends))
    fine(generate_here(tmp_path))
    (first,) = lists(keys / "master/crl.pem")
    assert first.next_update_utc is not None
    assert first.next_update_utc.strftime("%Y-%m-%d") == ends, "the twin"
    result = generate_here(tmp_path, *arguments.split(), now=in_days(12))
    (line,) = errors(result)
    assert "nextUpdate" in line and result.returncode == 1
    (crl,) = lists(keys / "master/crl.pem")
    assert number(crl) == 2 and len(crl) == len(arguments.split()) // 2
    assert crl.next_update_utc == certificate(keys / "master/cert.pem").not_valid_after_utc
    assert lists(keys / "server/crl.pem")[0] == crl


def test_a_clock_that_is_behind_a_fixed_beginning_holds_up_nothing_else(
    tmp_path: Path,
) -> None:
    def aged(keys: Keys) -> None:
        for entry in (keys["root"], keys["master"], *keys["nodes"].values()):
            entry["validity"]["notBefore"] = "-300d"

    def more(keys: Keys) -> None:
        aged(keys)
        client = keys["nodes"]["client"]
        guest = {**client, "validity": {"notBefore": day(-5), "notAfter": day(90)}}
        keys["nodes"].update(guest=guest, client2=client)

    edit(tmp_path, aged)
    fine(generate_here(tmp_path))
    edit(tmp_path, more)
    result = generate_here(tmp_path, now=in_days(-20))
    assert result.returncode == 1 and states(result).get("client2") == "made"
    way_out = "is in the future: set the clock, or give it an earlier date"
    assert any("guest" in line and way_out in line for line in errors(result))
    assert states(fine(generate_here(tmp_path, env=MASTERS)))["guest"] == "made", "the twin"


@pytest.mark.parametrize(
    "wrong", [{"notAfter": "-1d"}, {"notBefore": "1d"}, {"nextUpdate": "-1h"}], ids=str
)
def test_an_offset_of_the_wrong_sign_was_never_right_and_stays_an_error_of_the_file(
    copy: Path, wrong: dict[str, str]
) -> None:
    edit(copy, lambda keys: keys["master"]["validity"].update(wrong))
    before = tree(copy)
    (line,) = complaints(generate_here(copy), "error", 2)
    assert f"keys.master.validity.{next(iter(wrong))}" in line
    assert tree(copy) == before


# --- A folder that can't be read -------------------------------------------------------------


def as_user(folder: Path, *arguments: str, when: str | None = None) -> Result:
    """Run the script without root's right to read everything, now or at another time."""
    command = [sys.executable, str(GENERATE), *arguments]
    if when is not None:
        needs("faketime")
        command = ["faketime", when, *command]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", *command]
    return run(*command, cwd=folder, env=PHRASES)


@once
def with_broker(folder: Path) -> None:
    """A copy of the keys with a further node, broker."""
    edit(folder, lambda keys: keys["nodes"].update(broker=keys["nodes"]["client"]))
    fine(generate_here(folder))


@pytest.mark.parametrize(
    ("place", "mode"),
    [
        ("broker", 0o000),
        ("broker", 0o400),
        ("broker/cert.pem", 0o000),
        ("broker/key.pem", 0o000),
        ("broker/crl.pem", 0o000),
        ("broker", 0o100),
    ],
)
def test_what_cannot_be_read_in_one_folder_is_an_error_of_that_entry_only(
    with_broker: Path, place: str, mode: int
) -> None:
    keys = with_broker / "keys"
    path = keys / place
    right = path.stat().st_mode
    path.chmod(mode)
    try:
        result = as_user(with_broker, "--revoke", "client")
    finally:
        path.chmod(right)
    (line,) = faults(result, f"keys/{place}")
    assert "ermission" in line
    assert states(result)["client"] == "revoked"
    assert serial(keys / "client") in revoked_serials(keys / "server/crl.pem")
    drop(keys, "client")
    fine(as_user(with_broker))
    assert revoked_serials(keys / "broker/crl.pem") == revoked_serials(keys / "server/crl.pem")


def take_root_away(keys: Path) -> None:
    """Take root's key to a stick."""
    (keys / "root/key.pem").rename(keys.parent / "stick.pem")


def damage(name: str) -> Callable[[Path], object]:
    """Return what damages one of root's files."""
    return lambda keys: (keys / "root" / name).write_text("damaged\n")


def lose_roots_list(keys: Path) -> None:
    """Lose root's list, and all copies of it."""
    for path in keys.glob("*/crl.pem"):
        if path.parent.name != "master":
            path.unlink()


ROOTS_TROUBLE: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "its list has expired": (take_root_away, "+40 days"),
    "its list is damaged": (damage("crl.pem"), None),
    "its list is lost": (lose_roots_list, None),
    "its certificate is damaged": (damage("cert.pem"), None),
    "its key is another": (
        lambda keys: shutil.copy(keys / "master/key.pem", keys / "root/key.pem"),
        None,
    ),
    "its folder is closed": (lambda keys: (keys / "root").chmod(0), None),
}


@pytest.mark.parametrize(
    "trouble",
    seldom(
        ROOTS_TROUBLE, "its list is lost", "its certificate is damaged", "its key is another"
    ),
)
def test_a_revocation_gets_through_whatever_is_wrong_with_root(
    month: Path, trouble: str
) -> None:
    keys = month / "keys"
    spoil, when = ROOTS_TROUBLE[trouble]
    victim = serial(keys / "server")
    spoil(keys)
    try:
        result = as_user(month, "--revoke", "server", when=when)
    finally:
        (keys / "root").chmod(0o700)
    assert result.returncode == 1
    assert len(errors(result)) <= 2, "one of root, and one for what is below it"
    assert victim in revoked_serials(keys / "master/crl.pem"), result.stderr
    if (keys / "client/crl.pem").exists():
        assert victim in revoked_serials(keys / "client/crl.pem")


def test_a_revocation_gets_through_where_nothing_is_wrong(month: Path) -> None:
    victim = serial(month / "keys/server")
    fine(as_user(month, "--revoke", "server"))
    assert victim in revoked_serials(month / "keys/client/crl.pem")


@pytest.mark.parametrize("place", ["master", "master/issued"])
def test_an_order_to_revoke_what_is_in_a_record_that_cannot_be_read(
    two: Path, place: str
) -> None:
    keys = two / "keys"
    (keys / place).chmod(0)
    try:
        result = as_user(two, "--revoke", "client", "client2")
    finally:
        (keys / place).chmod(0o700)
    assert result.returncode == 1
    assert any(f"keys/{place}" in line and "ermission" in line for line in errors(result))
    assert serial(keys / "client2") in revoked_serials(keys / "master2/crl.pem")
    result = as_user(two, "--revoke", "client")
    assert serial(keys / "client") in revoked_serials(keys / "master/crl.pem"), "the twin"


@pytest.mark.parametrize("place", ["keys/server", "keys/master", "keys"])
def test_a_dry_run_says_what_cannot_be_written(copy: Path, place: str) -> None:
    order = ["--revoke", "client"]
    if place == "keys":
        add_client2(copy)
        order = []
    (copy / place).chmod(0o500)
    try:
        dry, real = as_user(copy, "-n", *order), as_user(copy, *order)
    finally:
        (copy / place).chmod(0o700)
    assert (dry.returncode, dry.stdout, dry.stderr) == (1, real.stdout, real.stderr)
    assert "ermission denied" in errors(dry)[0] and place in errors(dry)[0]
    assert as_user(copy, "-n", *order).returncode == 0, "the twin"


def test_a_list_that_a_ca_cannot_write_does_not_reach_its_nodes(copy: Path) -> None:
    keys = copy / "keys"
    before = tree(keys)
    (keys / "master").chmod(0o500)
    try:
        result = as_user(copy, "--revoke", "client")
    finally:
        (keys / "master").chmod(0o700)
    assert result.returncode == 1
    faults(result, "keys/master/crl.pem: Permission denied", "2 below master")
    assert changed(before, tree(keys)) == set()
    assert states(fine(as_user(copy, "--revoke", "client")))["client"] == "revoked"
    assert serial(keys / "client") in revoked_serials(keys / "server/crl.pem")


def test_a_folder_that_is_no_entrys_may_be_closed_to_the_run(copy: Path) -> None:
    foreign = copy / "keys/lost+found"
    foreign.mkdir()
    foreign.chmod(0)
    fine(as_user(copy, "--renew", "client"))
    assert foreign.stat().st_mode & 0o777 == 0


def test_a_leftover_that_cannot_be_removed_is_an_error_of_that_entry_only(copy: Path) -> None:
    def two_more(keys: Keys) -> None:
        nodes = keys["nodes"]
        nodes.update(client2=nodes["client"], client3=nodes["client"])

    edit(copy, two_more)
    leftover = copy / "keys/.client2.part"
    (leftover / "inside").mkdir(parents=True)
    leftover.chmod(0)
    try:
        result = as_user(copy, "--revoke", "server")
    finally:
        leftover.chmod(0o700)
    assert result.returncode == 1 and errors(result)
    assert all("client2" in line for line in errors(result)), result.stderr
    assert states(result).get("client3") == "made"
    assert states(result)["server"] == "revoked"
    drop(copy / "keys", "server")
    assert states(fine(as_user(copy)))["client2"] == "made"
    assert not leftover.exists()


# --- A second CA, and the lists that must not disappear --------------------------------------


@once
def two(folder: Path) -> None:
    """A copy of the keys with a second master and nodes below it."""
    edit(folder, add_master2)
    warned(generate_here(folder), "new to the nodes: master2: copy crl.pem to all of them")


def list_numbers(path: Path) -> dict[bytes, int]:
    """Return the numbers of the lists in a file, by their CA's key identifier."""
    numbers = {}
    for crl in lists(path):
        names = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        numbers[names.key_identifier or b""] = number(crl)
    return numbers


@pytest.mark.parametrize(
    ("place", "victim"),
    [
        ("master2", "client"),
        ("master2/issued", "client"),
        ("master2/cert.pem", "client"),
        ("master", "client2"),
    ],
)
def test_no_list_and_no_anchor_disappears_while_a_ca_cannot_be_read(
    two: Path, place: str, victim: str
) -> None:
    keys = two / "keys"
    nodes = [*NODES, "client2"]
    before = {name: list_numbers(keys / name / "crl.pem") for name in nodes}
    anchors = {name: (keys / name / "ca.pem").read_bytes() for name in nodes}
    path = keys / place
    path.chmod(0)
    try:
        result = as_user(two, "--revoke", victim)
    finally:
        path.chmod(0o700)
    assert result.returncode == 1 and any(f"keys/{place}" in line for line in errors(result))
    assert states(result).get(victim) == "revoked"
    for name in nodes:
        after = list_numbers(keys / name / "crl.pem")
        assert before[name].keys() <= after.keys()
        assert all(after[key] >= old for key, old in before[name].items())
        assert (keys / name / "ca.pem").read_bytes() == anchors[name]
    drop(keys, victim)
    fine(as_user(two))


def test_what_a_node_got_from_its_old_ca_and_from_its_new_one_is_revoked_on_both_lists(
    two: Path,
) -> None:
    def move(keys: Keys) -> None:
        add_master2(keys)
        keys["nodes"]["client"]["issuer"] = "master2"

    keys = two / "keys"
    old = serial(keys / "client")
    edit(two, move)
    assert (
        states(fine(generate_here(two, "--renew", "client", env=MASTERS)))["client"]
        == "renewed"
    )
    new = serial(keys / "client")
    result = fine(generate_here(two, "--revoke", "client", env=MASTERS))
    assert states(result)["client"] == "revoked"
    assert revoked_serials(keys / "master/crl.pem") == {old}
    assert revoked_serials(keys / "master2/crl.pem") == {new}
    # The order is for one name. Its neighbours below both CAs stay in force.
    assert [judge(keys / name).returncode for name in ("server", "client2")] == [0, 0]


# --- A higher CA's certificate ---------------------------------------------------------------


# A CA above others, which may be above further ones.
ABOVE: Profile = {
    "constraints": (x509.BasicConstraints(True, None), True),
    "usage": usage("digital_signature", "key_cert_sign", "crl_sign"),
}
TEN_YEARS = (-1, 3000)
COMPANY = issue(None, "Company Root", ABOVE, days=TEN_YEARS)
ISSUING = issue(COMPANY, "Company Issuing", ABOVE, days=TEN_YEARS)
STRANGER = issue(None, "Stranger", ABOVE, days=TEN_YEARS)


def cross(folder: Path, by: Identity = COMPANY, **want: Any) -> x509.Certificate:
    """Return a higher CA's certificate for a folder's root, or another one as it is wanted."""
    root = certificate(folder / "keys/root/cert.pem")
    subject, key = want.pop("subject", root.subject), want.pop("key", root.public_key())
    days = want.pop("days", TEN_YEARS)
    return certify(by, subject, key, days, **{**ABOVE, **want})


def put_cross(folder: Path, data: bytes) -> Result:
    """Put a cross.pem beside root's certificate, add a node, and run the script."""
    (folder / "keys/root/cross.pem").write_bytes(data)
    add_client2(folder)
    return generate_here(folder, env=MASTERS)


BAD_CROSSES: dict[str, tuple[dict[str, Any], str]] = {
    "expired": ({"days": (-20, -10)}, "cross.pem: has expired: "),
    "not yet valid": ({"days": (10, 3000)}, "not yet|future|begins"),
    "not a CA's": ({"constraints": (x509.BasicConstraints(False, None), True)}, "CA"),
    "without a place for master": (
        {"constraints": (x509.BasicConstraints(True, 0), True)},
        "path",
    ),
    "that may not sign": ({"usage": usage("digital_signature", "crl_sign")}, "keyUsage"),
    "with another key identifier": (
        {"own": (x509.SubjectKeyIdentifier(b"\1\2\3"), False)},
        "dentifier",
    ),
    "with what no verifier knows": (
        {"odd": (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0"), True)},
        "unhandled critical extension",
    ),
    "of another name": ({"subject": STRANGER.chain[0].subject}, "name"),
    "of another key": ({"key": STRANGER.key.public_key()}, "key"),
}


@pytest.mark.parametrize("case", BAD_CROSSES)
def test_a_cross_certificate_that_is_no_good_is_an_error_and_all_else_is_done(
    copy: Path, case: str
) -> None:
    want, reason = BAD_CROSSES[case]
    result = put_cross(copy, pem(cross(copy, **want)))
    (line,) = faults(result, "keys/root/cross.pem")
    assert re.search(reason, line), line
    assert states(result)["client2"] == "made"
    for name in ("server", "client2"):
        assert [each.subject for each in chain(copy / "keys" / name)[1:]] == [
            certificate(copy / "keys/master/cert.pem").subject
        ]


def files_of_higher_cas(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return cross.pem in the forms that are good, and how many certificates each holds."""
    plain, below = cross(folder), cross(folder, ISSUING)
    text = b"Certificate:\n    Data:\n        Version: 3 (0x2)\n"
    return {
        "alone": (pem(plain), 1),
        "with room for one CA below": (
            pem(cross(folder, constraints=(x509.BasicConstraints(True, 1), True))),
            1,
        ),
        "with text before it": (text + pem(plain), 1),
        "with a PC's line ends": (pem(plain).replace(b"\n", b"\r\n"), 1),
        "with its issuer": (pem(below, ISSUING.chain[0]), 2),
        "with its issuers up to their root": (
            pem(below, ISSUING.chain[0], COMPANY.chain[0]),
            3,
        ),
    }


FORMS = [
    "alone",
    "with room for one CA below",
    "with text before it",
    "with a PC's line ends",
    "with its issuer",
    "with its issuers up to their root",
]


@pytest.mark.parametrize("form", FORMS)
def test_a_good_cross_certificate_and_its_issuers_end_every_chain(
    copy: Path, form: str
) -> None:
    data, count = files_of_higher_cas(copy)[form]
    fine(put_cross(copy, data))
    company = copy / "company.pem"
    company.write_bytes(pem(COMPANY.chain[0]))
    given = x509.load_pem_x509_certificates(data)
    assert len(given) == count
    for name in ("server", "client2"):
        assert chain(copy / "keys" / name)[2:] == given
    node = copy / "keys/server"
    openssl(
        "verify", "-CAfile", company, "-untrusted", node / "fullchain.pem", node / "cert.pem"
    )


def put_cross_signed_with(folder: Path, digest: str) -> Result:
    """Have openssl sign the cross.pem with a digest, and run the script."""
    cross_certify(folder / "keys/root", folder / "higher", folder / "cross.pem", f"-{digest}")
    return put_cross(folder, (folder / "cross.pem").read_bytes())


def test_a_cross_certificate_with_sha256_ends_every_chain(copy: Path) -> None:
    fine(put_cross_signed_with(copy, "sha256"))
    assert len(chain(copy / "keys/client2")) == 3


@pytest.mark.parametrize("digest", ["sha1", "md5"])
def test_a_cross_certificate_with_a_digest_that_can_be_forged_is_an_error(
    copy: Path, digest: str
) -> None:
    result = put_cross_signed_with(copy, digest)
    (line,) = faults(result, "keys/root/cross.pem")
    assert digest in line
    assert states(result)["client2"] == "made" and len(chain(copy / "keys/client2")) == 2


def more_blocks(folder: Path) -> dict[str, bytes]:
    """Return cross.pem in forms that can't be a chain."""
    below = pem(cross(folder, ISSUING))
    return {
        "a stranger follows": below + pem(STRANGER.chain[0]),
        "the issuer stands first": pem(ISSUING.chain[0]) + below,
        "an issuer is left out": below + pem(COMPANY.chain[0]),
        "the end is cut off": below[: len(below) // 2],
        "its issuer is cut off": below + pem(ISSUING.chain[0])[:300],
        "its issuer is of another kind": below
        + pem(ISSUING.chain[0]).replace(b" CERT", b" TRUSTED CERT"),
        "it is empty": b"",
    }


@pytest.mark.parametrize(
    "case",
    [
        "a stranger follows",
        "the issuer stands first",
        "an issuer is left out",
        "the end is cut off",
        "its issuer is cut off",
        "its issuer is of another kind",
        "it is empty",
    ],
)
def test_a_cross_certificate_with_what_is_not_its_issuer_is_an_error(
    copy: Path, case: str
) -> None:
    result = put_cross(copy, more_blocks(copy)[case])
    faults(result, "keys/root/cross.pem")
    assert states(result)["client2"] == "made"
    assert len(chain(copy / "keys" / "server")) == len(chain(copy / "keys" / "client2")) == 2


BAD_ISSUERS: dict[str, tuple[dict[str, Any], str]] = {
    "expired": ({"days": (-20, -10)}, "cross.pem: has expired: "),
    "not yet valid": ({"days": (10, 3000)}, "have a new one made, or remove it, or set"),
    "not a CA's": ({"constraints": (x509.BasicConstraints(False, None), True)}, "CA"),
    "without a place for two": (
        {"constraints": (x509.BasicConstraints(True, 1), True)},
        "pathlen:1 is too short for 2",
    ),
    "that may not sign": ({"usage": usage("digital_signature", "crl_sign")}, "keyUsage"),
    "signed with sha1": ({"digest": "sha1"}, "sha1"),
    "with a weak key": ({"key": rsa.generate_private_key(65537, 1024)}, "rsa:1024"),
}


@pytest.mark.parametrize("case", BAD_ISSUERS)
def test_a_cross_certificates_issuer_that_is_no_good_is_an_error(
    copy: Path, case: str
) -> None:
    want, reason = BAD_ISSUERS[case]
    higher = issue(COMPANY, "Higher", ABOVE, **{"days": TEN_YEARS, **want})
    result = put_cross(copy, pem(cross(copy, higher), higher.chain[0]))
    assert states(result)["client2"] == "made"
    (line,) = faults(result, "keys/root/cross.pem")
    assert reason in line
    assert len(chain(copy / "keys/client2")) == 2


def test_a_cross_certificates_issuer_with_a_place_for_two_is_good(copy: Path) -> None:
    room = (x509.BasicConstraints(True, 2), True)
    higher = issue(COMPANY, "Higher", ABOVE, days=TEN_YEARS, constraints=room)
    fine(put_cross(copy, pem(cross(copy, higher), higher.chain[0])))
    assert len(chain(copy / "keys/client2")) == 4


@pytest.mark.parametrize("name", ["master", "client"])
def test_a_cross_certificate_in_another_folder_than_roots_is_a_warning(
    copy: Path, name: str
) -> None:
    path = copy / "keys" / name / "cross.pem"
    path.write_bytes(pem(cross(copy)))
    warned(
        generate_here(copy, env=MASTERS),
        f"keys/{name}/cross.pem: is used in a root's folder only",
    )
    path.rename(copy / "keys/root/cross.pem")
    fine(generate_here(copy, env=MASTERS))
    assert len(chain(copy / "keys/client")) == 3


def test_a_cross_certificate_that_ends_soon_is_a_warning_and_once_it_has_ended_an_error(
    copy: Path,
) -> None:
    result = put_cross(copy, pem(cross(copy, days=(-20, 9))))
    (line,) = warned(result, "keys/root/cross.pem")
    assert day(9) in line
    assert len(chain(copy / "keys" / "server")) == 3
    result = generate_here(copy, now=in_days(12), env=MASTERS)
    faults(result, "keys/root/cross.pem")
    assert len(chain(copy / "keys" / "server")) == len(chain(copy / "keys" / "client2")) == 2
    (copy / "keys/root/cross.pem").write_bytes(pem(cross(copy)))
    fine(generate_here(copy, env=MASTERS))
    assert len(chain(copy / "keys" / "server")) == 3


# --- Keys that are not encrypted as the configuration says -----------------------------------


def without_cipher(keys: Keys, *names: str) -> None:
    """Leave the keys of some entries unencrypted."""
    for name in names:
        entry = keys.get(name) or keys["nodes"][name]
        del entry["cipher"], entry["passphrase"]


def follow(folder: Path, line: str, *typed: str) -> None:
    """Run the command that a warning ends with, and type what it asks for."""
    found = re.search("openssl .*", line)
    assert found, line
    at = Terminal("sh", "-c", found[0], cwd=folder)
    for phrase in typed:
        at.expect(":")
        at.type(f"{phrase}\n")
    assert at.finish() == 0, at.seen


def test_a_plain_key_of_an_entry_with_a_cipher_is_a_warning_whose_command_helps(
    plain: Path,
) -> None:
    edit(plain, lambda keys: without_cipher(keys, "client"))
    names = [f"keys/{name}/key.pem" for name in (*CAS, "server")]
    lines = warned(generate_here(plain), *names)
    assert all("not encrypted" in line for line in lines)
    (line,) = [line for line in lines if names[2] in line]
    follow(plain, line, "sros", "sros")
    warned(generate_here(plain), *names[:2])
    assert "ENCRYPTED" in (plain / names[2]).read_text()


def test_an_encrypted_key_of_an_entry_without_cipher_is_a_warning_whose_command_helps(
    copy: Path,
) -> None:
    edit(copy, lambda keys: without_cipher(keys, *NODES))
    names = [f"keys/{name}/key.pem" for name in NODES]
    first, second = warned(generate_here(copy), *names)
    follow(copy, first, "sros")
    assert warned(generate_here(copy), names[1]) == [second]
    assert "ENCRYPTED" not in (copy / names[0]).read_text()


def test_a_key_that_another_program_encrypted_counts_as_encrypted(copy: Path) -> None:
    path = copy / "keys/server/key.pem"
    phrases = ("-passin", "pass:sros", "-passout", "pass:sros")
    path.write_text(openssl("ec", "-aes128", "-in", path, *phrases))
    assert "Proc-Type: 4,ENCRYPTED" in path.read_text()
    fine(generate_here(copy))


@pytest.mark.parametrize(
    ("phrases", "compared"),
    [({}, []), (MASTERS, ["master", *NODES]), (PHRASES, [*CAS, *NODES])],
    ids=["none", "the masters'", "all"],
)
def test_a_line_says_where_key_and_certificate_were_not_compared(
    copy: Path, phrases: dict[str, str], compared: list[str]
) -> None:
    drop(copy / "keys/client", "key.pem")
    result = fine(generate_here(copy, env=phrases))
    for line in result.stdout.splitlines():
        name = line.split()[0]
        said = line.endswith(", key not compared")
        assert said == (name not in compared and name != "client"), line
        assert line.endswith(", key elsewhere") == (name == "client"), line


def test_a_key_that_is_anothers_is_found_as_soon_as_it_can_be_compared(copy: Path) -> None:
    shutil.copy(copy / "keys/client/key.pem", copy / "keys/server/key.pem")
    result = fine(generate_here(copy, env=None))
    assert "key not compared" in result.stdout
    refused(generate_here(copy, env=MASTERS), "keys/server/cert.pem")


# --- Second thoughts about a revocation ------------------------------------------------------


REASONS = {
    "held": "certificateHold",
    "ceased": "cessationOfOperation",
    "silent": "unspecified",
    "replaced": "superseded",
    "stolen": "keyCompromise",
    "betrayed": "aACompromise",
}
AUTHORITY = x509.AuthorityKeyIdentifier.oid
LONG_AGO = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


@once
def revoked(folder: Path) -> None:
    """A copy of the keys with a node for each reason, revoked for it."""

    def robots(keys: Keys) -> None:
        keys["nodes"].update(dict.fromkeys(REASONS, keys["nodes"]["client"]))

    edit(folder, robots)
    fine(generate_here(folder, env=MASTERS))
    configure(folder)
    ca = folder / "keys/master"
    entries = [
        on_list(serial(folder / "keys" / name), reason, LONG_AGO)
        for name, reason in REASONS.items()
    ]
    (ca / "crl.pem").write_bytes(make_list(ca, "sros", 2, *entries))
    fine(generate_here(folder, env=None))


def reasons_on(path: Path) -> dict[int, str]:
    """Return the reason for each serial number on the first list in a file."""
    reasons = {}
    for entry in lists(path)[0]:
        reasons[entry.serial_number] = "unspecified"
        for extension in entry.extensions:
            if isinstance(extension.value, x509.CRLReason):
                reasons[entry.serial_number] = extension.value.reason.value
    return reasons


@pytest.mark.parametrize(
    ("reason", "changes", "number_afterwards"),
    [
        ("keyCompromise", ["held", "ceased", "silent", "replaced"], 3),
        ("cACompromise", ["held", "ceased", "silent", "replaced"], 3),
        ("superseded", ["held"], 3),
        ("certificateHold", [], 2),
    ],
)
def test_a_second_order_makes_a_reason_graver_and_never_lighter(
    revoked: Path, reason: str, changes: list[str], number_afterwards: int
) -> None:
    keys = revoked / "keys"
    serials = {name: serial(keys / name) for name in REASONS}
    before = tree(keys)
    result = generate_here(revoked, "--revoke", *REASONS, "--reason", reason, env=MASTERS)
    lines = complaints(result, "warning", 0)
    stay = [name for name in REASONS if name not in changes]
    assert len(lines) == len(stay), lines
    for name in stay:
        (line,) = [line for line in lines if name in line]
        assert "already" in line and REASONS[name] in line
    expected = {**REASONS, **dict.fromkeys(changes, reason)}
    by_serial = {serials[name]: why for name, why in expected.items()}
    assert reasons_on(keys / "master/crl.pem") == by_serial
    assert reasons_on(keys / "server/crl.pem") == by_serial
    assert {entry.revocation_date_utc for entry in lists(keys / "master/crl.pem")[0]} == {
        LONG_AGO
    }
    assert number(*lists(keys / "master/crl.pem")) == number_afterwards
    assert (changed(before, tree(keys)) == set()) == (number_afterwards == 2)


def test_the_same_order_twice_is_a_warning_and_a_new_name_beside_it_is_revoked(
    revoked: Path,
) -> None:
    keys = revoked / "keys"
    order = ("--revoke", "stolen", "client", "--reason", "keyCompromise")
    (line,) = warned(generate_here(revoked, *order, env=MASTERS), "stolen")
    assert "already" in line and "keyCompromise" in line
    assert serial(keys / "client") in revoked_serials(keys / "server/crl.pem")
    before = tree(keys)
    lines = complaints(generate_here(revoked, *order, env=MASTERS), "warning", 0)
    assert len(lines) == 2 and tree(keys) == before


def test_an_order_for_expired_certificates_only_is_a_warning(copy: Path) -> None:
    def long_lived(keys: Keys) -> None:
        nodes = keys["nodes"]
        keys["nodes"] = {"camera": {**nodes["client"], "validity": {"notAfter": "4y"}}}

    edit(copy, long_lived)
    # These two are not in the configuration any more.
    warned(generate_here(copy, env=MASTERS), "keys/server", "keys/client")
    keys = copy / "keys"
    before = tree(keys)
    result = generate_here(copy, "--revoke", "client", now=in_days(2 * 365), env=MASTERS)
    (line,) = warned(result, "client")
    assert "expired" in line
    assert tree(keys) == before

    # One that has expired does not hold up one that has not. The twin.
    result = generate_here(
        copy, "--revoke", "client", "camera", now=in_days(2 * 365), env=MASTERS
    )
    warned(result, "client")
    assert revoked_serials(keys / "master/crl.pem") == {serial(keys / "camera")}
