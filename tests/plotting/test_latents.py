"""Paths between latents, and what is decoded along them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import numpyro_kaem as kaem


class Plain(eqx.Module):
    """An image of 2 × 2 pixels that shows the latents."""

    def __call__(self, z):
        first, second = z[..., 0], z[..., 1]
        rows = [jnp.stack([first, second], -1), jnp.stack([second, first], -1)]
        return jnp.stack(rows, -2)


@pytest.fixture(autouse=True)
def close_figures():
    """Leave no figure open."""
    yield
    plt.close("all")


@pytest.fixture
def prior():
    """Two densities that are not Normal."""
    basis = kaem.RBF(-2.0, 2.0, 6)
    energy = kaem.Energy.init(jax.random.key(0), basis, (2,), scale=1.5)
    return kaem.KAEMPrior(energy, dist.Normal(0.0, 1.0))


@pytest.fixture
def model(prior):
    """Model of such images."""
    return kaem.KAEM(prior.to_event(1), Plain(), kaem.NormalLikelihood(0.1))


def shown(axes):
    """Pixels of a grid of axes, shape ``(rows, columns, 2, 2)``."""
    images = [ax.images[0].get_array() for ax in axes.flat]
    return np.asarray(images).reshape(*axes.shape, 2, 2)


def test_equal_steps_have_equal_probability(prior):
    start, end = jnp.array([-1.5, 1.0]), jnp.array([1.0, -0.3])
    path = kaem.interpolate_latents(prior.to_event(1), start, end, 6)
    np.testing.assert_array_equal(path[0], start)
    np.testing.assert_array_equal(path[-1], end)
    steps = np.diff(prior.cdf(path), axis=0)
    np.testing.assert_allclose(steps, np.broadcast_to(steps[0], steps.shape), atol=2e-6)


def test_on_a_normal_prior_against_scipy():
    law = dist.Normal(jnp.array([1.0, 0.0]), 2.0).to_event(1)
    path = kaem.interpolate_latents(law, [0.0, 3.0], [5.0, -1.0], 4)
    u = np.linspace(
        stats.norm.cdf([0.0, 3.0], [1, 0], 2), stats.norm.cdf([5.0, -1.0], [1, 0], 2), 4
    )
    np.testing.assert_allclose(path, stats.norm.ppf(u, [1, 0], 2), atol=2e-5)


def test_spherical_path_keeps_the_length():
    law = dist.Normal(0.0, 1.0).expand([3]).to_event(1)
    start, end = jnp.array([2.0, 0.0, 0.0]), jnp.array([0.0, 2.0, 0.0])
    path = kaem.interpolate_latents(law, start, end, 5, method="spherical")
    np.testing.assert_allclose(jnp.linalg.norm(path, axis=1), 2.0, rtol=1e-5)
    np.testing.assert_allclose(path[2], [2**0.5, 2**0.5, 0.0], atol=1e-5)
    line = kaem.interpolate_latents(law, start, 2 * start, 3, method="spherical")
    np.testing.assert_allclose(line[1], 1.5 * start, atol=1e-5)


def test_interpolation_shows_both_paths(model):
    start, end = jnp.array([-1.5, 1.0]), jnp.array([1.0, -0.3])
    axes = kaem.plot_interpolation(model, start, end, 4)
    for row, method in zip(shown(axes), ("cdf", "spherical"), strict=True):
        path = kaem.interpolate_latents(model.prior, start, end, 4, method=method)
        np.testing.assert_allclose(row, model.decode(path), rtol=1e-6)
    assert axes[0, 0].get_ylabel() == "through the cdf"


def test_traversal_moves_one_latent_at_a_time(model, prior):
    axes = kaem.plot_traversal(model, [1, 0], 3)
    images = shown(axes)
    u = jnp.broadcast_to(jnp.array([0.05, 0.5, 0.95])[:, None], (3, 2))
    moved, median = prior.icdf(u), prior.icdf(jnp.full(2, 0.5))
    # The first pixel is the first latent, the second the second.
    np.testing.assert_allclose(images[0, :, 0, 1], moved[:, 1], rtol=1e-5)
    np.testing.assert_allclose(images[0, :, 0, 0], median[0], rtol=1e-5)
    np.testing.assert_allclose(images[1, :, 0, 0], moved[:, 0], rtol=1e-5)
    assert [line[0].get_ylabel() for line in axes] == ["latent 1", "latent 0"]


def mixture():
    """A prior without a distribution function of each latent."""
    energy = kaem.Energy(kaem.RBF(-2.0, 2.0, 6), jnp.zeros((3, 2, 6)))
    return dist.MixtureSameFamily(
        dist.Categorical(logits=jnp.zeros(3)), kaem.KAEMPrior(energy).to_event(1)
    )


NORMAL = dist.Normal(0.0, 1.0).expand([2]).to_event(1)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda m: kaem.interpolate_latents(NORMAL, [0.0], [1.0, 1.0]), "start must"),
        (lambda m: kaem.interpolate_latents(NORMAL, [0.0, 0.0], [1.0]), "end must"),
        (
            lambda m: kaem.interpolate_latents(NORMAL, [0.0, 0.0], [1.0, 1.0], 1),
            "num_points must be at least 2",
        ),
        (
            lambda m: kaem.interpolate_latents(
                NORMAL, [0.0, 0.0], [1.0, 1.0], method="line"
            ),
            "method must be",
        ),
        (
            lambda m: kaem.interpolate_latents(mixture(), [0.0, 0.0], [1.0, 1.0]),
            "prior must be of independent densities",
        ),
        (lambda m: kaem.plot_interpolation(3, [0.0], [1.0]), "model must be a KAEM"),
        (lambda m: kaem.plot_traversal(m, [2]), "latents must be indices from 0 to 1"),
        (lambda m: kaem.plot_traversal(m, at=[0.0]), "at must have the shape"),
        (
            lambda m: kaem.plot_traversal(m, [0], 3, ax=plt.subplots(1, 2)[1]),
            "ax must hold 3 axes, got 2",
        ),
    ],
    ids=["start", "end", "points", "method", "mixture", "model", "latent", "at", "ax"],
)
def test_bad_input_is_refused(model, call, match):
    with pytest.raises((TypeError, ValueError), match=match):
        call(model)
