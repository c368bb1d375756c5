"""Tables, figures, a formula and a file
=====================================

From posterior draws to a report. Velocities of 82 galaxies become a prior for five
coarse measurements.

1. Describe the learned density in closed form, if there is a short one, and save it.
2. Sample the posterior in three ways: NUTS, importance sampling and an annealed
   population. Each becomes an ArviZ object by the same call, with any version of ArviZ.
3. Check the sampler on simulated data whose truth is known, and the model by posterior
   predictive checks.

Run it with ``python examples/results.py``; it takes about a minute on two cores, and
less with ``--quick``.
"""

import argparse
from pathlib import Path

import arviz as az
import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from _galaxies import VELOCITIES
from numpyro.infer import MCMC, NUTS

import numpyro_kaem as kaem

parser = argparse.ArgumentParser(description="Tables, figures, a formula and a file")
parser.add_argument("--output", type=Path, default=Path("figures"))
parser.add_argument("--quick", action="store_true", help="few draws")
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
matplotlib.use("Agg")
args.output.mkdir(parents=True, exist_ok=True)

# %%
# A formula, a table and a file
# -----------------------------
# ``kaem.symbolic`` looks for a short form of the density and reports its divergence.
# ``kaem.save`` writes arrays by name and no code; the loaded prior is equal to the last
# bit.

prior = kaem.fit_density(VELOCITIES, support="positive")
print("learned density:", kaem.symbolic(prior, num_samples=len(VELOCITIES)))
print(kaem.summarize_prior(prior))
path = args.output / "velocities.kaem"
kaem.save(path, prior)
again = kaem.load(path)
z = jnp.linspace(5.0, 40.0, 500)
same = bool(jnp.all(again.log_prob(z) == prior.log_prob(z)))
print(f"saved to {path.name}; the loaded prior is equal: {same}")

# %%
# Three samplers of one posterior
# -------------------------------

# Five galaxies that were not in the survey (made up for this example): what a coarse
# instrument reads, in 1000 km/s, and the standard deviation of its error.
READINGS = np.array([11.3, 17.9, 20.9, 27.8, 30.9])
ERROR = 1.5


def make_model(prior: dist.Distribution):
    """Measurement model under a prior of the velocities."""

    def model(readings):
        with numpyro.plate("galaxy", len(readings)):
            velocity = numpyro.sample("velocity", prior)
            numpyro.sample("reading", dist.Normal(velocity, ERROR), obs=readings)

    return model


def sample(model, readings: jax.Array, seed: int, quick: bool) -> dict:
    """Posterior draws of three samplers, and the runs themselves."""
    keys = jax.random.split(jax.random.key(seed), 3)
    count = 400 if quick else 2000
    options = {
        "num_warmup": 300 if quick else 1000,
        "num_samples": count,
        "num_chains": 2,
        "chain_method": "vectorized",
        "progress_bar": not quick,
    }
    nuts = MCMC(NUTS(model), **options)
    nuts.run(keys[0], readings, extra_fields=("diverging", "accept_prob"))
    importance = kaem.infer.ImportanceSampling(
        model, num_samples=4000 if quick else 20_000, unit_plate="galaxy"
    ).run(keys[1], readings)
    annealed = MCMC(kaem.infer.AnnealedLangevin(model, num_temperatures=6), **options)
    annealed.run(keys[2], readings, extra_fields=("round_trips",))
    return {"NUTS": nuts, "importance": importance, "annealed": annealed}


model, readings = make_model(again), jnp.asarray(READINGS)
runs = sample(model, readings, args.seed, args.quick)

# %%
# ``kaem.to_arviz`` converts each of the three results, for ArviZ to summarise.


def print_table(objects: dict) -> None:
    """Posterior means and standard deviations of each sampler, by ArviZ."""
    print("\nposterior of the velocities: mean ± standard deviation")
    for name, data in objects.items():
        table = az.summary(data, var_names=["velocity"], round_to="none")
        cells = [
            f"{float(m):6.2f} ± {float(s):.2f}"
            for m, s in zip(table["mean"], table["sd"], strict=True)
        ]
        print(f"{name:12s}", *cells)


objects = {
    name: kaem.to_arviz(
        run,
        model=model,
        model_args=(readings,),
        posterior_predictive=name == "NUTS",
        coords={"galaxy": [f"galaxy {i + 1}" for i in range(len(READINGS))]},
    )
    for name, run in runs.items()
}
print_table(objects)

# %%
# Two of the three estimate the evidence too.

annealed = kaem.infer.log_evidence(runs["annealed"]).steppingstone
weights = runs["importance"].log_evidence
error = np.sqrt(np.sum(np.square(weights.standard_error)))
print(
    f"log evidence: annealed {annealed.value:.3f} ± {annealed.standard_error:.3f}, "
    f"importance {np.sum(weights.value):.3f} ± {error:.3f}"
)

# %%
# Calibration
# -----------
# Parameters are drawn from the prior, data given the parameters, and posterior draws
# given the data by the sampler. Over many simulations the rank of the truth among the
# draws is uniform if the sampler is correct. Posterior predictive p-values compare the
# data with replicated data from the model.

calibration = kaem.simulation_based_calibration(
    jax.random.key(args.seed + 1),
    model,
    readings,
    num_simulations=20 if args.quick else 200,
    num_samples=49,
    num_warmup=200,
    progress_bar=not args.quick,
)
print(calibration)
replicated = objects["NUTS"]["posterior_predictive"]["reading"].values
p_values = kaem.posterior_predictive_p_values(
    replicated.reshape(-1, len(READINGS)), READINGS
)
print("p-values:", *(f"{n} {float(p):.2f}" for n, p in p_values.items()))

# %%
# Figures
# -------
# The prior with posterior draws, the weights of importance sampling, the ranks of the
# calibration, and the three samplers compared.

fig, axes = plt.subplots(2, 2, figsize=(9.6, 7.2), layout="constrained")
draws = objects["NUTS"]["posterior"]["velocity"].values.reshape(-1)
kaem.plot_prior(
    prior,
    data=VELOCITIES,
    posterior=draws,
    ax=axes[0, 0],
    xlabel="velocity (1000 km/s)",
)
kaem.plot_weights(runs["importance"], ax=axes[0, 1])
kaem.plot_calibration(calibration, ax=axes[1, 0])
for name, color in zip(objects, ("#0072B2", "#E69F00", "#009E73"), strict=True):
    values = objects[name]["posterior"]["velocity"].values[..., 3].reshape(-1)
    axes[1, 1].hist(
        values,
        bins=60,
        density=True,
        histtype="step",
        color=color,
        linewidth=1.4,
        label=name,
    )
axes[1, 1].set(xlabel="velocity of galaxy 4 (1000 km/s)", ylabel="density")
axes[1, 1].legend(frameon=False, fontsize="small")
fig.savefig(
    args.output / "results.png",
    dpi=150,
    metadata={
        "Description": "Four panels: the learned density of the velocities over their "
        "histogram, with posterior draws; the weights of importance sampling; the "
        "ranks of simulation-based calibration within their band; and the posterior of "
        "galaxy 4, where the three samplers agree."
    },
)
plt.close(fig)

# %%
# The temperature ladder of the population: swap acceptance rates, and the mean log
# likelihood at each temperature.

axes = kaem.plot_ladder(runs["annealed"])
axes[0].figure.savefig(
    args.output / "results_ladder.png",
    dpi=150,
    metadata={
        "Description": "The temperature ladder of the annealed population: swap "
        "acceptance rates and the log likelihood along it."
    },
)
plt.close(axes[0].figure)
print(f"\nFigures: {args.output.resolve()}")
