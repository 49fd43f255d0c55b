"""Let the main thread end while another one works on, until standard input closes."""

import ctypes
import sys
import threading


def work() -> None:
    """Work on."""
    print("ready", flush=True)
    sys.stdin.read()


threading.Thread(target=work, daemon=True).start()
ctypes.CDLL(None).pthread_exit(None)
