"""Tests of the clustering settings and their validation."""

from __future__ import annotations

from dataclasses import fields

import pytest

from sploot_cluster.errors import InvalidInput
from sploot_cluster.settings import PREFIX, ClusterSettings


def test_unset_settings_keep_their_defaults() -> None:
    assert ClusterSettings.from_env({"PATH": "/bin"}) == ClusterSettings()


def test_every_setting_can_be_set_by_its_variable() -> None:
    changed = {"n_neighbours": "5", "arrival_slack": "2", "growth_ratio": "0.5", "growth_min": "3", "drift_min": "4"}
    changed |= {"drift_ratio": "0.5", "recluster_delay_ms": "0", "noise_floor": "0", "noise_ratio": "0.5"}
    changed |= {
        "absorption_slack": "2",
        "absorption_slack_excluded": "2",
        "overlap_ratio": "0.5",
        "single_cluster_similarity": "0.5",
    }
    changed |= {"recluster_backend": "hdbscan_gpu"}
    changed |= {"sharpness": "2", "small_group": "4"}
    changed |= {
        "exact_until": "100",
        "recluster_threads": "1",
        "commit_attempts": "1",
        "models": "clip@1=512, dino@2 = 768",
    }
    assert set(changed) == {setting.name for setting in fields(ClusterSettings)}

    settings = ClusterSettings.from_env({PREFIX + name.upper(): text for name, text in changed.items()})

    assert dict(settings.models) == {"clip@1": 512, "dino@2": 768}
    for name, text in changed.items():
        if name != "models":
            value = getattr(settings, name)
            assert value == (text if isinstance(value, str) else float(text))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("N_NEIGHBOURS", "2"),
        ("N_NEIGHBOURS", "many"),
        ("ARRIVAL_SLACK", "nan"),
        ("GROWTH_RATIO", "0"),
        ("GROWTH_RATIO", "inf"),
        ("DRIFT_RATIO", "1.01"),
        ("RECLUSTER_DELAY_MS", "86400001"),
        ("NOISE_RATIO", "-0.1"),
        ("ABSORPTION_SLACK", "0.9"),
        ("COMMIT_ATTEMPTS", "0"),
        ("MODELS", "clip@1"),
        ("MODELS", "clip@1=1"),
        ("MODELS", "=512"),
    ],
)
def test_error_for_an_invalid_value_names_the_variable(name: str, text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        ClusterSettings.from_env({PREFIX + name: text})

    assert refused.value.field == PREFIX + name
    assert refused.value.hint.startswith("set ")


def test_misspelt_variable_is_refused() -> None:
    with pytest.raises(InvalidInput, match=f"{PREFIX}NOISE_FLOR: is not a setting"):
        ClusterSettings.from_env({PREFIX + "NOISE_FLOR": "3"})


def test_error_for_an_invalid_argument_names_it() -> None:
    with pytest.raises(InvalidInput, match=r"drift_ratio: is 1\.5; set more than 0 and at most 1"):
        ClusterSettings(drift_ratio=1.5)


@pytest.mark.parametrize(("n", "pair"), [(1, (6, 3)), (149, (6, 3)), (150, (12, 2)), (50_000, (12, 2))])
def test_larger_pets_get_a_larger_minimum_group_size(n: int, pair: tuple[int, int]) -> None:
    assert ClusterSettings.recluster_parameters(n) == pair


@pytest.mark.parametrize(("n", "budget"), [(0, 14), (400, 14), (500, 15), (10_000, 300)])
def test_noise_budget_is_the_floor_or_a_share_of_the_pet(n: int, budget: int) -> None:
    assert ClusterSettings().noise_budget(n) == budget


@pytest.mark.parametrize(
    ("n", "wait_ms"), [(1, 10_000), (1_000, 10_000), (5_000, 50_000), (60_000, 600_000), (200_000, 600_000)]
)
def test_requested_recluster_waits_longer_in_a_large_pet(n: int, wait_ms: int) -> None:
    assert ClusterSettings().recluster_wait_ms(n) == wait_ms
    assert ClusterSettings(recluster_delay_ms=0).recluster_wait_ms(n) == 0
