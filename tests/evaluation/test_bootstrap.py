"""The bootstrap: against scipy, by hand, and on simulated data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score

from adapterx.evaluation import bootstrap
from adapterx.evaluation.bootstrap import estimate, gain, holm, resampled_scores
from adapterx.tasks.classification import ClassificationMetric


def _answers(examples: int, labels: int, accuracy: float, *, seed: int) -> tuple[list[int], ...]:
    generator = np.random.default_rng(seed)
    truth = generator.integers(labels, size=examples)
    other = generator.integers(labels, size=examples)
    said = np.where(generator.random(examples) < accuracy, truth, other)
    return said.tolist(), truth.tolist()


def test_a_score_of_a_resample_is_the_score_of_the_examples_it_drew() -> None:
    said, truth = _answers(40, 3, 0.6, seed=0)
    metric = ClassificationMetric(3)
    found = resampled_scores(metric, [metric.statistics(said, truth)], resamples=25, seed=4)
    counts = np.random.default_rng([4, 40]).multinomial(40, np.full(40, 1 / 40), size=25)
    for index, drawn in enumerate(counts):
        at = np.repeat(np.arange(40), drawn)
        expected = f1_score(
            np.array(truth)[at], np.array(said)[at], average="macro", zero_division=0.0
        )
        assert found["macro_f1"][0, index] == pytest.approx(expected)


def test_an_interval_is_that_of_scipy() -> None:
    said, truth = _answers(150, 4, 0.7, seed=1)
    metric = ClassificationMetric(4)
    found = resampled_scores(metric, [metric.statistics(said, truth)], resamples=20_000)
    right = np.equal(said, truth).astype(float)
    mine = estimate(right.mean(), found["accuracy"][0])
    theirs = stats.bootstrap(
        (right,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(8)
    ).confidence_interval
    assert mine.low == pytest.approx(theirs.low, abs=0.01)
    assert mine.high == pytest.approx(theirs.high, abs=0.01)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_the_size_of_a_block_changes_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    said, truth = _answers(30, 3, 0.5, seed=2)
    metric = ClassificationMetric(3)
    statistics = [metric.statistics(said, truth), metric.statistics(truth, truth)]
    whole = resampled_scores(metric, statistics, resamples=50)
    monkeypatch.setattr(bootstrap, "_BLOCK", block * 30)
    parts = resampled_scores(metric, statistics, resamples=50)
    assert all(np.array_equal(whole[name], parts[name]) for name in whole)
    assert whole["accuracy"].shape == (2, 50)


@pytest.mark.slow
@pytest.mark.parametrize("score", ["accuracy", "macro_f1"])
def test_an_interval_holds_the_truth_in_some_95_of_100_samples(score: str) -> None:
    labels, examples, samples = 3, 200, 300
    metric = ClassificationMetric(labels)
    said, truth = _answers(200_000, labels, 0.6, seed=3)
    population = metric.scores(metric.statistics(said, truth).sum(0))[score]
    held = 0
    for seed in range(samples):
        statistics = metric.statistics(*_answers(examples, labels, 0.6, seed=100 + seed))
        drawn = resampled_scores(metric, [statistics], resamples=500, seed=seed)[score][0]
        known = estimate(float(metric.scores(statistics.sum(0))[score]), drawn)
        held += known.low <= population <= known.high
    # Three standard errors of a share of 300 at 95 %, and a percentile interval's small bias.
    assert 0.905 <= held / samples <= 0.99


@pytest.mark.slow
def test_a_p_value_rejects_a_true_null_in_some_5_of_100_samples() -> None:
    metric = ClassificationMetric(2)
    rejected = 0
    for seed in range(400):
        generator = np.random.default_rng(seed)
        truth = generator.integers(2, size=200)
        one, two = (
            np.where(generator.random(200) < 0.7, truth, 1 - truth).tolist() for _ in range(2)
        )
        statistics = [metric.statistics(said, truth.tolist()) for said in (one, two)]
        first, second = resampled_scores(metric, statistics, resamples=500, seed=seed)["accuracy"]
        rejected += gain(0.0, second - first).p < 0.05
    assert 0.02 <= rejected / 400 <= 0.085


def test_a_p_value_by_hand() -> None:
    drawn = np.array([-1.0] * 3 + [1.0] * 96)
    assert gain(0.5, drawn).p == pytest.approx(2 * 4 / 100)
    assert gain(-0.5, -drawn).p == pytest.approx(2 * 4 / 100)
    assert gain(0.0, np.zeros(99)).p == 1
    assert gain(1.0, np.ones(1999)).p == pytest.approx(2 / 2000)  # never 0


def test_holm_by_hand() -> None:
    # Holm (1979): the smallest times 3, then 2, then 1, never below the one before.
    assert holm({"sw": 0.04, "fr": 0.01, "yo": 0.03}) == pytest.approx(
        {"fr": 0.03, "yo": 0.06, "sw": 0.06}
    )
    assert holm({"sw": 0.5, "fr": 0.9}) == {"sw": 1.0, "fr": 1.0}
    assert holm({}) == {}


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_no_more_than_each_test_alone_and_no_less_than_bonferroni(
    p_values: list[float],
) -> None:
    known = {str(index): p for index, p in enumerate(p_values)}
    corrected = holm(known)
    for name, p in known.items():
        assert p <= corrected[name] <= min(1.0, len(known) * p)
    ordered = sorted(known, key=known.__getitem__)
    assert [corrected[name] for name in ordered] == sorted(corrected.values())
