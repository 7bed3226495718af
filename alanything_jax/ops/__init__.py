"""Arrays to arrays: no models, no files."""
