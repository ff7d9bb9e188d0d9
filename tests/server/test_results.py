"""What a coordinator can tell of the figures that it was sent."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from client.policy import Allow, Names, Site, SitePolicy
from client.suppression import suppress
from common import metrics
from common.messages import group, prefixed
from server import runs
from server.results import gathered


def people(seed, rows):
    draw = np.random.default_rng(seed)
    labels = (np.arange(rows) % 2).astype(np.int32)
    scores = np.clip(0.3 + 0.4 * labels + draw.normal(0, 0.2, rows), 0.01, 0.99)
    return metrics.summarise(labels, np.stack([1 - scores, scores], axis=1))


def shown(statistics, least):
    policy = SitePolicy(
        Site("east", "heart", "heart.csv"),
        Allow(smallest_cell=least, statistics=Names(["count", "task"]), metrics=True),
    )
    return group("test", suppress(prefixed("test", statistics), policy, b"secret"))


@given(st.integers(0, 1000), st.integers(40, 200), st.integers(2, 12))
def test_who_gathered_small_counts_is_known_by_the_counts_alone(seed, rows, least):
    true = people(seed, rows)
    found = gathered({"east": true, "west": shown(true, least), "north": shown(true, 1)})
    assert found.keys() == {"west"}
    assert least <= found["west"] < 2 * least


def test_a_hospital_without_test_patients_gathered_nothing():
    assert gathered({"east": people(1, 0)}) == {}


def test_the_summary_says_whose_figures_are_less_exact():
    record = {
        "title": "Heart",
        "rounds": [],
        "headline": "auroc",
        "weights_sha256": "ab" * 32,
        "results": {"federated": {"pooled": {"auroc": [0.9, 0.8, 1.0]}}},
    }
    assert "gathered" not in runs.summary(record)
    told = runs.summary({**record, "gathered": {"cleveland": 5, "va": 10}})
    assert "small counts were gathered at cleveland (5), va (10): these figures are off by more than" in told
    assert told.replace(told.splitlines(keepends=True)[1], "") == runs.summary(record)
