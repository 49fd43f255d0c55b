"""Ask for lines as a shell of some language does: Ctrl-C discards the line, `quit` ends it."""

import os
import select
import signal

woken, wake = os.pipe()
for end in (woken, wake):
    os.set_blocking(end, False)
signal.set_wakeup_fd(wake)
signal.signal(signal.SIGINT, lambda *_: None)
while True:
    os.write(1, b"ask> ")
    ready, _, _ = select.select([0, woken], [], [])
    if woken in ready:
        os.read(woken, 64)
        os.write(1, b"discarded\n")
        continue
    line = os.read(0, 1024).strip().decode()
    if line == "quit":
        break
    os.write(1, f"got [{line}]\n".encode())
