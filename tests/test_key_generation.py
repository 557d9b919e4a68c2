"""What the walk through the keys keeps, makes, verifies and refuses; and outside judges."""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import IO, Any

import pytest
from certificates import (
    CA_EXTENSIONS,
    NEW_KEY,
    SERVER_EXTENSIONS,
    SUBJECT,
    certificate,
    cross_certify,
    judge,
    lists,
    make_ca,
    make_list,
    number,
    on_list,
    serial,
    sign,
)
from configurations import add_client2, configure, edit
from cryptography import x509
from cryptography.x509.oid import NameOID
from folders import NODE_FILES, State, changed, drop, keep_only, once, tree
from running import (
    DEADLINE,
    GENERATE,
    MASTERS,
    PHRASES,
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
    started,
    states,
    warned,
)


@once
def crossed(folder: Path) -> None:
    """A copy of the keys in which a higher CA certified the trust anchor."""
    cross_certify(folder / "keys/root", folder / "higher", folder / "keys/root/cross.pem")
    fine(generate_here(folder, env=None))


# --- What is made ----------------------------------------------------------------------------


def test_the_first_run_makes_exactly_these_files(made: Path) -> None:
    ca_files = {"key.pem", "cert.pem", "fullchain.pem", "ca.pem", "crl.pem", "issued"}
    for name in ("root", "master"):
        assert {path.name for path in (made / "keys" / name).iterdir()} == ca_files
    for name in ("server", "client"):
        assert {path.name for path in (made / "keys" / name).iterdir()} == NODE_FILES
    assert {p.name for p in (made / "keys").iterdir()} == {
        "root",
        "master",
        "server",
        "client",
    }
    assert {path.name for path in made.iterdir()} == {"keys", "sros_config.yml"}


def test_derived_files_consist_of_the_kept_ones(made: Path) -> None:
    def text(name: str) -> str:
        return (made / "keys" / name).read_text()

    for node in ("server", "client"):
        assert text(f"{node}/fullchain.pem") == text(f"{node}/cert.pem") + text(
            "master/cert.pem"
        )
        assert text(f"{node}/crl.pem") == text("master/crl.pem") + text("root/crl.pem")
    assert text("master/fullchain.pem") == text("master/cert.pem")
    for name in ("root", "master", "server", "client"):
        assert text(f"{name}/ca.pem") == text("root/cert.pem")


def test_issued_holds_every_certificate_under_its_serial_number(made: Path) -> None:
    for ca, children in {"root": ["master"], "master": ["client", "server"]}.items():
        expected = {}
        for child in children:
            path = made / "keys" / child / "cert.pem"
            serial = openssl("x509", "-in", path, "-noout", "-serial").strip().split("=")[1]
            expected[f"{child}-{serial.lstrip('0')}.pem"] = path.read_bytes()
        records = (made / "keys" / ca / "issued").iterdir()
        assert {path.name: path.read_bytes() for path in records} == expected


def test_serial_numbers_are_positive_long_and_distinct(made: Path) -> None:
    serials = [certificate(path).serial_number for path in made.glob("keys/*/cert.pem")]
    assert len(set(serials)) == len(serials) == 4
    assert all(0 < serial < 1 << 159 and serial.bit_length() >= 64 for serial in serials)


def test_every_ca_has_an_empty_list_as_long_as_itself_from_the_first_day(made: Path) -> None:
    for name in ("root", "master"):
        (crl,) = lists(made / f"keys/{name}/crl.pem")
        issuer = certificate(made / f"keys/{name}/cert.pem")
        assert (number(crl), len(crl)) == (1, 0)
        assert crl.next_update_utc == issuer.not_valid_after_utc
        assert crl.last_update_utc <= datetime.now(timezone.utc)


def test_keys_are_0600_and_folders_0700_whatever_the_umask(tmp_path: Path) -> None:
    for mask in ("000", "077", "777"):
        folder = tmp_path / mask
        folder.mkdir()
        configure(folder)
        shell = ("sh", "-c", f'umask {mask}; exec "$@"', "sh")
        fine(run(*shell, sys.executable, GENERATE, cwd=folder, env=PHRASES))
        for path in (folder / "keys", *folder.rglob("keys/**/*")):
            mode = path.stat().st_mode & 0o777
            if path.is_dir() or path.name == "key.pem":
                assert mode == (0o700 if path.is_dir() else 0o600), path
            else:
                assert mode & 0o600 == 0o600 and not mode & 0o022, path


PLANTED = pytest.mark.parametrize("there", ["an empty folder", "a file", "nothing"])


def plant(folder: Path, link: str, there: str) -> Path:
    """Put a link where a new node's file or folder would be. Return what it points to."""
    place, elsewhere = folder / "keys" / link, folder / "elsewhere"
    drop(folder / "keys", "client")
    place.parent.mkdir(0o700, exist_ok=True)
    place.symlink_to(elsewhere)
    if there == "a file":
        elsewhere.write_text("theirs")
    if there == "an empty folder":
        elsewhere.mkdir()
    return elsewhere


def at(path: Path) -> dict[str, State]:
    """Return the state of what is at a path, if anything is."""
    return tree(path) if path.exists() else {}


@PLANTED
@pytest.mark.parametrize("link", [".client.part", "server/.key.pem.part"])
def test_a_link_that_is_planted_in_a_parts_place_is_cleared_away(
    copy: Path, link: str, there: str
) -> None:
    elsewhere = plant(copy, link, there)
    before = at(elsewhere)
    fine(generate_here(copy))
    assert at(elsewhere) == before
    assert {*os.listdir(copy / "keys/client")} == NODE_FILES


@PLANTED
@pytest.mark.parametrize("link", ["client", "client/key.pem"])
def test_no_secret_goes_where_a_planted_link_points(copy: Path, link: str, there: str) -> None:
    elsewhere = plant(copy, link, there)
    before = at(elsewhere)
    refused(generate_here(copy), "keys/client")
    assert at(elsewhere) == before
    # The way out.
    (copy / "keys" / link).unlink()
    shutil.rmtree(copy / "keys/client", ignore_errors=True)
    fine(generate_here(copy))
    assert at(elsewhere) == before
    assert {*os.listdir(copy / "keys/client")} == NODE_FILES


def test_a_line_per_entry_shows_the_tree(tmp_path: Path) -> None:
    configure(tmp_path)
    for state in ("made", "kept"):
        lines = fine(generate(tmp_path)).stdout.splitlines()
        names = [line.split()[0] for line in lines]
        assert names == ["root", "master", "server", "client"]
        depths = [len(line) - len(line.lstrip()) for line in lines]
        assert depths[0] < depths[1] < depths[2] == depths[3]
        issuers = ("itself", "root", "master", "master")
        for name, issuer, line in zip(names, issuers, lines, strict=True):
            ends = certificate(tmp_path / f"keys/{name}/cert.pem").not_valid_after_utc
            for part in (state, "ec:prime256v1", issuer, f"{ends:%Y-%m-%d}"):
                assert part in line.split()


def test_quiet_prints_nothing(tmp_path: Path) -> None:
    configure(tmp_path)
    assert fine(generate_here(tmp_path, "-q")).stdout == ""
    assert (tmp_path / "keys/client/cert.pem").exists()
    assert fine(generate_here(tmp_path, "--quiet", env=None)).stdout == ""


@pytest.mark.parametrize("arguments", [["-x"], ["more"], ["-k"], ["-c", "absent.yml"]])
def test_a_usage_error_is_status_2_and_writes_nothing(
    tmp_path: Path, arguments: list[str]
) -> None:
    configure(tmp_path)
    result = generate(tmp_path, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert f"{GENERATE.name}: error: " in result.stderr.splitlines()[-1]
    assert os.listdir(tmp_path) == ["sros_config.yml"]


def test_the_options_say_where_the_files_are(tmp_path: Path) -> None:
    configure(tmp_path).rename(tmp_path / "other.yml")
    fine(generate_here(tmp_path, "-c", "other.yml", "-k", "a/b"))
    assert (tmp_path / "a/b/server/cert.pem").exists()
    assert not (tmp_path / "keys").exists()


def test_a_keys_folder_that_cannot_be_made_gives_one_error_line(tmp_path: Path) -> None:
    configure(tmp_path)
    (tmp_path / "keys").write_text("a file")
    refused(generate_here(tmp_path), "keys")
    assert (tmp_path / "keys").read_text() == "a file"
    refused(generate_here(tmp_path, "-k", "keys/below"), "keys/below")
    refused(generate_here(tmp_path, "-k", "/proc/keys"), "/proc/keys")
    drop(tmp_path, "keys")
    fine(generate_here(tmp_path))


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(tmp_path: Path) -> None:
    configure(tmp_path)
    shell = ("sh", "-c", 'ulimit -f 0; exec "$@"', "sh")
    result = run(*shell, sys.executable, GENERATE, cwd=tmp_path, env=PHRASES)
    refused(result, "key.pem: ", "root")
    assert not (tmp_path / "keys/root").exists()
    fine(generate_here(tmp_path))
    assert not list(tmp_path.glob("keys/.*"))


# --- What is kept ----------------------------------------------------------------------------


def test_a_second_run_changes_nothing_and_asks_for_nothing(copy: Path) -> None:
    before = tree(copy)
    fine(generate(copy, env=None))
    assert tree(copy) == before
    fine(generate(copy))
    assert tree(copy) == before


def test_a_new_node_is_all_that_is_made(copy: Path) -> None:
    add_client2(copy)
    before = tree(copy / "keys")
    fine(generate_here(copy))
    serial = certificate(copy / "keys/client2/cert.pem").serial_number
    new = {f"client2/{name}" for name in NODE_FILES}
    assert changed(before, tree(copy / "keys")) == {
        *new,
        f"master/issued/client2-{serial:X}.pem",
    }


def test_without_its_packages_it_says_how_to_install_them(tmp_path: Path) -> None:
    configure(tmp_path)
    result = run(sys.executable, "-S", GENERATE, cwd=tmp_path, env=PHRASES)  # no site-packages
    (line,) = complaints(result, "error", 1)
    assert "run it with .venv/bin/python, or pip install -r requirements.txt" in line
    fine(generate_here(tmp_path))


def test_an_output_that_is_full_is_named_and_the_keys_are_whole(tmp_path: Path) -> None:
    configure(tmp_path)
    command = f"exec {sys.executable} {GENERATE} >/dev/full"
    result = run("bash", "-c", command, cwd=tmp_path, env=PHRASES)
    (line,) = complaints(result, "error", 1)
    assert line == "standard output: No space left on device"
    fine(generate_here(tmp_path))


def test_with_a_slow_clock_the_advice_is_to_set_it_and_not_to_remove_anything(
    copy: Path,
) -> None:
    before = tree(copy)
    first, *others = complaints(later(copy, "-30 days"), "error", 1)
    assert first.startswith("keys/root/cert.pem: ") and "set the clock" in first
    assert not any("rm -r" in line for line in [first, *others])
    assert tree(copy) == before
    fine(generate(copy))


def test_a_key_that_is_elsewhere_is_shown_to_be(copy: Path) -> None:
    (copy / "keys/root/key.pem").unlink()
    (copy / "keys/client/key.pem").unlink()
    shown = {
        line.split()[0]: line
        for line in fine(generate_here(copy, env=None)).stdout.splitlines()
    }
    assert [name for name, line in shown.items() if line.endswith(", key elsewhere")] == [
        "root",
        "client",
    ]


def test_nodes_are_made_without_the_roots_key_and_pass_phrase(copy: Path) -> None:
    drop(copy / "keys/root", "key.pem")
    add_client2(copy)
    fine(generate_here(copy, env=MASTERS))
    assert (copy / "keys/client2/cert.pem").exists()
    assert not os.path.lexists(copy / "keys/root/key.pem")


def test_nodes_are_made_while_the_roots_key_is_a_link_to_an_absent_stick(copy: Path) -> None:
    key = copy / "keys/root/key.pem"
    key.unlink()
    key.symlink_to("/nowhere/stick/key.pem")
    add_client2(copy)
    fine(generate_here(copy, env=MASTERS))
    assert (copy / "keys/client2/cert.pem").exists()
    assert key.is_symlink() and not key.exists()


def test_a_key_may_be_a_link_to_a_stick(copy: Path) -> None:
    key = copy / "keys/root/key.pem"
    key.rename(copy / "stick.pem")
    key.symlink_to(copy / "stick.pem")
    drop(copy / "keys", "master", "server", "client")
    fine(generate_here(copy))
    assert key.is_symlink()
    assert (copy / "keys/server/cert.pem").exists()


def test_removing_a_folder_replaces_its_key(copy: Path) -> None:
    old = certificate(copy / "keys/server/cert.pem")
    drop(copy / "keys", "server")
    before = tree(copy / "keys")
    fine(generate_here(copy, env=MASTERS))
    new = certificate(copy / "keys/server/cert.pem")
    assert new.public_key() != old.public_key()
    files = changed(before, tree(copy / "keys")) - {f"server/{name}" for name in NODE_FILES}
    assert files == {f"master/issued/server-{new.serial_number:X}.pem"}
    assert len(list(copy.glob("keys/master/issued/server-*.pem"))) == 2


def test_an_empty_folder_is_filled(copy: Path) -> None:
    keep_only(copy / "keys/server")
    fine(generate_here(copy))
    assert set(os.listdir(copy / "keys/server")) == NODE_FILES


def test_a_certificate_needs_no_key_beside_it(copy: Path) -> None:
    for name in ("root", "master", "server"):
        drop(copy / "keys" / name, "key.pem")
    before = tree(copy)
    fine(generate_here(copy))
    assert tree(copy) == before


def alter(path: Path) -> None:
    """Write something else into a file."""
    path.write_text("altered\n")


@pytest.mark.parametrize("harm", [Path.unlink, alter], ids=["removed", "altered"])
def test_a_derived_file_is_written_anew(copy: Path, harm: Callable[[Path], None]) -> None:
    before = {name: state.data for name, state in tree(copy).items()}
    nodes = [copy / "keys" / name / "crl.pem" for name in ("server", "client")]
    for path in [*copy.glob("keys/*/fullchain.pem"), *copy.glob("keys/*/ca.pem"), *nodes]:
        harm(path)
    fine(generate_here(copy, env=None))
    assert {name: state.data for name, state in tree(copy).items()} == before


def test_a_lost_record_is_put_back(copy: Path) -> None:
    before = {path: path.read_bytes() for path in copy.glob("keys/*/issued/*")}
    assert len(before) == 3
    for folder in ("root/issued", "master/issued"):
        drop(copy / "keys", folder)
    fine(generate_here(copy, env=None))
    assert {path: path.read_bytes() for path in copy.glob("keys/*/issued/*")} == before


def test_leftovers_of_a_killed_run_are_removed(copy: Path) -> None:
    drop(copy / "keys", "server")
    (copy / "keys/.server.part").mkdir()
    (copy / "keys/.server.part/key.pem").write_text("half a k")
    for name in ("root/.cert.pem.part", "client/.crl.pem.part", "master/issued/.x.pem.part"):
        (copy / "keys" / name).write_text("half a f")
    fine(generate_here(copy))
    assert not [path for path in copy.rglob("*") if path.name.startswith(".")]
    assert set(os.listdir(copy / "keys/server")) == NODE_FILES


def test_a_key_that_others_can_read_is_warned_about(copy: Path) -> None:
    (copy / "keys/server/key.pem").chmod(0o640)
    before = tree(copy)
    warned(generate_here(copy, env=None), "keys/server/key.pem")
    assert tree(copy) == before


# --- Many entries, several runs --------------------------------------------------------------


def begin(folder: Path) -> subprocess.Popen[str]:
    """Start a run, long enough to meet it at work, and wait until it has made the root."""

    def fleet(keys: dict[str, Any]) -> None:
        keys["nodes"].update({f"c{number}": keys["nodes"]["client"] for number in range(96)})

    edit(folder, fleet)
    process = start(folder)
    assert "root" in first_line(process.stdout)
    return process


def first_line(stream: IO[str] | None) -> str:
    """Read one line and no more: communicate() does not see what readline() took ahead."""
    assert stream
    return b"".join(iter(lambda: os.read(stream.fileno(), 1), b"\n")).decode()


def start(folder: Path) -> subprocess.Popen[str]:
    """Start a run without warnings: a signal can come between open() and with."""
    env = {**PHRASES, "PYTHONWARNINGS": ""}
    return started(sys.executable, GENERATE, cwd=folder, env=env)


def test_a_second_run_at_the_same_time_waits_and_has_nothing_to_make(tmp_path: Path) -> None:
    first = begin(tmp_path)
    first.send_signal(signal.SIGSTOP)
    second = start(tmp_path)
    assert "waiting" in first_line(second.stderr)
    first.send_signal(signal.SIGCONT)
    out, err = first.communicate(timeout=DEADLINE)
    assert (first.returncode, err, out.count(" made "), out.count(" kept ")) == (0, "", 99, 0)
    assert all("/100]" in line for line in out.splitlines()), "a count shows the progress"
    out, err = second.communicate(timeout=DEADLINE)
    assert (second.returncode, err, out.count(" made "), out.count(" kept ")) == (
        0,
        "",
        0,
        100,
    )


def rsa_nodes(folder: Path, count: int, bits: int) -> None:
    """Add nodes with RSA keys, which are made ahead on all cores, to the configuration."""

    def fleet(keys: dict[str, Any]) -> None:
        node = {**keys["nodes"]["client"], "key": f"rsa:{bits}"}
        keys["nodes"].update({f"rsa{number}": node for number in range(count)})

    edit(folder, fleet)


def test_rsa_keys_that_are_made_ahead_come_in_the_order_of_the_tree(tmp_path: Path) -> None:
    rsa_nodes(tmp_path, 6, 2048)
    shown = [
        line.partition("]")[2].split()
        for line in fine(generate_here(tmp_path)).stdout.splitlines()
    ]
    assert [words[0] for words in shown[4:]] == [f"rsa{number}" for number in range(6)]
    assert [words[2] for words in shown[4:]] == ["rsa:2048"] * 6
    keys = [certificate(tmp_path / f"keys/rsa{n}/cert.pem").public_key() for n in range(6)]
    assert not any(one == other for place, one in enumerate(keys) for other in keys[:place])
    fine(generate_here(tmp_path))  # compares each with its certificate


def test_ctrl_c_waits_for_no_key_that_is_being_made(tmp_path: Path) -> None:
    rsa_nodes(tmp_path, 8, 8192)
    process = start(tmp_path)
    assert "root" in first_line(process.stdout)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, err) == (130, "")
    configure(tmp_path)
    warned(generate_here(tmp_path), *unnamed(tmp_path))


def unnamed(folder: Path) -> list[str]:
    """Return the folders in keys that the shipped configuration does not name."""
    names = {path.name for path in (folder / "keys").glob("[!.]*")}
    return sorted(names - {"root", "master", "server", "client"})


@pytest.mark.parametrize(("how", "status"), [("SIGKILL", -9), ("SIGINT", 130)])
def test_a_run_that_was_ended_is_taken_up_by_the_next(
    tmp_path: Path, how: str, status: int
) -> None:
    first = begin(tmp_path)
    first.send_signal(signal.Signals[how])
    out, err = first.communicate(timeout=DEADLINE)
    assert (first.returncode, err) == (status, "")
    finished = set(re.findall(r"(\S+) +made ", out))
    before = tree(tmp_path / "keys")
    configure(tmp_path)
    # The next run's configuration has fewer nodes.
    warned(generate_here(tmp_path), *unnamed(tmp_path))
    after = tree(tmp_path / "keys")
    for name in {"root"} | finished:
        assert after[f"{name}/key.pem"] == before[f"{name}/key.pem"]
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


# --- A key that lives elsewhere --------------------------------------------------------------


def test_without_the_issuers_key_a_request_is_made_and_signed_later(copy: Path) -> None:
    keys = copy / "keys"
    (keys / "root/key.pem").rename(copy / "stick.pem")
    drop(keys, "master", "server", "client")
    edit(copy, lambda all_: all_.update(other={**all_["root"]}))
    lines = refused(generate_here(copy), "keys/master/csr.pem", "master")
    assert "2" in lines[1], "two nodes hang below"
    assert set(os.listdir(keys / "master")) == {"key.pem", "csr.pem"}
    assert set(os.listdir(keys)) == {"root", "master", "other"}, "the rest of the walk goes on"
    openssl("req", "-in", keys / "master/csr.pem", "-verify", "-noout")
    before = tree(keys)
    refused(generate_here(copy), "keys/master/csr.pem", "master")
    assert tree(keys) == before

    (copy / "stick.pem").rename(keys / "root/key.pem")
    fine(generate_here(copy))
    after = tree(keys)
    for name in ("master/key.pem", "master/csr.pem", "other/key.pem"):
        assert after[name] == before[name]
    assert (keys / "server/cert.pem").exists()


def test_while_a_request_waits_no_pass_phrase_is_needed(copy: Path) -> None:
    drop(copy / "keys/root", "key.pem")
    drop(copy / "keys", "master", "server", "client")
    refused(generate_here(copy), "keys/master/csr.pem", "master")
    before = tree(copy)
    refused(generate_here(copy, env=None), "keys/master/csr.pem", "master")
    assert tree(copy) == before


def test_a_request_may_be_signed_elsewhere(copy: Path) -> None:
    keys, root = copy / "keys", copy / "elsewhere"
    shutil.copytree(keys / "root", root)
    drop(keys / "root", "key.pem")
    drop(keys, "master", "server", "client")
    refused(generate_here(copy, env=MASTERS), "keys/master/csr.pem", "master")
    master = keys / "master"
    sign(master / "csr.pem", root, "root", CA_EXTENSIONS, master / "cert.pem")
    before = tree(master)
    fine(generate_here(copy, env=MASTERS))
    after = tree(master)
    for name in ("key.pem", "csr.pem", "cert.pem"):
        assert after[name] == before[name]
    assert number(*lists(master / "crl.pem")) == 1
    assert len(lists(keys / "server/crl.pem")) == 2


@pytest.fixture
def waiting(copy: Path) -> Path:
    """A copy in which server's request waits for a master whose key is elsewhere."""
    shutil.copytree(copy / "keys/master", copy / "elsewhere")
    drop(copy / "keys/master", "key.pem")
    drop(copy / "keys", "server")
    refused(generate_here(copy), "keys/server/csr.pem")
    return copy


def put_certificate(folder: Path, ca: Path, extensions: str, digest: str = "sha256") -> None:
    """Have a CA sign server's request, by openssl."""
    server = folder / "keys/server"
    sign(server / "csr.pem", ca, "sros", extensions, server / "cert.pem", f"-{digest}")


def foreign_certificate(folder: Path) -> None:
    """Have another CA of the same name sign server's request."""
    put_certificate(folder, make_ca(folder / "foreign", "master"), SERVER_EXTENSIONS)


WRONG_CERTIFICATES: dict[str, Callable[[Path], object]] = {
    "for another key": lambda x: shutil.copy(x / "keys/client/cert.pem", x / "keys/server"),
    "from a foreign CA": foreign_certificate,
    "by SHA-1": lambda x: put_certificate(x, x / "elsewhere", SERVER_EXTENSIONS, "sha1"),
    "not strict": lambda x: put_certificate(
        x, x / "elsewhere", SERVER_EXTENSIONS.replace("keyid", "none")
    ),
}


def test_a_sound_certificate_put_beside_a_request_is_kept(waiting: Path) -> None:
    put_certificate(waiting, waiting / "elsewhere", SERVER_EXTENSIONS)
    fine(generate_here(waiting))
    assert set(os.listdir(waiting / "keys/server")) == NODE_FILES | {"csr.pem"}


@pytest.mark.parametrize("wrong", WRONG_CERTIFICATES)
def test_a_wrong_certificate_put_beside_a_request_is_an_error(
    waiting: Path, wrong: str
) -> None:
    WRONG_CERTIFICATES[wrong](waiting)
    before = tree(waiting)
    refused(generate_here(waiting), "keys/server/cert.pem")
    assert tree(waiting) == before


def test_a_certificate_must_match_the_request_too(copy: Path) -> None:
    server = copy / "keys/server"
    files = ("-keyout", copy / "other.pem", "-out", server / "csr.pem", "-subj", "/CN=x")
    openssl("req", "-new", *NEW_KEY, *files)
    drop(server, "key.pem")
    refused(generate_here(copy), "keys/server/c")
    drop(server, "csr.pem")
    fine(generate_here(copy))


def key_digest(key: Path) -> str:
    """Return the SHA-256 of a public key, as the sender of a request prints it."""
    command = 'openssl pkey -in "$0" -pubout -outform DER | sha256sum'
    return run("bash", "-c", command, key).stdout.split()[0]


def test_the_line_of_a_request_shows_the_digest_of_its_key_and_no_other_line_does(
    copy: Path,
) -> None:
    keys = copy / "keys"
    keep_only(keys / "server")
    add_client2(copy)
    files = ("-keyout", copy / "robot.pem", "-out", keys / "server/csr.pem")
    openssl("req", "-new", *NEW_KEY, *files, "-subj", "/CN=x")
    lines = fine(generate_here(copy)).stdout.splitlines()
    digest = key_digest(copy / "robot.pem")
    shown = [line.split()[0] for line in lines if "SHA-256" in line]
    assert shown == ["server"]
    (line,) = [line for line in lines if digest in line]
    assert line.endswith(f", key elsewhere, SHA-256 of its key: {digest}")
    assert "SHA-256" not in fine(generate_here(copy)).stdout
    assert digest in fine(generate_here(copy, "--renew", "server")).stdout


RSA_2048 = ("-newkey", "rsa:2048", "-nodes")
RSA_1024 = ("-newkey", "rsa:1024", "-nodes")


def put_request(folder: Path, new_key: Sequence[str]) -> Path:
    """Leave a request in place of server's files, for a root's name and rights. Return it."""
    server = folder / "keys/server"
    keep_only(server)
    files = ("-keyout", folder / "robot.pem", "-out", server / "csr.pem")
    wishes = ("basicConstraints=critical,CA:TRUE", "keyUsage=keyCertSign")
    forged = [word for wish in wishes for word in ("-addext", wish)]
    openssl("req", "-new", *new_key, *files, "-subj", "/O=Mallory/CN=root", *forged)
    return server / "csr.pem"


# The configuration has another key type than RSA, which is a warning.
@pytest.mark.parametrize(
    ("new_key", "warnings"),
    [(NEW_KEY, []), (RSA_2048, ["keys/server/cert.pem"])],
    ids=["ec", "rsa:2048"],
)
def test_a_request_alone_is_signed_as_the_configuration_says(
    copy: Path, new_key: Sequence[str], warnings: list[str]
) -> None:
    server = put_request(copy, new_key).parent
    warned(generate_here(copy), *warnings)
    assert set(os.listdir(server)) == NODE_FILES - {"key.pem"} | {"csr.pem"}
    signed = certificate(server / "cert.pem")
    subject = [name.value for name in signed.subject]
    assert subject == ["US", "SROS Example", "Robots", "server"]
    assert not signed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert len(signed.extensions) == 6
    public = openssl("pkey", "-in", copy / "robot.pem", "-pubout")
    assert openssl("x509", "-in", server / "cert.pem", "-noout", "-pubkey") == public
    warned(generate_here(copy), *warnings)


def test_a_request_alone_for_a_weak_key_is_an_error(copy: Path) -> None:
    put_request(copy, RSA_1024)
    before = tree(copy)
    refused(generate_here(copy), "keys/server/csr.pem")
    assert tree(copy) == before


def test_a_request_alone_with_a_wrong_signature_is_an_error(copy: Path) -> None:
    flip(put_request(copy, NEW_KEY), -3)
    before = tree(copy)
    refused(generate_here(copy), "keys/server/csr.pem")
    assert tree(copy) == before


def test_a_request_may_write_its_point_in_the_short_form(copy: Path) -> None:
    server = copy / "keys/server"
    keep_only(server)
    point = ("-pkeyopt", "ec_paramgen_curve:P-256", "-out", copy / "long.pem")
    openssl("genpkey", "-algorithm", "EC", *point)
    openssl(
        "ec", "-in", copy / "long.pem", "-conv_form", "compressed", "-out", copy / "short.pem"
    )
    openssl(
        "req", "-new", "-key", copy / "short.pem", "-subj", "/CN=x", "-out", server / "csr.pem"
    )
    result = fine(generate_here(copy))
    assert key_digest(copy / "short.pem") in result.stdout
    fine(generate_here(copy))
    public = openssl("pkey", "-in", copy / "long.pem", "-pubout")
    assert openssl("x509", "-in", server / "cert.pem", "-noout", "-pubkey") == public


def test_a_key_alone_is_certified_as_it_stands(copy: Path) -> None:
    public = certificate(copy / "keys/server/cert.pem").public_key()
    keep_only(copy / "keys/server", "key.pem")
    before = tree(copy / "keys/server")
    fine(generate_here(copy))
    assert certificate(copy / "keys/server/cert.pem").public_key() == public
    assert tree(copy / "keys/server")["key.pem"] == before["key.pem"]
    assert set(os.listdir(copy / "keys/server")) == NODE_FILES


def test_a_key_alone_without_its_issuers_key_gets_a_request(copy: Path) -> None:
    keep_only(copy / "keys/server", "key.pem")
    key = tree(copy / "keys/server")["key.pem"]
    (copy / "keys/master/key.pem").rename(copy / "stick.pem")
    refused(generate_here(copy), "keys/server/csr.pem")
    assert set(os.listdir(copy / "keys/server")) == {"key.pem", "csr.pem"}
    (copy / "stick.pem").rename(copy / "keys/master/key.pem")
    fine(generate_here(copy))
    assert tree(copy / "keys/server")["key.pem"] == key


@pytest.mark.parametrize("kept", ["ca.pem", "fullchain.pem"])
def test_a_folder_without_key_request_and_certificate_is_an_error(
    copy: Path, kept: str
) -> None:
    keep_only(copy / "keys/server", kept)
    before = tree(copy)
    refused(generate_here(copy), "keys/server")
    assert tree(copy) == before


def test_a_file_in_place_of_an_entrys_folder_is_an_error(copy: Path) -> None:
    drop(copy / "keys", "server")
    (copy / "keys/server").write_text("not a folder")
    before = tree(copy)
    refused(generate_here(copy), "keys/server")
    assert tree(copy) == before


# --- What does not fit -----------------------------------------------------------------------


def test_a_key_that_does_not_match_its_certificate_is_an_error(copy: Path) -> None:
    shutil.copy(copy / "keys/client/key.pem", copy / "keys/server/key.pem")
    before = tree(copy)
    refused(generate_here(copy), "keys/server/key.pem")
    fine(generate_here(copy, env=None))  # it can't be read, and nothing needs it
    assert tree(copy) == before


def decoded(path: Path) -> bytearray:
    """Return what a PEM file encodes."""
    return bytearray(base64.b64decode("".join(path.read_text().splitlines()[1:-1])))


def flip(path: Path, position: int) -> None:
    """Change a byte of what a PEM file encodes."""
    der = decoded(path)
    der[position] ^= 1
    first, *_, last = path.read_text().splitlines()
    path.write_text(f"{first}\n{base64.encodebytes(der).decode()}{last}\n")


def truncate(path: Path) -> None:
    """Cut a file in the middle."""
    os.truncate(path, path.stat().st_size // 2)


def shorten(path: Path) -> None:
    """Drop the end of what a PEM file encodes, but keep its last line."""
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[-1], ""]))


def garble(path: Path) -> None:
    """Fill a file with bytes that are no text."""
    path.write_bytes(bytes(range(256)))


def empty(path: Path) -> None:
    """Leave nothing in a file."""
    path.write_bytes(b"")


# What is said of those that hang below.
BELOW: dict[str, list[str]] = {"server": [], "client": [], "master": ["master"]}


DAMAGE = pytest.mark.parametrize("damage", [truncate, shorten, garble, empty])


@DAMAGE
def test_a_damaged_file_of_a_node_is_one_line_and_stays_as_it_is(
    copy: Path, damage: Callable[[Path], None]
) -> None:
    add_client2(copy)
    fine(generate_here(copy))
    files = ("-key", copy / "keys/client2/key.pem", "-out", copy / "keys/client2/csr.pem")
    openssl("req", "-new", *files, "-passin", "pass:sros", "-subj", "/CN=x")
    fine(generate_here(copy))  # sound, it is accepted
    names = [
        f"keys/{name}" for name in ("server/key.pem", "client/cert.pem", "client2/csr.pem")
    ]
    for name in names:
        damage(copy / name)
    before = tree(copy)
    refused(generate_here(copy), *(f"{name}: " for name in names))
    assert tree(copy) == before


@DAMAGE
@pytest.mark.parametrize(
    ("name", "below"),
    [
        ("master/cert.pem", ["master"]),
        ("master/crl.pem", ["master"]),
        ("root/key.pem", ["root"]),
        ("root/cross.pem", []),
    ],
)
def test_a_damaged_file_of_a_ca_is_one_line_and_stays_as_it_is(
    crossed: Path, name: str, below: list[str], damage: Callable[[Path], None]
) -> None:
    damage(crossed / "keys" / name)
    before = tree(crossed)
    refused(generate_here(crossed), f"keys/{name}: ", *below)
    assert tree(crossed) == before


@pytest.mark.parametrize(
    "name", ["server/cert.pem", "client/cert.pem", "master/cert.pem", "master/crl.pem"]
)
def test_a_broken_signature_is_an_error(copy: Path, name: str) -> None:
    path = copy / "keys" / name
    flip(path, -3)
    before = tree(copy)
    refused(generate_here(copy), f"keys/{name}: ", *BELOW[path.parent.name])
    assert tree(copy) == before


def reissue(folder: Path, *extensions: str) -> Path:
    """Have openssl sign client's key anew, with further extensions. Return the certificate."""
    path, request = folder / "keys/client/cert.pem", folder / "client.csr"
    own = ("-key", path.with_name("key.pem"), "-passin", "pass:sros")
    openssl("req", "-new", *own, "-subj", SUBJECT + "client", "-out", request)
    text = "\n".join([SERVER_EXTENSIONS.replace("serverAuth", "clientAuth"), *extensions, ""])
    sign(request, folder / "keys/master", "sros", text, path)
    return path


def give_version_4(folder: Path) -> None:
    """Change the version in client's certificate."""
    flip(folder / "keys/client/cert.pem", 12)


def give_an_x400_address(folder: Path) -> None:
    """Give client's certificate another name for its issuer, of type x400Address."""
    reissue(folder, "2.5.29.18 = DER:30:02:a3:00")


def give_an_extension_twice(folder: Path) -> None:
    """Give client's certificate two extensions, and make them one."""
    path = reissue(folder, "1.2.3.4 = DER:05:00", "1.2.3.5 = DER:05:00")
    flip(path, decoded(path).index(bytes.fromhex("06032a0305")) + 4)


@pytest.mark.parametrize(
    "spoil", [give_version_4, give_an_x400_address, give_an_extension_twice]
)
def test_a_certificate_that_no_one_can_read_is_one_line(
    copy: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(copy)
    before = tree(copy)
    line = "keys/client/cert.pem: is damaged, or is not what its name says"
    refused(generate_here(copy), line)
    assert tree(copy) == before


def test_a_certificate_that_was_signed_anew_elsewhere_is_kept(copy: Path) -> None:
    reissue(copy)
    warned(generate_here(copy), "subjectAltName")


def test_name_constraints_of_a_higher_ca_apply_to_every_node(tmp_path: Path) -> None:
    def constrain(keys: dict[str, Any], name: str) -> None:
        keys["root"]["extensions"]["nameConstraints"] = (
            "critical, excluded;DNS:outside.example"
        )
        keys["nodes"]["client"]["extensions"]["subjectAltName"] = f"DNS:{name}"

    edit(tmp_path, lambda keys: constrain(keys, "outside.example"))
    refused(
        generate_here(tmp_path), "keys/client/cert.pem: excluded subtree violation"
    )  # the server comes first
    edit(tmp_path, lambda keys: constrain(keys, "inside.example"))
    fine(generate_here(tmp_path))


def test_the_addresses_of_a_higher_ca_are_for_every_node(tmp_path: Path) -> None:
    def delegate(
        keys: dict[str, Any], network: int
    ) -> None:  # RFC 3779: 10.0.0.0/8, or what the issuer has
        blocks, inherited = "1.3.6.1.5.5.7.1.7", "DER:30083006040200010500"
        for entry in (keys["master"], *keys["nodes"].values()):
            entry["extensions"][blocks] = inherited
        keys["root"]["extensions"][blocks] = "DER:300C300A0402000130040302000A"
        keys["nodes"]["client"]["extensions"][blocks] = (
            f"DER:300C300A0402000130040302{network:04X}"
        )

    edit(tmp_path, lambda keys: delegate(keys, 11))
    refused(generate_here(tmp_path), "keys/client/cert.pem: RFC 3779 resource not subset")
    edit(tmp_path, lambda keys: delegate(keys, 10))
    fine(generate_here(tmp_path))
    drop(tmp_path / "keys", "server", "client")
    fine(generate_here(tmp_path))  # anew, the first of which inherits


def test_a_path_length_that_is_too_short_for_what_is_below_is_the_cas_error(
    tmp_path: Path,
) -> None:
    def alone(keys: dict[str, Any]) -> None:
        keys["root"]["extensions"]["basicConstraints"] = "critical, CA:TRUE, pathlen:0"
        del keys["master"], keys["nodes"]

    edit(tmp_path, alone)
    fine(generate_here(tmp_path))
    configure(tmp_path)
    refused(
        generate_here(tmp_path),
        "keys/root/cert.pem: its pathlen:0 is too short",
        "3 below root",
    )
    drop(tmp_path / "keys", "root")
    fine(generate_here(tmp_path))


def test_a_trust_anchors_broken_signature_is_an_error(copy: Path) -> None:
    flip(copy / "keys/root/cert.pem", -3)
    before = tree(copy)
    refused(generate_here(copy), "keys/root/cert.pem: ", "root")
    assert tree(copy) == before


POINT = b"\x03\x42\x00\x04"  # a public key's
COUNTRY = b"\x06\x03\x55\x04\x06"  # the OID before its name


def flip_after(marker: bytes, path: Path) -> None:
    """Change the byte after a marker in what a PEM file encodes."""
    flip(path, decoded(path).index(marker) + len(marker))


@pytest.mark.parametrize(
    ("name", "marker"), [("server/cert.pem", POINT), ("master/crl.pem", COUNTRY)]
)
def test_damage_deep_inside_names_the_file(copy: Path, name: str, marker: bytes) -> None:
    path = copy / "keys" / name
    flip_after(marker, path)
    before = tree(copy)
    refused(generate_here(copy), f"keys/{name}", *BELOW[path.parent.name])
    assert tree(copy) == before


def test_damage_deep_inside_a_request_names_the_file(copy: Path) -> None:
    flip_after(POINT, put_request(copy, NEW_KEY))
    before = tree(copy)
    refused(generate_here(copy), "keys/server/csr.pem")
    assert tree(copy) == before


def test_nodes_of_a_master_that_was_replaced_are_errors(copy: Path) -> None:
    drop(copy / "keys", "master")
    result = generate_here(copy)
    faults(result, "keys/server/cert.pem", "keys/client/cert.pem")
    assert "new to the nodes: master: copy crl.pem" in result.stderr
    drop(copy / "keys", "server", "client")
    fine(generate_here(copy))


def test_nodes_go_on_below_a_ca_that_can_only_not_write_one_of_its_files(copy: Path) -> None:
    in_the_way = copy / "keys/master/ca.pem"
    in_the_way.unlink()
    in_the_way.mkdir()

    result = generate_here(copy)
    refused(result, "keys/master/ca.pem")
    assert states(result) == {"root": "kept", "server": "kept", "client": "kept"}

    in_the_way.rmdir()
    fine(generate_here(copy))


MOVED_FIRST = ("server", "client", "client2")
NEW_FIRST = ("client2", "server", "client")


@pytest.mark.parametrize(
    ("order", "why"),
    [
        (MOVED_FIRST, "is not signed by sub"),
        (NEW_FIRST, "unable to get local issuer certificate"),
    ],
)
def test_nodes_moved_below_another_ca_are_errors_until_they_are_renewed(
    copy: Path, order: tuple[str, ...], why: str
) -> None:
    def deepen(keys: dict[str, Any]) -> None:
        keys["root"]["extensions"]["basicConstraints"] = "critical, CA:TRUE, pathlen:2"
        keys["master"]["extensions"]["basicConstraints"] = "critical, CA:TRUE, pathlen:1"

    def move(keys: dict[str, Any]) -> None:
        keys["sub"] = {**keys["master"], "issuer": "master"}
        nodes = {**keys["nodes"], "client2": keys["nodes"]["client"]}
        keys["nodes"] = {name: {**nodes[name], "issuer": "sub"} for name in order}
        deepen(keys)

    drop(copy, "keys")
    edit(copy, deepen)
    fine(generate_here(copy))
    edit(copy, move)
    failed = [f"keys/{name}/cert.pem: {why}" for name in ("server", "client")]
    result = generate_here(copy)
    faults(result, *failed)
    assert "new to the nodes: sub: copy crl.pem" in result.stderr
    refused(generate_here(copy), *failed)
    sub, made = (certificate(copy / "keys" / name / "cert.pem") for name in ("sub", "client2"))
    assert made.issuer == sub.subject
    fine(generate_here(copy, "--renew", "server", "client"))
    warned(generate_here(copy, "--revoke", "sub"), "left alone: 3 below sub")


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "subject": lambda server: server["subject"].update(organizationName="Another"),
    "key type": lambda server: server.update(key="rsa:2048"),
    "extendedKeyUsage": lambda server: server["extensions"].update(
        extendedKeyUsage="clientAuth"
    ),
    "subjectAltName": lambda server: server["extensions"].pop("subjectAltName"),
    "basicConstraints": lambda server: server["extensions"].update(
        basicConstraints="CA:FALSE"
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_certificate_that_differs_from_the_configuration_is_kept(
    copy: Path, what: str
) -> None:
    edit(copy, lambda keys: CHANGES[what](keys["nodes"]["server"]))
    before = tree(copy)
    (line,) = warned(generate_here(copy), "keys/server/cert.pem: ")
    assert what in line
    assert tree(copy) == before


NODES = ["keys/server/cert.pem", "keys/client/cert.pem"]


def test_the_last_third_of_a_life_is_a_warning(copy: Path) -> None:
    before = tree(copy)
    fine(generate_here(copy, now=in_days(200)))
    warned(generate_here(copy, now=in_days(300), env=None), *NODES)
    assert tree(copy) == before


@pytest.mark.parametrize(
    ("days", "names"),
    [
        (400, NODES),
        (6 * 365, ["keys/master/cert.pem", "master"]),
        (11 * 365, ["keys/root/cert.pem", "root"]),
        (-10, ["keys/root/cert.pem", "root"]),
    ],
)
def test_an_expired_or_not_yet_valid_certificate_is_an_error(
    copy: Path, days: int, names: list[str]
) -> None:
    before = tree(copy)
    refused(generate_here(copy, now=in_days(days)), *names)
    assert tree(copy) == before


# --- Revocation lists ------------------------------------------------------------------------


def test_a_list_is_refreshed_in_the_last_third_of_its_life(tmp_path: Path) -> None:
    def short(keys: dict[str, Any]) -> None:
        for name in ("root", "master"):
            keys[name]["validity"]["nextUpdate"] = "30d"

    edit(tmp_path, short)
    fine(generate_here(tmp_path))
    paths = [tmp_path / f"keys/{name}/crl.pem" for name in ("root", "master")]
    end = datetime.now(timezone.utc) + timedelta(days=30)
    for path in paths:
        ends = lists(path)[0].next_update_utc
        assert ends and end - timedelta(minutes=1) < ends <= end
    before = tree(tmp_path)
    fine(generate_here(tmp_path, now=in_days(15)))
    assert generate_here(tmp_path, now=in_days(25), env=None).returncode == 0
    ended = [f"keys/{name}/crl.pem: has expired" for name in ("root", "master")]
    refused(generate_here(tmp_path, now=in_days(40), env=None), *ended, "below root")
    assert tree(tmp_path) == before

    fine(generate_here(tmp_path, now=in_days(40)))
    assert [number(*lists(path)) for path in paths] == [2, 2]
    files = {path.read_text() for path in tmp_path.glob("keys/[sc]*/crl.pem")}
    assert files == {paths[1].read_text() + paths[0].read_text()}
    before = tree(tmp_path)
    fine(generate_here(tmp_path, now=in_days(40)))
    assert tree(tmp_path) == before


def test_a_list_is_backdated_by_a_twelfth_of_its_life_and_at_most_a_day(
    tmp_path: Path,
) -> None:
    def short(keys: dict[str, Any]) -> None:
        keys["root"]["validity"] = {"notBefore": "-9d", "notAfter": "9y", "nextUpdate": "60d"}
        keys["master"]["validity"] = {"notBefore": "-9d", "notAfter": "8y", "nextUpdate": "6h"}

    now = in_days(0).replace(microsecond=0)
    edit(tmp_path, short)
    generate_here(tmp_path, now=now)
    begins = {
        name: lists(tmp_path / f"keys/{name}/crl.pem")[0].last_update_utc
        for name in ("root", "master")
    }
    # The script's clock is a second behind.
    assert begins["root"] == now - timedelta(days=1, seconds=1)
    assert begins["master"] == now - timedelta(minutes=30, seconds=1)


def test_a_second_run_leaves_a_list_that_lives_for_hours(tmp_path: Path) -> None:
    edit(tmp_path, lambda keys: keys["root"]["validity"].update(nextUpdate="6h"))
    fine(generate_here(tmp_path))
    before = tree(tmp_path)
    fine(generate_here(tmp_path))
    assert tree(tmp_path) == before


def test_a_lost_list_is_restored_from_the_nodes_newest_copy(copy: Path) -> None:
    keys = copy / "keys"
    newest = make_list(keys / "master", "sros", 7)
    (keys / "master/crl.pem").write_bytes(newest)
    fine(generate_here(copy))
    assert (keys / "client/crl.pem").read_bytes().startswith(newest)
    older = make_list(keys / "master", "sros", 3) + (keys / "root/crl.pem").read_bytes()
    (keys / "server/crl.pem").write_bytes(older)
    root = (keys / "root/crl.pem").read_bytes()
    drop(keys, "master/crl.pem", "root/crl.pem")
    fine(generate_here(copy))
    assert (keys / "master/crl.pem").read_bytes() == newest
    assert (keys / "root/crl.pem").read_bytes() == root
    assert (keys / "server/crl.pem").read_bytes() == newest + root


def test_a_lost_list_is_not_restored_while_a_nodes_copy_of_it_is_damaged(copy: Path) -> None:
    keys = copy / "keys"
    lost = (keys / "master/crl.pem").read_bytes()
    # Cut in its last line: half of the file may be a whole list.
    damaged = keys / "server/crl.pem"
    os.truncate(damaged, damaged.stat().st_size - 20)
    drop(keys, "master/crl.pem")
    before = tree(keys)
    lines = complaints(generate_here(copy), "error", 1)
    assert any(line.startswith("keys/server/crl.pem: is damaged") for line in lines), lines
    assert tree(keys) == before
    drop(keys, "server/crl.pem")
    fine(generate_here(copy))
    assert (keys / "master/crl.pem").read_bytes() == lost


def test_a_nodes_copy_is_read_as_often_however_many_cas_there_are(copy: Path) -> None:
    def opened() -> int:
        log = copy / "strace.log"
        strace = ("strace", "-f", "-e", "trace=openat", "-o", log)
        fine(run(*strace, sys.executable, GENERATE, "-q", cwd=copy, env=PHRASES))
        return log.read_text().count('"keys/server/crl.pem"')

    before = opened()
    edit(copy, lambda keys: keys.update({f"ca{each}": keys["master"] for each in range(5)}))
    warned(generate_here(copy), "new to the nodes: ca0, ca1, ca2, ca3, ca4: ")
    assert opened() == before > 0


def test_an_emptied_list_is_an_error_though_nothing_was_issued(tmp_path: Path) -> None:
    path = tmp_path / "keys/root/crl.pem"
    edit(tmp_path, lambda keys: [keys.pop(name) for name in ("master", "nodes")])
    fine(generate_here(tmp_path))
    whole = path.read_bytes()
    path.write_bytes(b"")
    refused(generate_here(tmp_path), "keys/root/crl.pem: is not this CA's newest list")
    path.write_bytes(whole)
    fine(generate_here(tmp_path))


def test_a_list_that_is_lost_everywhere_is_an_error(copy: Path) -> None:
    for path in copy.glob("keys/[msc]*/crl.pem"):
        path.unlink()
    before = tree(copy)
    refused(generate_here(copy), "keys/master/crl.pem", "master")
    assert tree(copy) == before


def test_a_list_of_another_ca_is_an_error(copy: Path) -> None:
    shutil.copy(copy / "keys/root/crl.pem", copy / "keys/master/crl.pem")
    before = tree(copy)
    refused(generate_here(copy), "keys/master/crl.pem", "master")
    assert tree(copy) == before


@pytest.mark.parametrize("name", ["master", "root"])
def test_a_ca_without_key_and_list_gives_its_nodes_no_list(copy: Path, name: str) -> None:
    keys = copy / "keys"
    crl = (keys / name / "crl.pem").read_bytes()
    keep_only(keys / name, "cert.pem")
    drop(keys, "server/crl.pem", "client/crl.pem")
    refused(generate_here(copy), f"keys/{name}/crl.pem: is missing")
    assert not [
        path for path in keys.glob("*/crl.pem") if path.parent.name in ("server", "client")
    ]
    (keys / name / "crl.pem").write_bytes(crl)
    fine(generate_here(copy))
    assert len(lists(keys / "server/crl.pem")) == len(lists(keys / "client/crl.pem")) == 2


def test_a_revoked_certificate_is_an_error(copy: Path) -> None:
    keys = copy / "keys"
    newest = make_list(keys / "master", "sros", 2, on_list(serial(keys / "server")))
    (keys / "master/crl.pem").write_bytes(newest)
    (line,) = refused(generate_here(copy), "keys/server/cert.pem")
    assert "revoked" in line
    assert (keys / "client/crl.pem").read_bytes().startswith(newest)
    drop(keys, "server")
    fine(generate_here(copy))


# --- A higher CA -----------------------------------------------------------------------------


def test_a_higher_ca_can_be_trusted_instead(crossed: Path, made: Path) -> None:
    keys = crossed / "keys"
    cross = (keys / "root/cross.pem").read_text()
    cross = cross[cross.index("-----BEGIN") :]
    for name in ("root", "master", "server", "client"):
        plain = made / "keys" / name
        assert (keys / name / "ca.pem").read_bytes() == (plain / "ca.pem").read_bytes()
        chain = (keys / name / "fullchain.pem").read_text()
        assert chain == (plain / "fullchain.pem").read_text() + cross
    trust = ("-no-CApath", "-no-CAstore", "-CAfile", crossed / "higher/cert.pem")
    for name in ("server", "client"):
        leaf = keys / name / "cert.pem"
        through = ("-untrusted", leaf.with_name("fullchain.pem"))
        openssl("verify", "-x509_strict", *trust, *through, leaf)
        plain = made / "keys" / name / "fullchain.pem"
        assert run("openssl", "verify", *trust, "-untrusted", plain, leaf).returncode != 0

    (keys / "root/cross.pem").unlink()
    fine(generate_here(crossed, env=None))
    plain = made / "keys/server/fullchain.pem"
    assert (keys / "server/fullchain.pem").read_bytes() == plain.read_bytes()


def put_cross(folder: Path, *key: str | Path) -> None:
    """Have the higher CA certify another key or name in root's cross.pem."""
    request = folder / "another-csr.pem"
    openssl("req", "-new", *key, "-out", request)
    sign(request, folder / "higher", "", CA_EXTENSIONS, folder / "keys/root/cross.pem")


def another_key(folder: Path) -> None:
    """Have the higher CA certify another key of root's name."""
    put_cross(folder, *NEW_KEY, "-keyout", folder / "another.pem", "-subj", f"{SUBJECT}root")


def another_name(folder: Path) -> None:
    """Have the higher CA certify root's key by another name."""
    key = ("-key", folder / "keys/root/key.pem", "-passin", "pass:root")
    put_cross(folder, *key, "-subj", f"{SUBJECT}another")


def itself(folder: Path) -> None:
    """Take root's own certificate for a higher CA's."""
    shutil.copy(folder / "keys/root/cert.pem", folder / "keys/root/cross.pem")


@pytest.mark.parametrize("mistake", [another_key, another_name, itself])
def test_a_higher_certificate_for_another_is_an_error(
    crossed: Path, mistake: Callable[[Path], None]
) -> None:
    mistake(crossed)
    before = tree(crossed)
    # What is below is done all the same.
    refused(generate_here(crossed), "keys/root/cross.pem")
    assert tree(crossed) == before


# --- Outside judges --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "purpose", "other"),
    [("server", "sslserver", "sslclient"), ("client", "sslclient", "sslserver")],
)
def test_openssl_accepts_a_node_for_its_purpose_only(
    made: Path, name: str, purpose: str, other: str
) -> None:
    assert judge(made / "keys" / name, purpose=purpose).returncode == 0
    result = judge(made / "keys" / name, purpose=other)
    assert result.returncode != 0 and "purpose" in result.stderr


def test_gnutls_accepts_the_chains(made: Path) -> None:
    for name in ("server", "client"):
        folder = made / "keys" / name
        chain = [(folder / f"{file}.pem").read_text() for file in ("fullchain", "ca")]
        verify = ("certtool", "--verify-chain", "--verify-profile", "medium")
        result = run(*verify, stdin="".join(chain))
        assert result.returncode == 0, result.stdout
        assert run(*verify, stdin=chain[0][:-400] + chain[1]).returncode != 0


LINT = """import sys
from pkilint.bin import lint_crl, lint_pkix_cert
for path in sys.argv[1:]:
    options = ["-s", "WARNING", "-f", "TEXT", path]
    if path.endswith("crl.pem"):
        lint_crl.main(["lint", "-t", "CRL", "-p", "PKIX", *options])
    else:
        lint_pkix_cert.main(["lint", *options])
"""


def test_pkilint_finds_nothing_but_single_labels(made: Path) -> None:
    paths = [*made.glob("keys/*/cert.pem"), *made.glob("keys/[rm]*/crl.pem")]
    assert len(paths) == 6
    result = run(sys.executable, "-c", LINT, *paths, env={"PYTHONWARNINGS": "ignore"})
    assert (result.returncode, result.stderr) == (0, "")
    found = {*re.findall("^    (.*)$", result.stdout, re.MULTILINE)}
    label = "pkix.invalid_domain_name_syntax (ERROR): Invalid domain name syntax: "
    assert found == {f'{label}"localhost"', f'{label}"client"'}


def test_the_subject_and_the_extensions_are_those_of_the_configuration(made: Path) -> None:
    # `C = US`, which newer versions write `C=US` unless told otherwise.
    named = ("-nameopt", "oneline")
    text = openssl("x509", "-in", made / "keys/server/cert.pem", "-noout", "-text", *named)
    assert re.search("Subject: C = US, O = SROS Example, OU = Robots, CN = server\n", text)
    assert "DNS:localhost, IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1\n" in text
    master = certificate(made / "keys/master/cert.pem")
    assert master.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "master"
