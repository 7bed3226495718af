"""Stages chained: demo, export, evaluation of a run."""
