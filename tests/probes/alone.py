"""Be `maintlock` where only the processes of one test are to be seen: those with our XDG_STATE_HOME (ARG…)."""

import os
import sys

from maintlock import cli, process

read_all = process.read_pids
MARK = os.fsencode(f"XDG_STATE_HOME={os.environ['XDG_STATE_HOME']}")


def read_own() -> list[int]:
    """Return the processes that have inherited the test's environment."""
    environs = {pid: process.read_bytes(f"/proc/{pid}/environ", process.MAX_ENVIRON) or b"" for pid in read_all()}
    return [pid for pid, environ in environs.items() if MARK in environ.split(b"\0")]


process.read_pids = read_own
sys.exit(cli.main(sys.argv[1:]))
