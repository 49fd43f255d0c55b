"""What `worker.c` does, where no compiler is: DIRECTORY ROLE WORK_MICROSECONDS LEFT_MICROSECONDS EXIT_CODE."""

from __future__ import annotations

import os
import sys
import time

from witness import VIOLATIONS, Witness  # beside this file

directory, role = sys.argv[1:3]
work, left = (int(text) / 1e6 for text in sys.argv[3:5])
witness = Witness(directory)
grant, fence = os.environ.get("MAINTLOCK_LEASE_ID"), os.environ.get("MAINTLOCK_FENCE")
if not grant or not fence:
    witness.say(VIOLATIONS, "a job runs without a grant")
    sys.exit(95)
witness.begin(grant, fence, role)
if left and os.fork() == 0:
    if left < 0:
        os.setsid()
        time.sleep(-left)
        os._exit(0)
    witness.begin(grant, fence, "leftover")
    time.sleep(work + left)
    witness.end()
    os._exit(0)
time.sleep(work)
witness.end()
sys.exit(int(sys.argv[5]))
