"""`maintlock-wrap` after the first argument has been executed as Python.

In that, `take(module, name, stand_in)` replaces, and `begin_limit_at(path)` lets `--max-runtime` begin when a file is there.
"""

import importlib
import os
import sys
import time


def take(module, name, stand_in):
    """Replace one thing of one module."""
    setattr(importlib.import_module(module), name, stand_in)


def begin_limit_at(path):
    """Let the job's time begin when this file is there, however long a busy machine takes to get the job ready."""
    started = importlib.import_module("maintlock.spawn").started

    def started_and_ready(*arguments, **options):
        pid = started(*arguments, **options)
        while not os.path.exists(path):
            time.sleep(0.005)
        return pid

    take("maintlock.spawn", "started", started_and_ready)


exec(sys.argv[1], {"take": take, "begin_limit_at": begin_limit_at})
from maintlock.wrap import main  # noqa: E402  after what was replaced

sys.exit(main(sys.argv[2:]))
