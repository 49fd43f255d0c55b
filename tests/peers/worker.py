"""A job that a witness sees at work: `worker.py DIRECTORY NAME SECONDS [alone]`.

It meets whoever works under another name. `alone` closes every descriptor that it has inherited.
"""

from __future__ import annotations

import os
import sys
import time

from tests.torture.witness import Witness

directory, name, seconds, *options = sys.argv[1:]
if options == ["alone"]:
    os.closerange(3, 256)
witness = Witness(directory)
witness.begin(name, "0", "worker")
time.sleep(float(seconds))
witness.end()
