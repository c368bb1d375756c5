"""Priors from samples: densities, mixtures and autoregressive chains."""
