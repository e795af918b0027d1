"""Startup work that short commands skip. Processes that serve requests or run jobs skip nothing.

redis-py imports its asyncio half, and OpenTelemetry if it is installed; Dramatiq imports gevent in the same way. The
garbage collector runs dozens of times during the imports, and visits every object again when the process ends.
"""

from __future__ import annotations

import atexit
import gc
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Final, cast

# Optional packages. Libraries that try to import them work without them.
_OPTIONAL: Final = ("gevent", "opentelemetry")
# A package whose modules others import, so that only the package's own imports are left out.
_ASYNCIO: Final = "redis.asyncio"
# Collections start after this many new objects, more than the imports of any command create.
_NEW_OBJECTS: Final = 200_000


def leave_out() -> None:
    """Skip these imports and collections, unless the process has imported redis-py and so is not a short command."""
    if "redis" in sys.modules:
        return
    gc.set_threshold(_NEW_OBJECTS)
    # keeps the collection at the end from visiting every object
    atexit.register(gc.freeze)
    _leave_out_modules()


def _leave_out_modules() -> None:
    redis = find_spec("redis")
    if redis is None or redis.origin is None:
        return
    for name in _OPTIONAL:
        # with None in place of a module, an import of it raises ModuleNotFoundError
        cast(dict[str, Any], sys.modules).setdefault(name, None)
    package = ModuleType(_ASYNCIO)
    package.__path__ = [str(Path(redis.origin).with_name("asyncio"))]
    sys.modules[_ASYNCIO] = package
