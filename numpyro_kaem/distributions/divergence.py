r"""Kullback-Leibler divergences from learned densities, for NumPyro's dispatch.

.. math:: \mathrm{KL}(p \,\|\, q) = \int p(z) \log\frac{p(z)}{q(z)}\,\mathrm{d}z,

by the quadrature of :math:`p`, whose panels are cut where :math:`q` has its own.
"""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions.kl import kl_divergence

from numpyro_kaem.distributions.mixture import KAEMMixture
from numpyro_kaem.distributions.prior import KAEMPrior
from numpyro_kaem.distributions.truncation import TruncatedKAEM, broadcast_energy
from numpyro_kaem.numerics import density
from numpyro_kaem.numerics.panels import Panels, make_panels
from numpyro_kaem.references import (
    density_breaks,
    kinks,
    log_density,
    support_bounds,
    with_rank,
)

__all__ = ["kl_divergence"]

_Learned = KAEMPrior | KAEMMixture | TruncatedKAEM


def _divergence(p: _Learned, q: dist.Distribution) -> jax.Array:
    """Divergence in nats, shape broadcast(p.batch_shape, q.batch_shape)."""
    if q.event_shape != ():
        raise ValueError(
            f"p and q must be univariate, got a q with event_shape {q.event_shape}; "
            "call to_event on both."
        )
    shape = jnp.broadcast_shapes(p.batch_shape, q.batch_shape)
    nodes, masses = _nodes(p, q, shape)
    change = log_density(p, nodes) - log_density(q, nodes)
    divergence = jnp.sum(jnp.where(masses > 0, masses * change, 0), axis=0)
    dtype = divergence.dtype
    (low, high), (least, most) = (
        (jnp.asarray(end, dtype) for end in support_bounds(d)) for d in (p, q)
    )
    return jnp.where((low < least) | (high > most), jnp.inf, divergence)


def _nodes(
    p: _Learned, q: dist.Distribution, shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Nodes and masses of a quadrature of ``p``, each ``(num_nodes, *shape)``."""
    if isinstance(p, TruncatedKAEM):
        p = p._inner
    if isinstance(p, KAEMMixture):
        # Those of all components, one after another.
        rows = [jnp.expand_dims(row, -1) for row in _edges(q)]
        components = (*shape, p.num_components)
        nodes, masses = _nodes_between(p.prior, rows, components)
        masses = jnp.exp(p.log_weights) * masses
        nodes, masses = (jnp.moveaxis(a, -1, 0) for a in (nodes, masses))
        return nodes.reshape(-1, *shape), masses.reshape(-1, *shape)
    return _nodes_between(p, _edges(q), shape)


def _nodes_between(
    prior: KAEMPrior, rows: list[jax.Array], shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Nodes and masses of a prior, on panels cut at more points."""
    panels = _far_panels(prior)
    edges = panels.edges
    rank = max(row.ndim for row in (edges, *rows)) - 1
    rows = [jax.lax.stop_gradient(row) for row in rows]
    rows = [with_rank(row, rank) for row in (edges, *rows)]
    column = jnp.broadcast_shapes(*(row.shape[1:] for row in rows))
    rows = [jnp.broadcast_to(row, (row.shape[0], *column)) for row in rows]
    points = jnp.concatenate(rows).astype(edges.dtype)
    points = jnp.where(jnp.isnan(points), edges[0], points)
    points = jnp.sort(jnp.clip(points, edges[0], edges[-1]), axis=0)
    energy = broadcast_energy(prior.energy, shape).on_unit_grid
    panels = Panels(points, None, panels.has_tails)
    log_normalizer = density.log_normalizer(energy, prior._parameters, panels)
    return density.nodes(energy, prior._parameters, panels, log_normalizer)


def _far_panels(prior: KAEMPrior) -> Panels:
    """Panels of a prior that cover the tails of its reference, too."""
    if type(prior) is not KAEMPrior or prior._parameters is None:
        return prior._panels
    return make_panels(prior.energy, prior._parameters, prior.refinement, True)


def _edges(q: dist.Distribution) -> list[jax.Array]:
    """Points between which a density is smooth, each ``(count, *batch_shape)``."""
    if isinstance(q, TruncatedKAEM):
        q = q._inner
    if isinstance(q, KAEMMixture):
        rows = _far_panels(q.prior).edges
        if rows.ndim == 1:
            return [rows]
        rows = jnp.moveaxis(rows, -1, 0)
        return [rows.reshape(rows.shape[0] * rows.shape[1], *rows.shape[2:])]
    if isinstance(q, KAEMPrior):
        return [_far_panels(q).edges]
    return [*density_breaks(q), *(kink[None] for kink in kinks(q))]


def _divergence_from_expanded(p: _Learned, q: dist.ExpandedDistribution) -> jax.Array:
    shape = jnp.broadcast_shapes(p.batch_shape, q.batch_shape)
    return jnp.broadcast_to(kl_divergence(p, q.base_dist), shape)


for _class in (KAEMPrior, KAEMMixture, TruncatedKAEM):
    kl_divergence.add((_class, dist.Distribution), _divergence)
    # Else this rule and NumPyro's for expanded distributions would be equally near.
    kl_divergence.add((_class, dist.ExpandedDistribution), _divergence_from_expanded)
