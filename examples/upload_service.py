"""A FastAPI service that enqueues: uvicorn examples.upload_service:app

The client waits for Redis for about three seconds at most. A plain ``def`` route runs in FastAPI's thread pool, so a
hanging Redis blocks neither the event loop nor other requests. A service that does not install sploot-cluster itself
installs ``sploot-cluster-client`` and imports the same names from ``sploot_cluster_client``.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel

from tasks.client import ClusterTasks, InvalidInput, QueueUnavailable


class Upload(BaseModel):
    media_id: str
    embedding: list[float]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # one client serves all threads; it connects when it is first used
    with ClusterTasks(os.environ["REDIS_URL"]) as tasks:
        app.state.tasks = tasks
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/pets/{pet_id}/photos", status_code=202)
def upload(pet_id: int, photo: Upload, request: Request) -> dict[str, str]:
    tasks: ClusterTasks = request.app.state.tasks
    try:
        job = tasks.ingest(pet_id=pet_id, media_id=photo.media_id, model="example@1", embedding=photo.embedding)
    except InvalidInput as refused:
        raise HTTPException(422, detail=str(refused)) from refused
    except QueueUnavailable as away:
        # safe to repeat: the same media_id again changes nothing
        raise HTTPException(503, detail=str(away), headers={"Retry-After": "5"}) from away
    return {"job_id": job.job_id}
