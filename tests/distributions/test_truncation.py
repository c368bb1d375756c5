"""Truncated densities and divergences, against integrals of the densities by SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.distributions import biject_to, constraints, kl_divergence
from numpyro.distributions.batch_util import vmap_over
from numpyro.infer import MCMC, NUTS
from numpyro.infer.util import log_density
from scipy import interpolate, stats

import numpyro_kaem as kaem
from numpyro_kaem.distributions.prior import StaticInterval
from tests.helpers import assert_close, assert_within_mcse, with_long

GRID = (-0.75, 2.5)
GRIDS = ((-3.0, 0.25), (-0.75, 2.5))
COEFFICIENTS = 2 * np.random.default_rng(5).normal(size=(3, 6)).astype(np.float32)
WEIGHTS = np.array([0.5, -0.5, 0.0])
GAUSS = np.polynomial.legendre.leggauss(30)


def energy(rows=0, grid=GRID):
    return kaem.Energy(kaem.BSpline(*grid, 6), jnp.asarray(COEFFICIENTS[rows], float))


def mixture(reference, grid=GRID, count=3):
    prior = kaem.KAEMPrior(energy(slice(count), grid), reference)
    return kaem.KAEMMixture(jnp.asarray(WEIGHTS[:count]), prior)


NORMAL = stats.norm(1.25, 0.75)
# Prior; the reference by SciPy; grids of the components; and intervals: inside, from a
# knot, narrow, across the grid, in a tail, and where float32 has no such mass.
CASES = {
    "default": (
        lambda: kaem.KAEMPrior(energy()),
        stats.uniform(-0.75, 3.25),
        [GRID],
        [(0.3125, 1.75), (1 / 3, 2.5), (0.3125, 0.31640625)],
    ),
    "normal": (
        lambda: kaem.KAEMPrior(energy(), dist.Normal(1.25, 0.75)),
        NORMAL,
        [GRID],
        [(0.3125, 1.75), (0.3125, 0.31640625), (-4, 5), (8, 9), (12, 13)],
    ),
    "singular": (
        lambda: kaem.KAEMPrior(energy(), dist.Gamma(0.5, 0.75)),
        stats.gamma(0.5, scale=1 / 0.75),
        [GRID],
        [(0.3125, 1.75), (0.0, 1.125), (8.0, 9.0)],
    ),
    "student": (
        lambda: kaem.KAEMPrior(energy(), dist.StudentT(3.5, 1.0, 0.75)),
        stats.t(3.5, 1.0, 0.75),
        [GRID],
        [(0.3125, 1.75), (-100.0, 2.0), (50.0, 70.0)],
    ),
    "mixture": (
        lambda: mixture(dist.Normal(1.25, 0.75)),
        NORMAL,
        [GRID] * 3,
        [(0.3125, 1.75), (-4.0, 5.0), (8.0, 9.0)],
    ),
    # The first component has nothing left in the last interval.
    "mixture-of-grids": (
        lambda: mixture(None, tuple(map(list, zip(*GRIDS, strict=True))), 2),
        None,
        GRIDS,
        [(0.125, 1.75), (-1.0, 2.0), (0.375, 2.0)],
    ),
}


def energies(row, grid, z):
    """Energies of a component by SciPy, in float64."""
    spline = interpolate.BSpline(
        np.arange(-3, 7) / 3, COEFFICIENTS[row].astype(float), 3
    )
    return spline(np.clip((z - grid[0]) / (grid[1] - grid[0]), 0, 1))


def rule(low, high):
    """Nodes and weights on panels that shrink to both ends, and end at all knots."""
    # To the end of a support at 0 as well.
    powers = 2.0 ** -np.arange(0.0, 90.0)
    halves = (high - low) * powers
    knots = [np.linspace(*grid, 4) for grid in GRIDS]
    steps = np.linspace(low, high, 41)
    edges = np.concatenate([low + halves, high - halves, powers, steps, *knots])
    edges = np.unique(np.clip(edges, low, high))
    x, weights = GAUSS
    width = np.diff(edges)[:, None]
    return (edges[:-1, None] + width * (x + 1) / 2).ravel(), (
        width * weights / 2
    ).ravel()


def log_densities(name, z):
    """Log densities of the components without their weights and normalisers."""
    _, distribution, grids, _ = CASES[name]
    rows = []
    for row, grid in enumerate(grids):
        reference = distribution or stats.uniform(grid[0], grid[1] - grid[0])
        rows.append(energies(row, grid, z) + reference.logpdf(z))
    return np.stack(rows)


def density(name, z):
    """Density times e^200: float64 has the masses of float32's far tails."""
    _, distribution, grids, _ = CASES[name]
    wide, weights = rule(-150.0, 150.0)
    wide, weights = (np.where(weights > 0, a, 0) for a in (wide, weights))
    normalizers = np.exp(log_densities(name, wide)) @ weights
    if distribution is not None and name != "mixture":
        # Outside of the rule energies are those of the ends.
        ends = np.exp(energies(0, grids[0], np.array(grids[0])))
        normalizers = normalizers + ends @ [
            distribution.cdf(-150.0),
            distribution.sf(150.0),
        ]
    mixing = np.exp(WEIGHTS[: len(grids)])
    mixing = mixing / mixing.sum()
    return (mixing / normalizers) @ np.exp(log_densities(name, z) + 200)


@pytest.mark.float64
@pytest.mark.parametrize("name", with_long(CASES, "normal", "mixture-of-grids"))
def test_masses_density_and_moments(name):
    """Differences of two masses would have no digits, if narrow or in a tail."""
    make, _, _, rows = CASES[name]
    low, high = np.array(rows, np.float32).astype(float).T
    distribution = kaem.truncated(
        make(), jnp.asarray(low), jnp.asarray(high), validate_args=False
    )
    assert distribution.batch_shape == low.shape
    q = np.array([0.0, 1e-4, 0.3, 0.5, 0.8, 1.0])
    z = distribution.icdf(jnp.asarray(q)[:, None])
    log_prob, (below, above) = distribution.log_prob(z), distribution.cdf_pair(z)
    x64 = z.dtype == jnp.float64
    assert np.all(np.asarray(z[0]) == low)
    assert np.all(np.asarray(z[-1]) == high)
    assert_close(below + above, np.ones(z.shape), atol=(2e-7, 1e-15))
    for i, (start, stop) in enumerate(zip(low, high, strict=True)):
        nodes, weights = rule(start, stop)
        masses = density(name, nodes) * weights
        total = masses.sum()
        # The logs of the normaliser and of the reference are as large as the log mass.
        atol = (2e-5, 1e-10)
        assert_close(
            distribution.log_mass[i], np.log(total) - 200, rtol=(1e-6, 1e-12), atol=atol
        )
        points = np.asarray(z[1:-1, i], float)
        expected = np.log(density(name, points) / total)
        assert_close(log_prob[1:-1, i], expected, rtol=(1e-5, 1e-10), atol=(1e-4, 1e-9))
        spacing = 4 * np.exp(expected) * np.spacing(np.abs(np.asarray(z[1:-1, i])))
        allowed = np.maximum(1e-11 if x64 else 3e-6, spacing)
        for k, point in enumerate(points):
            inner, weights_below = rule(start, point)
            part = density(name, inner) @ weights_below / total
            assert abs(float(below[k + 1, i]) - part) < allowed[k]
            assert abs(float(below[k + 1, i]) - q[k + 1]) < allowed[k]
        mean = masses @ (nodes - start) / total
        spread = np.sqrt(masses @ (nodes - start - mean) ** 2 / total)
        # As a sum of positions, which are rounded where they are.
        rounding = 32 * np.spacing(np.abs(np.asarray(z[-1, i])))
        tolerance = (1e-10 if x64 else 1e-5) * (stop - start) + rounding
        assert abs(float(distribution.mean[i]) - start - mean) < tolerance
        assert_close(
            jnp.sqrt(distribution.variance[i]), spread, rtol=(1e-3, 1e-9), atol=0
        )
    draws = distribution.sample(jax.random.key(0), (500,))
    assert np.all((draws > low) & (draws < high))
    outside = jnp.stack([jnp.asarray(low) - 1, jnp.asarray(high) + 1])
    assert np.all(np.asarray(distribution.log_prob(outside)) == -np.inf)
    expected = np.repeat([[0.0], [1.0]], len(low), axis=1)
    assert_close(distribution.cdf(outside), expected, rtol=0, atol=(2e-7, 1e-15))


def cut(coefficients, loc, low, high):
    basis = kaem.BSpline(*GRID, 6)
    prior = kaem.KAEMPrior(kaem.Energy(basis, coefficients), dist.Normal(loc, 0.75))
    return kaem.truncated(prior, low, high)


@jax.jit
def draws_and_densities(coefficients, loc, low, high):
    distribution = cut(coefficients, loc, low, high)
    z = jnp.stack([0.75 * low + 0.25 * high, 0.25 * low + 0.75 * high])
    draws = distribution.sample(jax.random.key(0), (20,))
    return jnp.concatenate(
        [draws, distribution.log_prob(z), distribution.cdf(z), distribution.mean[None]]
    )


@pytest.mark.float64
@pytest.mark.long
def test_gradients_by_differences():
    """With bounds inside, at a knot, and in a tail, all traced.

    At a panel's own edge, a clipped edge would take half of the bound's derivative.
    """
    low = jnp.asarray([0.3125, -0.75, 3.25])
    high = jnp.asarray([1.75, 1.0, 4.0])
    point = (jnp.asarray(COEFFICIENTS[0], float), jnp.asarray(1.25), low, high)
    rng = np.random.default_rng(1)
    x64 = low.dtype == jnp.float64
    step = 1e-5 if x64 else 4e-3
    push = jax.jit(lambda tangent: jax.jvp(draws_and_densities, point, tangent)[1])
    for chosen in range(4):
        tangent = [jnp.zeros_like(p) for p in point]
        tangent[chosen] = jnp.asarray(rng.normal(size=np.shape(point[chosen])))
        if chosen >= 2:
            tangent[chosen] = jnp.ones(3)
        up, down = (
            draws_and_densities(
                *(p + sign * step * t for p, t in zip(point, tangent, strict=True))
            )
            for sign in (1, -1)
        )
        actual = push(tuple(tangent))
        assert_close(
            actual, (up - down) / (2 * step), rtol=(0.02, 1e-5), atol=(0.02, 1e-7)
        )
    # The distribution made outside of the compiled function is the same.
    assert_close(
        cut(*point).sample(jax.random.key(0), (20,)),
        draws_and_densities(*point)[:20],
        rtol=(1e-4, 1e-10),
        atol=(1e-5, 1e-11),
    )


def test_bounds_and_supports():
    prior = CASES["normal"][0]()
    assert kaem.truncated(prior, 0.5, 1.5).support == StaticInterval(0.5, 1.5)
    below = kaem.truncated(prior, high=0.5)
    assert below.support == StaticInterval(-np.inf, 0.5)
    z = biject_to(below.support)(jnp.asarray([-2.0, 0.0, 3.0]))
    assert np.all(z < 0.5)
    assert_close(biject_to(below.support).inv(z), np.array([-2.0, 0.0, 3.0]), atol=1e-5)
    assert below.support(below.support.feasible_like(z)).all()
    # A bound that cuts nothing off leaves the density as it is.
    wide = kaem.truncated(CASES["default"][0](), low=-5.0)
    assert wide.support == StaticInterval(*GRID)
    assert float(wide.log_mass) == 0
    twice = kaem.truncated(below, 0.0, 3.0)
    assert twice.support == StaticInterval(0.0, 0.5)
    assert twice.prior is prior
    assert kaem.truncated(twice, -1.0, 1.0).support == twice.support

    @jax.jit
    def traced(low):
        distribution = kaem.truncated(prior, low)
        assert isinstance(distribution.support, constraints.greater_than_eq)
        return biject_to(distribution.support)(0.0)

    assert float(traced(0.25)) == 1.25


@pytest.mark.long
def test_in_models_batches_and_vmap():
    """With the posterior's mean by NUTS."""
    distribution = kaem.truncated(CASES["normal"][0](), 0.5)

    def model(x):
        with numpyro.plate("units", 3):
            z = numpyro.sample("z", distribution)
            numpyro.sample("x", dist.Normal(z, 0.5), obs=x)

    x = jnp.asarray([0.6, 1.0, 2.0])
    trace = handlers.trace(handlers.seed(model, jax.random.key(0))).get_trace(x)
    z = trace["z"]["value"]
    assert z.shape == (3,)
    joint, _ = log_density(model, (x,), {}, {"z": z})
    expected = distribution.log_prob(z).sum() + dist.Normal(z, 0.5).log_prob(x).sum()
    assert_close(joint, expected, rtol=(1e-4, 1e-10))
    event = distribution.expand((3,)).to_event(1)
    assert_close(event.log_prob(z), distribution.log_prob(z).sum(), rtol=(1e-4, 1e-10))
    low = jnp.asarray([0.25, 0.5, 0.75])
    batch = kaem.truncated(distribution.prior, low)
    mapped = jax.vmap(lambda d, z: d.log_prob(z), in_axes=(vmap_over(batch, low=0), 0))
    assert_close(mapped(batch, z), batch.log_prob(z), rtol=(1e-4, 1e-10), atol=1e-6)
    with pytest.warns(UserWarning, match="Out-of-support values"):
        kaem.truncated(distribution.prior, 0.5, validate_args=True).log_prob(0.25)
    assert distribution.has_rsample
    assert not kaem.truncated(CASES["mixture"][0](), 0.5).has_rsample
    distribution = kaem.truncated(distribution.prior, 0.5, 2.0)

    def one(x):
        z = numpyro.sample("z", distribution)
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)

    mcmc = MCMC(NUTS(one), num_warmup=300, num_samples=2000, progress_bar=False)
    mcmc.run(jax.random.key(0), 1.75)
    # The posterior's mean, by quadrature on the interval.
    nodes = 1.25 + 0.75 * GAUSS[0]
    density = GAUSS[1] * np.exp(distribution.prior.log_prob(nodes))
    density *= stats.norm(nodes, 0.5).pdf(1.75)
    mean = np.sum(density * nodes) / np.sum(density)
    assert_within_mcse(mcmc.get_samples()["z"], mean)


def test_errors():
    prior = kaem.KAEMPrior(energy())
    normal = kaem.KAEMPrior(energy(), dist.Normal(1.25, 0.75))
    other = "got Normal; truncate a prior before expand"
    none_left = "must leave a part of the support of prior"
    shapes = "must have shapes that broadcast"
    for distribution, bounds, error, match in (
        (prior, (1.0, 0.5), ValueError, "low must be below high, got 1.0 and 0.5"),
        (prior, (np.zeros(2), 0.0), ValueError, "low must be below high"),
        (prior, (2.5, None), ValueError, none_left),
        (prior, (None, -3.0), ValueError, none_left),
        (prior, (), ValueError, "low or high must be given"),
        (prior, (np.nan, 1.0), ValueError, "low must not be NaN"),
        (prior, (True, 2.0), TypeError, "low must be real numbers, got dtype bool"),
        (prior, (np.zeros(2), np.ones(3)), ValueError, shapes),
        (normal, (2000.0, 2001.0), ValueError, "must leave some mass"),
        (dist.Normal(0.0, 1.0), (0.0,), TypeError, other),
    ):
        with pytest.raises(error, match=match):
            kaem.truncated(distribution, *bounds)
    # An interval that is not resolved is warned of.
    basis = kaem.BSpline(-1.0, 1.0, 9)
    coefficients = jnp.asarray([60.0, 0, 0, 0, -8e3, 9e3, -9e3, 9e3, -9e3])
    with pytest.warns(UserWarning, match="estimated relative error"):
        prior = kaem.KAEMPrior(kaem.Energy(basis, coefficients), refinement=1)
    with pytest.warns(UserWarning, match="estimated relative error"):
        kaem.truncated(prior, 0.25, 0.75)


# --- divergences ---------------------------------------------------------------------


def by_rule(p, q, low, high):
    """Divergence by SciPy's splines and NumPy's Gauss rule."""
    nodes, weights = rule(low, high)
    p, q = p(nodes), q(nodes)
    return weights @ np.where(p > 0, p * np.log(np.where(p > 0, p / q, 1)), 0)


def of(name):
    return lambda z: density(name, z) * np.exp(-200)


@pytest.mark.float64
def test_divergence_from_distributions_that_break_within_a_panel():
    """Between truncated and whole densities with other panels, and with a kink."""
    prior = CASES["normal"][0]()
    low, high = 0.3125, 1.75
    nodes, weights = rule(low, high)
    share = density("normal", nodes) @ weights * np.exp(-200)
    cut = kaem.truncated(prior, low, high)
    # All that the truncation changes is the constant.
    assert_close(kl_divergence(cut, prior), -np.log(share), rtol=(1e-5, 1e-11))
    assert float(kl_divergence(prior, prior)) == 0
    below, above = kaem.truncated(prior, high=high), kaem.truncated(prior, low=low)
    for p, q in ((prior, cut), (prior, below), (prior, above), (above, below)):
        assert float(kl_divergence(p, q)) == np.inf
    flat = kaem.Energy(kaem.BSpline(-3.0, 3.0, 6), np.zeros(6))
    prior = kaem.KAEMPrior(flat, dist.Normal(0.0, 1.0))
    place, scale = 0.37, 0.02
    # The mean distance from the kink is that of a folded Normal distribution.
    distance = 2 * stats.norm.pdf(place) + place * (1 - 2 * stats.norm.cdf(-place))
    expected = distance / scale + np.log(2 * scale) - stats.norm.entropy()
    found = kl_divergence(prior, dist.Laplace(place, scale))
    assert_close(found, expected, rtol=(2e-5, 1e-9))


@pytest.mark.float64
@pytest.mark.long
def test_divergences_of_pairs_batches_and_events():
    """Each within the panels of the other, whose kinks lie elsewhere."""
    distributions = {
        name: CASES[name][0]() for name in ("normal", "student", "mixture", "default")
    }
    normal = dist.Normal(0.5, 2.0)
    low, high = 0.3125, 1.75
    nodes, weights = rule(low, high)
    share = density("normal", nodes) @ weights * np.exp(-200)
    cut = kaem.truncated(distributions["normal"], low, high)
    inside = lambda z: of("normal")(z) / share  # noqa: E731
    rows = [
        (
            distributions["normal"],
            distributions["student"],
            of("normal"),
            of("student"),
            -9.0,
            11.0,
        ),
        (
            distributions["normal"],
            distributions["mixture"],
            of("normal"),
            of("mixture"),
            -9.0,
            11.0,
        ),
        (
            distributions["mixture"],
            normal,
            of("mixture"),
            stats.norm(0.5, 2.0).pdf,
            -9.0,
            11.0,
        ),
        (
            distributions["default"],
            distributions["normal"],
            of("default"),
            of("normal"),
            *GRID,
        ),
        (cut, distributions["mixture"], inside, of("mixture"), low, high),
    ]
    for p, q, p_by, q_by, start, stop in rows:
        expected = by_rule(p_by, q_by, start, stop)
        assert_close(kl_divergence(p, q), expected, rtol=0, atol=(1e-5, 1e-11))
    assert (
        float(kl_divergence(distributions["normal"], distributions["default"]))
        == np.inf
    )
    prior = kaem.KAEMPrior(energy(slice(2)), dist.Normal(jnp.asarray([1.0, 1.5]), 0.75))
    other = dist.Normal(jnp.zeros((3, 1)), 2.0)
    both = kl_divergence(prior, other)
    assert both.shape == (3, 2)
    distribution = dist.Normal(0.0, 2.0)
    assert_close(kl_divergence(prior, distribution), both[0], rtol=(1e-5, 1e-11))
    assert_close(
        kl_divergence(prior, distribution.expand((2,))), both[0], rtol=(1e-5, 1e-11)
    )
    joint = kl_divergence(prior.to_event(1), distribution.expand((2,)).to_event(1))
    assert_close(joint, both[0].sum(), rtol=(1e-5, 1e-11))
    gradient = jax.grad(lambda p: jnp.sum(kl_divergence(p, distribution)))(prior)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    with pytest.raises(ValueError, match="p and q must be univariate"):
        kl_divergence(prior, distribution.expand((2,)).to_event(1))
