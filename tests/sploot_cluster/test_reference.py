"""Tests of previews that start from the groups of the package hdbscan, and of errors where it is not installed."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from sploot_cluster import ClusterService
from sploot_cluster.engine import reference
from sploot_cluster.errors import InvalidInput
from sploot_cluster.pet.models import REFERENCE
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.store.memory import MemoryPetStore
from tests.sploot_cluster.albums import PET, grouped, take
from tests.sploot_cluster.states import looks

# the package takes seconds to import
pytestmark = pytest.mark.slow


@pytest.fixture
def service() -> ClusterService:
    """A service with clusters 1 and 2 of twelve items each, and twelve new items of a third subject."""
    service = grouped(MemoryPetStore(), 2, range(12))
    take(service, 2, range(12))
    return service


def test_reference_preview_shows_the_groups_of_the_package_as_a_diff(service: ClusterService) -> None:
    pytest.importorskip("hdbscan", reason="hdbscan has no wheel for this machine")

    previewed = service.preview(PET, backend=REFERENCE)

    assert previewed.result.backend == REFERENCE
    assert (previewed.result.n_clusters, previewed.diff.new_ids, previewed.diff.kept_ids) == (3, (3,), (1, 2))
    assert service.apply(PET, previewed.token, by="ada") == previewed.result


def test_reference_groups_equal_those_of_the_package_hdbscan() -> None:
    hdbscan = pytest.importorskip("hdbscan", reason="hdbscan has no wheel for this machine")
    vectors, settings = looks(40, 25, 9, spread=0.4), ClusterSettings()

    found = reference.reference_density_of(vectors, settings=settings)

    size, samples = settings.recluster_parameters(len(vectors))
    theirs = hdbscan.HDBSCAN(min_cluster_size=size, min_samples=samples).fit(vectors.astype(np.float64))
    assert found.labels.tolist() == theirs.labels_.tolist()
    assert found.labels.dtype == np.int32


def test_items_of_a_pet_that_is_too_small_for_a_group_are_noise() -> None:
    pytest.importorskip("hdbscan", reason="hdbscan has no wheel for this machine")

    assert reference.reference_density_of(looks(1), settings=ClusterSettings()).labels.tolist() == [-1]


def test_error_for_a_missing_package_names_the_extra_to_install(
    service: ClusterService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "hdbscan", None)

    with pytest.raises(InvalidInput, match="hdbscan_reference needs the package hdbscan") as refused:
        service.preview(PET, backend=REFERENCE)

    assert "pip install 'sploot-cluster[reference]'" in refused.value.hint


def test_pet_that_is_too_large_for_the_package_is_refused(
    service: ClusterService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "MOST_ITEMS", 35)

    with pytest.raises(InvalidInput, match="at most 35 items, got 36"):
        service.preview(PET, backend=REFERENCE)
