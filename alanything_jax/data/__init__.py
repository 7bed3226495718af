"""Records to packed batches."""
