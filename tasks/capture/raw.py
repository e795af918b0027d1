"""The unchanged keys of a pet in a capture, for pets that cannot be read.

A capture of this kind has these members in place of ``pet.zip``:

    raw.json    the pet's id, and the type of each key by its name
    raw/<name>  the value of that key: the bytes of a string; for other types, a JSON list with the items of a list, the
                fields and values of a hash in turn, or [id, [field, value, …]] for each entry of a stream, as base64

A redacted capture lacks the values of keys that hold embeddings.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, Final

from sploot_cluster.errors import InvalidInput
from sploot_cluster.pet.models import PetId
from sploot_cluster.store import archives
from sploot_cluster.store.keys import PetKeys
from sploot_cluster.store.repairs import OF_VECTORS, RawKey, RawPet

RAW: Final = "raw.json"

_KINDS: Final = frozenset({"string", "list", "hash", "stream"})
_SHAPE: Final[archives.Shape] = {
    "pet_id": range(1, 2**63),
    "redacted": bool,
    "keys": {str: str},
}


def members_of(raw: RawPet, *, redact: bool) -> dict[str, bytes]:
    """Return the keys of a pet as members of a capture."""
    kinds = {name: key.kind for name, key in raw.keys.items()}
    values = {
        f"raw/{name}": _packed(key)
        for name, key in raw.keys.items()
        if key.kind in _KINDS and not (redact and name in OF_VECTORS)
    }
    about = {"pet_id": raw.pet, "redacted": redact, "keys": kinds}
    return {RAW: json.dumps(about, indent=1).encode(), **values}


def raw_in(file: bytes) -> RawPet | None:
    """Return the keys of the pet in a capture, or None if the file is not a capture of this kind.

    Raises:
        InvalidInput: the capture is damaged, or embeddings were left out.
    """
    if not archives.has_member(file, RAW):
        return None
    try:
        members = archives.unpack(file)
        about: dict[str, Any] = json.loads(members[RAW])
        archives.check(about, _SHAPE, name=RAW)
        if about["redacted"]:
            raise ValueError("its embeddings were left out, so it can only be inspected")
        strange = about["keys"].keys() - set(PetKeys._fields)
        if strange:
            raise ValueError(f"{RAW}: {min(strange)!r} is not a key of a pet")
        keys = {name: _unpacked(members, name, kind) for name, kind in about["keys"].items() if kind in _KINDS}
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        hint = "name an unmodified file written by `sploot-cluster capture --raw`"
        raise InvalidInput("FILE", f"the capture is damaged: {error}", hint) from error
    return RawPet(PetId(about["pet_id"]), keys)


def _packed(key: RawKey) -> bytes:
    match key.kind:
        case "string":
            value: bytes = key.value
            return value
        case "stream":
            entries = [[id_.decode(), [_encoded(part) for part in fields]] for id_, fields in key.value]
            return json.dumps(entries).encode()
        case _:
            return json.dumps([_encoded(item) for item in key.value]).encode()


def _unpacked(members: Mapping[str, bytes], name: str, kind: str) -> RawKey:
    content = members[f"raw/{name}"]
    if kind == "string":
        return RawKey(kind, content)
    stored = json.loads(content)
    if kind == "stream":
        archives.check(stored, [list], name=f"raw/{name}")
        return RawKey(kind, [(id_.encode(), [_decoded(part) for part in fields]) for id_, fields in stored])
    archives.check(stored, [str], name=f"raw/{name}")
    return RawKey(kind, [_decoded(item) for item in stored])


def _encoded(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _decoded(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
