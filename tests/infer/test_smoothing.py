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
def test_tail_shape_is_that_of_the_law():
    # A Pareto law of shape k: weights u ** -k.
    rng = np.random.default_rng(0)
    for true in (0.2, 0.9):
        log_weights = -true * np.log(rng.random(20_000))
        assert abs(pareto_smooth(log_weights).pareto_k - true) < 0.12


@pytest.mark.arviz
def test_units_are_smoothed_alone():
    columns = [log_weights_of(name, 100) for name in ("light", "heavy")]
    together = pareto_smooth(np.stack(columns, axis=1))
    assert together.log_weights.shape == (100, 2)
    for unit, column in enumerate(columns):
        alone = pareto_smooth(column)
        np.testing.assert_array_equal(together.log_weights[:, unit], alone.log_weights)
        assert together.pareto_k[unit] == alone.pareto_k


def test_equal_weights_have_no_tail():
    smoothed = pareto_smooth(np.full(100, -3.0))
    assert smoothed.pareto_k == -np.inf
    np.testing.assert_allclose(smoothed.log_weights, -np.log(100))


def test_weights_at_their_bound_have_no_tail():
    # As from a likelihood that is 0 or a constant.
    log_weights = np.where(np.arange(200) % 2 == 0, -np.inf, 4.0)
    smoothed = pareto_smooth(log_weights)
    assert smoothed.pareto_k == -np.inf
    assert "no tail" in smoothed.notes[0]
    np.testing.assert_allclose(smoothed.log_weights[1::2], -np.log(100))
    assert np.all(smoothed.log_weights[::2] == -np.inf)


def test_too_few_draws():
    log_weights = log_weights_of("light", 24)
    smoothed = pareto_smooth(log_weights)
    assert np.isnan(smoothed.pareto_k)
    assert "24 draws are too few" in smoothed.notes[0]
    expected = log_weights - logsumexp(log_weights)
    np.testing.assert_allclose(smoothed.log_weights, expected, atol=1e-12)


def test_none_finite():
    smoothed = pareto_smooth(np.full(100, -np.inf))
    assert np.isnan(smoothed.pareto_k)
    assert smoothed.notes == ("no particle carries weight",)
    assert np.all(smoothed.log_weights == -np.inf)


@pytest.mark.parametrize("num_finite", [1, 4, 20])
def test_too_few_with_weight(num_finite):
    log_weights = np.full(100, -np.inf)
    log_weights[:num_finite] = np.arange(num_finite)
    smoothed = pareto_smooth(log_weights)
    assert smoothed.pareto_k == np.inf
    assert f"only {num_finite} of 100" in smoothed.notes[0]
    expected = np.arange(num_finite) - logsumexp(np.arange(num_finite))
    np.testing.assert_allclose(smoothed.log_weights[:num_finite], expected)


@pytest.mark.arviz
@pytest.mark.parametrize("scale", [1e-9, 30.0, 100.0, 300.0, 1e5])
def test_extreme_weights_give_no_error(scale):
    log_weights = scale * np.random.default_rng(1).normal(size=1000)
    smoothed = pareto_smooth(log_weights)
    assert abs(logsumexp(smoothed.log_weights)) < 1e-8
    assert smoothed.pareto_k.shape == ()
    if scale > 1:
        assert not smoothed.pareto_k <= 0.7


@pytest.mark.parametrize(
    ("log_weights", "message"),
    [
        (np.zeros((2, 3, 4)), "must have shape"),
        (np.array(0.0), "must have shape"),
        (np.array([0.0, np.nan]), "got NaN or inf"),
        (np.array([0.0, np.inf]), "got NaN or inf"),
    ],
)
def test_bad_input(log_weights, message):
    with pytest.raises(ValueError, match=message):
        pareto_smooth(log_weights)
