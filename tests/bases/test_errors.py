"""Each wrong argument of each constructor, and what is said about it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_kaem.bases import (
    RBF,
    RSWAF,
    AbstractBasis,
    BSpline,
    Chebyshev,
    Fourier,
    Wavelet,
)

BASES = [RBF, RSWAF, Wavelet, BSpline, Fourier, Chebyshev]
CENTRED = [RBF, RSWAF, Wavelet]
COUNTS = {
    RBF: "num_basis",
    RSWAF: "num_basis",
    Wavelet: "num_basis",
    BSpline: "num_basis",
    Fourier: "num_frequencies",
    Chebyshev: "degree",
}


@pytest.mark.parametrize(
    ("low", "high", "error", "message"),
    [
        (
            2.0,
            2.0,
            ValueError,
            r"low must be less than high, got low=2.0 and high=2.0\.",
        ),
        (3.0, 2.0, ValueError, "low must be less than high"),
        ([1.0, 5.0], 4.0, ValueError, r"low=5.0 and high=4.0 in column \(1,\)"),
        (np.nan, 2.0, ValueError, "low must be finite, got nan"),
        (1.0, np.inf, ValueError, "high must be finite, got inf"),
        ([1.0, -np.inf], 2.0, ValueError, "low must be finite"),
        ([1.0, 1.0], [2.0] * 3, ValueError, r"broadcast.*got shapes \(2,\) and \(3,\)"),
        ([1.0, [1.0, 1.0]], 2.0, ValueError, "low must be a number or a rectangular"),
        (1.0, [], ValueError, "high must have at least one entry"),
        ("1", 2.0, TypeError, "low must be a real number"),
        (1.0, "ab", TypeError, "high must be a real number"),
        (1.0, True, TypeError, "high must be a real number"),
        (1.0, 2j, TypeError, "high must be a real number"),
    ],
)
def test_grid(low, high, error, message):
    for cls in BASES:
        with pytest.raises(error, match=message):
            cls(low, high, 6)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [x, 1.0]])
def test_grid_must_be_concrete(wrap):
    with pytest.raises(
        TypeError, match="low must be concrete because the grid is stat"
    ):
        jax.jit(lambda low: RBF(wrap(low), 2.0, 6)(1.5))(1.0)


@pytest.mark.parametrize("cls", BASES)
def test_count(cls):
    name = COUNTS[cls]
    expected = "an integer >= 0" if name == "degree" else "a positive integer"
    for wrong in (4.0, True, "4", None, np.bool_(True)):
        with pytest.raises(TypeError, match=f"{name} must be {expected}, got "):
            cls(1.0, 2.0, wrong)
    with pytest.raises(ValueError, match=f"{name} must be {expected}, got -1"):
        cls(1.0, 2.0, -1)
    if name != "degree":
        with pytest.raises(ValueError, match=f"{name} must be {expected}, got 0"):
            cls(1.0, 2.0, 0)
    assert type(getattr(cls(1.0, 2.0, np.int64(5)), name)) is int


def test_bspline_degree():
    with pytest.raises(ValueError, match="degree must be an integer >= 0, got -1"):
        BSpline(1.0, 2.0, 5, degree=-1)
    with pytest.raises(TypeError, match="degree must be an integer >= 0, got False"):
        BSpline(1.0, 2.0, 5, degree=False)
    with pytest.raises(TypeError, match=r"degree must be .* got 2.0 of type float"):
        BSpline(1.0, 2.0, 5, degree=2.0)
    with pytest.raises(ValueError, match="got num_basis=3 and degree=3"):
        BSpline(1.0, 2.0, 3)
    with pytest.raises(ValueError, match="num_basis must be greater than degree"):
        BSpline(1.0, 2.0, 3, degree=4)


def test_wavelet_kind():
    with pytest.raises(ValueError, match=r"kind must be one of 'morlet', .*got 'haar'"):
        Wavelet(1.0, 2.0, 5, kind="haar")
    with pytest.raises(TypeError, match=r"kind must be one of 'morlet', .*got 3"):
        Wavelet(1.0, 2.0, 5, kind=3)


@pytest.mark.parametrize("cls", CENTRED)
def test_bandwidth(cls):
    for wrong in (0.0, -0.5, np.nan, np.inf, jnp.asarray(-1.0), 0):
        with pytest.raises(ValueError, match="bandwidth must be positive and finite"):
            cls(1.0, 2.0, 5, bandwidth=wrong)
    for wrong in (np.ones(5), [1.0, 2.0], jnp.ones((1,))):
        with pytest.raises((TypeError, ValueError), match="bandwidth must be a"):
            cls(1.0, 2.0, 5, bandwidth=wrong)
    for wrong in ("1", None, True, 1j):
        with pytest.raises(TypeError, match="bandwidth must be a real number"):
            cls(1.0, 2.0, 5, bandwidth=wrong)
    assert cls(1.0, 2.0, 5, bandwidth=2).bandwidth == 2.0


@pytest.mark.parametrize("cls", CENTRED)
def test_bandwidth_may_be_traced(cls):
    def first(bandwidth):
        return jnp.sum(cls(1.0, 2.0, 5, bandwidth=bandwidth)(np.float32(1.3)))

    value, slope = jax.jit(jax.value_and_grad(first))(0.7)
    assert np.isfinite(value)
    assert np.isfinite(slope)
    # A constant of a traced function is concrete, and is checked.
    with pytest.raises(ValueError, match="bandwidth must be positive and finite"):
        jax.jit(lambda z: cls(1.0, 2.0, 5, bandwidth=-0.5)(z))(1.3)


def test_the_interface_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        AbstractBasis(1.0, 2.0)
