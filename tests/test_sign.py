"""A CA's folder with `sign` in place of key.pem: what it signs, and what does not sign."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from certificates import certificate, judge, lists, number, revoked_serials, serial, sign
from configurations import edit
from cryptography import x509
from folders import drop, seldom, tree
from needs import needs_root
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
    openssl,
    poll,
    refused,
    run,
    states,
)

# --- Keys that are not in the keys folder ----------------------------------------------------

OPENSSL = 'openssl pkeyutl -sign -rawin -inkey ../../key.pem ${1:+-digest "$1"} -in /dev/stdin'
# Says how it was called, then signs.
SIGN = f'#!/bin/sh\necho "$*" >>../../calls\n{OPENSSL}\n'
KEYS = {
    "ec:prime256v1": ("EC", "-pkeyopt", "ec_paramgen_curve:P-256"),
    "ec:secp521r1": ("EC", "-pkeyopt", "ec_paramgen_curve:P-521"),
    "rsa:2048": ("RSA", "-pkeyopt", "rsa_keygen_bits:2048"),
    "ed25519": ("ED25519",),
    "ed448": ("ED448",),
}
# What the program is called with, for a key of each type.
DIGESTS = {**dict.fromkeys(KEYS, "sha256"), "ed25519": "", "ed448": ""}


def put(path: Path, text: str = SIGN, mode: int = 0o755) -> None:
    """Put a program into a folder."""
    path.write_text(text)
    path.chmod(mode)


def make_key(path: Path, key: str = "ec:prime256v1") -> Path:
    """Make a private key, by openssl."""
    openssl("genpkey", "-quiet", "-algorithm", *KEYS[key], "-out", path)
    return path


def prepare(folder: Path, name: str = "root", key: str = "ec:prime256v1") -> Path:
    """Prepare the folder of a CA whose key is in a file outside; return it."""
    ca = folder / "keys" / name
    ca.mkdir(mode=0o700, parents=True)
    openssl(
        "pkey", "-in", make_key(folder / "key.pem", key), "-pubout", "-out", ca / "public.pem"
    )
    put(ca / "sign")
    return ca


def move_key(folder: Path, name: str, text: str = SIGN) -> Path:
    """Have a program sign for a CA that is there already; return its folder."""
    ca = folder / "keys" / name
    variable = {"root": "SROS_ROOT_PASSPHRASE"}.get(name, "SROS_PASSPHRASE")
    phrase = ("-passin", f"pass:{PHRASES[variable]}")
    openssl("pkey", "-in", ca / "key.pem", *phrase, "-out", folder / "key.pem")
    (ca / "key.pem").unlink()
    put(ca / "sign", text)
    return ca


def calls(folder: Path) -> list[str]:
    """Return the arguments of each call of a program."""
    path = folder / "calls"
    if not path.exists():
        return []
    return path.read_text().splitlines()


def change_root(folder: Path, **fields: object) -> None:
    """Put the shipped configuration into a folder, with other fields of root."""

    def change(keys: dict[str, Any]) -> None:
        keys["root"].update(fields)
        if not str(fields.get("key", "ec")).startswith(("ec", "rsa")):
            del keys["root"]["digest"]

    edit(folder, change)


# --- What a program signs --------------------------------------------------------------------


@pytest.mark.parametrize("key", seldom(KEYS, *(KEYS.keys() - {"ec:prime256v1"})))
def test_a_root_lives_without_its_key_ever_being_in_the_folder(
    tmp_path: Path, key: str
) -> None:
    change_root(tmp_path, key=key)
    root = prepare(tmp_path, key=key)
    keys = tmp_path / "keys"
    result = fine(generate(tmp_path))
    assert states(result) == dict.fromkeys(("root", "master", "server", "client"), "made")
    # Its own certificate, its list, and master's certificate.
    assert calls(tmp_path) == [DIGESTS[key]] * 3
    public = openssl("pkey", "-in", tmp_path / "key.pem", "-pubout")
    assert openssl("x509", "-in", root / "cert.pem", "-noout", "-pubkey") == public

    before = tree(keys)
    fine(generate(tmp_path))
    assert (tree(keys), len(calls(tmp_path))) == (before, 3)
    fine(generate(tmp_path, "--renew", "root", "master"))
    assert len(calls(tmp_path)) == 5
    for node in ("server", "client"):
        assert judge(keys / node).returncode == 0
    old = serial(keys / "master")
    complaints(generate(tmp_path, "--revoke", "master"), "warning", 0)
    assert old in revoked_serials(root / "crl.pem")
    assert judge(keys / "server").returncode != 0
    assert {path.name for path in root.iterdir()} == {
        *("sign", "public.pem", "cert.pem", "issued"),
        *("crl.pem", "fullchain.pem", "ca.pem"),
    }


PYTHON = f"""#!{sys.executable}
import sys
from cryptography.hazmat.primitives.serialization import load_pem_private_key
with open("../../key.pem", "rb") as file:
    key = load_pem_private_key(file.read(), None)
sys.stdout.buffer.write(key.sign(sys.stdin.buffer.read()))
sys.exit(len(sys.argv) - 1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("key", ["ml-dsa-44", "ml-dsa-65", "ml-dsa-87"])
def test_a_program_signs_with_ml_dsa(tmp_path: Path, key: str) -> None:
    if not importlib.util.find_spec("cryptography.hazmat.primitives.asymmetric.mldsa"):
        pytest.skip("takes cryptography 47")
    change_root(tmp_path, key=key, cipher=None, passphrase=None)
    fine(generate_here(tmp_path))
    root, before = tmp_path / "keys/root", serial(tmp_path / "keys/root")
    (root / "key.pem").rename(tmp_path / "key.pem")
    put(root / "sign", PYTHON)
    # OpenSSL, which verifies before anything is written, is that of pyOpenSSL here.
    fine(generate_here(tmp_path, "--renew", "root", "master"))
    assert serial(root) != before
    put(root / "sign", PYTHON.replace(".read())", ".read() + b'more')"))
    refused(
        generate_here(tmp_path, "--renew", "root"), f"are not a signature by its {key} key: "
    )


@pytest.mark.slow
def test_a_program_gets_the_digest_of_the_configuration(tmp_path: Path) -> None:
    change_root(tmp_path, digest="sha384")
    root = prepare(tmp_path)
    fine(generate_here(tmp_path))
    assert set(calls(tmp_path)) == {"sha384"}
    text = openssl("x509", "-in", root / "cert.pem", "-noout", "-text")
    assert "ecdsa-with-SHA384" in text


def test_a_program_runs_in_its_folder_on_a_regular_file(tmp_path: Path) -> None:
    change_root(tmp_path)
    root = prepare(tmp_path)
    test = f"test -f /dev/stdin && test -f public.pem && test $PWD = {root} || exit 1\n"
    put(root / "sign", f"#!/bin/sh\n{test}echo $COLOUR is heard >&2\n{OPENSSL}\n")
    result = generate(tmp_path, env={**PHRASES, "COLOUR": "green"})
    assert (result.returncode, set(result.stderr.splitlines())) == (0, {"green is heard"})
    assert judge(tmp_path / "keys/server").returncode == 0


def test_a_ca_that_is_there_needs_no_public_key_beside_its_certificate(copy: Path) -> None:
    move_key(copy, "master")
    edit(copy, lambda keys: keys["nodes"].update(client2=keys["nodes"]["client"]))
    fine(generate_here(copy, "--revoke", "client", env=MASTERS))
    assert len(calls(copy)) == 2
    assert judge(copy / "keys/client2").returncode == 0
    assert serial(copy / "keys/client") in revoked_serials(copy / "keys/server/crl.pem")


def test_a_program_signs_a_request_and_then_what_the_certificate_allows(copy: Path) -> None:
    (copy / "keys/root/key.pem").rename(copy / "root.pem")
    drop(copy / "keys", "master", "server", "client")
    master = prepare(copy, "master")
    dry = generate_here(copy, "-n")
    assert "master/sign: -n does not call it" in dry.stderr
    assert not (master / "csr.pem").exists()
    refused(generate_here(copy), "keys/master/csr.pem", "left alone: 2 below master")
    assert calls(copy) == ["sha256"]
    openssl("req", "-in", master / "csr.pem", "-noout", "-verify")

    # The request is enough to know the key by.
    drop(master, "public.pem")
    elsewhere = copy / "elsewhere"
    shutil.copytree(copy / "keys/root", elsewhere)
    (copy / "root.pem").rename(elsewhere / "key.pem")
    extensions = (
        "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n"
        "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    )
    sign(master / "csr.pem", elsewhere, "root", extensions, master / "cert.pem")
    fine(generate_here(copy))
    assert judge(copy / "keys/server").returncode == 0


@pytest.mark.slow
def test_a_list_is_refreshed(copy: Path) -> None:
    edit(copy, lambda keys: keys["master"]["validity"].update(nextUpdate="30d"))
    drop(copy, "keys")
    fine(generate_here(copy))
    master = move_key(copy, "master")
    assert generate_here(copy, now=in_days(10)).returncode == 0
    assert number(lists(master / "crl.pem")[0]) == 1
    assert generate_here(copy, now=in_days(25)).returncode == 0
    assert number(lists(master / "crl.pem")[0]) == 2


def test_a_program_asks_for_a_pass_phrase_at_the_terminal(tmp_path: Path) -> None:
    change_root(tmp_path)
    root = prepare(tmp_path)
    encrypted = tmp_path / "encrypted.pem"
    how = ("-aes256", "-passout", "pass:a long one", "-out", encrypted)
    openssl("pkey", "-in", tmp_path / "key.pem", *how)
    put(root / "sign", f"#!/bin/sh\n{OPENSSL.replace('key.pem', 'encrypted.pem')}\n")
    terminal = Terminal(sys.executable, GENERATE, cwd=tmp_path, env=PHRASES)
    for _ in range(3):
        terminal.expect("Enter pass phrase for ../../encrypted.pem:")
        terminal.type("a long one\n")
    assert terminal.finish() == 0
    assert judge(tmp_path / "keys/server").returncode == 0


@pytest.mark.slow
def test_a_program_on_an_absent_stick_is_a_key_elsewhere(copy: Path) -> None:
    root = move_key(copy, "root")
    (root / "sign").unlink()
    (root / "sign").symlink_to("/media/stick/sign")
    result = fine(generate_here(copy))
    assert "key elsewhere" in result.stdout.splitlines()[0]


# --- Programs that do not sign ---------------------------------------------------------------

OTHERS = OPENSSL.replace("../../key.pem", "../../other.pem")
# What a program does instead, and what the line says.
WRONG = {
    "fails": ("echo the token is locked >&2; exit 3", "did not sign: it ended with status 3"),
    "fails after it signed": (f"{OPENSSL}; exit 1", "did not sign: it ended with status 1"),
    "is killed": ("kill -9 $$", "did not sign: signal 9 ended it"),
    "hangs": ("sleep 1000", "did not sign within 1 seconds (SROS_SIGN_TIMEOUT)"),
    "hangs silently": ("exec >&-; sleep 1000", "did not sign within 1 seconds"),
    "prints nothing": ("true", "printed 0 bytes, which are not a signature by its"),
    "prints nonsense": ("echo signed", "printed 7 bytes, which are not a signature by its"),
    "prints without end": ("yes", "printed more than any signature has"),
    "signs something else": (f"echo | {OPENSSL}", "printed "),
    "signs with another key": (OTHERS, "printed "),
    "signs with another digest": (f"set sha512; {OPENSSL}", "printed "),
}
OFTEN = ("fails", "hangs", "prints without end", "signs with another key")


def with_wrong(folder: Path, text: str) -> Result:
    """Run with a program for root that does something else, and a short deadline."""
    put(folder / "keys/root/sign", f"#!/bin/sh\n{text}\n")
    return generate_here(folder, env={**PHRASES, "SROS_SIGN_TIMEOUT": "1"})


@pytest.mark.parametrize("name", seldom(WRONG, *(WRONG.keys() - {*OFTEN})))
def test_a_program_that_does_not_sign_is_one_line_and_nothing_is_written(
    tmp_path: Path, name: str
) -> None:
    text, why = WRONG[name]
    change_root(tmp_path)
    prepare(tmp_path)
    make_key(tmp_path / "other.pem")
    put(tmp_path / "keys/root/sign", f"#!/bin/sh\n{text}\n")
    before = tree(tmp_path / "keys")
    result = with_wrong(tmp_path, text)
    line, _ = refused(result, f"keys/root/sign: {why}", "left alone: 3 below root")
    advice = "which are not a signature by its ec:prime256v1 key with sha256: check which key"
    assert (advice in line) == ("bytes" in line)
    after = tree(tmp_path / "keys")
    assert {path: state.data for path, state in after.items()} == {
        path: state.data for path, state in before.items()
    }
    fine(with_wrong(tmp_path, OPENSSL))


def test_a_program_that_fails_is_not_called_again_in_the_same_run(copy: Path) -> None:
    master = move_key(copy, "master")
    edit(
        copy,
        lambda keys: keys["nodes"].update(
            {f"client{number}": keys["nodes"]["client"] for number in range(5)}
        ),
    )
    before = tree(copy / "keys")
    put(master / "sign", "#!/bin/sh\necho called >>../../calls\nexit 1\n")
    lines = faults(generate_here(copy), "keys/master/sign: did not sign")
    assert (calls(copy), len(lines)) == (["called"], 1)
    assert tree(copy / "keys").keys() == before.keys()
    put(master / "sign")
    fine(generate_here(copy))


def is_alive(path: Path) -> bool:
    """Tell whether a process whose number is in a file runs."""
    try:
        os.kill(int(path.read_text()), 0)
    except ProcessLookupError:
        return False
    return True


HANGING = "#!/bin/sh\nsleep 1000 &\necho $! >../../pid.new\nmv ../../pid.new ../../pid\nwait\n"


@pytest.mark.slow
def test_what_a_hanging_program_has_started_ends_with_it(copy: Path) -> None:
    root = move_key(copy, "root", HANGING)
    env = {**PHRASES, "SROS_SIGN_TIMEOUT": "1"}
    result = generate_here(copy, "--renew", "root", env=env)
    refused(result, "keys/root/sign: did not sign within 1 seconds")
    poll(lambda: not is_alive(copy / "pid"), lambda: "sleep goes on")
    put(root / "sign")
    fine(generate_here(copy, "--renew", "root", env=env))


def test_control_c_ends_a_hanging_program_and_the_run(copy: Path) -> None:
    move_key(copy, "root", HANGING)
    before = tree(copy / "keys")
    command = (sys.executable, GENERATE, "--renew", "root")
    terminal = Terminal(*command, cwd=copy, env=PHRASES)
    poll((copy / "pid").exists, lambda: terminal.seen)
    os.kill(terminal.process.pid, signal.SIGINT)
    assert (terminal.finish(), terminal.seen) == (130, "")
    poll(lambda: not is_alive(copy / "pid"), lambda: "sleep goes on")
    assert tree(copy / "keys") == before


@pytest.mark.slow
def test_a_list_that_is_merely_due_waits_for_a_program_that_works(copy: Path) -> None:
    edit(copy, lambda keys: keys["master"]["validity"].update(nextUpdate="30d"))
    drop(copy, "keys")
    fine(generate_here(copy))
    master = move_key(copy, "master", "#!/bin/sh\nexit 1\n")
    before = tree(copy / "keys")
    result = generate_here(copy, now=in_days(25))
    refused(result, "keys/master/sign: did not sign")
    assert states(result) == dict.fromkeys(("root", "master", "server", "client"), "kept")
    assert tree(copy / "keys") == before
    refused(
        generate_here(copy, now=in_days(31)), "keys/master/sign: did not sign", "left alone: 2"
    )
    put(master / "sign")
    assert generate_here(copy, now=in_days(25)).returncode == 0


# --- Folders that are not in order -----------------------------------------------------------


def write_weak_key(root: Path) -> None:
    """Put a key that is too short into public.pem."""
    how = ("-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024")
    key = openssl("genpkey", *how)
    (root / "public.pem").write_text(openssl("pkey", "-pubout", stdin=key))


def write_other_key(root: Path) -> None:
    """Put the key of another CA into public.pem."""
    other = root.parent / "master/cert.pem"
    (root / "public.pem").write_text(openssl("x509", "-in", other, "-noout", "-pubkey"))


def write_key(root: Path) -> None:
    """Put a key beside the program."""
    make_key(root / "key.pem")


def put_folder(root: Path) -> None:
    """Put a folder in place of the program."""
    (root / "sign").unlink()
    (root / "sign").mkdir()


def lose_public_key(root: Path) -> None:
    """Leave nothing but the program."""
    for path in root.iterdir():
        if path.name != "sign":
            drop(root, path.name)


DISORDER: dict[str, tuple[Callable[[Path], object], str]] = {
    "both": (write_key, "root/sign: is there beside key.pem: remove the one"),
    "not executable": (
        lambda root: (root / "sign").chmod(0o644),
        "root/sign: is not executable: chmod u+x keys/root/sign",
    ),
    "a folder": (put_folder, "root/sign: is not executable"),
    "group can write": (
        lambda root: (root / "sign").chmod(0o775),
        "root/sign: others can write it, so keys/root/sign is not called: chmod go-w",
    ),
    "others can write": (lambda root: (root / "sign").chmod(0o757), "others can write it"),
    "others can put another": (
        lambda root: root.chmod(0o777),
        "keys/root: others can write it, so keys/root/sign is not called: chmod go-w keys",
    ),
    "no public key": (lose_public_key, "root/public.pem: is missing"),
    "damaged public key": (
        lambda root: (root / "public.pem").write_text("damaged"),
        "root/public.pem: is damaged",
    ),
    "weak public key": (write_weak_key, "root/sign: its key, rsa:1024, is too weak"),
    "other public key": (write_other_key, "root/cert.pem: "),
}


@pytest.mark.parametrize(
    "name",
    seldom(DISORDER, *(DISORDER.keys() - {"both", "not executable", "others can write"})),
)
def test_a_program_that_is_not_in_order_is_one_line_and_is_not_called(
    copy: Path, name: str
) -> None:
    change, why = DISORDER[name]
    root = move_key(copy, "root")
    change(root)
    before = tree(copy / "keys")
    faults(generate_here(copy, "--renew", "root"), why, "left alone: 3 below root")
    assert (calls(copy), tree(copy / "keys")) == ([], before)


@pytest.mark.slow
def test_a_program_that_cannot_be_run_is_one_line(copy: Path) -> None:
    put(move_key(copy, "root") / "sign", "\0\0\0\0")
    before = tree(copy / "keys")
    why = "root/sign: can't be run: Exec format error"
    faults(generate_here(copy, "--renew", "root"), why)
    assert tree(copy / "keys") == before


@pytest.mark.slow
def test_a_program_in_order_is_called(copy: Path) -> None:
    root = move_key(copy, "root")
    fine(generate_here(copy, "--renew", "root"))
    assert len(calls(copy)) == 1
    # A command in a message is run as it stands.
    (root / "sign").chmod(0o666)
    for _ in range(2):
        (line,) = [x for x in generate_here(copy).stderr.splitlines() if "root/sign" in x]
        assert run("sh", "-c", line.rpartition(": ")[2], cwd=copy).returncode == 0
    fine(generate_here(copy))


@pytest.mark.slow
def test_a_program_of_another_user_is_not_called(copy: Path) -> None:
    needs_root()
    root = move_key(copy, "root")
    os.chown(root / "sign", 65534, 65534)
    lines = faults(generate_here(copy), "root/sign: belongs to another user", "left alone")
    assert len(lines) == 2
    os.chown(root / "sign", 0, 0)
    fine(generate_here(copy))


@pytest.mark.slow
def test_a_node_has_no_program(copy: Path) -> None:
    put(copy / "keys/server/sign")
    refused(
        generate_here(copy), "keys/server/sign: only a CA's folder may hold one: remove it"
    )
    drop(copy, "keys/server/sign")
    fine(generate_here(copy))


@pytest.mark.parametrize("text", seldom(("", "0", "soon", "-1", "1e3"), "", "0", "-1", "1e3"))
def test_a_deadline_that_is_no_number_is_an_error_of_use(copy: Path, text: str) -> None:
    before = tree(copy)
    result = generate_here(copy, "--renew", env={**PHRASES, "SROS_SIGN_TIMEOUT": text})
    assert (result.returncode, tree(copy)) == (2, before)
    assert result.stderr.count("\n") == 1 and "SROS_SIGN_TIMEOUT" in result.stderr
    fine(generate_here(copy, env={**PHRASES, "SROS_SIGN_TIMEOUT": "600"}))


# --- A dry run -------------------------------------------------------------------------------

NOT_CALLED = "keys/root/sign: -n does not call it, and does not verify what it would sign"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "arguments"),
    [(["master"], ()), ([], ("--renew", "root", "master")), ([], ("--revoke", "master"))],
    ids=str,
)
def test_a_dry_run_does_not_call_a_program_and_says_so(
    copy: Path, lost: list[str], arguments: tuple[str, ...]
) -> None:
    move_key(copy, "root")
    drop(copy / "keys", *lost)
    before = tree(copy / "keys")
    dry = generate_here(copy, "-n", *arguments)
    assert (calls(copy), tree(copy / "keys")) == ([], before)
    warning = f"{GENERATE.name}: warning: {NOT_CALLED}\n"
    assert dry.stderr.count(warning) == 1
    real = generate_here(copy, *arguments)
    assert (dry.returncode, dry.stdout) == (real.returncode, real.stdout)
    assert dry.stderr.replace(warning, "") == real.stderr
    assert calls(copy)
    # Nothing is to be signed any more.
    assert NOT_CALLED not in generate_here(copy, "-n").stderr


def test_a_dry_run_of_a_new_root_with_a_program_shows_the_tree(tmp_path: Path) -> None:
    change_root(tmp_path)
    root = prepare(tmp_path)
    dry = generate_here(tmp_path, "-n")
    assert {path.name for path in root.iterdir()} == {"public.pem", "sign"}
    assert complaints(dry, "warning", 0) == [NOT_CALLED]
    objects = [
        json.loads(line)
        for line in generate_here(tmp_path, "-n", "--json").stdout.splitlines()
    ]
    for name, number_of_list in (("root", 1), ("master", 1), ("server", None)):
        (found,) = [each for each in objects if each["name"] == name]
        assert (found["state"], found["crlNumber"]) == ("made", number_of_list)
        assert (found["serial"], found["nextUpdate"]) == (None, None)
    assert dry.stdout == fine(generate_here(tmp_path)).stdout


@pytest.mark.slow
def test_no_certificate_of_a_run_has_the_signature_of_a_dry_run(tmp_path: Path) -> None:
    change_root(tmp_path)
    prepare(tmp_path)
    generate_here(tmp_path, "-n")
    fine(generate_here(tmp_path))
    for name in ("root", "master"):
        found = certificate(tmp_path / "keys" / name / "cert.pem")
        found.verify_directly_issued_by(certificate(tmp_path / "keys/root/cert.pem"))
        assert isinstance(found, x509.Certificate)
