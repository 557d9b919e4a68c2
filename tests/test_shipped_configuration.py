"""The shipped sros_config.yml: every example works when its comment signs are removed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from configurations import EXAMPLE, configure, examples, uncomment
from exchanges import SERVED, Serve, answered, client
from running import PHRASES, ROOT, fine, generate, generate_here, openssl, refused

TEXT = (ROOT / "sros_config.yml").read_text()
EXAMPLES = [name for name in examples(TEXT) if name != "nameConstraints"]
ALL_PHRASES = PHRASES | {"SROS_ARM_PASSPHRASE": "of its own"}

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
        result = fine(generate_here(copy, env=ALL_PHRASES))
        for name in names:
            assert re.search(rf"^ +{name} +made ", result.stdout, re.MULTILINE), result.stdout
        return copy / "keys"

    return run_with


def test_each_comment_that_is_yaml_belongs_to_an_example_that_is_tested_here() -> None:
    assert set(examples(TEXT)) == {*CLIENTS, "talker", "nameConstraints"}
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
    answered(client(server.port, keys / name, env=CLIENTS[name]))
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
        answered(client(server.port, keys / caller, "--host", host))
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
        answered(client(server.port, keys / name, env=CLIENTS.get(name, PHRASES)))
    assert server.printed(SERVED * len(EXAMPLES))


# --- Names that master can't sign ------------------------------------------------------------


@pytest.fixture
def limited(tmp_path: Path) -> Path:
    """A new folder in which the names that master can sign are limited."""
    configure(tmp_path)
    uncomment(tmp_path, "nameConstraints")
    fine(generate_here(tmp_path))
    return tmp_path


def test_all_that_is_shipped_works_below_a_master_with_limits(
    limited: Path, serve: Serve
) -> None:
    uncomment(limited, *EXAMPLES)
    fine(generate(limited, env=ALL_PHRASES))
    keys = limited / "keys"
    assert "Permitted:" in openssl("x509", "-in", keys / "master/cert.pem", "-noout", "-text")
    for server in ("server", "talker"):
        port = serve("-k", str(keys / server)).port
        for name in ("client", *EXAMPLES):
            answered(client(port, keys / name, env=CLIENTS.get(name, PHRASES)))


def add_robot(folder: Path, names: str) -> None:
    """Add a node with some names to the configuration."""
    extensions = f'{{<<: *client-extensions, subjectAltName: "{names}"}}'
    with (folder / "sros_config.yml").open("a") as file:
        file.write(f"\n    robot: {{<<: *client, extensions: {extensions}}}\n")


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ("IP:10.0.0.1", "permitted subtree violation"),
        ("DNS:robots.com", "excluded subtree violation"),
    ],
)
def test_a_master_with_limits_signs_no_other_name(limited: Path, names: str, why: str) -> None:
    add_robot(limited, names)
    refused(generate_here(limited), f"keys/robot/cert.pem: {why}")
    assert not (limited / "keys/robot").exists()


def test_a_master_with_limits_signs_the_names_within_them(limited: Path) -> None:
    add_robot(limited, "DNS:robots.example, IP:127.0.0.2")
    fine(generate_here(limited))
    assert (limited / "keys/robot").exists()
