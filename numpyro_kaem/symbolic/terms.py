"""The dictionary of terms of which short energies are made."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Real

from numpyro_kaem.bases._base import AbstractBasis, as_float, uniform_breaks

__all__ = ["Term", "TermBasis", "terms_for"]

_NUM_PANELS = 48
_WIDE = 4.0


class Term(NamedTuple):
    """A function of the scaled variable ``t``."""

    text: str
    """As text."""
    latex: str
    """In LaTeX."""
    function: Callable[[Any, Any], Any]
    """Function of the array module, NumPy or ``jax.numpy``, and of ``t``."""


def _power(degree: int) -> Term:
    if degree == 1:
        return Term("t", "t", lambda xp, t: t)
    return Term(f"t^{degree}", f"t^{{{degree}}}", lambda xp, t: t**degree)


def _wave(name: str, frequency: int) -> Term:
    argument = "t" if frequency == 1 else f"{frequency} t"
    return Term(
        f"{name}({argument})",
        rf"\{name}({argument})",
        lambda xp, t: getattr(xp, name)(frequency * t),
    )


_SMOOTH = (
    *(_power(degree) for degree in range(1, 5)),
    *(_wave(name, k) for k in range(1, 5) for name in ("sin", "cos")),
    _wave("tanh", 1),
    Term("exp(-t^2/2)", "e^{-t^{2}/2}", lambda xp, t: xp.exp(-0.5 * t**2)),
)
_TERMS = {
    "real": _SMOOTH,
    "from zero": (
        *_SMOOTH,
        Term("log(1 + t)", r"\log(1 + t)", lambda xp, t: xp.log1p(t)),
    ),
    "positive": (*_SMOOTH, Term("log(t)", r"\log t", lambda xp, t: xp.log(t))),
}


def terms_for(low: float, high: float) -> str:
    """Name of the dictionary for a grid; logarithms need one that is wide for them."""
    if low > 0 and high > _WIDE * low:
        return "positive"
    return "from zero" if low == 0 else "real"


class TermBasis(AbstractBasis):
    r"""The terms as a basis, so that a short energy is an energy like any other.

    The terms are functions of :math:`t = (z - m) / r`.

    Parameters
    ----------
    low, high
        Ends of the grid; static.
    dictionary
        Name of the dictionary: ``"real"``, ``"from zero"`` or ``"positive"``.
    location, scale
        The numbers :math:`m` and :math:`r`.

    Examples
    --------
    >>> from numpyro_kaem.symbolic.terms import TermBasis
    >>> basis = TermBasis(0.0, 4.0, "from zero", location=0.0, scale=2.0)
    >>> print(basis(4.0)[:4])
    [ 2.  4.  8. 16.]
    """

    dictionary: str = eqx.field(static=True)
    """Name of the dictionary."""
    offset: jax.Array
    """Scaled variable at the lower end of the grid."""
    width: jax.Array
    """Width of the grid in the scaled variable."""

    def __init__(
        self, low: float, high: float, dictionary: str, location: float, scale: float
    ) -> None:
        super().__init__(low, high)
        self.dictionary = dictionary
        self.offset = jnp.asarray((low - location) / scale, float)
        self.width = jnp.asarray((high - low) / scale, float)

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms, in the order of the features."""
        return _TERMS[self.dictionary]

    @property
    def num_features(self) -> int:
        """Number of terms."""
        return len(self.terms)

    @property
    def panel_breaks(self) -> tuple[float, ...]:
        """Equal panels: all terms are smooth."""
        return uniform_breaks(_NUM_PANELS)

    def unit_features(
        self, s: Real[ArrayLike, " *shape"]
    ) -> Float[Array, " *shape features"]:
        """Features at ``s`` in [0, 1], shape ``s.shape + (num_terms,)``."""
        t = self.offset + self.width * as_float(s)
        return jnp.stack([term.function(jnp, t) for term in self.terms], axis=-1)
