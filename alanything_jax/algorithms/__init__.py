"""One file each: paper, equation, pure function, hyperparameters."""
