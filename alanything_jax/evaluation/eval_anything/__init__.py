"""Eval-Anything (arXiv 2412.15838): understanding and making all modalities."""
