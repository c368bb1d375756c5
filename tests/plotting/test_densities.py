"""What is drawn is what was computed."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import pytest

import numpyro_kaem as kaem
from numpyro_kaem.empirical_bayes import Band
from tests.helpers import assert_close


@pytest.fixture(autouse=True)
def close_figures():
    """Leave no figure open."""
    yield
    plt.close("all")


def make_prior(batch_shape=(), reference=None, scale=1.5):
    basis = kaem.RBF(-1.0, 4.0, num_basis=8)
    energy = kaem.Energy.init(jax.random.key(1), basis, batch_shape, scale=scale)
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


def test_curves_are_the_densities():
    prior = make_prior()
    ax = kaem.plot_prior(prior, num_points=101)
    drawn = lines(ax)
    assert list(drawn) == ["learned density", "reference"]
    z, density = drawn["learned density"]
    assert len(z) == 101
    assert_close(density, np.exp(prior.log_prob(z)))
    z, density = drawn["reference"]
    assert_close(density, np.exp(dist.Normal(1.0, 2.0).log_prob(z)))
    assert ax.get_lines()[1].get_linestyle() == "--"


def test_range_covers_quantiles_grid_and_data():
    prior = make_prior(reference=dist.Normal(1.0, 0.2))
    z, _ = lines(kaem.plot_prior(prior))["learned density"]
    assert_close(z[[0, -1]], np.array([-1.0, 4.0]), atol=0.01)
    z, _ = lines(kaem.plot_prior(prior, data=[-6.0, 9.0]))["learned density"]
    assert_close(z[[0, -1]], np.array([-6.0, 9.0]), atol=0.03)
    wide = make_prior(reference=dist.Normal(1.0, 5.0))
    z, _ = lines(kaem.plot_prior(wide))["learned density"]
    low, high = np.asarray(wide.icdf(np.array([0.001, 0.999])))
    assert low < -1.0
    assert high > 4.0
    assert_close(z[[0, -1]], np.array([low, high]), atol=0.05)


def test_range_ends_with_the_support():
    # The density of the reference is infinite at 0, the grid begins below.
    prior = make_prior(reference=dist.Gamma(0.5, 1.0))
    ax = kaem.plot_prior(prior, data=[-2.0, 1.0, 3.0])
    for z, density in lines(ax).values():
        assert z[0] > 0.0
        assert np.all(np.isfinite(density))
    assert np.isfinite(ax.get_ylim()).all()


def test_uniform_reference():
    energy = kaem.Energy(kaem.Fourier(2.0, 6.0, num_frequencies=1), jnp.ones(2))
    z, density = lines(kaem.plot_prior(kaem.KAEMPrior(energy)))["reference"]
    assert_close(density, np.full(len(z), 0.25))


def test_histogram_is_a_density():
    data = np.random.default_rng(0).normal(1.0, 2.0, 400)
    ax = kaem.plot_prior(make_prior(), data=data, bins=20)
    assert len(ax.patches) == 20
    assert legend(ax) == ["learned density", "reference", "data"]
    counts, edges = np.histogram(data, bins=20, density=True)
    heights = [bar.get_height() for bar in ax.patches]
    np.testing.assert_allclose(heights, counts, rtol=1e-5)
    np.testing.assert_allclose(ax.patches[0].get_x(), edges[0], rtol=1e-5)


def test_labels():
    ax = kaem.plot_prior(
        make_prior(), reference=False, label="prior", xlabel="velocity", ylabel="p"
    )
    assert legend(ax) == ["prior"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("velocity", "p")
    assert ax.get_ylim()[0] == 0.0


def test_draws_in_the_given_axes():
    fig, ax = plt.subplots()
    assert kaem.plot_prior(make_prior(), ax=ax) is ax
    assert kaem.plot_prior(make_prior(), ax=[ax]) is ax
    assert plt.get_fignums() == [fig.number]


@pytest.mark.parametrize(
    ("batch_shape", "layout"),
    [pytest.param((5,), (2, 4), marks=pytest.mark.long), ((2, 3), (2, 3))],
)
def test_batch(batch_shape, layout):
    prior = make_prior(
        batch_shape, dist.Normal(jnp.linspace(0.0, 2.0, batch_shape[-1]))
    )
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


def test_batch_in_given_axes():
    _, given = plt.subplots(1, 3)
    axes = kaem.plot_prior(make_prior((3,)), ax=given)
    assert list(axes) == list(given)


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


def test_mixture_of_unequal_supports():
    # Each component has density on its own grid only.
    basis = kaem.RBF([0.0, 3.0], [2.0, 7.0], num_basis=4)
    energy = kaem.Energy.init(jax.random.key(1), basis, (2,), scale=1.0)
    mixture = kaem.KAEMMixture(jnp.zeros(2), kaem.KAEMPrior(energy))
    ax = kaem.plot_prior(mixture)
    z, reference = ax.get_lines()[1].get_data()
    assert_close(z[[0, -1]], np.array([0.0, 7.0]), atol=0.02)
    expected = np.where(z < 2.0, 0.25, np.where(z > 3.0, 0.125, 0.0))
    assert_close(reference, expected)
    first, second = (line.get_ydata() for line in ax.get_lines()[2:])
    assert np.all(first[z > 2.0] == 0.0)
    assert np.all(second[z < 3.0] == 0.0)


def test_batch_of_mixtures():
    mixture = kaem.KAEMMixture(jnp.zeros((2, 3)), make_prior((3,)))
    axes = kaem.plot_prior(mixture)
    assert axes.shape == (2,)
    assert [len(ax.get_lines()) for ax in axes] == [5, 5]


@pytest.mark.parametrize("prior", [dist.Normal(), make_prior, None])
def test_wrong_type_is_refused(prior):
    with pytest.raises(TypeError, match="prior must be a KAEMPrior, a KAEMMixture or"):
        kaem.plot_prior(prior)


def test_independent_densities_are_drawn_as_a_batch():
    prior = make_prior((2,))
    axes = kaem.plot_prior(prior.to_event(1), names=["width", "height"])
    assert [ax.get_title() for ax in axes] == ["width", "height"]
    z, density = lines(axes[1])["learned density"]
    assert_close(density, np.exp(prior.log_prob(z[:, None])[:, 1]))


def test_mixture_of_products_is_drawn_by_its_marginals():
    """Each marginal is that of the mixture of one latent's components alone."""
    component = make_prior((3, 2))
    logits = jnp.array([0.5, -0.2, 0.1])
    mixture = dist.MixtureSameFamily(
        dist.Categorical(logits=logits), component.to_event(1)
    )
    axes = kaem.plot_prior(mixture)
    assert axes.shape == (2,)
    for latent, ax in enumerate(axes):
        energy = component.energy
        alone = kaem.KAEMMixture(
            logits,
            kaem.KAEMPrior(
                kaem.Energy(energy.basis, energy.coefficients[:, latent]),
                dist.Normal(1.0, 2.0),
            ),
        )
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
    path = ax.collections[0].get_paths()[0].vertices
    expected = np.quantile(values, [0.25, 0.75], axis=1)
    assert_close(path[1 : len(z) + 1, 1], expected[0], rtol=1e-4)
    upper = path[len(z) + 2 : 2 * len(z) + 2, 1][::-1]
    assert_close(upper, expected[1], rtol=1e-4)
    heights, _ = np.histogram(posterior, bins="auto", density=True)
    outline = ax.patches[0].get_xy()
    assert set(np.round(heights, 5)) <= set(np.round(outline[:, 1], 5))
    assert "50% interval" in legend(ax)
    assert "posterior" in legend(ax)

    def band(z):
        return Band(0 * z, 0 * z + 1, 0 * z + 2)

    ax = kaem.plot_prior(prior, band=band)
    assert ax.collections[0].get_paths()[0].vertices[:, 1].max() == 2


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"names": ["a", "b"]}, ValueError, "names must hold 1"),
        ({"level": 1.0}, ValueError, "level must be between 0 and 1"),
        ({"posterior": np.zeros((3, 2))}, ValueError, "posterior must have shape"),
        ({"band": 3}, TypeError, "band must be a KAEMPrior"),
        (
            {"band": make_prior((4, 2))},
            ValueError,
            r"band must have batch shape \(num_draws\), got \(4, 2\)",
        ),
        (
            {"band": lambda z: Band(z[1:], z, z[1:])},
            ValueError,
            "band must return an interval",
        ),
    ],
    ids=["names", "level", "posterior", "type", "shape", "function"],
)
def test_bad_overlays_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        kaem.plot_prior(make_prior(), **options)


def test_empty_batch_is_refused():
    with pytest.raises(ValueError, match="must hold a density to plot"):
        kaem.plot_prior(make_prior((0,)))


@pytest.mark.parametrize(("batch_shape", "count"), [((), 2), ((3,), 2), ((2,), 1)])
def test_wrong_number_of_axes_is_refused(batch_shape, count):
    _, axes = plt.subplots(1, count)
    with pytest.raises(ValueError, match=r"ax must hold \d axes, one for each"):
        kaem.plot_prior(make_prior(batch_shape), ax=axes)


@pytest.mark.parametrize(
    ("batch_shape", "shape", "expected"),
    [
        ((), (5, 1), r"\(n,\)"),
        ((), (), r"\(n,\)"),
        ((), (0,), r"\(n,\)"),
        ((3,), (5,), r"\(n, 3\)"),
        ((2, 3), (5, 3), r"\(n, 2, 3\)"),
    ],
)
def test_data_of_wrong_shape_are_refused(batch_shape, shape, expected):
    with pytest.raises(ValueError, match=f"data must have shape {expected} with n > 0"):
        kaem.plot_prior(make_prior(batch_shape), data=np.zeros(shape))


def test_data_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="data must be finite, got 2 values"):
        kaem.plot_prior(make_prior(), data=[0.0, np.nan, np.inf])


def test_too_few_points_are_refused():
    with pytest.raises(ValueError, match="num_points must be at least 2, got 1"):
        kaem.plot_prior(make_prior(), num_points=1)


def test_nothing_is_drawn_when_refused():
    with pytest.raises(ValueError, match="data must be finite"):
        kaem.plot_prior(make_prior(), data=[np.nan])
    assert plt.get_fignums() == []


def test_import_does_not_load_matplotlib():
    code = "import sys, numpyro_kaem; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- bands ----------------------------------------------------------------------------


def make_draws(num_draws=40):
    basis = kaem.BSpline(-1.0, 4.0, num_basis=6)
    energy = kaem.Energy.init(jax.random.key(2), basis, (num_draws,), scale=0.5)
    return kaem.KAEMPrior(energy, dist.Normal(1.0, 2.0))


def filled(ax):
    """Lower and upper ends of the filled band, by the latent value."""
    vertices = ax.collections[0].get_paths()[0].vertices
    z = np.unique(vertices[:, 0])
    ends = [vertices[vertices[:, 0] == point, 1] for point in z]
    return z, np.array([[end.min(), end.max()] for end in ends])


@pytest.mark.long
def test_band_holds_quantiles_of_draws():
    draws = make_draws()
    z = np.linspace(-4.0, 6.0, 31)
    ax = kaem.plot_band(z, draws, level=0.5)
    single = [
        np.exp(
            kaem.KAEMPrior(
                kaem.Energy(draws.energy.basis, c), draws.reference
            ).log_prob(z)
        )
        for c in draws.energy.coefficients
    ]
    lower, median, upper = np.quantile(single, [0.25, 0.5, 0.75], axis=0)
    drawn = lines(ax)
    assert list(drawn) == ["posterior median"]
    assert_close(drawn["posterior median"][1], median, rtol=1e-4)
    points, ends = filled(ax)
    assert_close(points, z)
    assert_close(ends, np.stack([lower, upper], -1), rtol=1e-4)
    assert legend(ax) == ["posterior median", "posterior median, 50% interval"]
    assert ax.get_ylim()[0] == 0.0


def test_finished_band_is_drawn_as_it_is():
    z = np.array([0.0, 1.0, 3.0])
    band = Band(np.array([0.1, 0.2, 0.1]), np.array([0.2, 0.3, 0.2]), np.full(3, 0.4))
    ax = kaem.plot_band(z, band, label="fit", color="#009E73", linestyle=":")
    assert_close(lines(ax)["fit"][1], band.value)
    assert_close(filled(ax)[1], np.stack([band.lower, band.upper], -1))
    assert legend(ax) == ["fit", "fit, interval"]
    assert ax.get_lines()[0].get_color() == "#009E73"
    assert ax.get_lines()[0].get_linestyle() == ":"


@pytest.mark.parametrize("as_values", [False, True])
def test_band_beside_the_truth(as_values):
    z = np.linspace(-4.0, 6.0, 11)
    law = dist.Normal(1.0, 2.0)
    truth = np.exp(law.log_prob(z)) if as_values else law
    fig, ax = plt.subplots()
    same = kaem.plot_band(
        z, make_draws(), truth=truth, ax=ax, label="KAEM", xlabel="speed", ylabel="p"
    )
    assert same is ax
    assert plt.get_fignums() == [fig.number]
    assert_close(lines(ax)["truth"][1], np.exp(law.log_prob(z)))
    assert legend(ax) == ["KAEM", "KAEM, 90% interval", "truth"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("speed", "p")


@pytest.mark.parametrize(
    "z", [0.0, [1.0], [[0.0, 1.0]], [1.0, 0.0], [0.0, 0.0], [0.0, np.nan]]
)
def test_points_of_a_band_are_checked(z):
    with pytest.raises(ValueError, match="z must be finite increasing values"):
        kaem.plot_band(z, make_draws())


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0, np.nan])
def test_level_of_a_band_is_checked(level):
    with pytest.raises(ValueError, match="level must be between 0 and 1, got"):
        kaem.plot_band([0.0, 1.0], make_draws(), level=level)


@pytest.mark.parametrize("densities", [None, dist.Normal(), np.ones((3, 2))])
def test_band_of_wrong_type_is_refused(densities):
    with pytest.raises(TypeError, match="densities must be a KAEMPrior with a batch"):
        kaem.plot_band([0.0, 1.0], densities)


@pytest.mark.parametrize("batch_shape", [(), (2, 3), (0,)])
def test_band_needs_one_batch_of_draws(batch_shape):
    with pytest.raises(ValueError, match=r"batch shape \(num_draws,\), got"):
        kaem.plot_band([0.0, 1.0], make_prior(batch_shape))


def test_band_of_other_shape_is_refused():
    band = Band(np.zeros(3), np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match="densities must be a band of the shape of z"):
        kaem.plot_band([0.0, 1.0], band)


@pytest.mark.parametrize("truth", [np.ones(3), dist.Normal(jnp.zeros((2, 1)))])
def test_truth_of_other_shape_is_refused(truth):
    with pytest.raises(ValueError, match="truth must be one density, or its values"):
        kaem.plot_band([0.0, 1.0], make_draws(), truth=truth)
    assert plt.get_fignums() == []


def test_band_needs_one_axes():
    _, axes = plt.subplots(1, 2)
    with pytest.raises(ValueError, match="ax must hold 1 axes"):
        kaem.plot_band([0.0, 1.0], make_draws(), ax=axes)
