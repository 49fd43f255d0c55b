"""Golden paths: chains of documents that one would read, ranked over the graph of the last dream."""

import heapq
import json
import math
import sqlite3
from collections import defaultdict
from typing import Any

from schema import transaction

STARTS = 24  # the documents with the highest ranks
SHORTEST = 3  # documents; two are but an edge
KEPT = 20

Outgoing = dict[str, list[tuple[str, float]]]


def golden_path(database: sqlite3.Connection, _request: dict[str, Any]) -> dict[str, Any]:
    """Find the likeliest chain from each start to each document, and keep those that lead to the best."""
    with transaction(database):
        ranks = dict(database.execute("SELECT path, rank FROM nodes"))
        if not ranks:
            raise LookupError("no graph yet; `npm run ai:run-sandman` makes it")
        outgoing = shares(database.execute("SELECT source, target, weight FROM edges").fetchall())
        starts = sorted(ranks, key=lambda path: (-ranks[path], path))[:STARTS]
        found = [one for start in starts for one in chains(start, outgoing)]
        best = sorted(found, key=lambda one: (-one[0] * ranks[one[1][-1]], one[1]))[:KEPT]
        database.execute("DELETE FROM golden_paths")
        database.executemany(
            "INSERT INTO golden_paths VALUES (?, ?, ?)",
            [
                (position, likelihood * ranks[chain[-1]], json.dumps(chain))
                for position, (likelihood, chain) in enumerate(best, 1)
            ],
        )
    return {
        "documents": len(ranks),
        "edges": sum(map(len, outgoing.values())),
        "starts": len(starts),
        "chains": len(found),
        "kept": len(best),
        "first": best[0][1] if best else [],
    }


def shares(edges: list[tuple[str, str, float]]) -> Outgoing:
    """Of each document, where a reader goes next, and how likely."""
    totals: dict[str, float] = defaultdict(float)
    for source, _, weight in edges:
        totals[source] += weight
    outgoing: Outgoing = defaultdict(list)
    for source, target, weight in edges:
        outgoing[source].append((target, weight / totals[source]))
    return outgoing


def chains(start: str, outgoing: Outgoing) -> list[tuple[float, list[str]]]:
    """The likeliest chain to each document that is reached (Dijkstra, over negative logarithms)."""
    before: dict[str, str] = {}
    cost = {start: 0.0}
    heap = [(0.0, start)]
    while heap:
        so_far, path = heapq.heappop(heap)
        if so_far > cost[path]:
            continue
        for target, share in outgoing.get(path, ()):
            there = so_far - math.log(share)
            if there < cost.get(target, math.inf):
                cost[target], before[target] = there, path
                heapq.heappush(heap, (there, target))
    found = [(math.exp(-cost[path]), chain_to(path, before)) for path in before]
    return [(likelihood, chain) for likelihood, chain in found if len(chain) >= SHORTEST]


def chain_to(path: str, before: dict[str, str]) -> list[str]:
    chain = [path]
    while chain[-1] in before:
        chain.append(before[chain[-1]])
    return chain[::-1]
