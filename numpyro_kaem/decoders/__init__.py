"""Decoders: from latents to the parameters of a likelihood.

Each decoder is an Equinox module that takes latents of shape
``(*batch, num_latents)``. In a model, ``numpyro.contrib.module.eqx_module(name,
decoder)`` makes its arrays parameters, and ``random_eqx_module`` gives them priors.
"""

from numpyro_kaem.decoders.convolutional import ConvDecoder
from numpyro_kaem.decoders.kan import KANDecoder, KANLayer
from numpyro_kaem.decoders.sequence import SequenceDecoder

__all__ = ["ConvDecoder", "KANDecoder", "KANLayer", "SequenceDecoder"]
