"""What cannot be saved, and in which precision things come back."""

import functools
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import numpyro_kaem as kaem
from tests.io.cases import DECODERS, Scale, energy, prior, same

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


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: {"a": [lambda z: z]},
            TypeError,
            r"tree\['a'\]\[0\] cannot be saved: a file holds no code, got the function",
        ),
        (
            lambda: functools.partial(max, 1),
            TypeError,
            r"a file holds no functools.partial; save its parts",
        ),
        (
            lambda: kaem.KAEM(
                prior(2), jnp.tanh, lambda x: dist.Normal(x, 1.0).to_event(1)
            ),
            TypeError,
            "tree.likelihood cannot be saved: a file holds no code",
        ),
        (lambda: Scale(jnp.ones(1), (1,)), TypeError, r"pass classes=\[Scale\]"),
        (lambda: {1: 2}, TypeError, "tree must have names as keys, got 1"),
        (
            lambda: OrderedDict(a=1),
            TypeError,
            "no collections.OrderedDict; save its pa",
        ),
        (lambda: 1j, TypeError, "a file holds no builtins.complex"),
        (
            lambda: np.array(["a"]),
            TypeError,
            "the leaf tree must be an array of numbers",
        ),
        (
            lambda: np.array([None]),
            TypeError,
            "the leaf tree must be an array of number",
        ),
        (lambda: dist.LKJ(2), TypeError, "a file holds no numpyro.*LKJ"),
        (
            lambda: dist.SineBivariateVonMises(0.1, 0.2, 1.0, 2.0, 0.1),
            TypeError,
            "tree cannot be saved: SineBivariateVonMises must keep its parameter",
        ),
        (
            lambda: [dist.BetaProportion(jnp.linspace(0.1, 0.9, 50), 2.7)],
            TypeError,
            r"tree\[0\] .* the numbers that it was made from, .* or a Beta\.",
        ),
        (looped, ValueError, r"tree must be nested at most 100 deep, got more at tree"),
        (
            lambda: prior().tree_unflatten((0, False), (energy(), None)),
            ValueError,
            "tree could not be loaded again: .* positive refinement, got 0",
        ),
    ],
    ids=[
        *("function", "partial", "lambda-in-model", "module", "keys", "ordered"),
        *(
            "complex",
            "text",
            "objects",
            "law",
            "lost-parameter",
            "inexact",
            "loop",
            "unloadable",
        ),
    ],
)
def test_what_cannot_be_saved(path, make, error, message):
    with pytest.raises(error, match=message):
        kaem.save(path, make())
    assert not path.exists()


def test_traced_arrays(path):
    def save(x):
        kaem.save(path, {"x": x})

    with pytest.raises(TypeError, match=r"the leaf tree\['x'\] must be concrete"):
        jax.jit(save)(1.0)


def test_a_fit_with_the_likelihood_of_its_units(path):
    units = kaem.unit_log_likelihood(lambda z: dist.Normal(z, 1.0), jnp.array([0.0]))
    fields = dict.fromkeys(kaem.MarginalFit.__dataclass_fields__)
    fit = kaem.MarginalFit(**{**fields, "prior": prior(), "log_likelihood": units})
    with pytest.raises(
        TypeError, match=r"no numpyro_kaem.*MarginalFit; save its parts"
    ):
        kaem.save(path, fit)


@pytest.mark.parametrize("function", [lambda p: kaem.save(p, 1), kaem.load])
def test_paths(function):
    with pytest.raises(TypeError, match="path must be a path, got 3 of type int"):
        function(3)


@pytest.mark.parametrize(
    ("classes", "error", "message"),
    [
        ([jnp.tanh], TypeError, "classes must be classes of Equinox modules, got"),
        ([dict], TypeError, "classes must be classes of Equinox modules, got"),
        ([Scale, Other], ValueError, "classes must have different names"),
    ],
    ids=["function", "dict", "names"],
)
def test_classes(path, classes, error, message):
    with pytest.raises(error, match=message):
        kaem.save(path, 1, classes=classes)


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


@pytest.fixture
def wide(path):
    """A float64 tree, and a file of it."""
    with jax.enable_x64(True):
        tree = {
            "prior": prior(reference=dist.Normal(0.1, jnp.array(0.7))),
            "count": jnp.array(7, jnp.int64),
            "numpy": np.array([0.1]),
            "number": 0.1,
        }
        kaem.save(path, tree)
        assert same(kaem.load(path), tree)
        return tree


def test_float64_is_rounded_where_it_is_not_enabled(path, wide):
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


@pytest.mark.parametrize("value", [1e300, 2**40], ids=["float", "integer"])
def test_numbers_that_are_too_large(path, value):
    with jax.enable_x64(True):
        kaem.save(path, [jnp.array([value])])
    with (
        jax.enable_x64(False),
        pytest.raises(ValueError, match=r"tree\[0\]: holds numbers that are too large"),
    ):
        kaem.load(path)


@pytest.mark.parametrize("dtype", ["int32", "complex64", "text", 3])
def test_other_formats(path, dtype):
    kaem.save(path, jnp.ones(2))
    with pytest.raises(ValueError, match="dtype must be a floating-point format such"):
        kaem.load(path, dtype=dtype)


def test_a_format_that_is_not_enabled(path):
    kaem.save(path, jnp.ones(2))
    with (
        jax.enable_x64(False),
        pytest.raises(ValueError, match="dtype must be enabled, got float64; call"),
    ):
        kaem.load(path, dtype="float64")
