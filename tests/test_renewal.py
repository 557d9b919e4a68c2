"""Renewal and revocation: what changes, what stays in force, and what peers make of it."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from certificates import (
    CA_EXTENSIONS,
    NEW_KEY,
    SUBJECT,
    certificate,
    judge,
    lists,
    make_list,
    number,
    revoked_serials,
    serial,
    sign,
)
from configurations import add_client2, configure, edit
from cryptography import x509
from exchanges import (
    ANSWERED,
    Serve,
    ask,
    client,
    connect,
    exchange,
    presented,
    refuse,
)
from folders import changed, drop, keep_only, once, record, tree
from programs import free_port, running
from running import (
    GENERATE,
    MASTERS,
    Result,
    faults,
    fine,
    generate,
    generate_here,
    in_days,
    openssl,
    refused,
    run,
    states,
    warned,
)

NODES = ["server", "client", "client2"]
REVOKED = "certificate revoked"


class Change(NamedTuple):
    """A folder of keys before and after a run: to read only."""

    before: Path
    after: Path
    files: set[str]  # that came, went or were written
    result: Result


@once
def fleet(folder: Path) -> None:
    """A copy of the keys with a third node, client2."""
    add_client2(folder)
    fine(generate_here(folder))


def change(folder: Path, *arguments: str) -> Change:
    """Run the script in a folder, and keep a copy of its keys from before."""
    keys, old = folder / "keys", shutil.copytree(folder / "keys", folder / "before")
    before = tree(keys)
    result = generate_here(folder, *arguments)
    return Change(old, keys, changed(before, tree(keys)), result)


@pytest.fixture
def client_revoked(fleet: Path) -> Change:
    """The revocation of client, one of three nodes."""
    return change(fleet, "--revoke", "client")


@once
def lessened(folder: Path) -> None:
    """A copy of the keys in which client is revoked, one of three nodes."""
    add_client2(folder)
    fine(generate_here(folder))
    fine(generate_here(folder, "--revoke", "client"))


@once
def expired(folder: Path) -> None:
    """Keys made 400 days ago: the nodes have expired and the CAs have not."""
    drop(folder, "keys")
    fine(generate_here(folder, now=in_days(-400)))


# --- Renewal of nodes ------------------------------------------------------------------------


def test_renewal_makes_a_new_certificate_on_the_same_key_as_the_configuration_says_today(
    fleet: Path,
) -> None:
    def today(keys: dict[str, Any]) -> None:
        client = keys["nodes"]["client"]
        keys["nodes"]["client2"] = {
            **client,
            "validity": {"notBefore": "-2h", "notAfter": "30d"},
            "extensions": {**client["extensions"], "subjectAltName": "DNS:arm.example"},
        }

    keys = fleet / "keys"
    old, old_record = certificate(keys / "client2/cert.pem"), record(keys, "client2")
    edit(fleet, today)
    before = tree(keys)
    result = fine(generate_here(fleet, "--renew", "client2", env=MASTERS))
    kept = dict.fromkeys(["root", "master", *NODES], "kept")
    assert states(result) == {**kept, "client2": "renewed"}

    new = certificate(keys / "client2/cert.pem")
    assert new.public_key() == old.public_key() and new.serial_number != old.serial_number
    names = new.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.DNSName("arm.example")]
    now, minute = datetime.now(timezone.utc), timedelta(minutes=1)
    assert abs(new.not_valid_after_utc - now - timedelta(days=30)) < minute
    assert abs(new.not_valid_before_utc - now + timedelta(hours=2)) < minute

    on_record = str(record(keys, "client2").relative_to(keys))
    files = {"client2/cert.pem", "client2/fullchain.pem", on_record}
    assert changed(before, tree(keys)) == files, "no key and no other node"
    text = (keys / "client2/cert.pem").read_text()
    assert record(keys, "client2").read_text() == text != old_record.read_text()
    chain = text + (keys / "master/cert.pem").read_text()
    assert (keys / "client2/fullchain.pem").read_text() == chain
    assert judge(keys / "client2").returncode == 0
    before = tree(fleet)
    fine(generate_here(fleet, env=None))
    assert tree(fleet) == before


def test_a_renewed_nodes_subject_is_that_of_the_configuration(copy: Path) -> None:
    def rename(keys: dict[str, Any]) -> None:
        keys["nodes"]["client"]["subject"]["commonName"] = "arm"

    edit(copy, rename)
    result = fine(generate_here(copy, "--renew", "client", env=MASTERS))
    assert states(result)["client"] == "renewed"
    printed = openssl(
        "x509",
        "-in",
        copy / "keys/client/cert.pem",
        "-noout",
        "-subject",
        "-nameopt",
        "compat",
    )
    assert printed == f"subject={SUBJECT}arm\n"


def test_what_has_no_key_here_is_renewed_for_the_key_that_it_has_elsewhere(copy: Path) -> None:
    keys = copy / "keys"
    drop(keys / "client", "key.pem")
    keep_only(keys / "server")
    files = ("-keyout", copy / "robot.pem", "-out", keys / "server/csr.pem")
    openssl("req", "-new", *NEW_KEY, *files, "-subj", "/CN=x")
    fine(generate_here(copy, env=MASTERS))
    old = {name: certificate(keys / name / "cert.pem") for name in ("server", "client")}
    result = fine(generate_here(copy, "--renew", "server", "client", env=MASTERS))
    assert list(states(result).values()) == ["kept", "kept", "renewed", "renewed"]
    for name, certified in old.items():
        renewed = certificate(keys / name / "cert.pem")
        assert renewed.public_key() == certified.public_key()
        assert renewed.serial_number != certified.serial_number


def test_renewal_without_names_changes_nothing_and_asks_nothing_while_nothing_is_due(
    copy: Path,
) -> None:
    before = tree(copy)
    result = fine(generate_here(copy, "--renew", env=None))
    assert set(states(result).values()) == {"kept"}
    assert tree(copy) == before


def test_renewal_without_names_renews_exactly_what_is_due_without_the_roots_key(
    copy: Path,
) -> None:
    def long_lived(keys: dict[str, Any]) -> None:
        keys["nodes"]["camera"] = {**keys["nodes"]["client"], "validity": {"notAfter": "3y"}}

    keys = copy / "keys"
    drop(keys / "root", "key.pem")
    edit(copy, long_lived)
    fine(generate_here(copy, env=MASTERS))
    before = tree(keys)
    result = fine(generate_here(copy, "--renew", now=in_days(300), env=MASTERS))
    due = ["server", "client"]
    assert states(result) == {
        **dict.fromkeys(["root", "master", "camera"], "kept"),
        **dict.fromkeys(due, "renewed"),
    }
    files = {f"{name}/{file}" for name in due for file in ("cert.pem", "fullchain.pem")}
    files |= {str(record(keys, name).relative_to(keys)) for name in due}
    assert changed(before, tree(keys)) == files

    before = tree(keys)
    result = fine(generate_here(copy, "--renew", now=in_days(300), env=None))
    assert set(states(result).values()) == {"kept"}
    assert tree(keys) == before


def test_an_expired_certificate_is_an_error_until_it_is_renewed(expired: Path) -> None:
    keys = expired / "keys"
    before = tree(keys)
    (line,) = refused(
        generate_here(expired, "--renew", "server", env=MASTERS), "keys/client/cert.pem"
    )
    assert "expired" in line and "--renew" in line
    result = fine(generate_here(expired, "--renew", env=MASTERS))
    assert states(result) == {
        "root": "kept",
        "master": "kept",
        "server": "kept",
        "client": "renewed",
    }
    fine(generate_here(expired, env=None))
    after = tree(keys)
    assert all(
        after[f"{name}/key.pem"] == before[f"{name}/key.pem"] for name in ("server", "client")
    )
    assert [judge(keys / name).returncode for name in ("server", "client")] == [0, 0]


def test_renewal_without_pass_phrase_and_terminal_is_one_line(copy: Path) -> None:
    before = tree(copy)
    refused(generate(copy, "--renew", "server", "client", env=None), "SROS_PASSPHRASE")
    refused(generate(copy, "--renew", "master", env=MASTERS), "SROS_ROOT_PASSPHRASE")
    assert tree(copy) == before


def test_renewal_with_a_wrong_pass_phrase_is_one_line(copy: Path) -> None:
    before = tree(copy)
    wrong = {"SROS_PASSPHRASE": "wrong"}
    refused(
        generate_here(copy, "--renew", "client", env=wrong),
        "keys/master/key.pem",
        "2 below master",
    )
    assert tree(copy) == before


def test_what_violates_the_issuers_name_constraints_is_not_renewed(tmp_path: Path) -> None:
    def constrain(keys: dict[str, Any], name: str = "client") -> None:
        permitted = "permitted;DNS:localhost, permitted;DNS:client"
        keys["master"]["extensions"]["nameConstraints"] = f"critical, {permitted}"
        keys["nodes"]["client"]["extensions"]["subjectAltName"] = f"DNS:{name}"

    path = tmp_path / "keys/client/cert.pem"
    edit(tmp_path, constrain)
    fine(generate_here(tmp_path))
    edit(tmp_path, lambda keys: constrain(keys, "outside.example"))
    before = tree(tmp_path)
    result = generate_here(tmp_path, "--renew", "client", env=MASTERS)
    faults(result, "keys/client/cert.pem: permitted subtree violation")
    assert states(result)["client"] == "kept"
    assert tree(tmp_path) == before
    edit(tmp_path, lambda keys: constrain(keys, "arm.client"))
    fine(generate_here(tmp_path, "--renew", "client", env=MASTERS))
    assert "DNS:arm.client\n" in openssl("x509", "-in", path, "-noout", "-text")


# --- Renewal of CAs --------------------------------------------------------------------------


@pytest.fixture(params=["root", "master"])
def ca_renewed(fleet: Path, request: pytest.FixtureRequest) -> tuple[str, Change]:
    """The name of a CA, and its renewal."""
    name: str = request.param
    return name, change(fleet, "--renew", name)


def test_a_renewed_ca_keeps_its_key_and_every_nodes_certificate(
    ca_renewed: tuple[str, Change],
) -> None:
    name, (before, after, files, result) = ca_renewed
    fine(result)
    assert states(result) == {
        **dict.fromkeys(["root", "master", *NODES], "kept"),
        name: "renewed",
    }
    old, new = (certificate(keys / name / "cert.pem") for keys in (before, after))
    assert new.public_key() == old.public_key() and new.serial_number != old.serial_number
    # A node's fullchain.pem has the new master, its ca.pem the new root; root has itself.
    below = {
        "root": {f"{each}/ca.pem" for each in ("root", "master", *NODES)},
        "master": {f"{node}/fullchain.pem" for node in NODES},
    }
    expected = {f"{name}/cert.pem", f"{name}/fullchain.pem", *below[name]}
    # A root keeps its old certificate in its own record.
    recorded = {"master": after, "root": before}[name]
    path = record(recorded, name, "root").relative_to(recorded)
    assert (after / path).read_bytes() == (recorded / name / "cert.pem").read_bytes()
    assert files == expected | {str(path)}
    for node in NODES:
        chain = [(after / each / "cert.pem").read_text() for each in (node, "master")]
        assert (after / node / "fullchain.pem").read_text() == "".join(chain)
        assert (after / node / "ca.pem").read_text() == (after / "root/cert.pem").read_text()


def test_openssl_accepts_every_node_under_a_renewed_ca(ca_renewed: tuple[str, Change]) -> None:
    _, (before, after, _, _) = ca_renewed
    for node in NODES:
        for peer in (after, before):
            result = judge(after / node, peer / "server")
            assert result.returncode == 0, result.stderr


def test_folders_from_before_and_after_a_cas_renewal_talk_to_each_other(
    ca_renewed: tuple[str, Change], serve: Serve
) -> None:
    _, (before, after, _, _) = ca_renewed
    exchange(serve, before / "server", after / "client")
    exchange(serve, after / "server", before / "client")


def test_without_the_roots_key_a_due_master_stays_in_force_until_it_is_signed_elsewhere(
    tmp_path: Path,
) -> None:
    def aged(keys: dict[str, Any]) -> None:
        for entry in (keys["root"], keys["master"], *keys["nodes"].values()):
            entry["validity"] = {"notBefore": "-300d", "notAfter": "100d"}
        keys["root"]["validity"]["notAfter"] = "10y"

    keys, elsewhere = tmp_path / "keys", tmp_path / "elsewhere"
    edit(tmp_path, aged)
    assert generate_here(tmp_path).returncode == 0
    configure(tmp_path)
    shutil.copytree(keys / "root", elsewhere)
    drop(keys / "root", "key.pem")
    before = tree(keys)
    result = generate_here(tmp_path, "--renew", env=MASTERS)
    (line,) = faults(result, "keys/master/csr.pem")
    assert "keys/root" in line
    expected = {"root": "kept", "master": "kept", "server": "renewed", "client": "renewed"}
    assert states(result) == expected
    files = {
        "master/csr.pem",
        *(f"{x}/{y}.pem" for x in NODES[:2] for y in ("cert", "fullchain")),
    }
    files |= {str(record(keys, name).relative_to(keys)) for name in NODES[:2]}
    assert changed(before, tree(keys)) == files, "master/cert.pem is none of them"

    sign(keys / "master/csr.pem", elsewhere, "root", CA_EXTENSIONS, tmp_path / "cert.pem")
    (tmp_path / "cert.pem").rename(keys / "master/cert.pem")
    new = (keys / "master/cert.pem").read_text()
    result = fine(generate_here(tmp_path, "--renew", env=MASTERS))
    assert states(result) == dict.fromkeys(expected, "kept")
    assert (keys / "master/cert.pem").read_text() == new
    assert (keys / "server/fullchain.pem").read_text() == (
        keys / "server/cert.pem"
    ).read_text() + new
    assert certificate(record(keys, "master", "root")) == certificate(keys / "master/cert.pem")
    assert judge(keys / "client", keys / "server").returncode == 0


def test_a_node_does_not_outlive_a_root_that_was_renewed_for_less_than_its_master_has(
    copy: Path,
) -> None:
    def shorten(keys: dict[str, Any]) -> None:
        keys["root"]["validity"]["notAfter"] = "100d"
        keys["nodes"]["client2"] = keys["nodes"]["client"]

    keys = copy / "keys"
    edit(copy, shorten)
    generate_here(copy, "--renew", "root")
    ends = {
        name: certificate(keys / name / "cert.pem").not_valid_after_utc
        for name in ("root", "master", "client2")
    }
    assert ends["client2"] == ends["root"] < ends["master"]


@pytest.mark.parametrize("name", ["root", "master"])
def test_a_ca_whose_subject_has_changed_is_not_renewed(copy: Path, name: str) -> None:
    edit(copy, lambda keys: keys[name]["subject"].update(organizationName="Another"))
    before = tree(copy)
    result = generate_here(copy, "--renew", name)
    (line,) = faults(result, f"keys/{name}/cert.pem")
    assert f"keys.{name} must say it: CN={name},OU=Robots,O=SROS Example,C=US" in line
    assert tree(copy) == before


def certified_again(folder: Path, subject: str, *options: str) -> None:
    """Have openssl certify master's key, with its subject written in another way."""
    request, out = folder / "master.csr", folder / "keys/master/cert.pem"
    key = ("-key", folder / "keys/master/key.pem", "-passin", "pass:sros")
    openssl("req", "-new", *key, *options, "-subj", subject, "-out", request)
    sign(request, folder / "keys/root", "root", CA_EXTENSIONS, out)
    keep_only(out.parent, "key.pem", "cert.pem")
    drop(folder / "keys", "server", "client")


SAME = {
    "in capitals": ("/C=US/O=SROS EXAMPLE/OU=robots/CN=Master",),
    "with more spaces": ("/C=US/O=SROS  Example/OU= Robots/CN=master",),
}


@pytest.mark.parametrize("subject", SAME)
def test_a_ca_keeps_the_subject_that_is_the_same_in_other_words(
    copy: Path, subject: str
) -> None:
    certified_again(copy, *SAME[subject])
    fine(generate_here(copy))
    before = certificate(copy / "keys/master/cert.pem").subject.public_bytes()
    assert states(fine(generate_here(copy, "--renew", "master")))["master"] == "renewed"
    assert certificate(copy / "keys/master/cert.pem").subject.public_bytes() == before
    assert judge(copy / "keys/server").returncode == 0


def test_a_cas_subject_with_several_attributes_in_a_part_can_be_written_one_by_one(
    copy: Path,
) -> None:
    certified_again(copy, "/C=US/CN=master+O=SROS Example", "-multivalue-rdn")
    subject = {"countryName": "US", "commonName": "master", "organizationName": "SROS Example"}
    edit(copy, lambda keys: keys["master"].update(subject=subject))
    fine(generate_here(copy))
    assert states(fine(generate_here(copy, "--renew", "master")))["master"] == "renewed"
    renewed = certificate(copy / "keys/master/cert.pem").subject
    assert len(renewed.rdns) == 2 and len(list(renewed)) == 3


def test_a_cas_attribute_without_a_name_here_can_be_written_by_its_number(
    copy: Path,
) -> None:
    certified_again(
        copy, "/C=US/O=SROS Example/OU=Robots/CN=master/organizationIdentifier=NTR"
    )
    (line,) = faults(generate_here(copy, "--renew", "master"), "keys/master/cert.pem")
    assert "2.5.4.97=NTR" in line
    edit(copy, lambda keys: keys["master"]["subject"].update({"2.5.4.97": "NTR"}))
    assert states(fine(generate_here(copy, "--renew", "master")))["master"] == "renewed"


# --- Usage -----------------------------------------------------------------------------------


def test_wrong_use_is_status_2_and_changes_nothing(fleet: Path) -> None:
    def use(arguments: str) -> str:
        result = generate_here(fleet, *arguments.split())
        assert (result.returncode, result.stdout) == (2, ""), arguments
        *usage, line = result.stderr.splitlines()
        assert line.startswith(f"{GENERATE.name}: error: "), arguments
        assert all(each.startswith(("usage: ", " ")) for each in usage)
        assert bool(usage) == ("argument" in line), "argparse's own lines stay as they are"
        return line.removeprefix(f"{GENERATE.name}: error: ")

    cases = {
        "--renew unknown": "unknown",
        "--revoke unknown": "unknown",
        "--revoke client unknown": "unknown",
        "--revoke root": "root: signs itself",
        "--revoke": "argument --revoke",
        "--renew client --revoke client2": "argument --revoke: not allowed with argument",
        "--reason keyCompromise": "argument --reason",
        "--revoke client --reason wrong": "argument --reason: invalid choice",
        "--revoke client --reason removeFromCRL": "argument --reason: invalid choice",
    }
    before = tree(fleet)
    for arguments, start in cases.items():
        assert use(arguments).startswith(start), arguments
    assert tree(fleet) == before


# --- Revocation: the lists -------------------------------------------------------------------


def test_revocation_writes_the_issuers_list_and_its_copies_and_nothing_else(
    client_revoked: Change,
) -> None:
    _, after, files, result = client_revoked
    fine(result)
    assert states(result) == {
        **dict.fromkeys(["root", "master", *NODES], "kept"),
        "client": "revoked",
    }
    assert files == {"master/crl.pem", *(f"{node}/crl.pem" for node in NODES)}
    whole = "".join((after / ca / "crl.pem").read_text() for ca in ("master", "root"))
    assert [(after / node / "crl.pem").read_text() for node in NODES] == [whole] * 3
    assert revoked_serials(after / "master/crl.pem") == {serial(after / "client")}
    assert revoked_serials(after / "root/crl.pem") == set()


def test_openssl_reads_the_list_as_rfc_5280_wants_it(client_revoked: Change) -> None:
    path = client_revoked.after / "master/crl.pem"
    text = openssl("crl", "-in", path, "-noout", "-text")
    identifier = openssl(
        "x509", "-in", path.with_name("cert.pem"), "-noout", "-ext", "subjectKeyIdentifier"
    )
    for pattern in (
        "Version 2 ",
        "Issuer: .*CN ?= ?master\n",
        "Next Update: ",
        rf"Authority Key Identifier: \n +{identifier.split()[-1]}\n",
        "CRL Number: \n +2\n",
        rf"Serial Number: 0*{serial(client_revoked.after / 'client'):X}\n",
        "Reason Code: \n +Cessation Of Operation\n",
    ):
        assert re.search(pattern, text), (pattern, text)
    assert text.count("Serial Number") == 1
    chain = ("-CAfile", path.with_name("cert.pem"))
    assert run("openssl", "crl", "-in", path, "-noout", *chain).stderr == "verify OK\n"


def test_a_list_is_signed_now_and_ends_with_its_ca(client_revoked: Change) -> None:
    (crl,) = lists(client_revoked.after / "master/crl.pem")
    ca, now = certificate(client_revoked.after / "master/cert.pem"), datetime.now(timezone.utc)
    assert crl.next_update_utc == ca.not_valid_after_utc
    assert ca.not_valid_before_utc <= crl.last_update_utc <= now
    (entry,) = crl
    assert timedelta(0) <= now - entry.revocation_date_utc < timedelta(minutes=10)
    identifier = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    subject = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert (
        identifier.key_identifier == subject.digest
        and identifier.authority_cert_issuer is None
    )


REASONS = {  # of RFC 5280, section 5.3.1, but unspecified and removeFromCRL
    "keyCompromise": "Key Compromise",
    "cACompromise": "CA Compromise",
    "affiliationChanged": "Affiliation Changed",
    "superseded": "Superseded",
    "cessationOfOperation": "Cessation Of Operation",
    "certificateHold": "Certificate Hold",
    "privilegeWithdrawn": "Privilege Withdrawn",
    "aACompromise": "AA Compromise",
}


def revoked_for(reason: str, folder: Path) -> tuple[x509.RevokedCertificate, str]:
    """Revoke client for a reason. Return the entry of master's list, and openssl's text."""
    fine(generate_here(folder, "--revoke", "client", "--reason", reason, env=MASTERS))
    path = folder / "keys/master/crl.pem"
    (entry,) = lists(path)[0]
    return entry, openssl("crl", "-in", path, "-noout", "-text")


@pytest.mark.parametrize("reason", REASONS)
def test_an_entry_has_the_reason_that_was_given(copy: Path, reason: str) -> None:
    entry, text = revoked_for(reason, copy)
    assert re.findall("Reason Code: \n +(.*)\n", text) == [REASONS[reason]]
    (found,) = entry.extensions
    assert found.value == x509.CRLReason(x509.ReasonFlags(reason)) and not found.critical


def test_an_entry_without_a_specified_reason_has_no_extension(copy: Path) -> None:
    entry, text = revoked_for("unspecified", copy)
    assert len(entry.extensions) == 0 and "Reason" not in text


def test_the_next_run_says_how_to_go_on_and_a_second_revocation_changes_nothing(
    lessened: Path,
) -> None:
    before = tree(lessened)
    result = generate_here(lessened, env=None)
    (line,) = refused(result, "rm -r keys/client")
    assert REVOKED in line and "client" not in states(result)
    result = generate_here(lessened, "--revoke", "client", env=None)
    warned(result, "has client already")
    assert states(result)["client"] == "revoked"
    assert tree(lessened) == before


def test_every_unexpired_certificate_of_a_name_is_revoked(fleet: Path) -> None:
    keys = fleet / "keys"
    serials = {serial(keys / "client")}
    for _ in range(2):
        fine(generate_here(fleet, "--renew", "client", env=MASTERS))
        serials.add(serial(keys / "client"))
    fine(generate_here(fleet, "--revoke", "client", env=MASTERS))
    assert len(serials) == 3
    assert revoked_serials(keys / "master/crl.pem") == serials
    assert [judge(keys / node).returncode == 0 for node in NODES] == [True, False, True]


def test_an_expired_certificate_is_not_put_on_the_list(expired: Path) -> None:
    keys = expired / "keys"
    gone = serial(keys / "client")
    fine(generate_here(expired, "--renew", env=MASTERS))
    fine(generate_here(expired, "--revoke", "client", env=MASTERS))
    assert len([*keys.glob("master/issued/client-*.pem")]) == 2
    assert revoked_serials(keys / "master/crl.pem") == {serial(keys / "client")} != {gone}


def test_no_entry_ever_leaves_a_list_and_every_list_has_the_next_number(
    tmp_path: Path,
) -> None:
    def short(keys: dict[str, Any]) -> None:
        for name in ("root", "master"):
            keys[name]["validity"]["nextUpdate"] = "30d"

    keys, own = tmp_path / "keys", tmp_path / "keys/master/crl.pem"
    edit(tmp_path, short)
    fine(generate_here(tmp_path))
    serials = [serial(keys / "client"), serial(keys / "server")]
    found = [(number(*lists(own)), revoked_serials(own))]
    fine(generate_here(tmp_path, "--revoke", "client", "--reason", "superseded"))
    entry = lists(own)[0][0]
    found.append((number(*lists(own)), revoked_serials(own)))
    refused(
        generate_here(tmp_path, "--revoke", "server", "--reason", "keyCompromise"),
        "rm -r keys/client",
    )
    found.append((number(*lists(own)), revoked_serials(own)))
    # In the last third of the list's life; and when nodes have expired.
    for days in (25, 500):
        assert generate_here(tmp_path, now=in_days(days)).returncode == 1
        found.append((number(*lists(own)), revoked_serials(own)))
    numbers, contents = zip(*found, strict=True)
    assert numbers == (1, 2, 3, 4, 5)
    assert contents == (set(), {serials[0]}, {*serials}, {*serials}, {*serials})
    kept = lists(own)[0].get_revoked_certificate_by_serial_number(serials[0])
    assert kept is not None and kept.revocation_date_utc == entry.revocation_date_utc
    assert (
        kept.extensions.get_extension_for_class(x509.CRLReason).value.reason.value
        == "superseded"
    )
    assert revoked_serials(keys / "server/crl.pem") == {*serials}


def test_a_name_that_left_the_configuration_can_be_revoked(fleet: Path) -> None:
    keys = fleet / "keys"
    configure(fleet)
    before = tree(keys)
    result = fine(generate_here(fleet, "--revoke", "client2", env=MASTERS))
    assert list(states(result)) == ["root", "master", "server", "client"]
    assert changed(before, tree(keys)) == {
        f"{x}/crl.pem" for x in ("master", "server", "client")
    }
    assert revoked_serials(keys / "server/crl.pem") == {serial(keys / "client2")}
    assert number(*lists(keys / "master/crl.pem")) == 2
    assert REVOKED in judge(keys / "client2", keys / "server").stderr


def test_revocation_without_pass_phrase_and_terminal_changes_nothing(copy: Path) -> None:
    before = tree(copy)
    refused(
        generate_here(copy, "--revoke", "client", env=None),
        "SROS_PASSPHRASE",
        "2 below master",
    )
    assert tree(copy) == before


def damage(path: Path, how: str) -> None:
    """Damage a file in one of some ways."""
    if how == "cut short":
        path.write_bytes(path.read_bytes()[:300])
    elif how == "emptied":
        path.write_text("")
    else:
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize("how", ["cut short", "emptied", "replaced"])
def test_a_damaged_record_is_revoked_by_the_number_in_its_name(copy: Path, how: str) -> None:
    keys = copy / "keys"
    victims = {serial(keys / name) for name in ("client", "server")}
    path = record(keys, "client")
    damage(path, how)
    result = generate_here(copy, "--revoke", "client", "server", env=MASTERS)
    warned(result, f"keys/master/issued/{path.name}: can't be read: revoked by the number")
    assert revoked_serials(keys / "master/crl.pem") == victims


@pytest.mark.parametrize("name", ["client", "master"])
def test_a_certificate_that_the_record_lacks_is_revoked_at_once(copy: Path, name: str) -> None:
    keys = copy / "keys"
    ca = {"client": "master", "master": "root"}[name]
    record(keys, name, ca).unlink()
    result = generate_here(copy, "--revoke", name)
    assert (result.returncode, states(result)[name]) == (0, "revoked")
    assert revoked_serials(keys / ca / "crl.pem") == {serial(keys / name)}


def test_a_certificate_of_another_ca_is_not_put_on_the_list(copy: Path) -> None:
    keys = copy / "keys"
    edit(
        copy, lambda keys: keys.update(other={**keys["root"], "subject": {"commonName": "o"}})
    )
    fine(generate_here(copy))
    drop(keys, "client")
    shutil.copytree(keys / "other", keys / "client")
    faults(generate_here(copy, "--revoke", "client", "server"), "keys/client/")
    assert revoked_serials(keys / "master/crl.pem") >= {serial(keys / "server")}
    assert serial(keys / "client") not in revoked_serials(keys / "master/crl.pem")


def test_a_record_whose_name_has_no_number_is_one_error_and_holds_up_nobody(
    copy: Path,
) -> None:
    keys = copy / "keys"
    (keys / "master/issued/ghost-NONE.pem").write_text("damaged\n")
    result = generate_here(copy, "--revoke", "ghost", "client", env=MASTERS)
    faults(result, "keys/master/issued/ghost-NONE.pem")
    assert states(result)["client"] == "revoked" and states(result)["server"] == "kept"
    assert revoked_serials(keys / "server/crl.pem") == {serial(keys / "client")}


# --- Revoked is for ever ---------------------------------------------------------------------


def test_a_revoked_certificate_is_not_renewed_by_name(lessened: Path) -> None:
    before = tree(lessened)
    result = generate_here(lessened, "--renew", "client", env=MASTERS)
    refused(result, "rm -r keys/client")
    assert tree(lessened) == before


def test_a_revoked_certificate_is_not_renewed_when_it_is_due(lessened: Path) -> None:
    keys = lessened / "keys"
    before = tree(keys)
    result = generate_here(lessened, "--renew", now=in_days(300), env=MASTERS)
    refused(result, "rm -r keys/client")
    assert states(result) == {
        **dict.fromkeys(["root", "master"], "kept"),
        **dict.fromkeys(["server", "client2"], "renewed"),
    }
    assert not [name for name in changed(before, tree(keys)) if name.startswith("client/")]


def test_a_new_key_in_a_revoked_ones_place_works(lessened: Path, serve: Serve) -> None:
    keys = lessened / "keys"
    old = certificate(keys / "client/cert.pem")
    drop(keys, "client")
    result = fine(generate_here(lessened, env=MASTERS))
    assert states(result)["client"] == "made"
    new = certificate(keys / "client/cert.pem")
    assert new.public_key() != old.public_key()
    assert revoked_serials(keys / "master/crl.pem") == {old.serial_number}
    exchange(serve, keys / "server", keys / "client")


def leave_all_but_the_certificate(node: Path) -> None:
    """Lose a node's certificate."""
    drop(node, "cert.pem")


def leave_the_request(node: Path) -> None:
    """Have nothing but a request for a node's key."""
    files = ("-key", node / "key.pem", "-out", node / "csr.pem")
    openssl("req", "-new", *files, "-passin", "pass:sros", "-subj", "/CN=x")
    keep_only(node, "csr.pem")


@pytest.mark.parametrize("leave", [leave_all_but_the_certificate, leave_the_request])
def test_a_revoked_key_is_not_certified_again(
    lessened: Path, leave: Callable[[Path], None]
) -> None:
    keys = lessened / "keys"
    for node in ("client", "client2"):
        leave(keys / node)
    before = tree(keys)
    result = generate_here(lessened, env=MASTERS)
    refused(result, "rm -r keys/client,")
    assert states(result)["client2"] == "made", "the twin, which is not revoked"
    assert not [
        name for name in changed(before, tree(keys)) if "client/" in name or "/client-" in name
    ]


def test_a_revoked_certificate_is_an_error_where_the_roots_list_is_missing_too(
    lessened: Path,
) -> None:
    keys = lessened / "keys"
    keep_only(keys / "root", "cert.pem")
    drop(keys, *(f"{node}/crl.pem" for node in NODES))
    result = generate_here(lessened, "--renew", "client", env=MASTERS)
    faults(result, "keys/root/crl.pem: is missing", "rm -r keys/client")


# --- Revocation: what peers make of it -------------------------------------------------------


def test_a_server_refuses_a_revoked_client_and_no_other(
    client_revoked: Change, serve: Serve
) -> None:
    before, after, _, _ = client_revoked
    refuse(serve, after / "server", after / "client", "server", REVOKED, REVOKED)
    exchange(serve, after / "server", after / "client2")
    exchange(serve, before / "server", before / "client")


def test_a_client_refuses_a_revoked_server_and_no_other(
    copy: Path, made: Path, serve: Serve
) -> None:
    exchange(serve, copy / "keys/server", copy / "keys/client")
    result = fine(generate_here(copy, "--revoke", "server", env=MASTERS))
    assert states(result)["server"] == "revoked"
    refuse(serve, made / "keys/server", copy / "keys/client", "client", REVOKED, REVOKED)
    refuse(serve, copy / "keys/server", copy / "keys/client", "client", REVOKED, REVOKED)
    drop(copy / "keys", "server")
    fine(generate_here(copy, env=MASTERS))
    exchange(serve, copy / "keys/server", copy / "keys/client")


def test_openssl_refuses_a_revoked_node_and_no_other(client_revoked: Change) -> None:
    before, after, _, _ = client_revoked
    result = judge(after / "client", after / "server")
    assert result.returncode != 0 and REVOKED in result.stderr
    assert judge(after / "client2", after / "server").returncode == 0
    assert judge(after / "client", before / "server").returncode == 0


NGINX = """events {{}}
pid nginx.pid;
error_log stderr;
http {{
    access_log off;
    client_body_temp_path temp-body;
    proxy_temp_path       temp-proxy;
    fastcgi_temp_path     temp-fastcgi;
    uwsgi_temp_path       temp-uwsgi;
    scgi_temp_path        temp-scgi;
    server {{
        listen                 127.0.0.1:{port} ssl;
        ssl_protocols          TLSv1.3;
        ssl_certificate        {keys}/fullchain.pem;
        ssl_certificate_key    {keys}/key.pem;
        ssl_password_file      passphrase;
        ssl_client_certificate {keys}/ca.pem;
        ssl_crl                {keys}/crl.pem;
        ssl_verify_client      on;
        ssl_verify_depth       2;
        location / {{ return 200 "hello\\n"; }}
    }}
}}
"""


@contextmanager
def nginx(keys: Path, folder: Path) -> Iterator[int]:
    """Run nginx with a folder of keys; yield its port."""
    port = free_port()
    (folder / "nginx.conf").write_text(NGINX.format(port=port, keys=keys))
    (folder / "passphrase").write_text("sros\n")
    command = "exec /usr/sbin/nginx -e stderr -p . -c nginx.conf -g 'daemon off;'"
    with running(folder, command, port):
        yield port


def test_nginx_refuses_a_revoked_client_and_no_other(
    client_revoked: Change, tmp_path: Path
) -> None:
    keys = client_revoked.after

    def curl(port: int, node: str) -> str:
        folder = keys / node
        pair = (
            "--cert",
            folder / "fullchain.pem",
            "--key",
            folder / "key.pem",
            "--config",
            "-",
        )
        trust = ("--cacert", folder / "ca.pem", "--crlfile", folder / "crl.pem")
        command = ("curl", "--silent", "--write-out", "%{http_code}", *trust, *pair)
        return run(*command, f"https://localhost:{port}/", stdin='pass = "sros"\n').stdout

    with nginx(keys / "server", tmp_path) as port:
        assert curl(port, "client2") == "hello\n200"
        answer = curl(port, "client")
    assert answer.endswith("400") and "The SSL certificate error" in answer


def test_a_revoked_master_is_refused_in_both_directions(fleet: Path, serve: Serve) -> None:
    before, after, files, result = change(fleet, "--revoke", "master")
    assert states(result) == {"root": "kept", "master": "revoked"}
    warned(result, "3 below master")
    assert files == {f"{each}/crl.pem" for each in ("root", *NODES)}
    assert revoked_serials(after / "root/crl.pem") == {serial(after / "master")}
    assert lists(after / "root/crl.pem") == lists(after / "server/crl.pem")[1:]
    exchange(serve, before / "server", before / "client")
    refuse(serve, after / "server", before / "client", "server", REVOKED, REVOKED)
    refuse(serve, before / "server", after / "client", "client", REVOKED, REVOKED)
    frozen = tree(after)
    for arguments in ([], ["--renew", "master"]):
        refused(generate_here(after.parent, *arguments), "rm -r keys/master", "3 below master")
    assert tree(after) == frozen

    drop(after, "master", *NODES)
    fine(generate_here(after.parent))
    exchange(serve, after / "server", after / "client")


def test_a_master_is_not_revoked_without_the_roots_key(copy: Path) -> None:
    drop(copy / "keys/root", "key.pem")
    before = tree(copy)
    result = generate_here(copy, "--revoke", "master")
    refused(result, "keys/root/key.pem")
    assert "revoked" not in states(result).values()
    assert tree(copy) == before


def test_everyone_is_refused_by_an_expired_list_and_accepted_by_its_successor(
    tmp_path: Path, serve: Serve
) -> None:
    def hourly(keys: dict[str, Any]) -> None:
        keys["master"]["validity"]["nextUpdate"] = "1h"

    edit(tmp_path, hourly)
    fine(generate_here(tmp_path, now=in_days(-2 / 24)))
    keys, stale = tmp_path / "keys", tmp_path / "stale"
    shutil.copytree(keys, stale)
    fine(generate_here(tmp_path, env=MASTERS))
    assert (number(*lists(keys / "master/crl.pem")), len(lists(keys / "server/crl.pem"))) == (
        2,
        2,
    )
    reason, alert = "CRL has expired", "certificate expired"
    refuse(serve, stale / "server", keys / "client", "server", reason, alert)
    refuse(serve, keys / "server", stale / "client", "client", reason, alert)
    refuse(serve, stale / "server", stale / "client", "client", reason, alert)
    assert reason in judge(keys / "client", stale / "server").stderr
    exchange(serve, keys / "server", keys / "client")


# --- The keeping of lists --------------------------------------------------------------------


def put_older_list_back(folder: Path) -> Path:
    """Replace the master's own list by the one from before; its nodes have the newer one."""
    own = folder / "keys/master/crl.pem"
    newer = own.read_bytes()
    assert number(*lists(own)) == 2
    own.write_bytes(make_list(folder / "keys/master", "sros", 1))
    for node in NODES:
        assert (folder / "keys" / node / "crl.pem").read_bytes().startswith(newer)
    return own


@pytest.mark.parametrize("arguments", ["", "--revoke client2"])
def test_an_older_list_in_the_newer_ones_place_is_an_error(
    lessened: Path, arguments: str
) -> None:
    put_older_list_back(lessened)
    before = tree(lessened)
    result = generate_here(lessened, *arguments.split(), env=MASTERS)
    refused(result, "rm keys/master/crl.pem", "3 below master")
    assert tree(lessened) == before


def test_without_the_older_list_the_newest_is_restored(lessened: Path) -> None:
    newest = (lessened / "keys/master/crl.pem").read_bytes()
    own = put_older_list_back(lessened)
    own.unlink()
    refused(generate_here(lessened, env=MASTERS), "rm -r keys/client")
    assert own.read_bytes() == newest
    assert (lessened / "keys/server/crl.pem").read_bytes().startswith(newest)


def test_a_lost_list_is_restored_before_it_is_extended(lessened: Path) -> None:
    keys = lessened / "keys"
    drop(keys, "master/crl.pem")
    refused(generate_here(lessened, "--revoke", "client2", env=MASTERS), "rm -r keys/client")
    assert number(*lists(keys / "master/crl.pem")) == 3
    expected = {serial(keys / "client"), serial(keys / "client2")}
    assert (
        revoked_serials(keys / "master/crl.pem")
        == revoked_serials(keys / "server/crl.pem")
        == expected
    )


def test_the_roots_list_in_its_last_third_is_a_warning_without_its_key(tmp_path: Path) -> None:
    edit(tmp_path, lambda keys: keys["root"]["validity"].update(nextUpdate="30d"))
    fine(generate_here(tmp_path, now=in_days(-25)))
    key = tmp_path / "keys/root/key.pem"
    key.rename(tmp_path / "stick.pem")
    before = tree(tmp_path)
    (line,) = warned(generate_here(tmp_path, env=None), "keys/root/crl.pem")
    assert "keys/root/key.pem" in line
    assert tree(tmp_path) == before
    (tmp_path / "stick.pem").rename(key)
    fine(generate_here(tmp_path))
    assert number(*lists(tmp_path / "keys/root/crl.pem")) == 2


def test_a_ca_that_came_without_its_list_is_the_same_error_at_every_run(copy: Path) -> None:
    keep_only(copy / "keys/root", "cert.pem")
    drop(copy / "keys", "server/crl.pem", "client/crl.pem")
    refused(generate_here(copy), "keys/root/crl.pem: is missing")
    before = tree(copy)
    refused(generate_here(copy), "keys/root/crl.pem: is missing")
    assert tree(copy) == before


# --- A server that goes on -------------------------------------------------------------------


def test_sighup_takes_over_a_renewal_and_a_revocation_while_a_client_talks_on(
    fleet: Path, serve: Serve
) -> None:
    keys = fleet / "keys"
    server = serve("-k", str(keys / "server"))
    old = serial(keys / "server")
    with connect(server.port, keys / "client") as held:
        assert ask(held, b"hola") == b"hello"
        fine(generate(fleet, "--renew", "server", env=MASTERS))
        new = serial(keys / "server")
        assert presented(server.port, keys / "client2") == old != new
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(lambda: presented(server.port, keys / "client2") == new)
        assert ask(held, b"after the renewal") == b"after the renewal"

        fine(generate(fleet, "--revoke", "client", env=MASTERS))
        assert client(server.port, keys / "client").stdout == ANSWERED
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(lambda: client(server.port, keys / "client").returncode == 1)
        assert f"alert {REVOKED}" in client(server.port, keys / "client").stderr
        assert server.complained(REVOKED)
        assert ask(held, b"after the revocation") == b"after the revocation"
        assert client(server.port, keys / "client2").stdout == ANSWERED
        held.unwrap()
    assert "after the revocation" in server.out.read_text()
