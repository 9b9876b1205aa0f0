"""cae.method."""
