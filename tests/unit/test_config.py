"""`maintlock.toml`: found in the right place, trusted only when it may be, checked key by key."""

from __future__ import annotations

import json
import math
import os
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintlock import config
from maintlock.config import Config, DaemonSettings, LeaseSettings, RepoSyncSettings, TaskSettings
from maintlock.errors import ConfigError, RefusedError
from maintlock.schema import DAEMON, LEASE, REPO_SYNC, TASK, TOP

STRANGER = 12345

EXAMPLE = """
poll_interval = "3s"
starved_after = "2h"                      # a streak of deferrals longer than this is starvation
history = "90d"
[lease.heavy-maintenance]
ttl = "6h"
[tasks.kbSync]
command = ["npm", "run", "ai:sync-kb"]
npm_script = "ai:sync-kb"                 # the npm script that is this task
interval = "30m"                          # 0 or absent: never due by itself
heavy = true                              # default
max_runtime = "2h"
match = "syncKnowledgeBase.mjs"           # how it is recognised outside the lease
[tasks.summary]
command = ["npm", "run", "ai:summarize"]
interval = "10m"
inbox = "handovers/*.json"                # unread files make it due before its interval
[tasks.primary-dev-sync]
command = ["maintlock", "repo-sync"]
interval = "10m"
[repo_sync]
roots = ["../neo"]
then = "kbSync"                           # runs nested, under the same lease
[daemons.chroma]
command = ["chroma", "run", "--path", "data"]
cooldown = "15s"
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], str]:
    """Give `write(text)`: the path of a configuration with that text, which only we may write."""

    def written(text: str | bytes) -> str:
        path = tmp_path / "project" / "maintlock.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else textwrap.dedent(text).encode())
        path.chmod(0o600)
        return str(path)

    return written


@pytest.fixture
def wrong(write: Callable[[str | bytes], str]) -> Callable[[str | bytes], str]:
    """Give `wrong(text)`: what is said about a configuration with that text, without the file's name."""

    def said(text: str | bytes) -> str:
        path = write(text)
        with pytest.raises(ConfigError) as caught:
            config.load(path)
        lines = str(caught.value).splitlines()
        assert all(line.startswith(f"{path}: ") for line in lines)
        assert str(caught.value).replace("\n", "").isprintable()
        return "\n".join(line.removeprefix(f"{path}: ") for line in lines)

    return said


# --- find --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """Give a directory with two named files, and a project with a file in its root and an empty directory deep inside."""
    (tmp_path / "project" / "deep" / "inside").mkdir(parents=True)
    for name in ("option.toml", "variable.toml", "project/maintlock.toml"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("option", "variable", "expected"),
    [
        ("option.toml", "variable.toml", "option.toml"),
        ("option.toml", "none", "option.toml"),
        ("none", "variable.toml", None),
        (None, "variable.toml", "variable.toml"),
        (None, "none", None),
        (None, "", "project/maintlock.toml"),
        (None, None, "project/maintlock.toml"),
    ],
)
def test_find_takes_option_before_variable_before_parents(
    places: Path, option: str | None, variable: str | None, expected: str | None
) -> None:
    """The option beats the variable, which beats the nearest file; `none` ends the search, an empty variable does not."""
    absolute = option if option in {None, "none"} else str(places / str(option))
    environ = {}
    if variable is not None:
        environ["MAINTLOCK_CONFIG"] = variable if variable in {"", "none"} else str(places / variable)
    found = config.find(absolute, environ, str(places / "project" / "deep" / "inside"))
    assert found == (None if expected is None else str(places / expected))


def test_find_takes_the_nearest_file(places: Path) -> None:
    """A file in the working directory or a nearer parent hides those further up."""
    nearer = places / "project" / "deep" / "maintlock.toml"
    nearer.touch()
    assert config.find(None, {}, str(places / "project" / "deep")) == str(nearer)
    assert config.find(None, {}, str(places / "project" / "deep" / "inside")) == str(nearer)
    assert config.find(None, {}, str(places / "project")) == str(places / "project" / "maintlock.toml")


def test_find_ends_at_the_root(tmp_path: Path) -> None:
    """Where no parent has a file, there is none, whatever the working directory looks like."""
    for cwd in (str(tmp_path), "/", "//", "", "relative", f"{tmp_path}/gone/"):
        assert config.find(None, {}, cwd) is None


def test_find_resolves_a_named_file_from_the_working_directory(places: Path) -> None:
    """A relative file name is relative to the working directory; a file that is really called none needs its directory."""
    (places / "none").touch()
    assert config.find("option.toml", {}, str(places)) == str(places / "option.toml")
    assert config.find("./none", {}, str(places)) == f"{places}/./none"


@pytest.mark.parametrize("name", ["gone.toml", "option.toml/under", "a\0b", "link"])
def test_a_named_file_must_exist(places: Path, name: str) -> None:
    """A file that is named and absent is an error that says who named it, not a reason to look elsewhere."""
    (places / "link").symlink_to("gone")
    project = str(places / "project")
    with pytest.raises(ConfigError, match=r"^--config: .* no such file"):
        config.find(f"../{name}", {}, project)
    with pytest.raises(ConfigError, match=r"^MAINTLOCK_CONFIG: .* no such file"):
        config.find(None, {"MAINTLOCK_CONFIG": f"../{name}"}, project)


def test_a_dangling_link_is_found_and_then_an_error(tmp_path: Path) -> None:
    """A `maintlock.toml` that leads nowhere is told, not taken for no configuration."""
    (tmp_path / "maintlock.toml").symlink_to("gone")
    found = config.find(None, {}, str(tmp_path))
    assert found is not None
    with pytest.raises(ConfigError, match="No such file"):
        config.load(found)


# --- what may be trusted -------------------------------------------------------------------------------------------------

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o644, 0o664, 0o660])
def test_our_own_file_is_read(write: Callable[[str | bytes], str], mode: int) -> None:
    """A file of ours that all may read, and that our own group may write, is trusted."""
    path = write("")
    os.chown(path, -1, os.getegid())
    os.chmod(path, mode)
    assert config.load(path).path == path


@pytest.mark.parametrize("mode", [0o602, 0o606, 0o666, 0o777])
def test_a_file_that_all_may_write_is_refused(write: Callable[[str | bytes], str], mode: int) -> None:
    """What everybody may write is refused (exit 77), with the command that mends it."""
    path = write("")
    os.chmod(path, mode)
    with pytest.raises(RefusedError, match=f"{path}.*chmod go-w {path}") as caught:
        config.load(path)
    assert caught.value.exit_code == 77


@needs_root
def test_a_file_that_another_group_may_write_is_refused(write: Callable[[str | bytes], str]) -> None:
    """What a group other than the user's own may write is refused, what it may only read is not."""
    path = write("")
    os.chown(path, -1, STRANGER)
    os.chmod(path, 0o660)
    with pytest.raises(RefusedError, match=f"group {STRANGER}.*chmod g"):
        config.load(path)
    os.chmod(path, 0o640)
    assert config.load(path).path == path


@needs_root
def test_a_file_of_somebody_else_is_refused(write: Callable[[str | bytes], str]) -> None:
    """What belongs to another user is refused, with the command that mends it."""
    path = write("")
    os.chown(path, STRANGER, -1)
    with pytest.raises(RefusedError, match=rf"{STRANGER}.*chown {os.geteuid()} {path}"):
        config.load(path)


@pytest.fixture
def stranger() -> Iterator[Path]:
    """Become another user for the length of a test; give a directory of root's that this user may search."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        os.setegid(STRANGER)
        os.seteuid(STRANGER)
        try:
            yield Path(directory)
        finally:
            os.seteuid(0)
            os.setegid(0)


@needs_root
def test_root_may_own_a_configuration(stranger: Path) -> None:
    """A file of root's is trusted by every user."""
    os.seteuid(0)
    path = stranger / "maintlock.toml"
    path.write_text("poll_interval = 7")
    path.chmod(0o644)
    os.seteuid(STRANGER)
    assert config.load(str(path)).poll_interval == 7


@needs_root
@pytest.mark.parametrize(("directory_mode", "file_mode"), [(0o755, 0o600), (0o700, 0o644)])
def test_a_file_that_may_not_be_read_is_refused(stranger: Path, directory_mode: int, file_mode: int) -> None:
    """A named file that permissions keep from us is refused, not taken for absent."""
    os.seteuid(0)
    path = stranger / "maintlock.toml"
    path.touch()
    path.chmod(file_mode)
    stranger.chmod(directory_mode)
    os.seteuid(STRANGER)
    found = config.find(str(path), {}, "/")
    assert found == str(path)
    with pytest.raises(RefusedError, match=f"{path}: you may not read it; run: chmod u.r {path}"):
        config.load(found)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_our_own_unreadable_file_is_refused(write: Callable[[str | bytes], str]) -> None:
    """A file of ours without the permission to read it is refused."""
    path = write("")
    os.chmod(path, 0)
    with pytest.raises(RefusedError, match="you may not read it"):
        config.load(path)


def test_a_link_is_judged_at_its_target(write: Callable[[str | bytes], str], tmp_path: Path) -> None:
    """For a symlink its target's permissions count, both are named, and relative paths start from the link's directory."""
    target = write('state_dir = "state"')
    link = tmp_path / "maintlock.toml"
    link.symlink_to(target)
    assert config.load(str(link)).state_dir == str(tmp_path / "state")
    os.chmod(target, 0o666)
    with pytest.raises(RefusedError, match=f"^{link}: .*chmod go-w {target}"):
        config.load(str(link))


# --- what is no readable file --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["directory", "fifo", "device", "socket", "loop", "missing", "nul", "long"])
@pytest.mark.timeout(20)
def test_what_is_no_regular_file_is_an_error(tmp_path: Path, kind: str) -> None:
    """A directory, a FIFO, a device and the like are told at once; nothing waits for a writer."""
    path = str(tmp_path / "maintlock.toml")
    if kind == "directory":
        os.mkdir(path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = "/dev/zero"
    elif kind == "socket":
        os.mknod(path, 0o600 | stat.S_IFSOCK)
    elif kind == "loop":
        os.symlink("maintlock.toml", path)
    elif kind == "nul":
        path += "\0"
    elif kind == "long":
        path += "x" * 5000
    with pytest.raises(ConfigError, match=r"expected a regular file|cannot be read"):
        config.load(path)


def test_a_file_is_read_up_to_a_mebibyte(write: Callable[[str | bytes], str], wrong: Callable[..., str]) -> None:
    """A mebibyte is read, one byte more is an error."""
    assert config.load(write("#" * (1 << 20))).tasks == {}
    assert wrong("#" * ((1 << 20) + 1)) == "expected at most 1048576 bytes"
    assert wrong("#" * (2 << 20)) == "expected at most 1048576 bytes"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"# one\npoll_interval = '\xff'", "line 2: expected UTF-8 text"),
        ("poll_interval = 3\npoll_interval = = 3", "not TOML: Invalid value (at line 2, column 17)"),
        ("history = 1\n\nhistory = 2\n", "not TOML: Cannot overwrite a value (at line 3, column 12)"),
        ("history = 1\nhistory =", "not TOML: Invalid value (at line 2, the end)"),
        ("history = " + "[" * 100_000, "nested too deeply"),
        ("history = " + "9" * 5000, "expected numbers of fewer digits"),
        ("history = 2026-02-30", "not TOML: Invalid date or datetime (at line 1, column 11)"),
    ],
)
def test_what_is_no_toml_is_told_with_its_line(wrong: Callable[..., str], text: str | bytes, expected: str) -> None:
    """Text that cannot be parsed is an error that names the line."""
    assert wrong(text) == expected


# --- valid ----------------------------------------------------------------------------------------------------------------


def test_without_a_file_all_is_default() -> None:
    """Without a configuration everything has its default."""
    assert config.load(None) == Config(leases={}, tasks={}, daemons={})
    defaults = config.load(None)
    assert (defaults.poll_interval, defaults.starved_after, defaults.history) == (3, 7200, None)
    assert (defaults.path, defaults.directory, defaults.state_dir, defaults.repo_sync) == (None, None, None, None)
    assert config.ttl_seconds(defaults, "heavy-maintenance") == 6 * 3600


def test_the_documented_example(write: Callable[[str | bytes], str]) -> None:
    """The example of the documentation means what it says."""
    path = write(EXAMPLE)
    directory = os.path.dirname(path)
    assert config.load(path) == Config(
        path=path,
        directory=directory,
        poll_interval=3.0,
        starved_after=7200.0,
        history=90 * 86400.0,
        leases={"heavy-maintenance": LeaseSettings(ttl=21600.0)},
        tasks={
            "kbSync": TaskSettings(
                name="kbSync",
                command=("npm", "run", "ai:sync-kb"),
                npm_script="ai:sync-kb",
                interval=1800.0,
                heavy=True,
                max_runtime=7200.0,
                match="syncKnowledgeBase.mjs",
            ),
            "summary": TaskSettings(
                name="summary",
                command=("npm", "run", "ai:summarize"),
                interval=600.0,
                inbox=f"{directory}/handovers/*.json",
            ),
            "primary-dev-sync": TaskSettings(
                name="primary-dev-sync", command=("maintlock", "repo-sync"), interval=600.0
            ),
        },
        repo_sync=RepoSyncSettings(roots=(f"{os.path.dirname(directory)}/neo",), then="kbSync"),
        daemons={"chroma": DaemonSettings(name="chroma", command=("chroma", "run", "--path", "data"), cooldown=15.0)},
    )


def test_a_task_has_defaults(write: Callable[[str | bytes], str]) -> None:
    """A task of which nothing is said is heavy, under the one lease, and never due by itself (R11)."""
    task = config.load(write("[tasks.a]")).tasks["a"]
    assert task == TaskSettings(name="a")
    assert (task.heavy, task.lease, task.interval, task.rest_seconds) == (True, "heavy-maintenance", 0.0, 0.0)
    assert (task.command, task.wait, task.defer_exit_code, task.stop_grace, dict(task.env)) == (
        None,
        None,
        None,
        None,
        {},
    )


def test_a_task_stops_being_heavy_by_one_line(write: Callable[[str | bytes], str]) -> None:
    """`heavy = false` is one line of configuration (L14)."""
    task = '[tasks.golden-path]\ncommand = ["true"]\n'
    before = config.load(write(task)).tasks["golden-path"]
    after = config.load(write(task + "heavy = false\n")).tasks["golden-path"]
    assert (before.heavy, after.heavy) == (True, False)


@pytest.mark.parametrize(("line", "expected"), [("", 180.0), ("rest = 0", 0.0), ('rest = "5m"', 300.0)])
def test_rest_is_a_tenth_of_the_interval_unless_configured(
    write: Callable[[str | bytes], str], line: str, expected: float
) -> None:
    """A task rests for a tenth of its interval, or as long as it says, also not at all (L6)."""
    assert config.load(write(f'[tasks.a]\ninterval = "30m"\n{line}')).tasks["a"].rest_seconds == expected


def test_ttl_is_the_tasks_then_the_leases_then_six_hours(write: Callable[[str | bytes], str]) -> None:
    """A task's own ttl beats its lease's, and a lease that is not configured has the default."""
    loaded = config.load(write('[lease.a]\nttl = "1h"\n[lease.b]\n[tasks.own]\nttl = 60\n[tasks.other]'))
    assert config.ttl_seconds(loaded, "a", loaded.tasks["own"]) == 60
    assert config.ttl_seconds(loaded, "a", loaded.tasks["other"]) == 3600
    assert config.ttl_seconds(loaded, "b") == config.ttl_seconds(loaded, "c") == 6 * 3600


def test_an_npm_script_names_its_task(write: Callable[[str | bytes], str]) -> None:
    """An npm script belongs to the task that says so, not to one of the same name."""
    loaded = config.load(write('[tasks.a]\nnpm_script = "ai:sync-kb"\n[tasks."b"]\n[tasks."c:d"]'))
    assert config.task_for_npm_script(loaded, "ai:sync-kb") is loaded.tasks["a"]
    assert config.task_for_npm_script(loaded, "b") is None
    assert set(loaded.tasks) == {"a", "b", "c:d"}


PATHS = [
    ('"sub/x"', "{here}/sub/x"),
    ('"../x"', "{above}/x"),
    ('"."', "{here}"),
    ('"/abs/./x/"', "/abs/x"),
    ('"~"', "{home}"),
    ('"~/x"', "{home}/x"),
    ('"./~x"', "{here}/~x"),
]


@pytest.mark.parametrize(("text", "expected"), PATHS)
@pytest.mark.parametrize(
    ("template", "pick"),
    [
        ("state_dir = {}", lambda c: c.state_dir),
        ("[tasks.a]\ncwd = {}", lambda c: c.tasks["a"].cwd),
        ("[tasks.a]\ninbox = {}", lambda c: c.tasks["a"].inbox),
        ('[daemons.a]\ncommand = ["x"]\ncwd = {}', lambda c: c.daemons["a"].cwd),
        ("[repo_sync]\nroots = [{}]", lambda c: c.repo_sync.roots[0]),
    ],
)
def test_paths_start_from_the_files_directory(
    write: Callable[[str | bytes], str],
    monkeypatch: pytest.MonkeyPatch,
    template: str,
    pick: Callable[[Config], str],
    text: str,
    expected: str,
) -> None:
    """Every path comes out absolute: relative to the file wherever we were started, `~/` in the home directory."""
    monkeypatch.setenv("HOME", "/home/alice")
    path = write(template.format(text))
    monkeypatch.chdir("/")
    here = os.path.dirname(path)
    assert pick(config.load(path)) == expected.format(here=here, above=os.path.dirname(here), home="/home/alice")


def test_a_pattern_takes_its_own_directory_literally(tmp_path: Path) -> None:
    """Only the configured part of an inbox is a pattern, whatever the project's directory is called."""
    path = tmp_path / "a[b]*" / "maintlock.toml"
    path.parent.mkdir()
    path.write_text('[tasks.a]\ninbox = "in/[0-9]*"')
    path.chmod(0o600)
    assert config.load(str(path)).tasks["a"].inbox == f"{tmp_path}/a[[]b][*]/in/[0-9]*"


DURATIONS = [('"500ms"', 0.5), ('"90"', 90.0), ("90", 90.0), ("1.5", 1.5), ('"10m"', 600.0), ('"2h"', 7200.0)]
NOT_NEGATIVE = [
    "starved_after",
    "[tasks.a] interval",
    "[tasks.a] stop_grace",
    "[tasks.a] rest",
    "[tasks.a] wait",
    "[daemons.a] cooldown",
]
POSITIVE = ["history", "poll_interval", "[lease.a] ttl", "[tasks.a] ttl", "[tasks.a] max_runtime"]


def toml(place: str, text: str) -> str:
    """Return a document with one value, at `key` or at `[table] key`."""
    table, _, key = place.rpartition(" ")
    required = {"[daemons.a]": 'command = ["x"]\n', "[repo_sync]": 'roots = ["x"]\n'}.get(table, "")
    return f"{table}\n{'' if key in required else required}{key} = {text}\n"


def picked(loaded: Config, place: str) -> Any:
    """Return the setting at `key` or at `[table] key`."""
    table, _, key = place.rpartition(" ")
    section: Any = {
        "": loaded,
        "[lease.a]": loaded.leases.get("a"),
        "[tasks.a]": loaded.tasks.get("a"),
        "[daemons.a]": loaded.daemons.get("a"),
        "[repo_sync]": loaded.repo_sync,
    }[table]
    return getattr(section, key)


def dotted(place: str) -> str:
    """Return `tasks.a.key` for `[tasks.a] key`."""
    return place.replace("] ", ".").lstrip("[")


@pytest.mark.parametrize(("text", "expected"), DURATIONS)
@pytest.mark.parametrize("place", NOT_NEGATIVE + POSITIVE)
def test_durations_are_text_or_seconds(
    write: Callable[[str | bytes], str], place: str, text: str, expected: float
) -> None:
    """A duration is a string with a unit or a number of seconds, and comes out as a float of seconds."""
    value = picked(config.load(write(toml(place, text))), place)
    assert value == expected
    assert isinstance(value, float)


@pytest.mark.parametrize("place", NOT_NEGATIVE)
def test_no_time_at_all_is_a_duration(write: Callable[[str | bytes], str], place: str) -> None:
    """Where it makes sense, a duration may be 0."""
    assert picked(config.load(write(toml(place, '"0"'))), place) == 0.0


@pytest.mark.parametrize(
    ("place", "text", "expected"),
    [
        ("poll_interval", '"10ms"', 0.01),
        ("[tasks.a] wait", '"forever"', math.inf),
        ("[tasks.a] command", '["a", "", "ü"]', ("a", "", "ü")),
        ("[tasks.a] npm_script", '"any name"', "any name"),
        ("[tasks.a] heavy", "false", False),
        ("[tasks.a] lease", '"_other.1"', "_other.1"),
        ("[tasks.a] defer_exit_code", "0", 0),
        ("[tasks.a] defer_exit_code", "255", 255),
        ("[tasks.a] env", '{ A = "", _b1 = "x=y" }', {"A": "", "_b1": "x=y"}),
        ("[tasks.a] match", '"sync.mjs"', "sync.mjs"),
        ("[daemons.a] env", '{ A = "1" }', {"A": "1"}),
        ("[daemons.a] command", '["chroma"]', ("chroma",)),
        ("[repo_sync] roots", '["/a", "/b"]', ("/a", "/b")),
    ],
)
def test_valid_values(write: Callable[[str | bytes], str], place: str, text: str, expected: object) -> None:
    """Each other key takes what it is documented to take."""
    assert picked(config.load(write(toml(place, text))), place) == expected


# --- impossible -----------------------------------------------------------------------------------------------------------

NO_DURATION = [
    '"soon"',
    '""',
    '"-1s"',
    '"36501d"',
    "-1",
    "-0.5",
    "nan",
    "inf",
    "-inf",
    "true",
    "[]",
    "{}",
    "1979-05-27",
]
NO_DURATION += ["3153600001", "0x" + "f" * 6000]
WRONG: dict[str, list[str]] = {
    **dict.fromkeys(NOT_NEGATIVE, NO_DURATION),
    **{place: [*NO_DURATION, "0", '"0"', "0.0"] for place in POSITIVE},
    "state_dir": ['""', '"a\\u0000"', "1", "true", "[]", '"~alice/x"', '"~x"'],
    "lease": ["1", '"x"', "[]", "true"],
    "tasks": ["1", '"x"', "[]", "[{}]", "true"],
    "daemons": ["1", '"x"', "[]", "false"],
    "repo_sync": ["1", '"x"', "[]", "true"],
    "[lease] a": ["1", "[]", '"6h"'],
    "[tasks] a": ["1", "[]", '"x"', "[{}]"],
    "[daemons] a": ["1", "[]", '"x"'],
    "[tasks.a] command": ["[]", '"npm run x"', "{}", "1", "true"],
    "[daemons.a] command": ["[]", '"npm run x"', "{}", "1", "true"],
    "[tasks.a] npm_script": ['""', "1", "[]", '"a\\u0000b"', "true"],
    "[tasks.a] heavy": ["0", "1", '"true"', '"no"', "[]"],
    "[tasks.a] lease": ['""', '"a b"', '"-x"', '"a/b"', '"a:b"', "1", '"ü"', '"' + "x" * 65 + '"'],
    "[tasks.a] defer_exit_code": ["-1", "256", "true", "1.0", '"1"', "[]", "0x" + "f" * 6000],
    "[tasks.a] env": ["1", '"A=1"', '["A=1"]', "true"],
    "[daemons.a] env": ["1", '"A=1"', '["A=1"]'],
    "[tasks.a] match": ['""', '"a/b"', '"/"', "1", '"a\\u0000"', "[]"],
    "[tasks.a] cwd": ['""', "1", '"a\\u0000"', "[]", '"~x"'],
    "[daemons.a] cwd": ['""', "1", '"a\\u0000"', "[]"],
    "[tasks.a] inbox": ['""', "1", '"a\\u0000"', '["*"]', '"~x/*"'],
    "[repo_sync] roots": ["[]", '"../neo"', "1", "{}", "true"],
    "[repo_sync] then": ['""', "1", "true", "[]", '"unknown"'],
}


@pytest.mark.parametrize(("place", "text"), [(place, text) for place, texts in WRONG.items() for text in texts])
def test_wrong_values_are_told(wrong: Callable[..., str], place: str, text: str) -> None:
    """A value that cannot be is one line with its key, what was found, and what is expected."""
    said = wrong(toml(place, text))
    assert said.startswith(f"{dotted(place)}: found ")
    assert ", expected " in said
    assert "\n" not in said
    assert len(said) < 300


def test_wrong_values_cover_every_key() -> None:
    """No key is without its wrong values in the table above."""
    tables = {"": TOP, "[lease.a] ": LEASE, "[tasks.a] ": TASK, "[daemons.a] ": DAEMON, "[repo_sync] ": REPO_SYNC}
    assert {prefix + key for prefix, keys in tables.items() for key in keys} <= WRONG.keys()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("poll_interval = 0.009", "poll_interval: found 0.009, expected a duration of at least 10ms"),
        ("[tasks.a]\nmax_runtime = 0", "tasks.a.max_runtime: found 0, expected a duration above 0"),
        ("[tasks.a]\nheavy = 1", "tasks.a.heavy: found 1, expected true or false"),
        (
            "[tasks.a]\ndefer_exit_code = true",
            "tasks.a.defer_exit_code: found true, expected an integer from 0 to 255",
        ),
        ('[tasks.a]\ncommand = ["a", 3]', "tasks.a.command[1]: found 3, expected a string without NUL"),
        ('[tasks.a]\ncommand = ["a\\u0000"]', "tasks.a.command[0]: found 'a\\x00', expected a string without NUL"),
        ('[tasks.a]\ncommand = ["", "x"]', "tasks.a.command[0]: found '', expected a program"),
        ("[tasks.a]\nenv = { A = 1 }", "tasks.a.env.A: found 1, expected a string without NUL"),
        ('[tasks.a]\nenv = { A = "a\\u0000" }', "tasks.a.env.A: found 'a\\x00', expected a string without NUL"),
        ("[repo_sync]\nroots = [1]", "repo_sync.roots[0]: found 1, expected a string that is not empty and has no NUL"),
        (
            '[tasks.a]\nwait = "never"',
            "tasks.a.wait: found 'never', expected \"forever\", or a duration such as 500ms, 90, 90s, 10m, 2h or 1d",
        ),
        (
            '[tasks.a]\n[repo_sync]\nroots = ["x"]\nthen = "b"',
            "repo_sync.then: found 'b', expected the name of a task in [tasks]",
        ),
        (
            '[tasks.a]\n[repo_sync]\nroots = ["x"]\nthen = "a"',
            "repo_sync.then: found 'a', expected the name of a task with a command in [tasks]",
        ),
        (
            '[tasks.a]\nnpm_script = "x"\n[tasks.b]\nnpm_script = "x"',
            "tasks.b.npm_script: found 'x', expected a script that is not that of tasks.a too",
        ),
        (
            '[tasks."a:b"]\nheavy = false\n[tasks.a-b]\nheavy = false',
            "tasks.a-b.lease: found nothing, expected the name of a lease: a-b.task is that of tasks.a:b",
        ),
        (
            "[daemons.a]",
            'daemons.a.command: found nothing, expected a program and its arguments, such as ["npm", "run", "build"]',
        ),
        ("[repo_sync]", "repo_sync.roots: found nothing, expected an array of at least one path"),
    ],
)
def test_wrong_values_in_words(wrong: Callable[..., str], text: str, expected: str) -> None:
    """What is said names the very item at fault."""
    assert wrong(text) == expected


@pytest.mark.parametrize("name", ["1A", "A-B", "", "Ä", "A B", "MAINTLOCK_TASK", "MAINTLOCK_", "A=B"])
@pytest.mark.parametrize("place", ["[tasks.a] env", "[daemons.a] env"])
def test_wrong_variable_names(wrong: Callable[..., str], place: str, name: str) -> None:
    """A name that no variable can have, and any of ours, cannot be given to a job."""
    said = wrong(toml(place, f'{{ "{name}" = "x" }}'))
    assert said.startswith(f"{dotted(place)}.")
    assert "expected a name of A-Z a-z 0-9 _" in said


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for kind in ("lease", "tasks", "daemons")
        for name in ("", "-a", ".a", ":a", "a b", "a/b", "ü", "x" * 65)
    ]
    + [("lease", "a:b")],
)
def test_wrong_names(wrong: Callable[..., str], kind: str, name: str) -> None:
    """A lease, a task or a daemon whose name cannot be one is told with what a name is."""
    said = wrong(f'[{kind}."{name}"]')
    assert said.startswith(f"{kind}.")
    assert "expected a name: 1 to 64 of A-Z a-z 0-9 _ . -" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("poll_intervall = 3", "poll_intervall: unknown key, did you mean poll_interval?"),
        ("[task.a]", "task: unknown key, did you mean tasks?"),
        ("[lease.a]\nTTL = 1", "lease.a.TTL: unknown key, did you mean ttl?"),
        ("[tasks.a]\nmax-runtime = 1", "tasks.a.max-runtime: unknown key, did you mean max_runtime?"),
        ("[tasks.a]\nmaxRuntime = 1", "tasks.a.maxRuntime: unknown key, did you mean max_runtime?"),
        ("[daemons.a]\ncommand = ['x']\ncooldwn = 1", "daemons.a.cooldwn: unknown key, did you mean cooldown?"),
        ("[repo_sync]\nroots = ['x']\nroot = 1", "repo_sync.root: unknown key, did you mean roots?"),
        ("[lease.a]\nxyz = 1", "lease.a.xyz: unknown key, expected one of ttl"),
    ],
)
def test_unknown_keys_are_told_with_the_nearest(wrong: Callable[..., str], text: str, expected: str) -> None:
    """A key that does not exist is an error at every level, and names the key that was probably meant."""
    assert wrong(text) == expected


def test_all_faults_are_told_at_once(wrong: Callable[..., str]) -> None:
    """Every fault has a line of its own, so that one run shows what is to be mended."""
    said = wrong('history = 0\n[tasks.a]\ninterval = "soon"\nheavy = 1\n[tasks.b]\nfoo = 1\n[repo_sync]\n')
    assert [line.split(": ")[0] for line in said.splitlines()] == [
        "history",
        "tasks.a.interval",
        "tasks.a.heavy",
        "tasks.b.foo",
        "repo_sync.roots",
    ]


@pytest.mark.timeout(60)
def test_very_many_faults_are_counted(wrong: Callable[..., str]) -> None:
    """Beyond twenty faults the others are only counted."""
    lines = wrong("\n".join(f"k{number} = 1" for number in range(60_000))).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "and 59980 more"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text",
    [
        "[tasks.a]\ninterval = '" + "s" * 1_000_000 + "'",
        "[tasks.a]\ninterval = '" + "9" * 1_000_000 + "'",
        "[tasks.a]\ncommand = [" + "[" * 60 + "]" * 60 + "]",
        "x" * 1_000_000 + " = 1",
        "[tasks." + "x" * 1_000_000 + "]",
        "[tasks.a]\nenv = { " + "a." * 2_000 + "a = 1 }",
        "history = '\\u001b[31m\\u202e'".replace("'", '"'),
        '[tasks."\\u001b[31m\\n"]',
        '"\\u001b[31m" = 1',
        "\x1b = 1",
    ],
)
def test_what_is_said_stays_short_and_harmless(wrong: Callable[..., str], text: str) -> None:
    """Long, deep or hostile values are named in a few printable characters (`wrong` checks that)."""
    assert len(wrong(text)) < 300


def test_a_hostile_file_name_is_escaped(tmp_path: Path) -> None:
    """Control characters in the file's own name do not reach the terminal."""
    path = tmp_path / "a\x1b[31m\n.toml"
    path.write_text("x = 1")
    path.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        config.load(str(path))
    assert str(caught.value).isprintable()


# --- whatever comes -------------------------------------------------------------------------------------------------------

KEYS = sorted({*TOP, *LEASE, *TASK, *DAEMON, *REPO_SYNC, "a", "b", "heavy-maintenance"})
SCALARS = (
    st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["1s", "2h", "forever", "a", "~/x", "../x", "0"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=5)
    ),
    max_leaves=20,
)
DOCUMENTS = st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), VALUES, max_size=8)


def inline(value: object) -> str:
    """Return a value as TOML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{inline(key)} = {inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")


def load_whatever(data: bytes) -> Config | None:
    """Load a configuration of these bytes; None where it is turned down as it should be."""
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(data)
        file.flush()
        try:
            return config.load(file.name)
        except ConfigError as error:
            said = str(error)
    assert said.startswith(f"{file.name}: ")
    assert said.replace("\n", "").isprintable()
    return None


@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "replace")))
def test_random_bytes_are_turned_down_in_words(data: bytes) -> None:
    """Whatever bytes are in the file, they are settings or a ConfigError."""
    load_whatever(data)


@given(DOCUMENTS)
def test_random_documents_are_typed_or_turned_down(document: dict[str, Any]) -> None:
    """Whatever tables are in the file, they are settings of the right types or a ConfigError."""
    text = "\n".join(f"{inline(key)} = {inline(value)}" for key, value in document.items())
    loaded = load_whatever(text.encode("utf-8", "surrogatepass"))
    if loaded is not None:
        assert loaded.poll_interval >= 0.01
        for task in loaded.tasks.values():
            assert isinstance(task.heavy, bool)
            assert math.isfinite(task.interval) and task.rest_seconds >= 0
            assert task.cwd is None or os.path.isabs(task.cwd)


@pytest.mark.parametrize(
    ("keys", "lease"),
    [
        ("heavy = false", "golden-path.task"),
        ("heavy = true", "heavy-maintenance"),
        ('heavy = false\nlease = "graphics"', "graphics"),
    ],
)
def test_a_light_task_has_a_lease_to_itself(tmp_path: Path, keys: str, lease: str) -> None:
    """`heavy = false` is one line: the task is out of everybody's way, and nothing is in its own (L14)."""
    path = tmp_path / "maintlock.toml"
    path.write_text(f"[tasks.golden-path]\n{keys}\n")
    assert config.load(str(path)).tasks["golden-path"].lease == lease


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "interval": st.floats(0, 1e9),
            "heavy": st.booleans(),
            "defer_exit_code": st.integers(0, 255),
            "npm_script": st.text(min_size=1, max_size=9).filter(lambda text: "\0" not in text and text.isprintable()),
            "command": st.lists(st.sampled_from(["a", "b c", "ü"]), min_size=1).map(tuple),
        },
    )
)
def test_valid_tasks_come_back_as_they_are(values: dict[str, Any]) -> None:
    """A valid value is handed on unchanged."""
    listed = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    loaded = load_whatever(f"tasks.a = {inline(listed)}".encode())
    assert loaded is not None
    own = {"lease": "a.task"} if values.get("heavy") is False else {}  # unless it names one
    assert loaded.tasks["a"] == TaskSettings(name="a", **{**own, **values})


# --- start-up -------------------------------------------------------------------------------------------------------------


def modules_after(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after some code."""
    program = f"import sys\nbefore = set(sys.modules)\n{code}\nprint(*(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": os.getcwd()}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_costs_no_heavy_module() -> None:
    """Without a file nothing is loaded that a guarded job would have to wait for."""
    heavy = {"tomllib", "re", "typing", "dataclasses", "pathlib", "enum", "datetime", "contextlib", "difflib", "json"}
    assert not heavy & modules_after("from maintlock import config\nconfig.load(None)\nconfig.find(None, {}, '/')")
