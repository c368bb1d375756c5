"""What cannot be saved, and in which precision things come back."""

import functools
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import numpyro_kaem as kaem
from tests.files.cases import DECODERS, Scale, energy, prior, same

pytestmark = pytest.mark.float64


@pytest.fixture
def path(tmp_path):
    return tmp_path / "saved.npz"


# --- refused before anything is written ----------------------------------------------


def looped():
    entries = []
    entries.append(entries)
    return entries


class Other(Scale):
    """A module with the name of another one."""


Other.__qualname__ = "Scale"


def fit_of_units():
    units = kaem.unit_log_likelihood(lambda z: dist.Normal(z, 1.0), np.array([0.0]))
    fields = dict.fromkeys(kaem.MarginalFit.__dataclass_fields__)
    return kaem.MarginalFit(**{**fields, "prior": prior(), "log_likelihood": units})


def test_what_cannot_be_saved(path):
    """Its place and what to do are told, and no file is begun."""
    noise = lambda x: dist.Normal(x, 1.0).to_event(1)  # noqa: E731
    cases = [
        (
            {"a": [lambda z: z]},
            r"tree\['a'\]\[0\] cannot be saved: a file holds no code, got the function",
        ),
        (functools.partial(max, 1), "a file holds no functools.partial; save its part"),
        (
            kaem.KAEM(prior(2), jnp.tanh, noise),
            "tree.likelihood cannot be saved: a file holds no code",
        ),
        (Scale(jnp.ones(1), (1,)), r"pass classes=\[Scale\]"),
        ({1: 2}, "tree must have names as keys, got 1"),
        (OrderedDict(a=1), "no collections.OrderedDict; save its pa"),
        (1j, "a file holds no builtins.complex"),
        (np.array(["a"]), "the leaf tree must be an array of numbers"),
        (np.array([None]), "the leaf tree must be an array of numbers"),
        (dist.LKJ(2), "a file holds no numpyro.*LKJ"),
        (
            dist.SineBivariateVonMises(0.1, 0.2, 1.0, 2.0, 0.1),
            "tree cannot be saved: SineBivariateVonMises must keep its parameter",
        ),
        (
            [dist.BetaProportion(jnp.linspace(0.1, 0.9, 50), 2.7)],
            r"tree\[0\] .* the numbers that it was made from, .* or a Beta\.",
        ),
        (fit_of_units(), r"no numpyro_kaem.*MarginalFit; save its parts"),
    ]
    for tree, message in cases:
        with pytest.raises(TypeError, match=message):
            kaem.save(path, tree)
    with pytest.raises(TypeError, match=r"the leaf tree\['x'\] must be concrete"):
        jax.jit(lambda x: kaem.save(path, {"x": x}))(1.0)
    with pytest.raises(
        ValueError, match="tree must be nested at most 100 deep, got mo"
    ):
        kaem.save(path, looped())
    not_positive = prior().tree_unflatten((0, False), (energy(), None))
    message = "tree could not be loaded again: .* positive refinement, got 0"
    with pytest.raises(ValueError, match=message):
        kaem.save(path, not_positive)
    assert not path.exists()


def test_wrong_arguments(path):
    for function in (lambda p: kaem.save(p, 1), kaem.load):
        with pytest.raises(TypeError, match="path must be a path, got 3 of type int"):
            function(3)
    message = "classes must be classes of Equinox modules, got"
    for classes in ([jnp.tanh], [dict]):
        with pytest.raises(TypeError, match=message):
            kaem.save(path, 1, classes=classes)
    with pytest.raises(ValueError, match="classes must have different names"):
        kaem.save(path, 1, classes=[Scale, Other])
    kaem.save(path, jnp.ones(2))
    message = "dtype must be a floating-point format such"
    for dtype in ("int32", "complex64", "text", 3):
        with pytest.raises(ValueError, match=message):
            kaem.load(path, dtype=dtype)
    message = "dtype must be enabled, got float64; call"
    with jax.enable_x64(False), pytest.raises(ValueError, match=message):
        kaem.load(path, dtype="float64")


# --- precision -----------------------------------------------------------------------


def as_format(tree, dtype):
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


def test_float32_stays_where_float64_is_enabled(path):
    trees = (as_format(prior(2), "float32"), as_format(DECODERS["kan"](), "float32"))
    kaem.save(path, trees)
    with jax.enable_x64(True):
        loaded = kaem.load(path)
        assert same(loaded, trees)
        wide = kaem.load(path, dtype="float64")
        assert {x.dtype.name for x in jax.tree.leaves(wide)} == {"float64"}
        assert same(as_format(wide, "float32"), trees)


def test_float64_is_rounded_where_it_is_not_enabled(path):
    with jax.enable_x64(True):
        wide = {
            "prior": prior(reference=dist.Normal(0.1, jnp.array(0.7))),
            "count": jnp.array(7, jnp.int64),
            "numpy": np.array([0.1]),
            "number": 0.1,
        }
        kaem.save(path, wide)
        assert same(kaem.load(path), wide)
    with jax.enable_x64(False):
        with pytest.warns(UserWarning, match="2 arrays of .* rounded to 32 bits"):
            loaded = kaem.load(path)
        np.testing.assert_array_equal(
            loaded["prior"].energy.coefficients,
            np.asarray(wide["prior"].energy.coefficients).astype(np.float32),
        )
        assert loaded["prior"].reference.scale == np.float32(0.7)
        assert loaded["count"].dtype == np.int32
        # NumPy's and Python's numbers need no permission.
        assert loaded["numpy"].dtype == np.float64
        assert loaded["number"] == loaded["numpy"] == 0.1
        # Asked for, it needs no warning; nor where no digit is lost.
        assert same(kaem.load(path, dtype=jnp.float32), loaded)
        kaem.save(path, loaded)
        assert same(kaem.load(path), loaded)
    message = r"tree\[0\]: holds numbers that are too large"
    for value in (1e300, 2**40):
        with jax.enable_x64(True):
            kaem.save(path, [jnp.array([value])])
        with jax.enable_x64(False), pytest.raises(ValueError, match=message):
            kaem.load(path)
