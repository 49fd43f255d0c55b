"""`maintlock-wrap` after the first argument has been executed as Python, in which `take(module, name, stand_in)` replaces."""

import importlib
import sys


def take(module, name, stand_in):
    """Replace one thing of one module."""
    setattr(importlib.import_module(module), name, stand_in)


exec(sys.argv[1], {"take": take})
from maintlock.wrap import main  # noqa: E402  after what was replaced

sys.exit(main(sys.argv[2:]))
