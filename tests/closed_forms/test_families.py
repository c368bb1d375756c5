"""Every family: SciPy's density is NumPyro's, and fits find the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_kaem.closed_forms.families import FAMILIES, Component, Extent, fit_family
from tests.helpers import assert_close

pytestmark = pytest.mark.float64


def extent_of(family):
    high = 5.0 if family.support is None else np.inf
    low = -np.inf if family.covers(Extent(0.0, 1.0, -np.inf, np.inf)) else 0.0
    return Extent(2.0, 1.5, low, high)


def values_of(family):
    """Parameters that are not where fits start."""
    if family.num_components == 1:
        free = [parameter.start + 0.3 for parameter in family.parameters]
    else:
        count = family.num_components
        free = [*np.full(count - 1, 0.4), *np.arange(-1.0, 2.5, 1.5)[:count]]
        free += [-1.0, -0.7, -1.2][:count]
    return family.values(np.array(free), extent_of(family))


def test_fitted_densities_are_those_of_the_distributions():
    z = np.array([0.4, 1.7, 4.1])
    values = [
        {name: jnp.asarray(value) for name, value in values_of(family).items()}
        for family in FAMILIES
    ]

    @jax.jit
    def log_probs(values):
        return [
            family.build(extent_of(family), **own).log_prob(z)
            for family, own in zip(FAMILIES, values, strict=True)
        ]

    for family, log_prob in zip(FAMILIES, log_probs(values), strict=True):
        log_density = family.log_density(z, extent_of(family), **values_of(family))
        assert_close(log_prob, log_density, rtol=(1e-4, 1e-10), err_msg=family.name)


@pytest.mark.parametrize("family", FAMILIES[1:], ids=lambda family: family.name)
def test_fit_finds_the_parameters(family):
    extent, values = extent_of(family), values_of(family)
    # Nodes that reach far, more and more widely spaced.
    places = {
        "real": lambda x: (extent.location + np.sinh(x), np.cosh(x)),
        "positive": lambda x: (np.exp(x), np.exp(x)),
        "interval": lambda x: (2.5 + 2.5 * np.tanh(x), 2.5 / np.cosh(x) ** 2),
    }
    kind = "interval" if np.isfinite(extent.high) else "positive"
    x = np.linspace(-9.0, 9.0, 4001)
    z, slope = places["real" if extent.low < 0 else kind](x)
    with np.errstate(over="ignore"):
        log_density = family.log_density(z, extent, **values)
    log_masses = log_density + np.log(slope * (x[1] - x[0]))
    component = Component(z, log_masses, log_density, z, z, (0.0, 1.0), None, extent)
    fit = fit_family(component.used(), family)
    assert fit.divergence < 1e-4
    for name, value in values.items():
        np.testing.assert_allclose(fit.values[name], value, rtol=0.01, atol=0.01)


def test_rounding_keeps_digits_of_the_scale_and_proportions_that_sum_to_one():
    family = next(family for family in FAMILIES if family.name == "Normal")
    values = {"loc": np.asarray(1234.5678), "scale": np.asarray(0.012345)}
    rounded = family.rounded(values, 3, Extent(1234.0, 0.01, -np.inf, np.inf))
    assert rounded == {"loc": 1234.5678, "scale": 0.0123}
    values = {"probs": np.full(3, 1 / 3), "loc": np.arange(3.0), "scale": np.ones(3)}
    rounded = FAMILIES[-1].rounded(values, 2, Extent(0.0, 1.0, -np.inf, np.inf))
    assert rounded["probs"].tolist() == [0.33, 0.33, 0.34]
