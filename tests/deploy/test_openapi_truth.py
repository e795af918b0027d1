"""Tests that the real API matches its OpenAPI document, with requests that schemathesis derives from it.

A request that is valid for its schema is accepted, or refused for a reason that no schema can state. An invalid request
is refused. No response has a status, header or body that the document does not describe.
"""

from __future__ import annotations

import re
from typing import Any, Final

import pytest
import redis
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from sploot_cluster import ClusterService
from sploot_cluster.store.redis import RedisPetStore
from tasks.composition import build_app
from tasks.settings import Settings
from tests.console.conftest import running
from tests.sploot_cluster.albums import PET, take
from tests.support import lacking

pytestmark = [pytest.mark.deploy, pytest.mark.slow]

SECRET: Final = "a-secret-of-an-operator"
EXAMPLES: Final = 4
SEED: Final = 20_261_130

# Why a request that its schema allows may be refused: rules about several fields or about characters, what a format
# means, and ids that name nothing.
RULES: Final = (
    "is a fraction, not a whole number",  # for a schema, 1.0 is a whole number
    "contains the unprintable character",
    "is not a valid date-time",
    "is sent without preview",
    "has too few different entries",
    "has no cluster",
    "is not a correction",
    "does not exist: the newest is",
    "is not a dead letter of",
    "not in any cluster or the noise of pet",
    "items of the pet were deleted or replaced since",
)
# the embedding of an event: its form depends on the fields dim and encoding
EMBEDDING: Final = re.compile(r"(\[\d+\]\.)?embedding")
STATES: Final = {412}  # the pet is at another revision, or the preview is gone
# the answer to a caller that sent many wrong tokens, as schemathesis does
LIMITED: Final = "got `429 Too Many Requests`"
REUSED_KEY: Final = "this Idempotency-Key was used before with another body"


def is_legitimate(failure: Exception, answer: Any) -> bool:
    """Return whether a failure that schemathesis reports is a refusal for a reason that no schema can state."""
    kind = type(failure).__name__
    if kind == "JsonSchemaError" and answer.headers["content-type"][0].startswith("text/event-stream"):
        return True  # the document describes the text of the stream, and schemathesis expects a schema of its events
    if LIMITED in str(failure):
        return True
    if kind != "RejectedPositiveData":
        return False
    problem = answer.json()
    if answer.status_code in STATES or problem["detail"].startswith(REUSED_KEY):
        return True
    errors = problem.get("errors", [])
    return bool(errors) and all(
        EMBEDDING.fullmatch(error["field"]) or any(rule in error["problem"] for rule in RULES) for error in errors
    )


def test_api_responses_match_the_openapi_document(redis_url: str, redis_client: redis.Redis) -> None:
    try:
        # imported here, because the import takes a second and other targets collect this module too
        import schemathesis
        from schemathesis.core.failures import FailureGroup
        from schemathesis.core.result import Ok
    except ImportError:
        lacking("schemathesis", "pip install -e '.[deploy]'")

    service = ClusterService(RedisPetStore(redis_client))
    take(service, 0, range(6))  # the pet of the document's examples
    service.recluster(PET)
    # without a worker, the response to a preview would arrive only after the longest wait
    headers = {"Authorization": f"Bearer {SECRET}", "Prefer": "respond-async"}
    broken: list[str] = []
    with running(build_app(Settings(redis_url=redis_url, api_tokens=f"ada:operator:{SECRET}"))) as address:
        document = schemathesis.openapi.from_url(f"{address}/openapi.json", headers=headers)
        operations = [found.ok() for found in document.get_all_operations() if isinstance(found, Ok)]

        for operation in operations:

            @seed(SEED)
            @settings(
                max_examples=EXAMPLES,
                deadline=None,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
                verbosity=Verbosity.quiet,
            )
            @given(case=operation.as_strategy())
            def ask(case: Any) -> None:
                answer = case.call(headers=headers, timeout=60)
                try:
                    case.validate_response(answer)
                except FailureGroup as failures:
                    found = [one for one in failures.exceptions if not is_legitimate(one, answer)]
                    broken.extend(f"{case.as_curl_command()}\n{answer.text[:500]}\n{failure}" for failure in found)

            ask()

    assert len(operations) > 50
    assert not broken, "\n\n".join(broken)
