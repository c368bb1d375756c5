"""Fits and posteriors with atoms, against two groups in closed form and SciPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import integrate, stats

import numpyro_kaem as kaem
from numpyro_kaem.empirical_bayes.family import _value
from tests.helpers import assert_close

BASIS, REFERENCE = kaem.BSpline(-9.0, 9.0, 12), dist.Normal(0.0, 3.0)


def two_groups(num_units, share=0.6, seed=0):
    rng = np.random.default_rng(seed)
    z = np.where(rng.random(num_units) < share, 0.0, rng.normal(1.0, 3.0, num_units))
    return z + rng.normal(size=num_units)


def normal_units(x, scale=1.0):
    return kaem.unit_log_likelihood(lambda z: dist.Normal(z, scale), x)


@pytest.fixture(scope="module")
def fit():
    return kaem.fit_marginal(
        normal_units(two_groups(800)), BASIS, REFERENCE, atoms=(0.0, 8.0)
    )


# --- the marginal likelihood ---------------------------------------------------------


@pytest.mark.numerics
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_marginal_likelihood_is_scipys(scale):
    """Of narrow units at an atom too, where nothing may be interpolated."""
    coefficients = np.random.default_rng(0).normal(size=12)
    energy = kaem.Energy(BASIS, jnp.asarray(coefficients))
    atoms, weights = np.array([0.0, 2.0]), np.array([0.5, 0.1])
    slab = kaem.KAEMPrior(energy, REFERENCE)
    prior = kaem.PriorWithAtoms(atoms, weights, slab)
    x = np.array([0.013, -4.0, 2.02, 6.5])
    found = kaem.unit_log_marginal_likelihood(prior, normal_units(x, scale))
    with jax.enable_x64(True):
        wide = kaem.Energy(BASIS, jnp.asarray(np.asarray(energy.coefficients, float)))

        def density(z):
            return np.exp(float(wide(z))) * stats.norm.pdf(z, 0.0, 3.0)

        knots = np.linspace(-9.0, 9.0, 10)
        exact = {"epsabs": 0, "epsrel": 1e-11, "limit": 200}
        ends = [-60.0, *knots, 60.0]
        total = sum(
            integrate.quad(density, a, b, **exact)[0]
            for a, b in itertools.pairwise(ends)
        )

        def marginal(x):
            points = np.unique([*knots, *(x + scale * np.array([-10, -4, 0, 4, 10]))])
            points = points[np.abs(points - x) <= 10 * scale]
            return sum(
                integrate.quad(
                    lambda z: density(z) * stats.norm.pdf(x, z, scale), a, b, **exact
                )[0]
                for a, b in itertools.pairwise(points)
            )

        expected = [
            np.log(
                weights @ stats.norm.pdf(value, atoms, scale)
                + 0.4 * marginal(value) / total
            )
            for value in x
        ]
    assert_close(found, np.array(expected), rtol=(1e-5, 1e-9), atol=(1e-5, 1e-9))


def test_maximum_has_no_gradient_and_its_curvature(fit):
    """Weights are the mean posterior probabilities, with a unit more for each part."""
    posterior = kaem.unit_posterior(fit.prior, fit.log_likelihood)
    expected = (np.sum(posterior.atom_probabilities, axis=0) + 1) / (800 + 3)
    np.testing.assert_allclose(fit.atom_weights, expected, rtol=1e-4)
    assert abs(fit.atom_weights[0] - 0.6) < 2 * fit.atom_standard_errors[0]
    assert fit.atom_weights[1] < 0.02
    # Standard errors from the Hessian by differentiation of the value itself.
    with jax.enable_x64(True):
        wide = jax.tree.map(
            lambda leaf: jnp.asarray(np.asarray(leaf, float)),
            (fit._problem, fit._ridge, fit._maximum.parameters),
        )
        problem, ridge, parameters = wide
        hessian = jax.hessian(lambda p: _value(problem, ridge, p))(parameters)
        covariance = np.linalg.inv(-803 * np.asarray(hessian))

        def weights(parameters):
            return fit._model.prior(parameters).weights

        slopes = np.asarray(jax.jacobian(weights)(fit._maximum.parameters), float)
    errors = np.sqrt(np.diag(slopes @ covariance @ slopes.T))
    np.testing.assert_allclose(fit.atom_standard_errors, errors, rtol=1e-2)


def test_lies_below_the_nonparametric_maximum_and_above_no_atom(fit):
    x = two_groups(800)
    grid = np.linspace(x.min(), x.max(), 600)
    likelihood = stats.norm.pdf(x[:, None], np.append(grid, [0.0, 8.0]))
    mass = np.full(602, 1 / 602)
    for _ in range(2000):
        mass *= np.mean(likelihood / (likelihood @ mass)[:, None], axis=0)
    # By duality EM is within this of the maximum.
    gap = 800 * (np.max(np.mean(likelihood / (likelihood @ mass)[:, None], 0)) - 1)
    maximum = np.sum(np.log(likelihood @ mass)) + gap
    assert fit.log_marginal_likelihood < maximum
    plain = kaem.fit_marginal(
        normal_units(x), BASIS, REFERENCE, penalty=100 * fit.penalty
    )
    assert fit.log_marginal_likelihood > plain.log_marginal_likelihood + 3.84 / 2
    assert fit.log_evidence > plain.log_evidence


def test_bands_and_the_bootstrap(fit):
    band = fit.atom_weight_band(0.95)
    assert np.all((band.lower < fit.atom_weights) & (fit.atom_weights < band.upper))
    half = 0.5 * (band.upper - band.lower)[0]
    assert abs(half / fit.atom_standard_errors[0] / 1.96 - 1) < 0.05
    bootstrap = fit.bootstrap(jax.random.key(0), 60)
    spread = np.std(bootstrap.prior.weights[:, 0])
    assert 0.6 < spread / fit.atom_standard_errors[0] < 1.6
    z = np.array([-1.0, 0.0, 8.0])
    for band in (fit.density_band(z), fit.density_band(z, bootstrap=bootstrap)):
        expected = np.exp(fit.prior.log_prob_beside(z))
        np.testing.assert_allclose(band.value, expected, rtol=1e-5)
    np.testing.assert_allclose(fit.cdf_band(z).value, fit.prior.cdf(z), rtol=1e-4)
    means = fit.unit_mean_band().value
    posterior = kaem.unit_posterior(fit.prior, fit.log_likelihood)
    np.testing.assert_allclose(means, posterior.mean, atol=1e-4)


@pytest.mark.long
def test_counts_bounded_at_zero():
    """Zero-inflated counts: the atom lies at the end of the support."""
    rng = np.random.default_rng(2)
    rate = np.where(rng.random(600) < 0.4, 0.0, rng.gamma(9.0, 0.5, 600))
    kinds, counts = np.unique(rng.poisson(rate), return_counts=True)
    units = kaem.unit_log_likelihood(dist.Poisson, kinds)
    fit = kaem.fit_marginal(
        units, None, dist.Gamma(4.0, 1.0), counts=counts, atoms=(0.0,)
    )
    assert abs(fit.atom_weights[0] - 0.4) < 2.5 * fit.atom_standard_errors[0] < 0.15
    rates = kaem.unit_posterior(fit.prior, units).local_false_discovery_rate()
    assert rates[0] > 0.9
    assert np.all(rates[1:] == 0)


@pytest.mark.parametrize(
    ("match", "atoms", "reference", "low"),
    [
        ("atoms must lie in the support", (-1.0,), dist.Gamma(2.0, 1.0), 0.0),
        ("atoms must lie in the support", (20.0,), None, -9.0),
        ("atoms must differ", (0.0, 0.0), REFERENCE, -9.0),
        ("atoms must be finite", (np.nan,), REFERENCE, -9.0),
        ("atoms must have shape", 0.0, REFERENCE, -9.0),
        ("reference must be .*continuous", (0.0,), dist.Poisson(1.0), 0.0),
        ("atoms must have a log likelihood .* at the atom -2", (-2.0,), REFERENCE, 0.0),
    ],
)
def test_bad_atoms(match, atoms, reference, low):
    def units(z):
        values = dist.Normal(z, 1.0).log_prob(jnp.array([[1.0], [2.0]]))
        return jnp.where(z == -2.0, jnp.nan, values)

    basis = kaem.BSpline(low, 9.0, 8)
    with pytest.raises((TypeError, ValueError), match=match):
        kaem.fit_marginal(units, basis, reference, atoms=atoms)


# --- posteriors ----------------------------------------------------------------------

X, SCALE, SHARE, WIDTH = np.array([0.3, -2.5, 4.0]), np.array([1.0, 0.5, 2.0]), 0.7, 2.0


@pytest.fixture(scope="module")
def posterior():
    slab = kaem.KAEMPrior(kaem.Energy(BASIS, jnp.zeros(12)), dist.Normal(0.0, WIDTH))
    prior = kaem.PriorWithAtoms([0.0], [SHARE], slab)
    return kaem.unit_posterior(prior, normal_units(X, SCALE))


@pytest.mark.numerics
def test_posterior_is_that_of_two_groups(posterior):
    null = SHARE * stats.norm.pdf(X, 0.0, SCALE)
    other = (1 - SHARE) * stats.norm.pdf(X, 0.0, np.hypot(SCALE, WIDTH))
    atom = null / (null + other)
    shrinkage = WIDTH**2 / (WIDTH**2 + SCALE**2)
    slab = stats.norm(shrinkage * X, SCALE * np.sqrt(shrinkage))
    tolerance = {"rtol": (1e-4, 1e-8), "atol": (1e-5, 1e-9)}
    assert_close(posterior.log_marginal_likelihood, np.log(null + other), **tolerance)
    assert_close(posterior.local_false_discovery_rate(), atom, **tolerance)
    mean = (1 - atom) * slab.mean()
    assert_close(posterior.mean, mean, **tolerance)
    second = (1 - atom) * (slab.var() + slab.mean() ** 2)
    assert_close(posterior.variance, second - mean**2, **tolerance)
    assert_close(posterior.expectation(jnp.square), second, **tolerance)
    for z in (-1.0, 0.0, 0.5):
        expected = (1 - atom) * slab.cdf(z) + atom * (z >= 0)
        assert_close(posterior.cdf(z), expected, **tolerance)
        assert_close(posterior.sf(z), 1 - expected, **tolerance)
    wrong = atom + (1 - atom) * np.minimum(slab.cdf(0.0), slab.sf(0.0))
    assert_close(posterior.local_false_sign_rate(), wrong, **tolerance)
    order = np.argsort(wrong)
    expected = np.empty(3)
    expected[order] = np.cumsum(wrong[order]) / np.arange(1, 4)
    assert_close(posterior.s_values(), expected, **tolerance)
    for q in (0.05, 0.5, 0.95):
        quantiles = posterior.quantile(q)
        for i in range(3):
            one = stats.norm(slab.mean()[i], slab.std()[i])
            below, up_to = (
                (1 - atom[i]) * one.cdf(0) + atom[i] * jump for jump in (0, 1)
            )
            expected = 0.0
            if not below <= q <= up_to:
                rest = q - (atom[i] if q > up_to else 0)
                expected = one.ppf(rest / (1 - atom[i]))
            assert_close(quantiles[i], expected, rtol=(1e-3, 1e-7), atol=1e-5)


def test_is_saved_and_converted(posterior, tmp_path):
    kaem.save(tmp_path / "posterior", posterior)
    loaded = kaem.load(tmp_path / "posterior")
    assert np.array_equal(loaded.quantile(0.4), posterior.quantile(0.4))
    data = kaem.to_arviz(posterior, num_samples=2000)
    shares = np.mean(np.asarray(data["posterior"]["z"]) == 0, axis=(0, 1))
    probability = data["constant_data"]["atom_probability"]
    assert probability.dims == ("unit", "atom")
    np.testing.assert_allclose(shares, np.asarray(probability)[:, 0], atol=0.05)


def test_ranks_and_draws(posterior):
    draws = np.asarray(posterior.sample(jax.random.key(0), (40_000,)))
    shares = np.mean(draws == 0, axis=0)
    np.testing.assert_allclose(
        shares, posterior.local_false_discovery_rate(), atol=0.01
    )
    above = draws[:, None, :] - draws[:, :, None]
    ranks = 0.5 + np.sum((above > 0) + 0.5 * (above == 0), axis=2)
    error = ranks.std(0) / np.sqrt(len(draws))
    np.testing.assert_array_less(
        abs(ranks.mean(0) - posterior.expected_ranks()), 4 * error
    )
    # In blocks, the same.
    slab = posterior.prior
    blocks = [
        kaem.unit_posterior(slab, normal_units(X[part], SCALE[part]))
        for part in (slice(0, 1), slice(1, 3))
    ]
    assert_close(
        blocks[0].expected_ranks(blocks[1]), posterior.expected_ranks()[:1], rtol=1e-4
    )
    top = posterior.top_probabilities(jax.random.key(1), 2, 4000)
    assert abs(top.sum() - 2) < 1e-5
    ties = np.random.default_rng(0).random(draws.shape)
    order = np.lexsort((ties, -draws), axis=1)
    expected = [np.mean(np.any(order[:, :2] == i, axis=1)) for i in range(3)]
    np.testing.assert_allclose(top, expected, atol=0.035)
    with pytest.raises(ValueError, match="num_top must be at most"):
        posterior.top_probabilities(jax.random.key(1), 4)
    with pytest.raises(ValueError, match="null must be an atom"):
        posterior.local_false_discovery_rate(1.0)
