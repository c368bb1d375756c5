"""Log evidence of well-separated modes and others, beside BlackJAX and dynesty.

TemperedSMC runs a NumPyro model at its defaults. BlackJAX's adaptive tempered
sequential Monte Carlo has the density written by hand and the best of 8 settings on
each target: MALA or Hamiltonian Monte Carlo, two step sizes, 2,000 or 10,000 particles;
the best is that whose time, multiplied by its mean squared error in three runs, is
least. dynesty's nested sampling, with the likelihood compiled, draws uniformly within
its bounds or by random walks, the better of the two. All run several times with new
keys, compiled beforehand. The time of a run is multiplied by its mean squared error
over a goal: the time of as many independent runs, averaged, as reach the goal. The
evidence is known in closed form or by quadrature.
"""

# isort: off
# Before others start JAX: it sets a flag of the compiler.
from numpyro_kaem.infer import TemperedSMC

# isort: on
import time
import warnings
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import blackjax
import dynesty
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from _report import Report, start
from blackjax.smc import resampling
from scipy import integrate, special, stats

# Goals of the root mean squared error, of the log evidence and of a mass.
GOALS = (0.05, 0.02)
NUM_MOVES, NUM_LEAPS, NUM_LIVE = 5, 8, 500

Run = Callable[[int], tuple[float, float]]
"""From a seed to the log evidence and the mass of a mode, NaN if there is none."""


class Target(NamedTuple):
    """Independent priors of the coordinates, and a likelihood."""

    name: str
    dim: int
    prior: dist.Distribution  # Normal about 0, or Uniform.
    log_likelihood: Callable[[jax.Array], jax.Array]
    log_evidence: float
    scale: float  # Roughly the posterior's within a mode, unconstrained.
    mass: float = np.nan  # Of the first coordinate above 0.


def normal(x: jax.Array, mean: jax.Array | float, scale: float) -> jax.Array:
    """Log density of independent Normals."""
    return dist.Normal(mean, scale).log_prob(x).sum()


def two_modes(dim: int) -> Target:
    """Near 1 with mass .8, near -1 with mass .2."""

    def log_likelihood(x: jax.Array) -> jax.Array:
        first = jnp.log(0.8) + normal(x, 1.0, 0.3)
        return jnp.logaddexp(first, jnp.log(0.2) + normal(x, -1.0, 0.3))

    truth = dim * stats.norm(0.0, 1.09**0.5).logpdf(1.0)
    prior = dist.Normal(0.0, 1.0)
    return Target(f"two modes, {dim}", dim, prior, log_likelihood, truth, 0.3, 0.8)


def eggbox() -> Target:
    """Eighteen modes in a square (Feroz, Hobson and Bridges 2009)."""

    def log_likelihood(x: jax.Array) -> jax.Array:
        return (2 + jnp.prod(jnp.cos(x / 2))) ** 5

    wave = np.cos((np.arange(4000) + 0.5) / 4000 * 5 * np.pi)
    truth = special.logsumexp((2 + wave[:, None] * wave) ** 5) - 2 * np.log(4000)
    prior = dist.Uniform(0.0, 10 * np.pi)
    return Target("eggbox, 2", 2, prior, log_likelihood, truth, 0.015)


def shells(dim: int) -> Target:
    """Two thin shells (Feroz, Hobson and Bridges 2009)."""
    centre = jnp.zeros(dim).at[0].set(3.5)

    def shell(x: jax.Array) -> jax.Array:
        return normal(jnp.sqrt(jnp.sum(x**2) + 1e-12), 2.0, 0.1)

    def log_likelihood(x: jax.Array) -> jax.Array:
        return jnp.logaddexp(shell(x - centre), shell(x + centre))

    radial = integrate.quad(
        lambda r: r ** (dim - 1) * stats.norm.pdf(r, 2.0, 0.1), 1.0, 3.0
    )[0]
    surface = np.log(2) + dim / 2 * np.log(np.pi) - special.gammaln(dim / 2)
    truth = np.log(2) + surface + np.log(radial) - dim * np.log(12)
    prior = dist.Uniform(-6.0, 6.0)
    return Target(f"shells, {dim}", dim, prior, log_likelihood, truth, 0.04)


def correlated(dim: int) -> Target:
    """Give a Normal with correlation .95 between all coordinates."""
    covariance = np.full((dim, dim), 0.95) + 0.05 * np.eye(dim)
    likelihood = dist.MultivariateNormal(jnp.ones(dim), jnp.asarray(covariance))
    truth = stats.multivariate_normal(np.zeros(dim), covariance + 9 * np.eye(dim))
    prior = dist.Normal(0.0, 3.0)
    truth = truth.logpdf(np.ones(dim))
    return Target(f"correlated, {dim}", dim, prior, likelihood.log_prob, truth, 0.22)


def ours(target: Target) -> Run:
    """Run at the defaults."""

    def model() -> None:
        x = numpyro.sample("x", target.prior.expand([target.dim]).to_event(1))
        numpyro.factor("likelihood", target.log_likelihood(x))

    smc = TemperedSMC(model, progress_bar=False)

    def run(seed: int) -> tuple[float, float]:
        result = smc.run(jax.random.key(seed))
        above = np.asarray(result.samples["x"][:, 0] > 0)
        mass = float(np.exp(result.log_weights) @ above)
        return float(result.log_evidence.value), mass

    return run


def blackjax_smc(target: Target, kernel: str, factor: float, num_particles: int) -> Run:
    """One setting: a step size for all temperatures, not adapted."""
    if isinstance(target.prior, dist.Uniform):
        low, high = target.prior.low, target.prior.high
        base = dist.Logistic(0.0, 1.0).expand([target.dim]).to_event(1)

        def log_likelihood(z: jax.Array) -> jax.Array:
            return target.log_likelihood(low + (high - low) * jax.nn.sigmoid(z))
    else:
        base = target.prior.expand([target.dim]).to_event(1)

        def log_likelihood(z: jax.Array) -> jax.Array:
            return target.log_likelihood(z)

    if kernel == "MALA":
        kind = blackjax.mala
        step_size = factor * 2 * target.scale**2 * target.dim ** (-1 / 3)
        parameters = {"step_size": jnp.array([step_size])}
    else:
        kind = blackjax.hmc
        parameters = {
            "step_size": jnp.array([factor * target.scale * target.dim**-0.25]),
            "inverse_mass_matrix": jnp.ones((1, target.dim)),
            "num_integration_steps": jnp.array([NUM_LEAPS]),
        }
    algorithm = blackjax.adaptive_tempered_smc(
        base.log_prob,
        log_likelihood,
        kind.build_kernel(),
        kind.init,
        parameters,
        resampling.systematic,
        target_ess=0.5,
        num_mcmc_steps=NUM_MOVES,
    )

    @jax.jit
    def compiled(key: jax.Array) -> tuple[Any, jax.Array]:
        key_start, key_run = jax.random.split(key)
        state = algorithm.init(base.sample(key_start, (num_particles,)))

        def step(carry: tuple) -> tuple:
            state, key, total = carry
            key, key_step = jax.random.split(key)
            state, info = algorithm.step(key_step, state)
            return state, key, total + info.log_likelihood_increment

        state, _, total = jax.lax.while_loop(
            lambda carry: carry[0].tempering_param < 1,
            step,
            (state, key_run, jnp.zeros(())),
        )
        return total, jnp.sum(state.weights * (state.particles[:, 0] > 0))

    def run(seed: int) -> tuple[float, float]:
        evidence, mass = compiled(jax.random.key(seed))
        return float(evidence), float(mass)

    return run


def nested(target: Target, sample: str) -> Run:
    """Nested sampling by dynesty; the mass is of its weighted points."""
    log_likelihood = jax.jit(target.log_likelihood)
    inverse = stats.norm(0.0, float(getattr(target.prior, "scale", 1.0))).ppf
    if isinstance(target.prior, dist.Uniform):
        low, high = float(target.prior.low), float(target.prior.high)
        inverse = stats.uniform(low, high - low).ppf

    def run(seed: int) -> tuple[float, float]:
        sampler = dynesty.NestedSampler(
            lambda x: float(log_likelihood(x)),
            inverse,
            target.dim,
            nlive=NUM_LIVE,
            sample=sample,
            rstate=np.random.default_rng(seed),
        )
        sampler.run_nested(print_progress=False)
        found = sampler.results
        above = found.samples[:, 0] > 0
        return float(found.logz[-1]), float(found.importance_weights() @ above)

    return run


class Measured(NamedTuple):
    """Median seconds of a run, squared errors of evidence and mass, first call."""

    seconds: float
    errors: np.ndarray
    first: float

    def cost(self, column: int) -> float:
        """Time of as many runs as reach the goal."""
        return self.seconds * float(self.errors[column]) / GOALS[column] ** 2


def measure(target: Target, run: Run, num_runs: int) -> Measured:
    """Run once to compile, then with new seeds."""
    truth, times, found = np.array([target.log_evidence, target.mass]), [], []
    for seed in range(num_runs + 1):
        begin = time.perf_counter()
        found.append(run(seed))
        times.append(time.perf_counter() - begin)
    errors = np.mean((np.array(found[1:]) - truth) ** 2, axis=0)
    return Measured(float(np.median(times[1:])), errors, times[0])


def compare(
    report: Report, target: Target, settings: list[tuple], num_runs: int, nests: int
) -> None:
    """All samplers on one target; a peer in its best setting."""
    mine = measure(target, ours(target), num_runs)
    tried = {
        setting: measure(target, blackjax_smc(target, *setting), 3)
        for setting in settings
    }
    # One that is stuck is no number, or has an error beyond all others.
    best = min(tried, key=lambda s: np.nan_to_num(tried[s].cost(0), nan=np.inf))
    kernel, factor, count = best
    name = f"BlackJAX, {kernel} × {factor:g}, {count:,}"
    peers = {name: measure(target, blackjax_smc(target, *best), num_runs)}
    if nests:
        samplers = ("unif", "rwalk") if target.dim < 10 else ("rwalk",)
        nested_runs = {f"dynesty, {name}": nested(target, name) for name in samplers}
        trials = {k: measure(target, run, 1) for k, run in nested_runs.items()}
        name = min(trials, key=lambda k: trials[k].cost(0))
        peers[name] = measure(target, nested_runs[name], nests)
    for peer, theirs in peers.items():
        for column, quantity in enumerate(("evidence", "mass")):
            if np.isnan(theirs.errors[column]):
                continue
            of_both = [float(m.errors[column]) ** 0.5 for m in (mine, theirs)]
            report.compare(
                f"{quantity} to {GOALS[column]:g}, {target.name}",
                peer,
                mine.cost(column),
                theirs.cost(column),
                compile_seconds=mine.first - mine.seconds,
                note=(
                    f"a run {mine.seconds:.2f} s, error {of_both[0]:.3f}; theirs "
                    f"{theirs.seconds:.2f} s, {of_both[1]:.3f}"
                ),
            )


def main() -> None:
    """Print and write the table."""
    report = start("evidence", __doc__)
    report.heading()
    warnings.simplefilter("ignore")
    if report.quick:
        compare(report, two_modes(2), [("MALA", 1.0, 500)], 2, 0)
    else:
        settings = list(product(("MALA", "HMC"), (1.0, 2.0), (2_000, 10_000)))
        for target, nests in (
            (two_modes(2), 4),
            (two_modes(10), 2),
            (two_modes(30), 0),
            (eggbox(), 4),
            (shells(2), 4),
            (shells(10), 2),
            (correlated(20), 0),
        ):
            compare(report, target, settings, 20, nests)
    report.save()


if __name__ == "__main__":
    main()
