"""Names of leases and tasks: what is one, and what to make of npm's."""

from __future__ import annotations

DEFAULT_LEASE = "heavy-maintenance"
MAX_NAME = 64
LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")
FIRST = LETTERS - frozenset(".-")
RESERVED = "orchestrator"  # its lock and record lie beside those of the leases
OWN = ".task"
EXPECTED_LEASE = "1 to 64 of A-Z a-z 0-9 _ . -, not beginning with . or -, and not orchestrator"
EXPECTED_TASK = "1 to 64 of A-Z a-z 0-9 _ . - :, not beginning with . - or :"


def is_lease_name(name: str) -> bool:
    """Tell whether `name` can name a lease."""
    return 0 < len(name) <= MAX_NAME and name[0] in FIRST and LETTERS.issuperset(name) and name != RESERVED


def own_lease(task: str) -> str:
    """Return the lease that a task which is not heavy has to itself."""
    return f"{task.replace(':', '-')[: MAX_NAME - len(OWN)]}{OWN}"


def is_task_name(name: str) -> bool:
    """Tell whether `name` can name a task: a lease name that may also have `:` inside."""
    return 0 < len(name) <= MAX_NAME and name[0] in FIRST and LETTERS.issuperset(name.replace(":", ""))


def task_from_npm(script: str) -> str:
    """Return the task name of an npm script: every character that a task name cannot have becomes `-`."""
    name = "".join([c if c in LETTERS or c == ":" else "-" for c in script[:MAX_NAME]])
    return name if not name or name[0] in FIRST else "_" + name[: MAX_NAME - 1]
