"""Pure functions on pytrees of parameters."""
