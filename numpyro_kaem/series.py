"""One panel: the Chebyshev series of a density, its integral, and the inverse of it."""

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["clenshaw", "integrate", "solve_panel"]


def integrate(series: list[jax.Array]) -> list[jax.Array]:
    """Chebyshev coefficients of the integral from -1."""
    n = len(series)

    def get(j: int) -> jax.Array | float:
        return series[j] if j < n else 0.0

    terms = [0.0, series[0] - 0.5 * get(2)]
    terms += [(get(j - 1) - get(j + 1)) / (2 * j) for j in range(2, n + 1)]
    constant = sum(term * (-1.0) ** (j + 1) for j, term in enumerate(terms) if j > 0)
    return [constant, *terms[1:]]


def clenshaw(series: list[jax.Array], t: jax.Array) -> jax.Array:
    """Value of a Chebyshev series at ``t``, by Clenshaw's recurrence."""
    ahead, after = jnp.zeros_like(t), jnp.zeros_like(t)
    for coefficient in reversed(series[1:]):
        ahead, after = 2 * t * ahead - after + coefficient, ahead
    return t * ahead - after + series[0]


def _start(
    fraction: jax.Array, left_slope: jax.Array, right_slope: jax.Array
) -> jax.Array:
    """Inverse of the monotone rational quadratic with given end slopes, on [0, 1].

    Gregory and Delbourgo (1982), "Piecewise rational quadratic interpolation to
    monotonic data", *IMA Journal of Numerical Analysis* 2(2).
    """
    bend = left_slope + right_slope - 2
    a = 1 - left_slope + fraction * bend
    b = left_slope - fraction * bend
    root = jnp.sqrt(jnp.maximum(b * b + 4 * a * fraction, 0))
    return 2 * fraction / jnp.maximum(b + root, 1e-30)


def _bracket(
    integral: list[jax.Array], series: list[jax.Array], target: jax.Array
) -> tuple[jax.Array, ...]:
    """Part of a panel in which the integral reaches a target.

    Newton's method creeps where the density changes by much within its bracket, so the
    panel is cut into eight first, at fixed points: products with constants.

    Returns
    -------
    tuple
        Left end, integral and density there, and the same of the right end.
    """
    values = np.polynomial.chebyshev.chebvander(np.linspace(-1, 1, 9), len(series))

    def at(i: int) -> tuple[jax.Array, jax.Array]:
        row = values[i].tolist()
        terms = zip(row, integral, strict=True)
        # Without the last row of the integral, which has one more term.
        density = sum(v * c for v, c in zip(row, series, strict=False))
        return sum(v * c for v, c in terms), density

    zero = jnp.zeros_like(target)
    left = (zero - 1, zero, at(0)[1])
    right = (zero + 1, *at(8))
    for i in range(1, 8):
        point = (zero + float(-1 + i / 4), *at(i))
        below = point[1] <= target
        first = ~below & (point[0] < right[0])
        left = tuple(
            jnp.where(below, p, old) for p, old in zip(point, left, strict=True)
        )
        right = tuple(
            jnp.where(first, p, old) for p, old in zip(point, right, strict=True)
        )
    return *left, *right


def solve_panel(row: jax.Array, mass: jax.Array, upper: jax.Array) -> jax.Array:
    """Point of a panel with a given mass below (or above) it.

    Parameters
    ----------
    row
        Row of the table, shape ``(..., num_nodes + 4)``.
    mass
        Mass below the point, or above it where ``upper``, shape (...,).
    upper
        Which of the two, shape (...,).
    """
    num_nodes = row.shape[-1] - 4
    series = [row[..., j] for j in range(num_nodes)]
    below, above, left, width = (row[..., num_nodes + j] for j in range(4))
    integral = integrate(series)
    total = sum(integral)
    target = jnp.where(upper, total - (mass - above), mass - below)
    positive = total > 0
    target = jnp.where(positive, jnp.clip(target, 0, total), 0)
    low, low_mass, low_slope, high, high_mass, high_slope = _bracket(
        integral, series, target
    )
    tiny = jnp.finfo(target.dtype).tiny
    part = jnp.maximum(high_mass - low_mass, tiny)
    scale = (high - low) / part
    fraction = jnp.clip((target - low_mass) / part, 0, 1)
    slopes = [jnp.maximum(slope, 0) * scale for slope in (low_slope, high_slope)]
    t = low + (high - low) * _start(fraction, *slopes)
    for _ in range(5 if t.dtype == jnp.float64 else 4):
        t = jnp.clip(t, low, high)
        error = clenshaw(integral, t) - target
        low = jnp.where(error > 0, low, t)
        high = jnp.where(error > 0, t, high)
        proposal = t - error / jnp.maximum(clenshaw(series, t), tiny)
        # Newton's step where it stays in the bracket, else its middle.
        inside = (proposal >= low) & (proposal <= high)
        t = jnp.where(inside, proposal, 0.5 * (low + high))
    t = jnp.where(positive, t, -1)
    return left + width * (0.5 * (t + 1))
