"""Closed forms of densities that are known, against SciPy."""

import re

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import integrate, stats

import numpyro_kaem as kaem
from numpyro_kaem.closed_forms.families import marginals_of
from tests.helpers import assert_close

BASIS = kaem.BSpline(low=-4.0, high=6.0, num_basis=24)


def greville(basis):
    """Coefficients of which the identity is a spline."""
    knots = np.linspace(0, 1, basis.num_basis - basis.degree + 1)
    knots = np.concatenate([np.zeros(3), knots, np.ones(3)])
    means = [knots[i + 1 : i + 4].mean() for i in range(basis.num_basis)]
    return basis.low + (basis.high - basis.low) * np.array(means)


def two_wells(z):
    t = (z - 1.0) / 2.0
    return 3.0 * t**2 - 1.2 * t**4


@pytest.fixture(scope="module")
def priors():
    """Unlike densities on one grid: Normal, gamma-like, two wells, and rough."""
    z = greville(BASIS)
    # Twelve modes.
    rough = np.random.default_rng(3).uniform(1.0, 3.0, BASIS.num_basis)
    rough = rough * (-1.0) ** np.arange(BASIS.num_basis)
    log_gumbel = stats.gumbel_r(0.5, 1.0).logpdf(z) - stats.norm(1, 2).logpdf(z)
    coefficients = [-0.3 * z + 0.1, np.maximum(log_gumbel, -30.0), two_wells(z), rough]
    energy = kaem.Energy(BASIS, jnp.asarray(np.stack(coefficients), float))
    return kaem.KAEMPrior(energy, dist.Normal(1.0, 2.0))


@pytest.fixture(scope="module")
def results(priors):
    return kaem.symbolic(priors)


def test_each_density_has_its_own_form(results):
    names = [result.name for result in results]
    expected = ["Normal", "Gumbel", "energy of 2 terms", "no short form"]
    assert names == expected
    assert [result.is_short for result in results] == [True, True, True, False]
    assert results.shape == (4,)
    assert len(results[:2]) == 2
    # exp(-0.3 z) moves the mean by -0.3 times the variance, but for the clipped tails.
    normal = results[0].distribution
    assert isinstance(normal, dist.Normal)
    np.testing.assert_allclose([normal.loc, normal.scale], [-0.2, 2.0], atol=0.05)
    assert results[0].text == f"Normal(loc={normal.loc:g}, scale={normal.scale:g})"
    # Without a short form is no distribution.
    result = results[3]
    assert result.distribution is None
    assert result.text == "no short form"
    assert result.divergence > 0.02
    nearest = min(candidate.divergence for candidate in result.candidates)
    np.testing.assert_allclose(result.divergence, nearest, rtol=0.2)
    with pytest.raises(ValueError, match="no short form to evaluate"):
        result.log_prob(0.0)
    # They print as a table, and their formulas are valid.
    lines = repr(results).splitlines()
    assert lines[0].split() == [
        "component",
        "divergence",
        "cdf",
        "error",
        "closed",
        "form",
    ]
    assert [line.split()[0] for line in lines[1:]] == ["0", "1", "2", "3"]
    assert lines[4].endswith("no short form")
    assert repr(results[1]).startswith("Gumbel(loc=")
    figure = plt.figure()
    for result in results:
        figure.text(0.1, 0.1, f"${result.latex}$")
    figure.canvas.draw()
    plt.close(figure)


def test_divergence_and_cdf_error_are_scipys(priors, results):
    log_prob = jax.jit(priors.log_prob)
    first, second = (result.distribution for result in results[:2])
    known = [
        stats.norm(float(first.loc), float(first.scale)),
        stats.gumbel_r(float(second.loc), float(second.scale)),
    ]
    z = np.linspace(-6.0, 8.0, 2001)
    cdf = np.asarray(priors.cdf(z[:, None]))
    for index, one in enumerate(known):

        def integrand(z, index=index, one=one):
            ours = float(log_prob(z)[index])
            return np.exp(ours) * (ours - one.logpdf(z))

        value, _ = integrate.quad(
            integrand, -9.0, 11.0, points=[-4.0, 1.0, 6.0], epsabs=1e-5, limit=20
        )
        np.testing.assert_allclose(results[index].divergence, value, atol=2e-5)
        error = np.abs(cdf[:, index] - one.cdf(z)).max()
        np.testing.assert_allclose(results[index].cdf_error, error, atol=2e-5)
    # That of an energy by the trapezoidal rule, with the density of its distribution.
    result, z = results[2], np.linspace(-9.0, 11.0, 20_001)
    ours = np.asarray(priors.log_prob(z[:, None]), float)[:, 2]
    own = np.asarray(result.log_prob(z), float)
    value = integrate.trapezoid(np.exp(ours) * (ours - own), z)
    np.testing.assert_allclose(result.divergence, value, atol=2e-5)
    np.testing.assert_allclose(integrate.trapezoid(np.exp(own), z), 1.0, atol=1e-5)


def test_expression_is_the_callable_and_recovers_the_wells(results):
    """The text of an energy, read by Python, is the log density up to a constant."""
    result = results[2]
    reference, energy, scaled, _ = re.fullmatch(
        r"(.*) \* exp\((.*)\), t = (.*), z cut to (.*) in t", result.text
    ).groups()
    assert reference == "Normal(loc=1, scale=2)"
    energy = re.sub(r"(\d) ([a-z])", r"\1 * \2", energy).replace("^", "**")
    z = np.linspace(-3.5, 5.5, 19)
    values = eval(energy, {"t": eval(scaled, {"z": z})})
    values = values + stats.norm(1, 2).logpdf(z)
    log_prob = np.asarray(result.log_prob(z), float)
    assert np.ptp(log_prob - values) < 1e-4
    log_prob = np.asarray(result.distribution.log_prob(z), float)
    difference = log_prob - stats.norm(1, 2).logpdf(z) - two_wells(z)
    middle = np.abs(z - 1) < 3
    assert np.ptp(difference[middle]) < 0.3


def test_candidates_are_ranked_by_the_documented_criterion(results):
    candidates = results[1].candidates
    criteria = [candidate.criterion for candidate in candidates]
    assert criteria == sorted(criteria)
    named = next(c for c in candidates if c.name == "Gumbel")
    expected = 1000 * named.divergence + np.log(1000) + np.log(19)
    np.testing.assert_allclose(named.criterion, expected, rtol=1e-6)
    energy = next(c for c in candidates if c.name.count(",") == 1)
    # 14 terms, of which 2, and the two parameters of the reference.
    expected = 1000 * energy.divergence + 2 * np.log(1000) + np.log(19 * 91)
    np.testing.assert_allclose(energy.criterion, expected, rtol=1e-6)


def test_options_change_the_choice(priors, results):
    """And a mixture gives a result for each component."""
    strict = kaem.symbolic(priors, tolerance=1e-9, max_terms=0)
    assert not any(result.is_short for result in strict)
    mixture = kaem.KAEMMixture(jnp.zeros(4), priors)
    loose = kaem.symbolic(mixture, tolerance=5.0, num_samples=1e6, max_terms=0)
    assert all(result.is_short for result in loose)
    for found, result in zip(loose, results, strict=True):
        divergences = [
            {candidate.name: candidate.divergence for candidate in one.candidates}
            for one in (found, result)
        ]
        assert divergences[0]["Normal"] == divergences[1]["Normal"]
    assert not any("energy" in candidate.name for candidate in loose[0].candidates)
    assert len(loose[1].text) > len(results[1].text)


def test_wrapped_priors_are_taken_by_component(priors):
    product = priors.expand([2, 4]).to_event(1)
    for wrapped in (
        priors.to_event(1),
        kaem.KAEMMixture(jnp.zeros(4), priors),
        dist.MixtureSameFamily(dist.Categorical(jnp.ones(2) / 2), product),
        priors.to_event(1).mask(True).expand([3]),
    ):
        found = marginals_of(wrapped, "symbolic").energy.coefficients
        np.testing.assert_array_equal(found, priors.energy.coefficients)


def test_density_on_an_interval():
    """Without a reference the density ends with its grid, where it may have a mode."""
    basis = kaem.Chebyshev(low=-1.0, high=3.0, degree=1)
    energy = kaem.Energy(basis, jnp.array([[0.0, 0.0], [0.0, 1.0], [0.0, -2.0]]))
    prior = kaem.KAEMPrior(energy)
    assert kaem.summarize_prior(prior).modes.tolist() == [(), (3.0,), (-1.0,)]
    flat, _, tilted = kaem.symbolic(prior)
    assert flat.text == "Uniform(low=-1, high=3)"
    assert flat.divergence < 1e-6
    # Exponential: slope 2 / 2 over half the width.
    assert tilted.name == "energy of 1 term"
    assert tilted.text.startswith("Uniform(low=-1, high=3) * exp(-")
    assert_close(tilted.log_prob(1.0) - tilted.log_prob(2.0), 1.0, rtol=0.05)


def test_bad_options_and_priors_are_refused(priors):
    for options, error, message in [
        ({"num_samples": 0.5}, ValueError, "num_samples must be at least 1"),
        ({"num_samples": "many"}, TypeError, "num_samples must be a finite number > 0"),
        ({"tolerance": 0.0}, ValueError, "tolerance must be a finite number > 0"),
        ({"max_terms": -1}, ValueError, "max_terms must be an integer >= 0"),
        ({"max_terms": 1.5}, TypeError, "max_terms must be an integer"),
    ]:
        with pytest.raises(error, match=message):
            kaem.symbolic(priors, **options)
    empty = kaem.KAEMPrior(kaem.Energy(BASIS, jnp.zeros((0, 24))))
    for function in (kaem.symbolic, kaem.summarize_prior):
        with pytest.raises(TypeError, match="got Normal, which has no one-dim"):
            function(dist.Normal(0.0, 1.0))
        with pytest.raises(TypeError, match=f"{function.__name__} needs a concrete"):
            jax.jit(lambda prior, of=function: of(prior) and 0.0)(priors)
        with pytest.raises(ValueError, match=r"batch_shape \(0,\)"):
            function(empty)
