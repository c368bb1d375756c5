"""Posteriors by one call of ``sample_posterior``, beside posteriordb's reference draws.

posteriordb (https://github.com/stan-dev/posteriordb) publishes models, data and, for
some, 10,000 nearly independent draws by long runs of Stan. Each model here, written
anew in NumPyro, is sampled by one call with default settings. Each scalar parameter is
compared: the difference of the means in Monte Carlo standard errors, those of both
together, and the ratio of the standard deviations, ours over the reference's. Asked for
are at most 4 errors, and ratios within 3 % of 1 or within 4 of their own errors. The
size is the least effective one, of ours. Times include compilation.
"""

import argparse
import inspect
import json
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from _report import Report, start
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike
from numpyro import sample
from numpyro.diagnostics import effective_sample_size
from numpyro.distributions import constraints
from numpyro.infer import Predictive

from numpyro_kaem.infer import PosteriorSample, sample_posterior

# Largest difference of means, in errors, and of a ratio of standard deviations from 1.
MAX_ERRORS, MAX_RATIO = 4.0, 0.03


def flat(constraint: constraints.Constraint, *shape: int) -> dist.ImproperUniform:
    """Return the constant density on the whole support."""
    return dist.ImproperUniform(constraint, (), shape)


def regress(
    y: jax.Array, *regressors: jax.Array, sigma: dist.Distribution | None = None
) -> None:
    """Sample flat coefficients and the noise of a regression with an intercept."""
    design = jnp.stack([jnp.ones_like(y), *regressors], axis=1)
    beta = sample("beta", flat(constraints.real_vector, design.shape[1]))
    scale = sample("sigma", flat(constraints.positive) if sigma is None else sigma)
    sample("y", dist.Normal(design @ beta, scale), obs=y)


def eight_schools_centered(y: jax.Array, sigma: jax.Array) -> None:
    """Effects of coaching in eight schools, drawn given their mean and spread."""
    mu = sample("mu", dist.Normal(0.0, 5.0))
    tau = sample("tau", dist.HalfCauchy(5.0))
    theta = sample("theta", dist.Normal(mu, tau).expand(y.shape).to_event(1))
    sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_noncentered(y: jax.Array, sigma: jax.Array) -> None:
    """Sample the same effects as multiples of the spread."""
    mu = sample("mu", dist.Normal(0.0, 5.0))
    tau = sample("tau", dist.HalfCauchy(5.0))
    units = sample("units", dist.Normal(0.0, 1.0).expand(y.shape).to_event(1))
    theta = numpyro.deterministic("theta", mu + tau * units)
    sample("y", dist.Normal(theta, sigma), obs=y)


def low_dim_gauss_mix(y: jax.Array) -> None:
    """Two Normal components with ordered means."""
    mu = sample("mu", flat(constraints.ordered_vector, 2))
    numpyro.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu))
    sigma = sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = sample("theta", dist.Beta(5.0, 5.0))
    mixing = dist.Categorical(probs=jnp.stack([theta, 1 - theta]))
    sample("y", dist.MixtureSameFamily(mixing, dist.Normal(mu, sigma)), obs=y)


def hmm_example(y: jax.Array) -> None:
    """Two hidden states, summed out, whose means are ordered and positive."""
    rows = [sample(f"theta{i}", dist.Dirichlet(jnp.ones(2))) for i in (1, 2)]
    mu = sample("mu", flat(constraints.positive_ordered_vector, 2))
    numpyro.factor("mu_prior", dist.Normal(jnp.array([3.0, 10.0]), 1.0).log_prob(mu))
    moves = jnp.log(jnp.stack(rows))
    emitted = dist.Normal(mu, 1.0).log_prob(y[:, None])

    def forward(before: jax.Array, now: jax.Array) -> tuple[jax.Array, None]:
        return logsumexp(before[:, None] + moves, axis=0) + now, None

    last, _ = jax.lax.scan(forward, emitted[0], emitted[1:])
    numpyro.factor("y", logsumexp(last))


def kidscore_momhs(kid_score: jax.Array, mom_hs: jax.Array) -> None:
    """Test scores given whether the mother finished high school."""
    regress(kid_score, mom_hs, sigma=dist.HalfCauchy(2.5))


def kidscore_momiq(kid_score: jax.Array, mom_iq: jax.Array) -> None:
    """Test scores given the mother's."""
    regress(kid_score, mom_iq, sigma=dist.HalfCauchy(2.5))


def kidscore_momhsiq(
    kid_score: jax.Array, mom_hs: jax.Array, mom_iq: jax.Array
) -> None:
    """Test scores given both."""
    regress(kid_score, mom_hs, mom_iq, sigma=dist.HalfCauchy(2.5))


def kidscore_interaction(
    kid_score: jax.Array, mom_hs: jax.Array, mom_iq: jax.Array
) -> None:
    """Test scores given both and their product."""
    regress(kid_score, mom_hs, mom_iq, mom_hs * mom_iq, sigma=dist.HalfCauchy(2.5))


def earn_height(earn: jax.Array, height: jax.Array) -> None:
    """Earnings, in dollars, given height in inches."""
    regress(earn, height)


def logearn_height(earn: jax.Array, height: jax.Array) -> None:
    """Log earnings given height."""
    regress(jnp.log(earn), height)


def logearn_interaction(earn: jax.Array, height: jax.Array, male: jax.Array) -> None:
    """Log earnings given height, sex and their product."""
    regress(jnp.log(earn), height, male, height * male)


def mesquite(
    weight: jax.Array,
    diam1: jax.Array,
    diam2: jax.Array,
    canopy_height: jax.Array,
    total_height: jax.Array,
    density: jax.Array,
    group: jax.Array,
) -> None:
    """Weight of bushes given their measures."""
    regress(weight, diam1, diam2, canopy_height, total_height, density, group)


def logmesquite_logvash(
    weight: jax.Array,
    diam1: jax.Array,
    diam2: jax.Array,
    canopy_height: jax.Array,
    total_height: jax.Array,
    group: jax.Array,
) -> None:
    """Log weight of bushes given log volume, area, shape and height."""
    area, shape = jnp.log(diam1 * diam2), jnp.log(diam1 / diam2)
    volume = area + jnp.log(canopy_height)
    regress(jnp.log(weight), volume, area, shape, jnp.log(total_height), group)


def nes(
    partyid7: jax.Array,
    real_ideo: jax.Array,
    race_adj: jax.Array,
    educ1: jax.Array,
    gender: jax.Array,
    income: jax.Array,
    age_discrete: jax.Array,
) -> None:
    """Party preference of voters given eight regressors, three for groups of age."""
    ages = [(age_discrete == group).astype(partyid7.dtype) for group in (2, 3, 4)]
    regress(partyid7, real_ideo, race_adj, *ages, educ1, gender, income)


def kilpisjarvi(
    x: jax.Array,
    y: jax.Array,
    pmualpha: float,
    psalpha: float,
    pmubeta: float,
    psbeta: float,
) -> None:
    """Summer temperatures given the year, which is not centred."""
    alpha = sample("alpha", dist.Normal(pmualpha, psalpha))
    beta = sample("beta", dist.Normal(pmubeta, psbeta))
    sigma = sample("sigma", flat(constraints.positive))
    sample("y", dist.Normal(alpha + beta * x, sigma), obs=y)


def blr(X: jax.Array, y: jax.Array) -> None:
    """Regression on five regressors."""
    beta = sample("beta", dist.Normal(0.0, 10.0).expand([X.shape[1]]).to_event(1))
    sigma = sample("sigma", dist.HalfNormal(10.0))
    sample("y", dist.Normal(X @ beta, sigma), obs=y)


def ar_k(y: jax.Array, K: int) -> None:
    """Autoregression on the last K values."""
    alpha = sample("alpha", dist.Normal(0.0, 10.0))
    beta = sample("beta", dist.Normal(0.0, 10.0).expand([K]).to_event(1))
    sigma = sample("sigma", dist.HalfCauchy(2.5))
    before = jnp.stack([y[K - lag : len(y) - lag] for lag in range(1, K + 1)], axis=1)
    sample("y", dist.Normal(alpha + before @ beta, sigma), obs=y[K:])


def arma11(y: jax.Array) -> None:
    """Autoregression with a moving average of the errors."""
    mu = sample("mu", dist.Normal(0.0, 10.0))
    phi, theta = (sample(name, dist.Normal(0.0, 2.0)) for name in ("phi", "theta"))
    sigma = sample("sigma", dist.HalfCauchy(2.5))

    def step(error: jax.Array, pair: jax.Array) -> tuple[jax.Array, jax.Array]:
        error = pair[1] - (mu + phi * pair[0] + theta * error)
        return error, error

    # Before the first value comes the mean, without an error.
    pairs = jnp.stack([jnp.append(mu, y[:-1]), y], axis=1)
    _, errors = jax.lax.scan(step, jnp.zeros_like(y[0]), pairs)
    numpyro.factor("y", dist.Normal(0.0, sigma).log_prob(errors))


def garch11(y: jax.Array, sigma1: float) -> None:
    """Variances that depend on the last variance and the last error."""
    mu = sample("mu", flat(constraints.real))
    alpha0 = sample("alpha0", flat(constraints.positive))
    # Positive, with a sum of at most 1.
    shares = sample("shares", dist.Dirichlet(jnp.ones(3)))
    alpha1 = numpyro.deterministic("alpha1", shares[0])
    beta1 = numpyro.deterministic("beta1", shares[1])

    def step(variance: jax.Array, last: jax.Array) -> tuple[jax.Array, jax.Array]:
        variance = alpha0 + alpha1 * (last - mu) ** 2 + beta1 * variance
        return variance, variance

    first = jnp.full((), sigma1**2, y.dtype)
    _, variances = jax.lax.scan(step, first, y[:-1])
    sample("y", dist.Normal(mu, jnp.sqrt(jnp.append(first, variances))), obs=y)


def squared_exponential(x: jax.Array, diagonal: float | jax.Array) -> jax.Array:
    """Sample the length and the scale of a Gaussian process, and add a diagonal."""
    rho = sample("rho", dist.Gamma(25.0, 4.0))
    alpha = sample("alpha", dist.HalfNormal(2.0))
    distance = (x[:, None] - x) / rho
    return alpha**2 * jnp.exp(-0.5 * distance**2) + diagonal * jnp.eye(len(x))


def gp_regr(x: jax.Array, y: jax.Array) -> None:
    """Gaussian process with noise, summed out; sigma is the variance of the noise."""
    sigma = sample("sigma", dist.HalfNormal(1.0))
    covariance = squared_exponential(x, sigma)
    sample("y", dist.MultivariateNormal(0.0, covariance), obs=y)


def gp_pois_regr(x: jax.Array, k: jax.Array) -> None:
    """Log rates of counts as a Gaussian process."""
    root = jnp.linalg.cholesky(squared_exponential(x, 1e-10))
    units = sample("units", dist.Normal(0.0, 1.0).expand([len(x)]).to_event(1))
    f = numpyro.deterministic("f", root @ units)
    sample("k", dist.Poisson(jnp.exp(f)), obs=k)


MODELS: dict[str, Callable] = {
    "eight_schools-eight_schools_centered": eight_schools_centered,
    "eight_schools-eight_schools_noncentered": eight_schools_noncentered,
    "low_dim_gauss_mix-low_dim_gauss_mix": low_dim_gauss_mix,
    "hmm_example-hmm_example": hmm_example,
    "kidiq-kidscore_momhs": kidscore_momhs,
    "kidiq-kidscore_momiq": kidscore_momiq,
    "kidiq-kidscore_momhsiq": kidscore_momhsiq,
    "kidiq-kidscore_interaction": kidscore_interaction,
    "earnings-earn_height": earn_height,
    "earnings-logearn_height": logearn_height,
    "earnings-logearn_interaction": logearn_interaction,
    "mesquite-mesquite": mesquite,
    "mesquite-logmesquite_logvash": logmesquite_logvash,
    "nes2000-nes": nes,
    "kilpisjarvi_mod-kilpisjarvi": kilpisjarvi,
    "sblrc-blr": blr,
    "sblri-blr": blr,
    "arK-arK": ar_k,
    "arma-arma11": arma11,
    "garch-garch11": garch11,
    "gp_pois_regr-gp_regr": gp_regr,
    "gp_pois_regr-gp_pois_regr": gp_pois_regr,
}
QUICK = ("eight_schools-eight_schools_noncentered", "kidiq-kidscore_momhsiq")
# A diagonal of 1e-10 beside variances of 1 and more is lost in float32.
FLOAT64 = ("gp_pois_regr-gp_pois_regr",)


def read(path: Path) -> Any:
    """Content of a JSON file, as it is or alone in an archive."""
    if path.suffix != ".zip":
        return json.loads(path.read_text())
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(archive.namelist()[0]))


def load(database: Path, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read the data of a posterior, and its reference draws, one row per chain."""
    about = read(database / "posteriors" / f"{name}.json")
    data = read(database / "data" / "data" / f"{about['data_name']}.json.zip")
    folder = database / "reference_posteriors" / "draws" / "draws"
    chains = read(folder / f"{about['reference_posterior_name']}.json.zip")
    reference = {
        name: np.array([chain[name] for chain in chains], float) for name in chains[0]
    }
    return data, reference


def scalar(draws: Mapping[str, ArrayLike], name: str) -> np.ndarray:
    """Draws of a parameter that Stan calls, for instance, ``theta[2]``."""
    site, _, index = name.rstrip("]").partition("[")
    values = np.asarray(draws[site], np.float64)
    return values[..., int(index) - 1] if index else values


def sizes_of_chains(chains: np.ndarray) -> tuple[float, float]:
    """Effective sample sizes for the mean and for the variance."""
    squares = (chains - chains.mean()) ** 2
    return float(effective_sample_size(chains)), float(effective_sample_size(squares))


def effective_sizes(
    result: PosteriorSample, name: str, complete: Callable, num_samples: int
) -> tuple[float, float]:
    """Return the same of our draws."""
    if result.mcmc is not None:
        chains = result.mcmc.get_samples(group_by_chain=True)
        sizes = np.array(sizes_of_chains(scalar(chains, name)))
        return tuple(np.minimum(sizes, num_samples))
    if result.tempered is not None:
        values = scalar(complete(result.tempered.samples), name)
        squares = (values - values.mean()) ** 2
        sizes = result.tempered.effective_sizes(np.stack([values, squares], axis=1))
    elif result.importance is not None:
        sizes = np.full(2, float(result.importance.ess))
    # Draws from the particles add errors of their own.
    return tuple(1 / (1 / sizes + 1 / num_samples))


def moments(draws: np.ndarray, sizes: tuple[float, float]) -> tuple[float, ...]:
    """Mean and its error; standard deviation and its error."""
    mean, deviation = draws.mean(), draws.std(ddof=1)
    squares = (draws - mean) ** 2
    error = squares.std() / (2 * deviation * sizes[1] ** 0.5)
    return mean, deviation / sizes[0] ** 0.5, deviation, error


def compare(report: Report, name: str) -> None:
    """Sample one posterior, and print and add how it compares with the reference."""
    model = MODELS[name]
    content, reference = load(report.options.database, name)
    arguments: dict[str, Any] = {
        name: jnp.asarray(value, float) if isinstance(value, list) else value
        for name, value in content.items()
        if name in inspect.signature(model).parameters
    }
    key, num_samples = jax.random.key(report.options.seed), report.options.num_samples
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = sample_posterior(
            key, model, num_samples=num_samples, progress_bar=False, **arguments
        )
        jax.block_until_ready(result.samples)
    seconds = time.perf_counter() - begin

    def complete(draws: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Add the deterministic sites, which weighted draws do not carry."""
        return draws | Predictive(model, draws)(key, **arguments)

    samples = complete(result.samples)
    errors, ratios, ratio_errors, least_size = {}, {}, {}, np.inf
    for parameter, chains in reference.items():
        sizes = effective_sizes(result, parameter, complete, num_samples)
        least_size = min(least_size, *sizes)
        mean, error, deviation, its_error = moments(scalar(samples, parameter), sizes)
        true_mean, true_error, true_deviation, its_true_error = moments(
            chains, sizes_of_chains(chains)
        )
        errors[parameter] = (mean - true_mean) / np.hypot(error, true_error)
        ratios[parameter] = deviation / true_deviation
        ratio_errors[parameter] = (deviation - true_deviation) / np.hypot(
            its_error, its_true_error
        )
    reached = all(
        abs(errors[parameter]) <= MAX_ERRORS
        and (
            abs(ratios[parameter] - 1) <= MAX_RATIO
            or abs(ratio_errors[parameter]) <= MAX_ERRORS
        )
        for parameter in reference
    )
    worst_mean = max(errors, key=lambda parameter: abs(errors[parameter]))
    worst_ratio = max(ratios, key=lambda parameter: abs(ratios[parameter] - 1))
    precision = str(samples[next(iter(result.samples))].dtype)
    report.record(
        posterior=name,
        sampler=result.sampler,
        reliable=result.reliable,
        precision=precision,
        least_size=float(least_size),
        parameters=len(reference),
        mean_errors_of_each={name: float(of) for name, of in errors.items()},
        ratio_errors_of_each={name: float(of) for name, of in ratio_errors.items()},
        worst_mean=worst_mean,
        mean_errors=float(errors[worst_mean]),
        worst_ratio=worst_ratio,
        ratio=float(ratios[worst_ratio]),
        ratio_errors=float(ratio_errors[worst_ratio]),
        reached=bool(reached),
        seconds=seconds,
        told=result.report,
    )
    print(
        f"{name:40s} {result.sampler:16s} {'yes' if result.reliable else 'NO':8s} "
        f"{precision:9s} {least_size:6.0f} {errors[worst_mean]:6.1f} {worst_mean:10s} "
        f"{ratios[worst_ratio]:6.3f} {ratio_errors[worst_ratio]:6.1f} "
        f"{worst_ratio:10s} {'yes' if reached else 'NO':7s} {seconds:7.1f}",
        flush=True,
    )


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--database", type=Path, help="posterior_database")
    parser.add_argument("--num-samples", type=int, default=4000, help="draws of ours")
    parser.add_argument("--seed", type=int, default=0, help="of the random key")
    parser.add_argument("--only", nargs="+", choices=MODELS, help="these posteriors")
    report = start("posteriordb", __doc__, parser)
    if report.options.database is None:
        print(
            "Nothing is compared: give --database PATH, the folder posterior_database "
            "of a copy of https://github.com/stan-dev/posteriordb"
        )
        return
    print(
        f"{'posterior':40s} {'sampler':16s} reliable precision   size "
        f"{'means: errors':17s} {'deviations: ratio, errors':24s} reached seconds"
    )
    for name in report.options.only or (QUICK if report.quick else MODELS):
        with jax.enable_x64(jnp.zeros(()).dtype == jnp.float64 or name in FLOAT64):
            compare(report, name)
    for what, column in (("means", "mean_errors"), ("deviations", "ratio_errors")):
        rows = [list(row[f"{column}_of_each"].values()) for row in report.rows]
        every = np.concatenate(rows)
        print(
            f"{what} of {len(every)} parameters: differences in errors have mean "
            f"{every.mean():.2f} and root mean square {(every**2).mean() ** 0.5:.2f}"
        )
    report.save()


if __name__ == "__main__":
    main()
