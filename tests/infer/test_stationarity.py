"""The distributions that the Langevin kernels leave invariant."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC
from scipy import integrate, stats

import numpyro_kaem as kaem
from numpyro_kaem.infer import MALA, PCNL, ULA, AutoMALA
from tests.helpers import assert_within_mcse

pytestmark = pytest.mark.optimised

CORRECTED = [MALA, AutoMALA, PCNL]
DIM = 10


# --- targets: a model, and the true means and variances of its sites -----------------

_root = np.random.default_rng(0).normal(size=(DIM, DIM)) / np.sqrt(DIM) + np.eye(DIM)
COVARIANCE = _root @ _root.T * np.outer(*[np.geomspace(0.2, 5.0, DIM)] * 2)
LOCATION = np.linspace(-2.0, 3.0, DIM)


def gaussian():
    numpyro.sample("z", dist.MultivariateNormal(LOCATION, COVARIANCE))


def banana():
    x = numpyro.sample("x", dist.Normal(1.0, 1.0))
    numpyro.sample("y", dist.Normal(0.5 * x**2, 1.0))


def funnel():
    # In u, the uniform numbers behind both, on a Normal base: the funnel is exact.
    u = numpyro.sample("u", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    scale = numpyro.deterministic("log_scale", 1.5 * u[0])
    numpyro.deterministic("x", jnp.exp(0.5 * scale) * u[1:])
    numpyro.sample("seen", dist.Normal(scale, 1.0), obs=0.5)


ENERGY = np.array([0.0, 2.0, -1.0, 1.5, -2.0, 3.0, 0.0])


def learned():
    energy = kaem.Energy(kaem.RBF(-3.0, 3.0, 7), jnp.asarray(ENERGY))
    z = numpyro.sample("z", kaem.KAEMPrior(energy, dist.Normal(0.0, 1.5)))
    numpyro.sample("y", dist.Normal(z, 1.0), obs=0.7)


def bounded():
    share = numpyro.sample("share", dist.Uniform(-1.0, 3.0))
    numpyro.sample("y", dist.Normal(share, 1.0), obs=2.5)


def moments(log_density, low, high):
    """Mean and variance of a density on the line, by adaptive quadrature."""

    options = {"epsabs": 0, "epsrel": 1e-10, "limit": 500}
    total, first, second = (
        integrate.quad(
            lambda z, k=k: z**k * np.exp(log_density(z)), low, high, **options
        )[0]
        for k in range(3)
    )
    return first / total, second / total - (first / total) ** 2


def learned_moments():
    nodes = np.linspace(-3.0, 3.0, 7)
    basis = kaem.RBF(-3.0, 3.0, 7)
    width = float(np.asarray(basis.bandwidth))  # in units of the spacing, here 1

    def log_density(z):
        inside = np.clip(z, -3.0, 3.0)
        energy = ENERGY @ np.exp(-(((inside - nodes) / width) ** 2) / 2)
        return energy + stats.norm.logpdf(z, 0, 1.5) + stats.norm.logpdf(0.7, z, 1.0)

    return moments(log_density, -8.0, 8.0)


def bounded_moments():
    return moments(lambda z: stats.norm.logpdf(2.5, z), -1.0, 3.0)


# The funnel's log_scale is N(0, 1.5^2), seen as .5 with variance 1.
VARIANCE = 1 / (1 / 1.5**2 + 1)
TARGETS = {
    "gaussian": (gaussian, lambda: {"z": (LOCATION, np.diag(COVARIANCE))}),
    # The mean of x^2 is 2, its variance 4 + 2.
    "banana": (banana, lambda: {"x": (1.0, 1.0), "y": (1.0, 2.5)}),
    "bounded": (bounded, lambda: {"share": bounded_moments()}),
    "funnel": (funnel, lambda: {"log_scale": (0.5 * VARIANCE, VARIANCE)}),
    "learned": (learned, lambda: {"z": learned_moments()}),
}


def check(draws, mean, variance):
    """Means and variances of draws (chains, draws, ...) within 4 standard errors."""
    draws = np.asarray(draws, float)
    for values, truth in ((draws, mean), ((draws - mean) ** 2, variance)):
        assert np.all(effective_sample_size(values) > 100)
        assert_within_mcse(values, truth, group_by_chain=True)


def sample(kernel, num_samples=5000, num_warmup=1500, key=0, **options):
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=8,
        chain_method="vectorized",
        progress_bar=False,
        **options,
    )
    mcmc.run(jax.random.key(key))
    return mcmc.get_samples(group_by_chain=True)


@pytest.mark.long
@pytest.mark.parametrize("kernel", CORRECTED)
@pytest.mark.parametrize("name", TARGETS)
def test_stationarity(kernel, name):
    model, truth = TARGETS[name]
    num_samples = 10_000 if name in ("funnel", "learned") else 20_000
    thinning = {"banana": 10, "gaussian": 2, "bounded": 2}.get(name, 1)
    samples = sample(kernel(model), num_samples, thinning=thinning)
    for site, (mean, variance) in truth().items():
        check(samples[site], mean, variance)
    if name == "funnel":
        # x itself has too heavy tails for its variance to be estimated well.
        scale = np.exp(-0.5 * np.asarray(samples["log_scale"], float))[..., None]
        check(np.asarray(samples["x"], float) * scale, 0.0, 1.0)


@pytest.mark.long
@pytest.mark.parametrize("kernel", CORRECTED)
def test_simulation_based_calibration(kernel):
    """Ranks of prior draws among posterior draws are uniform (Talts et al. 2018)."""
    count, num_draws = 400, 19
    rng = np.random.default_rng(1)
    rate = rng.gamma(2.0, 1 / 1.5, size=count)
    seen = rng.poisson(rate[:, None], size=(count, 3))

    def model(seen):
        with numpyro.plate("data sets", count):
            rate = numpyro.sample("rate", dist.Gamma(2.0, 1.5))
            distribution = dist.Poisson(rate[:, None]).expand([count, 3]).to_event(1)
            numpyro.sample("seen", distribution, obs=seen)

    mcmc = MCMC(
        kernel(model),
        num_warmup=1000,
        num_samples=num_draws * 60,
        thinning=60,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), jnp.asarray(seen))
    ranks = np.sum(np.asarray(mcmc.get_samples()["rate"]) < rate, axis=0)
    counts = np.bincount(ranks, minlength=num_draws + 1).reshape(10, -1).sum(1)
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.long
def test_ula_has_the_biased_distribution_of_its_formula():
    sd = np.array([0.5, 1.0, 4.0])

    def model():
        numpyro.sample("z", dist.Normal(1.0, sd).to_event(1))

    step_size = 0.6
    kernel = ULA(model, step_size=step_size, adapt_scale=False)
    samples = sample(kernel, 20_000, 200)["z"]
    variance = sd**2 / (1 - (step_size / (2 * sd)) ** 2)
    check(samples, 1.0, variance)
    # The bias is seen: it is many standard errors for the first.
    assert np.asarray(samples)[..., 0].var() / sd[0] ** 2 > 1.3
