"""Configurations: the shipped one, changed.

configure(folder)  # as it is shipped
edit(folder, lambda keys: keys["nodes"]["client"].pop("cipher"))  # with a change
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


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Put the shipped configuration into a folder with a change to what stands under keys."""

    def apply(document: dict[str, object]) -> None:
        change(cast(dict[str, Any], document["keys"]))

    configure(folder, apply)


def without_ciphers(document: dict[str, object]) -> None:
    """Leave no key encrypted."""
    entries = cast(dict[str, Any], document["keys"])
    for entry in (entries["root"], entries["master"], *entries["nodes"].values()):
        del entry["cipher"], entry["passphrase"]


def add_client2(folder: Path) -> None:
    """Add a node like client to the configuration."""
    edit(folder, lambda keys: keys["nodes"].update(client2=keys["nodes"]["client"]))


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
