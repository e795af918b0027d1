"""The corrections that users can make: one module per verb, and the list of all verbs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sploot_cluster.decide.corrections.base import LedgerEntry, Request
from sploot_cluster.decide.corrections.cover import CoverCluster, Covering
from sploot_cluster.decide.corrections.dismiss import Dismissal, DismissMedia
from sploot_cluster.decide.corrections.exclude import ExcludeMedia, Exclusion
from sploot_cluster.decide.corrections.hide import HideClusters, Hiding, ShowClusters, Showing
from sploot_cluster.decide.corrections.keep_apart import KeepApart, Separation
from sploot_cluster.decide.corrections.lock import LockClusters, Locking, UnlockClusters, Unlocking
from sploot_cluster.decide.corrections.merge import Merge, MergeClusters
from sploot_cluster.decide.corrections.name import NameCluster, Naming
from sploot_cluster.decide.corrections.name_pet import NamePet, PetNaming
from sploot_cluster.decide.corrections.place import PlaceMedia, Placement
from sploot_cluster.decide.corrections.restore import RestoreRevision
from sploot_cluster.decide.corrections.split import Split, SplitCluster
from sploot_cluster.decide.corrections.undo import Undo, UndoFeedback

# In the order in which the documentation lists the verbs.
_REQUESTS: Final[tuple[type[Request[Any]], ...]] = (
    MergeClusters,
    SplitCluster,
    KeepApart,
    PlaceMedia,
    ExcludeMedia,
    DismissMedia,
    NameCluster,
    CoverCluster,
    HideClusters,
    ShowClusters,
    LockClusters,
    UnlockClusters,
    NamePet,
    UndoFeedback,
    RestoreRevision,
)
_ENTRIES: Final[tuple[type[LedgerEntry], ...]] = (
    Merge,
    Split,
    Separation,
    Placement,
    Exclusion,
    Dismissal,
    Naming,
    Covering,
    Hiding,
    Showing,
    Locking,
    Unlocking,
    PetNaming,
    Undo,
)

VERBS: Final[Mapping[str, type[Request[Any]]]] = {request.verb: request for request in _REQUESTS}
ENTRIES: Final[Mapping[str, type[LedgerEntry]]] = {entry.kind: entry for entry in _ENTRIES}

# The kinds of commits in a pet's history.
CHANGE_KINDS: Final = ("arrival", "recluster", *VERBS, "delete", "replace", "switch", "repair")
