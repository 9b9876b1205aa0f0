"""cae.cli.commands."""
