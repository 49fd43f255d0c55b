"""What the end-to-end tests stand on: a project with npm scripts, as a user has one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.project import Project, project_in
from tests.support import Lock


@pytest.fixture
def project(tmp_path: Path, lock: Lock, require: Callable[[str], str]) -> Iterator[Project]:
    """Give a copy of the example project."""
    for tool in ("node", "git"):
        require(tool)
    with project_in(tmp_path / "project", lock, require("npm")) as found:
        yield found
