"""Memory of a step of training, as compiled, and chunks that bound it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import Trace_ELBO

import numpyro_kaem as kaem
from numpyro_kaem.objectives import ImportanceMLE, LangevinMLE, ThermodynamicMLE
from numpyro_kaem.objectives.base import along
from numpyro_kaem.training.trainer import Trainer
from tests.helpers import random_leaves, with_long

GIGABYTE = 2**30


class Linear(eqx.Module):
    """A decoder that costs nothing to compile."""

    weight: jax.Array

    def __call__(self, z):
        return z @ self.weight


def linear_model(num_outputs=6):
    rng = np.random.default_rng(0)
    weight = jnp.asarray(rng.normal(size=(2, num_outputs)), jnp.result_type(float))
    prior = dist.Normal(jnp.zeros(2), 1.0)
    return kaem.KAEM(prior, Linear(weight), kaem.NormalLikelihood(0.5))


def make_trainer(
    model, objective, batch_size, chunk_size=None, *, guide=None, size=120
):
    """Trainer, and its state and batch."""
    data = jnp.asarray(
        np.random.default_rng(1).normal(size=(size, *model.event_shape)),
        jnp.result_type(float),
    )
    optimizer = optax.sgd(0.1)
    trainer = Trainer(
        model, guide, objective, optimizer, "data", batch_size, None, chunk_size
    )
    index = np.arange(batch_size)
    return trainer, (jax.random.key(0), data, index, {}, None), data, index


def memory_of(model, objective, batch_size, chunk_size=None, **options):
    """Bytes that the compiled step takes beside what it is given and returns."""
    trainer, start, data, index = make_trainer(
        model, objective, batch_size, chunk_size, **options
    )
    state = trainer.init(*start, abstract=True)
    compiled = trainer.step.lower(state, data, jnp.asarray(index)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


# --- gradients -----------------------------------------------------------------------


def after_a_step(trainer, start, data, index):
    state, loss = trainer.step(trainer.init(*start), data, jnp.asarray(index))
    return trainer.params(state), loss, state


def test_chunks_give_the_gradient_of_the_batch():
    """With a guide without noise, to rounding; a batch must be made of whole chunks."""
    model = linear_model()

    def guide(x, subsample_size=None):
        weight = numpyro.param("encoder", jnp.full((6, 2), 0.1))
        with numpyro.plate("data", len(x), subsample_size=subsample_size) as index:
            numpyro.sample("z", dist.Delta(x[index] @ weight, event_dim=1))

    whole, chunked = (
        after_a_step(*make_trainer(model, Trace_ELBO(), 12, size, guide=guide, size=12))
        for size in (None, 4)
    )
    np.testing.assert_allclose(chunked[1], whole[1], rtol=1e-5)
    for one, other in zip(*map(jax.tree.leaves, (chunked[0], whole[0])), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)

    given = (model, np.zeros((40, 6)), LangevinMLE(1), optax.sgd(0.1), 1)
    for size in (7, 25):
        with pytest.raises(ValueError, match=r"chunk_size must divide .*, 20, got"):
            kaem.fit(*given, batch_size=20, chunk_size=size)


def test_chunks_keep_the_chains_of_their_own_units():
    """Steps too small to move: the score is then that of the same places."""
    model = linear_model()
    objective = LangevinMLE(1, num_chains=2, local_move="ula", step_size=1e-12)
    trainer, *given = make_trainer(model, objective, 12)
    params, loss, state = after_a_step(trainer, *given)
    chunked, (key, *start), data, index = make_trainer(model, objective, 12, 4)
    chunked.init(key, *start, abstract=True)
    # From the same state, which is of all units whatever the chunks.
    new, other_loss = chunked.step(trainer.init(*given[0]), data, jnp.asarray(index))
    np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
    other = chunked.params(new)
    for one, two in zip(*map(jax.tree.leaves, (other, params)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4)
    counts = [
        s.svi.mutable_state["objective$memory"]["num_steps"] for s in (new, state)
    ]
    np.testing.assert_array_equal(*counts)
    assert counts[0].sum() == 12 * 2


def test_a_step_in_chunks_is_one_step_of_schedules():
    objective = ThermodynamicMLE(
        3, num_sweeps=1, num_local_steps=1, power=lambda step: 1.0 + step
    )
    trainer, *given = make_trainer(linear_model(), objective, 12, 4)
    *_, state = after_a_step(trainer, *given)
    memory = state.svi.mutable_state["objective$memory"]
    assert memory["step"] == 1
    np.testing.assert_allclose(memory["temperatures"], [0.0, 0.5, 1.0])
    assert np.sum(memory["num_steps"][:, 1:] > 0) == 12 * 2


@pytest.mark.long
def test_training_in_chunks_leads_to_the_maximum():
    decoder, noise = Linear(jnp.array([[0.3]])), kaem.NormalLikelihood(0.5)
    model = kaem.KAEM(dist.Normal(jnp.zeros(1), 1.0), decoder, noise)
    x = 1.5 * jax.random.normal(jax.random.key(5), (200, 1))
    given = (model, x, LangevinMLE(3), optax.adam(0.03), 200)
    result = kaem.fit(*given, chunk_size=40, progress_bar=False)
    # In closed form: the variance of the data less that of the noise.
    expected = np.sqrt(np.mean(np.asarray(x) ** 2) - 0.25)
    assert abs(abs(float(result.model.decoder.weight[0, 0])) - expected) < 0.15


def test_one_particle_is_not_mapped():
    """An axis of one entry stops fusions; what comes out is the same."""
    traced = []

    def function(x):
        traced.append(isinstance(x, jax.core.Tracer))
        return x.sum(-1), 2 * x

    for count in (1, 2):
        x = jnp.arange(12.0).reshape(-1, count, 2)
        expected = (x.sum(-1), 2 * x)
        jax.tree.map(np.testing.assert_array_equal, along(1, function)(x), expected)
    assert traced == [False, True]


# --- memory --------------------------------------------------------------------------

OBJECTIVES = {
    "importance": lambda particles: ImportanceMLE(particles, share_proposals=False),
    "langevin": lambda particles: LangevinMLE(2, num_chains=particles),
    "thermodynamic": lambda particles: ThermodynamicMLE(
        particles, num_sweeps=1, num_local_steps=1, power=1.0
    ),
}
WIDE = 400


@pytest.mark.optimised
@pytest.mark.parametrize("name", with_long(OBJECTIVES, "langevin"))
def test_memory_is_linear_and_bounded_by_chunks(name):
    model, make = linear_model(WIDE), OBJECTIVES[name]
    small = memory_of(model, make(4), 20)
    # Three times the units and three times the particles.
    larger = memory_of(model, make(12), 60)
    assert 4.0 < larger / small < 1.2 * 9
    # In chunks the batch does not count.
    in_chunks = memory_of(model, make(4), 60, 20)
    assert in_chunks < 1.3 * small


def digits_model(form):
    """Twenty latents that drive 41 inner sums, or 41 mixtures of twenty, and pixels."""
    basis = kaem.RBF(-1.2, 1.2, 20)
    energy = kaem.Energy(basis, jnp.zeros((41, 20, 20)))
    joint = "kart" if form == "kart" else None
    prior = kaem.KAEMPrior(energy)
    if form == "mixture":
        prior = kaem.KAEMMixture(jnp.zeros((41, 20)), prior)
    decoder = random_leaves(
        lambda key: kaem.KANDecoder(key, 41, (28, 28), hidden=(82,), basis=basis)
    )
    return kaem.KAEM(prior, decoder, kaem.NormalLikelihood(0.3), joint=joint)


@pytest.mark.long
@pytest.mark.optimised
@pytest.mark.parametrize(
    ("form", "objective", "chunk_size"),
    [
        ("mixture", ImportanceMLE(100), None),
        ("kart", LangevinMLE(20), None),
        ("kart", ThermodynamicMLE(10, num_sweeps=1, num_local_steps=20), None),
        ("mixture", ThermodynamicMLE(20, num_sweeps=1, num_local_steps=20), 20),
    ],
    ids=["importance", "langevin", "thermodynamic", "thermodynamic in chunks"],
)
def test_the_size_of_published_models_fits_in_two_gigabytes(
    form, objective, chunk_size
):
    used = memory_of(digits_model(form), objective, 100, chunk_size, size=200)
    assert used < 2 * GIGABYTE
