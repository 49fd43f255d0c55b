"""The graph of documents: edges from links and shared terms, fading unless they are renewed."""

import math
import re
import sqlite3
from collections import Counter, defaultdict
from typing import Any

from schema import transaction

KEEP = 0.8  # of an edge's weight from one dream to the next
PRUNE_BELOW = 0.05
TERMS = 16  # a document is known by so many
COMMON = 0.2  # terms in more of the documents than this connect nothing
NEIGHBOURS = 12
DAMPING = 0.85
TOLERANCE = 1e-8
MOST_ITERATIONS = 100
WORD = re.compile(r"[a-z]{4,}")

Edge = tuple[str, str]


def dream(database: sqlite3.Connection, _request: dict[str, Any]) -> dict[str, Any]:
    """Fade, renew, prune and rank, in one transaction."""
    with transaction(database):
        texts: dict[str, list[str]] = {
            path: [] for (path,) in database.execute("SELECT path FROM documents ORDER BY path")
        }
        for path, heading, text in database.execute("SELECT path, heading, text FROM chunks ORDER BY path, position"):
            texts[path].append(f"{heading}\n{text}")
        counts = {path: Counter(WORD.findall("\n".join(parts).lower())) for path, parts in texts.items()}
        terms = terms_of(counts)
        seen = shared_terms(terms)
        for path, target in database.execute("SELECT path, target FROM links"):
            if target in texts and target != path:
                seen[path, target] = 1.0

        old = {(source, target): weight for source, target, weight in database.execute("SELECT * FROM edges")}
        kept = faded_and_renewed(old, seen, set(texts))
        ranks, iterations = pagerank(sorted(texts), kept)

        database.execute("DELETE FROM nodes")
        database.execute("DELETE FROM edges")
        database.executemany(
            "INSERT INTO nodes VALUES (?, ?, ?)", [(path, ranks[path], " ".join(terms[path])) for path in ranks]
        )
        database.executemany("INSERT INTO edges VALUES (?, ?, ?)", [(*edge, weight) for edge, weight in kept.items()])
    return {
        "documents": len(texts),
        "words": sum(sum(one.values()) for one in counts.values()),
        "added": len(kept.keys() - old.keys()),
        "renewed": len(kept.keys() & old.keys() & seen.keys()),
        "faded": len(kept.keys() - seen.keys()),
        "pruned": len(old.keys() - kept.keys()),
        "edges": len(kept),
        "iterations": iterations,
        "top": sorted(ranks, key=lambda path: (-ranks[path], path))[:3],
    }


def terms_of(counts: dict[str, Counter[str]]) -> dict[str, dict[str, float]]:
    """The terms that tell a document from the others, by tf-idf, as a vector of length one."""
    documents_with = Counter(word for words in counts.values() for word in words)
    vectors = {}
    for path, words in counts.items():
        scores = {
            word: (1 + math.log(number)) * math.log(len(counts) / documents_with[word])
            for word, number in words.items()
            if documents_with[word] > 1
        }
        best = sorted(scores, key=lambda word: (-scores[word], word))[:TERMS]
        length = math.sqrt(sum(scores[word] ** 2 for word in best)) or 1.0
        vectors[path] = {word: scores[word] / length for word in best}
    return vectors


def shared_terms(vectors: dict[str, dict[str, float]]) -> dict[Edge, float]:
    """Edges to the nearest neighbours by cosine of their terms."""
    documents_by_term = defaultdict(list)
    for path, vector in vectors.items():
        for word in vector:
            documents_by_term[word].append(path)
    likeness: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for word, paths in documents_by_term.items():
        if len(paths) > max(2, COMMON * len(vectors)):
            continue
        for source in paths:
            for target in paths:
                if source != target:
                    likeness[source][target] += vectors[source][word] * vectors[target][word]
    edges = {}
    for source, targets in likeness.items():
        for target in sorted(targets, key=lambda path: (-targets[path], path))[:NEIGHBOURS]:
            edges[source, target] = targets[target]
    return edges


def faded_and_renewed(old: dict[Edge, float], seen: dict[Edge, float], alive: set[str]) -> dict[Edge, float]:
    """The weights after this dream: what is not seen again fades, what is moves towards what was seen."""
    weights = {}
    for edge in old.keys() | seen.keys():
        weight = KEEP * old.get(edge, seen.get(edge, 0.0)) + (1 - KEEP) * seen.get(edge, 0.0)
        if weight >= PRUNE_BELOW and alive.issuperset(edge):
            weights[edge] = weight
    return weights


def pagerank(paths: list[str], edges: dict[Edge, float]) -> tuple[dict[str, float], int]:
    """Weighted PageRank until it moves by less than TOLERANCE; dead ends give to all."""
    if not paths:
        return {}, 0
    totals: dict[str, float] = defaultdict(float)
    for (source, _), weight in edges.items():
        totals[source] += weight
    shares = [(source, target, weight / totals[source]) for (source, target), weight in sorted(edges.items())]
    ranks = dict.fromkeys(paths, 1 / len(paths))
    for iteration in range(1, MOST_ITERATIONS + 1):  # noqa: B007  how many it took is part of the answer
        dangling = sum(rank for path, rank in ranks.items() if path not in totals)
        fresh = dict.fromkeys(paths, (1 - DAMPING + DAMPING * dangling) / len(paths))
        for source, target, share in shares:
            fresh[target] += DAMPING * ranks[source] * share
        moved = sum(abs(fresh[path] - ranks[path]) for path in paths)
        ranks = fresh
        if moved < TOLERANCE:
            break
    return ranks, iteration
