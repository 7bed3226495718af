"""What a recipe needs on a TPU, by the TPU compiler, without a TPU."""
