"""Mixtures of products from samples, against their parts computed another way."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS

import numpyro_kaem as kaem
from numpyro_kaem.estimation import mixture_em
from numpyro_kaem.estimation.mixture_em import k_means
from tests.helpers import assert_close
from tests.joint_distributions import DISTRIBUTIONS

# That some are left out is said, and tested, once.
pytestmark = pytest.mark.filterwarnings("ignore:.* components were left without")

GRID = kaem.BSpline([-3.0, 1.0], [5.0, 9.0], num_basis=10)
REFERENCE = dist.Normal(jnp.array([1.0, 5.0]), 2.0)


def ring_samples(size=400, seed=0):
    return DISTRIBUTIONS["ring"].sample(np.random.default_rng(seed), size)


# One object for the module: its compiled functions are used again.
@pytest.fixture(scope="module")
def ring():
    return kaem.fit_mixture(ring_samples(), 6, GRID, REFERENCE, pseudo_count=0.25)


# --- the fit -------------------------------------------------------------------------


@pytest.mark.long
def test_one_component_is_the_columns_of_fit_density():
    samples = ring_samples()
    mixture = kaem.fit_mixture(samples, 1, GRID, REFERENCE, penalty=[1e-6, 1e-4])
    with pytest.warns(UserWarning, match="only the marginals"):
        columns = kaem.fit_density(samples, GRID, REFERENCE, penalty=[1e-6, 1e-4])
    z = ring_samples(50, seed=1)
    expected = jnp.sum(columns.log_prob(z), axis=-1)
    assert_close(mixture.log_prob(z), expected, rtol=1e-3, atol=1e-3)


def problem_of(samples, shares=None):
    shares = np.full(len(samples), 1 / len(samples)) if shares is None else shares
    parameters = kaem.KAEMPrior(
        kaem.Energy(GRID, jnp.zeros((2, 10))), REFERENCE
    )._parameters
    return mixture_em.make_problem(GRID, parameters, samples, shares, 400.0)


def test_expectation_is_bayes_rule(ring):
    samples = ring_samples(300, seed=1)
    shares = np.random.default_rng(2).dirichlet(np.ones(300))
    log_weights = ring.mixing_distribution.logits
    components = ring.component_distribution.base_dist
    value, sizes, sums = mixture_em.expect(
        problem_of(samples, shares), log_weights, components.energy.coefficients
    )
    joint = np.asarray(log_weights) + np.asarray(
        components.log_prob(samples[:, None, :]).sum(-1), float
    )
    total = np.logaddexp.reduce(joint, axis=-1)
    members = shares[:, None] * np.exp(joint - total[:, None])
    features = np.asarray(GRID(jnp.asarray(samples)), float)
    assert_close(value, np.sum(shares * total), rtol=1e-4)
    assert_close(sizes, members.sum(0), rtol=1e-3, atol=1e-5)
    expected = np.einsum("nk,ndg->kdg", members, features)
    assert_close(sums, expected, rtol=1e-3, atol=1e-5)


def test_objective_does_not_decrease_once_penalties_are_held():
    samples = ring_samples()
    labels = k_means(np.random.default_rng(0), samples, np.ones(400), 6)
    problem = problem_of(samples)
    for penalty, num_chosen in ((None, 16), (np.array([1e-6, 1e-5]), 0)):
        division = mixture_em.from_labels(problem, labels, 6)
        fit = mixture_em.fit_product_mixture(problem, division, penalty, 1.0, 40, 1e-9)
        objective = np.array(fit.objective)
        assert len(objective) > num_chosen + 5
        assert fit.num_chosen == num_chosen
        noise = 20 * np.finfo(np.asarray(fit.log_weights).dtype).eps
        assert np.all(np.diff(objective[num_chosen:]) > -noise)
        assert objective[-1] > objective[num_chosen]
    for max_steps in (1, 3):
        with pytest.warns(UserWarning, match=f"max_steps={max_steps} "):
            kaem.fit_mixture(samples, 6, GRID, REFERENCE, max_steps=max_steps)


def test_clusters_are_found():
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    truth = rng.integers(0, 3, 300)
    points = centres[truth] + 0.3 * rng.normal(size=(300, 2))
    labels = k_means(np.random.default_rng(1), points, np.ones(300), 3)
    pairs = {(int(a), int(b)) for a, b in zip(truth, labels, strict=True)}
    assert len(pairs) == 3
    # A point without weight is no centre and has no pull.
    weights = (truth != 2).astype(float)
    labels = k_means(np.random.default_rng(1), points, weights, 2)
    assert len({(int(a), int(b)) for a, b in zip(truth, labels, strict=True)}) == 3


# --- the distribution -----------------------------------------------------------------


def test_integrates_to_one_and_draws_follow(ring, key):
    axes = np.linspace(-7.0, 9.0, 301), np.linspace(-3.0, 13.0, 301)
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    cell = (16 / 300) ** 2
    density = np.exp(np.asarray(ring.log_prob(points), float))
    assert abs(density.sum() * cell - 1) < 1e-4
    draws = np.asarray(ring.sample(key, (20_000,)), float)
    mean = cell * density @ points
    error = draws.std(0) / np.sqrt(len(draws))
    assert np.all(np.abs(draws.mean(0) - mean) < 4.5 * error)
    product = np.prod(draws - mean, axis=-1)
    covariance = cell * density @ np.prod(points - mean, axis=-1)
    error = product.std() / np.sqrt(len(draws))
    assert abs(product.mean() - covariance) < 4.5 * error
    log_prob = np.asarray(ring.log_prob(draws), float)
    entropy = -cell * np.sum(np.where(density > 0, density * np.log(density), 0))
    error = log_prob.std() / np.sqrt(len(draws))
    assert abs(log_prob.mean() + entropy) < 4.5 * error
    # Dependence is kept.
    test = ring_samples(2000, seed=3)
    with pytest.warns(UserWarning, match="only the marginals"):
        columns = kaem.fit_density(ring_samples(), GRID, REFERENCE)
    independent = float(columns.log_prob(test).sum(-1).mean())
    assert float(ring.log_prob(test).mean()) > independent + 0.2


@pytest.mark.long
def test_numpyro_citizen(ring, key):
    assert (ring.batch_shape, ring.event_shape) == ((), (2,))
    z = ring.sample(key, (5,))
    jitted = jax.jit(lambda distribution, z: distribution.log_prob(z))(ring, z)
    assert_close(jitted, ring.log_prob(z), rtol=1e-4, atol=1e-5)
    by_row = jax.vmap(ring.log_prob)(z)
    assert_close(by_row, ring.log_prob(z), rtol=1e-4, atol=1e-5)

    def model():
        z = numpyro.sample("z", ring)
        numpyro.sample("y", dist.Normal(z.sum(), 1.0), obs=9.0)

    mcmc = MCMC(NUTS(model), num_warmup=100, num_samples=100, progress_bar=False)
    mcmc.run(key)
    assert np.all(np.isfinite(mcmc.get_samples()["z"]))
    assert abs(float(mcmc.get_samples()["z"].sum(-1).mean()) - 8.5) < 1.5


# --- options -------------------------------------------------------------------------


@pytest.mark.long
def test_keys_and_starts():
    """The same key gives the same fit, and more starts do not lose."""
    samples = ring_samples()
    fits = [
        kaem.fit_mixture(samples, 6, GRID, REFERENCE, rng_key=k).log_prob(samples)
        for k in (None, jax.random.key(0), jax.random.PRNGKey(0), jax.random.key(7))
    ]
    assert_close(fits[1], np.asarray(fits[0]), rtol=0, atol=0)
    assert_close(fits[2], np.asarray(fits[0]), rtol=0, atol=0)
    assert not np.allclose(fits[3], fits[0])
    one, three = (
        kaem.fit_mixture(
            samples, 6, GRID, REFERENCE, penalty=1e-5, num_starts=n, max_steps=1000
        )
        for n in (1, 3)
    )
    gain = three.log_prob(samples).mean() - one.log_prob(samples).mean()
    # The likelihood, without the penalty, may differ the other way by a little.
    assert float(gain) > -0.01


def test_candidates_are_compared():
    mixture = kaem.fit_mixture(ring_samples(), [1, 6], GRID, REFERENCE, num_folds=2)
    assert len(mixture.mixing_distribution.logits) > 1
    # Samples left out judge: those of one component ask for no more.
    samples = np.random.default_rng(0).normal([1.0, 5.0], 1.0, (400, 2))
    mixture = kaem.fit_mixture(samples, [1, 6], GRID, REFERENCE, num_folds=2)
    assert len(mixture.mixing_distribution.logits) == 1


@pytest.mark.long
def test_proportions_follow_weights_and_empty_components_go():
    rng = np.random.default_rng(0)
    group = np.arange(400) % 2
    samples = np.where(group == 0, -1.0, 3.0)[:, None] + 0.3 * rng.normal(size=(400, 2))
    samples[:, 1] += 4.0
    weights = np.where(group == 0, 3.0, 1.0)
    mixture = kaem.fit_mixture(samples, 6, GRID, REFERENCE, weights=weights)
    of_first = np.asarray(mixture.component_distribution.mean[:, 0]) < 1.0
    proportions = np.asarray(mixture.mixing_distribution.probs)
    assert abs(proportions[of_first].sum() - 0.75) < 0.01
    without = kaem.fit_mixture(
        samples, 1, GRID, REFERENCE, weights=(group == 0).astype(float)
    )
    assert float(without.mean[0]) < -0.9
    # Empty components are left out.
    samples = np.repeat([[0.0, 4.0], [1.0, 6.0], [3.0, 5.0]], 20, axis=0)
    with pytest.warns(UserWarning, match=r"3 of 6 components were left"):
        mixture = kaem.fit_mixture(samples, 6, GRID, REFERENCE, rounding="none")
    assert mixture.mixing_distribution.logits.shape == (3,)
    assert np.all(np.isfinite(mixture.log_prob(samples)))


@pytest.mark.long
@pytest.mark.parametrize("support", ["positive", (0.0, 30.0)])
def test_supports_and_one_dimension(support, key):
    samples = np.random.default_rng(0).gamma(3.0, 2.0, size=(300, 1))
    basis = kaem.BSpline(0.0, 30.0, num_basis=10)
    mixture = kaem.fit_mixture(samples, 2, basis, support=support)
    assert mixture.event_shape == (1,)
    draws = mixture.sample(key, (1000,))
    assert bool(jnp.all(mixture.support(draws)))
    assert abs(float(draws.mean()) - 6.0) < 0.6
    assert np.all(np.isfinite(mixture.log_prob(jnp.array([[1e-3], [29.0]]))))


# --- few samples, and a start --------------------------------------------------------


def test_pseudo_count_is_samples_of_all():
    """Of two clusters, whose smooth energies are quadratic."""
    rng = np.random.default_rng(0)
    low, high = (c + 0.5 * rng.normal(size=(n, 1)) for c, n in ((-2.5, 20), (2.5, 60)))
    samples = np.concatenate([low, high])
    basis, reference = kaem.BSpline(-5.0, 5.0, num_basis=12), dist.Normal(0.0, 3.0)
    for count in (0.0, 1.0):
        mixture = kaem.fit_mixture(
            samples, 2, basis, reference, penalty=1e3, pseudo_count=count
        )
        components = mixture.component_distribution.base_dist
        order = np.argsort(components.mean[:, 0])
        for own, index in zip((low, high), order, strict=True):
            total = len(own) + count
            mean = (own.sum() + count * samples.mean()) / total
            square = (np.sum(own**2) + count * np.mean(samples**2)) / total
            deviation = np.sqrt(components.variance[index, 0])
            # The weak last term of the penalty widens them a little.
            assert_close(deviation, np.sqrt(square - mean**2), rtol=0.12)


def test_goes_on_from_a_start(ring):
    samples = ring_samples()
    options = {"start": ring, "pseudo_count": 0.25}
    again = kaem.fit_mixture(samples, 6, GRID, REFERENCE, **options)
    # The components keep their places.
    fitted, given = (
        np.asarray(distribution.component_distribution.base_dist.mean)
        for distribution in (again, ring)
    )
    assert_close(fitted, given, rtol=0, atol=0.1)
    gain = again.log_prob(samples).mean() - ring.log_prob(samples).mean()
    assert abs(float(gain)) < 0.01
    # It needs no steps to be where the start was; clusters would.
    with pytest.warns(UserWarning, match="max_steps=1 "):
        near = kaem.fit_mixture(samples, 6, None, REFERENCE, max_steps=1, **options)
    assert_close(
        near.log_prob(samples).mean(), ring.log_prob(samples).mean(), atol=0.05
    )
    # Components without samples are kept.
    logits = ring.mixing_distribution.logits.at[2].set(-60.0)
    poor = dist.MixtureSameFamily(
        dist.Categorical(logits=logits), ring.component_distribution
    )
    again = kaem.fit_mixture(samples, 6, GRID, REFERENCE, start=poor)
    share = float(again.mixing_distribution.probs[2])
    assert_close(share, 0.5 / len(samples), rtol=0.01)
    # A start that does not fit.
    other = kaem.BSpline(-3.0, 9.0, num_basis=10)
    for count, basis, message in (
        (5, GRID, "num_components must be that of start, 6, got"),
        ([6, 7], GRID, "num_components must be that of start"),
        (6, other, "start must have the basis"),
    ):
        with pytest.raises(ValueError, match=message):
            kaem.fit_mixture(samples, count, basis, REFERENCE, start=ring)


# --- errors --------------------------------------------------------------------------

PAIRS = np.array([[1.0, 4.0], [2.0, 5.0], [3.0, 7.0]])


@pytest.mark.parametrize(
    ("samples", "num_components", "options", "error", "message"),
    [
        (PAIRS[:, 0], 2, {}, ValueError, r"shape \(n, dim\), got \(3,\)"),
        (PAIRS[None], 2, {}, ValueError, r"shape \(n, dim\), got \(1, 3, 2\)"),
        (PAIRS * np.nan, 2, {}, ValueError, "samples must be finite"),
        (PAIRS, 4, {}, ValueError, "at most the number of samples .* 3, got 4"),
        (PAIRS, 0, {}, ValueError, "num_components must be a positive"),
        (PAIRS, 2.0, {}, TypeError, "num_components must be a positive"),
        (PAIRS, [], {}, ValueError, "or several of them"),
        (PAIRS, "two", {}, ValueError, "or several of them"),
        (PAIRS, [1, 2], {"num_folds": 4}, ValueError, "num_folds must be at most"),
        (PAIRS, [1, 2], {"num_folds": 1}, ValueError, "num_folds must be an integer"),
        (PAIRS, 2, {"weights": [1.0, 0.0, 0.0]}, ValueError, "positive weight, 1"),
        (PAIRS, 2, {"weights": PAIRS}, ValueError, r"weights must have shape \(3,\)"),
        (PAIRS, 2, {"weights": [1, 1, -1]}, ValueError, "weights .* not negative"),
        (PAIRS, 2, {"support": (1.5, 9.0)}, ValueError, "got 1 of 6 outside"),
        (PAIRS, 2, {"penalty": -1.0}, ValueError, "penalty must be"),
        (PAIRS, 2, {"penalty": [1.0] * 3}, ValueError, "penalty must broadcast"),
        (PAIRS, 2, {"rng_key": 3}, TypeError, "rng_key must be one random key"),
        (PAIRS, 2, {"num_starts": 0}, ValueError, "num_starts must be"),
        (PAIRS, 2, {"max_steps": 2.5}, TypeError, "max_steps must be"),
        (PAIRS, 2, {"tolerance": 0.0}, ValueError, "tolerance must be a finite"),
        (PAIRS, 2, {"tolerance": "small"}, TypeError, "tolerance must be a finite"),
        (PAIRS, 2, {"pseudo_count": -1.0}, ValueError, "pseudo_count must be .* >= 0"),
        (PAIRS, 2, {"start": REFERENCE}, TypeError, "start must be a MixtureSameFam"),
        (PAIRS, 2, {"basis": 3}, TypeError, "basis must be"),
        (PAIRS, 2, {"reference": 3}, TypeError, "reference must be"),
    ],
)
def test_bad_input(samples, num_components, options, error, message):
    with pytest.raises(error, match=message):
        kaem.fit_mixture(samples, num_components, **options)
