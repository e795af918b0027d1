"""The store of cold vectors: named objects in a directory or in an object store.

An object is written once, under a name that is never reused, and contains a checksum, so a reader detects a truncated
or damaged object. Directories need no extra package; S3 needs ``obstore``, which is imported on first use.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from sploot_cluster.errors import ColdStoreUnavailable, InvalidInput

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES: Final = ("file", "s3")

# A storage that does not answer within these times counts as unavailable. Their sum is less than the time limit of an
# arrival (60 s), so the job fails and is retried instead of being interrupted.
CONNECT_TIMEOUT: Final = timedelta(seconds=5)
ANSWER_TIMEOUT: Final = timedelta(seconds=15)
RETRIED_FOR: Final = timedelta(seconds=20)

# Time for which a process sends no requests to a storage that did not answer. Otherwise each job of a cold pet would
# occupy its thread until a timeout, and jobs of other pets would have to wait.
PAUSE_S: Final = 5.0

_DIGEST_BYTES: Final = 32

T = TypeVar("T")


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
            ValueError: the object is truncated or damaged.
        """
        ...

    def names(self, folder: str) -> Sequence[str]:
        """Return the names of all objects in a folder: those that begin with ``folder`` and a slash."""
        ...

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects; those that do not exist are ignored."""
        ...


def open_vectors(url: str) -> VectorStore:
    """Return the store in a directory (``file:///var/lib/sploot``) or an S3 bucket (``s3://bucket/prefix``).

    Raises:
        InvalidInput: the URL names neither a directory nor a bucket.
    """
    check_place(url, "cold_store")
    parts = urlsplit(url)
    return FailFast(DirectoryVectors(Path(unquote(parts.path))) if parts.scheme == "file" else BucketVectors(url))


class FailFast:
    """A wrapper that fails calls immediately for ``PAUSE_S`` after the wrapped store did not answer."""

    def __init__(self, vectors: VectorStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._vectors, self._clock = vectors, clock
        # the end of the pause and the error that began it; one assignment, because many threads use the store
        self._pause: tuple[float, ColdStoreUnavailable] | None = None

    def put(self, name: str, content: bytes) -> None:
        self._call(lambda: self._vectors.put(name, content))

    def get(self, name: str) -> bytes:
        return self._call(lambda: self._vectors.get(name))

    def names(self, folder: str) -> Sequence[str]:
        return self._call(lambda: self._vectors.names(folder))

    def delete(self, names: Sequence[str]) -> None:
        self._call(lambda: self._vectors.delete(names))

    def _call(self, call: Callable[[], T]) -> T:
        pause = self._pause
        if pause is not None and self._clock() < pause[0]:
            raise ColdStoreUnavailable(doing=pause[1].doing, problem=pause[1].problem)
        try:
            return call()
        except ColdStoreUnavailable as away:
            self._pause = (self._clock() + PAUSE_S, away)
            raise


class DirectoryVectors:
    """A :class:`VectorStore` in a directory, which may be on a network file system."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, name: str, content: bytes) -> None:
        path = self._folder / name
        with self._translated(f"write {name}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            # in the same folder, so that it is deleted with the other objects of its move if the process dies
            part = path.with_name(f"{path.name}.{token_hex(4)}.part")
            try:
                with part.open("wb") as file:
                    file.write(_sealed(content))
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            for folder in list(path.parents)[: name.count("/") + 1]:
                _flush(folder)

    def get(self, name: str) -> bytes:
        with self._translated(f"read {name}"):
            try:
                stored = (self._folder / name).read_bytes()
            except FileNotFoundError:
                raise KeyError(name) from None
        return _unsealed(name, stored)

    def names(self, folder: str) -> Sequence[str]:
        def unless_missing(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise error

        with self._translated(f"list {folder}"):
            found = os.walk(self._folder / folder, onerror=unless_missing)
            return [Path(at, file).relative_to(self._folder).as_posix() for at, _, files in found for file in files]

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            with self._translated(f"delete {name}"):
                (self._folder / name).unlink(missing_ok=True)
                with suppress(OSError):  # a folder with other files stays
                    for folder in list((self._folder / name).parents)[: name.count("/")]:
                        folder.rmdir()

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ColdStoreUnavailable(doing=doing, problem=f"{self._folder}: {error.strerror or error}") from error


class BucketVectors:
    """A :class:`VectorStore` in a bucket of S3 or of a compatible service.

    Access is configured by the usual environment variables, such as ``AWS_ACCESS_KEY_ID``, ``AWS_REGION`` and
    ``AWS_ENDPOINT_URL``, or by the machine's role.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def put(self, name: str, content: bytes) -> None:
        with self._translated(f"write {name}"):
            # a single request, because an interrupted multipart upload would leave parts that no listing shows
            self._obstore.put(self._storage, name, _sealed(content), use_multipart=False)

    def get(self, name: str) -> bytes:
        with self._translated(f"read {name}", may_be_missing=True):
            stored = bytes(self._obstore.get(self._storage, name).bytes())
        return _unsealed(name, stored)

    def names(self, folder: str) -> Sequence[str]:
        with self._translated(f"list {folder}"):
            pages = self._obstore.list(self._storage, prefix=folder)
            return [found["path"] for page in pages for found in page]

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            with suppress(KeyError), self._translated(f"delete {name}", may_be_missing=True):
                self._obstore.delete(self._storage, name)

    @cached_property
    def _obstore(self) -> Any:
        try:
            import obstore
            import obstore.exceptions
            import obstore.store
        except ImportError:
            problem = "obstore is not installed; pip install 'sploot-cluster[cold]'"
            raise ColdStoreUnavailable(doing="use the cold store", problem=problem) from None
        return obstore

    @cached_property
    def _storage(self) -> ObjectStore:
        store: ObjectStore = self._obstore.store.S3Store.from_url(
            self._url,
            # an endpoint without TLS is used only if AWS_ENDPOINT_URL names one
            client_options={"connect_timeout": CONNECT_TIMEOUT, "timeout": ANSWER_TIMEOUT, "allow_http": True},
            retry_config={"max_retries": 3, "retry_timeout": RETRIED_FOR},
        )
        return store

    @contextmanager
    def _translated(self, doing: str, *, may_be_missing: bool = False) -> Iterator[None]:
        """Translate storage errors to ``ColdStoreUnavailable``, and the one about a missing object to ``KeyError``."""
        errors = self._obstore.exceptions
        try:
            yield
        except (errors.BaseError, OSError) as error:
            if may_be_missing and isinstance(error, (errors.NotFoundError, FileNotFoundError)):
                raise KeyError(doing) from error
            # only the first line; the others show internals of the library
            problem = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ColdStoreUnavailable(doing=doing, problem=f"{self._url}: {problem}") from error


def _sealed(content: bytes) -> bytes:
    return hashlib.sha256(content).digest() + content


def _unsealed(name: str, stored: bytes) -> bytes:
    digest, content = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError(f"{name} is cut or damaged")
    return content


def _flush(folder: Path) -> None:
    """Flush a directory's entries to disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
