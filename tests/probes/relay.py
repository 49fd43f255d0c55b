"""Hold the lease over and over, and say `released`: DIRECTORY ATTEMPTS.

Each time it is held until two of the given pids wait for it and four more attempts have been made on it. The pids come as one
line on standard input, whose end ends the relay; the file ATTEMPTS is as long as there were attempts.
"""

import os
import select
import sys
import time

import maintlock
from maintlock import locktable

directory, attempts = sys.argv[1:]
path = f"{directory}/heavy-maintenance.lock"
print("ready", flush=True)
pids = {int(word) for word in sys.stdin.readline().split()}


def is_over() -> bool:
    """Tell whether standard input has ended."""
    return bool(select.select([0], [], [], 0)[0])


def is_waited_for() -> bool:
    """Tell whether two of the others wait."""
    inode = os.stat(path).st_ino
    with open("/proc/locks") as table:
        rows = [locktable.parsed_row(text) for text in table]
    waiting = [row for row in rows if row is not None and row.is_waiting and row.inode == inode and row.locker in pids]
    return len(waiting) >= 2


while not is_over():
    with maintlock.hold("relay", state_dir=directory, wait="forever"):
        enough = os.stat(attempts).st_size + 4
        while not is_over() and not (os.stat(attempts).st_size >= enough and is_waited_for()):
            time.sleep(0.002)
    print("released", flush=True)
