"""Tests of priors learned from many units."""
