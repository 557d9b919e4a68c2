"""Configurations: the shipped one, changed.

configure(folder)  # as it is shipped
edit(folder, lambda keys: keys["nodes"]["client"].pop("cipher"))  # with a change
edit(folder, add_master2)  # with a second CA below root, and nodes below it
edit(folder, trust("root", "root2"))  # with a second hierarchy, which all nodes trust
uncomment(folder, "client2")  # with an example that is commented out
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import yaml
from running import ROOT

Keys = dict[str, Any]  # what stands under keys


def configure(folder: Path, change: Callable[[dict[str, object]], None] | None = None) -> Path:
    """Put the shipped configuration into a folder, perhaps changed, its merges written out."""
    path = folder / "sros_config.yml"
    if change is None:
        shutil.copy(ROOT / "sros_config.yml", path)
    else:
        document = yaml.safe_load((ROOT / "sros_config.yml").read_text())
        # A round trip through text without aliases: a change in one entry stays in that entry.
        document = yaml.safe_load(yaml.dump(document, Dumper=PlainDumper, sort_keys=False))
        change(document)
        path.write_text(yaml.dump(document, Dumper=PlainDumper, sort_keys=False))
    return path


class PlainDumper(yaml.SafeDumper):
    """Writes every mapping out instead of naming it."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def edit(folder: Path, change: Callable[[Keys], object]) -> None:
    """Put the shipped configuration into a folder with a change to what stands under keys."""

    def apply(document: dict[str, object]) -> None:
        change(cast(Keys, document["keys"]))

    configure(folder, apply)


def without_ciphers(document: dict[str, object]) -> None:
    """Leave no key encrypted."""
    entries = cast(Keys, document["keys"])
    for entry in (entries["root"], entries["master"], *entries["nodes"].values()):
        del entry["cipher"], entry["passphrase"]


def add_client2(folder: Path) -> None:
    """Add a node like client to the configuration."""
    edit(folder, lambda keys: keys["nodes"].update(client2=keys["nodes"]["client"]))


def add_master(keys: Keys, name: str, issuer: str = "root") -> None:
    """Add a CA like master, with a server and a client below it that bear its last letter."""
    keys[name] = {**keys["master"], "issuer": issuer}
    for node in ("server", "client"):
        keys["nodes"][node + name[-1]] = {**keys["nodes"][node], "issuer": name}


def add_master2(keys: Keys) -> None:
    """Add master2, server2 and client2 below root."""
    add_master(keys, "master2")


def add_root2(keys: Keys) -> None:
    """Add root2, and below it master2, server2 and client2."""
    keys["root2"] = keys["root"]
    add_master(keys, "master2", "root2")


def trust(*anchors: str) -> Callable[[Keys], None]:
    """Return the change by which all nodes of two hierarchies trust some anchors."""

    def change(keys: Keys) -> None:
        add_root2(keys)
        for node in keys["nodes"].values():
            node["trust"] = ", ".join(anchors)

    return change


# A node with all its lines, or a line of master's extensions.
EXAMPLE = re.compile(r"^#    (?:  )?([\w-]+):.*\n(?:#      .*\n)*", re.MULTILINE)


def examples(text: str) -> dict[str, str]:
    """Return the lines of each commented-out example of a configuration, by its name."""
    return {found[1]: found[0] for found in EXAMPLE.finditer(text)}


def uncomment(folder: Path, *names: str) -> None:
    """Remove the comment sign, and nothing else, from each line of some examples."""
    path = folder / "sros_config.yml"
    text = path.read_text()
    for name in names:
        lines = examples(text)[name]
        text = text.replace(lines, re.sub("^#", "", lines, flags=re.MULTILINE))
    path.write_text(text)
