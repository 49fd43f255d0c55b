"""Attempt to get the lease, one process after the other, until standard input closes; then count what became of it.

DIRECTORY ATTEMPTS: the file grows by one letter with each attempt. An attempt overtook if it was served before all those who waited in the kernel's queue when it began.
"""

import collections
import json
import os
import select
import sys

from maintlock import acquisition, line, locktable, paths, signals
from maintlock.errors import LeaseHeld
from maintlock.lease import Request
from maintlock.voice import Voice

places = paths.Places(directory=sys.argv[1], lease="heavy-maintenance")
request = Request(
    task="hammer", owner="o", reason="r", source="cli", mode="supervised", hold_until="session", ttl_seconds=1.0,
    command=("x",), wait_seconds=None,
)  # fmt: skip
RESULTS = ["behind nobody", "behind waiters", "overtook", "lease-held", "queued", "survivors", "lockfile-replaced"]


def fence() -> int:
    """Return how many grants there were."""
    found = line.read_path(places.lock)
    return 0 if found is None else found.fence


def queue_length() -> int:
    """Return how many wait in the kernel's queue."""
    inode = os.stat(places.lock).st_ino
    with open("/proc/locks") as table:
        rows = [locktable.parsed_row(text) for text in table]
    return sum(row is not None and row.is_waiting and row.inode == inode for row in rows)


def attempt() -> int:
    """Attempt to get the lease, and return the number of what became of it."""
    before, waiters = fence(), queue_length()
    try:
        lease = acquisition.acquire(places, request, signals.Signals(Voice(verbosity=-1)), {})
    except LeaseHeld as held:
        return RESULTS.index(held.reason_code)
    lease.release("completed", 0)
    if not waiters:
        return 0
    return 1 if lease.line.fence - before > waiters else 2


counts: collections.Counter[str] = collections.Counter()
print("ready", flush=True)
while not select.select([0], [], [], 0)[0]:
    pid = os.fork()
    if pid == 0:
        os._exit(attempt())
    with open(sys.argv[2], "a") as file:
        file.write(".")
    counts[RESULTS[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]] += 1
print(json.dumps(counts), flush=True)
