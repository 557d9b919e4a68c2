"""How the code reads, as far as it can be measured: short functions, small classes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from running import CLIENT, GENERATE, ROOT, SERVER

MAX_LINES = 40  # of a function
MAX_SHARE = 7  # a class is at most one seventh of key generation
FILES = [GENERATE, SERVER, CLIENT, *sorted(ROOT.glob("tests/*.py"))]


def lines_of(node: ast.stmt) -> int:
    """Return how many lines a definition takes."""
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def functions_over(text: str, most: int) -> list[str]:
    """Return the functions that take more lines than that."""
    functions = [
        x
        for x in ast.walk(ast.parse(text))
        if isinstance(x, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    return [each.name for each in functions if lines_of(each) > most]


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_no_function_is_longer_than_a_screen(file: Path) -> None:
    assert functions_over(file.read_text(), MAX_LINES) == []


def test_a_longer_function_would_be_noticed() -> None:
    body = "    pass\n" * MAX_LINES
    assert functions_over(f"def long():\n{body}", MAX_LINES) == ["long"]
    assert functions_over(f"def fits():\n{body[9:]}", MAX_LINES) == []


def test_no_class_of_key_generation_takes_more_than_a_seventh_of_it() -> None:
    text = GENERATE.read_text()
    classes = [each for each in ast.walk(ast.parse(text)) if isinstance(each, ast.ClassDef)]
    assert classes
    assert [
        each.name for each in classes if lines_of(each) * MAX_SHARE > len(text.splitlines())
    ] == []
