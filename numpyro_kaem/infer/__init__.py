"""Posterior samplers for any NumPyro model with continuous latent values."""
