"""Admission: the checks that every request passes before its endpoint runs.

The cheapest checks come first: authentication, authorization, content type, size, idempotency key. Only then is the
body parsed.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from email.message import Message as Headers
from hashlib import sha256
from typing import Annotated, Any, Final

from fastapi import Depends, Header, Request, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Message

from sploot_cluster.api import problems
from sploot_cluster.api.bodies import parsed
from sploot_cluster.api.idempotency import Answer, IdempotencyStore, KeyInProgress, KeyReused, Ticket
from sploot_cluster.api.problems import Kind, Refusal
from sploot_cluster.api.rates import UNAUTHENTICATED_PER_S, Rates
from sploot_cluster.api.tokens import LOOPBACK, MAY_CALL, VARIABLE, Caller, Tokens
from sploot_cluster.errors import InvalidInput, StoreUnavailable

logger = logging.getLogger(__name__)

MAX_IDEMPOTENCY_KEY: Final = 255

# Shorter than the grace period of a shutdown, so that a shutdown does not cut off a body that is still arriving.
BODY_WAIT_S: Final = 15.0

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

# Problems that every route with a role may return, and problems that routes with a body may return.
READS: Final[tuple[Kind, ...]] = (
    problems.UNAUTHENTICATED,
    problems.FORBIDDEN,
    problems.NOT_LOOPBACK,
    problems.INVALID_INPUT,
    problems.TOO_MANY_REQUESTS,
    problems.INTERNAL,
    problems.STORE_UNAVAILABLE,
)
WRITES: Final[tuple[Kind, ...]] = (
    problems.MALFORMED_JSON,
    problems.UNAUTHENTICATED,
    problems.FORBIDDEN,
    problems.NOT_LOOPBACK,
    problems.CROSS_SITE,
    problems.TOO_SLOW,
    problems.KEY_IN_PROGRESS,
    problems.BODY_TOO_LARGE,
    problems.NOT_JSON,
    problems.INVALID_INPUT,
    problems.KEY_REUSED,
    problems.TOO_MANY_REQUESTS,
    problems.INTERNAL,
    problems.QUEUE_UNAVAILABLE,
    problems.QUEUE_FULL,
    problems.STORE_UNAVAILABLE,
)


@dataclass(frozen=True, slots=True)
class Admission:
    """The rules by which requests are admitted.

    Attributes:
        tokens: the valid tokens. Without any, every caller is ``loopback``; ``LoopbackGuard`` refuses other machines.
        max_body_bytes: size limit of a request's body.
        rates: the rate limit of each caller.
        strangers: the rate limit of each IP address that sends requests without a valid token.
    """

    tokens: Tokens
    idempotency: IdempotencyStore
    max_body_bytes: int
    rates: Rates = field(default_factory=lambda: Rates(0))
    strangers: Rates = field(default_factory=lambda: Rates(UNAUTHENTICATED_PER_S))

    def route_class(self) -> type[APIRoute]:
        """Return the ``route_class`` of a router whose routes apply these rules."""
        admission = self

        class GuardedRoute(APIRoute):
            def get_route_handler(self) -> Handler:
                handle, operation = super().get_route_handler(), self.operation_id or ""
                if operation not in MAY_CALL:
                    raise LookupError(
                        f"{self.path}: {operation} has no entry in tokens.MAY_CALL; add the roles that may call it"
                    )

                async def guarded(request: Request) -> Response:
                    return await admission.open(request, operation, handle)

                return guarded

        return GuardedRoute

    async def open(self, request: Request, operation: str, handle: Handler) -> Response:
        """Return the response of ``handle`` if the request is admitted.

        Raises:
            Refusal: the request is not admitted.
        """
        caller = request.state.caller = self._admit(request, operation)
        if request.method == "GET":
            return await handle(request)
        status = 500
        try:
            response = await self._change(request, operation, caller, handle)
            status = response.status_code
        except Refusal as refusal:
            status = refusal.kind.status
            raise
        finally:
            # log only who did what; the histories of pets and the audit log record what was changed
            facts = {"caller": caller.name, "role": str(caller.role), "operation": operation, "status": status}
            logger.info("change requested", extra=facts | {"path": request.url.path})
        return response

    async def _change(self, request: Request, operation: str, caller: Caller, handle: Handler) -> Response:
        """Return the response of ``handle`` to a request that may change data."""
        if request.method != "POST":
            return await handle(request)
        _refuse_unless_json(request)
        body = await self._read(request)
        request = _JsonRequest(request.scope, _replay(body))
        key = request.headers.get("idempotency-key")
        if key is None:
            return await handle(request)
        return await self._once(request, _scoped(caller, operation, _checked(key)), body, handle)

    def _admit(self, request: Request, operation: str) -> Caller:
        if not self.tokens:
            _refuse_if_early(self.rates.wait_s(LOOPBACK.name), LOOPBACK.name)
            return LOOPBACK
        caller = self.tokens.holder_of(bearer_of(request))
        if caller is None:
            address = "" if request.client is None else request.client.host
            _refuse_if_early(self.strangers.wait_s(address), "a caller without a valid token")
            raise unauthenticated()
        _refuse_if_early(self.rates.wait_s(caller.name), caller.name)
        if caller.role not in MAY_CALL[operation]:
            roles = " or ".join(sorted(MAY_CALL[operation]))
            detail = f"{caller.name} has role {caller.role}; {operation} requires a token with role {roles}"
            raise Refusal(problems.FORBIDDEN, detail)
        return caller

    async def _read(self, request: Request) -> bytes:
        """Return the body of a request, or refuse the request as soon as its body exceeds ``max_body_bytes``."""
        too_large = Refusal(
            problems.BODY_TOO_LARGE,
            f"the body is larger than {self.max_body_bytes} bytes; send it in parts",
            # the rest of the body is not read, so the connection must be closed
            headers={"Connection": "close"},
        )
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > self.max_body_bytes:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_WAIT_S):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > self.max_body_bytes:
                        raise too_large
        except TimeoutError:
            detail = f"the body did not arrive within {BODY_WAIT_S:.0f} s; send it in parts, or over a faster network"
            raise Refusal(problems.TOO_SLOW, detail, headers={"Connection": "close"}) from None
        return bytes(body)

    async def _once(self, request: Request, key: str, body: bytes, handle: Handler) -> Response:
        """Return the stored response to the first request with this key, or call ``handle`` if this is the first."""
        # include the path, because an application may be mounted at several paths
        fingerprint = sha256(request.url.path.encode("utf-8", "surrogatepass") + b"\0" + body).hexdigest()
        try:
            begun = await run_in_threadpool(self.idempotency.begin, key, fingerprint)
        except KeyInProgress:
            detail = "the first request with this Idempotency-Key is still being processed; retry in a second"
            raise Refusal(problems.KEY_IN_PROGRESS, detail, headers={"Retry-After": "1"}) from None
        except KeyReused:
            detail = "this Idempotency-Key was used before with another body; use a new key for a new request"
            raise Refusal(problems.KEY_REUSED, detail) from None
        if isinstance(begun, Answer):
            return Response(begun.body, begun.status, headers={**begun.headers, "Idempotency-Replayed": "true"})
        try:
            response = await handle(request)
        except Exception:
            # a cancellation is not an Exception, so it keeps the key: the endpoint's thread may still enqueue the job
            await self._release(begun)
            raise
        if response.headers.get("cache-control") == "no-store":
            # do not store the response: it names items, and a stored copy would outlive their deletion
            await self._release(begun)
        else:
            await self._finish(begun, response)
        return response

    async def _release(self, ticket: Ticket) -> None:
        try:
            await run_in_threadpool(self.idempotency.release, ticket)
        except StoreUnavailable as away:
            # do not fail the request for this; the key expires anyway
            logger.warning("could not release idempotency key", extra={"problem": away.problem})

    async def _finish(self, ticket: Ticket, response: Response) -> None:
        headers = {name: response.headers[name] for name in ("content-type", "location") if name in response.headers}
        answer = Answer(response.status_code, headers, bytes(response.body).decode())
        try:
            await run_in_threadpool(self.idempotency.finish, ticket, answer)
        except StoreUnavailable as away:
            # do not fail the request: the job is enqueued, and an error would make the caller send it again
            logger.warning("could not store answer for its idempotency key", extra={"problem": away.problem})


def bearer_of(request: Request) -> str:
    """Return the bearer token of a request, or an empty string if it has none."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""


def unauthenticated(hint: str = "") -> Refusal:
    """Return the refusal of a request without a valid token. ``hint`` is added to the usual hint."""
    detail = f"send 'Authorization: Bearer <secret>' with a secret of the server's {VARIABLE}"
    headers = {"WWW-Authenticate": 'Bearer realm="sploot-cluster"'}
    return Refusal(problems.UNAUTHENTICATED, f"{detail}; {hint}" if hint else detail, headers=headers)


def _refuse_if_early(wait_s: float, caller: str) -> None:
    if wait_s:
        seconds = math.ceil(wait_s)
        detail = f"{caller} sends more requests per second than the server accepts; send it again in {seconds} s"
        raise Refusal(problems.TOO_MANY_REQUESTS, detail, headers={"Retry-After": str(seconds)})


def caller_of(request: Request) -> Caller:
    """Return the caller of an admitted request. For use as a dependency."""
    caller: Caller = request.state.caller
    return caller


CallerOf = Annotated[Caller, Depends(caller_of)]


def _describe_idempotency_key(
    idempotency_key: Annotated[
        str | None,
        Header(
            description="A request that is repeated with the same key and body within a day gets the first response, "
            "with `Idempotency-Replayed: true`. Keys are separate for each caller and URL path.",
            min_length=1,
            max_length=MAX_IDEMPOTENCY_KEY,
            pattern="^[ -~]*$",
            examples=["7f4f2f0e-2c9b-4a57-9a0e-3d5f0f0f9a11"],
        ),
    ] = None,
) -> None:
    """Describe the header in the OpenAPI document; ``Admission`` reads it."""


BEARER: Final = Security(
    HTTPBearer(auto_error=False, description=f"A secret of {VARIABLE}. Not required on loopback while that is empty.")
)
IDEMPOTENCY_KEY: Final = Depends(_describe_idempotency_key)


def _refuse_unless_json(request: Request) -> None:
    # Requires application/json, which browsers never send to another site without a preflight request.
    given = Headers()
    given["content-type"] = request.headers.get("content-type", "")
    if not request.headers.get("content-type") or given.get_content_type() != "application/json":
        raise Refusal(problems.NOT_JSON, "send the body as 'Content-Type: application/json'")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refusal(problems.NOT_JSON, "send the body without Content-Encoding")


class _JsonRequest(Request):
    """A request whose JSON body is parsed without losing repeated names; see ``bodies.parsed``."""

    async def json(self) -> Any:
        return parsed(await self.body())


def _replay(body: bytes) -> Callable[[], Coroutine[Any, Any, Message]]:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def _checked(key: str) -> str:
    if not 1 <= len(key) <= MAX_IDEMPOTENCY_KEY or not key.isascii() or not key.isprintable():
        hint = f"send 1 to {MAX_IDEMPOTENCY_KEY} visible ASCII characters, such as a UUID"
        raise InvalidInput("Idempotency-Key", "is invalid", hint)
    return key


def _scoped(caller: Caller, operation: str, key: str) -> str:
    return sha256("\0".join((caller.name, operation, key)).encode()).hexdigest()
