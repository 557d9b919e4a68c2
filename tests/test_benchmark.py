"""The benchmark runs, compares every figure with another, and fails for a broken script."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from running import ROOT, run

pytestmark = pytest.mark.slow


def benchmark(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run it with little to do."""
    return run(sys.executable, ROOT / "tests/benchmark.py", "--quick", *arguments)


def rows(text: str) -> dict[str, list[tuple[str, float, float]]]:
    """What was measured: of each program its figure and its ratio to the script's."""
    found: dict[str, list[tuple[str, float, float]]] = {}
    for line in re.findall(r"^\| (.*) \|$", text, re.MULTILINE):
        title, program, figure, ratio = (cell.strip() for cell in line.split("|"))
        if title != "measured" and not title.startswith("---"):
            title = title or [*found][-1]
            number = re.fullmatch(r"([0-9][0-9.,]*) (ms|µs|s|/s|KiB|MiB)", figure)
            assert number, line
            found.setdefault(title, []).append(
                (program, float(number[1].replace(",", "")), float(ratio))
            )
    return found


def test_every_figure_has_a_peer_and_the_picture_is_well_formed(tmp_path: Path) -> None:
    result = benchmark("--svg", tmp_path / "speed.svg")
    assert (result.returncode, "error" in result.stderr) == (0, False), result.stderr
    measures = rows(result.stdout)
    for title, programs in measures.items():
        first, *peers = programs
        assert first[0].startswith("simple_") and first[2] == 1 and peers, title
        assert all(figure > 0 for _, figure, _ in programs), (title, programs)
    drawing = ElementTree.parse(tmp_path / "speed.svg").getroot()
    bars = [
        each for each in drawing.iter() if each.tag.endswith("rect") and "class" in each.attrib
    ]
    assert len(bars) == sum(map(len, measures.values()))
    titles = [each.text for each in drawing.iter() if each.attrib.get("class") == "title"]
    assert len(titles) == len(measures)


@pytest.mark.parametrize(
    ("script", "old", "new", "part"),
    [
        (
            "simple_key_generation.py",
            "fullchain = cert_pem + issuer.intermediates_pem",
            "fullchain = cert_pem",
            "issuing",
        ),
        (
            "simple_key_generation.py",
            "bundles.append(trusted.lists)",
            "pass",
            "issuing",
        ),
        ("simple_https_server.py", 'line = b"hello\\n"', 'line = b"hallo\\n"', "exchange"),
        ("simple_https_server.py", "sendall(line)", 'sendall(b"hello\\n")', "echo"),
    ],
)
def test_a_broken_script_fails_it(
    tmp_path: Path, script: str, old: str, new: str, part: str
) -> None:
    for each in ROOT.glob("simple_*.py"):
        shutil.copy(each, tmp_path)
    text = (ROOT / script).read_text()
    assert text.count(old) == 1
    (tmp_path / script).write_text(text.replace(old, new))
    result = benchmark("--scripts", tmp_path, part)
    assert result.returncode == 1, result.stdout
    assert "benchmark.py: error: " in result.stderr and "Traceback" not in result.stderr


def test_the_page_shows_what_the_benchmark_measures() -> None:
    page = (ROOT / "tests/speed.md").read_text()
    drawing = ElementTree.parse(ROOT / "tests/benchmark.svg").getroot()
    titles = [
        str(x.text).rpartition(" (")[0]
        for x in drawing.iter()
        if x.attrib.get("class") == "title"
    ]
    assert [*rows(page)] == titles
    assert "benchmark.py --svg tests/benchmark.svg" in page
