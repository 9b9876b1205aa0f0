"""The command line: `commands` has `cae …`, `options` what they share, `terminal` prints and draws progress."""
