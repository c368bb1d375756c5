"""Figures of atoms and of decisions, by what they show."""

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import pytest

import numpyro_kaem as kaem

SLAB = kaem.KAEMPrior(
    kaem.Energy(kaem.BSpline(-6.0, 6.0, 8), jnp.zeros(8)), dist.Normal(0.0, 3.0)
)
PRIOR = kaem.PriorWithAtoms([0.0, 2.0], [0.5, 0.1], SLAB)


@pytest.fixture(scope="module")
def posterior():
    x = np.array([0.0, 5.0, -4.0, 1.0])
    units = kaem.unit_log_likelihood(lambda z: dist.Normal(z, 1.0), x)
    return kaem.unit_posterior(PRIOR, units)


def test_atoms_are_stems_beside_a_curve():
    ax = kaem.plot_prior(PRIOR)
    curves = {line.get_label(): line.get_data() for line in ax.get_lines()}
    z, density = curves["learned density"]
    expected = 0.4 * np.exp(dist.Normal(0.0, 3.0).log_prob(z))
    np.testing.assert_allclose(density, expected, rtol=1e-4)
    np.testing.assert_allclose(curves["reference"][1], expected, rtol=1e-4)
    (right,) = (other for other in ax.figure.axes if other is not ax)
    (points,) = right.get_lines()
    np.testing.assert_allclose(points.get_data(), [[0.0, 2.0], [0.5, 0.1]], rtol=1e-6)
    assert "atoms" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_rates_and_ranks(posterior):
    ax = kaem.plot_false_signs(posterior, rate=0.1)
    local, averages = (each.get_ydata() for each in ax.get_lines()[:2])
    np.testing.assert_allclose(local, np.sort(posterior.local_false_sign_rate()))
    assert np.all(averages <= local + 1e-7)
    found = int(np.sum(posterior.s_values() <= 0.1))
    assert 0 < found < 4
    assert ax.get_lines()[2].get_xdata()[0] == found
    ax = kaem.plot_ranks(posterior, num_top=2, level=0.5, names=list("abcd"))
    names = [label.get_text()[0] for label in ax.get_yticklabels()]
    assert names == ["b", "d"]
    ends = np.array([segment[:, 0] for segment in ax.collections[0].get_segments()])
    expected = posterior.quantile(np.array([0.25, 0.75]))[:, jnp.array([1, 3])].T
    np.testing.assert_allclose(ends, expected)


def test_bad_arguments(posterior):
    opened = plt.get_fignums()
    for function in (kaem.plot_false_signs, kaem.plot_ranks):
        with pytest.raises(TypeError, match="posterior must be the result of"):
            function(PRIOR)
    with pytest.raises(ValueError, match="rate must be between 0 and 1"):
        kaem.plot_false_signs(posterior, rate=1.0)
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        kaem.plot_ranks(posterior, level=0.0)
    with pytest.raises(ValueError, match="names must have one entry for each of 4"):
        kaem.plot_ranks(posterior, names=["a"])
    assert plt.get_fignums() == opened
