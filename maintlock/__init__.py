"""maintlock: at most one heavy job at a time on one machine, and everybody can see whose turn it is.

    with maintlock.hold("kbSync") as lease:
        …

The names below are imported when they are first used: `maintlock-wrap` needs none of them before its job runs.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from maintlock.api import HeldLease, hold, status
    from maintlock.errors import LeaseHeld, MaintlockError

__version__ = "0.1.0"
__all__ = ["HeldLease", "LeaseHeld", "MaintlockError", "__version__", "hold", "status"]

_HOMES = {"hold": "api", "status": "api", "HeldLease": "api", "LeaseHeld": "errors", "MaintlockError": "errors"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'maintlock' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"maintlock.{_HOMES[name]}"), name)
