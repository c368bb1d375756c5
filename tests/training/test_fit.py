"""Training: batches, checkpoints, refits, and what stops it."""

import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.infer import RenyiELBO, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import numpyro_kaem as kaem
from numpyro_kaem.files.container import read_arrays, write_arrays
from numpyro_kaem.objectives import (
    AmortisedELBO,
    ImportanceMLE,
    LangevinMLE,
    ThermodynamicMLE,
)
from numpyro_kaem.training.checkpoint import differences, fingerprint
from numpyro_kaem.training.refit import _all_components
from numpyro_kaem.training.trainer import Batches
from tests.helpers import with_long

NUM_DATA = 60
X = 1.5 + 1.2 * jax.random.normal(jax.random.key(5), (NUM_DATA,))


def model(x, subsample_size=None):
    loc = numpyro.param("loc", 0.0)
    with numpyro.plate("data", len(x), subsample_size=subsample_size) as index:
        z = numpyro.sample("z", dist.Normal(loc, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x[index])


def train(num_steps=40, objective=None, **options):
    objective = LangevinMLE(3) if objective is None else objective
    given = {"model": model, "data": X, "optimizer": optax.adam(0.05)}
    given |= {"batch_size": 20, "progress_bar": False, **options}
    return kaem.fit(objective=objective, num_steps=num_steps, **given)


# --- batches -------------------------------------------------------------------------


def test_batches_hold_every_unit_once_in_each_epoch():
    for make_key in (jax.random.key, jax.random.PRNGKey):
        batches = Batches(make_key(0), 60, 20)
        assert batches.steps_per_epoch == 3
        epochs = [
            np.concatenate([batches[3 * e + i] for i in range(3)]) for e in (0, 1)
        ]
        for epoch in epochs:
            np.testing.assert_array_equal(np.sort(epoch), np.arange(60))
        assert np.any(epochs[0] != epochs[1])
        # Whatever came before.
        fresh = Batches(make_key(0), 60, 20)
        np.testing.assert_array_equal(fresh[4], batches[4])
    # Units left over are others in each epoch.
    batches = Batches(jax.random.key(0), 7, 3)
    seen = {int(i) for step in range(20) for i in batches[step]}
    assert seen == set(range(7))
    np.testing.assert_array_equal(Batches(jax.random.key(0), 7, None)[5], np.arange(7))


# --- what is learned -----------------------------------------------------------------


@pytest.mark.parametrize(
    "objective",
    [
        LangevinMLE(5),
        pytest.param(ImportanceMLE(100), marks=pytest.mark.long),
        pytest.param(
            ThermodynamicMLE(3, num_sweeps=2, num_local_steps=2), marks=pytest.mark.long
        ),
    ],
    ids=["langevin", "importance", "thermodynamic"],
)
def test_batches_lead_to_the_maximum(objective):
    schedule = optax.exponential_decay(0.1, 100, 0.2)
    result = train(300, objective, optimizer=optax.adam(schedule))
    # The maximum in closed form is the mean of the data.
    assert abs(result.params["loc"] - X.mean()) < 0.25
    assert result.losses.shape == (300,)
    assert result.num_skipped == 0
    assert result.stopped == "num_steps"


def test_an_objective_of_numpyro_with_its_guide():
    result = train(300, Trace_ELBO(), guide=AutoNormal(model), batch_size=None)
    assert abs(result.params["loc"] - X.mean()) < 0.25


def test_chunks_of_an_objective_without_mutable_state():
    """RenyiELBO has a loss alone; of one particle it is that of Trace_ELBO."""

    def guide(x, subsample_size=None):
        loc = numpyro.param("guide_loc", 0.5)
        with numpyro.plate("data", len(x), subsample_size=subsample_size):
            numpyro.sample("z", dist.Delta(loc))

    options = {"num_steps": 4, "guide": guide, "batch_size": None, "chunk_size": 20}
    losses = [
        train(objective=objective, **options).losses
        for objective in (RenyiELBO(num_particles=1), Trace_ELBO())
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_a_regularizer_is_felt():
    result = train(200, regularizer=lambda params: 1e4 * params["loc"] ** 2)
    assert abs(result.params["loc"]) < 0.1


# --- a ready model, and refits -------------------------------------------------------


def ready_model():
    energy = kaem.Energy(kaem.BSpline(-4.0, 4.0, 12), jnp.zeros((2, 12)))
    prior = kaem.KAEMPrior(energy, dist.Normal(0.0, 1.0))
    weight = jnp.array([[1.0, 0.2], [0.1, 1.0], [0.5, -0.5]])
    return kaem.KAEM(prior, lambda z: z @ weight.T, kaem.NormalLikelihood(0.2))


def two_clusters(model, num_data=300):
    """Data of latents that are near -1.5 or 1.5."""
    shape = (num_data, *model.prior.shape())
    signs = jax.random.rademacher(jax.random.key(3), shape)
    z = 1.5 * signs + 0.3 * jax.random.normal(jax.random.key(4), shape)
    return model.conditional(z).sample(jax.random.key(6))


@pytest.mark.long
@pytest.mark.parametrize("how", ["gradient", "refit", "refit of a population"])
def test_the_prior_of_a_ready_model_finds_two_modes(how):
    model = ready_model()
    x = two_clusters(model)
    objective, refit = LangevinMLE(5), None
    if how != "gradient":
        refit = kaem.PriorRefit(start=50, every=50)
    if how == "refit of a population":
        objective = ThermodynamicMLE(4, num_sweeps=2, num_local_steps=2)
    result = train(300, objective, model=model, data=x, batch_size=None, refit=refit)
    prior = result.model.prior
    density = np.exp(prior.log_prob(jnp.array([[-1.5], [0.0], [1.5]])))
    # Of a normal density the middle would be highest.
    assert np.all(density[[0, 2]] > 3 * density[1])
    draws = np.asarray(result.model.sample(jax.random.key(7), 2000))
    np.testing.assert_allclose(draws.std(0), np.std(x, axis=0), rtol=0.15)


@pytest.mark.long
def test_a_deep_prior_finds_two_modes():
    """By the contrast with its own draws, which its log density needs."""
    prior = kaem.DeepEnergyPrior.init(jax.random.key(0), 1, step_size=0.2)
    model = kaem.KAEM(prior, lambda z: z, kaem.NormalLikelihood(0.2))
    x = two_clusters(model, num_data=400)
    options = {"model": model, "data": x, "batch_size": 100}
    result = train(600, LangevinMLE(5), optimizer=optax.adam(3e-4), **options)
    draws = np.asarray(result.model.sample(jax.random.key(7), 4000))
    assert np.mean(np.abs(draws) < 0.5) < 0.05
    np.testing.assert_allclose(np.mean(draws > 0), np.mean(x > 0), atol=0.1)
    np.testing.assert_allclose(np.abs(draws).mean(), np.abs(x).mean(), rtol=0.1)


@pytest.mark.parametrize(
    "form",
    with_long(
        ["independent", "mixture", "mixture by probs", "autoregressive"], "independent"
    ),
)
def test_refit_of_each_form(form):
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(800, 2))
    # Dependent, and with two modes in the first dimension.
    draws[:, 0] = 1.5 * np.sign(draws[:, 0]) + 0.3 * draws[:, 1]
    basis, reference = kaem.BSpline(-4.0, 4.0, 12), dist.Normal(0.0, 1.0)
    options = {}
    if form.startswith("mixture"):
        energy = kaem.Energy(basis, jnp.zeros((3, 2, 12)))
        component = kaem.KAEMPrior(energy, reference).to_event(1)
        mixing = dist.Categorical(logits=jnp.zeros(3))
        if form == "mixture by probs":
            mixing = dist.Categorical(probs=jnp.full(3, 1 / 3))
        prior = dist.MixtureSameFamily(mixing, component)
    elif form == "autoregressive":
        conditioner = kaem.MaskedConditioner(jax.random.key(0), 2, 12, width=8, depth=1)
        prior = kaem.AutoregressiveKAEMPrior(basis, conditioner, reference)
        options = {"num_steps": 200}
    else:
        energy = kaem.Energy(basis, jnp.zeros((2, 12)))
        prior = kaem.KAEMPrior(energy, reference).to_event(1)
    refitted = kaem.refit_prior(prior, draws, **options)
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(prior)]
    assert [np.shape(leaf) for leaf in jax.tree.leaves(refitted)] == shapes
    assert type(refitted) is type(prior)
    gain = np.mean(refitted.log_prob(draws) - prior.log_prob(draws))
    assert gain > 0.3
    # It can be drawn from.
    drawn = jax.eval_shape(lambda: refitted.sample(jax.random.key(1), (5,)))
    assert drawn.shape == (5, 2)


class LinearEncoder(eqx.Module):
    """Means that are linear in the data, and one scale."""

    weight: jax.Array
    log_scale: jax.Array

    def __call__(self, x):
        loc = x @ self.weight
        return jnp.concatenate([loc, jnp.broadcast_to(self.log_scale, loc.shape)], -1)


def test_refits_to_draws_of_an_encoder():
    """The prior finds the two clusters, and the result encodes and reconstructs."""
    rng = np.random.default_rng(0)
    z = rng.choice([-2.0, 2.0], (300, 1)) + 0.3 * rng.normal(size=(300, 1))
    weight = jnp.array([[1.0, 0.5]])
    x = jnp.asarray(z @ weight + 0.2 * rng.normal(size=(300, 2)), float)
    energy = kaem.Energy(kaem.BSpline(-4.0, 4.0, 16), jnp.zeros((1, 16)))
    prior = kaem.KAEMPrior(energy, dist.Normal(0.0, 1.0)).to_event(1)
    model = kaem.KAEM(prior, lambda z: z @ weight, kaem.NormalLikelihood(0.2))
    objective = AmortisedELBO(LinearEncoder(0.3 * jnp.ones((2, 1)), jnp.zeros(1)))
    refit = kaem.PriorRefit(150, 150)
    result = train(200, objective, model=model, data=x, batch_size=70, refit=refit)
    # Clusters of draws are no wider than those of the latents.
    found = result.model.prior.base_dist.cdf(jnp.array([[-1.2], [1.2]]))
    np.testing.assert_allclose(found, 0.5, atol=0.12)
    assert found[1, 0] - found[0, 0] < 0.05
    loc = x @ result.encoder.weight
    np.testing.assert_allclose(result.encode(x), loc, rtol=1e-5)
    np.testing.assert_allclose(result.reconstruct(x), loc @ weight, rtol=1e-5)
    scale = jnp.exp(result.encoder.log_scale)
    draws = (result.encode(x, jax.random.key(1)) - loc) / scale
    assert abs(np.mean(draws)) < 0.25
    assert abs(np.std(draws) - 1) < 0.2
    other = train(1, LangevinMLE(1), model=model, data=x)
    with pytest.raises(ValueError, match=r"encode needs .* KAEM without an encoder"):
        other.encode(x)


def mixture_on(basis, num_components, reference=None):
    energy = kaem.Energy(basis, jnp.zeros((num_components, 1, basis.num_features)))
    reference = dist.Normal(0.0, 1.0) if reference is None else reference
    component = kaem.KAEMPrior(energy, reference).to_event(1)
    mixing = dist.Categorical(logits=jnp.zeros(num_components))
    return dist.MixtureSameFamily(mixing, component)


@pytest.mark.long
def test_refits_go_on_and_refine_their_panels():
    # A reference whose own breaks would add panels is left out.
    prior = mixture_on(kaem.BSpline(-4.0, 4.0, 5), 2, dist.Uniform(-4.0, 4.0))
    rng = np.random.default_rng(0)
    signs = np.where(rng.random((600, 1)) < 0.3, -1.0, 1.0)
    draws = signs + 0.3 * rng.normal(size=(600, 1))
    options = {"penalty": 1e-2, "pseudo_count": 0.0}
    first = kaem.refit_prior(prior, draws, **options)
    component = first.component_distribution.base_dist
    assert component.refinement > 1
    assert float(component.quadrature_error.max()) < 1e-4
    with pytest.warns(UserWarning, match="a larger refinement than 1"):
        kaem.KAEMPrior(component.energy, component.reference, refinement=1)
    # From here the energies are flat again, and the panels stay.
    wide = rng.uniform(-4.0, 4.0, (600, 1))
    second = kaem.refit_prior(first, wide, warm_start=True, penalty=1e3)
    assert second.component_distribution.base_dist.refinement == component.refinement
    # Components stay where they were: from clusters their order is that of chance.
    again = kaem.refit_prior(first, draws, warm_start=True, **options)
    means = [fit.component_distribution.base_dist.mean for fit in (first, again)]
    np.testing.assert_allclose(means[1], means[0], atol=0.05)
    # Finer panels do not help where energies in the hundreds are rounded.
    prior = mixture_on(kaem.BSpline(-4.0, 4.0, 12), 2)
    draws = signs + 0.05 * rng.normal(size=(600, 1))
    with jax.enable_x64(False):
        refitted = kaem.refit_prior(prior, draws, **options)
        component = refitted.component_distribution.base_dist
        assert float(component.quadrature_error.max()) > 1e-4
        assert component.refinement == 1
        with pytest.warns(UserWarning, match="an estimated relative error of"):
            finer = kaem.KAEMPrior(component.energy, component.reference, refinement=4)
        np.testing.assert_allclose(
            component.log_normalizer, finer.log_normalizer, rtol=1e-6
        )


def test_refit_fills_the_places_of_empty_components():
    prior = mixture_on(kaem.BSpline(-4.0, 4.0, 8), 4)
    draws = np.repeat([[-1.0], [1.0], [1.0]], 20, axis=0)
    refitted = kaem.refit_prior(prior, draws, pseudo_count=0.0)
    assert refitted.mixing_distribution.probs.shape == (4,)
    np.testing.assert_allclose(refitted.mixing_distribution.probs.sum(), 1, rtol=1e-5)
    proportions = np.sort(np.asarray(refitted.mixing_distribution.probs))
    np.testing.assert_allclose(proportions, [1 / 6, 1 / 6, 1 / 3, 1 / 3], atol=0.02)
    # The copies of one component share its weight.
    sources, logits = _all_components(jnp.log(jnp.array([1.0, 2.0])), 3)
    assert sources.tolist() == [0, 1, 1]
    np.testing.assert_allclose(jax.nn.softmax(logits), np.full(3, 1 / 3), rtol=1e-5)


@pytest.mark.long
def test_training_goes_on_with_finer_panels():
    seen = []

    class Finer(kaem.PriorRefit):
        """Energies stay as they are, and panels are halved once."""

        def fit(self, prior, draws, rng_key, warm_start=False):
            seen.append((prior.base_dist.refinement, warm_start, draws.shape))
            finer = kaem.KAEMPrior(
                prior.base_dist.energy, dist.Normal(0.0, 1.0), refinement=2
            )
            return finer.to_event(1)

    energy = kaem.Energy(kaem.BSpline(-4.0, 4.0, 12), jnp.zeros((2, 12)))
    prior = kaem.KAEMPrior(energy, dist.Normal(0.0, 1.0), refinement=1).to_event(1)
    weight = jnp.array([[1.0, 0.2], [0.1, 1.0]])
    model = kaem.KAEM(prior, lambda z: z @ weight.T, kaem.NormalLikelihood(0.2))
    x, finer = model.sample(jax.random.key(0), 50), Finer(start=1, every=2)
    options = {"model": model, "data": x, "batch_size": None, "refit": finer}
    result = train(5, LangevinMLE(1), optimizer=optax.adam(1e-3), **options)
    assert seen == [(1, False, (50, 2)), (2, True, (50, 2))]
    assert result.model.prior.base_dist.refinement == 2
    assert np.all(np.isfinite(result.losses))
    # Of the model that was passed nothing changes.
    assert model.prior.base_dist.refinement == 1


def test_wrong_refits():
    refit = kaem.PriorRefit(start=3, every=2, stop=6)
    assert [step for step in range(10) if refit.is_due(step)] == [3, 5]
    with pytest.raises(ValueError, match="every"):
        kaem.PriorRefit(start=1, every=0)
    model = ready_model()
    normal = dist.Normal(jnp.zeros(2), 1.0)
    mixture = dist.MixtureSameFamily(
        dist.Categorical(logits=jnp.zeros(2)),
        dist.Normal(jnp.zeros((2, 2)), 1.0).to_event(1),
    )
    shape = r"draws must have shape \(num_draws, 2\)"
    for prior, draws, error, message in (
        (model.prior, np.zeros((10, 3)), ValueError, shape),
        (normal, np.zeros((10, 2)), TypeError, "prior must be a KAEMPrior, a Mixture"),
        (None, np.zeros((10, 2)), TypeError, "KAEMPrior, got NoneType"),
        (mixture, np.zeros((10, 2)), TypeError, "prior must be a mixture of KAEMPrior"),
    ):
        with pytest.raises(error, match=message):
            kaem.refit_prior(prior, draws)
    energy = kaem.Energy(kaem.RBF(-3.0, 3.0, 4), jnp.zeros((3, 1, 4)))
    kart = kaem.KAEM(
        kaem.KAEMPrior(energy), lambda z: z, kaem.NormalLikelihood(0.2), joint="kart"
    )
    x, chains = np.zeros((5, 3)), LangevinMLE(2)
    no_chains = LangevinMLE(2, persistent=False)
    for made, data, objective, message in (
        (model, x, ImportanceMLE(5), "refit needs an objective that keeps"),
        (model, x, no_chains, "refit needs an objective that keeps"),
        (kart, x, chains, "distribution of the latents"),
        (model, np.zeros((5, 4)), chains, "x must have shape"),
        (model, np.full((5, 3), np.nan), chains, "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            train(1, objective, model=made, data=data, batch_size=None, refit=refit)


# --- what stops it -------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole():
    """Training without a break, to which others are compared bit for bit."""
    return train(10)


def test_callback_sees_every_epoch_and_stops(whole, capsys):
    """Neither it nor the progress bar changes a draw."""
    seen = []

    def callback(progress):
        seen.append(
            (progress.step, len(progress.losses), float(progress.params["loc"]))
        )
        assert 0 <= float(progress.memory["acceptance"]) <= 1
        return progress.step >= 9

    result = train(60, callback=callback, progress_bar=True)
    assert [step for step, *_ in seen] == [3, 6, 9]
    assert result.stopped == "callback"
    np.testing.assert_array_equal(result.losses, whole.losses[:9])
    assert seen[-1][2] == result.params["loc"]
    printed = capsys.readouterr().err
    assert "loss" in printed
    assert "acceptance" in printed


def test_patience_ends_training_that_does_not_improve():
    result = train(500, ImportanceMLE(20), optimizer=optax.sgd(0.0), patience=3)
    assert result.stopped == "patience"
    assert 12 <= result.losses.size < 500
    means = result.losses.reshape(-1, 3).mean(1)
    assert means[-3:].min() >= means[:-3].min()


def test_bytes_are_told():
    """Of Normal noise alone, where it starts far from such data."""
    data = np.random.default_rng(0).integers(0, 256, (20, 2)).astype(np.uint8)
    model = kaem.KAEM(
        dist.Normal(jnp.zeros(2), 1.0), lambda z: z, kaem.NormalLikelihood()
    )
    given = (LangevinMLE(1), optax.adam(0.1), 1)
    with pytest.warns(
        UserWarning, match=r"from \d+ to 2\d\d, .* Divide the data by 255"
    ):
        kaem.fit(model, data, *given, progress_bar=False)
    kaem.fit(model, data / 255, *given, progress_bar=False)


def test_steps_that_are_not_finite_are_skipped_and_counted():
    with pytest.warns(UserWarning, match=r"of 12 steps were skipped"):
        result = train(12, ImportanceMLE(10), data=X.at[7].set(jnp.inf))
    # One of the three batches of an epoch holds the datum.
    assert result.num_skipped == 4
    assert np.sum(~np.isfinite(result.losses)) == 4
    assert np.isfinite(result.params["loc"])
    assert result.params["loc"] != 0


# --- checkpoints ---------------------------------------------------------------------


def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(tmp_path, whole):
    class StopError(Exception):
        pass

    def killed(progress):
        if progress.step == 6:
            raise StopError

    def assert_whole(resumed):
        np.testing.assert_array_equal(resumed.losses, whole.losses)
        both = (resumed.params, resumed.memory), (whole.params, whole.memory)
        for one, other in zip(*map(jax.tree.leaves, both), strict=True):
            np.testing.assert_array_equal(one, other)

    checkpoint = kaem.Checkpoint(tmp_path, every=4)
    with pytest.raises(StopError):
        train(10, checkpoint=checkpoint, callback=killed)
    path = tmp_path / "step-00000004.npz"
    assert list(tmp_path.iterdir()) == [path]
    # A checkpoint of an earlier version does not say what it was trained by, nor whose
    # arrays it holds.
    header, arrays = read_arrays(path)
    del header["metadata"]["fingerprint"]
    for description in header["arrays"].values():
        del description["container"]
    write_arrays(path, header, arrays)
    assert_whole(train(10, checkpoint=checkpoint))
    # A damaged checkpoint falls back to the one before.
    newest = tmp_path / "step-00000010.npz"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="step-00000010"):
        assert_whole(train(10, checkpoint=checkpoint))
    # A finished run is not run again, but read.
    assert_whole(train(10, checkpoint=checkpoint))


def test_a_checkpoint_of_another_training_does_not_answer_for_this_one(tmp_path):
    """Whatever else is asked for, a finished one would come back without a step."""
    checkpoint = kaem.Checkpoint(tmp_path, every=3)
    train(3, checkpoint=checkpoint)
    others = [
        ({"num_steps": 2}, "num_steps must be at least 3, the steps of the checkpoint"),
        ({"data": X.at[7].add(0.1)}, r"other data:\n  data: float32\[60\] \w+ before"),
        ({"objective": LangevinMLE(4)}, r"objective.num_steps: 3 before, 4 now\nTo"),
        ({"num_steps": 6, "objective": LangevinMLE(3, num_chains=2)}, "checkpoint"),
    ]
    for options, message in others:
        message = message.replace("float32", str(X.dtype))
        with pytest.raises(ValueError, match=message):
            train(**{"num_steps": 3} | options, checkpoint=checkpoint)
    # With more steps to take, the rest of the answer is of now.
    with pytest.warns(UserWarning, match=r"from step 3 of .*\n  batch_size: 20 before"):
        train(4, checkpoint=checkpoint, batch_size=30)
    with pytest.raises(ValueError, match="is of other data"):
        train(5, checkpoint=checkpoint, batch_size=30, data=X + 1)


def test_what_is_the_same_training():
    """A run that is started again is the same, and differences have names."""

    def other(x):
        return model(x)

    def parts(rate=0.05, l1=1.0, scale=2.0, low=-3.0, samples=2, **others):
        energy = kaem.Energy(kaem.RBF(low, 3.0, 4), jnp.zeros((3, 4)))
        prior = kaem.KAEMPrior(energy, dist.Normal(0.5, scale))
        likelihood = kaem.NormalLikelihood(0.2)
        return {
            "model": kaem.KAEM(prior, lambda z: 2.0 * z, likelihood),
            "other": kaem.KAEM(dist.Normal(jnp.zeros(3), scale), jnp.tanh, likelihood),
            "optimizer": optax.chain(
                optax.clip(1.0), optax.adam(optax.cosine_decay_schedule(rate, 9))
            ),
            "numpyros": numpyro.optim.ClippedAdam(rate),
            "regularizer": lambda params: kaem.kan_regularizer(params, l1=l1),
            "refit": kaem.PriorRefit(3, 4, options={"samples": samples}),
            "function": model,
            "objective": LangevinMLE(4),
            "rng_key": jax.random.key(0),
            "data": X,
            "params": None,
            **others,
        }

    before = fingerprint(**parts())
    assert differences(before, fingerprint(**parts())) == {}
    for change, names in (
        ({"rate": 0.06}, {"optimizer", "numpyros"}),
        ({"l1": 2.0}, {"regularizer"}),
        ({"scale": 2.5}, {"model", "other"}),
        ({"low": -2.0}, {"model"}),
        ({"samples": 3}, {"refit"}),
        ({"function": other}, {"function"}),
        ({"objective": LangevinMLE(4, persistent=False)}, {"objective"}),
        ({"objective": ImportanceMLE(4)}, {"objective"}),
        ({"rng_key": jax.random.key(1)}, {"rng_key"}),
        ({"data": X.at[7].add(0.1)}, {"data"}),
        ({"data": X[:40]}, {"data"}),
        ({"params": {"loc": 1.0}}, {"params"}),
    ):
        found = differences(before, fingerprint(**parts(**change)))
        assert found.keys() == names
    assert found["params"] == "  params: None before, 1 entries now"


# With the settings of the tests, so that both processes compile alike.
SCRIPT = """
import sys
sys.path.insert(0, {root!r})
import conftest
from tests.training.test_fit import train
import numpyro_kaem as kaem
train(10**6, checkpoint=kaem.Checkpoint({folder!r}, every=5))
"""


@pytest.mark.long
def test_a_killed_job_loses_at_most_an_interval(tmp_path, pytestconfig):
    """Also under another order of hashes."""
    code = SCRIPT.format(root=str(pytestconfig.rootpath), folder=str(tmp_path))
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    job = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        while len(list(tmp_path.glob("step-*.npz"))) < 2:
            assert job.poll() is None
    finally:
        job.kill()
        job.wait()
    newest = max(int(path.stem[5:]) for path in tmp_path.glob("step-*.npz"))
    resumed = train(newest + 2, checkpoint=kaem.Checkpoint(tmp_path, every=1000))
    np.testing.assert_array_equal(resumed.losses, train(newest + 2).losses)


# --- bad input -----------------------------------------------------------------------


def test_wrong_options():
    no_model = "refit needs a numpyro_kaem.KAEM as the model, got function"
    not_finite = r"params\['loc'\] must be finite"
    other_shape = r"params\['loc'\] must have arrays of shapes \[\(\)\], got \[\(3,\)\]"
    other_plate = "unit_plate must be that of the objective, 'data', got 'rows'"
    value_errors = [
        ("num_steps", 0, "num_steps"),
        ("batch_size", 61, "at most the number of data, 60, got 61"),
        ("patience", 0, "patience"),
        ("objective", Trace_ELBO(), "guide must be given with Trace_ELBO"),
        ("guide", model, "guide must be None with LangevinMLE"),
        ("params", {"lco": 1.0}, r"parameters, which are \['loc'\], got 'lco'"),
        ("params", {"loc": np.ones(3)}, other_shape),
        ("params", {"loc": np.nan}, not_finite),
        ("unit_plate", "rows", other_plate),
        ("data", np.zeros(0), "data must have shape"),
        ("data", np.float32(1.0), "data must have shape"),
    ]
    type_errors = [
        ("rng_key", 3, "rng_key must be one random key"),
        ("objective", "mle", "objective must be such as"),
        ("model", dist.Normal(), "model must be a .*KAEM or another Num"),
        ("data", "x", "data must be real numbers, got 'x' of type str"),
        ("data", [[1.0], [1.0, 2.0]], "data must be real numbers, got an object"),
        ("optimizer", 0.1, "optimizer must be such as .*, got 0.1 of ty"),
        ("optimizer", optax.adam, "optimizer must be such as optax.adam"),
        ("optimizer", numpyro.optim.Adam, "optimizer must be such as optax.adam"),
        ("batch_size", "a", "batch_size must be a positive integer"),
        ("chunk_size", 2.5, "chunk_size must be a positive integer"),
        ("params", 3, "params must be values by name, or None, got 3"),
        ("regularizer", 2.0, "regularizer must be a function of the parameters"),
        ("regularizer", dist.Normal(), "or None, got an object of type Norm"),
        ("refit", 5, "refit must be such as .*PriorRefit.*, got 5 of typ"),
        ("refit", kaem.PriorRefit(start=1, every=1), no_model),
        ("grid_update", True, "grid_update must be such as .*, got True"),
        ("callback", 3, "callback must be a function of a .*, got 3 of"),
        ("checkpoint", 5, "checkpoint must be such as .*, got 5 of type"),
        ("checkpoint", "runs", r"such as .*Checkpoint\(.folder.\)"),
        ("progress_bar", "no", "progress_bar must be True or False, got"),
        ("unit_plate", 3, "unit_plate must be the name of a plate, got 3"),
    ]
    for error, cases in ((ValueError, value_errors), (TypeError, type_errors)):
        for name, value, message in cases:
            with pytest.raises(error, match=message):
                train(**{name: value})
    with pytest.raises(TypeError, match="guide must be a guide, a callable, or None, "):
        train(objective=Trace_ELBO(), guide=3)


# --- models that do not serve --------------------------------------------------------


def not_serving(x, latent=dist.Normal(0.0, 1.0), observed=True, **outside):  # noqa: B008
    if outside:
        numpyro.sample("w", dist.Normal(0.0, 1.0), **outside)
    with numpyro.plate("data", len(x)):
        z = 0.0 if latent is None else numpyro.sample("z", latent)
        if observed:
            numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def test_models_that_do_not_serve():
    improper = dist.ImproperUniform(dist.constraints.real, (), ())
    for options, message in (
        ({"obs": None}, r"all latent sites within the plate 'data'.*'w'"),
        ({"obs": 0.3}, r"all observed sites within the plate 'data'.*'w'"),
        (
            {"latent": dist.Bernoulli(0.5)},
            "continuous latent sites, got the discrete 'z'",
        ),
        ({"latent": improper}, "whose prior can be drawn from"),
        ({"observed": False}, "must have an observed site"),
        ({"latent": None}, "must have a latent site"),
    ):
        with handlers.block(), pytest.raises(ValueError, match=message):
            ImportanceMLE(5).loss(
                jax.random.key(0), {}, not_serving, None, X, **options
            )


def test_wrong_objectives():
    """And chains need the guide that keeps them."""
    negative = {"encoder": lambda x: x, "kl_weight": -1.0}
    for make, options, message in (
        (ImportanceMLE, {"num_particles": 0}, "num_particles"),
        (ImportanceMLE, {"resampling": "bootstrap"}, "resampling must be one of None"),
        (ImportanceMLE, {"ess_threshold": 0.0}, "ess_threshold must be in"),
        (LangevinMLE, {"num_steps": 0}, "num_steps"),
        (LangevinMLE, {"step_size": -1.0}, "step_size must be a finite number > 0"),
        (LangevinMLE, {"local_move": "hmc"}, "local_move must be one of"),
        (
            ThermodynamicMLE,
            {"num_temperatures": 1},
            "num_temperatures must be an integer >= 2",
        ),
        (ThermodynamicMLE, {"power": 0.0}, "power must be"),
        (
            kaem.objectives.AmortisedELBO,
            negative,
            "kl_weight must be a finite number >= 0",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make(**options)
    for objective in (LangevinMLE(2), ThermodynamicMLE(3)):
        with pytest.raises(ValueError, match=r"guide must be that of"):
            objective.loss(jax.random.key(0), {}, model, None, X)


@pytest.mark.long
def test_degenerate_proposals_are_told():
    def many(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([12]).to_event(1))
            numpyro.sample("x", dist.Normal(z, 0.1).to_event(1), obs=x)

    x = jax.random.normal(jax.random.key(0), (6, 12))
    told = ImportanceMLE(500).diagnose(jax.random.key(1), {}, many, x)
    assert told.degenerate
    assert np.all(told.ess < 10)
    assert "have degenerated" in told.verdict
    params = {"loc": jnp.array(1.5)}
    told = ImportanceMLE(500).diagnose(jax.random.key(1), params, model, X)
    assert not told.degenerate
    assert "represent the posteriors" in told.verdict
