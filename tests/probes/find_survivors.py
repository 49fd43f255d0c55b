"""Print the pids of the survivors that a request made from here would find: DIRECTORY LEASE [GROUP…]."""

import sys

from maintlock import line, survivors
from maintlock.paths import Places

places = Places(directory=sys.argv[1], lease=sys.argv[2])
found = survivors.find(places, line.decoded(sys.stdin.buffer.read()), frozenset(map(int, sys.argv[3:])))
print("found", *[stat.pid for stat in found], flush=True)
