"""Panels, tables, distribution functions and their inverses, as pure functions."""
