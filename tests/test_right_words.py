"""What is said names the right thing.

There is no traceback, no advice that does not help, and no file that is not there. And what
should stay short does: the time for a long list, and a folder after a renewal.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from certificates import (
    CA_EXTENSIONS,
    NEW_KEY,
    SUBJECT,
    cross_certify,
    lists,
    number,
    revoked_serials,
    serial,
    sign,
)
from configurations import Keys, configure, edit
from folders import drop, keep_only, tree
from running import (
    DEADLINE,
    GENERATE,
    MASTERS,
    PHRASES,
    Result,
    Terminal,
    complaints,
    environment,
    faults,
    fine,
    generate,
    generate_here,
    openssl,
    refused,
    run,
    states,
)

# --- Octets at the prompt that are no text ---------------------------------------------------

ASCII = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
TYPED = {
    "a letter of Latin-1": ("p\udce4ss", {"LC_ALL": "C.UTF-8"}),
    "half a letter after one backspace": ("p\udcc3", {"LC_ALL": "C.UTF-8"}),
    "a letter in a locale without it": ("päss", ASCII),
    "a stray octet": ("\udcff", {"LC_ALL": "C.UTF-8"}),
}


def type_for_arm(folder: Path, phrase: str, locale: dict[str, str]) -> Terminal:
    """Have a node arm made at a terminal, and type a pass phrase for it once."""

    def with_arm(keys: Keys) -> None:
        keys["nodes"]["arm"] = {**keys["nodes"]["client"], "passphrase": "ARM"}

    edit(folder, with_arm)
    at = Terminal(sys.executable, GENERATE, cwd=folder, env={**PHRASES, **locale})
    at.expect("(ARM)")
    at.type(f"{phrase}\n")
    return at


@pytest.mark.parametrize(("phrase", "locale"), TYPED.values(), ids=TYPED)
def test_octets_at_the_prompt_that_are_no_text_are_one_line(
    copy: Path, phrase: str, locale: dict[str, str]
) -> None:
    at = type_for_arm(copy, phrase, locale)
    assert at.finish() == 1
    last = at.seen.splitlines()[-1]
    assert last.startswith("Enter pass phrase (ARM): ") and ": error: ARM: " in last
    assert "Traceback" not in at.seen and not (copy / "keys/arm").exists()


def test_a_letter_outside_of_ascii_at_the_prompt_is_text(copy: Path) -> None:
    at = type_for_arm(copy, "päss", {"LC_ALL": "C.UTF-8"})
    at.expect("(ARM)")
    at.type("päss\n")
    assert at.finish() == 0, at.seen
    options = ("-in", copy / "keys/arm/key.pem", "-noout", "-passin", "env:ARM")
    assert run("openssl", "pkey", *options, env={"ARM": "päss"}).returncode == 0


# --- Imports that fail or are interrupted ----------------------------------------------------


def stand_in(folder: Path, name: str, code: str) -> dict[str, str]:
    """Put a module in front of the one of that name, and return the environment for it."""
    place = folder / "in-front" / name
    place.mkdir(parents=True)
    (place / "__init__.py").write_text(f"{code}\n")
    return {**PHRASES, "PYTHONPATH": str(place.parent)}


IMPORTS = {
    "pyOpenSSL is too old": ("OpenSSL", "raise AttributeError('lib has no X509_V_FLAG')"),
    "pyOpenSSL wants a newer cryptography": ("OpenSSL", "raise TypeError('deprecated')"),
    "PyYAML is not there": ("yaml", "raise ModuleNotFoundError('No module named yaml')"),
    "cryptography can't load OpenSSL": ("cryptography", "raise RuntimeError('no provider')"),
    "cryptography lacks a library": (
        "cryptography",
        "raise OSError('libssl.so.3: not found')",
    ),
    "PyYAML gives no reason": ("yaml", "raise MemoryError"),
}


@pytest.mark.parametrize(("name", "code"), IMPORTS.values(), ids=IMPORTS)
def test_a_package_that_cannot_be_imported_is_one_line(
    copy: Path, name: str, code: str
) -> None:
    result = generate(copy, env=stand_in(copy, name, code))
    (line,) = complaints(result, "error", 1)
    assert "pip install" in line and result.stdout == ""
    assert not line.startswith(":"), "a reason"


# What Debian 12 has can be imported, but fails later on.
RELEASES = {
    "cryptography 38.0.4": "import OpenSSL.crypto, cryptography as package",
    "OpenSSL 23.0.0": "import OpenSSL as package",
}


@pytest.mark.parametrize("release", RELEASES)
def test_a_release_that_is_too_old_is_one_line(copy: Path, release: str) -> None:
    code = f"{RELEASES[release]}; package.__version__ = '{release.split()[1]}'"
    (line,) = complaints(generate(copy, env=stand_in(copy, "sitecustomize", code)), "error", 1)
    assert line.startswith(f"{release} is too old: run it with ")


def test_a_package_that_is_not_imported_may_be_broken(copy: Path) -> None:
    fine(generate(copy, env=stand_in(copy, "unrelated", "raise RuntimeError")))


def test_a_pyyaml_without_libyaml_is_one_line(copy: Path) -> None:
    env = stand_in(copy, "unrelated", "")
    hook = Path(env["PYTHONPATH"]) / "sitecustomize.py"
    hook.write_text("import sys\nsys.modules['yaml._yaml'] = None\n")
    (line,) = complaints(generate(copy, env=env), "error", 1)
    assert "libyaml" in line
    hook.write_text("")
    fine(generate(copy, env=env))


INTERRUPT = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nsignal.pause()"


@pytest.mark.parametrize("name", ["argparse", "yaml", "cryptography", "OpenSSL"])
def test_ctrl_c_during_the_imports_ends_quietly(copy: Path, name: str) -> None:
    result = generate(copy, env=stand_in(copy, name, INTERRUPT))
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


def test_ctrl_c_at_a_terminal_during_the_imports_ends_quietly(copy: Path) -> None:
    waits = "import signal\nprint('importing', flush=True)\nsignal.pause()"
    at = Terminal(sys.executable, GENERATE, cwd=copy, env=stand_in(copy, "yaml", waits))
    at.expect("importing")
    at.type("\x03")
    assert at.finish() == 130
    assert at.seen.replace("^C", "").split() == ["importing"]


# --- Lines that name the wrong thing ---------------------------------------------------------


def named_files(result: Result) -> set[str]:
    """Return the files in the keys folder that the lines of a run name."""
    return set(re.findall(r"keys/[\w/.-]+[.]pem", result.stderr))


def test_a_request_is_named_only_where_there_is_one(copy: Path) -> None:
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp256k1", "-noenc")
    keys, nodes = copy / "keys", ["by-key", "by-request", "sent"]

    def more(keys: Keys) -> None:
        client = keys["nodes"]["client"]
        keys["nodes"]["by-key"] = {**client, "cipher": None, "passphrase": None}
        keys["nodes"]["by-request"] = client
        keys["nodes"]["sent"] = {**client, "issuer": "root"}

    edit(copy, more)
    for name in nodes[:2]:
        (keys / name).mkdir(0o700)
        files = ("-keyout", keys / name / "key.pem", "-out", keys / name / "csr.pem")
        openssl("req", "-new", *curve, *files, "-subj", "/CN=x")
        (keys / name / "key.pem").chmod(0o600)
    drop(keys / "by-key", "csr.pem")
    drop(keys / "by-request", "key.pem")
    drop(keys / "root", "key.pem")
    lines = faults(generate_here(copy, env=MASTERS), *(f"keys/{name}/" for name in nodes))
    by_name = {re.findall("keys/([a-z-]+)/", line)[0]: line for line in lines}
    assert "keys/by-key/key.pem" in by_name["by-key"] and "csr.pem" not in by_name["by-key"]
    assert "keys/by-request/csr.pem" in by_name["by-request"]
    assert "keys/sent/csr.pem" in by_name["sent"] and (keys / "sent/csr.pem").exists()


FOREIGN_ROOT = """[req]
distinguished_name = n
[n]
[e]
subjectKeyIdentifier = hash
basicConstraints = critical, {constraints}
keyUsage = critical, {usage}
"""
CA, BOTH = "CA:TRUE, pathlen:1", "keyCertSign, cRLSign"
ROOTS = {
    "signs no lists": (CA, "keyCertSign"),
    "signs no certificates": (CA, "cRLSign"),
    "signs neither": (CA, "digitalSignature"),
    "admits no CA below": ("CA:TRUE, pathlen:0", BOTH),
    "is no CA": ("CA:FALSE", BOTH),
}


def put_root(folder: Path, constraints: str, usage: str) -> None:
    """Have openssl sign root's certificate, and remove all that is below it."""
    root = folder / "keys/root"
    drop(folder / "keys", "master", "server", "client")
    keep_only(root, "key.pem")
    config = FOREIGN_ROOT.format(constraints=constraints, usage=usage)
    own = ("-key", root / "key.pem", "-passin", "pass:root", "-subj", f"{SUBJECT}root")
    what = ("-days", "3000", "-config", "/dev/stdin", "-extensions", "e")
    openssl("req", "-x509", "-new", *own, *what, "-out", root / "cert.pem", stdin=config)


def test_a_root_that_other_software_signed_is_kept(copy: Path) -> None:
    put_root(copy, CA, BOTH)
    assert states(fine(generate_here(copy)))["root"] == "kept"


@pytest.mark.parametrize(("constraints", "usage"), ROOTS.values(), ids=ROOTS)
def test_a_roots_fault_is_reported_as_the_roots_and_can_be_mended(
    copy: Path, constraints: str, usage: str
) -> None:
    put_root(copy, constraints, usage)
    lines = complaints(generate_here(copy), "error", 1)
    assert "keys/root/cert.pem" in lines[0], lines
    assert not [line for line in lines if "keys/master" in line or "CN=master" in line], lines
    assert "--renew" in lines[0], lines
    generate_here(copy, "--renew", "root")
    fine(generate_here(copy))


def test_what_is_full_is_named(made: Path, tmp_path: Path) -> None:
    command = (sys.executable, str(GENERATE))
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            command,
            cwd=made,
            env=environment(PHRASES),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
    (line,) = complaints(result, "error", 1)
    assert "standard output: No space" in line

    # A limit on the size of files is as good as a full disk.
    configure(tmp_path)
    result = run("prlimit", "--fsize=10", *command, cwd=tmp_path, env=PHRASES)
    first, *_ = complaints(result, "error", 1)
    assert first.startswith("keys/root/") and "None" not in result.stderr
    fine(run("prlimit", "--fsize=1000000", *command, cwd=tmp_path, env=PHRASES))


def link(path: Path) -> None:
    """Put a link to a stick that is not plugged in, in place of a file or folder."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to("/media/stick/absent")


@pytest.mark.parametrize(
    "place", ["keys", "keys/root", "keys/server", "keys/master/issued", "keys/server/cert.pem"]
)
def test_a_link_to_an_absent_stick_is_named_and_does_not_exist_as_a_file(
    copy: Path, place: str
) -> None:
    link(copy / place)
    lines = complaints(generate_here(copy, "--renew", "client"), "error", 1)
    assert f"{place}: is a link to /media/stick/absent, which does not exist" in lines[0]
    assert not [line for line in lines if "File exists" in line], lines
    assert os.readlink(copy / place) == "/media/stick/absent", "the link stays"


@pytest.mark.parametrize("place", ["keys/master", "keys/master/issued"])
def test_a_revocation_whose_record_is_on_an_absent_stick_is_not_an_unknown_name(
    copy: Path, place: str
) -> None:
    stick = copy / "stick"
    (copy / place).rename(stick)
    (copy / place).symlink_to("/media/stick/absent")
    lines = complaints(generate_here(copy, "--revoke", "client"), "error", 1)
    assert f"{place}: is a link to" in lines[0]
    (copy / place).unlink()
    (copy / place).symlink_to(stick)
    result = fine(generate_here(copy, "--revoke", "client"))
    assert states(result)["client"] == "revoked", "the twin"


CONVERSIONS = {
    "keys/server/cert.pem": "x509",
    "keys/root/cross.pem": "x509",
    "keys/server/csr.pem": "req",
}


@pytest.mark.parametrize("place", CONVERSIONS)
def test_a_file_in_der_is_converted_by_the_command_in_the_line(copy: Path, place: str) -> None:
    path = copy / place
    key = ("-key", copy / "keys/server/key.pem", "-passin", "pass:sros")
    if path.name == "csr.pem":
        openssl("req", "-new", *key, "-subj", "/CN=x", "-out", path)
    if path.name == "cross.pem":
        cross_certify(copy / "keys/root", copy / "higher", path)
    kind = CONVERSIONS[place]
    openssl(kind, "-in", path, "-outform", "DER", "-out", path)
    (line,) = faults(generate_here(copy, env=None), place)
    command = line.partition("is not in PEM: ")[2]
    assert command.startswith(f"openssl {kind} "), line
    assert run("sh", "-c", command, cwd=copy).returncode == 0
    fine(generate_here(copy, env=None))


@pytest.mark.parametrize(
    "place", ["server/cert.pem", "server/csr.pem", "root/cross.pem", "master/cert.pem"]
)
@pytest.mark.parametrize("data", [b"", b"garbage\n", b"-----BEGIN CERTIFICATE-----\nMIIB\n"])
def test_a_file_that_is_damaged_can_be_removed(copy: Path, place: str, data: bytes) -> None:
    path = copy / "keys" / place
    path.write_bytes(data)
    lines = complaints(generate_here(copy), "error", 1)
    assert lines[0].startswith(f"keys/{place}: is damaged, or is not what its name says")
    assert lines[0].endswith(": put back a good copy, or remove it")
    path.unlink()
    fine(generate_here(copy))


@pytest.mark.parametrize("wrong", ["key.pem", "cert.pem"])
def test_a_key_and_a_certificate_that_do_not_match_are_one_line_that_helps(
    copy: Path, wrong: str
) -> None:
    keys = copy / "keys"
    shutil.copy(keys / "client" / wrong, keys / "server" / wrong)
    (line,) = complaints(generate_here(copy), "error", 1)
    what = "keys/server/cert.pem: does not match keys/server/key.pem"
    assert line == f"{what}: remove the wrong one, and run again"
    (keys / "server" / wrong).unlink()
    fine(generate_here(copy))


@pytest.mark.parametrize("name", ["server", "root"])
def test_a_key_that_is_a_link_to_an_absent_stick_is_elsewhere(copy: Path, name: str) -> None:
    keys = copy / "keys"
    link(keys / name / "key.pem")
    result = fine(generate_here(copy, env=MASTERS))
    (line,) = [line for line in result.stdout.splitlines() if line.split()[0] == name]
    assert line.endswith("key elsewhere")
    keep_only(keys / name, "key.pem")
    lines = complaints(generate_here(copy, env=MASTERS), "error", 1)
    assert f"keys/{name}" in lines[0] and "key.pem" in lines[0]
    assert "File exists" not in "".join(lines)


Change = Callable[[Keys], object]
LISTS: dict[str, Change] = {
    "keys.root.key": lambda keys: keys["root"].update(key=["ec:prime256v1"]),
    "keys.master.issuer": lambda keys: keys["master"].update(issuer=["root"]),
    "keys.root.digest": lambda keys: keys["root"].update(digest=["sha256"]),
    "keys.root.validity.notAfter": lambda keys: keys["root"]["validity"].update(
        notAfter=["9y"]
    ),
    "keys.root.passphrase": lambda keys: keys["root"].update(passphrase=["A", "B"]),
    "keys.root.subject": lambda keys: keys["root"].update(subject=[]),
    "keys.root.validity": lambda keys: keys["root"].update(validity=["9y"]),
    "keys.nodes.server.extensions": lambda keys: keys["nodes"]["server"].update(extensions=[]),
    "keys.nodes.server.cipher": lambda keys: keys["nodes"]["server"].update(cipher=[]),
}


@pytest.mark.parametrize("place", LISTS)
def test_a_list_where_a_text_belongs_is_called_a_list(tmp_path: Path, place: str) -> None:
    edit(tmp_path, LISTS[place])
    (line,) = complaints(generate_here(tmp_path), "error", 2)
    assert line.startswith(f"sros_config.yml: {place}: ")
    assert "list" in line and "quotes" not in line and "unknown" not in line
    assert "class" not in line, "Python's word"
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize("field", ["commonName", "organizationName"])
def test_a_mapping_where_a_text_belongs_is_called_a_mapping(
    tmp_path: Path, field: str
) -> None:
    edit(tmp_path, lambda keys: keys["root"]["subject"].update({field: {"a": "b"}}))
    (line,) = complaints(generate_here(tmp_path), "error", 2)
    assert line.startswith(f"sros_config.yml: keys.root.subject.{field}: ")
    assert "mapping" in line and "quotes" not in line and "class" not in line


@pytest.mark.parametrize("value", [False, 83, 1.5], ids=str)
def test_a_value_that_only_needs_quotes_is_reported_as_such(
    tmp_path: Path, value: object
) -> None:
    edit(tmp_path, lambda keys: keys["root"]["subject"].update(countryName=value))
    (line,) = complaints(generate_here(tmp_path), "error", 2)
    assert "quotes" in line and "keys.root.subject.countryName" in line


UNKNOWN: dict[str, Change] = {
    "Extensions": lambda keys: keys["master"].update(Extensions={}),
    "Subject": lambda keys: keys["master"].update(Subject={}),
    "validty": lambda keys: keys["master"].update(validty={}),
    "extension": lambda keys: keys["master"].update(extension=[]),
    "Validity": lambda keys: keys["master"].update(Validity={"notAfter": "1y"}),
    "nodes": lambda keys: keys["master"].update(nodes={}),
    "subject.commonname": lambda keys: keys["master"]["subject"].update(commonname={}),
}


@pytest.mark.parametrize("field", UNKNOWN)
def test_an_unknown_field_is_an_error_even_if_it_is_empty(tmp_path: Path, field: str) -> None:
    edit(tmp_path, UNKNOWN[field])
    (line,) = complaints(generate_here(tmp_path), "error", 2)
    assert line.startswith(f"sros_config.yml: keys.master.{field}: ")
    assert "unknown field" in line
    assert not (tmp_path / "keys").exists()


# --- Long lists ------------------------------------------------------------------------------

INDEX = """[ca]
default_ca = c
[c]
database = index.txt
crlnumber = number
default_md = sha256
default_crl_days = 900
crl_extensions = e
[e]
authorityKeyIdentifier = keyid
"""


def put_long_list(folder: Path, count: int) -> None:
    """Have openssl sign master's next list, with many certificates on it."""
    then = datetime.now(timezone.utc) - timedelta(days=1)
    line = f"R\t490101000000Z\t{then:%y%m%d%H%M%S}Z\t{{:08X}}\tunknown\t/CN=x\n"
    text = "".join(line.format(1 << 28 | each) for each in range(count))
    (folder / "index.txt").write_text(text)
    (folder / "number").write_text("10\n")
    (folder / "ca.cnf").write_text(INDEX)
    ca = folder / "keys/master"
    pair = ("-cert", ca / "cert.pem", "-keyfile", ca / "key.pem")
    made = run(
        "openssl", "ca", "-gencrl", "-config", "ca.cnf", *pair, "-out", "c.pem", cwd=folder
    )
    assert made.returncode == 0, made.stderr
    (folder / "c.pem").rename(ca / "crl.pem")


def seconds(folder: Path, *arguments: str) -> float:
    """Return the processor time that a run takes, which must end well."""
    command = [sys.executable, str(GENERATE), "-q", *arguments]
    process = subprocess.Popen(command, cwd=folder, env=environment())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


def test_a_list_four_times_as_long_takes_not_much_more_than_four_times_as_long(
    made_plain: Path, tmp_path: Path
) -> None:
    times = []
    for count in (10_000, 40_000):
        folder = shutil.copytree(made_plain, tmp_path / str(count))
        put_long_list(folder, count)
        times.append(seconds(folder, "--revoke", "client"))
        (crl,) = lists(folder / "keys/master/crl.pem")
        assert (len(crl), number(crl)) == (count + 1, 17)
        assert serial(folder / "keys/client") in revoked_serials(
            folder / "keys/server/crl.pem"
        )
    assert times[1] < 6 * times[0], times


# --- A request that a renewal leaves ---------------------------------------------------------


def ask_elsewhere(folder: Path, name: str, issuer: str) -> Path:
    """Renew while the issuer's key is away, so a request is left. Bring the key back."""
    key, stick = folder / "keys" / issuer / "key.pem", folder / "stick.pem"
    request = folder / "keys" / name / "csr.pem"
    key.rename(stick)
    faults(generate_here(folder, "--renew", name), f"keys/{name}/csr.pem")
    stick.rename(key)
    assert request.exists()
    return request


@pytest.mark.parametrize(("name", "issuer"), [("master", "root"), ("client", "master")])
def test_a_request_that_is_left_from_a_renewal_goes_with_the_next_renewal(
    copy: Path, name: str, issuer: str
) -> None:
    request = ask_elsewhere(copy, name, issuer)
    fine(generate_here(copy))
    assert request.exists(), "it may be on its way to the issuer"
    assert states(fine(generate_here(copy, "--renew", name)))[name] == "renewed"
    assert not request.exists()
    before = tree(copy)
    fine(generate_here(copy, env=None))
    assert tree(copy) == before


def test_a_request_stays_while_a_renewal_fails(copy: Path) -> None:
    request = ask_elsewhere(copy, "master", "root")
    before = request.read_bytes()
    refused(generate_here(copy, "--renew", "master", env=MASTERS), "SROS_ROOT_PASSPHRASE")
    assert request.read_bytes() == before


def test_a_request_for_a_key_that_is_elsewhere_stays(copy: Path) -> None:
    node = copy / "keys/robot"
    edit(copy, lambda keys: keys["nodes"].update(robot=keys["nodes"]["client"]))
    node.mkdir(0o700)
    files = ("-keyout", copy / "robot.pem", "-out", node / "csr.pem")
    openssl("req", "-new", *NEW_KEY, *files, "-subj", "/CN=x")
    fine(generate_here(copy, env=MASTERS))
    request = (node / "csr.pem").read_bytes()
    assert (
        states(fine(generate_here(copy, "--renew", "robot", env=MASTERS)))["robot"]
        == "renewed"
    )
    assert (node / "csr.pem").read_bytes() == request


def test_a_certificate_that_was_signed_elsewhere_uses_its_request_up(
    copy: Path,
) -> None:
    request = ask_elsewhere(copy, "master", "root")
    sign(request, copy / "keys/root", "root", CA_EXTENSIONS, copy / "keys/master/cert.pem")
    assert request.exists()
    fine(generate_here(copy, "-n"))
    assert request.exists()
    fine(generate_here(copy))
    assert not request.exists()
    fine(generate_here(copy))
