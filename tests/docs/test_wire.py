"""The wire format: the code behaves as docs/wire describes it."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from redis.crc import key_slot

from sploot_cluster.encodings import ENCODINGS
from sploot_cluster.errors import InvalidInput
from sploot_cluster.event import EmbeddingIngested
from tasks.contracts import EMBEDDING_INGESTED, GROUP, QUEUES, stream_of
from tasks.shards import bucket_of_pet

WIRE = Path(__file__).parent.parent.parent / "docs" / "wire"
SCHEMA = json.loads((WIRE / "embedding.ingested-1.schema.json").read_text())
GOLDEN = json.loads((WIRE / "golden.json").read_text())
ASYNCAPI = yaml.safe_load((WIRE / "asyncapi.yaml").read_text())

Case = dict[str, Any]


def named(cases: list[Case]) -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in cases]


def entry_of(case: Case) -> dict[bytes, bytes]:
    """Return the fields as Redis stores them."""
    return {
        name.encode(): value["utf8"].encode() if "utf8" in value else base64.b64decode(value["base64"])
        for name, value in case["fields"].items()
    }


def text_of(case: Case) -> dict[str, str]:
    """Return the fields as the JSON Schema describes them."""
    return {name: value["utf8"] if "utf8" in value else value["base64"] for name, value in case["fields"].items()}


@pytest.mark.parametrize("case", named(GOLDEN["valid"]))
def test_golden_entry_decodes_to_recorded_values(case: Case) -> None:
    event = EmbeddingIngested.from_fields(entry_of(case))

    expected = {"occurred_at": None, "replace": None, "traceparent": None, **case["expect"]}
    values = expected.pop("values")
    assert {name: getattr(event, name) for name in expected} == expected
    assert list(event.vector()) == values


@pytest.mark.parametrize("case", named(GOLDEN["invalid"]))
def test_error_for_an_invalid_golden_entry_names_the_recorded_field(case: Case) -> None:
    with pytest.raises(InvalidInput) as refused:
        EmbeddingIngested.from_fields(entry_of(case))

    assert refused.value.field == case["field"]
    assert refused.value.hint


def test_golden_buckets_are_those_of_the_code() -> None:
    recorded = {case["pet_id"]: case["bucket"] for case in GOLDEN["buckets"]}

    assert {pet_id: bucket_of_pet(int(pet_id)) for pet_id in recorded} == recorded
    assert {pet_id: key_slot(pet_id.encode()) % 1024 for pet_id in recorded} == recorded


def test_golden_entries_cover_every_encoding() -> None:
    assert {case["fields"]["encoding"]["utf8"] for case in GOLDEN["valid"]} == set(ENCODINGS)


def test_schema_accepts_and_refuses_golden_entries_as_recorded() -> None:
    import jsonschema  # imported here, because it compiles dozens of grammars if its optional packages are installed

    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    validator = jsonschema.Draft202012Validator(SCHEMA)

    accepted = {case["name"]: validator.is_valid(text_of(case)) for case in [*GOLDEN["valid"], *GOLDEN["invalid"]]}

    expected = {case["name"]: True for case in GOLDEN["valid"]}
    expected |= {case["name"]: not case["schema_sees_it"] for case in GOLDEN["invalid"]}
    assert accepted == expected


def test_asyncapi_lists_streams_and_group_of_the_code() -> None:
    channels = ASYNCAPI["channels"].values()

    assert {channel["address"] for channel in channels} == {stream_of(queue) for queue in QUEUES}
    assert {channel["x-redis-stream"]["group"] for channel in channels} == {GROUP}


def test_asyncapi_references_resolve() -> None:
    references = re.findall(r"\$ref: '?([^'\s]+)'?", (WIRE / "asyncapi.yaml").read_text())

    assert references
    for reference in references:
        if reference.startswith("#/"):
            found: Any = ASYNCAPI
            for step in reference.removeprefix("#/").split("/"):
                found = found[step]
        else:
            assert (WIRE / reference).is_file(), reference


def test_python_example_of_the_readme_writes_a_valid_event(redis_url: str, redis_client: redis.Redis) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (WIRE / "README.md").read_text(), flags=re.DOTALL)
    assert "redis://127.0.0.1:6379/0" in example

    exec(example.replace("redis://127.0.0.1:6379/0", redis_url), {})

    entries: Any = redis_client.xrange(stream_of(EMBEDDING_INGESTED))
    ((_, fields),) = entries
    event = EmbeddingIngested.from_fields(fields)
    assert (event.pet_id, event.media_id) == (42, "beach.jpg")
    assert list(event.vector()) == pytest.approx([0.1, -0.25, 1.5, 3e-5])
