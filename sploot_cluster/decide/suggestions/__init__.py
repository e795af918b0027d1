"""Suggestions: the most useful questions to ask a user about a pet. Each answer is a correction.

There is one module per kind of question. It skips questions that a correction already answers, estimates the
probability that the answer is *yes*, and drops questions below a minimum probability. Suggestions are ordered by their
expected gain: the number of items that a *yes* would correct, times that probability. docs/explanation/quality.md
states how often they are right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from sploot_cluster.decide.resolving import taken_back
from sploot_cluster.decide.suggestions import same_subject, stranger, two_subjects
from sploot_cluster.decide.suggestions.scene import Scene
from sploot_cluster.decide.suggestions.values import DoubtfulItems, PetSuggestions, Suggestion
from sploot_cluster.pet.models import ClusterId, HistoryEntry, PetState

_ASK: Final[Mapping[str, Callable[[Scene], Iterator[Suggestion]]]] = {
    module.KIND: module.ask for module in (same_subject, stranger, two_subjects)
}

# Number of consecutive *no* answers after which a kind of question is paused, because it is not worth a user's time.
MOST_NO: Final = 3


def suggest(state: PetState, history: Sequence[HistoryEntry], *, limit: int) -> PetSuggestions:
    """Return the questions about a pet with the highest expected gain, highest first.

    Args:
        history: the newest entries of the pet's history, newest first. A kind of question whose last three answers were
            *no* is not asked again before the next recluster.
        limit: maximum number of suggestions.
    """
    paused = _paused(state, history)
    scene = Scene(state)
    asked = [one for kind, ask in _ASK.items() if kind not in paused for one in ask(scene)]
    asked.sort(key=lambda one: (-one.gain, one.suggestion_id))
    return PetSuggestions(state.pet, state.revision, tuple(asked[:limit]), paused)


def doubtful(state: PetState, cluster: ClusterId | None, *, limit: int) -> DoubtfulItems:
    """Return the items of a pet, or of a cluster, that are least certain to belong to their cluster."""
    found = stranger.doubtful_items(Scene(state), cluster)
    return DoubtfulItems(state.pet, state.revision, tuple(found[:limit]))


def _paused(state: PetState, history: Sequence[HistoryEntry]) -> tuple[str, ...]:
    """Return the kinds of question whose last ``MOST_NO`` answers were all *no*."""
    undone = taken_back(state.ledger)
    answers: dict[str, list[object]] = {kind: [] for kind in _ASK}
    for entry in history:
        if entry.kind in ("recluster", "switch"):
            break
        kind = entry.summary.get("suggestion")
        if isinstance(kind, str) and kind in answers and entry.revision not in undone:
            answers[kind].append(entry.summary.get("answer"))
    return tuple(kind for kind, given in answers.items() if given[:MOST_NO] == ["no"] * MOST_NO)
