"""Hold the lease in this process and say so, until standard input closes: TASK [NAME=VALUE…] [-- COMMAND…].

The values are `hold`'s arguments as Python has them. COMMAND is run inside; what happens is printed as one line each.
"""

import ast
import datetime as dt  # noqa: F401  like the next two, `hold` imports it late; a Ctrl-C in the middle of an import may be swallowed
import json  # noqa: F401  as above
import logging  # noqa: F401  as above
import os
import signal
import subprocess
import sys

import maintlock

signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background of a shell
arguments = sys.argv[2:]
command: list[str] = []
if "--" in arguments:
    command = arguments[arguments.index("--") + 1 :]
    arguments = arguments[: arguments.index("--")]
options = {name: ast.literal_eval(value) for name, _, value in (word.partition("=") for word in arguments)}

try:
    with maintlock.hold(sys.argv[1], **options) as lease:
        print("holding", lease.id, lease.fence, lease.task, flush=True)
        if command:
            code = subprocess.run(command, env={**os.environ, **lease.env}, check=False).returncode
            print("code", code, flush=True)
        else:
            sys.stdin.read()
except maintlock.LeaseHeld as held:
    print("held", held.reason_code, held.blocked_by, (held.holder or {}).get("pid"), flush=True)
    sys.exit(9)
print("left", flush=True)
