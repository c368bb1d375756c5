"""Paths between latents, and what is decoded along them."""

import equinox as eqx
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import numpyro_kaem as kaem

START, END = np.array([-1.5, 1.0]), np.array([1.0, -0.3])


class Plain(eqx.Module):
    """An image of 2 × 2 pixels that shows the latents."""

    def __call__(self, z):
        first, second = z[..., 0], z[..., 1]
        rows = [jnp.stack([first, second], -1), jnp.stack([second, first], -1)]
        return jnp.stack(rows, -2)


@pytest.fixture(scope="module")
def prior():
    """Two densities that are not Normal."""
    coefficients = 1.5 * np.random.default_rng(0).normal(size=(2, 6))
    energy = kaem.Energy(kaem.RBF(-2.0, 2.0, 6), jnp.asarray(coefficients))
    return kaem.KAEMPrior(energy, dist.Normal(0.0, 1.0))


@pytest.fixture(scope="module")
def model(prior):
    """Model of such images."""
    return kaem.KAEM(prior.to_event(1), Plain(), kaem.NormalLikelihood(0.1))


def shown(axes):
    """Pixels of a grid of axes, shape ``(rows, columns, 2, 2)``."""
    images = [ax.images[0].get_array() for ax in axes.flat]
    return np.asarray(images).reshape(*axes.shape, 2, 2)


def test_paths_have_steps_of_equal_probability_or_one_length(prior):
    path = kaem.interpolate_latents(prior.to_event(1), START, END, 4)
    np.testing.assert_array_equal(path[0], START.astype(path.dtype))
    np.testing.assert_array_equal(path[-1], END.astype(path.dtype))
    steps = np.diff(prior.cdf(path), axis=0)
    np.testing.assert_allclose(steps, np.broadcast_to(steps[0], steps.shape), atol=2e-6)
    # On a Normal prior against SciPy.
    normal = dist.Normal(jnp.array([1.0, 0.0]), 2.0).to_event(1)
    path = kaem.interpolate_latents(normal, [0.0, 3.0], [5.0, -1.0], 4)
    u = np.linspace(
        stats.norm.cdf([0.0, 3.0], [1, 0], 2), stats.norm.cdf([5.0, -1.0], [1, 0], 2), 4
    )
    np.testing.assert_allclose(path, stats.norm.ppf(u, [1, 0], 2), atol=2e-5)
    # The spherical path keeps the length.
    normal = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
    start, end = np.array([2.0, 0.0]), np.array([0.0, 2.0])
    path = kaem.interpolate_latents(normal, start, end, 5, method="spherical")
    np.testing.assert_allclose(np.linalg.norm(path, axis=1), 2.0, rtol=1e-5)
    np.testing.assert_allclose(path[2], [2**0.5, 2**0.5], atol=1e-5)
    line = kaem.interpolate_latents(normal, start, 2 * start, 5, method="spherical")
    np.testing.assert_allclose(line[2], 1.5 * start, atol=1e-5)


def test_paths_of_a_mixture_have_equal_steps_of_conditional_probability():
    """Of each latent given those before it, against SciPy."""
    weights = np.array([0.3, 0.7])
    loc, scale = np.array([[-2.0, 0.0], [1.0, 3.0]]), np.array([[0.5, 1.0], [1.0, 2.0]])
    mixture = dist.MixtureSameFamily(
        dist.Categorical(jnp.asarray(weights)), dist.Normal(loc, scale).to_event(1)
    )
    path = kaem.interpolate_latents(mixture, [-2.5, 1.0], [2.0, -1.0], 5)
    z = np.asarray(path, float)[:, None]
    first = weights * stats.norm.pdf(z[..., 0], loc[:, 0], scale[:, 0])
    shares = np.array([np.tile(weights, (5, 1)), first / first.sum(1, keepdims=True)])
    masses = [
        (share * stats.norm.cdf(z[..., i], loc[:, i], scale[:, i])).sum(1)
        for i, share in enumerate(shares)
    ]
    steps = np.diff(masses)
    np.testing.assert_allclose(steps, np.tile(steps[:, :1], 4), atol=2e-6)
    np.testing.assert_allclose(path[0], [-2.5, 1.0])


def test_figures_show_what_is_decoded(model, prior):
    axes = kaem.plot_interpolation(model, START, END, 4)
    for row, method in zip(shown(axes), ("cdf", "spherical"), strict=True):
        path = kaem.interpolate_latents(model.prior, START, END, 4, method=method)
        np.testing.assert_allclose(row, model.decode(path), rtol=1e-6)
    assert axes[0, 0].get_ylabel() == "through the cdf"
    # A traversal moves one latent at a time.
    axes = kaem.plot_traversal(model, [1, 0], 3)
    images = shown(axes)
    moved = prior.icdf(np.array([0.05, 0.5, 0.95])[:, None])
    median = moved[1]
    # The first pixel is the first latent, the second the second.
    np.testing.assert_allclose(images[0, :, 0, 1], moved[:, 1], rtol=1e-5)
    np.testing.assert_allclose(images[0, :, 0, 0], median[0], rtol=1e-5)
    np.testing.assert_allclose(images[1, :, 0, 0], moved[:, 0], rtol=1e-5)
    assert [line[0].get_ylabel() for line in axes] == ["latent 1", "latent 0"]


def test_bad_input_is_refused(model):
    normal = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
    # Without a cdf for each latent.
    dependent = dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2))
    zeros, ones, axes = np.zeros(2), np.ones(2), plt.subplots(1, 2)[1]
    path, traversal = kaem.interpolate_latents, kaem.plot_traversal
    for call, match in [
        (lambda: path(normal, [0.0], ones), "start must"),
        (lambda: path(normal, zeros, [1.0]), "end must"),
        (lambda: path(normal, zeros, ones, 1), "num_points must be an integer >= 2"),
        (lambda: path(normal, zeros, ones, method="line"), "method must be"),
        (lambda: traversal(model, [2]), "latents must be indices from 0 to 1"),
        (lambda: traversal(model, [0], 3, ax=axes), "ax must hold 3 axes, got 2"),
    ]:
        with pytest.raises(ValueError, match=match):
            call()
    with pytest.raises(TypeError, match="prior must be of independent densities"):
        path(dependent, zeros, ones)
    with pytest.raises(TypeError, match="model must be a KAEM"):
        kaem.plot_interpolation(3, [0.0], [1.0])
