"""Defaults of the commands that look at results, in a module without imports: `cae --help` shows them at once."""

LIMIT = 20
"""How many images a search finds unless more are asked for."""

NEAR = 8
"""Bits of the perceptual hash, of 64, by which a near copy may differ (`benchmarks/results/duplicates.md`)."""
