"""Says `ready <pid>`, then the name of each signal that comes; a blocked or ignored one never does.

The argument names signals that end it, with exit code 0: `TERM,HUP`. A closed standard input ends it too, if it is a pipe.
"""

import os
import select
import signal
import sys

NAMES = "HUP INT QUIT TERM USR1 USR2 CONT".split()
NUMBERS = {int(getattr(signal, f"SIG{name}")): name for name in NAMES}
last = {name for name in sys.argv[1].split(",") if name} if len(sys.argv) > 1 else set()
read_end, write_end = os.pipe()
os.set_blocking(write_end, False)
signal.set_wakeup_fd(write_end)
for number in NUMBERS:
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, lambda *_: None)
print(f"ready {os.getpid()} group {os.getpgrp()} session {os.getsid(0)}", flush=True)
stdin_open = not os.isatty(0) and os.fstat(0).st_mode & 0o170000 == 0o010000
while True:
    ready, _, _ = select.select([read_end, *([0] if stdin_open else [])], [], [])
    if 0 in ready and not os.read(0, 512):
        sys.exit(0)
    if read_end in ready:
        for number in os.read(read_end, 512):
            print(f"got {NUMBERS[number]}", flush=True)
            if NUMBERS[number] in last:
                sys.exit(0)
