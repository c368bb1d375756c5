"""Leapfrog steps of NUTS with learned priors and with Normal priors.

The model is a linear regression whose 100 coefficients have fixed priors: a density of
20 functions, learned before. Its normalizing constant depends on its parameters alone,
and is computed once, not in each step. The same with BlackJAX, whose NUTS takes the
same potential energy.
"""

from collections.abc import Callable

import blackjax
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from _report import Report, start
from _timing import Compiled, compiled, median_seconds
from numpyro.infer import NUTS
from numpyro.infer.hmc_util import velocity_verlet
from numpyro.infer.util import initialize_model

import numpyro_kaem as kaem

NUM_LATENTS, NUM_DATA = 100, 200


def make_priors() -> dict[str, dist.Distribution]:
    """Priors of one latent each: the same for all, and one per latent."""
    bases = {
        "RBF": kaem.RBF(-4.0, 4.0, 20),
        "B-spline": kaem.BSpline(-4.0, 4.0, 20),
    }
    priors = {"Normal": dist.Normal(0.0, 1.0).expand([NUM_LATENTS])}
    for name, basis in bases.items():
        energy = kaem.Energy.init(jax.random.key(0), basis, (NUM_LATENTS,), scale=0.5)
        priors[name] = kaem.KAEMPrior(energy, dist.Normal(0.0, 1.0))
    energy = kaem.Energy.init(jax.random.key(0), bases["B-spline"], scale=0.5)
    shared = kaem.KAEMPrior(energy, dist.Normal(0.0, 1.0))
    priors["B-spline, one for all"] = shared.expand([NUM_LATENTS])
    return priors


def make_model(prior: dist.Distribution) -> Callable:
    """Linear regression."""

    def model(covariates: jax.Array, response: jax.Array) -> None:
        z = numpyro.sample("z", prior.to_event(1))
        numpyro.sample("y", dist.Normal(covariates @ z, 1.0), obs=response)

    return model


def leapfrogs(model: Callable, data: tuple, num_steps: int) -> Compiled:
    """Compiled steps of the integrator that NumPyro's NUTS runs."""
    info = initialize_model(jax.random.key(1), model, model_args=data)
    potential = info.potential_fn
    begin, step = velocity_verlet(
        potential, lambda scale, p: 0.5 * jnp.sum(p["z"] ** 2)
    )
    inverse_mass = {("z",): jnp.ones(NUM_LATENTS)}

    def run(z: dict, momentum: dict) -> dict:
        state = begin(z, momentum)
        return jax.lax.fori_loop(
            0, num_steps, lambda _, s: step(1e-4, inverse_mass, s), state
        ).z

    z = info.param_info.z
    momentum = {"z": jax.random.normal(jax.random.key(2), (NUM_LATENTS,))}
    return compiled(run, z, momentum)


def draws(model: Callable, data: tuple, num_steps: int) -> tuple[Compiled, Compiled]:
    """Compiled NUTS of NumPyro and of BlackJAX, at one step size and unit mass."""
    step_size = 0.05
    kernel = NUTS(
        model,
        step_size=step_size,
        adapt_step_size=False,
        adapt_mass_matrix=False,
        max_tree_depth=6,
    )
    state = kernel.init(jax.random.key(3), 0, None, data, {})

    def numpyro_run(state):
        return jax.lax.fori_loop(
            0, num_steps, lambda _, s: kernel.sample(s, data, {}), state
        ).z

    info = initialize_model(jax.random.key(1), model, model_args=data)
    nuts = blackjax.nuts(
        lambda z: -info.potential_fn(z),
        step_size=step_size,
        inverse_mass_matrix=jnp.ones(NUM_LATENTS),
        max_num_doublings=6,
    )

    def blackjax_run(state, key):
        return jax.lax.fori_loop(
            0,
            num_steps,
            lambda i, s: nuts.step(jax.random.fold_in(key, i), s)[0],
            state,
        ).position

    first = nuts.init(info.param_info.z)
    return (
        compiled(numpyro_run, state),
        compiled(blackjax_run, first, jax.random.key(4)),
    )


def main() -> None:
    """Print and write the table."""
    report: Report = start("leapfrog", __doc__)
    report.heading()
    repeats = 3 if report.quick else 9
    keys = jax.random.split(jax.random.key(5))
    covariates = jax.random.normal(keys[0], (NUM_DATA, NUM_LATENTS))
    covariates /= jnp.sqrt(NUM_LATENTS)
    response = covariates @ jax.random.normal(keys[1], (NUM_LATENTS,))
    data = (covariates, response)
    num_steps = 200 if report.quick else 5000
    models = {name: make_model(prior) for name, prior in make_priors().items()}
    steps = {name: leapfrogs(model, data, num_steps) for name, model in models.items()}
    seconds = median_seconds(steps, repeats)
    for name in list(models)[1:]:
        report.compare(
            f"{num_steps:,} leapfrogs, {NUM_LATENTS} latents, {name}",
            "Normal priors",
            seconds[name],
            seconds["Normal"],
            at_most=1.5,
            compile_seconds=steps[name].compile_seconds,
            note=f"{1e6 * seconds[name] / num_steps:.1f} us a step",
        )
    num_draws = 5 if report.quick else 100
    runs = {}
    for name in ("Normal", "B-spline"):
        ours, theirs = draws(models[name], data, num_draws)
        runs[name, "NumPyro"], runs[name, "BlackJAX"] = ours, theirs
    seconds = median_seconds(runs, repeats)
    for package in ("NumPyro", "BlackJAX"):
        report.compare(
            f"{num_draws} draws of {package}'s NUTS, B-spline priors",
            f"Normal priors, {package}",
            seconds["B-spline", package],
            seconds["Normal", package],
            compile_seconds=runs["B-spline", package].compile_seconds,
            note="trees differ with the posterior",
        )
    report.save()


if __name__ == "__main__":
    main()
