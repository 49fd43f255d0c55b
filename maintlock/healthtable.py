"""Health and tasks for people's eyes. What others have written is shown as text: no markup, no control characters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from maintlock.redact import printable
from maintlock.times import duration_text, epoch_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from rich.console import RenderableType

    from maintlock.orchestrator.health import Health

STYLES = {
    "healthy": "green", "degraded": "red", "unknown": "magenta", "running": "cyan", "starved": "red", "failing": "red",
    "overdue": "red", "deferred": "yellow", "up": "green", "down": "red", "died": "red", "stalled": "red",
}  # fmt: skip


def of_health(found: Health, now: float) -> RenderableType:
    """Return all of it for people; `now` in seconds since the epoch."""
    rows: list[RenderableType] = [Text(found["status"], style=f"bold {STYLES[found['status']]}")]
    rows += [Text(f"  {printable(reason, 400)}") for reason in found["reasons"]]
    lease, orchestrator = found["lease"], found["orchestrator"]
    holder = lease["holder"]
    by = f" by {printable(holder['task'])}" if holder is not None and lease["state"] != "free" else ""
    rows += [Text(), Text(f"lease: {lease['state']}{by}")]
    pid = f" (pid {orchestrator['pid']})" if orchestrator["pid"] else ""
    told = f", polled {_ago(orchestrator['polled_at'], now)}" if orchestrator["state"] == "running" else ""
    state = _styled(orchestrator["state"], "never started" if orchestrator["state"] == "never" else None)
    rows.append(Text.assemble("orchestrator: ", state, f"{pid}{told}"))
    rows += [Text.assemble(f"daemon {name}: ", *_daemon(daemon, now)) for name, daemon in found["daemons"].items()]
    return Group(*rows, Text(), of_tasks(found["tasks"], now))


def _daemon(daemon: Mapping[str, Any], now: float) -> tuple[Text, str]:
    if daemon["state"] == "up":
        return _styled("up"), f" for {_since(daemon['since'], now)} (pid {daemon['pid']})"
    if daemon["state"] == "down":
        return _styled("down"), printable(f": {daemon['detail']}", 200)
    return Text("not running"), " (no orchestrator)"


def of_tasks(tasks: Mapping[str, Mapping[str, Any]], now: float) -> RenderableType:
    """Return how each task stands, as a table."""
    if not tasks:
        return Text("no tasks are configured, and none has run")
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for name in ("TASK", "STATE", "LAST RUN", "LAST SUCCESS", "NEXT DUE"):
        table.add_column(name, no_wrap=True)
    table.add_column("WHY", overflow="fold")
    for name, task in tasks.items():
        table.add_row(
            Text(printable(name, 64)),
            _styled(task["state"]),
            Text(_ago(task["last_run_at"], now)),
            Text(_ago(task["last_success_at"], now)),
            Text(_next_due(task, now)),
            Text(_why(task, now)),
        )
    return table


def _why(task: Mapping[str, Any], now: float) -> str:
    said = [printable(task["detail"], 400)] if task["detail"] else []
    if task["deferred_since"] and task["state"] != "running":
        by = (
            f"by {printable(task['blocked_by'] or 'an unknown owner', 64)} ({printable(task['reason_code'] or '', 32)})"
        )
        since = task["deferred_since"]
        said.append(
            f"held back {by} for {_since(since, now)}" if task["held_back"] else f"deferred {_ago(since, now)} {by}"
        )
    elif task["state"] == "failing" and not said:
        said.append(f"its last run ended as {task['last_outcome']}")
    return "; ".join(said)


def _styled(state: str, words: str | None = None) -> Text:
    return Text(words or state, style=STYLES.get(state, ""))


def _since(moment: str, now: float) -> str:
    return duration_text(max(0.0, now - (epoch_seconds(moment) or now)))


def _ago(moment: str | None, now: float) -> str:
    return f"{_since(moment, now)} ago" if moment else "never"


def _next_due(task: Mapping[str, Any], now: float) -> str:
    """Return when the orchestrator starts a task next: it starts no other."""
    at = epoch_seconds(task["next_due_at"]) if task["next_due_at"] else None
    if not task["scheduled"]:
        return "by hand"
    if task["held_back"] or (at is not None and at <= now):
        return "now"
    return "inbox" if at is None else f"in {duration_text(at - now)}"
