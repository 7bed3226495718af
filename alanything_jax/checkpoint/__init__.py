"""Saving and restoring a run by Orbax."""
