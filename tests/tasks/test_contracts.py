"""Contracts: a valid message becomes a value; the error for an invalid one names the field and has a hint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from sploot_cluster.decide.corrections.merge import MergeClusters
from sploot_cluster.decide.corrections.split import SplitCluster
from sploot_cluster.decide.corrections.undo import UndoFeedback
from tasks.contracts import ReclusterPet, stream_of
from tests.support import refusal


@pytest.mark.parametrize(
    "task",
    [
        MergeClusters(42, (3, 7), into=7, requested_by="anna"),
        MergeClusters(42, (3, 7)),
        SplitCluster(42, 3, ("a.jpg", "b.jpg")),
        UndoFeedback(42, 17),
        ReclusterPet(42, reason="grew by 20%"),
    ],
)
def test_contract_survives_a_round_trip_through_json(
    task: MergeClusters | SplitCluster | UndoFeedback | ReclusterPet,
) -> None:
    assert type(task).from_kwargs(json.loads(json.dumps(task.to_kwargs()))) == task


@pytest.mark.parametrize(
    ("contract", "sent", "field"),
    [
        (MergeClusters, {"pet_id": 1, "cluster_ids": [3]}, "cluster_ids"),
        (MergeClusters, {"pet_id": 1, "cluster_ids": [3, 3]}, "cluster_ids"),
        (MergeClusters, {"pet_id": 1, "cluster_ids": [3, -1]}, "cluster_ids[1]"),
        (MergeClusters, {"pet_id": 1, "cluster_ids": [3, "4"]}, "cluster_ids[1]"),
        (MergeClusters, {"pet_id": 1, "cluster_ids": "34"}, "cluster_ids"),
        (MergeClusters, {"pet_id": 1, "cluster_ids": None}, "cluster_ids"),
        (MergeClusters, {"pet_id": 1, "cluster_ids": list(range(1, 1002))}, "cluster_ids"),
        (MergeClusters, {"pet_id": 1, "cluster_ids": [3, 4], "into": 5}, "into"),
        (MergeClusters, {"pet_id": 1, "cluster_ids": [3, 4], "into": True}, "into"),
        (MergeClusters, {"pet_id": 0, "cluster_ids": [3, 4]}, "pet_id"),
        (MergeClusters, {"pet_id": 1}, "cluster_ids"),
        (MergeClusters, {"pet_id": 1, "cluster_ids": [3, 4], "color": 1}, "color"),
        (SplitCluster, {"pet_id": 1, "cluster_id": -1, "media_ids": ["a"]}, "cluster_id"),
        (SplitCluster, {"pet_id": 1, "cluster_id": 3, "media_ids": []}, "media_ids"),
        (SplitCluster, {"pet_id": 1, "cluster_id": 3, "media_ids": ["a", 7]}, "media_ids[1]"),
        (SplitCluster, {"pet_id": 1, "cluster_id": 3, "media_ids": [f"{n}" for n in range(10_001)]}, "media_ids"),
        (UndoFeedback, {"pet_id": 1, "revision": 0}, "revision"),
        (UndoFeedback, {"pet_id": 1, "revision": 1, "requested_by": ""}, "requested_by"),
        (ReclusterPet, {"pet_id": "1"}, "pet_id"),
        (ReclusterPet, {"pet_id": 1, "reason": "a\nb"}, "reason"),
        (ReclusterPet, {}, "pet_id"),
    ],
)
def test_error_for_an_invalid_contract_names_the_field(
    contract: type[MergeClusters | SplitCluster | UndoFeedback | ReclusterPet], sent: Mapping[str, Any], field: str
) -> None:
    refused = refusal(lambda: contract.from_kwargs(sent))

    assert refused.field == field


def test_repeated_cluster_ids_of_a_merge_count_once() -> None:
    assert MergeClusters.from_kwargs({"pet_id": 1, "cluster_ids": [7, 3, 7]}).cluster_ids == (7, 3)


def test_stream_names_match_the_runbook() -> None:
    assert stream_of("embedding.ingested") == "streams:embedding.ingested"
