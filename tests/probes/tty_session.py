"""Make the terminal on standard input this process's own, as a login does, and become the command."""

import fcntl
import os
import signal
import sys
import termios

fcntl.ioctl(0, termios.TIOCSCTTY, 0)
for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)  # Python ignores them
os.execvp(sys.argv[1], sys.argv[1:])
