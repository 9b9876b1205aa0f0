"""cae.utils."""
