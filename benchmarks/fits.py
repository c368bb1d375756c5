"""Densities learned from samples, compared with kernel estimates and Gaussian mixtures.

Each is fitted and then evaluated at 1,000 points, as a prior would be. SciPy's kernels
have the bandwidth of Scott's rule, scikit-learn's the same with a tree of tolerance
1e-4; its mixture has 10 components. ``fit_marginal`` learns the prior of many noisy
groups. KAEM fits are compiled beforehand; the first fit of a new size also compiles.
"""

import time
from collections.abc import Callable

import jax
import numpy as np
import numpyro.distributions as dist
from _report import Report, start
from _timing import median_seconds
from scipy.stats import gaussian_kde
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity

import numpyro_kaem as kaem


def draw_samples(size: int) -> np.ndarray:
    """Draw from a skewed distribution with two modes."""
    rng = np.random.default_rng(0)
    first = rng.random(size) < 0.3
    return np.where(first, rng.normal(-2, 0.4, size), rng.gamma(4.0, 0.5, size))


def densities(report: Report, repeats: int) -> None:
    """One density, from small and from large samples."""
    points = np.linspace(-4, 6, 1000)
    for size in (1000,) if report.quick else (1000, 100_000):
        samples = draw_samples(size)
        width = samples.std() * size**-0.2

        def ours(samples: np.ndarray = samples) -> jax.Array:
            return kaem.fit_density(samples, support="real").log_prob(points)

        begin = time.perf_counter()
        jax.block_until_ready(ours())
        first = time.perf_counter() - begin
        column = samples[:, None]
        functions: dict[str, Callable] = {
            "fit_density": ours,
            "SciPy gaussian_kde": lambda s=samples: gaussian_kde(s)(points),
            "scikit-learn KernelDensity": lambda c=column, w=width: (
                KernelDensity(bandwidth=w, rtol=1e-4)
                .fit(c)
                .score_samples(points[:, None])
            ),
            "scikit-learn GaussianMixture of 10": lambda c=column: (
                GaussianMixture(10, random_state=0)
                .fit(c)
                .score_samples(points[:, None])
            ),
        }
        seconds = median_seconds(functions, repeats)
        for peer in list(functions)[1:]:
            report.compare(
                f"fit {size:,} samples, 1,000 log densities",
                peer,
                seconds["fit_density"],
                seconds[peer],
                compile_seconds=first - seconds["fit_density"],
            )


def columns(report: Report, repeats: int) -> None:
    """Many densities in one call, and one after the other."""
    samples = np.random.default_rng(1).normal(size=(1000, 50 if report.quick else 200))
    num_columns = samples.shape[1]
    functions = {
        "at once": lambda: kaem.fit_density(samples, support="real").log_normalizer,
        "one by one": lambda: [
            kaem.fit_density(column, support="real").log_normalizer
            for column in samples.T[:5]
        ],
    }
    seconds = median_seconds(functions, repeats)
    report.compare(
        f"fit {num_columns} columns of 1,000 samples",
        "one call for each",
        seconds["at once"],
        seconds["one by one"] * num_columns / 5,
        note="5 calls timed",
    )


def marginals(report: Report, repeats: int) -> None:
    """Learn the prior of many groups, each observed with noise."""
    num_groups = 200 if report.quick else 2000
    rng = np.random.default_rng(2)
    truth = np.where(rng.random(num_groups) < 0.5, -1.0, 1.5)
    truth = truth + 0.3 * rng.normal(size=num_groups)
    errors = rng.uniform(0.2, 1.0, num_groups)
    measured = truth + errors * rng.normal(size=num_groups)
    basis = kaem.BSpline(-4.0, 4.0, 20)

    units = kaem.unit_log_likelihood(lambda z: dist.Normal(z, errors), measured)

    def ours() -> jax.Array:
        fit = kaem.fit_marginal(units, basis, dist.Normal(0.0, 2.0))
        return fit.prior.log_normalizer

    begin = time.perf_counter()
    jax.block_until_ready(ours())
    first = time.perf_counter() - begin
    seconds = median_seconds(
        {
            "ours": ours,
            "kernel": lambda: gaussian_kde(measured)(np.linspace(-4, 4, 1000)),
        },
        repeats,
    )
    report.compare(
        f"fit_marginal, {num_groups:,} noisy groups",
        "SciPy kernels, noise ignored",
        seconds["ours"],
        seconds["kernel"],
        compile_seconds=first - seconds["ours"],
        note="another job: the kernels keep the noise",
    )


def main() -> None:
    """Print and write the table."""
    report = start("fits", __doc__)
    report.heading()
    repeats = 3 if report.quick else 7
    densities(report, repeats)
    columns(report, repeats)
    marginals(report, repeats)
    report.save()


if __name__ == "__main__":
    main()
