"""Wrong arguments are refused by name, before anything is computed.

Each row is a call, and what its message must say: the argument, what came, and what is
expected. None of them may end inside JAX, NumPy or NumPyro, whose messages don't know
the argument, and none may compile anything.
"""

import traceback
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro import handlers

import numpyro_kaem as kaem
from numpyro_kaem import datasets, infer, objectives

KEY = jax.random.key(0)
NORMAL = dist.Normal(0.0, 1.0)
BASIS = kaem.BSpline(-3.0, 3.0, 6)
ENERGY = kaem.Energy(BASIS, np.zeros(6))
PRIOR = kaem.KAEMPrior(ENERGY, NORMAL)
TWO = kaem.KAEMPrior(kaem.Energy(BASIS, np.zeros((2, 6))), NORMAL)
MIXTURE = kaem.KAEMMixture(np.zeros(2), TWO)
DEEP = kaem.DeepEnergyPrior(lambda z: z.sum(), 2)
CONDITIONER = kaem.MaskedConditioner(KEY, 2, 6, 8, 1)
AUTOREGRESSIVE = kaem.AutoregressiveKAEMPrior(BASIS, CONDITIONER, NORMAL)
DECODER = kaem.SequenceDecoder(KEY, 2, 5, 4, width=8, num_heads=2)
SEQUENCE = kaem.TokenSequence(DECODER, np.zeros(2))
DISTRIBUTIONS = {
    "prior": PRIOR,
    "mixture": MIXTURE,
    "deep": DEEP,
    "autoregressive": AUTOREGRESSIVE,
    "sequence": SEQUENCE,
}
MODEL = kaem.KAEM(TWO, lambda z: z, kaem.NormalLikelihood(0.5))


def model():
    pass


def of_site(function, *args, **kwargs):
    with handlers.seed(rng_seed=0):
        return function(*args, **kwargs)


elbo_of = partial(objectives.AmortisedELBO, abs)
deep_of = partial(kaem.DeepEnergyPrior, lambda z: z.sum(), 2)
random_of = partial(kaem.Energy.init, KEY, BASIS)
of_data = partial(infer.held_out_log_likelihood, KEY, model)
A_KEY = r"must be one random key such as jax.random.key\(0\), got "
TARGET = r"target_accept_prob must be within \(0, 1\), got"
STEP = "step_size must be a finite number > 0, got"
A_NUMBER = "must be a finite number > 0, got 'a' of type str"
PARAMS = "params must be values by name, got int"
FLAG = "must be True or False, got"
NUMBERS = "must be real numbers, got "
MODELS = "model must be a NumPyro model, a callable, got "


def row(message, function, *args, _error=TypeError, **kwargs):
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return pytest.param(partial(function, *args, **kwargs), _error, message, id=name)


value_row = partial(row, _error=ValueError)


def with_traced_step():
    return jax.eval_shape(lambda h: infer.MALA(model, step_size=h), 0.1)


CALLS = [
    # --- keys
    *[
        row(rf"^key {A_KEY}0 of", distribution.sample, 0)
        for distribution in DISTRIBUTIONS.values()
    ],
    row(rf"^key {A_KEY}None", PRIOR.sample, None),
    row(rf"^key {A_KEY}\(1,\) of them", PRIOR.sample, KEY[None]),
    row(rf"^key {A_KEY}an object of type ndarray", PRIOR.sample, np.zeros(3)),
    row(rf"^key {A_KEY}0 of type int", kaem.Energy.init, 0, BASIS),
    row(rf"^key {A_KEY}", kaem.KANDecoder, 0, 2, 3),
    row(rf"^key {A_KEY}", kaem.ConvDecoder, 0, 2, (8, 8)),
    row(rf"^key {A_KEY}", kaem.SequenceDecoder, 0, 2, 5, 4),
    row(rf"^key {A_KEY}", kaem.KANLayer.init, 0, BASIS, 2, 3),
    row(rf"^key {A_KEY}", kaem.MaskedConditioner, 0, 2, 6),
    row(rf"^key {A_KEY}", kaem.DeepEnergyPrior.init, 0, 2),
    row(rf"^rng_key {A_KEY}", MODEL.sample, 0),
    row(rf"^rng_key {A_KEY}", MODEL.latents, 0),
    row(rf"^rng_key {A_KEY}", infer.sample_posterior, 0, model),
    row(rf"^rng_key {A_KEY}", kaem.simulation_based_calibration, 0, model),
    row(rf"^rng_key {A_KEY}", infer.resample_indices, 0, np.zeros(3)),
    row(rf"^rng_key {A_KEY}", infer.resample_below, 0, np.zeros(3)),
    row(rf"^rng_key {A_KEY}", kaem.refit_prior, TWO, np.zeros((9, 2)), rng_key=0),
    # --- shapes
    *[
        row(r"sample_shape must be .*\(3,\), got 3 of typ", distribution.sample, KEY, 3)
        for distribution in DISTRIBUTIONS.values()
    ],
    row(r"sample_shape\[0\] must be an integer", PRIOR.sample, KEY, (2.0,)),
    value_row(r"sample_shape\[0\] must be .*got -1", PRIOR.sample, KEY, (-1,)),
    row("batch_shape must be .* got 2 of", kaem.Energy.init, KEY, BASIS, 2),
    value_row(r"value must have shape \(..., 2\), got \(\)", DEEP.log_prob, 0.5),
    value_row(r"must have shape \(..., 2\), got \(3,\)", DEEP.energy, np.zeros(3)),
    # --- arrays of numbers
    row(f"coefficients {NUMBERS}None", kaem.Energy, BASIS, None),
    row(f"coefficients {NUMBERS}'a'", kaem.Energy, BASIS, "a"),
    row(f"coefficients {NUMBERS}an object of ty", kaem.Energy, BASIS, NORMAL),
    row(f"coefficients {NUMBERS}dtype bool", kaem.Energy, BASIS, np.ones(6, bool)),
    row(f"base_weight {NUMBERS}'a'", kaem.Energy, BASIS, np.ones(6), "a"),
    row("basis must be a basis such as", kaem.Energy, "a", np.ones(6)),
    row("basis must be a basis such as", kaem.Energy.init, KEY, None),
    row(f"z {NUMBERS}None", ENERGY, None),
    row(f"z {NUMBERS}an object of type list", BASIS, [[1.0], [1.0, 2.0]]),
    row(f"value {NUMBERS}'a'", PRIOR.log_prob, "a"),
    row(f"value {NUMBERS}", PRIOR.cdf, 1j),
    row(f"q {NUMBERS}None", PRIOR.icdf, None),
    row(f"value {NUMBERS}an object of type Normal", MIXTURE.cdf, NORMAL),
    row(f"value {NUMBERS}None", AUTOREGRESSIVE.log_prob, None),
    row(f"value {NUMBERS}None", DEEP.log_prob, None),
    row(f"value {NUMBERS}'a'", SEQUENCE.log_prob, "a"),
    row(f"z {NUMBERS}None", kaem.TokenSequence, DECODER, None),
    row(f"mixing_logits {NUMBERS}'a'", kaem.KAEMMixture, "a", TWO),
    row(f"z {NUMBERS}'a'", MODEL.decode, "a"),
    row(f"start {NUMBERS}'a'", kaem.interpolate_latents, TWO, "a", "b"),
    row(f"replicated {NUMBERS}", kaem.posterior_predictive_p_values, None, 1),
    row(f"l1 {NUMBERS}'a'", kaem.kan_regularizer, MODEL, l1="a"),
    row(f"log_weights {NUMBERS}'a'", infer.resample_indices, KEY, "a"),
    row(f"temperatures {NUMBERS}'a'", infer.AnnealedLangevin, model, temperatures="a"),
    # --- numbers
    *[
        row(f"step_size {A_NUMBER}", k, model, step_size="a")
        for k in (infer.ULA, infer.MALA, infer.AutoMALA, infer.PCNL)
    ],
    *[
        row(f"step_size {A_NUMBER}", k, step_size="a")
        for k in (objectives.LangevinMLE, objectives.ThermodynamicMLE)
    ],
    row("got None of type None", infer.MALA, model, step_size=None),
    row("object of type list", infer.MALA, model, step_size=[0.1]),
    row("> 0, got True of type", infer.MALA, model, step_size=True),
    row(rf"{STEP} array\(\[1", infer.MALA, model, step_size=np.ones(2)),
    value_row("> 0, got nan", infer.MALA, model, step_size=np.nan),
    row(f"{STEP} an object of type .*Tracer", with_traced_step),
    row(rf"{TARGET} 'a'", infer.MALA, model, target_accept_prob="a"),
    row(f"step_size {A_NUMBER}", infer.AnnealedLangevin, model, step_size="a"),
    row(
        rf"{TARGET} an object of type Normal",
        partial(infer.AnnealedLangevin, model, target_accept_prob=NORMAL),
    ),
    row(f"power {A_NUMBER}", infer.AnnealedLangevin, model, power="a"),
    row(
        "power must be a number or a schedule, got an object of type Normal",
        partial(objectives.ThermodynamicMLE, power=NORMAL),
    ),
    row(
        r"ess_threshold must be in \(0, 1\], got 'a'",
        partial(objectives.ImportanceMLE, ess_threshold="a"),
    ),
    row("kl_weight must be a finite number >= 0, got 'a'", elbo_of, kl_weight="a"),
    row("observed must be the name of a site, got 3", elbo_of, observed=3),
    row("low must be finite, g", kaem.cyclical_schedule, 5, low="a"),
    row(r"in \(0, 1\], got 'a'", kaem.cyclical_schedule, 5, ramp="a"),
    row("margin must be a finite", kaem.GridUpdate, 1, 1, margin="a"),
    row(r"tail must be in \[0, 0", kaem.GridUpdate, 1, 1, tail=None),
    row("scale must be positive and finite, got", kaem.NormalLikelihood, "a"),
    row(f"step_size {A_NUMBER}", deep_of, step_size="a"),
    row("scale must be a finite number >= 0, got 'a'", random_of, scale="a"),
    row(f"init_scale {A_NUMBER}", kaem.AutoKAEM, model, init_scale="a"),
    # --- functions, of which a distribution is none
    *[
        row(f"{MODELS}an object of type Normal", k, NORMAL)
        for k in (infer.ULA, infer.AnnealedLangevin, kaem.AutoKAEM)
    ],
    row(f"{MODELS}'a' of type str", infer.sample_posterior, KEY, "a"),
    row(f"{MODELS}an object of type Nor", infer.sample_posterior, KEY, NORMAL),
    row(f"{MODELS}None", kaem.simulation_based_calibration, KEY, None),
    row(MODELS, infer.held_out_log_likelihood, KEY, NORMAL, np.zeros(3)),
    row(f"data {NUMBERS}", of_data, "a"),
    row(PARAMS, of_data, [1.0], params=3),
    row("model must be a function with Nu", infer.ImportanceSampling, NORMAL),
    row("guide must be a function w", infer.ImportanceSampling, model, NORMAL),
    row(PARAMS, infer.ImportanceSampling, model, params=3),
    row(
        "init_strategy must be such as init_to_uniform, got 3",
        partial(infer.MALA, model, init_strategy=3),
    ),
    row("encoder must be an Equinox module", objectives.AmortisedELBO, NORMAL),
    row("decoder must be an Equinox module", kaem.KAEM, TWO, NORMAL),
    row("likelihood must be such as NormalLik", kaem.KAEM, TWO, abs, NORMAL),
    row("network must be an Equinox module", kaem.DeepEnergyPrior, NORMAL, 2),
    row(
        "band must be a KAEMPrior .*, got an object of type Normal",
        partial(kaem.plot_prior, PRIOR, band=NORMAL),
    ),
    # --- names, flags and paths
    row("name must be the name of a si", of_site, kaem.kart, 3, TWO),
    row("name of a site, got N", of_site, kaem.learn_prior, None, TWO),
    row(
        f"learn_reference {FLAG} 'no'",
        partial(of_site, kaem.learn_prior, "p", TWO, learn_reference="no"),
    ),
    row(f"adapt_scale {FLAG} 'no'", infer.MALA, model, adapt_scale="no"),
    row(f"persistent {FLAG} 1", objectives.LangevinMLE, persistent=1),
    row(
        "options must be arguments by name for the function that fits, got 'a'",
        partial(kaem.PriorRefit, 1, 1, options="a"),
    ),
    *[
        row("path must be a path, got 3", read, 3)
        for read in (datasets.read_idx, datasets.read_svhn, datasets.read_image_folder)
    ],
    row("path must be a path, got 3 of type int", kaem.save, 3, 1.0),
    row("directory must be a path, got None", kaem.Checkpoint, None),
]


@pytest.mark.parametrize(("call", "error", "message"), CALLS)
def test_wrong_calls_are_refused_by_name(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    # Ours to the end: what JAX or NumPy says is not passed on.
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert "numpyro_kaem" in frames[-1].filename


def test_traced_values_and_keys_of_all_kinds_pass():
    """The checks look at kinds and shapes, which are known under ``jit``."""

    def run(key, value, weights):
        energy = kaem.Energy(BASIS, weights)
        prior = kaem.KAEMPrior(energy, NORMAL)
        return prior.sample(key, (2,)), prior.log_prob(value), energy(value)

    values = jax.eval_shape(run, KEY, 0.5, jnp.zeros(6))
    assert [value.shape for value in values] == [(2,), (), ()]
    for key in (jax.random.PRNGKey(0), jax.random.key(0, impl="rbg")):
        assert jax.eval_shape(run, key, 1, jnp.zeros(6))[0].shape == (2,)
    keys = jax.random.split(KEY, 3)
    assert jax.eval_shape(jax.vmap(PRIOR.sample), keys).shape == (3,)
