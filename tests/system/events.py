"""Flat events as producers in other languages write them, and free ports for real processes."""

from __future__ import annotations

import socket
from functools import cache

import numpy as np

from sploot_cluster.pet.vectors import FloatMatrix

DIM = 16
N_DIRECTIONS = 4


@cache
def vectors(*, pet_id: int, n: int) -> FloatMatrix:
    """Return (n, DIM) float32 vectors around a few directions; deterministic for given arguments."""
    rng = np.random.default_rng(pet_id)
    directions = rng.normal(size=(N_DIRECTIONS, DIM))
    drawn: FloatMatrix = (directions[np.arange(n) % N_DIRECTIONS] + 0.15 * rng.normal(size=(n, DIM))).astype(np.float32)
    drawn.flags.writeable = False
    return drawn


def flat_event(*, pet_id: int, number: int) -> dict[bytes | str | int | float, bytes | str | int | float]:
    """Return the event of the pet's item with this number (below 1,000)."""
    return {
        "schema": "embedding.ingested/1",
        "event_id": f"event-{pet_id}-{number}",
        "pet_id": str(pet_id),
        "media_id": f"media-{number}",
        "model": "test@1",
        "dim": str(DIM),
        "encoding": "f32le",
        "embedding": vectors(pet_id=pet_id, n=1_000)[number].astype("<f4").tobytes(),
    }


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
