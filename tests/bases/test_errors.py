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

COUNTS = {
    RBF: "num_basis",
    RSWAF: "num_basis",
    Wavelet: "num_basis",
    BSpline: "num_basis",
    Fourier: "num_frequencies",
    Chebyshev: "degree",
}


def test_grid():
    for low, high, error, message in [
        (2.0, 2.0, ValueError, r"low must be less than high, got low=2.0 and high=2.0"),
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
    ]:
        for cls in COUNTS:
            with pytest.raises(error, match=message):
                cls(low, high, 6)
    for wrap in (lambda x: x, lambda x: [x, 1.0]):
        with pytest.raises(
            TypeError, match="low must be concrete because the grid is stat"
        ):
            jax.eval_shape(lambda low, wrap=wrap: RBF(wrap(low), 2.0, 6)(1.5), 1.0)
    # The interface is abstract.
    with pytest.raises(TypeError, match="abstract"):
        AbstractBasis(1.0, 2.0)


def test_counts_and_kinds():
    for cls in COUNTS:
        name = COUNTS[cls]
        expected = "an integer >= 0" if name == "degree" else "a positive integer"
        for wrong in (4.0, True, "4", None, np.bool_(True)):
            with pytest.raises(TypeError, match=f"{name} must be {expected}, got "):
                cls(1.0, 2.0, wrong)
        for wrong in (-1,) if name == "degree" else (-1, 0):
            with pytest.raises(
                ValueError, match=f"{name} must be {expected}, got {wrong}"
            ):
                cls(1.0, 2.0, wrong)
        assert type(getattr(cls(1.0, 2.0, np.int64(5)), name)) is int
    degree = "degree must be an integer >= 0, got"
    kind = "kind must be one of 'morlet', .*got"
    for cls, num_basis, options, error, message in [
        (BSpline, 5, {"degree": -1}, ValueError, f"{degree} -1"),
        (BSpline, 5, {"degree": False}, TypeError, f"{degree} False"),
        (BSpline, 5, {"degree": 2.0}, TypeError, f"{degree} 2.0 of type float"),
        (BSpline, 3, {}, ValueError, "got num_basis=3 and degree=3"),
        (BSpline, 3, {"degree": 4}, ValueError, "num_basis must be greater than deg"),
        (Wavelet, 5, {"kind": "haar"}, ValueError, f"{kind} 'haar'"),
        (Wavelet, 5, {"kind": 3}, TypeError, f"{kind} 3"),
    ]:
        with pytest.raises(error, match=message):
            cls(1.0, 2.0, num_basis, **options)


@pytest.mark.parametrize("cls", [RBF, RSWAF, Wavelet])
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

    # It may be traced; a constant of a traced function is concrete, and is checked.
    def first(bandwidth):
        return jnp.sum(cls(1.0, 2.0, 5, bandwidth=bandwidth)(np.float32(1.3)))

    value, slope = jax.jit(jax.value_and_grad(first))(0.7)
    assert np.isfinite(value)
    assert np.isfinite(slope)
    with pytest.raises(ValueError, match="bandwidth must be positive and finite"):
        jax.eval_shape(lambda z: cls(1.0, 2.0, 5, bandwidth=-0.5)(z), 1.3)
