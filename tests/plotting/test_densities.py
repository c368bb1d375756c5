"""What is drawn is what was computed."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import pytest

import numpyro_kaem as kaem
from numpyro_kaem.empirical_bayes import Band
from tests.helpers import assert_close


def make_prior(batch_shape=(), reference=None, scale=1.5):
    basis = kaem.RBF(-1.0, 4.0, num_basis=8)
    coefficients = np.random.default_rng(1).normal(size=(*batch_shape, 8))
    energy = kaem.Energy(basis, jnp.asarray(scale * coefficients))
    return kaem.KAEMPrior(energy, reference or dist.Normal(1.0, 2.0))


def lines(ax):
    """Drawn points and values of each line with a legend entry, by label."""
    return {
        line.get_label(): line.get_data()
        for line in ax.get_lines()
        if not line.get_label().startswith("_")
    }


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_curves_and_histogram_are_the_densities():
    prior, data = make_prior(), np.random.default_rng(0).normal(1.0, 2.0, 400)
    ax = kaem.plot_prior(prior, data=data, bins=20)
    drawn = lines(ax)
    assert list(drawn) == ["learned density", "reference"]
    z, density = drawn["learned density"]
    assert len(z) == 512
    assert_close(density, np.exp(prior.log_prob(z)))
    z, density = drawn["reference"]
    assert_close(density, np.exp(dist.Normal(1.0, 2.0).log_prob(z)))
    assert ax.get_lines()[1].get_linestyle() == "--"
    assert len(ax.patches) == 20
    assert legend(ax) == ["learned density", "reference", "data"]
    counts, edges = np.histogram(data, bins=20, density=True)
    heights = [bar.get_height() for bar in ax.patches]
    np.testing.assert_allclose(heights, counts, rtol=1e-5)
    np.testing.assert_allclose(ax.patches[0].get_x(), edges[0], rtol=1e-5)
    # Labels, in axes that are given.
    plt.close("all")
    fig, ax = plt.subplots()
    options = {"reference": False, "label": "prior", "xlabel": "velocity"}
    assert kaem.plot_prior(prior, ax=ax, ylabel="p", **options) is ax
    assert legend(ax) == ["prior"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("velocity", "p")
    assert ax.get_ylim()[0] == 0.0
    assert kaem.plot_prior(prior, ax=[ax]) is ax
    assert plt.get_fignums() == [fig.number]


def test_range_covers_quantiles_grid_and_data_within_the_support():
    """Of each density of a product, in axes that are given, with their numbers."""
    prior = make_prior((2,), dist.Normal(1.0, jnp.array([0.2, 2.0])))
    _, given = plt.subplots(1, 2)
    axes = kaem.plot_prior(prior.to_event(1), ax=given)
    assert list(axes) == list(given)
    assert [ax.get_title() for ax in axes] == ["density 0", "density 1"]
    z, _ = lines(axes[0])["learned density"]
    assert_close(z[[0, -1]], np.array([-1.0, 4.0]), atol=0.01)
    z, density = lines(axes[1])["learned density"]
    assert_close(density, np.exp(prior.log_prob(z[:, None])[:, 1]))
    low, high = np.asarray(prior.icdf(np.array([[0.001], [0.999]])))[:, 1]
    assert low < -1.0
    assert high > 4.0
    assert_close(z[[0, -1]], np.array([low, high]), atol=0.05)
    axes = kaem.plot_prior(prior, data=[[-6.0, 1.0], [9.0, 1.0]])
    z, _ = lines(axes[0])["learned density"]
    assert_close(z[[0, -1]], np.array([-6.0, 9.0]), atol=0.03)
    # The density of the reference is infinite at 0, the grid begins below.
    prior = make_prior(reference=dist.Gamma(0.5, 1.0))
    ax = kaem.plot_prior(prior, data=[-2.0, 1.0, 3.0])
    for z, density in lines(ax).values():
        assert z[0] > 0.0
        assert np.all(np.isfinite(density))
    assert np.isfinite(ax.get_ylim()).all()


def test_uniform_references_end_with_their_grids():
    coefficients = np.random.default_rng(1).normal(size=(2, 4))
    basis = kaem.RBF([0.0, 3.0], [2.0, 7.0], num_basis=4)
    prior = kaem.KAEMPrior(kaem.Energy(basis, jnp.asarray(coefficients)))
    z, density = lines(kaem.plot_prior(prior)[1])["reference"]
    assert_close(density, np.full(len(z), 0.25))
    # Each component has density on its own grid only.
    ax = kaem.plot_prior(kaem.KAEMMixture(jnp.zeros(2), prior))
    z, reference = ax.get_lines()[1].get_data()
    assert_close(z[[0, -1]], np.array([0.0, 7.0]), atol=0.02)
    expected = np.where(z < 2.0, 0.25, np.where(z > 3.0, 0.125, 0.0))
    assert_close(reference, expected)
    first, second = (line.get_ydata() for line in ax.get_lines()[2:])
    assert np.all(first[z > 2.0] == 0.0)
    assert np.all(second[z < 3.0] == 0.0)


@pytest.mark.parametrize(
    ("batch_shape", "layout"),
    [pytest.param((5,), (2, 4), marks=pytest.mark.long), ((3, 2), (3, 2))],
)
def test_batch(batch_shape, layout):
    prior = make_prior(batch_shape)
    data = np.random.default_rng(0).normal(1.0, 2.0, (50, *batch_shape))
    axes = kaem.plot_prior(prior, data=data)
    assert axes.shape == batch_shape
    for index in np.ndindex(batch_shape):
        z, density = lines(axes[index])["learned density"]
        expected = np.exp(prior.log_prob(z.reshape((-1,) + (1,) * axes.ndim)))
        assert_close(density, expected[(..., *index)])
        assert axes[index].get_title() == f"density {', '.join(map(str, index))}"
        shown = [bar.get_x() for bar in axes[index].patches]
        np.testing.assert_allclose(shown[0], np.min(data[(..., *index)]), rtol=1e-5)
    figure = axes.flat[0].figure
    grid = axes.flat[0].get_gridspec()
    assert (grid.nrows, grid.ncols) == layout
    visible = [ax for ax in figure.axes if ax.get_visible()]
    assert visible == list(axes.flat)
    assert axes.flat[0].get_legend() is not None


def test_mixture_and_its_components():
    logits = jnp.array([0.3, -1.0, 1.2])
    mixture = kaem.KAEMMixture(logits, make_prior((3,)))
    ax = kaem.plot_prior(mixture)
    drawn = ax.get_lines()
    assert len(drawn) == 5
    z, density = drawn[0].get_data()
    assert_close(density, np.exp(mixture.log_prob(z)))
    assert_close(drawn[1].get_ydata(), np.exp(dist.Normal(1.0, 2.0).log_prob(z)))
    parts = np.stack([line.get_ydata() for line in drawn[2:]], axis=-1)
    expected = jax.nn.softmax(logits) * np.exp(mixture.prior.log_prob(z[:, None]))
    assert_close(parts, expected)
    assert_close(parts.sum(-1), density, rtol=1e-4)
    assert legend(ax) == ["learned density", "reference", "weighted components"]
    assert len(kaem.plot_prior(mixture, components=False).get_lines()) == 2
    batch = kaem.KAEMMixture(jnp.zeros((2, 3)), make_prior((3,)))
    axes = kaem.plot_prior(batch)
    assert axes.shape == (2,)
    assert [len(ax.get_lines()) for ax in axes] == [5, 5]


def test_mixture_of_products_is_drawn_by_its_marginals():
    """Each marginal is that of the mixture of one latent's components alone."""
    component = make_prior((3, 2))
    logits = jnp.array([0.5, -0.2, 0.1])
    mixture = dist.MixtureSameFamily(
        dist.Categorical(logits=logits), component.to_event(1)
    )
    axes = kaem.plot_prior(mixture)
    assert axes.shape == (2,)
    energy, normal = component.energy, dist.Normal(1.0, 2.0)
    for latent, ax in enumerate(axes):
        of_latent = kaem.Energy(energy.basis, energy.coefficients[:, latent])
        alone = kaem.KAEMMixture(logits, kaem.KAEMPrior(of_latent, normal))
        z, density = ax.get_lines()[0].get_data()
        assert_close(density, np.exp(alone.log_prob(z)), rtol=1e-4)
        parts = sum(line.get_ydata() for line in ax.get_lines()[2:])
        assert_close(parts, density, rtol=1e-4)
        assert alone.cdf(z[0]) < 2e-3
        assert alone.cdf(z[-1]) > 1 - 2e-3


def test_posterior_and_band_are_drawn():
    prior, draws = make_prior(), make_prior((40,), scale=0.4)
    posterior = np.linspace(-1.0, 3.0, 50)
    ax = kaem.plot_prior(prior, posterior=posterior, band=draws, level=0.5)
    z, _ = lines(ax)["learned density"]
    values = np.exp(draws.log_prob(z[:, None]))
    points, ends = filled(ax)
    assert_close(points, z)
    assert_close(ends, np.quantile(values, [0.25, 0.75], axis=1).T, rtol=1e-4)
    heights, _ = np.histogram(posterior, bins="auto", density=True)
    outline = ax.patches[0].get_xy()
    assert set(np.round(heights, 5)) <= set(np.round(outline[:, 1], 5))
    assert "50% interval" in legend(ax)
    assert "posterior" in legend(ax)

    def band(z):
        return Band(0 * z, 0 * z + 1, 0 * z + 2)

    ax = kaem.plot_prior(prior, band=band)
    assert ax.collections[0].get_paths()[0].vertices[:, 1].max() == 2


def test_bad_calls_of_plot_prior_are_refused():
    """And leave no figure behind."""
    axes, opened = plt.subplots(1, 2)[1], plt.get_fignums()
    one, three, pairs = make_prior(), make_prior((3,)), make_prior((3, 2))
    rows = [
        (make_prior((0,)), {}, "must hold a density to plot"),
        (one, {"level": 1.0}, "level must be between 0 and 1"),
        (one, {"posterior": np.zeros((3, 2))}, "posterior must have shape"),
        (one, {"band": pairs}, r"must have batch shape \(num_draws\), got \(3, 2\)"),
        (
            one,
            {"band": lambda z: Band(z[1:], z, z[1:])},
            "band must return an interval",
        ),
        (one, {"ax": axes}, "ax must hold 1 axes, got 2"),
        (three, {"ax": axes}, "ax must hold 3 axes, got 2"),
        (one, {"data": [0.0, np.nan, np.inf]}, "data must be finite, got 2 values"),
    ]
    for prior, shape, expected in [
        (one, (5, 1), r"\(n,\)"),
        (one, (), r"\(n,\)"),
        (one, (0,), r"\(n,\)"),
        (three, (5,), r"\(n, 3\)"),
        (pairs, (5, 2), r"\(n, 3, 2\)"),
    ]:
        match = f"data must have shape {expected} with n > 0"
        rows.append((prior, {"data": np.zeros(shape)}, match))
    for prior, options, match in rows:
        with pytest.raises(ValueError, match=match):
            kaem.plot_prior(prior, **options)
        assert plt.get_fignums() == opened, match
    for prior in (dist.Normal(), make_prior, None):
        with pytest.raises(TypeError, match="prior must be a KAEMPrior, a KAEMMixture"):
            kaem.plot_prior(prior)
    with pytest.raises(TypeError, match="band must be a KAEMPrior"):
        kaem.plot_prior(one, band=3)
    assert plt.get_fignums() == opened


# --- bands ----------------------------------------------------------------------------


def filled(ax):
    """Lower and upper ends of the filled band, by the latent value."""
    vertices = ax.collections[0].get_paths()[0].vertices
    z = np.unique(vertices[:, 0])
    ends = [vertices[vertices[:, 0] == point, 1] for point in z]
    return z, np.array([[end.min(), end.max()] for end in ends])


def test_bands_hold_quantiles_of_draws_or_what_is_given():
    """Beside the truth, given as a distribution or as its values."""
    draws, normal = make_prior((40,), scale=0.5), dist.Normal(1.0, 2.0)
    z = np.linspace(-4.0, 6.0, 31)
    truth = np.exp(normal.log_prob(z))
    ax = kaem.plot_band(z, draws, level=0.5, truth=normal)
    values = np.exp(draws.log_prob(z[:, None]))
    lower, median, upper = np.quantile(values, [0.25, 0.5, 0.75], axis=1)
    drawn = lines(ax)
    assert list(drawn) == ["posterior median", "truth"]
    assert_close(drawn["posterior median"][1], median, rtol=1e-4)
    assert_close(drawn["truth"][1], truth)
    points, ends = filled(ax)
    assert_close(points, z)
    assert_close(ends, np.stack([lower, upper], -1), rtol=1e-4)
    assert legend(ax) == ["posterior median", "posterior median, 50% interval", "truth"]
    assert ax.get_ylim()[0] == 0.0
    plt.close("all")
    fig, ax = plt.subplots()
    options = {"label": "KAEM", "xlabel": "speed", "ylabel": "p"}
    assert kaem.plot_band(z, draws, truth=truth, ax=ax, **options) is ax
    assert plt.get_fignums() == [fig.number]
    assert_close(lines(ax)["truth"][1], truth)
    assert legend(ax) == ["KAEM", "KAEM, 90% interval", "truth"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("speed", "p")
    # A finished band is drawn as it is.
    z = np.array([0.0, 1.0, 3.0])
    band = Band(np.array([0.1, 0.2, 0.1]), np.array([0.2, 0.3, 0.2]), np.full(3, 0.4))
    ax = kaem.plot_band(z, band, label="fit", color="#009E73", linestyle=":")
    assert_close(lines(ax)["fit"][1], band.value)
    assert_close(filled(ax)[1], np.stack([band.lower, band.upper], -1))
    assert legend(ax) == ["fit", "fit, interval"]
    assert ax.get_lines()[0].get_color() == "#009E73"
    assert ax.get_lines()[0].get_linestyle() == ":"


def test_bad_calls_of_plot_band_are_refused():
    """And leave no figure behind."""
    draws, z, axes = make_prior((40,)), [0.0, 1.0], plt.subplots(1, 2)[1]
    opened = plt.get_fignums()
    band = Band(np.zeros(3), np.ones(3), np.ones(3))
    rows = [
        (z, band, {}, "densities must be a band of the shape of z"),
        (z, draws, {"ax": axes}, "ax must hold 1 axes"),
    ]
    for points in (0.0, [1.0], [[0.0, 1.0]], [1.0, 0.0], [0.0, 0.0], [0.0, np.nan]):
        rows.append((points, draws, {}, "z must be finite increasing values"))
    for level in (0.0, 1.0, -1.0, np.nan):
        rows.append((z, draws, {"level": level}, "level must be between 0 and 1, got"))
    for shape in ((), (3, 2), (0,)):
        rows.append((z, make_prior(shape), {}, r"batch shape \(num_draws,\), got"))
    for truth in (np.ones(3), dist.Normal(jnp.zeros((2, 1)))):
        match = "truth must be one density, or its values"
        rows.append((z, draws, {"truth": truth}, match))
    for points, densities, options, match in rows:
        with pytest.raises(ValueError, match=match):
            kaem.plot_band(points, densities, **options)
        assert plt.get_fignums() == opened, match
    for densities in (None, dist.Normal(), np.ones((3, 2))):
        with pytest.raises(TypeError, match="must be a KAEMPrior with a batch"):
            kaem.plot_band(z, densities)
    assert plt.get_fignums() == opened
