"""What every test stands on: the tools it drives, and an environment and state directory of its own."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support import Lock, lock_in

# Whoever started us may have had signals ignored (nohup, `&` in a script) or blocked; tests say themselves what is.
for _number in (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCONT,
):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, ())

IN_CI = os.environ.get("CI") == "true"

# How long anything takes here says something of the machine only.
settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("local"), derandomize=True)
settings.load_profile("ci" if IN_CI else "local")


def pytest_configure(config: pytest.Config) -> None:
    """Give each of several workers a session: what is left of a job is looked for in the job's, where nobody else may be."""
    if hasattr(config, "workerinput"):
        os.setsid()


def require_tool(name: str) -> str:
    """Return the path of a program that a test drives; without it skip the test, in CI fail it."""
    path = shutil.which(name)
    if path is None and IN_CI:
        pytest.fail(f"{name} is missing; .ci/run must install it", pytrace=False)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


@pytest.fixture(scope="session")
def require() -> Callable[[str], str]:
    """Give `require("npm")`: the program's path, or a skip, or in CI a failure."""
    return require_tool


def forget_surroundings(patch: pytest.MonkeyPatch) -> None:
    """Keep the lease and npm that may run around the tests out of them."""
    for name in list(os.environ):
        if name.startswith(("MAINTLOCK_", "npm_")):
            patch.delenv(name)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep what may run around the tests out of them, and the user's own lock untouched."""
    forget_surroundings(monkeypatch)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg-state"))


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[Lock]:
    """Give a lock in a state directory of the test's own."""
    with lock_in(tmp_path / "state") as found:
        yield found
