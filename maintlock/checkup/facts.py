"""The facts that the checks look at: each is read once, when it is first asked for. Nothing here locks or makes anything."""

from __future__ import annotations

import os
import time
from functools import cached_property
from typing import TYPE_CHECKING

from maintlock import config, custody, paths, process, tokens
from maintlock.checkup import elsewhere
from maintlock.checkup.finding import quoted
from maintlock.errors import MaintlockError, RefusedError
from maintlock.names import DEFAULT_LEASE, is_lease_name
from maintlock.npm import package_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from maintlock.checkup.elsewhere import Neighbour, OpenLock
    from maintlock.config import Config
    from maintlock.custody import Custody
    from maintlock.npm.package_json import PackageJson
    from maintlock.paths import Places
    from maintlock.process import Stat

MAX_FILES = 10_000
MAX_PACKAGES = 200
LEASE_ENDINGS = (".lock", ".json")  # whose lock file was removed may still have it
DEFAULT = "the default directory"


class Facts:
    """What is known here; `said` are the options `--state-dir --config --lease`, None for each that was not given.

    A wrong configuration is a fact too: `settings` are the defaults then, and `settings_error` says why.
    """

    def __init__(
        self, *, state_dir: str | None, config_file: str | None, lease: str | None, environ: Mapping[str, str], cwd: str
    ) -> None:
        self.said_state_dir = state_dir
        self.said_config = config_file
        self.said_lease = lease
        self.environ = environ
        self.cwd = cwd
        self.now = time.time()

    # Where

    @cached_property
    def _loaded(self) -> tuple[Config, MaintlockError | None, str | None]:
        path = None
        try:
            path = config.find(self.said_config, self.environ, self.cwd)
            return config.load(path), None, path
        except MaintlockError as error:
            return config.load(None), error, path

    @property
    def settings(self) -> Config:
        """The configuration, or the defaults."""
        return self._loaded[0]

    @property
    def settings_error(self) -> MaintlockError | None:
        """Why the configuration cannot be used."""
        return self._loaded[1]

    @property
    def settings_path(self) -> str | None:
        """The file that is, or would be, the configuration."""
        return self._loaded[2]

    @cached_property
    def directory(self) -> str:
        """The state directory, which need not exist. Raises `UnavailableError` where there is none to be found."""
        return paths.state_directory(self.said_state_dir, self.environ, self.settings.state_dir)

    @property
    def directory_source(self) -> str:
        """What has led to the state directory."""
        if self.said_state_dir is not None:
            return "--state-dir"
        if self.environ.get(tokens.STATE_DIR):
            return tokens.STATE_DIR
        return f"state_dir in {self.settings.path}" if self.settings.state_dir is not None else DEFAULT

    def places(self, lease: str) -> Places:
        """Return the files of a lease."""
        return paths.Places(directory=self.directory, lease=lease)

    def here(self, *words: str) -> str:
        """Return a command of ours with the options that lead it to the same lease."""
        places = ("--state-dir", self.said_state_dir) if self.said_state_dir is not None else ()
        settings = ("--config", self.said_config) if self.said_config is not None else ()
        return quoted(*words, *places, *settings)

    def stop_command(self, lease: str) -> str:
        """Return the command that ends the job of a lease."""
        return self.here("maintlock", "stop", *(() if lease == DEFAULT_LEASE else ("--lease", lease)))

    def job_command(self, lease: str, *command: str) -> str:
        """Return the command that runs something small under a lease: every request cleans up what it finds."""
        other = () if lease == DEFAULT_LEASE else ("--lease", lease)
        return f"{self.here('maintlock-wrap', '-t', 'check', *other)} -- {quoted(*command)}"

    # What is there

    @cached_property
    def files(self) -> Mapping[str, os.stat_result]:
        """What stands in the state directory, by name; empty where there is no such directory.

        Raises:
            UnavailableError: It cannot be read.
            RefusedError: It may not be read.
        """
        found = {}
        try:
            with os.scandir(self.directory) as entries:
                for _, entry in zip(range(MAX_FILES), entries, strict=False):
                    try:
                        found[entry.name] = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
        except FileNotFoundError:
            pass
        except OSError as error:
            raise paths.open_failure(self.directory, error) from error
        return found

    @cached_property
    def is_ledger_trusted(self) -> bool:
        """Whether the ledger is safe to open: one that is not is told with the permissions, and told nothing of."""
        try:
            for name in paths.RECORDS:
                if name in self.files:
                    paths.check_trusted(f"{self.directory}/{name}", self.files[name])
        except RefusedError:
            return False
        return True

    @cached_property
    def leases(self) -> tuple[str, ...]:
        """The leases to look at: the one that was asked for, or all that were ever used here."""
        if self.said_lease is not None:
            return (self.said_lease,)
        names = {os.path.splitext(name)[0] for name in self.files if name.endswith(LEASE_ENDINGS)}
        return tuple(sorted(name for name in names if is_lease_name(name)))

    @cached_property
    def looks(self) -> Mapping[str, Custody]:
        """Whose each lease is."""
        return {lease: custody.read_custody(self.places(lease)) for lease in self.leases}

    @cached_property
    def table(self) -> Mapping[int, Stat]:
        """All living processes of our user that we can see."""
        return {pid: row for pid, row in process.read_table().items() if not row.is_dead and process.is_our_users(pid)}

    @cached_property
    def open_locks(self) -> Sequence[OpenLock]:
        """All lock files of this and of other state directories that a process has open."""
        return elsewhere.read_open_locks(self.directory, self.table)

    @cached_property
    def neighbours(self) -> Mapping[str, Neighbour]:
        """The other state directories that are, or were lately, in use, by path."""
        chosen = {
            DEFAULT: paths.default_or_none(self.environ),
            "the configuration's state_dir": self.settings.state_dir,
        }
        if self.said_state_dir is not None:
            chosen[f"this shell's {tokens.STATE_DIR}"] = self.environ.get(tokens.STATE_DIR)
        return elsewhere.find(self.directory, chosen, self.open_locks, self.table)

    # The project

    @cached_property
    def _packages(self) -> Mapping[str, PackageJson | MaintlockError]:
        try:
            path = package_json.find(None, self.cwd)
        except package_json.NoPackageError:
            return {}
        package = _read_package(path)
        others = [] if isinstance(package, MaintlockError) else package_json.workspaces(package)[:MAX_PACKAGES]
        return {path: package} | {other: _read_package(other) for other in others}

    @property
    def packages(self) -> tuple[PackageJson, ...]:
        """The project's `package.json` and those of its workspaces; empty where there is none."""
        return tuple(found for found in self._packages.values() if not isinstance(found, MaintlockError))

    @property
    def broken_packages(self) -> Mapping[str, MaintlockError]:
        """Those that cannot be read, by path."""
        return {path: found for path, found in self._packages.items() if isinstance(found, MaintlockError)}


def _read_package(path: str) -> PackageJson | MaintlockError:
    try:
        return package_json.read(path)
    except MaintlockError as error:
        return error
