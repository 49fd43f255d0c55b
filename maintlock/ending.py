"""How a job ended: from its exit code, the signal it died of, and the signals that came meanwhile. Pure."""

from __future__ import annotations

from maintlock.errors import EXIT_SIGNAL_BASE, EXIT_TIMED_OUT
from maintlock.model import record
from maintlock.signals import INT, QUIT, TERM

STOPPED_BY = frozenset({TERM, INT, QUIT})


@record(frozen=True, kw_only=True)
class Ending:
    """How a job ended. `signal` is what its main process died of, 0 if of none."""

    outcome: str
    exit_code: int
    signal: int = 0


def ending(
    code: int, died_of: int, *, passed_on: frozenset[int], by_terminal: frozenset[int], timed_out: bool
) -> Ending:
    """Return how a job ended: from its exit code, the signal it died of, and the signals that came meanwhile.

    After a TERM, INT or QUIT of ours no end is a success, whatever code the job chose to leave with; other signals, and
    those that the terminal delivered, count if the job ended by them.
    """
    if timed_out:
        return Ending(outcome="timed_out", exit_code=EXIT_TIMED_OUT)
    if passed_on & STOPPED_BY or any(code == EXIT_SIGNAL_BASE + n for n in passed_on | by_terminal):
        return Ending(outcome="stopped", exit_code=code, signal=died_of)
    return Ending(outcome="completed" if code == 0 else "failed", exit_code=code, signal=died_of)
