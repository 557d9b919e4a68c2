"""Pass phrases: what they encrypt, where they come from, how they are asked for."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from configurations import add_client2, configure, without_ciphers
from running import (
    GENERATE,
    PHRASES,
    Terminal,
    fine,
    generate,
    generate_here,
    openssl,
    refused,
    run,
)

VARIABLES = {
    "root": "SROS_ROOT_PASSPHRASE",
    **dict.fromkeys(["master", "server", "client"], "SROS_PASSPHRASE"),
}
TYPED = {"SROS_ROOT_PASSPHRASE": "correct horse", "SROS_PASSPHRASE": "battery stäple"}


def opens(key: Path, variable: str, phrases: Mapping[str, str]) -> bool:
    """Say whether openssl decrypts a key with a pass phrase, and finds it sound."""
    command = ("openssl", "pkey", "-in", key, "-passin", f"env:{variable}", "-check", "-noout")
    return run(*command, env=phrases).returncode == 0


def terminal(folder: Path, env: Mapping[str, str] | None = None) -> Terminal:
    """Start the script at a terminal."""
    return Terminal(sys.executable, GENERATE, cwd=folder, env=env)


def answer(at: Terminal, variable: str, phrase: str) -> None:
    """Wait for a prompt that names a variable, and type."""
    at.expect(variable)
    at.type(f"{phrase}\n")


# --- What they encrypt -----------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIABLES)
def test_a_key_is_pkcs8_with_aes_256_cbc(made: Path, name: str) -> None:
    key = made / "keys" / name / "key.pem"
    assert key.read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    structure = openssl("asn1parse", "-in", key)
    for part in (":PBES2", ":PBKDF2", ":hmacWithSHA256", ":aes-256-cbc"):
        assert part in structure
    variable = VARIABLES[name]
    assert opens(key, variable, PHRASES)
    assert not opens(key, variable, {**PHRASES, variable: "wrong"})


def test_an_entry_without_a_cipher_has_a_plain_key_and_asks_for_nothing(
    tmp_path: Path,
) -> None:
    configure(tmp_path, without_ciphers)
    fine(generate_here(tmp_path, env=None))
    for name in VARIABLES:
        key = tmp_path / "keys" / name / "key.pem"
        assert key.read_text().startswith("-----BEGIN PRIVATE KEY-----\n")
        assert key.stat().st_mode & 0o777 == 0o600
        openssl("pkey", "-in", key, "-check", "-noout")


def test_a_plain_key_is_kept_when_its_entry_gets_a_cipher_and_the_reverse_is_an_error(
    tmp_path: Path,
) -> None:
    configure(tmp_path, without_ciphers)
    assert generate_here(tmp_path, env=None).returncode == 0
    configure(tmp_path)
    assert generate_here(tmp_path, env=None).returncode == 0
    shutil.rmtree(tmp_path / "keys/server")
    assert generate_here(tmp_path).returncode == 0
    configure(tmp_path, without_ciphers)
    (tmp_path / "keys/server/cert.pem").unlink()  # now the key is needed
    refused(generate_here(tmp_path), "keys/server/key.pem")


# --- From the environment --------------------------------------------------------------------


@pytest.mark.parametrize("missing", PHRASES)
def test_without_a_pass_phrase_and_a_terminal_nothing_is_written(
    tmp_path: Path, missing: str
) -> None:
    configure(tmp_path)
    phrases = {name: phrase for name, phrase in PHRASES.items() if name != missing}
    refused(generate(tmp_path, env=phrases), missing)
    assert os.listdir(tmp_path) == ["sros_config.yml"]


@pytest.mark.parametrize("variable", PHRASES)
@pytest.mark.parametrize("phrase", ["", "x" * 1024], ids=["empty", "too long"])
def test_an_unusable_pass_phrase_is_an_error_and_nothing_is_written(
    tmp_path: Path, variable: str, phrase: str
) -> None:
    configure(tmp_path)
    refused(generate_here(tmp_path, env={**PHRASES, variable: phrase}), variable)
    assert os.listdir(tmp_path) == ["sros_config.yml"]


def test_the_longest_pass_phrase_is_accepted(tmp_path: Path) -> None:
    configure(tmp_path)
    phrases = {**PHRASES, "SROS_PASSPHRASE": "x" * 1023}
    assert generate(tmp_path, env=phrases).returncode == 0
    assert opens(tmp_path / "keys/server/key.pem", "SROS_PASSPHRASE", phrases)


def test_no_pass_phrase_for_a_new_node_is_an_error(copy: Path) -> None:
    add_client2(copy)
    refused(generate(copy, env={"SROS_ROOT_PASSPHRASE": "root"}), "SROS_PASSPHRASE")
    assert not (copy / "keys/client2").exists()


@pytest.mark.parametrize(
    ("variable", "names"),
    [
        ("SROS_ROOT_PASSPHRASE", ["keys/root/key.pem", "root"]),
        ("SROS_PASSPHRASE", ["keys/master/key.pem", "master"]),
    ],
)
def test_a_wrong_pass_phrase_gives_one_line_for_the_ca_and_one_for_everything_below_it(
    copy: Path, variable: str, names: list[str]
) -> None:
    add_client2(copy)
    refused(generate_here(copy, env={**PHRASES, variable: "wrong"}), *names)
    assert not (copy / "keys/client2").exists()
    fine(generate_here(copy))


def test_a_wrong_one_for_a_node_is_a_line_for_the_node(copy: Path) -> None:
    shutil.move(copy / "keys/master/key.pem", copy / "stick.pem")
    result = generate_here(copy, env={"SROS_PASSPHRASE": "wrong"})
    refused(result, "keys/server/key.pem", "keys/client/key.pem")


# --- Typed -----------------------------------------------------------------------------------


def test_each_is_asked_for_twice_for_new_keys_and_never_shown(tmp_path: Path) -> None:
    configure(tmp_path)
    at = terminal(tmp_path)
    for variable, phrase in TYPED.items():
        answer(at, variable, phrase)
        answer(at, variable, phrase)
    assert at.finish() == 0
    for variable, phrase in TYPED.items():
        assert at.seen.count(variable) == 2
        assert phrase not in at.seen
    for name, variable in VARIABLES.items():
        assert opens(tmp_path / "keys" / name / "key.pem", variable, TYPED)

    add_client2(tmp_path)  # what was typed and what is set are the same text
    assert generate_here(tmp_path, env=TYPED).returncode == 0


def test_one_that_is_set_is_not_asked_for(tmp_path: Path) -> None:
    configure(tmp_path)
    at = terminal(tmp_path, {"SROS_PASSPHRASE": "sros"})
    answer(at, "SROS_ROOT_PASSPHRASE", "root")
    answer(at, "SROS_ROOT_PASSPHRASE", "root")
    assert at.finish() == 0
    assert "SROS_PASSPHRASE" not in at.seen


def test_a_second_run_at_a_terminal_does_not_ask(copy: Path) -> None:
    at = terminal(copy)
    assert at.finish() == 0
    assert "PASSPHRASE" not in at.seen


def test_one_that_only_decrypts_is_asked_for_once(copy: Path) -> None:
    (copy / "keys/server/cert.pem").unlink()
    at = terminal(copy)
    answer(at, "SROS_PASSPHRASE", "sros")  # for master's key, and for server's
    assert at.finish() == 0
    assert at.seen.count("PASSPHRASE") == 1
    assert (copy / "keys/server/cert.pem").exists()


def test_a_new_node_asks_for_its_own_and_not_for_the_roots(copy: Path) -> None:
    add_client2(copy)
    at = terminal(copy)
    answer(at, "SROS_PASSPHRASE", "sros")
    answer(at, "SROS_PASSPHRASE", "sros")
    assert at.finish() == 0
    assert at.seen.count("PASSPHRASE") == 2
    assert opens(copy / "keys/client2/key.pem", "SROS_PASSPHRASE", PHRASES)


def test_a_wrong_one_that_is_typed_makes_nothing(copy: Path) -> None:
    add_client2(copy)
    at = terminal(copy)
    answer(at, "SROS_PASSPHRASE", "wrong")
    answer(at, "SROS_PASSPHRASE", "wrong")
    assert at.finish() == 1
    assert "error: keys/master/key.pem: " in at.seen
    assert not (copy / "keys/client2").exists()


def test_two_that_differ_are_an_error_and_nothing_is_written(tmp_path: Path) -> None:
    configure(tmp_path)
    at = terminal(tmp_path, {"SROS_PASSPHRASE": "sros"})
    for phrase in ("root", "differs"):
        answer(at, "SROS_ROOT_PASSPHRASE", phrase)
    assert at.finish() == 1
    assert ": error: SROS_ROOT_PASSPHRASE" in at.seen
    assert os.listdir(tmp_path) == ["sros_config.yml"]


def test_an_empty_one_is_an_error(tmp_path: Path) -> None:
    configure(tmp_path)
    at = terminal(tmp_path, {"SROS_PASSPHRASE": "sros"})
    answer(at, "SROS_ROOT_PASSPHRASE", "")
    answer(at, "SROS_ROOT_PASSPHRASE", "")
    assert at.finish() == 1
    assert ": error: SROS_ROOT_PASSPHRASE" in at.seen
    assert os.listdir(tmp_path) == ["sros_config.yml"]


def test_ctrl_c_at_a_prompt_ends_quietly(tmp_path: Path) -> None:
    configure(tmp_path)
    at = terminal(tmp_path)
    at.expect("SROS_ROOT_PASSPHRASE")
    at.type("half\x03")
    assert at.finish() == 130
    assert len(at.seen.strip().splitlines()) == 1, at.seen
    assert os.listdir(tmp_path) == ["sros_config.yml"]


def test_the_end_of_input_at_a_prompt_is_an_error(tmp_path: Path) -> None:
    configure(tmp_path)
    at = terminal(tmp_path)
    at.expect("SROS_ROOT_PASSPHRASE")
    at.type("\x04")
    assert at.finish() == 1
    assert ": error: SROS_ROOT_PASSPHRASE" in at.seen
    assert os.listdir(tmp_path) == ["sros_config.yml"]
