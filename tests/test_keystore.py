"""The keystore of the page on DDS: the layout of sros2, nested enclaves, and no CA's key."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from programs import shell
from running import PHRASES, openssl, poll, run
from test_robots import (
    DDS_PAGE,
    MAKE_KEYSTORE,
    Join,
    dds_block,
    domain,
    join,
    make_enclaves,
    printed,
    received,
)

# Fixtures, which pytest finds by their names.
__all__ = ["domain", "join"]

pytestmark = [pytest.mark.slow, pytest.mark.cyclonedds]

# The names that sros2 gives (its _keystore.py and _enclave.py), and that ROS 2 reads
# (security.cpp of rmw_dds_common: crl.pem where there is one, and the others always).
PUBLIC = {"identity_ca.cert.pem", "permissions_ca.cert.pem"}
LINKS = {
    "identity_ca.cert.pem": "public",
    "permissions_ca.cert.pem": "public",
    "governance.p7s": "enclaves",
}
OWN = {"cert.pem", "key.pem", "permissions.p7s", "crl.pem"}
NESTED = """\
    arm: *node
    left_arm: {<<: *node, subject: {commonName: /arm/left}}
    wrong: {<<: *node, subject: {commonName: wrong}}
"""
MAKE_ALL = MAKE_KEYSTORE.replace("listener", "listener arm left_arm")
ENCLAVES = {"talker", "listener", "arm", "arm/left"}


@pytest.fixture(scope="module")
def enclaves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's folder, with two enclaves more, of which one is within the other."""
    folder = make_enclaves(
        tmp_path_factory.mktemp("keystore"), **{"dds.yml": lambda text: text + NESTED}
    )
    result = shell(folder, MAKE_ALL, PHRASES)
    assert result.returncode == 0, result.stderr
    return folder


def files(folder: Path) -> set[str]:
    """Return the paths of all files and links below a folder."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


def test_the_names_are_those_that_sros2_expects(enclaves: Path) -> None:
    keystore = enclaves / "keystore"
    expected = {f"public/{name}" for name in PUBLIC} | {"enclaves/governance.p7s"}
    for enclave in ENCLAVES:
        expected |= {f"enclaves/{enclave}/{name}" for name in {*OWN, *LINKS}}
    assert files(keystore) == expected
    assert {path.name for path in keystore.iterdir()} == {"public", "private", "enclaves"}
    assert not list((keystore / "private").iterdir())
    for folder in (keystore, keystore / "private"):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_links_are_relative_and_lead_to_the_common_files(
    enclaves: Path, tmp_path: Path
) -> None:
    shutil.copytree(enclaves / "keystore", tmp_path / "moved", symlinks=True)
    for enclave in ENCLAVES:
        for name, place in LINKS.items():
            link = tmp_path / "moved/enclaves" / enclave / name
            assert link.is_symlink()
            assert link.resolve(strict=True) == tmp_path / "moved" / place / name
        for name in OWN:
            assert not (tmp_path / "moved/enclaves" / enclave / name).is_symlink()


def test_an_enclave_is_copied_whole_and_holds_no_key_but_its_own(
    enclaves: Path, tmp_path: Path
) -> None:
    (command,) = [word for word in DDS_PAGE.split("`") if word.startswith("cp -rL")]
    enclave = enclaves / "keystore/enclaves/arm/left"
    subprocess.run([*command.split(), enclave, tmp_path / "robot"], check=True)
    assert files(tmp_path / "robot") == {*OWN, *LINKS}
    assert not any(path.is_symlink() for path in (tmp_path / "robot").iterdir())
    keys = [
        path
        for path in (enclaves / "keystore").rglob("*")
        if path.is_file() and "PRIVATE KEY" in path.read_text()
    ]
    assert {path.parent for path in keys} == {
        enclaves / "keystore/enclaves" / name for name in ENCLAVES
    }
    assert (tmp_path / "robot/key.pem").read_bytes() == (
        enclaves / "keys/left_arm/key.pem"
    ).read_bytes()


def test_what_is_in_an_enclave_verifies_and_is_for_its_name(enclaves: Path) -> None:
    for name in ENCLAVES:
        enclave = enclaves / "keystore/enclaves" / name
        openssl("verify", "-CAfile", enclave / "identity_ca.cert.pem", enclave / "cert.pem")
        subject = openssl("x509", "-in", enclave / "cert.pem", "-noout", "-subject")
        assert subject == f"subject=CN = /{name}\n"
        for document in ("governance.p7s", "permissions.p7s"):
            anchor = ("-CAfile", enclave / "permissions_ca.cert.pem")
            text = openssl("smime", "-verify", "-text", "-in", enclave / document, *anchor)
            assert ("<grant" not in text) or f"<subject_name>CN=/{name}</" in text
        # The other CA's signature is not taken for that of the permissions CA.
        anchor = ("-CAfile", enclave / "identity_ca.cert.pem")
        wrong = ("smime", "-verify", "-text", "-in", enclave / "governance.p7s", *anchor)
        assert run("openssl", *wrong).returncode != 0


@pytest.mark.parametrize("enclave", ["arm", "arm/left"])
def test_nested_enclaves_talk(join: Join, enclaves: Path, enclave: str) -> None:
    folder = enclaves / "keystore/enclaves" / enclave
    with join("talker", folder) as talker, join("listener") as listener:
        poll(lambda: received(listener), lambda: printed(talker, listener))


def test_a_commonname_that_is_no_enclave_is_an_error_and_the_keystore_stays(
    enclaves: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(enclaves, tmp_path / "copy", symlinks=True)
    before = files(folder / "keystore")
    result = shell(folder, "bash keystore.sh talker wrong", PHRASES)
    assert (result.returncode, result.stderr) == (
        1,
        "keystore.sh: error: keys/wrong/cert.pem: its commonName must be an enclave's, such as"
        " /wrong\n",
    )
    assert files(folder / "keystore") == before
    # A keystore holds the nodes that were named last.
    assert shell(folder, "bash keystore.sh talker", PHRASES).returncode == 0
    assert {path.name for path in (folder / "keystore/enclaves").iterdir()} == {
        "talker",
        "governance.p7s",
    }


def test_the_page_lists_what_is_in_the_keystore() -> None:
    table = DDS_PAGE.split("| in `keystore` | is |")[1].split("\n\n")[0]
    for name in {*OWN, *PUBLIC, "governance.p7s"}:
        assert f"{name}`" in table
    assert "private" in table and "keystore.sh talker listener" in dds_block("sh", "dds.yml")
