"""Checks of the parts of a generative model."""

from typing import Any

import numpyro.distributions as dist

from numpyro_kaem.bases._checks import check_function
from numpyro_kaem.distributions import KAEMPrior

__all__ = ["check_parts"]


def check_parts(prior: Any, decoder: Any, likelihood: Any, joint: str | None) -> None:
    """Check that the parts are of their kinds, and the shape of the prior.

    Parameters
    ----------
    prior, decoder, likelihood, joint
        As :class:`~numpyro_kaem.models.KAEM` is given them.

    Raises
    ------
    TypeError
        If ``prior`` is not a continuous distribution, or not a
        :class:`~numpyro_kaem.KAEMPrior` with ``joint="kart"``; if ``decoder`` or
        ``likelihood`` cannot be called.
    ValueError
        If the prior has another shape, or ``joint`` is another name.
    """
    if not isinstance(prior, dist.Distribution) or prior.support.is_discrete:
        raise TypeError(
            "prior must be a continuous NumPyro distribution, got "
            f"{type(prior).__name__}."
        )
    what = "an Equinox module or a function of the latents"
    check_function("decoder", decoder, what)
    if likelihood is not None:
        what = "such as NormalLikelihood(), a function of what the decoder returns"
        check_function("likelihood", likelihood, f"{what}, or None")
    if joint not in (None, "kart"):
        raise ValueError(f"joint must be None or 'kart', got {joint!r}.")
    if joint == "kart" and not isinstance(prior, KAEMPrior):
        raise TypeError(
            "prior must be a KAEMPrior of batch shape (2 * P + 1, P) with "
            f"joint='kart', got {type(prior).__name__}."
        )
    shape = prior.shape()
    is_table = len(shape) == 2 and shape[0] == 2 * shape[1] + 1
    if len(shape) not in (1, 2) or 0 in shape or (joint and not is_table):
        expected = "(2 * P + 1, P)" if joint else "(Q,) or (Q, P)"
        raise ValueError(
            f"prior must have batch and event shape {expected}, one law for each "
            f"latent of a datum, got {shape}."
        )
