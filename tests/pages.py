"""The pages that people read: the README, and the pages under tests/."""

from __future__ import annotations

import re

from running import ROOT

README = "README.md"
PATHS = [README, *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/**/*.md"))]
PAGES = {path: (ROOT / path).read_text() for path in PATHS}
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the kind and the content of each block of a page, or of a part of one."""
    return [
        (kind, re.sub(f"^{indent}", "", content, flags=re.MULTILINE))
        for indent, kind, content in BLOCK.findall(text)
    ]


def sections(path: str) -> dict[str, str]:
    """Return the sections of a page, by their titles."""
    return dict(part.split("\n", 1) for part in PAGES[path].split("\n## ")[1:])


def block(path: str, marker: str, kind: str = "sh") -> str:
    """Return the first block of a kind on a page in which a marker stands."""
    return next(text for each, text in blocks(PAGES[path]) if each == kind and marker in text)


def transcript(path: str, marker: str) -> str:
    """Return the text block that follows the first shell block in which a marker stands."""
    found = blocks(PAGES[path])
    place = found.index(("sh", block(path, marker)))
    kind, text = found[place + 1]
    assert kind == "text"
    return text
