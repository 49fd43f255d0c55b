"""A job that a model drives (WORK LOG NAME): it proves that it is alone at work, says that it works, and does what it is told.

WORK is a file that it locks for as long as it, or a child that it leaves behind, works. Into LOG it writes what it is
called, its pid and its fence, or that it is not alone. Told on standard input: `child PATH`, `nested NAME PATH`, `end`.
"""

import fcntl
import os
import subprocess
import sys

work, log, name = sys.argv[1:]
fd = os.open(work, os.O_RDWR | os.O_CREAT, 0o600)
try:
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    name = f"COLLISION:{name}"
out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
os.write(out, f"{name} {os.getpid()} {os.environ['MAINTLOCK_FENCE']}\n".encode())

SAYS_PIDS = 'echo $$ $PPID > "$0.new"; mv "$0.new" "$0"; exec sleep 1000'
nothing = subprocess.DEVNULL
for line in sys.stdin:
    words = line.split()
    if words[0] == "end":
        break
    command = ["sh", "-c", SAYS_PIDS, words[-1]]
    if words[0] == "nested":
        command = ["maintlock-wrap", "-q", "-t", words[1], "-E", "9", "--", *command]
    # It has no descriptor of the lease, as what npm and node start has none.
    subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing, pass_fds=[fd])
os._exit(0)
