"""Who held the lease over the last day: grants as bars, one lane for each task. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from maintlock.redact import printable
from maintlock.times import duration_text, epoch_seconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from maintlock.report import Holder

EVENTS = ("acquired", "released", "stale_cleaned")
DAY_SECONDS = 86400.0
MAX_LANES = 8
MAX_BARS = 2000
NARROWEST = 0.3  # percent of the day: what is shorter is still seen
OTHERS = "others"
RUNNING = "running"


@dataclass(frozen=True, kw_only=True)
class Span:
    """One grant, from `since` to `until` in seconds since the epoch."""

    task: str
    since: float
    until: float
    outcome: str


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One grant on its lane: `left` and `width` in percent of the day."""

    left: float
    width: float
    outcome: str
    title: str


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One task, the time that it held the lease in that day, and its grants."""

    task: str
    seconds: float
    bars: list[Bar]


def spans(events: Iterable[Mapping[str, Any]], *, holder: Holder | None, now: float) -> list[Span]:
    """Return the grants among events, and the holder's, which is still going on, oldest first.

    A grant that began before the first event is known by its end. One that has no end and is not going on was lost without
    a trace; all that is known is that it ended before the next one began.
    """
    begun: dict[str, tuple[float, str]] = {}
    found: dict[str, Span] = {}
    for event in events:
        lease_id, at, task = event["lease_id"], epoch_seconds(event["at"]) or 0.0, str(event["task"])
        if lease_id and event["event"] == "acquired":
            begun[lease_id] = at, task
        elif lease_id and event["outcome"]:
            since, task = begun.pop(lease_id, (at - (event["seconds"] or 0.0), task))
            found[lease_id] = Span(task=task, since=min(since, at), until=min(at, now), outcome=event["outcome"])
    if holder is not None and holder["lease_id"] not in found:
        told_at, task = begun.pop(holder["lease_id"], (now, str(holder["task"])))
        since = epoch_seconds(holder["acquired_at"]) or told_at
        found[holder["lease_id"]] = Span(task=task, since=min(since, now), until=now, outcome=RUNNING)
    starts = sorted([*(span.since for span in found.values()), *(since for since, _ in begun.values())])
    for lease_id, (since, task) in begun.items():
        until = min((later for later in starts if since < later < now), default=now)
        found[lease_id] = Span(task=task, since=since, until=until, outcome="unknown")
    return sorted(found.values(), key=lambda span: span.since)


def lanes(grants: Sequence[Span], *, now: float) -> list[Lane]:
    """Return the lanes of the last day: the holder's first, then those that held the lease longest, the rest in one."""
    begin = now - DAY_SECONDS
    seen = [span for span in grants if span.until >= begin and span.since <= now][-MAX_BARS:]
    running = {span.task for span in seen if span.outcome == RUNNING}
    seconds: dict[str, float] = {}
    for span in seen:
        seconds[span.task] = seconds.get(span.task, 0.0) + span.until - max(span.since, begin)
    ranked = sorted(seconds, key=lambda task: (task not in running, -seconds[task], task))
    named = ranked if len(ranked) <= MAX_LANES else ranked[: MAX_LANES - 1]
    found = [_lane(task, [task], seen, seconds, begin) for task in named]
    if len(named) < len(ranked):
        found.append(_lane(OTHERS, ranked[len(named) :], seen, seconds, begin))
    return found


def _lane(name: str, tasks: Sequence[str], seen: Iterable[Span], seconds: Mapping[str, float], begin: float) -> Lane:
    return Lane(
        task=name,
        seconds=sum(seconds[task] for task in tasks),
        bars=[_bar(span, begin) for span in seen if span.task in tasks],
    )


def _bar(span: Span, begin: float) -> Bar:
    width = max(NARROWEST, 100 * (span.until - max(span.since, begin)) / DAY_SECONDS)
    left = min(100 * max(0.0, span.since - begin) / DAY_SECONDS, 100 - width)
    lasted = duration_text(span.until - span.since)
    title = f"{printable(span.task, 64)}: {span.outcome.replace('_', ' ')}, {lasted}"
    return Bar(left=round(left, 3), width=round(width, 3), outcome=span.outcome, title=title)
