"""Run a command as npm, node and Python do, with every descriptor above the standard three closed, and say who is who."""

import os
import subprocess
import sys

child = subprocess.Popen(sys.argv[1:], close_fds=True, stdin=subprocess.DEVNULL)
print("ready", os.getpid(), child.pid, flush=True)
sys.exit(child.wait())
