"""Conversion to and from the JSON that several kinds of correction share: items, items by cluster, and aliases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """Return the aliases in a correction's facts; empty if the facts have none."""
    named: Mapping[str, ClusterId] = facts.get("aliases", {})
    return {ClusterId(int(old)): now for old, now in named.items()}


def named(groups: Mapping[ClusterId, Sequence[MediaId]]) -> dict[str, list[MediaId]]:
    """Return items by cluster, as a JSON object."""
    return {str(cluster): list(media) for cluster, media in groups.items()}


def aliased(aliases: Mapping[ClusterId, ClusterId]) -> dict[str, object]:
    """Return the aliases as a JSON object under their key; empty if there are none."""
    return {"aliases": {str(old): now for old, now in aliases.items()}} if aliases else {}
