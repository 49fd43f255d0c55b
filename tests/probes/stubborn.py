"""Says `up` and its pid, and from then on ignores every request to end; with `group`, in a process group of its own."""

import os
import signal
import sys

for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    signal.signal(number, signal.SIG_IGN)
if "group" in sys.argv[1:]:
    os.setpgid(0, 0)
print(f"up {os.getpid()}", flush=True)
while True:
    signal.pause()
