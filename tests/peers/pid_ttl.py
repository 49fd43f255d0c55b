"""A lock file with a PID and a TTL, as one writes it in an afternoon, and with care: whole when seen, removed by its owner.

What makes a file stale is for `rule` to say. `ttl`: its age, whoever lives. `pid`: that no process has its PID, however old it
is. Each is wrong where the other one is right, and both together are wrong in the places of both.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

POLL_SECONDS = 0.1


class PidTtlLock:
    """The lock of one process; `ttl_seconds` counts for the rule `ttl` only."""

    def __init__(self, path: str, *, rule: str, ttl_seconds: float) -> None:
        self.path = path
        self.rule = rule
        self.ttl_seconds = ttl_seconds

    def try_acquire(self, owner: str = "somebody", reason: str = "manual") -> bool:
        """Take the lock if it is free or stale."""
        record = {"owner": owner, "reason": reason, "pid": os.getpid(), "acquired_at": time.time()}
        mine = f"{self.path}.{os.getpid()}"
        try:
            with open(mine, "w") as file:
                json.dump(record, file)
            holder = self.read()
            if holder is not None and self.is_stale(holder):
                os.unlink(self.path)
            os.link(mine, self.path)
            return True
        except (FileExistsError, FileNotFoundError):
            return False
        finally:
            os.unlink(mine)

    def acquire(self) -> None:
        """Wait for the lock."""
        while not self.try_acquire():
            time.sleep(POLL_SECONDS)

    def release(self) -> None:
        """Remove the file, if it is still ours."""
        holder = self.read()
        if holder is not None and holder["pid"] == os.getpid():
            os.unlink(self.path)

    def read(self) -> dict[str, Any] | None:
        """Return who has the lock."""
        try:
            with open(self.path) as file:
                found: dict[str, Any] = json.load(file)
        except FileNotFoundError:
            return None
        return found

    def is_stale(self, holder: dict[str, Any]) -> bool:
        """Tell whether a record may be swept away."""
        if self.rule == "ttl":
            return time.time() - float(holder["acquired_at"]) > self.ttl_seconds
        return not os.path.exists(f"/proc/{holder['pid']}")
