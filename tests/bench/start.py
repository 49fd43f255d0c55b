"""How long a guarded job waits for its guard."""

from __future__ import annotations

from pathlib import Path

from tests.bench.bench import Bench
from tests.bench.measure import first_ms, medians, whole_ms
from tests.bench.row import Row

ROUNDS = 60
TASKS = "kbSync summary backup primary-dev-sync dream golden-path workflow-sync report cleanup index".split()
BESIDE = "python -c pass"
MINIMAL = "import os, sys; os.waitpid(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0)"


def floor(bench: Bench) -> Row:
    """Measure a wrapper that imports nothing and locks nothing: nothing written in Python starts a job earlier."""
    argv = [bench.python, "-c", MINIMAL, bench.probe, "first"]
    return _beside_pass(bench, "job's first instruction, bare wrapper", argv)


def plain(bench: Bench) -> Row:
    """Measure the start of a job where nothing is configured."""
    return _beside_pass(bench, "job's first instruction", _first(bench), bar=2.1)


def configured(bench: Bench) -> Row:
    """Measure the start of a job where ten tasks are configured."""
    return _beside_pass(bench, "…with ten tasks configured", _first(bench), bar=4.0, configuration=_configuration())


def whole(bench: Bench) -> Row:
    """Measure what guarding `true` takes from beginning to end."""
    argv = [bench.wrap, "-t", "kbSync", "--", "true"]
    return _beside_pass(bench, "whole maintlock-wrap -- true", argv, bar=3.5, is_whole=True)


def _first(bench: Bench) -> list[str | Path]:
    return [bench.wrap, "-t", "kbSync", "--", bench.probe, "first"]


def _beside_pass(
    bench: Bench,
    what: str,
    argv: list[str | Path],
    *,
    bar: float | None = None,
    is_whole: bool = False,
    configuration: str = "",
) -> Row:
    timed = whole_ms if is_whole else first_ms
    with bench.scratch() as scratch:
        if configuration:
            (scratch / "maintlock.toml").write_text(configuration, encoding="utf-8")
        env = bench.env(scratch)
        ours, peer = medians(
            bench.rounds(ROUNDS),
            lambda: timed(argv, env, scratch),
            lambda: whole_ms([bench.python, "-c", "pass"], env, scratch),
        )
    return Row(what=what, ours=ours, peer=peer, beside=BESIDE, unit="ms", bar=bar)


def _configuration() -> str:
    head = 'poll_interval = "3s"\nstarved_after = "2h"\n\n[lease.heavy-maintenance]\nttl = "6h"\n'
    tasks = [
        f'\n[tasks.{name}]\ncommand = ["npm", "run", "ai:{name}"]\nnpm_script = "ai:{name}"\ninterval = "30m"\n'
        f'max_runtime = "2h"\nmatch = "{name}.mjs"\n'
        for name in TASKS
    ]
    return head + "".join(tasks)
