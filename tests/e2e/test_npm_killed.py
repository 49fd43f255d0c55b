"""npm, the wrapper or both are killed while the script works on: the lease stays with what works (L2)."""

from __future__ import annotations

import os
import signal

import pytest

from tests.e2e.project import Project, is_over
from tests.support import WRAP, Running, until

KILLED = [("npm",), ("wrap",), ("npm", "wrap")]


def start(project: Project, outermost: str) -> tuple[Running, dict[str, int]]:
    """Start the sync, npm around the wrapper or the other way round; return its pids when its store is at work."""
    project.gate.shut()
    if outermost == "npm":
        running = project.start_npm("ai:sync-kb")
    else:
        project.set_scripts(work="node buildScripts/ai/syncKnowledgeBase.mjs")
        running = project.start(WRAP, "-t", "kbSync", "--", project.program, "run", "work")
    store = project.until_at_work(running, "known")
    held = project.lock.sidecar()
    npm = running.pid if outermost == "npm" else until(lambda: project.lock.sidecar()["job_pid"])
    return running, {"npm": npm, "wrap": held["pid"], "store": store}


@pytest.mark.parametrize("victims", KILLED, ids="+".join)
@pytest.mark.parametrize("outermost", ["npm", "wrap"])
def test_lease_stays_until_the_work_has_ended(project: Project, outermost: str, victims: tuple[str, ...]) -> None:
    """After SIGKILL of npm, of the wrapper or of both the lease stays held until the script has ended, and then it is
    free for the one who waits (L2).
    """
    project.make_database()
    running, pids = start(project, outermost)
    for victim in victims:
        os.kill(pids[victim], signal.SIGKILL)
        until(lambda victim=victim: is_over(pids[victim]), f"the end of {victim}")

    stood_back = project.npm("--silent", "ai:backup", env=project.env(MAINTLOCK_DEFER_EXIT_CODE="75"))
    waiter = project.start(
        WRAP, "-t", "next", "--wait", "10m", "--", "sh", "-c", f"kill -0 {pids['store']} || echo the store has ended"
    )
    until(lambda: waiter.pid in [one["pid"] for one in project.lock.status()["waiters"]], "the waiter")
    alive_at_last = not is_over(pids["store"])
    ends = project.finish(waiter, running)

    expected = "held by survivors of kbSync (pids" if "wrap" in victims else "held by kbSync (owner"
    assert stood_back.returncode == 75
    assert f"backup deferred due to active heavy-maintenance lease: {expected}" in stood_back.stderr
    assert str(pids["store"]) in stood_back.stderr or "wrap" not in victims
    assert alive_at_last
    assert (ends[0][0], ends[0][1]) == (0, "the store has ended\n")
    last = {row["task"]: row["outcome"] for row in project.lock.history() if row["outcome"]}
    assert last["kbSync"] == ("lost" if "wrap" in victims else "failed" if outermost == "wrap" else "completed")
    assert project.gate.arrivals("backup") == []
