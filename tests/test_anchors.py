"""Several CAs: nodes below different ones accept each other, and an anchor can be replaced.

Below one root, a node knows the lists of all CAs. Of several roots, it trusts those that its
`trust` names.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from certificates import certificate, judge, lists, number, serial
from configurations import Keys, add_master, add_master2, add_root2, edit, trust
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from exchanges import Serve, client
from folders import DERIVED, NODE_FILES, changed, drop, keep_only, once, tree
from running import (
    PHRASES,
    ROOT,
    complaints,
    faults,
    fine,
    generate,
    generate_here,
    in_days,
    refused,
    run,
    states,
    warned,
)
from test_other_cas import accepts, turns_away, turns_from

REVOKED = "certificate revoked"
NO_LIST = "unable to get certificate CRL"
UNKNOWN = "unable to get local issuer certificate"
NEW = "keys: new to the nodes: "


# --- Folders ---------------------------------------------------------------------------------


def make_with(change: Callable[[Keys], object], folder: Path) -> Path:
    """Make the keys of the shipped configuration with a change. Return the keys folder."""
    shutil.rmtree(folder / "keys", ignore_errors=True)
    edit(folder, change)
    fine(generate_here(folder))
    return folder / "keys"


@once
def two(folder: Path) -> None:
    """A folder with two masters below one root."""
    make_with(add_master2, folder)


@once
def both(folder: Path) -> None:
    """A folder with two roots, a master below each, and nodes that trust both."""
    make_with(trust("root", "root2"), folder)


def issuers(path: Path) -> list[str]:
    """Return the CAs whose lists a file holds, in this order."""
    return [
        crl.issuer.rfc4514_string().split(",")[0].removeprefix("CN=") for crl in lists(path)
    ]


def anchors(path: Path) -> list[str]:
    """Return the subjects of the certificates in a file, in this order."""
    found = x509.load_pem_x509_certificates(path.read_bytes())
    return [common_name(each.subject) for each in found]


def common_name(name: x509.Name) -> str:
    """Return the commonName of a name."""
    (attribute,) = name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(attribute.value)


def nodes_talk(keys: Path, serve: Serve) -> None:
    """Require that the nodes of two masters accept each other, in both directions."""
    for server in ("server", "server2"):
        running = serve("-k", str(keys / server))
        for name in ("client", "client2"):
            accepts(running, keys / name)


# --- Several CAs below one root --------------------------------------------------------------


def test_nodes_of_two_masters_talk_in_both_directions(two: Path, serve: Serve) -> None:
    nodes_talk(two / "keys", serve)


def test_a_nodes_lists_are_those_of_all_cas_below_its_root_and_a_cas_is_its_own(
    two: Path,
) -> None:
    keys = two / "keys"
    for node in ("server", "client"):
        assert issuers(keys / node / "crl.pem") == ["master", "root", "master2"]
        assert issuers(keys / f"{node}2" / "crl.pem") == ["master2", "root", "master"]
        assert anchors(keys / node / "ca.pem") == anchors(keys / f"{node}2/ca.pem") == ["root"]
    for ca in ("root", "master", "master2"):
        assert issuers(keys / ca / "crl.pem") == [ca]


@pytest.mark.slow
def test_a_revoked_node_is_refused_below_the_other_master_too_and_no_other_is(
    two: Path, serve: Serve
) -> None:
    keys = two / "keys"
    fine(generate_here(two, "--revoke", "client2", "server2"))
    server = serve("-k", str(keys / "server"))
    turns_away(server, keys / "client2", REVOKED, REVOKED)
    accepts(server, keys / "client")
    server2 = serve("-k", str(keys / "server2"))
    turns_from(client(server2.port, keys / "client"), REVOKED)


@pytest.mark.slow
def test_all_that_a_revoked_master_signed_is_refused_and_no_more(
    two: Path, serve: Serve
) -> None:
    keys = two / "keys"
    warned(generate_here(two, "--revoke", "master2"), "2 below master2")
    server = serve("-k", str(keys / "server"))
    turns_away(server, keys / "client2", REVOKED, REVOKED)
    accepts(server, keys / "client")
    # Even what master2 can no longer reach refuses it.
    assert REVOKED in judge(keys / "client2", keys / "server2").stderr


@pytest.mark.slow
def test_cas_below_cas_understand_each_other(tmp_path: Path) -> None:
    def deepen(keys: Keys) -> None:
        keys["root"]["extensions"]["basicConstraints"] = "critical, CA:TRUE, pathlen:2"
        keys["master"]["extensions"]["basicConstraints"] = "critical, CA:TRUE, pathlen:1"
        add_master(keys, "below3", "master")
        keys["below3"]["extensions"] = {
            **keys["below3"]["extensions"],
            "basicConstraints": "critical, CA:TRUE, pathlen:0",
        }
        add_master2(keys)

    keys = make_with(deepen, tmp_path)
    nodes = [keys / f"{node}{which}" for node in ("server", "client") for which in ("", 2, 3)]
    assert issuers(nodes[0] / "crl.pem") == ["master", "root", "master2", "below3"]
    assert issuers(nodes[2] / "crl.pem") == ["below3", "master", "root", "master2"]
    for node in nodes:
        for peer in nodes:
            assert judge(node, peer).returncode == 0, (node, peer)


# --- A CA whose key is elsewhere -------------------------------------------------------------


@pytest.mark.slow
def test_a_master_whose_key_is_elsewhere_is_known_by_its_certificate_and_list(
    two: Path, serve: Serve
) -> None:
    keys = two / "keys"
    keep_only(keys / "master2", "cert.pem", "crl.pem", "issued")
    drop(keys, "server/crl.pem", "client/crl.pem")
    fine(generate_here(two, env=PHRASES))
    nodes_talk(keys, serve)


def test_a_master_without_a_list_is_an_error_and_locks_out_nobody_else(
    two: Path, serve: Serve
) -> None:
    keys = two / "keys"
    keep_only(keys / "master2", "cert.pem")
    brought = lists(keys / "server2/crl.pem")[0]
    for path in keys.glob("*/crl.pem"):
        if path.parent.name not in ("root", "master", "master2"):
            path.unlink()
    for _ in range(2):
        refused(generate_here(two), "keys/master2/crl.pem: is missing")
        # Its own nodes have no list, or they would refuse everyone near them.
        assert {path.name for path in (keys / "client2").iterdir()} == NODE_FILES - {"crl.pem"}
        assert issuers(keys / "server/crl.pem") == ["master", "root"]

    server = serve("-k", str(keys / "server"))
    accepts(server, keys / "client")
    assert "alert unknown ca" in client(server.port, keys / "client2").stderr
    assert server.complained(NO_LIST)
    server2 = serve("-k", str(keys / "server2"))
    assert client(server2.port, keys / "client2").returncode == 0

    (keys / "master2/crl.pem").write_bytes(brought.public_bytes(Encoding.PEM))
    warned(generate_here(two), f"{NEW}master2: copy crl.pem")
    nodes_talk(keys, serve)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a damaged list": lambda ca: (ca / "crl.pem").write_text("damaged"),
    "another's list": lambda ca: shutil.copy(ca.parent / "root/crl.pem", ca / "crl.pem"),
    "a damaged certificate": lambda ca: (ca / "cert.pem").write_text("damaged"),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", DAMAGE)
def test_a_master_that_cannot_be_read_keeps_its_list_everywhere_and_holds_up_nobody(
    two: Path, serve: Serve, how: str
) -> None:
    keys = two / "keys"
    before = tree(keys)
    DAMAGE[how](keys / "master2")
    faults(generate_here(two), "keys/master2/", "2 below master2")
    assert {path for path in changed(before, tree(keys)) if "master2/" not in path} == set()
    nodes_talk(keys, serve)

    # What the others revoke reaches all nodes, even those of master2.
    faults(generate_here(two, "--revoke", "client"), "keys/master2/", "2 below master2")
    for node in ("server", "server2", "client2"):
        numbers = [number(crl) for crl in lists(keys / node / "crl.pem")]
        found = dict(zip(issuers(keys / node / "crl.pem"), numbers, strict=True))
        assert found == {"master": 2, "master2": 1, "root": 1}
        assert REVOKED in judge(keys / "client", keys / node).stderr
        assert judge(keys / "client2", keys / node).returncode == 0


@pytest.mark.slow
def test_an_expired_list_locks_out_the_nodes_of_its_ca_and_no_others(tmp_path: Path) -> None:
    def monthly(keys: Keys) -> None:
        add_master2(keys)
        keys["master2"]["validity"] = {**keys["master"]["validity"], "nextUpdate": "30d"}

    keys = make_with(monthly, tmp_path)
    (keys / "master2/key.pem").rename(tmp_path / "stick.pem")
    before = tree(keys)
    result = generate_here(tmp_path, now=in_days(40))
    faults(result, "keys/master2/crl.pem: has expired", "2 below master2")
    assert states(result)["client"] == "kept"
    assert tree(keys) == before
    (tmp_path / "stick.pem").rename(keys / "master2/key.pem")
    fine(generate_here(tmp_path, now=in_days(40)))
    assert [number(crl) for crl in lists(keys / "server/crl.pem")] == [1, 1, 2]


@pytest.mark.slow
def test_a_damaged_list_of_a_node_waits_for_the_ca_that_failed(two: Path) -> None:
    keys = two / "keys"
    for path in (keys / "master2/cert.pem", keys / "server/crl.pem"):
        path.write_text("damaged")
    before = tree(keys)
    faults(
        generate_here(two),
        "keys/server/crl.pem: is damaged",
        "keys/master2/cert.pem",
        "2 below",
    )
    assert tree(keys) == before
    drop(keys, "server/crl.pem")
    faults(generate_here(two), "keys/master2/cert.pem", "2 below master2")
    assert issuers(keys / "server/crl.pem") == ["master", "root"]


# --- A new CA --------------------------------------------------------------------------------


def test_when_a_ca_is_new_the_run_says_once_what_comes_first(copy: Path, serve: Serve) -> None:
    keys = copy / "keys"
    shutil.copytree(keys / "server", copy / "robot")
    edit(copy, add_master2)
    warned(generate(copy), f"{NEW}master2: copy crl.pem to all of them and send SIGHUP")
    fine(generate(copy))

    # It is as the line says: a robot that has not got the list refuses the new CA's nodes.
    server = serve("-k", str(copy / "robot"))
    turns_away(server, keys / "client2", NO_LIST, "unknown ca")
    shutil.copy(keys / "server/crl.pem", copy / "robot")
    server.process.send_signal(1)
    server.wait_for(lambda: client(server.port, keys / "client2").returncode == 0)


@pytest.mark.slow
def test_a_master_that_is_brought_from_elsewhere_is_new_too(
    copy: Path, tmp_path: Path, serve: Serve
) -> None:
    elsewhere = shutil.copytree(copy, tmp_path / "elsewhere")
    edit(elsewhere, add_master2)
    warned(generate_here(elsewhere), f"{NEW}master2: ")

    (copy / "keys/master2").mkdir()
    for name in ("cert.pem", "crl.pem"):
        shutil.copy(elsewhere / "keys/master2" / name, copy / "keys/master2")
    edit(copy, lambda keys: keys.update(master2=keys["master"]))
    warned(generate_here(copy), f"{NEW}master2: copy crl.pem to all of them")
    fine(generate_here(copy))
    accepts(serve("-k", str(copy / "keys/server")), elsewhere / "keys/client2")


# --- Several anchors -------------------------------------------------------------------------


def test_nodes_of_two_roots_that_trust_both_talk_in_both_directions(
    both: Path, serve: Serve
) -> None:
    keys = both / "keys"
    for node in ("server", "client"):
        assert anchors(keys / node / "ca.pem") == ["root", "root2"]
        assert anchors(keys / f"{node}2/ca.pem") == ["root", "root2"]
        own, other = ["master", "root"], ["master2", "root2"]
        assert issuers(keys / node / "crl.pem") == own + other
        assert issuers(keys / f"{node}2/crl.pem") == other + own
    nodes_talk(keys, serve)


@pytest.mark.slow
def test_what_either_root_revokes_is_refused_by_the_others_nodes(
    both: Path, serve: Serve
) -> None:
    keys = both / "keys"
    fine(generate_here(both, "--revoke", "client", "server2"))
    turns_away(serve("-k", str(keys / "server")), keys / "client", REVOKED, REVOKED)
    server2 = serve("-k", str(keys / "server2"))
    turns_from(client(server2.port, keys / "client2"), REVOKED)
    accepts(serve("-k", str(keys / "server")), keys / "client2")
    assert REVOKED in judge(keys / "client", keys / "server2").stderr
    assert REVOKED in judge(keys / "server2", keys / "client").stderr


@pytest.mark.slow
def test_without_trust_nodes_of_two_roots_refuse_each_other(
    tmp_path: Path, serve: Serve
) -> None:
    keys = make_with(add_root2, tmp_path)
    for node, root, master in (("server", "root", "master"), ("client2", "root2", "master2")):
        assert anchors(keys / node / "ca.pem") == [root]
        assert issuers(keys / node / "crl.pem") == [master, root]
    server = serve("-k", str(keys / "server"))
    turns_from(client(server.port, keys / "client2"), UNKNOWN)
    accepts(server, keys / "client")


@pytest.mark.slow
def test_trust_may_be_a_list_in_any_order_and_without_the_nodes_own_anchor(
    tmp_path: Path,
) -> None:
    def change(keys: Keys) -> None:
        add_root2(keys)
        keys["nodes"]["server"]["trust"] = ["root2", "root"]
        keys["nodes"]["client"]["trust"] = "root2"

    keys = make_with(change, tmp_path)
    assert anchors(keys / "server/ca.pem") == ["root2", "root"]
    assert issuers(keys / "server/crl.pem") == ["master", "root", "master2", "root2"]
    assert anchors(keys / "client/ca.pem") == ["root2"]
    assert issuers(keys / "client/crl.pem") == ["master2", "root2"]


@pytest.mark.slow
def test_to_trust_a_second_root_is_to_copy_both_files_first(copy: Path) -> None:
    keys = copy / "keys"
    before = tree(keys)
    edit(copy, trust("root", "root2"))
    warned(generate_here(copy), f"{NEW}root2, master2: copy ca.pem and crl.pem to all of them")
    written = {
        path for path in changed(before, tree(keys)) if re.match("(server|client)/", path)
    }
    assert written == {
        f"{node}/{name}" for node in ("server", "client") for name in DERIVED
    } - {"server/fullchain.pem", "client/fullchain.pem"}
    fine(generate_here(copy))


@pytest.mark.slow
def test_a_root_that_is_not_trusted_any_more_is_refused(both: Path, serve: Serve) -> None:
    keys = both / "keys"
    edit(both, trust("root2"))
    fine(generate_here(both))
    for node in ("server", "client", "server2", "client2"):
        assert anchors(keys / node / "ca.pem") == ["root2"]
        assert issuers(keys / node / "crl.pem") == ["master2", "root2"]
    server = serve("-k", str(keys / "server2"))
    turns_away(server, keys / "client", UNKNOWN, "unknown ca")
    accepts(server, keys / "client2")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["root2/cert.pem", "root2/crl.pem", "master2/cert.pem"])
def test_no_anchor_and_no_list_is_lost_while_its_source_cannot_be_read(
    both: Path, serve: Serve, how: str
) -> None:
    keys = both / "keys"
    before = tree(keys)
    good = (keys / how).read_bytes()
    (keys / how).write_text("damaged")
    assert generate_here(both, "--renew", "client").returncode == 1
    written = changed(before, tree(keys)) - {how}
    assert {path for path in written if not re.match("client/|master/issued/", path)} == set()
    nodes_talk(keys, serve)

    # A root that has left the configuration goes, and the one that can't be read stays.
    (keys / how).write_bytes(good)
    edit(both, trust("root2"))
    (keys / "root2/cert.pem").write_text("damaged")
    assert generate_here(both).returncode == 1
    assert anchors(keys / "server/ca.pem") == ["root2"]
    assert issuers(keys / "server/crl.pem") == ["master2", "root2"]


@pytest.mark.slow
def test_a_new_node_does_without_an_anchor_that_failed_but_not_without_any(both: Path) -> None:
    def add(keys: Keys) -> None:
        trust("root", "root2")(keys)
        keys["nodes"]["client3"] = keys["nodes"]["client"]
        keys["nodes"]["client4"] = {**keys["nodes"]["client"], "trust": "root2"}

    keys = both / "keys"
    good = (keys / "root2/cert.pem").read_bytes()
    (keys / "root2/cert.pem").write_text("damaged")
    edit(both, add)
    faults(
        generate_here(both), "keys/client4/ca.pem: ", "keys/root2/cert.pem", "3 below root2"
    )
    assert anchors(keys / "client3/ca.pem") == ["root"]
    assert not (keys / "client4").exists()
    (keys / "root2/cert.pem").write_bytes(good)
    warned(generate_here(both), f"{NEW}root2: copy ca.pem and crl.pem")
    assert anchors(keys / "client3/ca.pem") == ["root", "root2"]
    assert anchors(keys / "client4/ca.pem") == ["root2"]


@pytest.mark.slow
def test_a_new_node_does_without_a_list_that_is_missing_but_not_without_any(
    copy: Path,
) -> None:
    def bring(keys: Keys) -> None:
        keys["root2"] = keys["root"]
        keys["nodes"]["client3"] = {**keys["nodes"]["client"], "trust": "root, root2"}
        keys["nodes"]["client4"] = {**keys["nodes"]["client"], "trust": "root2"}

    keys = copy / "keys"
    edit(copy, lambda all_: all_.update(root2=all_["root"]))
    fine(generate_here(copy))
    brought = (keys / "root2/crl.pem").read_bytes()
    keep_only(keys / "root2", "cert.pem")
    edit(copy, bring)
    faults(
        generate_here(copy),
        "keys/client4/crl.pem: can't be made",
        "keys/root2/crl.pem: is miss",
    )
    assert anchors(keys / "client3/ca.pem") == ["root", "root2"]
    assert issuers(keys / "client3/crl.pem") == ["master", "root"]
    assert not (keys / "client4").exists()

    (keys / "root2/crl.pem").write_bytes(brought)
    warned(generate_here(copy), f"{NEW}root2: copy ca.pem and crl.pem")
    assert issuers(keys / "client3/crl.pem") == ["master", "root", "root2"]
    assert issuers(keys / "client4/crl.pem") == ["root2"]


WRONG: dict[str, tuple[object, str]] = {
    "an anchor that does not exist": ("root3", "there is no CA 'root3' under keys"),
    "a node": ("root, client", "there is no CA 'client' under keys"),
    "a CA that is no anchor": ("root, master2", "master2 is not a trust anchor"),
    "an anchor twice": ("root, root2, root", "root is given twice"),
    "a name that is none": ("root, ", "is not of the form"),
    "a number": (1, "does not read this as text"),
    "a mapping": ({"root": "root2"}, "is a mapping, not text"),
    "an empty list": ([], "is an empty list"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_trust_is_one_line_and_nothing_is_written(copy: Path, what: str) -> None:
    value, text = WRONG[what]

    def change(keys: Keys) -> None:
        add_root2(keys)
        keys["nodes"]["client"]["trust"] = value

    edit(copy, change)
    before = tree(copy)
    (line,) = complaints(generate_here(copy), "error", 2)
    assert line.startswith("sros_config.yml: keys.nodes.client.trust: ") and text in line
    assert tree(copy) == before


def test_a_ca_has_no_trust(copy: Path) -> None:
    edit(copy, lambda keys: keys["master"].update(trust="root"))
    (line,) = complaints(generate_here(copy), "error", 2)
    assert line.startswith("sros_config.yml: keys.master.trust: is for nodes only")


@pytest.mark.slow
def test_a_trust_can_be_removed_like_any_field(copy: Path) -> None:
    edit(copy, lambda keys: keys["nodes"]["client"].update(trust=None))
    fine(generate_here(copy))


# --- Two CAs of one name ---------------------------------------------------------------------


def namesake(keys: Keys) -> None:
    """Add master2 with master's subject, but for a letter's case."""
    add_master2(keys)
    keys["master2"]["subject"] = {**keys["master"]["subject"], "commonName": "MASTER"}


def without_identifier(ca: Path) -> bytes:
    """Return a CA's next list, without an authorityKeyIdentifier."""
    key = load_pem_private_key((ca / "key.pem").read_bytes(), b"sros")
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    now = datetime.now(timezone.utc)
    builder = x509.CertificateRevocationListBuilder(certificate(ca / "cert.pem").subject)
    builder = builder.last_update(now).next_update(now + timedelta(days=99))
    builder = builder.add_extension(x509.CRLNumber(2), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.mark.slow
def test_two_cas_of_one_name_understand_each_other_by_their_lists_identifiers(
    tmp_path: Path, serve: Serve
) -> None:
    keys = make_with(namesake, tmp_path)
    nodes_talk(keys, serve)
    fine(generate_here(tmp_path, "--revoke", "client2"))
    turns_away(serve("-k", str(keys / "server")), keys / "client2", REVOKED, REVOKED)


@pytest.mark.slow
def test_a_list_without_identifier_is_an_error_beside_a_ca_of_the_same_name(
    tmp_path: Path, serve: Serve
) -> None:
    keys = make_with(namesake, tmp_path)
    (keys / "master2/crl.pem").write_bytes(without_identifier(keys / "master2"))
    before = tree(keys)
    (line, _) = faults(generate_here(tmp_path), "keys/master2/crl.pem", "2 below master2")
    assert "has no authorityKeyIdentifier, and master has the same subject" in line
    assert tree(keys) == before
    nodes_talk(keys, serve)


@pytest.mark.slow
def test_a_list_without_identifier_is_good_if_the_name_is_its_cas_alone(
    two: Path, serve: Serve
) -> None:
    keys = two / "keys"
    (keys / "master2/crl.pem").write_bytes(without_identifier(keys / "master2"))
    fine(generate_here(two))
    nodes_talk(keys, serve)


# --- Folders that no entry names -------------------------------------------------------------


def leave(*names: str) -> Callable[[Keys], None]:
    """Return the change by which some entries leave the configuration of two masters."""

    def change(keys: Keys) -> None:
        add_master2(keys)
        for name in names:
            keys.pop(name, None)
            keys["nodes"].pop(name, None)

    return change


def test_a_valid_certificate_that_no_entry_names_is_a_warning_until_it_is_revoked(
    two: Path,
) -> None:
    edit(two, leave("client2"))
    for _ in range(2):
        (line,) = warned(generate_here(two), "keys/client2: is valid until ")
    assert line.endswith("but no entry has this name: --revoke client2, or put the entry back")
    objects = [json.loads(each) for each in generate_here(two, "--json").stdout.splitlines()]
    (found,) = [each for each in objects if each["name"] == "client2"]
    assert (found["state"], found["issuer"], found["written"]) == ("forgotten", None, [])
    assert int(found["serial"], 16) == serial(two / "keys/client2")
    assert found["problems"] == [{"kind": "warning", "text": line}]
    fine(generate_here(two, "--revoke", "client2"))
    fine(generate_here(two))


@pytest.mark.slow
def test_a_certificate_that_no_entry_names_is_a_warning_until_it_expires(two: Path) -> None:
    edit(two, leave("client2"))
    warned(generate_here(two, now=in_days(200)), "keys/client2: is valid until ")
    assert "keys/client2" not in generate_here(two, now=in_days(400)).stderr


@pytest.mark.slow
def test_what_an_unnamed_ca_left_is_to_be_removed(two: Path) -> None:
    edit(two, leave("master2", "server2", "client2"))
    lines = warned(generate_here(two), "keys/master2", "keys/server2", "keys/client2")
    for line in lines:
        advice = line.rpartition(": ")[2]
        if advice.startswith("rm -r keys/"):
            drop(two, advice.removeprefix("rm -r "))
    warned(generate_here(two), "keys/master2: is valid until")
    fine(generate_here(two, "--revoke", "master2"))


@pytest.mark.slow
def test_what_is_no_valid_certificate_is_no_business_of_the_run(two: Path) -> None:
    for name in ("notes", "damaged", ".hidden"):
        (two / "keys" / name).mkdir()
    (two / "keys/damaged/cert.pem").write_text("damaged")
    shutil.copy(two / "keys/client/cert.pem", two / "keys/.hidden")
    (two / "keys/a-file").write_text("text")
    fine(generate_here(two))


# --- What a node costs -----------------------------------------------------------------------

COUNT = """import cProfile, sys
sys.path.insert(0, sys.argv[1])
import simple_key_generation as script
profile = cProfile.Profile()
status = profile.runcall(script.main, ["-q", *sys.argv[2:]])
profile.create_stats()
print(status, sum(calls for _, calls, _, _, _ in profile.stats.values()))"""


def calls_of_runs(folder: Path, cas: int, nodes: int) -> list[int]:
    """Return how many functions the runs call that make all, keep it, and spread a list."""

    def change(keys: Keys) -> None:
        for each in range(1, cas):
            keys[f"ca{each}"] = keys["master"]
        for each in range(nodes):
            keys["nodes"][f"node{each}"] = keys["nodes"]["client"]

    folder.mkdir()
    edit(folder, change)
    counts = []
    for orders in ([], [], ["--revoke", "client"]):
        command = (sys.executable, "-c", COUNT, str(ROOT), *orders)
        result = run(*command, cwd=folder, env=PHRASES)
        status, count = result.stdout.split()
        assert status == "0", result.stderr
        counts.append(int(count))
    return counts


@pytest.mark.slow
def test_the_cost_of_a_node_does_not_grow_with_the_number_of_cas(tmp_path: Path) -> None:
    of_nodes = []
    for cas in (1, 30):
        few = calls_of_runs(tmp_path / f"{cas}-few", cas, 5)
        many = calls_of_runs(tmp_path / f"{cas}-many", cas, 25)
        of_nodes.append([more - less for more, less in zip(many, few, strict=True)])
    for with_one, with_thirty in zip(*of_nodes, strict=True):
        assert abs(with_thirty - with_one) < with_one / 50, of_nodes
