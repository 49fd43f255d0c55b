"""The agent system of the example under `maintlock orchestrate`: six heavy tasks, three daemons, an inbox, a repository."""

from __future__ import annotations

import json
import re
import signal
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.project import Project, is_over
from tests.support import MAINTLOCK, PATIENCE_SECONDS, Running, until

HEAVY = ("kbSync", "summary", "primary-dev-sync", "dream", "golden-path", "backup")
ANY_PORT = {"EXAMPLE_CHROMA_PORT": "0", "EXAMPLE_BRIDGE_PORT": "0", "EXAMPLE_MLX_PORT": "0"}
TEXT = (
    "The lease is held by the kernel for as long as the job works. A cat has walked over the table. "
    "The kernel frees the lease when the job has ended. Nobody has to clean up after the job and its lease."
)


def ask(url: str, body: Mapping[str, object] | None = None) -> Any:
    """Return what a daemon answers."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(url, data=data, timeout=PATIENCE_SECONDS) as response:
        return json.load(response)


def start_daemon(project: Project, name: str) -> tuple[Running, str]:
    """Start a daemon of the example by itself, and return where it serves."""
    daemon = project.start("node", f"daemons/{name}.mjs", env=project.env(**ANY_PORT))
    return daemon, address(daemon.until_line("ready on"))


def address(said: str) -> str:
    """Return where a daemon serves, from what it has said."""
    (found,) = re.findall(r"ready on (http://\S+) \(pid", said)
    return str(found)


def orchestrate(project: Project, **settings: str) -> Running:
    """Start the orchestrator on the example's own configuration, with other values for some keys of all tables."""
    path = project.directory / "maintlock.toml"
    text = re.sub(r"(?m)^match = .*\n", "", path.read_text(encoding="utf-8"))  # the tests beside this one run them, too
    for key, value in settings.items():
        text = re.sub(rf'(?m)^{key} = "[^"]*"', f'{key} = "{value}"', text)
    path.write_text(text, encoding="utf-8")
    options = ["--log-format", "text", "--stop-jobs", "--stop-daemons"]
    return project.start(MAINTLOCK, "orchestrate", *options, env=project.env(**ANY_PORT))


def log_of(project: Project, name: str) -> str:
    """Return what a task or daemon has printed so far."""
    path = project.lock.directory / "logs" / f"{name}.log"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def completed(project: Project) -> Counter[str]:
    """Return how often each task has completed."""
    return Counter(row["task"] for row in project.lock.history(outcome="completed"))


def terminate(running: Running) -> tuple[int, str]:
    """Send a TERM, and return the exit code and the standard error of what ends."""
    running.signal(signal.SIGTERM)
    code, _, err = running.end()
    return code, err


# The daemons


def test_chroma_answers_queries(project: Project) -> None:
    """Chunks are found by their words, the best first; without a database, or without words, chroma says what is wrong."""
    daemon, url = start_daemon(project, "chroma")

    with pytest.raises(urllib.error.HTTPError, match="503"):
        ask(f"{url}/query?text=lease")
    project.make_database()
    found = ask(f"{url}/query?text=lease+held")["found"]
    with pytest.raises(urllib.error.HTTPError, match="400"):
        ask(f"{url}/query?limit=0&text=x")

    assert [(one["path"], one["text"]) for one in found] == [("two.md", "# Two\n\nThe [lease] is [held] by one.\n")]
    assert ask(f"{url}/query?text=%22")["found"] == []
    assert ask(f"{url}/health") == {"name": "chroma", "healthy": True, "pid": daemon.pid, "served": 2}
    assert terminate(daemon)[0] == 0


def test_chroma_does_not_wait_for_a_writer(project: Project) -> None:
    """A query is answered while a heavy job has the lease."""
    project.make_database()
    daemon, url = start_daemon(project, "chroma")
    holder = project.lock.hold("backup")

    assert len(ask(f"{url}/query?text=lease")["found"]) == 1
    holder.popen.communicate()
    assert terminate(daemon)[0] == 0


def test_bridge_writes_hand_overs(project: Project) -> None:
    """The bridge writes each hand-over that it is given into the inbox, under a name of its own, and refuses what is none."""
    daemon, url = start_daemon(project, "bridge")
    written = [ask(f"{url}/handovers", {"session": "one", "done": [text]})["written"] for text in ("First.", "Second.")]

    for wrong in ({}, {"session": "../up", "done": ["x"]}, {"session": "one"}, {"session": "one", "done": [1]}):
        with pytest.raises(urllib.error.HTTPError, match="400"):
            ask(f"{url}/handovers", wrong)

    read = [json.loads((project.directory / path).read_text(encoding="utf-8")) for path in written]
    assert [one["done"] for one in read] == [["First."], ["Second."]]
    assert len(list((project.directory / "handovers").glob("*one.json"))) == 2
    assert terminate(daemon)[0] == 0


def test_mlx_summarises(project: Project) -> None:
    """A summary by mlx is made of the text's own best sentences, in its order."""
    daemon, url = start_daemon(project, "mlx")

    made = ask(f"{url}/summaries", {"text": TEXT, "sentences": 2})

    assert made["considered"] == 4
    assert len(made["sentences"]) == 2 and "A cat has walked over the table." not in made["sentences"]
    assert terminate(daemon)[0] == 0


def test_port_that_is_taken(project: Project) -> None:
    """A daemon whose port is taken says so and ends with 1."""
    daemon, url = start_daemon(project, "mlx")

    second = project.run("node", "daemons/mlx.mjs", env=project.env(EXAMPLE_MLX_PORT=url.rpartition(":")[2]))

    assert second.returncode == 1 and "EADDRINUSE" in second.stderr
    assert terminate(daemon)[0] == 0


# The tasks


def test_golden_path_ranks_paths(project: Project) -> None:
    """golden-path needs a dream's graph, and writes chains of documents that are linked, the best first."""
    made = project.run("node", "buildScripts/fixtures.mjs", "30")
    assert made.returncode == 0, made.stderr
    assert project.npm("--silent", "ai:sync-kb").returncode == 0
    too_early = project.npm("--silent", "ai:golden-path")
    assert project.npm("--silent", "ai:run-sandman").returncode == 0
    done = project.npm("--silent", "ai:golden-path")

    assert (too_early.returncode, "no graph yet" in too_early.stderr) == (1, True)
    assert done.returncode == 0 and "kept 20 paths" in done.stdout, done.stderr
    rows = project.query("SELECT score, documents FROM golden_paths ORDER BY position")
    edges = set(project.query("SELECT source, target FROM edges"))
    chains = [json.loads(documents) for _, documents in rows]
    assert [score for score, _ in rows] == sorted((score for score, _ in rows), reverse=True)
    assert all(len(chain) > 2 and edges.issuperset(pairwise(chain)) for chain in chains)


def test_fixtures_make_a_remote_that_is_followed(project: Project) -> None:
    """What is pushed to the remote that the fixtures make is pulled by the repository sync, and nothing more."""
    made = project.run("node", "buildScripts/fixtures.mjs", "2")
    before = project.npm("--silent", "ai:primary-dev-sync")
    project.push("news")
    after = project.npm("--silent", "ai:primary-dev-sync")

    assert "40 commits in" in made.stdout
    assert before.stdout == ".work/clone: up-to-date\n"
    assert re.match(r"\.work/clone: pulled \w+\.\.\w+ \(1 commit\)\nai:sync-kb: read ", after.stdout)
    assert "clone/news.md" in [path for (path,) in project.query("SELECT path FROM documents")]


def test_heavy_tasks_never_overlap(project: Project) -> None:
    """With intervals shorter than the tasks take, all six run again and again, and no two of them at once, by the history
    and by what they meet in the database (R4).
    """
    project.make_database()
    project.make_remote()
    running = orchestrate(project, poll_interval="50ms", interval="100ms", cooldown="1s")
    for round_ in (1, 2):
        project.push(f"page-{round_}")
        while missing := [task for task in HEAVY if completed(project)[task] < round_]:
            # How long all others take before it is no matter, as long as it goes on.
            ended = len(project.lock.history(event="released"))
            until(lambda ended=ended: len(project.lock.history(event="released")) > ended, f"{missing}, or any other")
    code, told = terminate(running)

    rows = [row for row in project.lock.history() if row["event"] in {"acquired", "released", "stale_cleaned"}]
    assert code == 0, told
    assert {row["source"] for row in rows} == {"orchestrator"}
    assert [row["event"] for row in rows] == ["acquired", "released"] * (len(rows) // 2)
    assert [row["task"] for row in rows[::2]] == [row["task"] for row in rows[1::2]]
    assert {row["outcome"] for row in rows[1:-1:2]} <= {"completed", "failed"}
    assert project.query("SELECT * FROM met") == []
    nested = project.lock.history(event="nested_finished", exit_code=0)
    assert nested and {(row["task"], row["parent_task"]) for row in nested} == {("kbSync", "primary-dev-sync")}


def test_from_the_bridge_to_the_summary(project: Project) -> None:
    """What is posted to the supervised bridge lands in the inbox, makes summary due at once, and is summarised; a TERM
    then leaves no daemon behind (R5, R12).
    """
    project.make_database()
    running = orchestrate(project, poll_interval="100ms")
    until(lambda: completed(project)["summary"], "the first summary")
    url = address(until(lambda: "(pid" in (said := log_of(project, "daemon@bridgeDaemon")) and said, "the bridge"))
    pid = ask(f"{url}/health")["pid"]

    written = ask(f"{url}/handovers", {"session": "posted", "done": [TEXT]})["written"]
    until(lambda: completed(project)["summary"] == 2, "the second summary")
    code, told = terminate(running)

    assert code == 0, told
    reasons = [row["reason"] for row in project.lock.history(event="acquired", task="summary")]
    assert reasons == ["inbox:3", "inbox:1"]
    ((summary,),) = project.query(f"SELECT summary FROM summaries WHERE source = '{written}'")
    assert "lease" in summary
    assert (project.work / "summaries" / Path(f"{written}.md")).exists()
    assert is_over(pid)
