"""A FastAPI service whose coroutines enqueue: uvicorn examples.async_service:app

``aenqueue`` runs in a thread of the broker, so a hanging Redis does not stop the event loop. If the timeout ends the
call, the message may still be enqueued; ``unique_key`` makes it safe to repeat the request.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import dramatiq
from dramatiq.errors import BrokerConnectionError
from fastapi import FastAPI, HTTPException

from broker import RedisStreamsBroker

broker = RedisStreamsBroker(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"), group="example-workers")
dramatiq.set_broker(broker)


@dramatiq.actor(max_retries=3)
def resize(picture: str) -> None:
    print(f"resizing {picture}", flush=True)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    broker.close()


app = FastAPI(lifespan=lifespan)


@app.post("/pictures/{name}", status_code=202)
async def upload(name: str) -> dict[str, str]:
    message = resize.message_with_options(args=(name,), unique_key=name)
    try:
        async with asyncio.timeout(5):
            sent = await broker.aenqueue(message)
    except (BrokerConnectionError, TimeoutError) as away:
        raise HTTPException(503, detail=f"try again later: {away}", headers={"Retry-After": "5"}) from away
    return {"message_id": sent.message_id}
