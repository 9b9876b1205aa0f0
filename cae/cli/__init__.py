"""The command line: `commands` has `cae …`, `commands.edit` has `cae edit …`, `terminal` prints and draws progress."""
