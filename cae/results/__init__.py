"""cae.results.saved."""
