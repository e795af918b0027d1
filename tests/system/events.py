"""Flat events as a producer in another language writes them, and ports for real processes."""

from __future__ import annotations

import socket
from functools import cache

import numpy as np

from sploot_cluster.vectors import FloatMatrix

DIM = 16
N_LOOKS = 4


@cache
def vectors(*, pet_id: int, n: int) -> FloatMatrix:
    """(n, DIM) float32 around a few directions; the same for the same arguments."""
    rng = np.random.default_rng(pet_id)
    looks = rng.normal(size=(N_LOOKS, DIM))
    drawn: FloatMatrix = (looks[np.arange(n) % N_LOOKS] + 0.15 * rng.normal(size=(n, DIM))).astype(np.float32)
    drawn.flags.writeable = False
    return drawn


def flat_event(*, pet_id: int, number: int) -> dict[bytes | str | int | float, bytes | str | int | float]:
    """The event of the pet's medium with this number (below 1,000)."""
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
    """A loopback port that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
