"""What the end-to-end tests stand on: a project with npm scripts, as a user has one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.project import Project, project_in
from tests.support import PATIENCE_SECONDS, Lock

HERE = Path(__file__).resolve().parent
SLOW_SECONDS = (
    10 * PATIENCE_SECONDS
)  # other people's programs, one after the other, on a machine that is ten times as slow


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test here that has no time of its own the time that other people's programs need."""
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))


@pytest.fixture
def project(tmp_path: Path, lock: Lock, require: Callable[[str], str]) -> Iterator[Project]:
    """Give a copy of the example project."""
    for tool in ("node", "git"):
        require(tool)
    with project_in(tmp_path / "project", lock, require("npm")) as found:
        yield found
