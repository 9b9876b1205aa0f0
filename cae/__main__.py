"""`python -m cae`, where the `cae` command is not on the path."""

from cae.cli.commands import main

main()
