"""Every named law of the library: SciPy's density is NumPyro's, and fits find it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_kaem.closed_forms.distributions import LAWS, Component, Unit, fit_law
from tests.helpers import assert_close

pytestmark = pytest.mark.float64


def unit_of(law):
    high = 5.0 if law.support is None else np.inf
    low = -np.inf if law.covers(Unit(0.0, 1.0, -np.inf, np.inf)) else 0.0
    return Unit(2.0, 1.5, low, high)


def values_of(law):
    """Parameters that are not where fits start."""
    if law.num_components == 1:
        free = [parameter.start + 0.3 for parameter in law.parameters]
    else:
        count = law.num_components
        free = [*np.full(count - 1, 0.4), *np.arange(-1.0, 2.5, 1.5)[:count]]
        free += [-1.0, -0.7, -1.2][:count]
    return law.values(np.array(free), unit_of(law))


def test_fitted_densities_are_those_of_the_distributions():
    z = np.array([0.4, 1.7, 4.1])
    values = [
        {name: jnp.asarray(value) for name, value in values_of(law).items()}
        for law in LAWS
    ]

    @jax.jit
    def log_probs(values):
        return [
            law.build(unit_of(law), **own).log_prob(z)
            for law, own in zip(LAWS, values, strict=True)
        ]

    for law, log_prob in zip(LAWS, log_probs(values), strict=True):
        log_density = law.log_density(z, unit_of(law), **values_of(law))
        assert_close(log_prob, log_density, rtol=(1e-4, 1e-10), err_msg=law.name)


@pytest.mark.parametrize("law", LAWS[1:], ids=lambda law: law.name)
def test_fit_finds_the_parameters(law):
    unit, values = unit_of(law), values_of(law)
    # Nodes that reach far, more and more widely spaced.
    places = {
        "real": lambda x: (unit.location + np.sinh(x), np.cosh(x)),
        "positive": lambda x: (np.exp(x), np.exp(x)),
        "interval": lambda x: (2.5 + 2.5 * np.tanh(x), 2.5 / np.cosh(x) ** 2),
    }
    kind = "interval" if np.isfinite(unit.high) else "positive"
    x = np.linspace(-9.0, 9.0, 4001)
    z, slope = places["real" if unit.low < 0 else kind](x)
    with np.errstate(over="ignore"):
        log_density = law.log_density(z, unit, **values)
    log_masses = log_density + np.log(slope * (x[1] - x[0]))
    component = Component(z, log_masses, log_density, z, z, (0.0, 1.0), None, unit)
    fit = fit_law(component.used(), law)
    assert fit.divergence < 1e-4
    for name, value in values.items():
        np.testing.assert_allclose(fit.values[name], value, rtol=0.01, atol=0.01)


def test_rounding_keeps_digits_of_the_scale_and_proportions_that_sum_to_one():
    law = next(law for law in LAWS if law.name == "Normal")
    values = {"loc": np.asarray(1234.5678), "scale": np.asarray(0.012345)}
    rounded = law.rounded(values, 3, Unit(1234.0, 0.01, -np.inf, np.inf))
    assert rounded == {"loc": 1234.5678, "scale": 0.0123}
    values = {"probs": np.full(3, 1 / 3), "loc": np.arange(3.0), "scale": np.ones(3)}
    rounded = LAWS[-1].rounded(values, 2, Unit(0.0, 1.0, -np.inf, np.inf))["probs"]
    assert rounded.tolist() == [0.33, 0.33, 0.34]
