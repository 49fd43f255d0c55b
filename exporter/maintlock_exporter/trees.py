"""Processes below one another, as rows with a depth."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from maintlock import process

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from maintlock.report import Nested, Process

Key = TypeVar("Key")


def ordered(parents: Mapping[Key, Key | None]) -> list[tuple[int, Key]]:
    """Return keys with their depth, children after their parent; whose parent is not among them is at the top."""
    children: dict[Key | None, list[Key]] = {}
    for key, parent in parents.items():
        children.setdefault(parent if parent in parents and parent != key else None, []).append(key)
    found: list[tuple[int, Key]] = []
    frontier = [(0, key) for key in reversed(children.get(None, []))]
    while frontier:
        depth, key = frontier.pop()
        found.append((depth, key))
        frontier += [(depth + 1, child) for child in reversed(children.get(key, []))]
    return found


def tree(processes: Iterable[Process], parents: Mapping[int, int]) -> list[tuple[int, Process]]:
    """Return processes as a tree in rows, each with its depth; `parents` by pid."""
    rows = {row["pid"]: row for row in processes}
    return [(depth, rows[pid]) for depth, pid in ordered({pid: parents.get(pid) for pid in rows})]


def joined(nested: Sequence[Nested]) -> list[tuple[int, Nested]]:
    """Return the jobs that have joined a lease as a tree in rows: below each those that run inside it."""
    last = {row["pid"]: place for place, row in enumerate(nested)}
    parents: dict[int, int | None] = {}
    for place, row in enumerate(nested):
        around = [last[stat.pid] for stat in process.ancestors(row["pid"]) if stat.pid in last]
        before = [other for other in range(place) if nested[other]["pid"] == row["pid"]]
        parents[place] = before[-1] if before else next(iter(around), None)
    return [(depth, nested[place]) for depth, place in ordered(parents)]


def depth(nested: Sequence[Nested]) -> int:
    """Return how many jobs are inside one another at most, the holder's not counted."""
    return 1 + max((found for found, _ in joined(nested)), default=-1)
