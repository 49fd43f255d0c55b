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
    rows += [Text(), Text(f"lease         {lease['state']}{by}")]
    pid = f" (pid {orchestrator['pid']})" if orchestrator["pid"] else ""
    told = f", polled {_ago(orchestrator['polled_at'], now)}" if orchestrator["state"] == "running" else ""
    rows.append(Text.assemble("orchestrator  ", _styled(orchestrator["state"]), f"{pid}{told}"))
    for name, daemon in found["daemons"].items():
        about = (
            f" (pid {daemon['pid']}, since {_ago(daemon['since'], now)})" if daemon["pid"] else f": {daemon['detail']}"
        )
        rows.append(Text.assemble(f"daemon        {name} ", _styled(daemon["state"]), printable(about, 200)))
    return Group(*rows, Text(), of_tasks(found["tasks"], now))


def of_tasks(tasks: Mapping[str, Mapping[str, Any]], now: float) -> RenderableType:
    """Return how each task stands, as a table."""
    if not tasks:
        return Text("no tasks are configured")
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
            Text(_until(task["next_due_at"], now)),
            Text(_why(task, now)),
        )
    return table


def _why(task: Mapping[str, Any], now: float) -> str:
    if task["detail"]:
        return printable(task["detail"], 400)
    if task["deferred_since"]:
        blocker = printable(task["blocked_by"] or "an unknown owner", 64)
        return f"held back by {blocker} ({printable(task['reason_code'] or '', 32)}) since {_ago(task['deferred_since'], now)}"
    return f"its last run ended as {task['last_outcome']}" if task["state"] == "failing" else ""


def _styled(state: str) -> Text:
    return Text(state, style=STYLES.get(state, ""))


def _ago(moment: str | None, now: float) -> str:
    at = epoch_seconds(moment) if moment else None
    return "never" if at is None else f"{duration_text(max(0.0, now - at))} ago"


def _until(moment: str | None, now: float) -> str:
    at = epoch_seconds(moment) if moment else None
    return "by hand" if at is None else "now" if at <= now else f"in {duration_text(at - now)}"
