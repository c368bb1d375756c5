"""Null shares and false signs in simulated two-groups models, beside ashr's model.

Effects are zero with a known probability, else from one of Stephens' (2017) densities,
and measured with a standard error of 1. The estimates are rounded to .02, so that equal
ones are given once, with counts. ``fit_marginal(..., atoms=(0.0,))`` learns the
share of zeros with the density. Beside it is the model of the R package ashr with its
default settings, written here: a mixture of zero-centred Normal densities on a grid of
widths and an atom, fitted by EM with nine units more at the atom.

A row is a mean over data sets: the null share, and at each rate the share of wrong
signs among the units whose s-value is at most that, with its standard error and what
their local rates claim.
"""

import time

import numpy as np
import numpyro.distributions as dist
from _report import start
from scipy.stats import norm

import numpyro_kaem as kaem
from numpyro_kaem.empirical_bayes import average_below

# Weights, means and standard deviations: those of table 1 of Stephens (2017), and one
# whose zeros can be told from the rest whatever its shape.
ALTERNATIVES = {
    "Normal": ([1.0], [0.0], [4.0]),
    "bimodal": ([0.5, 0.5], [-2.0, 2.0], [1.0, 1.0]),
    "modes apart": ([0.5, 0.5], [-4.0, 4.0], [1.0, 1.0]),
    "spiky": ([0.4, 0.2, 0.2, 0.2], [0.0] * 4, [0.25, 0.5, 1.0, 2.0]),
    "flat top": ([1 / 7] * 7, list(np.arange(-1.5, 2.0, 0.5)), [0.5] * 7),
}
RATES = (0.01, 0.05, 0.1)


def simulate(name: str, share: float, size: int, seed: int) -> tuple:
    """Effects, and estimates with a standard error of 1."""
    rng = np.random.default_rng(seed)
    weights, means, deviations = map(np.asarray, ALTERNATIVES[name])
    part = rng.choice(len(weights), size, p=weights)
    effects = rng.normal(means[part], deviations[part])
    effects = np.where(rng.random(size) < share, 0.0, effects)
    return effects, 0.02 * np.round(50 * (effects + rng.normal(size=size)))


def ours(x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Null share, local false sign rates, and the signs that are claimed."""
    x, kind, counts = np.unique(x, return_inverse=True, return_counts=True)
    # To a common size, with units that do not count: compiled once.
    missing = -len(x) % 1024
    x = np.append(x, np.zeros(missing))
    counts = np.append(counts, np.zeros(missing))
    units = kaem.unit_log_likelihood(lambda z: dist.Normal(z, 1.0), x)
    fit = kaem.fit_marginal(units, atoms=(0.0,), counts=counts)
    posterior = kaem.unit_posterior(fit.prior, units)
    below = np.asarray(posterior.cdf(0.0) - posterior.local_false_discovery_rate())
    sign = np.where(np.asarray(posterior.sf(0.0)) > below, 1, -1)
    rates = np.asarray(posterior.local_false_sign_rate(), float)
    return float(fit.atom_weights[0]), rates[kind], sign[kind]


def normal_mixture(x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Do the same by ashr's model."""
    x, kind, counts = np.unique(x, return_inverse=True, return_counts=True)
    largest = 2 * np.sqrt(max(np.max(x**2 - 1), 0.01))
    widths = largest * 2.0 ** (-0.5 * np.arange(np.ceil(2 * np.log2(largest / 0.1))))
    widths = np.append(0.0, widths)
    likelihood = norm.pdf(x[:, None], scale=np.sqrt(1 + widths**2))
    weights = np.full(len(widths), 1 / len(widths))
    extra = 9.0 * (widths == 0)
    for _ in range(5000):
        joint = likelihood * weights
        responsibility = joint / joint.sum(1, keepdims=True)
        new = counts @ responsibility + extra
        new = new / new.sum()
        done = np.max(np.abs(new - weights)) < 1e-7
        weights = new
        if done:
            break
    shrinkage = widths[1:] ** 2 / (1 + widths[1:] ** 2)
    above = norm.cdf(x[:, None] * np.sqrt(shrinkage))
    parts = responsibility[:, 1:]
    above, below = (parts * above).sum(1), (parts * (1 - above)).sum(1)
    rates = responsibility[:, 0] + np.minimum(above, below)
    sign = np.where(above > below, 1, -1)
    return float(weights[0]), rates[kind], sign[kind]


def main() -> None:
    """Print and write the table."""
    report = start("two_groups", __doc__)
    size, repeats = (1000, 1) if report.quick else (10_000, 4)
    shares = (0.8,) if report.quick else (0.5, 0.8, 0.95)
    print(
        f"{'alternative':12s}{'zero':>6s}  {'model':8s}{'share':>7s}{'s':>6s}"
        + "".join(f"{f'wrong, claimed at {rate:g}':>28s}" for rate in RATES)
    )
    for name in ALTERNATIVES:
        for share in shares:
            for model in (ours, normal_mixture):
                begin = time.perf_counter()
                found = []
                wrong = {rate: np.zeros(3) for rate in RATES}
                for seed in range(repeats):
                    effects, x = simulate(name, share, size, seed)
                    estimate, rates, sign = model(x)
                    found.append(estimate)
                    for rate, sums in wrong.items():
                        few = np.asarray(average_below(rates)) <= rate
                        is_wrong = np.sign(effects[few]) != sign[few]
                        sums += [few.sum(), is_wrong.sum(), rates[few].sum()]
                seconds = (time.perf_counter() - begin) / repeats
                row = f"{name:12s}{share:6.2f}  "
                row += f"{'ours' if model is ours else 'ashr':8s}"
                row += f"{np.mean(found):7.3f}{seconds:6.1f}"
                record = {}
                for rate, (called, errors, claimed) in wrong.items():
                    count = max(float(called), 1.0)
                    observed, claim = errors / count, claimed / count
                    error = np.sqrt(max(claim * (1 - claim), 1e-12) / count)
                    row += f"{observed:13.4f} ({error:.4f}) {claim:.4f}"
                    record[f"{rate:g}"] = (called, observed, error, claim)
                print(row, flush=True)
                report.record(
                    alternative=name,
                    null_share=share,
                    model="fit_marginal" if model is ours else "Normal mixture",
                    estimates=found,
                    seconds=seconds,
                    rates=record,
                )
    report.save()


if __name__ == "__main__":
    main()
