"""Sampling from live parameters."""
