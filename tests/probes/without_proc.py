"""Be a program of maintlock's on a system without /proc and without prctl(2), as macOS is (wrap|hold ARG…)."""

import runpy
import sys
from pathlib import Path

from maintlock import process

process.PROC = "/nonexistent"
process.become_subreaper = lambda: False

if sys.argv.pop(1) == "wrap":
    from maintlock import wrap

    sys.exit(wrap.main(sys.argv[1:]))
runpy.run_path(str(Path(__file__).parent / "hold.py"), run_name="__main__")
