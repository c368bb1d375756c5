"""Smoothed weights are the installed ArviZ's; weights without a tail are handled."""

import warnings
from importlib.metadata import version

import numpy as np
import pytest
from scipy.special import logsumexp

from numpyro_kaem.infer import pareto_smooth

ARVIZ_1 = int(version("arviz").split(".")[0]) >= 1


def log_weights_of(name, num_draws):
    rng = np.random.default_rng(17)
    if name == "light":
        return rng.normal(0.0, 0.2, num_draws)
    if name == "heavy":
        return rng.exponential(0.9, num_draws) - 40.0
    values = rng.normal(700.0, 1.5, num_draws)
    return np.where(rng.random(num_draws) < 0.4, -np.inf, values)


def arviz_smoothed(log_weights):
    """Smoothed log weights by the documented function of each line of ArviZ."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        if not ARVIZ_1:
            import arviz

            return arviz.psislw(log_weights.copy())
        import xarray
        from arviz_stats.accessors import (  # noqa: F401 registers .azstats
            AzStatsDaAccessor,
        )

        data = xarray.DataArray(-log_weights[None], dims=("chain", "draw"))
        smoothed, shape = data.azstats.psislw(r_eff=1)
        return smoothed.to_numpy()[0], float(shape)


@pytest.mark.arviz
@pytest.mark.parametrize("num_draws", [25, 200, 3000])
@pytest.mark.parametrize("name", ["light", "heavy", "with zeros"])
def test_equal_to_the_installed_arviz(name, num_draws):
    log_weights = log_weights_of(name, num_draws)
    smoothed = pareto_smooth(log_weights)
    expected, shape = arviz_smoothed(log_weights)
    np.testing.assert_allclose(smoothed.log_weights, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(smoothed.pareto_k, shape, rtol=0, atol=1e-6)
    assert abs(logsumexp(smoothed.log_weights)) < 1e-10
    # With 25 draws ArviZ 1.x finds no quartile of the five in the tail.
    assert (smoothed.notes == ("",)) is not np.isnan(shape)
    assert num_draws == 25 or np.isfinite(smoothed.pareto_k)


@pytest.mark.arviz
def test_tails_of_units_have_the_shape_of_their_distributions():
    """Each unit alone, by its own tail."""
    # A Pareto distribution of shape k: weights u ** -k.
    shapes = np.array([0.2, 0.9])
    log_weights = -shapes * np.log(np.random.default_rng(0).random((20_000, 2)))
    together = pareto_smooth(log_weights)
    assert together.log_weights.shape == (20_000, 2)
    assert np.all(np.abs(together.pareto_k - shapes) < 0.12)
    for unit, column in enumerate(log_weights.T):
        alone = pareto_smooth(column)
        np.testing.assert_array_equal(together.log_weights[:, unit], alone.log_weights)
        assert together.pareto_k[unit] == alone.pareto_k


def test_weights_without_a_tail_to_fit():
    """Normalised, not smoothed; what is said of them, and the shape in its place."""
    half = np.arange(200) % 2 == 0
    few = np.where(np.arange(100) < np.array([[1], [4], [20]]), np.arange(100), -np.inf)
    none = np.full(100, -np.inf)
    for log_weights, pareto_k, note in (
        (np.full(100, -3.0), -np.inf, "no tail"),
        # As from a likelihood that is 0 or a constant.
        (np.where(half, -np.inf, 4.0), -np.inf, "no tail"),
        (log_weights_of("light", 24), np.nan, "24 draws are too few"),
        *zip(few, [np.inf] * 3, [f"only {n} of 100" for n in (1, 4, 20)], strict=True),
        (none, np.nan, "no particle carries weight"),
    ):
        smoothed = pareto_smooth(log_weights)
        np.testing.assert_array_equal(smoothed.pareto_k, pareto_k)
        assert note in smoothed.notes[0]
        total = 0.0 if log_weights is none else logsumexp(log_weights)
        expected = log_weights - total
        np.testing.assert_allclose(smoothed.log_weights, expected, atol=1e-12)


@pytest.mark.arviz
def test_extreme_weights_give_no_error():
    for scale in (1e-9, 30.0, 100.0, 300.0, 1e5):
        log_weights = scale * np.random.default_rng(1).normal(size=1000)
        smoothed = pareto_smooth(log_weights)
        assert abs(logsumexp(smoothed.log_weights)) < 1e-8
        assert smoothed.pareto_k.shape == ()
        assert scale < 1 or not smoothed.pareto_k <= 0.7


def test_bad_input():
    for log_weights, message in (
        (np.zeros((2, 3, 4)), "must have shape"),
        (np.array(0.0), "must have shape"),
        (np.array([0.0, np.nan]), "got NaN or inf"),
        (np.array([0.0, np.inf]), "got NaN or inf"),
    ):
        with pytest.raises(ValueError, match=message):
            pareto_smooth(log_weights)
