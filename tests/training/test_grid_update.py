"""Grids that move in training: where to, what stays, and what a checkpoint knows."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import numpyro_kaem as kaem
from numpyro_kaem.objectives import LangevinMLE
from numpyro_kaem.training.refit import grids_of, with_grids
from tests.helpers import random_leaves

UPDATE = kaem.GridUpdate(start=2, every=100)


def make_prior(reference=True):
    basis = kaem.BSpline([-2.0, -2.0], [2.0, 2.0], 6)
    rng = np.random.default_rng(0)
    energy = kaem.Energy(basis, jnp.asarray(rng.normal(size=(2, 6))))
    return kaem.KAEMPrior(energy, dist.Normal(0.5, 1.0) if reference else None)


def make_model(hidden=(3,), *, bases=None, **options):
    basis = kaem.RBF(-1.0, 1.5, 6) if bases is None else bases
    decoder = random_leaves(
        lambda key: kaem.KANDecoder(key, 2, 4, hidden=hidden, basis=basis)
    )
    prior = options.pop("prior", make_prior())
    return kaem.KAEM(prior, decoder, kaem.NormalLikelihood(0.3), **options)


def draws(num_draws=400):
    z = np.random.default_rng(1).normal(size=(num_draws, 2))
    return {"z": (z * [1.0, 2.0] + [3.0, -1.0]).astype(jnp.result_type(float))}


# --- where grids go ------------------------------------------------------------------


def test_grids_cover_what_arrives():
    model, latents = make_model(), draws()
    old_inputs = model.decoder.layer_inputs(latents["z"])
    moved = UPDATE.move(model, latents)
    inputs = moved.decoder.layer_inputs(latents["z"])
    for layer, values, before in zip(
        moved.decoder.layers, inputs, old_inputs, strict=True
    ):
        low, high = float(values.min()), float(values.max())
        width = high - low
        np.testing.assert_allclose(layer.basis.low, low - 0.1 * width, rtol=1e-5)
        np.testing.assert_allclose(layer.basis.high, high + 0.1 * width, rtol=1e-5)
        # There was something to do.
        assert np.any((before < -1.0) | (before > 1.5))
    z = np.asarray(latents["z"], np.float64)
    width = np.ptp(z, axis=0)
    basis = moved.prior.energy.basis
    np.testing.assert_allclose(basis.low, z.min(0) - 0.1 * width, rtol=1e-6)
    np.testing.assert_allclose(basis.high, z.max(0) + 0.1 * width, rtol=1e-6)
    # All else is as it was.
    assert moved.prior.reference.loc == 0.5
    assert moved.decoder.layers[0].basis.num_basis == 6
    # As JSON they come back.
    grids = grids_of(moved)
    assert grids_of(with_grids(model, grids)) == grids
    assert with_grids(moved, grids) is moved
    with pytest.raises(ValueError, match="holds 1 grids, and the model has 3"):
        with_grids(model, grids[:1])


def test_one_grid_for_each_input_and_tails_left_out():
    first = kaem.RBF([-1.0, -1.0], [1.0, 1.0], 6)
    model = make_model(hidden=(), bases=first)
    update = kaem.GridUpdate(start=1, every=1, margin=0.0, tail=0.05)
    basis = update.move(model, draws()).decoder.layers[0].basis
    low, high = np.quantile(np.asarray(draws()["z"], np.float64), [0.05, 0.95], axis=0)
    np.testing.assert_allclose(basis.low, low, rtol=1e-6)
    np.testing.assert_allclose(basis.high, high, rtol=1e-6)


def test_where_grids_stay():
    """With inputs that do not vary, and at the support of a prior by itself."""
    model = make_model(hidden=())
    moved = UPDATE.move(model, {"z": np.full((400, 2), 0.25)})
    assert moved.decoder.layers[0].basis == model.decoder.layers[0].basis
    assert moved.prior.energy.basis.low == (-2.0, -2.0)
    model = make_model(hidden=(), prior=make_prior(reference=False))
    moved = UPDATE.move(model, {"z": np.clip(draws()["z"], -1.0, 1.0)})
    assert moved.prior.energy.basis.low == (-2.0, -2.0)
    assert len(grids_of(moved)) == 1


@pytest.mark.long
def test_inner_sums_of_base_latents():
    energy = kaem.Energy(kaem.BSpline(-2.0, 2.0, 4), jnp.ones((5, 2, 4)))
    prior = kaem.KAEMPrior(energy, dist.Normal(0.0, 1.0))
    decoder = random_leaves(
        lambda key: kaem.KANDecoder(key, 5, 4, hidden=(), basis=kaem.RBF(-1, 1, 4))
    )
    model = kaem.KAEM(prior, decoder, kaem.NormalLikelihood(0.3), joint="kart")
    base = jnp.array([[1.0, -0.5], [2.0, 2.0], [-1.0, 0.0]])
    moved = UPDATE.move(model, {"z_base": base})
    # Energies are constant, so that every row is the sum of the two.
    low, high = -1.0, 4.0
    basis = moved.decoder.layers[0].basis
    np.testing.assert_allclose([basis.low, basis.high], [low - 0.5, high + 0.5], 1e-3)
    assert moved.prior.energy.basis.low == -2.0


# --- what stays ----------------------------------------------------------------------


def test_functions_change_by_no_more_than_least_squares():
    """Every function against a fit of its own by NumPy, at the data."""
    basis = kaem.BSpline(-1.0, 4.0, 7)
    model = make_model(hidden=(), bases=basis)
    z = 0.5 + 0.8 * draws()["z"]
    moved = UPDATE.move(model, {"z": z})
    new = moved.decoder.layers[0].basis
    points = np.linspace(new.low, new.high, 2000)
    features = np.asarray(new(points), np.float64)
    old = np.asarray(basis(points), np.float64)
    coefficients = np.asarray(model.decoder.layers[0].coefficients, np.float64)
    allowed = np.zeros(4)
    for j in range(4):
        for i in range(2):
            target = old @ coefficients[j, i]
            fit = features @ np.linalg.lstsq(features, target, rcond=None)[0]
            allowed[j] += np.abs(fit - target).max()
    change = np.abs(moved.decoder(z) - model.decoder(z)).max(0)
    np.testing.assert_array_less(change, 1.05 * allowed + 1e-4)
    # And that is little beside the functions themselves.
    assert np.all(allowed < 0.6 * np.ptp(np.asarray(model.decoder(z)), axis=0))


# --- in training ---------------------------------------------------------------------


def train(num_steps=6, **options):
    options = {"optimizer": optax.adam(0.01), "grid_update": UPDATE} | options
    options |= {"num_steps": num_steps, "progress_bar": False}
    x = make_model().sample(jax.random.key(1), 12)
    return kaem.fit(make_model(), x, LangevinMLE(2), **options)


@pytest.mark.long
@pytest.mark.parametrize("prior", ["by gradient", "refitted"])
def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(tmp_path, prior):
    options = {}
    if prior == "refitted":
        options["refit"] = kaem.PriorRefit(start=4, every=100)
    whole = train(**options)
    assert grids_of(whole.model) != grids_of(make_model())

    class StopError(Exception):
        pass

    def killed(progress):
        if progress.step == 3:
            raise StopError

    checkpoint = kaem.Checkpoint(tmp_path, every=3)
    with pytest.raises(StopError):
        train(checkpoint=checkpoint, callback=killed, **options)
    resumed = train(checkpoint=checkpoint, **options)
    np.testing.assert_array_equal(resumed.losses, whole.losses)
    assert grids_of(resumed.model) == grids_of(whole.model)
    found, expected = (
        jax.tree.leaves((result.params, result.memory)) for result in (resumed, whole)
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.long
@pytest.mark.parametrize(
    "optimizer", [optax.sgd(0.0), numpyro.optim.Adam(1e-9)], ids=["optax", "numpyro"]
)
def test_training_goes_on_from_the_same_functions(optimizer):
    model = make_model()
    given = {"decoder$params": model.params["decoder$params"]}
    result = train(3, optimizer=optimizer, params=given)
    z = result.memory["position"][:, 0]
    moved, old = result.model, model
    scale = np.ptp(np.asarray(old.decoder(z)), axis=0)
    change = np.abs(moved.decoder(z) - old.decoder(z)).max(0)
    np.testing.assert_array_less(change, 0.5 * scale)
    assert grids_of(moved) != grids_of(old)
    inputs = moved.decoder.layer_inputs(z)
    for layer, values in zip(moved.decoder.layers, inputs, strict=True):
        assert layer.basis.low < values.min()
        assert layer.basis.high > values.max()


def test_wrong_arguments():
    for options, error, message in (
        ({"start": 0}, ValueError, "start must be a positive integer, got 0"),
        ({"every": 1.5}, TypeError, "every must be a positive integer"),
        ({"stop": -1}, ValueError, "stop must be a positive integer"),
        ({"margin": -0.1}, ValueError, "margin must be a finite number >= 0, got -0.1"),
        ({"tail": 0.5}, ValueError, r"tail must be in \[0, 0.5\), got 0.5"),
    ):
        with pytest.raises(error, match=message):
            kaem.GridUpdate(**{"start": 1, "every": 1, **options})
    no_grids = kaem.KAEM(
        dist.Normal(jnp.zeros(4), 1.0), lambda z: z, kaem.NormalLikelihood(0.3)
    )
    chains, no_chains = LangevinMLE(2), LangevinMLE(2, persistent=False)
    x, needs = np.zeros((12, 4)), "grid_update needs a"
    for model, objective, error, message in (
        (no_grids, chains, ValueError, f"{needs} KANDecoder, or a prior"),
        (make_model(), no_chains, ValueError, f"{needs}n objective that keeps"),
        (lambda x: None, chains, TypeError, rf"{needs} numpyro_kaem\.KAEM"),
    ):
        with pytest.raises(error, match=message):
            kaem.fit(model, x, objective, optax.adam(0.1), 1, grid_update=UPDATE)
