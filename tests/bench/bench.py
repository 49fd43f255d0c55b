"""What the rows share: the wheel installed as a user would, the probe, and a place to work in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

from tests.bench.row import NotMeasuredError

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "bench"
NOT_A_USERS = ("PYTHON", "MAINTLOCK", "npm_")


@dataclass(frozen=True)
class Bench:
    """One run of the benchmarks."""

    directory: Path
    prefix: Path
    probe: Path
    is_quick: bool

    @property
    def python(self) -> Path:
        """The interpreter that the wheel is installed for: `python -c pass` is the measure of all starts."""
        return self.prefix / "bin" / "python"

    @property
    def wrap(self) -> Path:
        """`maintlock-wrap` as the wheel installs it."""
        return self.prefix / "bin" / "maintlock-wrap"

    @property
    def maintlock(self) -> Path:
        """`maintlock` as the wheel installs it."""
        return self.prefix / "bin" / "maintlock"

    def rounds(self, usual: int) -> int:
        """Return how often to measure something."""
        return max(3, usual // 5) if self.is_quick else usual

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give an empty directory, on the filesystem of the checkout, that is the working directory of a row's programs."""
        with tempfile.TemporaryDirectory(dir=self.directory, prefix="row-") as name:
            yield Path(name)

    def env(self, scratch: Path) -> dict[str, str]:
        """Return a user's environment: nothing of Python's or ours but the state directory, and a short PATH."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(NOT_A_USERS)}
        return {**kept, "PATH": f"{self.prefix / 'bin'}:/usr/bin:/bin", "MAINTLOCK_STATE_DIR": str(scratch / "state")}


@contextmanager
def prepared(*, is_quick: bool) -> Iterator[Bench]:
    """Build the wheel, install it with its dependencies into a virtual environment, and compile the probe.

    All offline. Everything is byte-compiled, as pip leaves it: an editable checkout need not be, and would start later.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD, prefix="run-") as name:
        directory = Path(name)
        bench = Bench(directory=directory, prefix=_installed(directory), probe=_probe(directory), is_quick=is_quick)
        os.sync()  # or the first rows compete with the disk for what was just installed
        yield bench


def _installed(directory: Path) -> Path:
    prefix = directory / "venv"
    venv.create(prefix, symlinks=True, with_pip=False)
    _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory))
    (wheel,) = directory.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", str(prefix / "bin" / "python")]
    _run(*pip, "install", "--quiet", "--no-deps", "--no-index", "--compile", str(wheel))
    _copy_dependencies("maintlock", prefix / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages")
    return prefix


def tool(name: str) -> str:
    """Return the path of a program that a row needs.

    Raises:
        NotMeasuredError: It is not there.
    """
    path = shutil.which(name)
    if path is None:
        raise NotMeasuredError(f"{name} is not installed here")
    return path


def _copy_dependencies(name: str, target: Path) -> None:
    """Copy what a package needs from the environment that runs us, with its compiled files, where pip would put it."""
    for text in distribution(name).requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            _copy_package(requirement.name, target)
            _copy_dependencies(requirement.name, target)


def _copy_package(name: str, target: Path) -> None:
    for file in distribution(name).files or ():
        source = Path(str(file.locate()))
        if ".." not in file.parts and source.exists():
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / file)  # with its time: a compiled file names that of its source


def _probe(directory: Path) -> Path:
    probe = directory / "probe"
    compiler = shutil.which("cc")
    for static in (["-static"], []) if compiler else ():
        argv = [compiler, "-O2", *static, "-o", probe, SOURCES / "probe.c"]
        if subprocess.run(argv, capture_output=True).returncode == 0:
            return probe
    shutil.copy(SOURCES / "probe.sh", probe)
    probe.chmod(0o755)
    return probe


def _run(*argv: str) -> None:
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stdout}{done.stderr}")
