"""docs/requirements.md: nothing that is required goes without a test."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.support import ROOT


def test_each_requirement_is_in_a_docstring() -> None:
    """Each id of docs/requirements.md stands in the docstring of a test."""
    page = (ROOT / "docs" / "requirements.md").read_text(encoding="utf-8")
    required = {found for cell in re.findall(r"^\| ([RL]\d.*?) \|", page, re.MULTILINE) for found in cell.split(", ")}
    assert {"R1", "R14", "R18", "L15"} <= required
    proven = set(re.findall(r"\b[RL]\d+\b", "\n".join(docstrings_of_tests())))
    assert required - proven == set()


def docstrings_of_tests() -> Iterator[str]:
    """Give the docstring of each test function."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield ast.get_docstring(node) or ""
