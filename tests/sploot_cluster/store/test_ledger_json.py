"""Tests that corrections survive encoding as JSON, and that unreadable ones are refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sploot_cluster.decide.corrections.cover import Covering
from sploot_cluster.decide.corrections.dismiss import Dismissal
from sploot_cluster.decide.corrections.exclude import Exclusion
from sploot_cluster.decide.corrections.hide import Hiding, Showing
from sploot_cluster.decide.corrections.keep_apart import Separation
from sploot_cluster.decide.corrections.lock import Locking, Unlocking
from sploot_cluster.decide.corrections.merge import Merge
from sploot_cluster.decide.corrections.name import Naming
from sploot_cluster.decide.corrections.name_pet import PetNaming
from sploot_cluster.decide.corrections.place import Placement
from sploot_cluster.decide.corrections.split import Split
from sploot_cluster.decide.corrections.undo import Undo
from sploot_cluster.errors import UnreadablePet
from sploot_cluster.pet.models import ClusterId, Correction, MediaId, PetId
from sploot_cluster.store import ledger_json as ledger

PET = PetId(42)
NOW = datetime(2026, 11, 24, 3, 0, 0, 123456, tzinfo=UTC)

media = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).map(MediaId)
several = st.lists(media, max_size=4).map(tuple)
cluster = st.integers(1, 2**53).map(ClusterId)
zones = st.integers(-12, 14).map(lambda hours: timezone(timedelta(hours=hours)))
common = {
    "revision": st.integers(1, 2**53),
    "operation_id": st.text(st.characters(codec="utf-8"), max_size=20),
    "by": st.text(st.characters(codec="utf-8"), max_size=20),
    "at": st.datetimes(timezones=zones),
}
corrections = st.one_of(
    st.builds(
        Merge,
        **common,
        into=cluster,
        groups=st.dictionaries(cluster, several, max_size=3),
        aliases=st.dictionaries(cluster, cluster, max_size=3),
        bases=st.dictionaries(cluster, st.integers(1, 2**53), max_size=3),
    ),
    st.builds(Split, **common, source=cluster, created=cluster, moved=several, remaining=several),
    st.builds(Exclusion, **common, source=cluster, excluded=several, remaining=several),
    st.builds(
        Dismissal,
        **common,
        groups=st.dictionaries(st.just(ClusterId(-1)) | cluster, several, max_size=3),
        aliases=st.dictionaries(cluster, cluster, max_size=3),
    ),
    st.builds(Separation, **common, groups=st.dictionaries(cluster, several, max_size=3)),
    st.builds(
        Placement,
        **common,
        into=cluster,
        anchors=several,
        groups=st.dictionaries(cluster, several, max_size=3),
        remaining=st.dictionaries(cluster, several, max_size=3),
    ),
    st.builds(Naming, **common, named=cluster, name=st.text(min_size=1, max_size=20), anchors=several),
    st.builds(PetNaming, **common, name=st.text(max_size=20)),
    st.builds(Covering, **common, covered=cluster, item=media, anchors=several),
    st.builds(Locking, **common, anchors=st.dictionaries(cluster, several, max_size=3)),
    st.builds(Unlocking, **common, anchors=st.dictionaries(cluster, several, max_size=3)),
    st.builds(Hiding, **common, anchors=st.dictionaries(cluster, several, max_size=3)),
    st.builds(Showing, **common, anchors=st.dictionaries(cluster, several, max_size=3)),
    st.builds(Undo, **common, undone=st.integers(1, 2**53)),
)


@given(corrections)
def test_correction_survives_encoding_unchanged(correction: Correction) -> None:
    assert ledger.loads(ledger.dumps(correction).encode(), pet=PET) == correction


def test_encoded_correction_is_plain_json() -> None:
    merge = Merge(7, "op-1", "ada", NOW, ClusterId(1), {ClusterId(1): (MediaId("a"),), ClusterId(3): (MediaId("é"),)})

    assert json.loads(ledger.dumps(merge)) == {
        "v": 1,
        "kind": "merge",
        "revision": 7,
        "operation_id": "op-1",
        "by": "ada",
        "at": "2026-11-24T03:00:00.123456+00:00",
        "into": 1,
        "groups": {"1": ["a"], "3": ["é"]},
    }


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"v": 3}, "version 3, expected 1 or 2"),
        ({"kind": "forget"}, "unknown kind 'forget'"),
        ({"undone": None}, "cannot be read"),
        ({"at": "yesterday"}, "yesterday"),
    ],
)
def test_unknown_version_kind_or_missing_field_is_refused(change: dict[str, object], complaint: str) -> None:
    text = json.dumps(json.loads(ledger.dumps(Undo(7, "op-1", "ada", NOW, undone=5))) | change)

    with pytest.raises(UnreadablePet, match=complaint) as refused:
        ledger.loads(text, pet=PET)

    assert refused.value.pet == PET


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"v":1}', b"\xff"])
def test_text_that_is_not_a_correction_is_refused(text: str | bytes) -> None:
    with pytest.raises(UnreadablePet, match="pet 42 cannot be read"):
        ledger.loads(text, pet=PET)
