"""The command line: `commands` has `cae …`, `edit` has `cae edit …`, `terminal` prints and draws progress."""
