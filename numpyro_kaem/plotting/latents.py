"""Figures of samples, and of what latents do."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike

from numpyro_kaem._checks import as_count, as_name, as_real
from numpyro_kaem.distributions import AutoregressiveKAEMPrior
from numpyro_kaem.models.kaem import KAEM
from numpyro_kaem.plotting.style import make_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NUM_HALVINGS = 50

__all__ = [
    "interpolate_latents",
    "plot_interpolation",
    "plot_samples",
    "plot_traversal",
]


def plot_samples(
    samples: ArrayLike,
    *,
    real: ArrayLike | None = None,
    num_columns: int = 8,
    num_rows: int = 4,
    limits: tuple[float, float] | None = None,
    colorbar: bool = False,
    ax: Any = None,
) -> "Axes | np.ndarray":
    """Draw images or fields in a grid, real ones beside generated ones.

    Parameters
    ----------
    samples
        Generated images, shape ``(num_samples, height, width)``, or with a last axis of
        one channel, or of three colours from 0 to 1. The first ones are drawn.
    real
        Data to compare with, shape ``(num_data, height, width)``, drawn on the left.
    num_columns, num_rows
        Size of each grid.
    limits
        Values at both ends of the colour map; by default the extremes of all that is
        drawn, so that both grids have one scale.
    colorbar
        Whether to draw the scale, as for fields with units; it is not of greys then.
    ax
        Axes to draw in, and returned: one, or two with ``real``. ``None`` makes new
        ones.

    Raises
    ------
    TypeError
        If a number is not an integer.
    ValueError
        If the arrays are empty, not images of one size, or not finite; a number is not
        positive; or ``ax`` holds another number of axes.

    Examples
    --------
    >>> import jax
    >>> import matplotlib.pyplot as plt
    >>> import numpyro_kaem as kaem
    >>> images = jax.random.uniform(jax.random.key(0), (20, 8, 8))
    >>> ax = kaem.plot_samples(images, num_columns=4, num_rows=2)
    >>> ax.images[0].get_array().shape
    (17, 35)
    >>> plt.close(ax.figure)
    """
    num_columns = as_count("num_columns", num_columns)
    num_rows = as_count("num_rows", num_rows)
    grids = [_as_images("samples", samples)]
    if real is not None:
        grids.insert(0, _as_images("real", real))
        if grids[0].shape[1:] != grids[1].shape[1:]:
            raise ValueError(
                f"real must hold images of the shape of samples, {grids[1].shape[1:]}, "
                f"got {grids[0].shape[1:]}."
            )
    grids = [grid[: num_columns * num_rows] for grid in grids]
    if limits is None:
        limits = min(g.min() for g in grids), max(g.max() for g in grids)
    elif np.shape(limits) != (2,):
        raise ValueError(f"limits must be two numbers, got {limits!r}.")
    cmap = "viridis" if colorbar else "gray_r"

    size = (0.6 * num_columns * len(grids) + 0.4, 0.6 * num_rows + 0.4)
    axes = make_axes(ax, (len(grids),), size)
    for panel, grid in zip(axes, grids, strict=True):
        image = _draw_image(panel, _tile(grid, num_columns), limits, cmap)
    if len(grids) == 2:
        for panel, title in zip(axes, ("real", "generated"), strict=True):
            panel.set_title(title, fontsize="medium")
    if colorbar and image.get_array().ndim == 2:
        axes[0].figure.colorbar(image, ax=list(axes), shrink=0.8)
    return axes if len(grids) == 2 else axes[0]


def _draw_image(
    panel: "Axes",
    image: np.ndarray,
    limits: tuple[float, float],
    cmap: str = "gray_r",
) -> Any:
    """Draw one image without ticks."""
    if image.ndim == 3:
        drawn = panel.imshow(np.clip(image, 0.0, 1.0), interpolation="nearest")
    else:
        drawn = panel.imshow(
            image, cmap=cmap, vmin=limits[0], vmax=limits[1], interpolation="nearest"
        )
    panel.set(xticks=[], yticks=[])
    return drawn


def _as_images(name: str, images: ArrayLike) -> np.ndarray:
    """Finite images, ``(n, height, width)`` or ``(n, height, width, 3)``."""
    images = np.asarray(images)
    if not _are_images(images) or images.size == 0:
        raise ValueError(
            f"{name} must hold images of shape (n, height, width), or "
            f"(n, height, width, 1 or 3), got {images.shape}."
        )
    images = _without_channel(images)
    if not np.all(np.isfinite(images)):
        raise ValueError(f"{name} must be finite, some values are not.")
    return images


def _are_images(images: np.ndarray) -> bool:
    """Whether the axes are those of grey images, or of one or three channels."""
    return images.ndim == 3 or (images.ndim == 4 and images.shape[-1] in (1, 3))


def _without_channel(images: np.ndarray) -> np.ndarray:
    """Grey images without an axis for their channel."""
    is_grey = images.ndim == 4 and images.shape[-1] == 1
    return images[..., 0] if is_grey else images


def _tile(images: np.ndarray, num_columns: int) -> np.ndarray:
    """One picture of all images, row by row, one empty pixel between them."""
    count, height, width = images.shape[:3]
    num_columns = min(num_columns, count)
    num_rows = -(-count // num_columns)
    shape = (num_rows * (height + 1) - 1, num_columns * (width + 1) - 1)
    empty = np.nan if images.ndim == 3 else 1.0
    picture = np.full((*shape, *images.shape[3:]), empty, dtype=float)
    for number, image in enumerate(images):
        row, column = divmod(number, num_columns)
        top, left = row * (height + 1), column * (width + 1)
        picture[top : top + height, left : left + width] = image
    return picture


def interpolate_latents(
    prior: dist.Distribution,
    start: ArrayLike,
    end: ArrayLike,
    num_points: int = 9,
    *,
    method: str = "cdf",
) -> jax.Array:
    r"""Path between two latent vectors, shape ``(num_points, *prior.shape())``.

    Through the cdf the path is a straight line in :math:`u = F(z)`: equal steps have
    equal probability in every latent, and no step lands where the prior has no mass.
    The spherical path, usual for Normal latents, is an arc in :math:`z` itself.

    Parameters
    ----------
    prior
        Distribution of the latents: independent densities with a ``cdf`` and an
        ``icdf``; or an :class:`AutoregressiveKAEMPrior` or a mixture of such products
        (``MixtureSameFamily``), whose :math:`u` are conditional on the latents before.
    start, end
        Latent vectors of the prior's shape.
    num_points
        Number of points, both ends included, at least 2.
    method
        ``"cdf"`` or ``"spherical"``.

    Raises
    ------
    TypeError
        If the prior is none of these, or ``num_points`` is not an integer.
    ValueError
        If a shape does not fit, ``num_points`` is less than 2, or ``method`` is
        unknown.

    References
    ----------
    Rosenblatt (1952), "Remarks on a multivariate transformation", *Annals of
    Mathematical Statistics* 23(3).
    Shoemake (1985), "Animating rotation with quaternion curves", SIGGRAPH.

    Examples
    --------
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> prior = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
    >>> path = kaem.interpolate_latents(prior, [-2.0, 0.0], [2.0, 1.0], 3)
    >>> print(path[1].round(2))
    [0.   0.44]
    """
    start = as_real("start", start).astype(float)
    end = as_real("end", end).astype(float)
    shape = prior.shape()
    for name, value in (("start", start), ("end", end)):
        if value.shape != shape:
            raise ValueError(
                f"{name} must have the shape of the prior, {shape}, got {value.shape}."
            )
    num_points = as_count("num_points", num_points, 2)
    fraction = jnp.linspace(0.0, 1.0, num_points).reshape(-1, *(1,) * len(shape))
    paths = {"cdf": _cdf_path, "spherical": _spherical_path}
    return paths[as_name("method", method, paths)](prior, start, end, fraction)


def _cdf_path(
    prior: dist.Distribution, start: jax.Array, end: jax.Array, fraction: jax.Array
) -> jax.Array:
    cdf, icdf = _unit_maps(prior)
    first, last = cdf(start), cdf(end)
    path = icdf(first + fraction * (last - first))
    # Exactly the ends given, whatever cdf and icdf round.
    return path.at[0].set(start).at[-1].set(end)


def _spherical_path(
    prior: dist.Distribution, start: jax.Array, end: jax.Array, fraction: jax.Array
) -> jax.Array:
    """Arc between two vectors, or the line between parallel ones."""
    cosine = jnp.sum(start * end) / (
        jnp.linalg.norm(start) * jnp.linalg.norm(end) + jnp.finfo(start.dtype).tiny
    )
    angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
    sine = jnp.sin(angle)
    bent = sine > 1e-4
    divisor = jnp.where(bent, sine, 1.0)
    first = jnp.sin((1 - fraction) * angle) / divisor
    last = jnp.sin(fraction * angle) / divisor
    line = (1 - fraction) * start + fraction * end
    return jnp.where(bent, first * start + last * end, line)


def _unit_maps(prior: dist.Distribution) -> tuple[Callable, Callable]:
    """Latents to probabilities, and back."""
    base = prior
    # An expanded distribution has neither function, but that below it broadcasts.
    while isinstance(base, dist.Independent | dist.ExpandedDistribution):
        base = base.base_dist
    if isinstance(base, AutoregressiveKAEMPrior):
        return base.to_unit, base.from_unit
    if isinstance(base, dist.MixtureSameFamily) and len(base.shape()) == 1:
        return _mixture_maps(base)
    if base.event_shape == ():
        try:
            base.icdf(base.cdf(jnp.full(base.batch_shape, 0.5)))
        except NotImplementedError:
            pass
        else:
            return base.cdf, base.icdf
    raise TypeError(
        "prior must be of independent densities with a cdf and an icdf, a mixture of "
        f"such, or an AutoregressiveKAEMPrior, got {type(base).__name__}."
    )


def _mixture_maps(mixture: dist.MixtureSameFamily) -> tuple[Callable, Callable]:
    """Latents of a mixture of products to conditional probabilities, and back."""
    cdf, icdf = _unit_maps(mixture.component_distribution)
    components: Any = mixture.component_distribution
    while isinstance(components, dist.Independent | dist.ExpandedDistribution):
        components = components.base_dist
    log_weights = jax.nn.log_softmax(mixture.mixing_distribution.logits)[:, None]

    def weights(z: jax.Array) -> jax.Array:
        """Of the components given the latents before each, ``(..., K, dim)``."""
        terms = jnp.cumsum(components.log_prob(z[..., None, :]), axis=-1)[..., :-1]
        before = jnp.concatenate([jnp.zeros_like(terms[..., :1]), terms], axis=-1)
        return jax.nn.softmax(log_weights + before, axis=-2)

    def mass(weights: jax.Array, z: jax.Array) -> jax.Array:
        return jnp.sum(weights * cdf(z[..., None, :]), axis=-2)

    @jax.jit
    def from_unit(u: jax.Array) -> jax.Array:
        quantiles = icdf(u[..., None, :])
        ends = quantiles.min(-2), quantiles.max(-2)

        def sweep(_: int, z: jax.Array) -> jax.Array:
            given = weights(z)

            def halve(_: int, ends: tuple) -> tuple:
                middle = (ends[0] + ends[1]) / 2
                below = mass(given, middle) < u
                low, high = ends
                return jnp.where(below, middle, low), jnp.where(below, high, middle)

            return sum(jax.lax.fori_loop(0, _NUM_HALVINGS, halve, ends)) / 2

        # Every sweep finds one more latent, of those before which are known.
        return jax.lax.fori_loop(0, u.shape[-1], sweep, ends[0])

    return jax.jit(lambda z: mass(weights(z), z)), from_unit


def plot_interpolation(
    model: KAEM,
    start: ArrayLike,
    end: ArrayLike,
    num_points: int = 9,
    *,
    ax: Any = None,
) -> np.ndarray:
    """Draw what is decoded between two latent vectors, along two paths.

    Above, through the cdf; below, the spherical path: see :func:`interpolate_latents`.

    Parameters
    ----------
    model
        Trained model of images or fields.
    start, end
        Latent vectors of the prior's shape, such as posterior means of two images.
    num_points
        Number of images in a row, both ends included.
    ax
        Axes to draw in, and returned, shape ``(2, num_points)``; ``None`` makes new
        ones.

    Raises
    ------
    TypeError, ValueError
        As :func:`interpolate_latents`; or if ``model`` is not a :class:`KAEM` of
        images, or ``ax`` holds another number of axes.

    Examples
    --------
    >>> import jax
    >>> import matplotlib.pyplot as plt
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> prior = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
    >>> decoder = kaem.KANDecoder(jax.random.key(0), 2, (8, 8))
    >>> model = kaem.KAEM(prior, decoder, kaem.NormalLikelihood(0.1))
    >>> axes = kaem.plot_interpolation(model, [-1.0, 0.0], [1.0, 2.0], 5)
    >>> axes.shape
    (2, 5)
    >>> plt.close(axes[0, 0].figure)
    """
    _check_model(model)
    paths = [
        interpolate_latents(model.prior, start, end, num_points, method=method)
        for method in ("cdf", "spherical")
    ]
    return _draw_rows(model, paths, ("through the cdf", "spherical"), ax)


def plot_traversal(
    model: KAEM,
    latents: Sequence[int] | None = None,
    num_points: int = 9,
    *,
    ax: Any = None,
) -> np.ndarray:
    """Draw what each latent does: it moves through its prior.

    It takes equal steps of probability, from 5 % to 95 %; the others stay at their
    medians.

    Parameters
    ----------
    model
        Trained model of images or fields, whose prior is of independent densities.
    latents
        Which latents, one per row; by default all, at most 8.
    num_points
        Number of images in a row.
    ax
        Axes to draw in, and returned, shape ``(num_rows, num_points)``; ``None`` makes
        new ones.

    Raises
    ------
    TypeError
        If ``model`` is not a :class:`KAEM` of images, or its prior is not of
        independent densities.
    ValueError
        If a latent does not exist, or ``ax`` holds another number of axes.

    Examples
    --------
    >>> import jax
    >>> import matplotlib.pyplot as plt
    >>> import numpyro.distributions as dist
    >>> import numpyro_kaem as kaem
    >>> prior = dist.Normal(0.0, 1.0).expand([3]).to_event(1)
    >>> decoder = kaem.KANDecoder(jax.random.key(0), 3, (8, 8))
    >>> model = kaem.KAEM(prior, decoder, kaem.NormalLikelihood(0.1))
    >>> axes = kaem.plot_traversal(model, latents=[0, 2], num_points=5)
    >>> axes.shape
    (2, 5)
    >>> plt.close(axes[0, 0].figure)
    """
    _check_model(model)
    num_points = as_count("num_points", num_points)
    shape = model.prior.shape()
    joint = AutoregressiveKAEMPrior | dist.MixtureSameFamily
    if isinstance(model.prior, joint) or len(shape) != 1:
        raise TypeError(
            "model must have a prior of independent densities, one per latent, got "
            f"{type(model.prior).__name__} of shape {shape}."
        )
    _, icdf = _unit_maps(model.prior)
    rows = list(range(min(shape[0], 8))) if latents is None else list(latents)
    if not rows or not all(0 <= row < shape[0] for row in rows):
        raise ValueError(
            f"latents must be indices from 0 to {shape[0] - 1}, got {rows}."
        )
    at = icdf(jnp.full(shape, 0.5))
    probability = jnp.linspace(0.05, 0.95, num_points)
    moved = icdf(jnp.broadcast_to(probability[:, None], (num_points, *shape)))
    paths = [
        jnp.broadcast_to(at, moved.shape).at[:, row].set(moved[:, row]) for row in rows
    ]
    return _draw_rows(model, paths, [f"latent {row}" for row in rows], ax)


def _check_model(model: Any) -> None:
    if not isinstance(model, KAEM):
        raise TypeError(f"model must be a KAEM, got {type(model).__name__}.")


def _draw_rows(
    model: KAEM, paths: list[jax.Array], names: Sequence[str], ax: Any
) -> np.ndarray:
    """Rows of decoded images, one per path, each with its name."""
    decoded = []
    for path in paths:
        images = np.asarray(model.decode(path))
        if not _are_images(images):
            raise ValueError(
                "model must decode to images (height, width) or (height, width, 1 or "
                f"3), got {images.shape[1:]}."
            )
        decoded.append(_without_channel(images))
    images = np.stack(decoded)
    shape = images.shape[:2]
    axes = make_axes(ax, shape, (0.75 * shape[1] + 1.3, 0.8 * shape[0]))
    limits = images.min(), images.max()
    for index in np.ndindex(shape):
        _draw_image(axes.item(index), images[index], limits)
    for row, name in zip(axes, names, strict=True):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return axes
