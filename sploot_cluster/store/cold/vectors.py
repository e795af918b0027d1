"""The store of cold vectors: named objects in a directory or in an object store.

An object is written once, under a name that is never used again, and carries a checksum, so a reader detects an object
that is cut or damaged. ``obstore`` talks to the storage; it is imported when the first object is read or written, so
processes that have no cold pet need neither the package nor the storage.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import unquote, urlsplit

from sploot_cluster.errors import ColdStoreUnavailable, InvalidInput

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES: Final = ("file", "s3")

# A storage that does not answer within these times is unavailable. Together they stay below the time limit of an
# arrival, 60 s, so that the job is retried instead of interrupted.
CONNECT_TIMEOUT: Final = timedelta(seconds=5)
ANSWER_TIMEOUT: Final = timedelta(seconds=15)
RETRIED_FOR: Final = timedelta(seconds=20)

_DIGEST_BYTES: Final = 32


def check_place(url: str, field: str) -> None:
    """Check that a URL names a directory or a bucket.

    Raises:
        InvalidInput: it does not; ``field`` is the name of the setting, for the error.
    """
    parts = urlsplit(url)
    place = parts.path if parts.scheme == "file" else parts.netloc
    if parts.scheme not in SCHEMES or not place.strip("/") or (parts.scheme == "file" and parts.netloc):
        problem, hint = f"{url!r} is neither a directory nor a bucket", "set file:///directory or s3://bucket/prefix"
        raise InvalidInput(field, problem, hint)


class VectorStore(Protocol):
    """A store of immutable objects by name. Safe to use from many threads.

    Every method may raise ``ColdStoreUnavailable``.
    """

    def put(self, name: str, content: bytes) -> None:
        """Write an object durably."""
        ...

    def get(self, name: str) -> bytes:
        """Return an object.

        Raises:
            KeyError: there is no such object.
            ValueError: the object is cut or damaged.
        """
        ...

    def names(self, folder: str) -> Sequence[str]:
        """Return the names of all objects that begin with ``folder`` and a slash."""
        ...

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects; those that do not exist are ignored."""
        ...


class ObjectVectors:
    """A :class:`VectorStore` in a directory (``file:///var/lib/sploot``) or an S3 bucket (``s3://bucket/prefix``).

    Access to S3, or to another service with its interface, is configured by the usual variables, such as
    ``AWS_ACCESS_KEY_ID``, ``AWS_REGION`` and ``AWS_ENDPOINT_URL``, or by the machine's role.
    """

    def __init__(self, url: str) -> None:
        """
        Raises:
            InvalidInput: the URL is neither that of a directory nor of a bucket.
        """
        check_place(url, "cold_store")
        parts = urlsplit(url)
        self.url = url
        self._folder = Path(unquote(parts.path)) if parts.scheme == "file" else None

    def put(self, name: str, content: bytes) -> None:
        with self._translated(f"write {name}"):
            self._obstore.put(self._storage, name, hashlib.sha256(content).digest() + content)
            if self._folder is not None:
                _make_durable(self._folder, name)

    def get(self, name: str) -> bytes:
        with self._translated(f"read {name}"):
            stored = bytes(self._obstore.get(self._storage, name).bytes())
        digest, content = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != digest:
            raise ValueError(f"{name} is cut or damaged")
        return content

    def names(self, folder: str) -> Sequence[str]:
        with self._translated(f"list {folder}"):
            pages = self._obstore.list(self._storage, prefix=folder)
            return [found["path"] for page in pages for found in page]

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            with suppress(KeyError), self._translated(f"delete {name}"):
                self._obstore.delete(self._storage, name)

    @cached_property
    def _obstore(self) -> Any:
        try:
            import obstore
        except ImportError:
            problem = "obstore is not installed; pip install 'sploot-cluster[cold]'"
            raise ColdStoreUnavailable(doing="use the cold store", problem=problem) from None
        return obstore

    @cached_property
    def _storage(self) -> ObjectStore:
        from obstore.store import LocalStore, S3Store

        if self._folder is not None:
            return LocalStore(self._folder, mkdir=True)
        return S3Store.from_url(
            self.url,
            # an endpoint without TLS is used only if AWS_ENDPOINT_URL names one
            client_options={"connect_timeout": CONNECT_TIMEOUT, "timeout": ANSWER_TIMEOUT, "allow_http": True},
            retry_config={"max_retries": 3, "retry_timeout": RETRIED_FOR},
        )

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        """Translate errors of the storage to ``KeyError`` and ``ColdStoreUnavailable``."""
        from obstore.exceptions import BaseError, NotFoundError

        try:
            yield
        except (NotFoundError, FileNotFoundError) as missing:
            raise KeyError(doing) from missing
        except (BaseError, OSError) as error:
            # the rest of the text, several lines, shows the internals of the library
            problem = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ColdStoreUnavailable(doing=doing, problem=f"{self.url}: {problem}") from error


def _make_durable(folder: Path, name: str) -> None:
    """Flush a new file, and the directories that lead to it, to the disk."""
    path = folder / name
    for part in (path, *list(path.parents)[: name.count("/") + 1]):
        opened = os.open(part, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
