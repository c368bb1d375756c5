"""Saving and loading of models and fits, without pickle."""

from numpyro_kaem.io.saving import load, save

__all__ = ["load", "save"]
