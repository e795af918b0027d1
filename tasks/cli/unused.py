"""Modules that libraries import and no short command uses.

redis-py imports its asyncio half, and OpenTelemetry where it is installed; Dramatiq does the same with gevent.
Importing them takes about a tenth of the time of a command. A process that serves or runs jobs imports all of them.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Final, cast

# Optional packages. Libraries that try to import them work without them.
_OPTIONAL: Final = ("gevent", "opentelemetry")
# A package whose modules others import, so that only the package's own imports are left out.
_ASYNCIO: Final = "redis.asyncio"


def leave_out() -> None:
    """Make importing these modules do nothing, in a process that runs one short command and has not imported any of
    them.
    """
    redis = find_spec("redis")
    if "redis" in sys.modules or redis is None or redis.origin is None:
        return
    for name in _OPTIONAL:
        # with None in place of a module, an import of it raises ModuleNotFoundError
        cast(dict[str, Any], sys.modules).setdefault(name, None)
    package = ModuleType(_ASYNCIO)
    package.__path__ = [str(Path(redis.origin).with_name("asyncio"))]
    sys.modules[_ASYNCIO] = package
