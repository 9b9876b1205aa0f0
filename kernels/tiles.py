"""Sizes of the bounded scratch that the streaming backends work in, as plain functions of the problem."""

from collections.abc import Iterator

import torch

# Entries of one float32 score panel. On a CPU 4 MB stays in the last-level cache between the product and the passes
# that follow it; a GPU needs a larger panel to fill its multiprocessors. Figures: docs/kernels/cosine_sinkhorn.md.
_PANEL_ENTRIES = {"cpu": 2**20, "cuda": 2**26}
# A product with fewer rows than this is bound by loading the other factor.
_MIN_ROWS = 16
# Panels whose scores an iteration keeps: 64 MB, so that all of a small problem's are. A GPU's product is cheap beside
# the memory that this would take there.
_KEPT_PANELS = {"cpu": 16}


def panel_rows(columns: int, device: torch.device) -> int:
    """Rows of a score panel with `columns` columns: a fixed budget of entries, whatever the number of rows in all."""
    entries = _PANEL_ENTRIES.get(device.type, _PANEL_ENTRIES["cpu"])
    return max(_MIN_ROWS, entries // columns)


def block_columns(device: torch.device) -> int:
    """Columns of a block where not all of them have to be in a panel: as many as leave it about a thousand rows."""
    return max(_MIN_ROWS, _PANEL_ENTRIES.get(device.type, _PANEL_ENTRIES["cpu"]) // 1024)


def kept_rows(columns: int, device: torch.device) -> int:
    """Rows whose scores an iteration may keep: a number of whole panels."""
    return _KEPT_PANELS.get(device.type, 0) * panel_rows(columns, device)


def panels(rows: int, columns: int, device: torch.device) -> Iterator[slice]:
    """Consecutive row slices that cover `range(rows)`, each a panel of at most `panel_rows(columns, device)` rows."""
    step = panel_rows(columns, device)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
