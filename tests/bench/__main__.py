"""`python -m tests.bench`: measure, and print one table."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable

from tests.bench import exporter, fairness, growth, handoff, inprocess, memory, orchestrator, start, syscalls
from tests.bench.bench import Bench, prepared
from tests.bench.row import NotMeasuredError, Row

ROWS: dict[str, Callable[[Bench], Row]] = {
    "start-floor": start.floor,
    "start": start.plain,
    "start-configured": start.configured,
    "start-whole": start.whole,
    "handoff-killed": handoff.killed,
    "handoff-released": handoff.released,
    "handoff-polled": handoff.polled,
    "inprocess": inprocess.hold,
    "inprocess-entered": inprocess.entered,
    "memory": memory.wrapper,
    "syscalls": syscalls.readers,
    "fairness": fairness.by_program,
    "fairness-library": fairness.by_library,
    "exporter-events": exporter.events_kept,
    "exporter-tasks": exporter.tasks,
    "exporter-series": exporter.series,
    "exporter-deferrals": exporter.deferrals,
    "exporter-memory": exporter.memory,
    "orchestrator-idle": orchestrator.idle,
    "orchestrator-pass": orchestrator.passes_over_many,
    "orchestrator-memory": orchestrator.memory,
    "orchestrator-log": orchestrator.log_lines,
    "orchestrator-due": orchestrator.due,
    "growth-waiters": growth.waiters,
    "growth-events": growth.events_kept,
    "growth-tasks": growth.tasks,
    "growth-locks": growth.foreign_locks,
}
HEAD = ("name", "what", "ours", "beside it", "", "ratio", "bar", "ok?")
IS_NUMBER = (False, False, True, True, False, True, True, False)
OK = {True: "yes", False: "NO", None: "–"}


def main() -> int:
    """Print the table; the exit code tells of missed bars only with `--strict`."""
    asked = _arguments()
    names = [name for name in ROWS if not asked.only or any(name.startswith(wanted) for wanted in asked.only)]
    if not names:
        print(f"no row is called {', '.join(asked.only)}; there are: {', '.join(ROWS)}", file=sys.stderr)
        return 2
    if asked.realtime:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(5))
    began = time.monotonic()
    with prepared(is_quick=asked.quick) as bench:
        found = {name: _measured(name, bench) for name in names}
    _progress("")
    print("\n".join(_aligned([HEAD, *(_cells(name, row) for name, row in found.items())])), end="\n\n")
    unmeasured = [f"{name}: {row}" for name, row in found.items() if isinstance(row, str)]
    missed = [name for name, row in found.items() if isinstance(row, Row) and row.is_met is False]
    for text in unmeasured:
        print(f"not measured: {text}")
    verdict = f"bars missed: {', '.join(missed)}" if missed else "no bar missed"
    count = f"{len(names) - len(unmeasured)} of {len(names)}"
    print(f"{count} rows measured in {time.monotonic() - began:.0f} s, {verdict}")
    return 1 if asked.strict and (missed or unmeasured) else 0


def _measured(name: str, bench: Bench) -> Row | str:
    """Return a row, or why there is none: the others are worth having all the same."""
    _progress(f"{name} …")
    try:
        return ROWS[name](bench)
    except NotMeasuredError as missing:
        return str(missing)
    except Exception as error:  # noqa: BLE001  whatever it is, it is told
        return repr(error)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure maintlock beside its peers.")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="only rows whose name begins so; can be repeated"
    )
    parser.add_argument("--quick", action="store_true", help="a fifth of the rounds: to see that it works")
    parser.add_argument("--realtime", action="store_true", help="at real-time priority, beside other work; needs root")
    parser.add_argument("--strict", action="store_true", help="exit 1 if a bar is missed or could not be measured")
    return parser.parse_args()


def _cells(name: str, row: Row | str) -> tuple[str, ...]:
    if isinstance(row, str):
        return (name, "not measured, see below", "", "", "", "", "", OK[None])
    beside = f"{row.unit + ' ' if row.unit else ''}{row.beside}"
    ratio = "" if row.ratio is None else _number(row.ratio)
    bar = "" if row.bar is None else _number(row.bar) + (f" {row.unit}" if row.is_absolute else "")
    return (name, row.what, _number(row.ours), _number(row.peer), beside, ratio, bar.rstrip(), OK[row.is_met])


def _number(value: float) -> str:
    if value == int(value):
        return str(int(value))
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _aligned(table: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in table) for column in range(len(HEAD))]
    lines = [
        "  ".join(
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(row, widths, IS_NUMBER, strict=True)
        ).rstrip()
        for row in table
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
