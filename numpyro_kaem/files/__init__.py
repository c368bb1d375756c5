"""Saving and loading of models and fits, without pickle."""
