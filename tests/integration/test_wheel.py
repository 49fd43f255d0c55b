"""The wheel, installed away from the checkout: what a user gets is what is tested."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

from maintlock.completion import SHELLS

CHECKOUT = Path(__file__).resolve().parents[2]
PROGRAMS = ("maintlock", "maintlock-wrap", "maintlock-exporter")
START_FILES = ("maintlock", "maintlock-wrap")
ENTRIES = {path.name for path in (CHECKOUT / "wrappers" / "bin").iterdir()}
WHERE = (
    "import pathlib, maintlock, maintlock_exporter as exporter;"
    "print(*(p for m in (maintlock, exporter) for p in [pathlib.Path(m.__file__).parent]), sep='\\n')"
)

# One worker builds and installs once for all of these tests.
pytestmark = pytest.mark.xdist_group("wheel")


@dataclass(frozen=True)
class Installation:
    """A fresh virtual environment with maintlock in it."""

    prefix: Path

    def run(self, program: str, *args: str) -> subprocess.CompletedProcess[str]:
        """Run one of its programs from outside the checkout, as a user without our settings would."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment["PATH"] = f"{self.prefix / 'bin'}:{os.environ['PATH']}"
        return subprocess.run(
            [self.prefix / "bin" / program, *args], cwd=self.prefix, env=environment, capture_output=True, text=True
        )

    def packages(self) -> list[Path]:
        """Return the directories that it imports maintlock and maintlock_exporter from."""
        found = self.run("python", "-c", WHERE)
        assert found.returncode == 0, found.stderr
        return [Path(line) for line in found.stdout.splitlines()]


def install(prefix: Path, *what: str) -> Installation:
    """Make a virtual environment, install offline, and let it borrow the dependencies that run these tests."""
    venv.create(prefix, symlinks=True)
    site_packages = prefix / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages / "zz-borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(prefix / "bin" / "python"), "install", "--quiet"]
    # --ignore-installed: the borrowed environment has an editable maintlock, which is not ours to replace.
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed"]
    done = subprocess.run([*pip, *offline, *what], cwd=prefix, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Installation(prefix)


def files_below(top: Path) -> dict[Path, bytes]:
    """Return every file below a directory, by relative path."""
    return {
        path.relative_to(top): path.read_bytes()
        for path in top.rglob("*")
        if path.is_file() and not {"__pycache__", "node_modules"} & set(path.parts)
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel."""
    directory = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    done = subprocess.run(build, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Install the wheel."""
    return install(tmp_path_factory.mktemp("wheel"), str(wheel))


@pytest.fixture(scope="module")
def editable(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Install the checkout as `pip install -e` does."""
    return install(tmp_path_factory.mktemp("editable"), "--editable", str(CHECKOUT))


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_tells_the_version_of_the_wheel(installed: Installation, wheel: Path, program: str) -> None:
    """`--version` prints the version that the wheel bears, and nothing on stderr."""
    told = installed.run(program, "--version")

    assert (told.returncode, told.stderr) == (0, "")
    assert wheel.name.split("-")[1] in told.stdout.split()


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_explains_itself(installed: Installation, program: str) -> None:
    """`--help` succeeds and names the program."""
    told = installed.run(program, "--help")

    assert (told.returncode, told.stderr) == (0, "")
    assert program in told.stdout


def test_npm_shell_is_a_shell(installed: Installation) -> None:
    """The entry for npm's `script-shell` comes with the wheel and runs what is no script of npm's like sh."""
    told = installed.run("maintlock-npm-shell", "-c", "echo out; exit 3")

    assert (told.returncode, told.stdout, told.stderr) == (3, "out\n", "")


def test_completion_comes_with_the_wheel(installed: Installation) -> None:
    """What the scripts for the shells are made of is in the wheel, too."""
    for shell in SHELLS:
        told = installed.run("maintlock", "completion", shell)
        assert (told.returncode, told.stderr) == (0, "")
        assert "should-yield" in told.stdout


@pytest.mark.parametrize("program", START_FILES)
@pytest.mark.parametrize("kind", ["installed", "editable"])
def test_start_files_are_ours(request: pytest.FixtureRequest, kind: str, program: str) -> None:
    """Nothing but the interpreter's path is put into the start files: what pip generates itself imports `re` first."""
    prefix = request.getfixturevalue(kind).prefix
    first, rest = (prefix / "bin" / program).read_bytes().split(b"\n", 1)

    assert first == f"#!{prefix}/bin/python".encode()
    assert rest == (CHECKOUT / "wrappers" / "start" / program).read_bytes().split(b"\n", 1)[1]


def test_packages_come_from_the_wheel(installed: Installation) -> None:
    """Both packages are imported from the installation and tell type checkers that they are typed."""
    packages = installed.packages()

    assert [path.name for path in packages] == ["maintlock", "maintlock_exporter"]
    assert all(path.is_relative_to(installed.prefix) and (path / "py.typed").is_file() for path in packages)


@pytest.mark.parametrize(
    ("there", "here"), [("example", "wrappers/example"), ("grafana", "grafana"), ("node", "wrappers/node")]
)
def test_shared_data_arrives_whole(installed: Installation, there: str, here: str) -> None:
    """The example and everything for Prometheus and Grafana lie under share/maintlock as they are in the checkout."""
    expected = files_below(CHECKOUT / here)

    assert expected
    assert files_below(installed.prefix / "share" / "maintlock" / there) == expected


def test_shell_entries_arrive(installed: Installation) -> None:
    """The shell entries of the heavy scripts lie under share/maintlock/bin, all of them, and can be executed."""
    entries = list((installed.prefix / "share" / "maintlock" / "bin").iterdir())

    assert {entry.name for entry in entries} == ENTRIES
    assert all(os.access(entry, os.X_OK) for entry in entries)


def test_editable_install_uses_the_checkout(editable: Installation) -> None:
    """After `pip install -e` both packages are imported from the checkout, and the programs answer."""
    assert editable.packages() == [CHECKOUT / "maintlock", CHECKOUT / "exporter" / "maintlock_exporter"]
    assert [editable.run(program, "--version").returncode for program in PROGRAMS] == [0, 0, 0]
