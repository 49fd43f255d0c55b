"""Try to get a lock without waiting, as fast as possible: `hammer.py hold|flock|wrap PLACE LOG ATTEMPTS [COMMAND…]`.

Before each attempt its hammerer's letter is added to ATTEMPTS, and while it has the lock a line to LOG. `wrap` is several
hammerers at once, which run COMMAND and leave the line in LOG to its job.
"""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable

MORE = os.O_WRONLY | os.O_APPEND | os.O_CREAT
LETTERS = {"hold": "a", "flock": "a", "wrap": "abc"}


def hold(place: str, log_fd: int) -> None:
    """Try once from within Python."""
    import maintlock

    try:
        with maintlock.hold("hammerer", state_dir=place):
            os.write(log_fd, b"hammerer\n")
    except maintlock.LeaseHeld:
        pass


def flock(place: str, log_fd: int) -> None:
    """Try once as `flock -n` does."""
    with open(place, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        os.write(log_fd, b"hammerer\n")


def main() -> None:
    """Hammer until standard input closes."""
    kind, place, log, attempts, *command = sys.argv[1:]
    log_fd, attempts_fd = (os.open(path, MORE, 0o600) for path in (log, attempts))
    once: Callable[[], object] = {
        "hold": lambda: hold(place, log_fd),
        "flock": lambda: flock(place, log_fd),
        "wrap": lambda: subprocess.run(command, check=True),
    }[kind]

    def hammer(letter: str) -> None:
        while not select.select([sys.stdin], [], [], 0)[0]:
            os.write(attempts_fd, letter.encode())
            once()

    hammerers = [threading.Thread(target=hammer, args=letter) for letter in LETTERS[kind]]
    for hammerer in hammerers:
        hammerer.start()
    print("ready", flush=True)
    for hammerer in hammerers:
        hammerer.join()


if __name__ == "__main__":
    main()
