"""Training: batches, checkpoints, refits, and what stops it."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.infer import Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import numpyro_kaem as kaem
from numpyro_kaem.array_file import write_arrays
from numpyro_kaem.infer import ImportanceMLE, LangevinMLE, ThermodynamicMLE
from numpyro_kaem.objectives.fingerprint import differences, fingerprint
from numpyro_kaem.objectives.refit import _all_places
from numpyro_kaem.objectives.state_file import read_state
from numpyro_kaem.objectives.training import Batches
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


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_every_unit_is_in_each_epoch_once(make_key):
    batches = Batches(make_key(0), 60, 20)
    assert batches.steps_per_epoch == 3
    epochs = [np.concatenate([batches[3 * e + i] for i in range(3)]) for e in (0, 1)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(60))
    assert np.any(epochs[0] != epochs[1])
    # Whatever came before.
    fresh = Batches(make_key(0), 60, 20)
    np.testing.assert_array_equal(fresh[4], batches[4])


def test_units_left_over_are_others_in_each_epoch():
    batches = Batches(jax.random.key(0), 7, 3)
    seen = {int(i) for step in range(20) for i in batches[step]}
    assert seen == set(range(7))
    np.testing.assert_array_equal(Batches(jax.random.key(0), 7, None)[5], np.arange(7))


# --- what is learned -----------------------------------------------------------------


@pytest.mark.parametrize(
    "objective",
    [
        ImportanceMLE(100),
        LangevinMLE(5),
        pytest.param(
            ThermodynamicMLE(3, num_sweeps=2, num_local_steps=2),
            marks=pytest.mark.long,
        ),
    ],
    ids=["importance", "langevin", "thermodynamic"],
)
def test_batches_lead_to_the_maximum(objective):
    schedule = optax.exponential_decay(0.1, 100, 0.2)
    result = kaem.fit(
        model,
        X,
        objective,
        optax.adam(schedule),
        300,
        batch_size=20,
        progress_bar=False,
    )
    # The maximum in closed form is the mean of the data.
    assert abs(result.params["loc"] - X.mean()) < 0.25
    assert result.losses.shape == (300,)
    assert result.num_skipped == 0
    assert result.stopped == "num_steps"


def test_an_objective_of_numpyro_with_its_guide():
    result = kaem.fit(
        model,
        X,
        Trace_ELBO(),
        optax.adam(0.05),
        300,
        guide=AutoNormal(model),
        progress_bar=False,
    )
    assert abs(result.params["loc"] - X.mean()) < 0.25


def test_a_penalty_is_felt():
    result = train(200, penalty=lambda params: 1e4 * params["loc"] ** 2)
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
    result = kaem.fit(
        model, x, objective, optax.adam(0.05), 300, refit=refit, progress_bar=False
    )
    prior = result.model.prior
    density = np.exp(prior.log_prob(jnp.array([[-1.5], [0.0], [1.5]])))
    # Of a Normal law the middle would be highest.
    assert np.all(density[[0, 2]] > 3 * density[1])
    draws = np.asarray(result.model.sample(jax.random.key(7), 2000))
    np.testing.assert_allclose(draws.std(0), np.std(x, axis=0), rtol=0.15)


@pytest.mark.long
def test_a_deep_prior_finds_two_modes():
    """By the contrast with its own draws, which its log density needs."""
    prior = kaem.DeepEnergyPrior.init(jax.random.key(0), 1, step_size=0.2)
    model = kaem.KAEM(prior, lambda z: z, kaem.NormalLikelihood(0.2))
    x = two_clusters(model, num_data=400)
    result = kaem.fit(
        model,
        x,
        LangevinMLE(5),
        optax.adam(3e-4),
        600,
        batch_size=100,
        progress_bar=False,
    )
    draws = np.asarray(result.model.sample(jax.random.key(7), 4000))
    assert np.mean(np.abs(draws) < 0.5) < 0.05
    np.testing.assert_allclose(np.mean(draws > 0), np.mean(x > 0), atol=0.1)
    np.testing.assert_allclose(np.abs(draws).mean(), np.abs(x).mean(), rtol=0.1)


@pytest.mark.parametrize(
    "form",
    with_long(
        ["independent", "mixture", "mixture by probs", "autoregressive"],
        "independent",
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
    # It is a law that can be drawn from.
    assert refitted.sample(jax.random.key(1), (5,)).shape == (5, 2)


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
    draws = np.where(rng.random((600, 1)) < 0.3, -1.0, 1.0)
    draws = draws + 0.3 * rng.normal(size=(600, 1))
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
    place = [law.component_distribution.base_dist.mean for law in (first, again)]
    np.testing.assert_allclose(place[1], place[0], atol=0.05)


@pytest.mark.long
def test_refits_do_not_refine_for_rounding():
    """Finer panels do not help where energies in the hundreds are rounded."""
    prior = mixture_on(kaem.BSpline(-4.0, 4.0, 12), 2)
    rng = np.random.default_rng(0)
    draws = np.where(rng.random((600, 1)) < 0.3, -1.0, 1.0)
    draws = draws + 0.05 * rng.normal(size=(600, 1))
    with jax.enable_x64(False):
        refitted = kaem.refit_prior(prior, draws, penalty=1e-2, pseudo_count=0.0)
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
    places, logits = _all_places(jnp.log(jnp.array([1.0, 2.0])), 3)
    assert places.tolist() == [0, 1, 1]
    np.testing.assert_allclose(jax.nn.softmax(logits), np.full(3, 1 / 3), rtol=1e-5)


@pytest.mark.long
def test_training_goes_on_with_finer_panels():
    seen = []

    class Finer(kaem.PriorRefit):
        """Energies stay as they are, and panels are halved once."""

        def fit(self, prior, draws, rng_key, warm_start=False):
            seen.append((prior.base_dist.refinement, warm_start, draws.shape))
            law = kaem.KAEMPrior(
                prior.base_dist.energy, dist.Normal(0.0, 1.0), refinement=2
            )
            return law.to_event(1)

    energy = kaem.Energy(kaem.BSpline(-4.0, 4.0, 12), jnp.zeros((2, 12)))
    prior = kaem.KAEMPrior(energy, dist.Normal(0.0, 1.0), refinement=1).to_event(1)
    weight = jnp.array([[1.0, 0.2], [0.1, 1.0]])
    model = kaem.KAEM(prior, lambda z: z @ weight.T, kaem.NormalLikelihood(0.2))
    result = kaem.fit(
        model,
        model.sample(jax.random.key(0), 50),
        LangevinMLE(1),
        optax.adam(1e-3),
        5,
        refit=Finer(start=1, every=2),
        progress_bar=False,
    )
    assert seen == [(1, False, (50, 2)), (2, True, (50, 2))]
    assert result.model.prior.base_dist.refinement == 2
    assert np.all(np.isfinite(result.losses))
    # Of the model that was passed nothing changes.
    assert model.prior.base_dist.refinement == 1


def test_wrong_refits():
    energy = kaem.Energy(kaem.BSpline(-4.0, 4.0, 6), jnp.zeros((2, 6)))
    prior = kaem.KAEMPrior(energy, dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match=r"draws must have shape \(num_draws, 2\)"):
        kaem.refit_prior(prior, np.zeros((10, 3)))
    with pytest.raises(TypeError, match="prior must be a KAEMPrior, a Mixture"):
        kaem.refit_prior(dist.Normal(jnp.zeros(2), 1.0), np.zeros((10, 2)))
    mixing = dist.Categorical(logits=jnp.zeros(2))
    mixture = dist.MixtureSameFamily(
        mixing, dist.Normal(jnp.zeros((2, 2)), 1.0).to_event(1)
    )
    with pytest.raises(TypeError, match="prior must be a mixture of KAEMPrior"):
        kaem.refit_prior(mixture, np.zeros((10, 2)))
    with pytest.raises(ValueError, match="every"):
        kaem.PriorRefit(start=1, every=0)
    refit = kaem.PriorRefit(start=3, every=2, stop=6)
    assert [step for step in range(10) if refit.is_due(step)] == [3, 5]


# --- what stops it -------------------------------------------------------------------


def test_callback_sees_every_epoch_and_stops():
    seen = []

    def callback(progress):
        seen.append(
            (progress.step, len(progress.losses), float(progress.params["loc"]))
        )
        assert 0 <= float(progress.memory["acceptance"]) <= 1
        return progress.step >= 9

    result = train(60, callback=callback)
    assert [step for step, *_ in seen] == [3, 6, 9]
    assert result.stopped == "callback"
    assert result.losses.shape == (9,)
    assert seen[-1][2] == result.params["loc"]


def test_patience_ends_training_that_does_not_improve():
    result = kaem.fit(
        model,
        X,
        ImportanceMLE(20),
        optax.sgd(0.0),
        500,
        batch_size=20,
        patience=3,
        progress_bar=False,
    )
    assert result.stopped == "patience"
    assert 12 <= result.losses.size < 500
    means = result.losses.reshape(-1, 3).mean(1)
    assert means[-3:].min() >= means[:-3].min()


def test_steps_that_are_not_finite_are_skipped_and_counted():
    x = X.at[7].set(jnp.inf)

    with pytest.warns(UserWarning, match=r"of 12 steps were not taken"):
        result = kaem.fit(
            model,
            x,
            ImportanceMLE(10),
            optax.adam(0.05),
            12,
            batch_size=20,
            progress_bar=False,
        )
    # One of the three batches of an epoch holds the datum.
    assert result.num_skipped == 4
    assert np.sum(~np.isfinite(result.losses)) == 4
    assert np.isfinite(result.params["loc"])
    assert result.params["loc"] != 0


def test_progress_bar_changes_no_draw(capsys):
    quiet, shown = train(6), train(6, progress_bar=True)
    np.testing.assert_array_equal(quiet.losses, shown.losses)
    printed = capsys.readouterr().err
    assert "loss" in printed
    assert "acceptance" in printed


# --- checkpoints ---------------------------------------------------------------------


def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(tmp_path):
    whole = train(10)

    class StopError(Exception):
        pass

    def killed(progress):
        if progress.step == 6:
            raise StopError

    checkpoint = kaem.Checkpoint(tmp_path, every=4)
    with pytest.raises(StopError):
        train(10, checkpoint=checkpoint, callback=killed)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004.npz"]
    resumed = train(10, checkpoint=checkpoint)
    np.testing.assert_array_equal(resumed.losses, whole.losses)
    assert jax.tree.all(
        jax.tree.map(
            lambda a, b: bool(jnp.all(a == b)),
            (resumed.params, resumed.memory),
            (whole.params, whole.memory),
        )
    )
    # A finished run is not run again, but read.
    again = train(10, checkpoint=checkpoint)
    np.testing.assert_array_equal(again.losses, whole.losses)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path):
    checkpoint = kaem.Checkpoint(tmp_path, every=3)
    whole = train(6, checkpoint=checkpoint)
    newest = tmp_path / "step-00000006.npz"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="step-00000006"):
        resumed = train(6, checkpoint=checkpoint)
    np.testing.assert_array_equal(resumed.losses, whole.losses)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    checkpoint = kaem.Checkpoint(tmp_path, every=3)
    train(3, checkpoint=checkpoint)
    with pytest.raises(ValueError, match="checkpoint"):
        train(6, checkpoint=checkpoint, objective=LangevinMLE(3, num_chains=2))


def test_a_checkpoint_of_another_training_does_not_answer_for_this_one(tmp_path):
    """Whatever else is asked for, a finished one would come back without a step."""
    checkpoint = kaem.Checkpoint(tmp_path, every=3)
    train(3, checkpoint=checkpoint)
    others = [
        ({"num_steps": 2}, "num_steps must be at least 3, the steps of the checkpoint"),
        ({"data": X.at[7].add(0.1)}, r"other data:\n  data: float32\[60\] \w+ before"),
        ({"objective": LangevinMLE(4)}, r"objective.num_steps: 3 before, 4 now\nTo"),
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
            "penalty": lambda params: kaem.kan_penalty(params, l1=l1),
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
        ({"l1": 2.0}, {"penalty"}),
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


def test_a_checkpoint_of_an_earlier_version_goes_on(tmp_path):
    """It does not say what it was trained by."""
    checkpoint = kaem.Checkpoint(tmp_path, every=3)
    whole = train(6)
    train(3, checkpoint=checkpoint)
    path = tmp_path / "step-00000003.npz"
    header, arrays = read_state(path)
    del header["metadata"]["fingerprint"]
    write_arrays(path, header, arrays)
    resumed = train(6, checkpoint=checkpoint)
    np.testing.assert_array_equal(resumed.losses, whole.losses)


# With the settings of the tests, so that both processes compile alike.
SCRIPT = """
import sys
sys.path.insert(0, {root!r})
import conftest
from tests.objectives.test_fit import train
import numpyro_kaem as kaem
train(10**6, checkpoint=kaem.Checkpoint({folder!r}, every=5))
"""


@pytest.mark.long
def test_a_killed_job_loses_at_most_an_interval(tmp_path, pytestconfig):
    code = SCRIPT.format(root=str(pytestconfig.rootpath), folder=str(tmp_path))
    job = subprocess.Popen([sys.executable, "-c", code])
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


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_steps": 0}, ValueError, "num_steps"),
        ({"batch_size": 61}, ValueError, "at most the number of data, 60, got 61"),
        ({"patience": 0}, ValueError, "patience"),
        ({"rng_key": 3}, TypeError, "rng_key must be one random key"),
        ({"objective": "mle"}, TypeError, "objective must be such as"),
        (
            {"objective": Trace_ELBO()},
            ValueError,
            "guide must be given with Trace_ELBO",
        ),
        ({"guide": model}, ValueError, "guide must be left out with LangevinMLE"),
        ({"model": dist.Normal()}, TypeError, "model must be a .*KAEM or another Num"),
        ({"data": "x"}, TypeError, "data must be an array of numbers .* got str"),
        ({"data": [[1.0], [1.0, 2.0]]}, TypeError, "data must be an array of numbers"),
        (
            {"optimizer": 0.1},
            TypeError,
            "optimizer must be such as .*, got 0.1 of ty",
        ),
        ({"optimizer": optax.adam}, TypeError, "optimizer must be such as optax.adam"),
        (
            {"optimizer": numpyro.optim.Adam},
            TypeError,
            "optimizer must be such as optax.adam",
        ),
        ({"batch_size": "a"}, TypeError, "batch_size must be a positive integer"),
        ({"chunk_size": 2.5}, TypeError, "chunk_size must be a positive integer"),
        (
            {"guide": 3, "objective": Trace_ELBO()},
            TypeError,
            "guide must be a guide, a callable, or None, got 3",
        ),
        ({"params": 3}, TypeError, "params must be values by name, or None, got 3"),
        (
            {"params": {"lco": 1.0}},
            ValueError,
            r"names of parameters, which are \['loc'\], got 'lco'",
        ),
        (
            {"params": {"loc": np.ones(3)}},
            ValueError,
            r"params\['loc'\] must have arrays of shapes \[\(\)\], got \[\(3,\)\]",
        ),
        ({"params": {"loc": np.nan}}, ValueError, r"params\['loc'\] must be finite"),
        ({"penalty": 2.0}, TypeError, "penalty must be a function of the parameters"),
        ({"penalty": dist.Normal()}, TypeError, "or None, got an object of type Norm"),
        ({"refit": 5}, TypeError, "refit must be such as .*PriorRefit.*, got 5 of typ"),
        ({"grid_update": True}, TypeError, "grid_update must be such as .*, got True"),
        ({"callback": 3}, TypeError, "callback must be a function of a .*, got 3 of"),
        ({"checkpoint": 5}, TypeError, "checkpoint must be such as .*, got 5 of type"),
        (
            {"checkpoint": "runs"},
            TypeError,
            r"such as .*Checkpoint\(.folder.\)",
        ),
        ({"progress_bar": "no"}, TypeError, "progress_bar must be True or False, got"),
        ({"unit_plate": 3}, TypeError, "unit_plate must be the name of a plate, got 3"),
        (
            {"unit_plate": "rows"},
            ValueError,
            "unit_plate must be that of the objective, 'data', got 'rows'",
        ),
        (
            {"refit": kaem.PriorRefit(start=1, every=1)},
            TypeError,
            "refit needs a numpyro_kaem.KAEM as the model, got function",
        ),
    ],
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=message):
        train(**options)


@pytest.mark.parametrize("data", [np.zeros(0), np.float32(1.0)])
def test_no_data(data):
    with pytest.raises(ValueError, match="data must have shape"):
        kaem.fit(model, data, LangevinMLE(1), optax.adam(0.1), 1, progress_bar=False)


def test_refits_need_chains_and_a_law_of_the_latents():
    options = {
        "refit": kaem.PriorRefit(start=1, every=1),
        "optimizer": optax.adam(0.1),
        "num_steps": 1,
        "progress_bar": False,
    }
    x = np.zeros((5, 3))
    for objective in (ImportanceMLE(5), LangevinMLE(2, persistent=False)):
        with pytest.raises(ValueError, match="refit needs an objective that keeps"):
            kaem.fit(ready_model(), x, objective, **options)
    energy = kaem.Energy(kaem.RBF(-3.0, 3.0, 4), jnp.zeros((3, 1, 4)))
    kart = kaem.KAEM(
        kaem.KAEMPrior(energy), lambda z: z, kaem.NormalLikelihood(0.2), joint="kart"
    )
    with pytest.raises(ValueError, match="law of the latents"):
        kaem.fit(kart, x, LangevinMLE(2), **options)
    with pytest.raises(ValueError, match="x must have shape"):
        kaem.fit(ready_model(), np.zeros((5, 4)), LangevinMLE(2), optax.adam(0.1), 1)
    with pytest.raises(ValueError, match="finite"):
        kaem.fit(
            ready_model(), np.full((5, 3), np.nan), LangevinMLE(2), optax.adam(0.1), 1
        )


# --- models that do not serve --------------------------------------------------------


def outside(x):
    numpyro.sample("w", dist.Normal(0.0, 1.0))
    model(x)


def discrete(x):
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def observed_outside(x):
    model(x)
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=0.3)


def improper(x):
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def unobserved(x):
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(0.0, 1.0))


def no_latent(x):
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (outside, r"all latent sites within the plate 'data'.*'w'"),
        (discrete, "continuous latent sites, got the discrete 'z'"),
        (observed_outside, r"all observed sites within the plate 'data'.*'y'"),
        (improper, "whose prior can be drawn from"),
        (unobserved, "must have an observed site"),
        (no_latent, "must have a latent site"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_models_that_do_not_serve(wrong, message):
    objective = ImportanceMLE(5)
    with handlers.block(), pytest.raises(ValueError, match=message):
        objective.loss(jax.random.key(0), {}, wrong, None, X)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImportanceMLE(0), "num_particles"),
        (lambda: ImportanceMLE(resampling="bootstrap"), "resampling must be None or"),
        (lambda: ImportanceMLE(ess_threshold=0.0), "ess_threshold must be in"),
        (lambda: LangevinMLE(0), "num_steps"),
        (lambda: LangevinMLE(step_size=-1.0), "step_size must be a finite number > 0"),
        (lambda: LangevinMLE(local_move="hmc"), "local_move must be one of"),
        (lambda: ThermodynamicMLE(1), "num_temperatures must be at least 2"),
        (lambda: ThermodynamicMLE(temperatures=[0.0, 0.5]), "end with 1"),
        (lambda: ThermodynamicMLE(estimator="mean"), "estimator must be"),
        (
            lambda: ThermodynamicMLE(power=lambda s: 2.0, adapt_ladder=True),
            "power must be a number",
        ),
        (
            lambda: kaem.infer.AmortisedELBO(lambda x: x, kl_weight=-1.0),
            "kl_weight must be >= 0",
        ),
    ],
)
def test_wrong_objectives(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_chains_need_the_guide_that_keeps_them():
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
    assert "carry the posteriors" in told.verdict
