"""cae.models."""
