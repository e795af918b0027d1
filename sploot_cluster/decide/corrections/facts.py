"""Facts that several kinds of correction share, and their conversion to and from JSON: items by cluster, aliases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from sys import intern
from typing import Any

from sploot_cluster.pet.models import ClusterId, MediaId


def media_of(ids: Sequence[str]) -> tuple[MediaId, ...]:
    """Return the items of a JSON list, interned because many corrections name the same items."""
    return tuple(MediaId(intern(item)) for item in ids)


def groups_of(named: Mapping[str, Sequence[str]]) -> dict[ClusterId, tuple[MediaId, ...]]:
    """Return items by cluster, from a JSON object."""
    return {ClusterId(int(cluster)): media_of(media) for cluster, media in named.items()}


def aliases_of(facts: Mapping[str, Any]) -> dict[ClusterId, ClusterId]:
    """Return the aliases in a correction's facts, or an empty dict if there are none."""
    named: Mapping[str, int] = facts.get("aliases", {})
    return {ClusterId(int(old)): ClusterId(int(now)) for old, now in named.items()}


def named(groups: Mapping[ClusterId, Sequence[MediaId]]) -> dict[str, list[MediaId]]:
    """Return items by cluster, as a JSON object."""
    return {str(cluster): list(media) for cluster, media in groups.items()}


def aliased(aliases: Mapping[ClusterId, ClusterId]) -> dict[str, object]:
    """Return a JSON object that holds the aliases as ``aliases``, or an empty object if there are none."""
    return {"aliases": {str(old): now for old, now in aliases.items()}} if aliases else {}


def items_in(groups: Mapping[ClusterId, Sequence[MediaId]]) -> list[MediaId]:
    """Return the items of all groups."""
    return [item for members in groups.values() for item in members]


def renamed_in(
    groups: Mapping[ClusterId, tuple[MediaId, ...]], name: Callable[[Sequence[MediaId]], tuple[MediaId, ...]]
) -> dict[ClusterId, tuple[MediaId, ...]]:
    """Return the groups with their items renamed by ``name``."""
    return {cluster: name(members) for cluster, members in groups.items()}
