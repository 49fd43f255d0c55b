"""Status and history for people's eyes. What others have written is shown as text: no markup, no control characters."""

from __future__ import annotations

import os
import shlex
import time
from typing import TYPE_CHECKING

from rich.box import ROUNDED
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from maintlock.naming import size_text
from maintlock.redact import printable
from maintlock.times import duration_text, epoch_seconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from rich.console import RenderableType

    from maintlock.report import CollisionReport, Holder, Nested, Process, Status, Waiter

STATE_STYLES = {"free": "green", "held": "yellow", "orphaned": "red", "unknown": "magenta"}
EVENT_STYLES = {
    "deferred": "yellow", "token_stale": "yellow", "survivors": "yellow", "stale_cleaned": "red", "collision": "red",
    "stop_requested": "yellow", "collision_cleared": "green",
}  # fmt: skip
OUTCOME_STYLES = {"completed": "green", "failed": "red", "timed_out": "red", "lost": "red", "stopped": "yellow"}
MAX_SHOWN = 12
MAX_COMMAND = 400
MAX_WIDTH = 100
WIDTH_FOR_PROGRAMS = 400
DIM = "dim"


def write_status(found: Status, now: float) -> None:
    """Print who has the lease; `now` in seconds since the epoch."""
    write(status(found, now))


def write_history(rows: Sequence[Mapping[str, Any]], *, is_selection: bool = False) -> None:
    """Print what happened, all of it or what was selected."""
    write(history(rows, is_selection=is_selection))


def write(shown: RenderableType) -> None:
    """Print a panel or a table, for a person or for grep."""
    console = Console(highlight=False, markup=False, emoji=False)
    if isinstance(shown, Panel):
        console.width = min(console.width, MAX_WIDTH)
    elif not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDTH_FOR_PROGRAMS  # grep and less -S want whole names
    with console.capture() as capture:  # rich answers a closed pipe with an exit of its own
        console.print(shown)
    console.file.write(capture.get())


# Status


def status(found: Status, now: float) -> Panel:
    """Return who has the lease, as a panel."""
    style = STATE_STYLES.get(found["state"], "magenta")
    body = Table.grid(padding=(0, 2))
    body.add_column(justify="right", style=DIM, no_wrap=True)
    body.add_column(overflow="fold")
    for label, value in _rows(found, now):
        body.add_row(label, value)
    title = Text.assemble(found["lease"], " · ", (found["state"], f"bold {style}"))
    return Panel(body, title=title, title_align="left", border_style=style, box=ROUNDED)


def _rows(found: Status, now: float) -> Iterable[tuple[str, RenderableType]]:
    holder = found["holder"]
    if holder is not None:
        yield from _holder_rows(holder, now)
    elif found["state"] == "free":
        yield "held by", Text("nobody")
    if found["detail"]:
        yield "note", _text(found["detail"], 1000)
    if holder is None and found["sidecar"] != "missing":
        yield "sidecar", Text(found["sidecar"])
    yield from _list("waiting", [_waiter(row, now) for row in found["waiters"]])
    yield from _list("inside", [_nested(row, now) for row in found["nested"]])
    yield from _list("collision", [_collision(row, now) for row in found["collisions"]])
    yield "lock file", _text(found["path"], 4096)


def _holder_rows(holder: Holder, now: float) -> Iterable[tuple[str, RenderableType]]:
    yield "held by", _task(holder)
    yield "owner", _text(holder["owner"])
    yield "reason", _text(holder["reason"])
    yield "pid", Text(f"{holder['pid']} ({printable(holder['mode'], 20)}, from {printable(holder['source'], 20)})")
    yield "since", _since(holder, now)
    if holder["command"]:
        yield "command", _text(shlex.join(holder["command"]), MAX_COMMAND)
    yield from _list("processes", [_process(row) for row in holder["processes"]])
    if len(holder["processes"]) > 1:
        yield "memory", Text(size_text(holder["rss_bytes"]))


def _task(holder: Holder) -> Text:
    shown = Text(printable(holder["task"]), style="bold")
    if holder["alive"] is False:
        shown.append(" (dead)", style="red")
    if holder["stopped"]:
        shown.append(" (stopped)", style="red")
    if holder["overdue"]:
        shown.append(" (overdue)", style="red")
    return shown


def _since(holder: Holder, now: float) -> Text:
    shown = Text(_local(holder["acquired_at"], now))
    if holder["held_seconds"] is not None:
        lasted = duration_text(holder["held_seconds"])
        shown.append(
            f", for {lasted} of {duration_text(holder['ttl_seconds'])}", style="red" if holder["overdue"] else ""
        )
    return shown


def _process(row: Process) -> Text:
    return Text(f"{row['pid']:>7} {printable(row['name'], 32):<16} {size_text(row['rss_bytes']):>8}")


def _waiter(row: Waiter, now: float) -> Text:
    return Text(
        f"{printable(row['task'])} (pid {row['pid']}) since {_local(row['since'], now)}{_for(row['since'], now)}"
    )


def _nested(row: Nested, now: float) -> Text:
    reason = f", reason {printable(row['reason'], 120)}" if row["reason"] else ""
    since = row["started_at"]
    return Text(f"{printable(row['task'])} (pid {row['pid']}{reason}) since {_local(since, now)}{_for(since, now)}")


def _collision(row: CollisionReport, now: float) -> Text:
    shown = Text(printable(row["kind"]), style="red")
    return shown.append(f" since {_local(row['since'], now)}: {printable(row['detail'] or '', 1000)}", style="default")


def _list(label: str, lines: list[Text]) -> Iterable[tuple[str, RenderableType]]:
    if lines:
        more = [Text(f"… and {len(lines) - MAX_SHOWN} more", style=DIM)] if len(lines) > MAX_SHOWN else []
        yield label, Group(*lines[:MAX_SHOWN], *more)


# History


def history(rows: Sequence[Mapping[str, Any]], *, is_selection: bool = False) -> Table | Text:
    """Return what happened, as a table, oldest first."""
    if not rows:
        return Text("no event matches" if is_selection else "nothing has happened yet")
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("TIME", no_wrap=True)
    table.add_column("EVENT", no_wrap=True)
    for name in ("TASK", "BY"):  # these two give way where the terminal is narrow
        table.add_column(name, overflow="ellipsis")
    table.add_column("TOOK", no_wrap=True, justify="right")
    table.add_column("OUTCOME", no_wrap=True)
    for row in rows:
        table.add_row(
            Text(_local(row["at"], None), style=DIM),
            Text(printable(row["event"], 20), style=EVENT_STYLES.get(row["event"], "")),
            Text(printable(row["task"] or "", 64), no_wrap=True),
            Text(_by(row), no_wrap=True),
            Text(_took(row)),
            _outcome(row),
        )
    return table


def _by(row: Mapping[str, Any]) -> str:
    """Return who stood in the way, what it is part of, or who asked: the one of these that the event is about."""
    if row["event"] == "deferred" or row["blocked_by"]:
        blocker = printable(row["blocked_by"] or "unknown", 64)
        return f"{blocker} ({printable(row['reason_code'], 32)})" if row["reason_code"] else blocker
    if row["parent_task"]:
        return f"in {printable(row['parent_task'], 64)}"
    return printable(row["reason_code"] or row["source"] or "", 64)


def _took(row: Mapping[str, Any]) -> str:
    """Return how long it took; a wait of no length is none."""
    seconds = row["seconds"]
    is_told = seconds is not None and (seconds >= 0.05 or row["event"] not in {"acquired", "deferred"})
    return duration_text(seconds) if is_told else ""


def _outcome(row: Mapping[str, Any]) -> Text:
    outcome = row["outcome"] or row.get("result") or ""  # that of a joined job is its own
    code = f" ({row['exit_code']})" if row["exit_code"] else ""
    return Text(f"{printable(outcome, 20)}{code}", style=OUTCOME_STYLES.get(outcome, ""))


# Words


def _text(text: str, limit: int = 200) -> Text:
    return Text(printable(text, limit))


def _local(at: str, now: float | None) -> str:
    """Return a time in the local zone; if it is today's, without the date (never so where `now` is None)."""
    seconds = epoch_seconds(at)
    if seconds is None:
        return printable(at, 32)
    moment = time.localtime(seconds)
    is_today = now is not None and time.localtime(now)[:3] == moment[:3]
    return time.strftime("%H:%M:%S" if is_today else "%m-%d %H:%M:%S", moment)


def _for(since: str, now: float) -> str:
    seconds = epoch_seconds(since)
    return "" if seconds is None else f", for {duration_text(now - seconds)}"
