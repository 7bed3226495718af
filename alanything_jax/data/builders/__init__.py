"""TFDS builders of public data sets, one file each."""
