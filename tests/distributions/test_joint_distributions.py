"""Joint forms fitted to draws of known density: close to it, and consistent."""

import warnings

import jax
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

import numpyro_kaem as kaem
from tests.joint_distributions import DISTRIBUTIONS

pytestmark = [pytest.mark.long, pytest.mark.optimised]

GAP = 0.05
"""Nats below the held-out log likelihood of the true distribution."""
FORMS = {
    "mixture": lambda samples: kaem.fit_mixture(samples, 20),
    "autoregressive": kaem.fit_autoregressive,
}


def accuracy(first, second, rng):
    """Share of held-out points that neighbours assign to the right one of two sets."""
    points = np.concatenate([first, second])
    labels = np.repeat([0, 1], [len(first), len(second)])
    order = rng.permutation(len(points))
    train, test = np.split(order, 2)
    classifier = KNeighborsClassifier(50).fit(points[train], labels[train])
    return classifier.score(points[test], labels[test])


def accepted(log_prob, low, high, rng, count):
    """Draws of a density by rejection from a box."""
    points = rng.uniform(low, high, size=(100 * count, 2))
    density = np.exp(np.asarray(log_prob(points), float))
    points = points[rng.random(len(points)) * density.max() < density]
    assert len(points) >= count
    return points[:count]


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_reaches_the_truth(name, form, key):
    rng = np.random.default_rng(1)
    train, test = (DISTRIBUTIONS[name].sample(rng, size) for size in (5000, 20_000))
    truth = DISTRIBUTIONS[name].log_prob(test).mean()
    with warnings.catch_warnings():
        # Components that a distribution does not need go, and a mixture tells.
        warnings.filterwarnings("ignore", message=".*left without samples")
        distribution = FORMS[form](train)
    gap = truth - float(distribution.log_prob(test).mean())
    assert gap < GAP
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="only the marginals")
        independent = kaem.fit_density(train)
    assert truth - float(independent.log_prob(test).sum(-1).mean()) > 4 * GAP
    # Nobody tells its draws from draws of its own log_prob, and hardly from the truth.
    draws = np.asarray(distribution.sample(key, (4000,)))
    margin = 0.3 * np.ptp(train, axis=0)
    box = (train.min(0) - margin, train.max(0) + margin)
    own = accepted(jax.jit(distribution.log_prob), *box, rng, 4000)
    assert abs(accuracy(draws, own, rng) - 0.5) < 4.5 * 0.5 / np.sqrt(4000)
    assert accuracy(draws, test[:4000], rng) < 0.55
