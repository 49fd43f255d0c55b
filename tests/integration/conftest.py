"""What the tests that start our programs stand on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.orchestrated import Orchestration
from tests.support import Lock
from tests.terminal import GUARD, PROBES, Opened, Terminal, shell_on_terminal


@pytest.fixture
def open_shell(lock: Lock, require: Callable[[str], str], tmp_path: Path) -> Iterator[Opened]:
    """Give `open_shell("bash", guard)`: a shell in which `$G` is the guard (or nothing) and `$PY`, `$P` find our probes."""
    with ExitStack() as opened:

        def open_one(shell: str = "bash", guard: str = GUARD, *, columns: int = 80, cwd: Path = tmp_path) -> Terminal:
            env = lock.env(G=guard, PY=sys.executable, P=str(PROBES))
            return opened.enter_context(shell_on_terminal(require(shell), env, columns=columns, cwd=cwd))

        yield open_one


@pytest.fixture
def o(lock: Lock, tmp_path: Path) -> Orchestration:
    """Give an orchestration on a lock of its own."""
    return Orchestration(lock, tmp_path)
