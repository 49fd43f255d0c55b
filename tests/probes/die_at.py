"""Be `maintlock-wrap` until a step of the lease protocol, and die there of SIGKILL (MODULE.FUNCTION COUNT ARG…).

The function is one that a module of maintlock calls; it dies at its COUNTth call, before (`1`) or after (`1+`) that.
"""

import importlib
import os
import signal
import sys

name, count = sys.argv[1:3]
module_name, function_name = name.rsplit(".", 1)
module = importlib.import_module(f"maintlock.{module_name}")
function = getattr(module, function_name)
left = int(count.rstrip("+"))


def dying(*args: object, **kwargs: object) -> object:
    """Call the function, and die of it when its time has come."""
    global left  # noqa: PLW0603  a probe is one step of one process
    left -= 1
    if left == 0 and not count.endswith("+"):
        os.kill(os.getpid(), signal.SIGKILL)
    result = function(*args, **kwargs)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return result


setattr(module, function_name, dying)

from maintlock import wrap  # noqa: E402  patched first

sys.exit(wrap.main(sys.argv[3:]))
