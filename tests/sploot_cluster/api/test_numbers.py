"""Tests that 64-bit ids are accepted as JSON numbers or text, and never rounded to the id of another pet."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sploot_cluster.fields import ID
from sploot_cluster.pet.models import PetId
from tests.corrections import EXAMPLES, as_body
from tests.sploot_cluster.albums import take
from tests.sploot_cluster.api.front import API, Front

# The first integer that a double cannot represent, one of 19 digits, and the largest id.
LARGE = [2**53 + 1, 1_800_000_000_000_000_001, 2**63 - 1]

# Path -> the body without its ids, and the names of the id fields.
IDS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "/clusters/recluster": ({}, ["pet_id"]),
    **{
        f"/clusters/{verb}": (
            {name: value for name, value in as_body(request).items() if not isinstance(value, int)},
            [name for name, field in request.body().items() if field.kind == ID],
        )
        for verb, request in EXAMPLES.items()
    },
    "/embeddings": ({"media_id": "a", "model": "clip@1", "embedding": [0.5, 1]}, ["pet_id"]),
}


def body_of(path: str, spelling: Any) -> dict[str, Any]:
    """Return the body for a path with every id given as ``spelling``."""
    body, names = IDS[path]
    ids = dict.fromkeys(names, spelling)
    return body | ids | ({"cluster_ids": [spelling, 7]} if "cluster_ids" in body else {})


@pytest.mark.parametrize("given", LARGE)
@pytest.mark.parametrize("path", IDS)
def test_id_as_text_has_the_same_effect_as_a_number(path: str, given: int) -> None:
    as_number, as_text = Front(), Front()

    answers = [
        as_number.http.post(API + path, json=body_of(path, given)),
        as_text.http.post(API + path, json=body_of(path, str(given))),
    ]

    assert [answer.status_code for answer in answers] == [202, 202]
    assert as_text.queue.asked == as_number.queue.asked
    assert as_text.queue.asked[0][1]["pet_id"] == given


NOT_IDS: list[Any] = [
    "042", "+42", "-42", " 42", "42 ", "42\n", "4_2", "42.0", "4.2e1", "٤٢", "0x2a", "", "0", str(2**63),
    True, 42.0, 0, 2**63, [42], {"id": 42},
]  # fmt: skip


@pytest.mark.parametrize("spelling", NOT_IDS, ids=repr)
@pytest.mark.parametrize("field", ["pet_id", "into", "cluster_ids[0]"])
def test_error_for_an_invalid_id_names_its_field(field: str, spelling: Any) -> None:
    front = Front()
    ids = {"pet_id": 42, "cluster_ids[0]": 3, "into": 7} | {field: spelling}

    answer = front.http.post(
        f"{API}/clusters/merge",
        json={"pet_id": ids["pet_id"], "cluster_ids": [ids["cluster_ids[0]"], 7], "into": ids["into"]},
    )

    assert (answer.status_code, [error["field"] for error in answer.json()["errors"]]) == (422, [field])
    assert front.queue.asked == []


@pytest.mark.parametrize("pet", LARGE)
def test_response_contains_the_exact_digits_of_an_id(pet: int) -> None:
    front = Front()
    take(front.service, 0, range(2), pet=PetId(pet))

    answer = front.http.get(f"{API}/pets/{pet}/clusters")

    assert f'"pet_id":{pet},' in answer.text
    assert answer.json()["n_media"] == 2
    assert front.http.get(f"{API}/pets/{pet - 1}/clusters").json()["n_media"] == 0


@pytest.mark.parametrize("revision", ["-1", "01", " 1", "1_0", str(2**63), "1e2"])
@pytest.mark.parametrize("field", ["from", "to"])
def test_error_for_an_invalid_revision_names_its_field(field: str, revision: str) -> None:
    answer = Front().http.get(f"{API}/pets/42/history/diff", params={"from": "0", "to": "0", field: revision})

    assert (answer.status_code, [error["field"] for error in answer.json()["errors"]]) == (422, [field])


def test_openapi_document_states_the_bounds_of_ids() -> None:
    document = Front().http.get("/openapi.json").json()

    in_path = document["paths"][f"{API}/pets/{{pet_id}}/clusters"]["get"]["parameters"][0]["schema"]
    in_body = document["components"]["schemas"]["Merge"]["properties"]["pet_id"]["anyOf"]
    assert (in_path["type"], in_path["format"], in_path["minimum"], in_path["maximum"]) == (
        "integer", "int64", 1, 2**63 - 1
    )  # fmt: skip
    assert [form["type"] for form in in_body] == ["integer", "string"]
    assert (in_body[0]["minimum"], in_body[0]["exclusiveMaximum"]) == (1, 2**63)
    assert in_body[1]["pattern"] == "^[1-9][0-9]{0,18}$"


# -- repeated fields -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/clusters/recluster", '{"pet_id": 42, "pet_id": 43}', "pet_id"),
        ("/clusters/recluster", '{"pet_id": 42, "pet_id": 42}', "pet_id"),
        ("/clusters/recluster", '{"pet_id": 42, "pet\\u005fid": 43}', "pet_id"),
        ("/clusters/merge", '{"pet_id": 42, "cluster_ids": [1, 2], "cluster_ids": [3, 4]}', "cluster_ids"),
        ("/clusters/undo", '{"pet_id": 42, "revision": 1, "x": 1, "x": 2}', "x"),
    ],
)
def test_repeated_field_is_refused(path: str, body: str, field: str) -> None:
    front = Front()

    answer = front.http.post(API + path, content=body, headers={"Content-Type": "application/json"})

    assert (answer.status_code, [error["field"] for error in answer.json()["errors"]]) == (422, [field])
    assert front.queue.asked == []


def test_list_refuses_only_the_embedding_with_a_repeated_field() -> None:
    front = Front()
    good = json.dumps({"media_id": "a", "pet_id": 42, "model": "clip@1", "embedding": [0.5, 1]})
    twice = good.replace('"pet_id": 42', '"pet_id": 42, "pet_id": 43')

    answer = front.http.post(
        f"{API}/embeddings", content=f"[{good}, {twice}]", headers={"Content-Type": "application/json"}
    )

    assert answer.status_code == 207
    assert [item["errors"] and item["errors"][0]["field"] for item in answer.json()["items"]] == [[], "[1].pet_id"]
    assert [facts["pet_id"] for _, facts in front.queue.asked] == [42]
