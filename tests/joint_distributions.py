"""Laws of two dimensions with known densities, which are far from products."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class JointLaw:
    """Draws and log density of a law of points ``(n, 2)``."""

    sample: Callable[[np.random.Generator, int], np.ndarray]
    log_prob: Callable[[np.ndarray], np.ndarray]


def _rotation(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _moved(law, matrix, shift):
    """Law of ``matrix @ x + shift``."""
    inverse, log_det = np.linalg.inv(matrix), np.linalg.slogdet(matrix)[1]
    return JointLaw(
        lambda rng, n: law.sample(rng, n) @ matrix.T + shift,
        lambda x: law.log_prob((x - shift) @ inverse.T) - log_det,
    )


def _banana():
    """Second coordinate about the square of the first."""

    def sample(rng, n):
        x = rng.normal(size=n)
        return np.stack([x, rng.normal(0.6 * x**2, 0.5)], axis=-1)

    def log_prob(x):
        return stats.norm.logpdf(x[:, 0]) + stats.norm.logpdf(
            x[:, 1], 0.6 * x[:, 0] ** 2, 0.5
        )

    return JointLaw(sample, log_prob)


def _arc(radius, width, angles):
    """Normal radius, and an angle of a SciPy law on an interval of at most a turn."""

    def sample(rng, n):
        r = rng.normal(radius, width, n)
        angle = angles.rvs(n, random_state=np.random.RandomState(rng.integers(2**31)))
        return r[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)

    def log_prob(x):
        r = np.hypot(x[:, 0], x[:, 1])
        # The angle in the turn that starts where its law does; no mass is below r = 0.
        start = angles.support()[0]
        angle = start + np.mod(np.arctan2(x[:, 1], x[:, 0]) - start, 2 * np.pi)
        return stats.norm.logpdf(r, radius, width) - np.log(r) + angles.logpdf(angle)

    return JointLaw(sample, log_prob)


def _moons():
    """Two arcs of most of a half turn, the lower one moved into the upper one."""
    angles = stats.beta(2.0, 2.0, -0.2, np.pi + 0.4)
    upper = _arc(1.0, 0.15, angles)
    lower = _moved(upper, _rotation(np.pi), np.array([1.0, 0.4]))

    def sample(rng, n):
        chosen = rng.random(n) < 0.4
        return np.where(chosen[:, None], upper.sample(rng, n), lower.sample(rng, n))

    def log_prob(x):
        with np.errstate(divide="ignore"):
            return np.logaddexp(
                np.log(0.4) + upper.log_prob(x), np.log(0.6) + lower.log_prob(x)
            )

    return JointLaw(sample, log_prob)


DISTRIBUTIONS = {
    "banana": _moved(_banana(), _rotation(0.5), np.array([3.0, -1.0])),
    "ring": _moved(
        _arc(2.0, 0.3, stats.uniform(0.0, 2 * np.pi)), np.eye(2), np.array([1.0, 5.0])
    ),
    "moons": _moved(
        _moons(), np.array([[1.0, 0.5], [0.0, 1.5]]), np.array([-2.0, 1.0])
    ),
}
