"""Do as node's line editor does on Ctrl-Z: take the key as a byte, and stop this one process, not its group."""

import os
import signal
import sys
import termios
import tty

before = termios.tcgetattr(0)
tty.setraw(0)
print("ready\r", flush=True)
while (key := os.read(0, 1)) != b"q":
    if key == b"\x1a":
        termios.tcsetattr(0, termios.TCSANOW, before)
        os.kill(os.getpid(), signal.SIGTSTP)
        tty.setraw(0)
        print("again\r", flush=True)
termios.tcsetattr(0, termios.TCSANOW, before)
sys.exit(3)
