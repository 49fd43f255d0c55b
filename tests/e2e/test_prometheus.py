"""A real Prometheus scrapes a real exporter over a story that happens while it looks; the dashboard has to tell that story."""

from __future__ import annotations

import json
import re
import subprocess
from bisect import bisect_left
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from maintlock.tally import HOLD_BUCKETS, WAIT_BUCKETS, bound_text
from tests.conftest import forget_surroundings, require_tool
from tests.e2e.watched import BALLAST, EXPORTER, GRAFANA, Points, Story, address, epoch, get, watched
from tests.support import Lock, until

pytestmark = pytest.mark.xdist_group("prometheus")  # one story for all of them

BOARD = json.loads((GRAFANA / "dashboards" / "maintlock.json").read_text())
PANELS = {panel["title"]: panel for panel in BOARD["panels"]}


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Give what has happened once, and the Prometheus that has watched."""
    tools = [require_tool("prometheus"), require_tool("prometheus-alertmanager")]
    with pytest.MonkeyPatch.context() as patch:
        forget_surroundings(patch)  # this is set up before the fixture that does so for each test
        with watched(tmp_path_factory.mktemp("watched"), *tools) as found:
            yield found


# What each panel must have shown --------------------------------------------------------------------------------------

Reading = Callable[[Points], Any]


def peak(points: Points) -> float:
    """Return the highest value."""
    return max(value for _, value in points)


def count(points: Points) -> int:
    """Return the last value as a whole number: `increase` reaches beyond its samples, the less the more there are."""
    return round(points[-1][1])


def values(points: Points) -> set[float]:
    """Return all values that were seen."""
    return {value for _, value in points}


def origins(points: Points) -> set[float]:
    """Return the moments since which a duration was told."""
    return {round(at - value, 3) for at, value in points}


def wait_bucket(points: Points) -> int:
    """Return the place of the bucket of the highest value."""
    return bisect_left(WAIT_BUCKETS, peak(points))


def ballasts(points: Points) -> int:
    """Return how often the ballast of the heavy job fits into the highest value."""
    return int(peak(points) / BALLAST)


def at(*events: str, tasks: str) -> Callable[[Story], set[float]]:
    """Return when something happened to tasks, by history."""
    return lambda story: {
        round(epoch(row["at"]), 3)
        for row in story.lock.history()
        if row["event"] in events and row["task"] in tasks.split()
    }


def took(task: str) -> Callable[[Story], set[float]]:
    """Return 0 and how long each run of a task took, by history."""
    ends = {"released", "nested_finished"}
    return lambda story: {0.0} | {row["seconds"] for row in story.lock.history(task=task) if row["event"] in ends}


LEASE = "heavy-maintenance"
GRANTED = at("acquired", tasks="backup dream kbSync primary-dev-sync")
STARVING = (origins, lambda story: {min(at("deferred", tasks="summary")(story))})
HOLDERS = ("backup", "dream", "kbSync", "primary-dev-sync")
ANY = (peak, lambda story: mock.ANY)

# A panel's legends, how each is read, and what that has to give: a value, or what the story makes of it. A legend that is
# not listed has to read as 0.
SHOWS: dict[str, dict[str, tuple[Reading, Any]]] = {
    "State": {LEASE: (values, {0, 1, 2})},
    "Holder": {f"{task} (cli)": (peak, 1) for task in HOLDERS},
    "Held for": {LEASE: (origins, GRANTED)},
    "Waiting": {"waiting": (peak, 1)},
    "Collisions now": {"open": (peak, 2)},
    "Longest streak of deferrals": {"longest": STARVING},
    "State over time": {f"{LEASE} on here": (values, {0, 1, 2})},
    "Who held it": dict.fromkeys(HOLDERS, (peak, 1)),
    "Held for, and TTL": {
        f"held ({LEASE})": (origins, GRANTED),
        f"TTL ({LEASE})": (values, {6 * 3600, 2 * 3600}),
    },
    "Holder memory": {LEASE: (ballasts, 1)},
    "Waiters": {LEASE: (values, {0, 1})},
    "Oldest waiter": {LEASE: (origins, lambda story: {round(story.waiting_since, 3)})},
    "Wait until granted": {
        "p50": ANY,
        "p95": (wait_bucket, lambda story: bisect_left(WAIT_BUCKETS, story.waited_seconds)),
    },
    "Deferrals by task and reason": {
        "summary: lease-held": (count, 4),
        "summary: queued": (count, 1),
        "summary: lockfile-replaced": (count, 1),
    },
    "Who blocks whom": {
        "backup, summary": (count, 4),
        "dream, summary": (count, 1),
        "primary-dev-sync, summary": (count, 1),
    },
    "Starvation": {"summary": STARVING},
    "Deferrals in a row": {"summary": (peak, 6)},
    "How long jobs hold it": {
        **{bound_text(bound): ANY for bound in HOLD_BUCKETS},
        "28800.0": (count, 3),  # of the one that crashed nobody knows how long it had it
        "+Inf": (count, 3),
    },
    "Runs and failures": {
        "backup": (count, 1),
        "dream": (count, 1),
        "kbSync": (count, 2),
        "primary-dev-sync": (count, 1),
        "backup failed": (count, 1),
        "dream failed": (count, 1),
    },
    "Tasks": {
        "A: backup": (peak, 86400),
        "A: dream": (peak, 3600),
        "A: kbSync": (peak, 1800),
        "A: primary-dev-sync": (peak, 600),
        "A: summary": (peak, 600),
        "A: sync-github-workflow": (peak, 0),
        "B: backup": (origins, at("acquired", tasks="backup")),
        "B: dream": (origins, at("acquired", tasks="dream")),
        "B: kbSync": (origins, at("acquired", "nested_started", tasks="kbSync")),
        "B: primary-dev-sync": (origins, at("acquired", tasks="primary-dev-sync")),
        "C: kbSync": (origins, at("released", "nested_finished", tasks="kbSync")),
        "C: primary-dev-sync": (origins, at("released", tasks="primary-dev-sync")),
        **{f"D: {task}": (values, took(task)) for task in HOLDERS},
        "E: kbSync": (values, {0, 1}),
        "E: primary-dev-sync": (values, {0, 1}),
    },
    "Nested jobs": {"kbSync in backup": (count, 1)},
    "Crashes cleaned up": {LEASE: (count, 1)},
    "Open collisions": {"lockfile_replaced": (values, {0, 1}), "unleased_process": (values, {0, 1})},
    "Collisions found": {"lockfile_replaced": (count, 1), "unleased_process": ANY},
    "Daemons": {"chroma": (values, {0, 1})},
    "What can be read": dict.fromkeys(
        ("everything", "lease", "presence", "tasks", "counters", "collisions", "daemons", "build"), (values, {1})
    ),
    "Time per scrape": {"here": ANY},
}


@pytest.mark.parametrize("title", PANELS)
def test_panel_tells_the_story(story: Story, title: str) -> None:
    """Every panel shows data, and its numbers are those of the story."""
    shows = SHOWS[title]
    drawn = {
        legend.replace(story.instance, "here"): points
        for legend, points in story.draw(PANELS[title]["targets"]).items()
    }
    expected = {legend: value(story) if callable(value) else value for legend, (_, value) in shows.items()}
    read = {legend: shows[legend][0](points) if legend in shows else peak(points) for legend, points in drawn.items()}
    assert {legend: value for legend, value in read.items() if legend in shows or value} == expected


@pytest.mark.parametrize(
    ("name", "marks"),
    [
        ("Collisions", {"Collision: lockfile_replaced"}),
        ("Crashes", {f"Cleaned up after a crash: {LEASE}"}),
        (
            "Alerts",
            {
                f"MaintlockLockFileReplaced: {LEASE}  lockfile_replaced",
                f"MaintlockCollision: {LEASE}  unleased_process",
            },
        ),
    ],
)
def test_annotation_marks_what_happened(story: Story, name: str, marks: set[str]) -> None:
    """Collisions, crashes and alerts are marked in the dashboard."""
    (found,) = [found for found in BOARD["annotations"]["list"] if found["name"] == name]
    target = {
        **found["target"],
        "legendFormat": f"{found['titleFormat']}: {found['textFormat']}",
        "format": "time_series",
    }
    drawn = story.lines(target)  # on a slow machine other alerts fire too, perhaps several of one title
    for mark in marks:
        assert [count(points) for legend, points in drawn if legend == mark] == [1], [legend for legend, _ in drawn]


def test_variables_find_the_machine(story: Story) -> None:
    """The variables of the dashboard offer the scrape job and the machine."""
    chosen = {"job": "maintlock", "instance": story.instance}
    for variable in BOARD["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert found is not None and found[2] == variable["name"]
            selector = found[1].replace("$job", "(maintlock|another)")
            answer = get(f"{story.url}/api/v1/label/{found[2]}/values", **{"match[]": selector})
            assert json.loads(answer)["data"] == [chosen[variable["name"]]]


def test_alertmanager_is_told(story: Story) -> None:
    """An alert that fires reaches an Alertmanager with all that somebody needs who reads it."""

    def received() -> Any:
        alerts = json.loads(get(f"{story.alertmanager}/api/v2/alerts") or "[]")
        return [alert for alert in alerts if alert["labels"]["alertname"] == "MaintlockLockFileReplaced"]

    (alert,) = until(received, "the alert")
    expected = {"instance": story.instance, "lease": LEASE, "kind": "lockfile_replaced", "severity": "critical"}
    assert expected.items() <= alert["labels"].items()
    assert (
        alert["annotations"]["summary"]
        == f"The lock file of {LEASE} on {story.instance} was replaced under its holder."
    )
    assert alert["annotations"]["runbook_url"] == "grafana/runbook.md#maintlocklockfilereplaced"


def test_rules_are_evaluated(story: Story) -> None:
    """Prometheus evaluates every rule without an error, on what the exporter really tells."""
    groups = json.loads(get(f"{story.url}/api/v1/rules"))["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["type"] for rule in rules} == {"recording", "alerting"}
    assert [(rule["name"], rule["lastError"]) for rule in rules if rule["health"] != "ok"] == []


def test_node_exporter_takes_the_textfile(lock: Lock, require: Callable[[str], str], tmp_path: Path) -> None:
    """What `--textfile` writes is told by node_exporter, value by value."""
    lock.directory.mkdir(mode=0o700)
    written = tmp_path / "collected" / "maintlock.prom"
    written.parent.mkdir()
    node = require("prometheus-node-exporter")
    subprocess.run([EXPORTER, "--textfile", written], env=lock.env(), check=True, timeout=60)
    running = lock.start(
        "--collector.disable-defaults", "--collector.textfile", f"--collector.textfile.directory={written.parent}",
        "--web.disable-exporter-metrics", "--web.listen-address=127.0.0.1:0", program=node, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    told = get(f"http://{address(running)}/metrics")
    assert "\nnode_textfile_scrape_error 0\n" in told
    assert f'node_textfile_mtime_seconds{{file="{written}"}}' in told
    assert samples(told) == samples(written.read_text())


def samples(text: str) -> dict[str, float]:
    """Return our series with their values, the labels in one order."""
    found = {}
    for name, labels, value in re.findall(r"^(maintlock_\w+)(?:\{(.*)\})? (\S+)$", text, re.MULTILINE):
        ordered = sorted(re.findall(r'\w+="[^"]*"', labels))
        found[name + ",".join(ordered).replace('.0"', '"')] = float(value)  # `le` is a number, and written as one
    return found
