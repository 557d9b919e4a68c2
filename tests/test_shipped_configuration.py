"""The shipped sros_config.yml: every example works when its comment signs are removed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import PHRASES, ROOT, Server, client, generate
from folders import EXAMPLE, examples, uncomment

Serve = Callable[..., Server]

TEXT = (ROOT / "sros_config.yml").read_text()
EXAMPLES = list(examples(TEXT))
ALL_PHRASES = PHRASES | {"SROS_ARM_PASSPHRASE": "of its own"}
ANSWERED = (0, "connected\nread: [hello]\n", "")
SERVED = "accepted\nread: [hola]\nclosed\n"

# The environment in which each example's key can be used, besides talker's.
CLIENTS = {
    "client2": {"SROS_PASSPHRASE": "sros"},
    "legacy": {"SROS_PASSPHRASE": "sros"},
    "camera": {},
    "arm": {"SROS_PASSPHRASE": "of its own"},
}


@pytest.fixture
def create(copy: Path) -> Callable[..., Path]:
    """Remove the comment signs of some examples and run the script; return the keys folder."""

    def run_with(*names: str) -> Path:
        uncomment(copy, *names)
        result = generate(copy, env=ALL_PHRASES)
        assert (result.returncode, result.stderr) == (0, "")
        for name in names:
            assert re.search(rf"^ +{name} +made ", result.stdout, re.MULTILINE), result.stdout
        return copy / "keys"

    return run_with


def test_each_comment_that_is_yaml_belongs_to_an_example_that_is_tested_here() -> None:
    assert set(EXAMPLES) == {*CLIENTS, "talker"}
    rest = EXAMPLE.sub("", TEXT)
    assert not re.search(r"^#    \S+:|^#      \S+:|<<: \*client, ", rest, re.MULTILINE), rest


def test_the_file_as_shipped_defines_four_entries() -> None:
    keys = yaml.safe_load(TEXT)["keys"]
    assert list(keys) == ["root", "master", "nodes"]
    assert list(keys["nodes"]) == ["server", "client"]


@pytest.mark.parametrize("name", CLIENTS)
def test_an_example_is_accepted_as_a_client(
    create: Callable[..., Path], serve: Serve, name: str
) -> None:
    keys = create(name)
    server = serve("-k", str(keys / "server"))
    result = client(server.port, keys / name, env=CLIENTS[name])
    assert (result.returncode, result.stdout, result.stderr) == ANSWERED
    assert server.printed(SERVED)


def test_the_key_of_arm_has_a_pass_phrase_of_its_own(
    create: Callable[..., Path], serve: Serve
) -> None:
    keys = create("arm")
    server = serve("-k", str(keys / "server"))
    result = client(server.port, keys / "arm", env={"SROS_PASSPHRASE": "sros"})
    assert (result.returncode, result.stdout) == (1, "")
    assert "SROS_PASSPHRASE is wrong" in result.stderr


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_talker_serves_and_calls(create: Callable[..., Path], serve: Serve, host: str) -> None:
    keys = create("talker")
    server = serve("-k", str(keys / "talker"))
    for caller in ("client", "talker"):
        result = client(server.port, keys / caller, "--host", host)
        assert (result.returncode, result.stdout, result.stderr) == ANSWERED
    assert server.printed(SERVED * 2)


def test_an_example_that_is_only_a_client_does_not_serve(
    create: Callable[..., Path], serve: Serve
) -> None:
    keys = create("client2")
    server = serve("-k", str(keys / "client2"))
    result = client(server.port, keys / "client")
    assert (result.returncode, result.stdout) == (1, "")
    assert "unsuitable certificate purpose" in result.stderr


def test_all_examples_work_together(create: Callable[..., Path], serve: Serve) -> None:
    keys = create(*EXAMPLES)
    server = serve("-k", str(keys / "talker"))
    for name in EXAMPLES:
        result = client(server.port, keys / name, env=CLIENTS.get(name, PHRASES))
        assert (result.returncode, result.stdout, result.stderr) == ANSWERED
    assert server.printed(SERVED * len(EXAMPLES))
