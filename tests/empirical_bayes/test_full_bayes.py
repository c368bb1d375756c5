"""Energies with random coefficients: the sites, and NUTS against a brute-force grid."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.module import random_eqx_module
from numpyro.infer import MCMC, NUTS
from scipy import stats

import numpyro_kaem as kaem
from tests.helpers import assert_close, assert_within_mcse

SCALE = 1.3
NOISE = 0.7
X = np.array([-1.1, 0.4, 1.9, 2.2, 2.6, 2.7, 3.1, 3.4, 4.5])
# Two straight pieces, so that a grid over both steps is the whole posterior.
BASIS, KNOTS = kaem.BSpline(-1.0, 5.0, num_basis=3, degree=1), [-1.0, 2.0, 5.0]
REFERENCE = dist.Normal(2.0, 2.5)


def units():
    return kaem.unit_log_likelihood(lambda z: dist.Normal(z, NOISE), X)


# --- the sites ------------------------------------------------------------------------


def test_walk_is_that_of_numpyro():
    """The density of the steps is that of NumPyro's walk, up to the change of scale."""
    basis = kaem.BSpline(-1.0, 5.0, num_basis=7)
    trace = handlers.trace(handlers.seed(kaem.random_walk_energy, 0))
    energy, trace = trace("energy", basis, SCALE), trace.trace
    assert list(trace) == ["energy_steps", "energy_coefficients"]
    steps = trace["energy_steps"]
    coefficients = np.asarray(trace["energy_coefficients"]["value"])
    assert coefficients.shape == (7,)
    assert coefficients[0] == 0.0
    walk = dist.GaussianRandomWalk(SCALE, 6).log_prob(coefficients[1:])
    change = 6 * np.log(SCALE)
    assert_close(steps["fn"].log_prob(steps["value"]), walk + change, rtol=1e-4)
    np.testing.assert_array_equal(energy.coefficients, coefficients)
    assert energy.basis == basis
    # At scale zero the distribution is the reference.
    energy = handlers.seed(kaem.random_walk_energy, 0)("energy", BASIS, 0.0)
    log_prob = kaem.KAEMPrior(energy, REFERENCE).log_prob(X)
    assert_close(log_prob, stats.norm(2.0, 2.5).logpdf(X), rtol=1e-5)


def test_plate_has_a_walk_for_each_member():
    def model(scale):
        with numpyro.plate("groups", 3):
            energy = kaem.random_walk_energy("energy", BASIS, jnp.asarray(scale))
            numpyro.sample("z", kaem.KAEMPrior(energy, REFERENCE))

    for scale in (0.5, np.array([0.5, 1.0, 2.0])):
        trace = handlers.trace(handlers.seed(model, 0)).get_trace(scale)
        assert trace["energy_coefficients"]["value"].shape == (3, 3)
        assert trace["z"]["value"].shape == (3,)
        steps = np.diff(trace["energy_coefficients"]["value"])
        ratio = steps / trace["energy_steps"]["value"]
        expected = np.broadcast_to(np.reshape(scale, (-1, 1)), (3, 2))
        assert_close(ratio, expected, rtol=1e-4)


def test_bad_arguments_are_refused():
    for basis in (kaem.Fourier(0.0, 1.0, 3), None, "bspline"):
        with pytest.raises(TypeError, match=r"basis must be a numpyro_kaem.BSpline"):
            kaem.random_walk_energy("energy", basis, 1.0)
    for scale in (-0.1, np.nan, [1.0, np.inf]):
        with pytest.raises(ValueError, match=r"scale must be finite and >= 0, got"):
            kaem.random_walk_energy("energy", BASIS, scale)


# --- units integrated out inside compiled models --------------------------------------


def test_compiled_quadrature_resolves_narrow_units():
    """Panels follow concrete data though the coefficients are traced."""
    x, noise = np.array([0.3, 1.7, 4.2]), np.array([0.02, 0.1, 1.0])
    narrow = kaem.unit_log_likelihood(lambda z: dist.Normal(z, noise), x)
    coefficients = jnp.array([0.5, -1.0, 0.3])

    def total(coefficients):
        prior = kaem.KAEMPrior(kaem.Energy(BASIS, coefficients), REFERENCE)
        return kaem.unit_log_marginal_likelihood(prior, narrow).sum()

    value, slope = jax.jit(jax.value_and_grad(total))(coefficients)

    def integral(function, low, high):
        """By a Gauss rule between the knots and on forty parts."""
        nodes, weights = np.polynomial.legendre.leggauss(20)
        edges = np.union1d(np.linspace(low, high, 41), np.clip(KNOTS, low, high))
        halves = np.diff(edges)[:, None] / 2
        return np.sum(
            halves * weights * function(edges[:-1, None] + halves * (nodes + 1))
        )

    def expected(c):
        def density(z):
            return np.exp(np.interp(z, KNOTS, c)) * stats.norm.pdf(z, 2.0, 2.5)

        integrals = [
            integral(lambda z, x=x, s=s: density(z) * stats.norm.pdf(x, z, s), *ends)
            for x, s, *ends in zip(
                x, noise, x - 12 * noise, x + 12 * noise, strict=True
            )
        ]
        return np.sum(np.log(integrals)) - 3 * np.log(integral(density, -23.0, 27.0))

    c = np.asarray(coefficients, float)
    assert_close(value, expected(c), rtol=(1e-5, 1e-9))
    differences = [
        (expected(c + 1e-4 * e) - expected(c - 1e-4 * e)) / 2e-4 for e in np.eye(3)
    ]
    assert_close(slope, np.array(differences), rtol=1e-3, atol=(1e-5, 1e-6))


# --- NUTS -----------------------------------------------------------------------------


def marginal_model():
    """Coefficients alone; the units are integrated out."""
    energy = kaem.random_walk_energy("energy", BASIS, SCALE)
    prior = kaem.KAEMPrior(energy, REFERENCE)
    numpyro.factor("units", kaem.unit_log_marginal_likelihood(prior, units()).sum())


def joint_model():
    """Coefficients and every unit's latent value."""
    energy = kaem.random_walk_energy("energy", BASIS, SCALE)
    with numpyro.plate("units", len(X)):
        z = numpyro.sample("z", kaem.KAEMPrior(energy, REFERENCE))
        numpyro.sample("x", dist.Normal(z, NOISE), obs=X)


def module_model():
    """NumPyro's own walk, whose start is free though it changes nothing."""
    flat = kaem.Energy(BASIS, jnp.zeros(3))
    walk = dist.GaussianRandomWalk(SCALE, 3)
    priors = kaem.parameter_priors(flat, {"coefficients": walk})
    energy = random_eqx_module("energy", flat, priors)
    numpyro.deterministic("energy_coefficients", energy.coefficients)
    prior = kaem.KAEMPrior(energy, REFERENCE)
    numpyro.factor("units", kaem.unit_log_marginal_likelihood(prior, units()).sum())


@pytest.fixture(scope="module")
def exact_means():
    """Posterior means of the two differences of coefficients, by sums over grids."""
    steps = np.linspace(-4.5, 4.5, 91)
    z = np.linspace(-9.0, 13.0, 1101)
    likelihood = stats.norm.pdf(X[:, None], z, NOISE) * stats.norm.pdf(z, 2.0, 2.5)
    reference = stats.norm.pdf(z, 2.0, 2.5)
    first, second = np.meshgrid(SCALE * steps, SCALE * steps, indexing="ij")
    values = np.stack([0 * first, first, first + second], -1).reshape(-1, 3)
    hats = np.stack([np.interp(z, KNOTS, row) for row in np.eye(3)])
    tilts = np.exp(values @ hats)
    log_weight = np.sum(np.log(tilts @ likelihood.T), axis=1)
    log_weight -= len(X) * np.log(tilts @ reference)
    log_weight += np.sum(stats.norm.logpdf(np.diff(values) / SCALE), axis=1)
    weight = np.exp(log_weight - log_weight.max())
    return weight @ np.diff(values) / weight.sum()


@pytest.mark.long
@pytest.mark.parametrize("model", [marginal_model, joint_model, module_model])
def test_nuts_samples_the_posterior(model, exact_means):
    mcmc = MCMC(
        NUTS(model),
        num_warmup=300,
        num_samples=600,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(1), extra_fields=("diverging",))
    draws = mcmc.get_samples(group_by_chain=True)["energy_coefficients"]
    assert int(mcmc.get_extra_fields()["diverging"].sum()) == 0
    differences = np.diff(np.asarray(draws, float), axis=-1)
    assert_within_mcse(differences, exact_means, group_by_chain=True)
