"""The part of a table that one point needs is that part of the whole table."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import numpyro_kaem as kaem
from numpyro_kaem._quadrature import nodes_per_panel
from numpyro_kaem.numerics.cells import cell_polynomials, tabulate, tabulate_at
from numpyro_kaem.numerics.inverse import icdf_of_tail
from tests.helpers import assert_close, with_long

pytestmark = pytest.mark.float64

# With tails on both sides, on one, and on none; with panels of its own, and at a
# singular end of the support.
REFERENCES = {
    "uniform": None,
    "normal": dist.Normal(0.1, 2.0),
    "student": dist.StudentT(3.0, 0.5, 1.0),
    "gamma": dist.Gamma(0.5, 1.0),
}
NUM_POINTS = 60


@pytest.mark.parametrize("name", with_long(REFERENCES, "uniform"))
def test_one_point_of_each_density(name):
    reference = REFERENCES[name]
    basis = kaem.BSpline(0.5, 2.0, 12)
    energy = kaem.Energy.init(jax.random.key(0), basis, (2, NUM_POINTS), scale=2.0)
    prior = kaem.KAEMPrior(energy, reference)
    # The far tails, and the panels between them.
    half = np.logspace(-6.5, np.log10(0.5), NUM_POINTS)
    mass = jnp.asarray(np.stack([half, half]), energy.dtype)
    upper = jnp.asarray([[False], [True]]) & jnp.ones(mass.shape, bool)

    def invert(make, energy, mass):
        unit, parameters = energy.on_unit_grid, prior._parameters
        table = make(unit, parameters, prior._panels)
        return icdf_of_tail(table, parameters, mass, upper)

    def whole(energy, mass):
        return invert(tabulate, energy, mass)

    def part(energy, mass):
        return invert(lambda *a: tabulate_at(*a, mass, upper), energy, mass)

    found, expected = jax.jit(part)(energy, mass), jax.jit(whole)(energy, mass)
    span = expected.max() - expected.min()
    assert_close(found / span, expected / span, atol=(2e-5, 1e-11))
    if reference is not None and name != "gamma":
        assert expected.min() < 0.5
        assert expected.max() > 2.0
    below, above = prior.cdf(found), prior.cdf(2 * expected - found)
    assert_close(jnp.where(upper, 1 - below, below), mass, rtol=1, atol=(1e-6, 1e-12))
    assert_close(below, above, atol=(1e-6, 1e-12))

    direction = jax.random.normal(jax.random.key(1), energy.coefficients.shape)

    def change(function):
        def along(step, mass):
            moved = kaem.Energy(basis, energy.coefficients + step * direction)
            return function(moved, mass)

        tangents = jnp.ones(()), 0.1 * mass
        return jax.jit(lambda: jax.jvp(along, (jnp.zeros(()), mass), tangents)[1])()

    found, expected = change(part), change(whole)
    scale = 1 + jnp.abs(expected)
    assert_close(found / scale, expected / scale, atol=(2e-3, 1e-8))


def test_one_draw_in_a_trace_is_the_draw_outside():
    energy = kaem.Energy.init(jax.random.key(0), kaem.RBF(-2.0, 2.0, 9), (300,))
    reference, key = dist.Normal(0.0, 1.0), jax.random.key(2)
    prior = kaem.KAEMPrior(energy, reference)
    shapes = (), (1, 1)

    @jax.jit
    def draw(energy):
        prior = kaem.KAEMPrior(energy, reference)
        return [prior.sample(key, shape) for shape in shapes]

    for shape, found in zip(shapes, draw(energy), strict=True):
        expected = prior.sample(key, shape)
        assert found.shape == expected.shape == (*shape, 300)
        assert_close(found, expected, atol=(1e-5, 1e-11))


@pytest.mark.parametrize(("floor", "is_even"), [(0.0, True), (1.0, False)])
def test_a_peak_narrower_than_the_panel_is_spread_over_it(floor, is_even):
    """Its series rings below zero; what varies less keeps its shape."""
    num_nodes = nodes_per_panel(jnp.zeros(()).dtype)
    masses = jnp.full((1, num_nodes), floor).at[0, 0].add(1.0)
    powers, cell_masses = cell_polynomials(masses)
    assert_close(cell_masses.sum(), masses.sum(), rtol=1e-5)
    assert np.all(cell_masses > 0)
    even = np.allclose(cell_masses, masses.sum() / 4, rtol=1e-5)
    linear = np.allclose(powers[1:], 0.0, atol=1e-5)
    assert (even, linear) == (is_even, is_even)
