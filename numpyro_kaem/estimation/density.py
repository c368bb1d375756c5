"""Densities from samples."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.transforms import AffineTransform

from numpyro_kaem._quadrature import nodes_per_panel
from numpyro_kaem.bases import AbstractBasis, BSpline
from numpyro_kaem.distributions import KAEMPrior
from numpyro_kaem.energy import Energy
from numpyro_kaem.estimation.exponential_family import (
    Family,
    Fit,
    fit_columns,
    mean_features,
)
from numpyro_kaem.estimation.samples import (
    Numbers,
    as_penalty,
    as_samples,
    as_shares,
    as_widths,
    cell_ends,
    check_concrete,
    coarse,
    hint_of_chains,
    spread,
    support_ends,
    warn_of_width,
)
from numpyro_kaem.numerics.nodes import Cells, Nodes, make_cell_nodes, make_nodes
from numpyro_kaem.references import (
    ReferenceParameters,
    check_reference,
    log_density,
)

__all__ = ["choose_parts", "fit_density"]

# The reference is wider than the samples, so that the tails keep mass.
_INFLATION = 1.5
# Margin of the grid beyond the extreme samples, in units of their range, and its
# largest reach beyond the 5% and 95% quantiles, in units of their distance.
_MARGIN = 0.2
_REACH = 2.0
# Number of B-splines for samples fewer than so many.
_NUM_BASIS = ((300, 24), (10_000, 40), (np.inf, 60))
# Parts of the panels, until they resolve the fit.
_REFINEMENTS = (1, 4, 16)


def fit_density(
    samples: Numbers,
    basis: AbstractBasis | None = None,
    reference: dist.Distribution | None = None,
    *,
    support: str | tuple[Numbers, Numbers] | None = None,
    penalty: Numbers | None = None,
    weights: Numbers | None = None,
    rounding: Numbers | str | None = None,
) -> KAEMPrior:
    r"""Fit a density to samples by penalised maximum likelihood.

    The density is :math:`\pi(z) \propto e^{f(z)} \pi_0(z)` with the energy
    :math:`f = \sum_g c_g \phi_g`. Its coefficients are the maximum of

    .. math::

        \sum_{i=1}^n w_i \log \pi(x_i)
        - \frac{\lambda}{2} \int_0^1 f'''(s)^2 \,\mathrm{d}s
        - \frac{\varepsilon}{2} \int_0^1 \bigl(f(s) - \bar f\bigr)^2 \,\mathrm{d}s,

    with :math:`s` the position in the grid and :math:`\varepsilon = 10^{-3}`. For
    exact samples this is concave: there is one maximum. The smoothest densities, with
    :math:`f''' = 0`, are the reference times a quadratic exponential: Normal where the
    reference is.

    Parameters
    ----------
    samples
        Samples :math:`x`, shape ``(n,)`` for one density, or ``(n, *batch_shape)`` for
        one density per column; finite and concrete. Integers and pandas objects are
        converted, by position; masked entries are refused.
    basis
        Features :math:`\phi`, with their grid. ``None`` takes cubic B-splines (24,
        40 or 60 for ``n`` below 300, below 10,000 and from there) on a grid that covers
        the samples and 20 % of their range on either side, but ends two times the
        distance between the 5 % and 95 % quantiles beyond these.
    reference
        Reference distribution :math:`\pi_0`, whose parameters are not fitted. It sets
        the tails beyond the grid: for samples with heavy tails take a heavy-tailed one,
        such as a Cauchy, and a grid on the bulk. ``None`` follows ``support``.
    support
        Support without a ``reference``, which sets the tails. ``"real"`` or ``None``:
        Normal at the median, with 1.5 times the larger of the standard deviation and
        the interquartile range over 1.349. ``"positive"``: LogNormal, likewise on the
        logarithms. ``(low, inf)``: the same, from ``low`` on. ``(low, high)``: Uniform,
        without tails. Ends are numbers, or arrays that broadcast to ``batch_shape``.
        Any later observation in the support has a positive density.
    penalty
        Weight :math:`\lambda \ge 0` of the roughness, broadcasting to ``batch_shape``.
        ``None`` maximises its marginal likelihood, see Notes. With 0 the density
        overfits.
    weights
        Importance weights, shape ``(n,)`` or ``samples.shape``; non-negative, not all
        zero. Only their ratios count: :math:`w_i` sum to the effective sample size
        :math:`(\sum w)^2 / \sum w^2` of each column. ``None`` weighs samples alike.
    rounding
        Spacing :math:`\delta` to which samples were rounded, broadcasting to
        ``batch_shape``, 0 where they were not; ``"none"`` takes all as exact; ``None``
        detects it, see Notes. A rounded sample :math:`x` is known to lie in the
        interval from :math:`x - \delta / 2` to :math:`x + \delta / 2`, cut to the
        support, and :math:`\log \pi(x)` becomes the log of its mass.

    Returns
    -------
    KAEMPrior
        Concrete density of shape ``samples.shape[1:]``, in the default float format.

    Raises
    ------
    TypeError
        If an argument is traced or of a wrong type.
    ValueError
        If samples are missing, not finite, or outside the support; if the location and
        scale of samples without two distinct values are needed; if shapes do not fit,
        weights or penalty are negative or not finite, ``support`` is not known or given
        with ``reference``; or if all samples of a column miss the grid of ``basis``.

    Warns
    -----
    UserWarning
        If there are several columns, because only the marginals are kept; if rounding
        is found, or is to more than one and a half standard deviations; if Newton's
        method does not converge, or the quadrature does not resolve the density; if
        mean, standard deviation or distribution function of a density differ from those
        of its samples by more than chance allows.

    Notes
    -----
    - **Penalty.** The last two terms are the log of a Normal prior on the energy. The
      default maximises the Laplace approximation of the marginal likelihood over 24
      values of :math:`\lambda` in geometric progression, among those for which the
      quadrature resolves the density, then over the parabola through the best three.
      For B-splines the roughness is the sum of squared third differences of the
      coefficients, scaled to the integral (Eilers and Marx 1996).
    - **Rounding.** It is found where a twentieth of the samples or more are tied at
      values of one spacing; other ties, as of resampled draws, count as exact. Heaps at
      multiples of the spacing, as of ages at 5 and 10, are samples rounded to these: so
      many count for the wider intervals as the values between would not lead to expect
      (Heitjan and Rubin 1990). ``rounding`` as a number takes no heaps. Samples
      of intervals finer than a quarter of the grid per feature are spread evenly over
      these. The standard deviation is that before rounding, as Sheppard's correction
      :math:`\sqrt{s^2 - \delta^2 / 12}`. Within intervals wider than a standard
      deviation, the shape is that of the smoothest density.
    - **Cost.** Features of the samples are visited once. A Newton step is a few
      products of matrices of nodes by features; none depends on ``n``. Calls with the
      same shapes and basis share compiled code.

    References
    ----------
    Silverman (1982), "On the estimation of a probability density function by the
    maximum penalized likelihood method", *Annals of Statistics* 10(3).
    Stone (1990), "Large-sample inference for log-spline models", *Annals of Statistics*
    18(2).
    Eilers and Marx (1996), "Flexible smoothing with B-splines and penalties",
    *Statistical Science* 11(2).
    Heitjan (1989), "Inference from grouped continuous data: a review", *Statistical
    Science* 4(2).
    Heitjan and Rubin (1990), "Inference from coarse data via multiple imputation with
    application to age heaping", *Journal of the American Statistical Association*
    85(410).
    Wood (2011), "Fast stable restricted maximum likelihood and marginal likelihood
    estimation of semiparametric generalized linear models", *Journal of the Royal
    Statistical Society B* 73(1).
    Kish (1965), *Survey Sampling*, Wiley, section 11.7.

    Examples
    --------
    >>> import numpy as np
    >>> import numpyro_kaem as kaem
    >>> samples = np.random.default_rng(0).normal(5.0, 2.0, size=20_000)
    >>> prior = kaem.fit_density(samples)
    >>> round(float(prior.mean), 1), round(float(prior.variance) ** 0.5, 1)
    (5.0, 2.0)
    >>> bool(np.isfinite(prior.log_prob(100.0)))
    True
    """
    arguments = (samples, weights, penalty, reference, basis, support)
    check_concrete("fit_density", *arguments)
    data = as_samples(samples)
    batch_shape = data.shape[1:]
    shares, num_effective = as_shares(weights, data)
    penalty = as_penalty(penalty, batch_shape)
    ends = support_ends(support, reference, batch_shape)
    widths = as_widths(rounding, data, shares)
    even = spread(data, widths, ends)
    basis, reference, parameters = choose_parts(even, shares, basis, reference, support)
    widths = coarse(widths, basis, rounding)
    warn_of_width(even, widths)
    if data.size > len(data):
        warnings.warn(
            "only the marginals are kept: one density is fitted to each of the "
            f"{data.size // len(data)} columns of samples, which are then independent. "
            "Fit a joint form, such as a mixture of products or an autoregressive "
            "density, to keep their dependence."
            + hint_of_chains(data.shape, "columns"),
            UserWarning,
            stacklevel=2,
        )

    dtype = jnp.zeros(()).dtype
    num_effective = num_effective.reshape(-1)
    position = basis.to_unit(jnp.asarray(even, dtype)).reshape(len(data), -1)
    shares_of = shares.reshape(len(data), -1)

    for refinement in _REFINEMENTS:
        if np.any(widths > 0):
            low, high = cell_ends(data, widths, ends)
            nodes, cells, alone = make_cell_nodes(
                basis, parameters, low, high, shares, ends, refinement
            )
            exact = np.where(alone, shares_of, 0)
        else:
            nodes = make_nodes(basis, parameters, batch_shape, dtype, refinement)
            cells, exact = None, shares_of
        means = jnp.asarray(np.zeros((position.shape[1], basis.num_features), dtype))
        if np.any(exact):
            means = mean_features(basis, position, jnp.asarray(exact, dtype))
        size, family = jnp.asarray(num_effective, dtype), Family.of(basis, nodes)
        result = fit_columns(family, means, size, penalty, cells=cells)
        if np.all(result.resolved):
            break
    _check_converged(result)
    _check_agreement(
        result,
        nodes,
        cells,
        np.asarray(position),
        exact,
        num_effective,
        basis,
        batch_shape,
    )
    coefficients = result.coefficients.reshape(*batch_shape, basis.num_features)
    return KAEMPrior(Energy(basis, coefficients), reference)


# --- the basis and the reference -----------------------------------------------------


def choose_parts(
    data: np.ndarray,
    shares: np.ndarray,
    basis: AbstractBasis | None,
    reference: dist.Distribution | None,
    support: Any,
) -> tuple[AbstractBasis, dist.Distribution | None, ReferenceParameters | None]:
    """Check basis and reference, or choose them; also the reference's parameters."""
    batch_shape = data.shape[1:]
    if basis is not None and not isinstance(basis, AbstractBasis):
        raise TypeError(
            "basis must be a basis such as numpyro_kaem.BSpline(low, high, num_basis) "
            f"or None, got {type(basis).__name__}."
        )
    low, high, kind = ends = support_ends(support, reference, batch_shape)
    bad = ((data <= low) if kind == "above" else (data < low)) | (data > high)
    if bad.any():
        end = " (without its lower end)" if kind == "above" else ""
        raise ValueError(
            f"samples must lie in the support from {low} to {high}{end}, got "
            f"{bad.sum()} of {data.size} outside, the first of them {data[bad][0]}."
        )
    if basis is None or (reference is None and kind != "interval"):
        _check_spread(data, shares, basis, reference)
    if basis is None:
        basis = _default_basis(data, shares, ends)
    elif np.broadcast_shapes(basis.grid_shape, batch_shape) != batch_shape:
        raise ValueError(
            "the grid of basis must broadcast to the columns of samples, of shape "
            f"{batch_shape}, got {basis.grid_shape}."
        )
    if reference is None:
        reference = _default_reference(data, shares, ends, basis)
    low, high = np.asarray(basis.low), np.asarray(basis.high)
    if not ((data >= low) & (data <= high) & (shares > 0)).any(0).all():
        raise ValueError(
            f"the grid of basis must contain samples, got low={basis.low} and "
            f"high={basis.high} for samples from {data.min()} to {data.max()}."
        )
    return basis, reference, _parameters_of(reference, basis, data)


def _check_spread(
    data: np.ndarray, shares: np.ndarray, basis: Any, reference: Any
) -> None:
    """Check that every column has two distinct samples."""
    used = np.broadcast_to(shares > 0, data.shape)
    least = np.where(used, data, np.inf).min(0)
    equal = least == np.where(used, data, -np.inf).max(0)
    if equal.any():
        column = tuple(int(i) for i in np.argwhere(equal)[0])
        where = f" in column {column}" if column else ""
        parts = (("basis", basis), ("reference", reference))
        missing = [name for name, part in parts if part is None]
        raise ValueError(
            "samples must have at least 2 distinct values of positive weight, got only "
            f"{least[column]}{where}; pass {' and '.join(missing)} to fit fewer."
        )


def _parameters_of(
    reference: dist.Distribution | None, basis: AbstractBasis, data: np.ndarray
) -> ReferenceParameters | None:
    """Parameters of a reference that is positive at all samples."""
    if reference is None:
        return None
    dtype = jnp.zeros(()).dtype
    check_reference(reference, Energy(basis, jnp.zeros(basis.num_features, dtype)))
    batch_shape = data.shape[1:]
    if np.broadcast_shapes(reference.batch_shape, batch_shape) != batch_shape:
        raise ValueError(
            "the batch shape of reference must broadcast to the columns of samples, of "
            f"shape {batch_shape}, got {reference.batch_shape}."
        )
    parameters = ReferenceParameters.of(reference)
    log_densities = np.asarray(_log_density(parameters, jnp.asarray(data, dtype)))
    bad = ~(log_densities > -np.inf)
    if bad.any():
        raise ValueError(
            "samples must have positive density under the reference, got "
            f"{bad.sum()} of {data.size} without under {type(reference).__name__}, the "
            f"first of them {data[bad][0]}."
        )
    return parameters


@jax.jit
def _log_density(parameters: ReferenceParameters, z: jax.Array) -> jax.Array:
    return log_density(parameters.build(), z)


def _quantiles(data: np.ndarray, shares: np.ndarray, levels: list[float]) -> np.ndarray:
    """Weighted quantiles of every column, shape ``(num_levels, *batch_shape)``."""
    if np.all(shares == shares.flat[0]):
        return np.quantile(data, levels, axis=0)
    order = np.argsort(data, axis=0)
    values = np.take_along_axis(data, order, 0).reshape(len(data), -1)
    shares = np.take_along_axis(np.broadcast_to(shares, data.shape), order, 0)
    middle = (np.cumsum(shares, 0) - 0.5 * shares).reshape(values.shape)
    columns = [np.interp(levels, m, v) for m, v in zip(middle.T, values.T, strict=True)]
    return np.stack(columns, -1).reshape(len(levels), *data.shape[1:])


def _default_basis(data: np.ndarray, shares: np.ndarray, ends: tuple) -> BSpline:
    num_basis = next(count for limit, count in _NUM_BASIS if len(data) < limit)
    bottom, top, _ = ends
    used = np.broadcast_to(shares > 0, data.shape)
    least = np.where(used, data, np.inf).min(0)
    most = np.where(used, data, -np.inf).max(0)
    lower, upper = _quantiles(data, shares, [0.05, 0.95])
    margin = _MARGIN * (most - least)
    # Many equal samples leave no distance between quantiles.
    reach = np.where(upper > lower, _REACH * (upper - lower), np.inf)
    low = np.maximum(np.maximum(least - margin, lower - reach), bottom)
    high = np.minimum(np.minimum(most + margin, upper + reach), top)
    bounded = np.isfinite(bottom) & np.isfinite(top)
    low, high = np.where(bounded, bottom, low), np.where(bounded, top, high)
    return BSpline(low, high, num_basis)


def _default_reference(
    data: np.ndarray, shares: np.ndarray, ends: tuple, basis: AbstractBasis
) -> dist.Distribution | None:
    low, high, kind = ends
    as_array = lambda x: jnp.asarray(x, jnp.zeros(()).dtype)  # noqa: E731
    if kind == "interval":
        # The uniform distribution on the grid has static ends.
        same = np.all(low == np.asarray(basis.low)) & np.all(high == basis.high)
        return None if same else dist.Uniform(as_array(low), as_array(high))
    values = data if kind == "real" else np.log(data - low)
    lower, median, upper = _quantiles(values, shares, [0.25, 0.5, 0.75])
    mean = np.sum(shares * values, 0)
    deviation = np.sqrt(np.sum(shares * np.square(values - mean), 0))
    scale = _INFLATION * np.maximum(deviation, (upper - lower) / 1.349)
    family = dist.Normal if kind == "real" else dist.LogNormal
    reference = family(as_array(median), as_array(scale))
    if kind == "real" or np.all(low == 0):
        return reference
    above = AffineTransform(as_array(low), 1.0, domain=constraints.positive)
    return dist.TransformedDistribution(reference, above)


# --- what a fit is worth -------------------------------------------------------------


def _check_converged(fit: Fit) -> None:
    """Warn of fits that did not converge, or that the quadrature does not resolve."""
    for what, bad, remedy in (
        (
            "the fit of {} of {} densities did not converge",
            ~np.asarray(fit.converged),
            "a larger penalty, fewer features, or float64",
        ),
        (
            "the quadrature does not resolve {} of {} fitted densities, which are not "
            "the ones of largest likelihood",
            ~np.asarray(fit.resolved),
            "a larger penalty, or a grid no wider than the samples need",
        ),
    ):
        if bad.any():
            warnings.warn(
                f"{what.format(bad.sum(), len(bad))}; use {remedy}.",
                UserWarning,
                stacklevel=3,
            )


def _check_agreement(
    fit: Fit,
    nodes: Nodes,
    cells: Cells | None,
    position: np.ndarray,
    shares: np.ndarray,
    num_effective: np.ndarray,
    basis: AbstractBasis,
    batch_shape: tuple[int, ...],
) -> None:
    """Warn of densities that differ from their samples more than chance allows.

    Positions are cut to the grid, so that both have all moments. A sample that is known
    as an interval counts as the density within it; ``shares`` are those of the others.
    """
    masses = np.asarray(fit.masses, float)
    rows = np.asarray(nodes.position, float)
    breaks = np.asarray(basis.panel_breaks, float)
    messages = []
    for i, mass in enumerate(masses):
        s = rows[i % len(rows)]
        x, w = position[:, i], shares[:, i % shares.shape[1]]
        points, parts = breaks, [(x, w)]
        if cells is not None:
            points, pooled = _of_cells(
                s, mass, *(np.asarray(part[i]) for part in cells)
            )
            parts.append((s, pooled))
        mean, deviation, fourth, below = _summary([(s, mass)], points)
        seen = _summary(parts, points)
        # The standard errors of samples of the density; rounding is far below 0.002.
        error = 4.5 / np.sqrt(num_effective[i])
        allowed = (
            (error + 0.002) * deviation,
            (0.5 * error * np.sqrt(max(fourth - 1, 0.1)) + 0.002) * deviation,
            2.2 / np.sqrt(num_effective[i]) + 0.002,
        )
        gap = np.max(np.abs(below - seen[3]), initial=0)
        found = (abs(mean - seen[0]), abs(deviation - seen[1]), gap)
        if any(f > a for f, a in zip(found, allowed, strict=True)):
            column = tuple(int(j) for j in np.unravel_index(i, batch_shape))
            messages.append(
                f"mean {mean:.4g} for {seen[0]:.4g}, standard deviation "
                f"{deviation:.4g} for {seen[1]:.4g}, both in units of the grid, and "
                f"distribution functions up to {gap:.3f} apart"
                + (f" in column {column}" if column else "")
            )
    if messages:
        more = f", and {len(messages) - 1} more" if len(messages) > 1 else ""
        warnings.warn(
            "a fitted density differs from its samples by more than chance allows: "
            f"{messages[0]}{more}. Use a smaller penalty, more features, or a grid "
            "that covers the samples; and where samples were rounded, tell the spacing "
            "by rounding.",
            UserWarning,
            stacklevel=3,
        )


def _summary(
    parts: list[tuple[np.ndarray, np.ndarray]], points: np.ndarray
) -> tuple[float, float, float, np.ndarray]:
    """Mean, standard deviation, kurtosis, and masses below points."""
    mean = sum(w @ x for x, w in parts)
    squares = [(np.square(x - mean), w) for x, w in parts]
    square = sum(w @ x for x, w in squares)
    fourth = sum(w @ np.square(x) for x, w in squares)
    counts = sum(
        np.bincount(np.searchsorted(points, x, "right"), w, len(points) + 1)
        for x, w in parts
    )
    # Of a single point it is the least that there is.
    kurtosis = fourth / square**2 if square**2 > 0 else 1.0
    return mean, np.sqrt(square), kurtosis, np.cumsum(counts)[:-1]


def _of_cells(
    position: np.ndarray,
    mass: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    shares: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Find ends of panels that no cell contains, and the cells' shares of the nodes."""
    num_nodes = nodes_per_panel(jnp.zeros(()).dtype)
    panels, s = mass.reshape(-1, num_nodes), position.reshape(-1, num_nodes)
    total, factor, inside = panels.sum(1), *np.zeros((2, len(panels)))
    # One by one: in running sums those of little mass would be lost.
    for start, end, share in zip(first, last, shares, strict=True):
        if end > start:
            known = total[start:end].sum()
            factor[start:end] += share / known if known > 0 else 0.0
            # A panel end is inside a cell if that starts before it.
            inside[start + 1 : end] += 1
    free = inside[1:] < 0.5
    ends = 0.5 * (s[:-1, -1] + s[1:, 0])
    return np.unique(ends[free]), (panels * factor[:, None]).reshape(-1)
