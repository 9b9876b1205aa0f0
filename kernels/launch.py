"""How the Triton kernels are launched: tile sizes per architecture and bounded scratch, as plain functions."""

from typing import NamedTuple

import torch

# Let a·b + c round once. Said at every launch because Triton is about to change its default, and warns until told.
FUSED = {"enable_fp_fusion": True}
# Bytes of scratch for one panel of rows. Large enough that a launch fills a GPU many times over and its cost vanishes,
# small beside the memory of any card the kernels are meant for.
_PANEL_BYTES = {"cpu": 2**20, "cuda": 2**29}
_INTERPRETER = 0


class Tile(NamedTuple):
    """One program's share of a product of (I, K) by (J, K), and the resources that it gets."""

    BLOCK_I: int
    BLOCK_J: int
    BLOCK_K: int
    num_warps: int
    num_stages: int


# Products outside the tensor cores take their factors from registers: smaller tiles. So are those of float32, which are
# exact, on every GPU, and before sm_80 those of half types, too: Triton knows no older tensor cores.
_FROM_REGISTERS = Tile(64, 64, 16, 4, 2)
# Keyed by the least compute capability that a row is for (0 is Triton's interpreter, whose tiles are small so that
# small tests cross their borders). Never by N or M: a row's result must not depend on what it is batched with.
_HALF = {
    _INTERPRETER: Tile(32, 64, 128, 4, 1),
    1: _FROM_REGISTERS,
    80: Tile(128, 128, 32, 8, 4),
    90: Tile(128, 256, 64, 8, 3),
    120: Tile(128, 128, 32, 8, 4),
}
_SINGLE = {
    _INTERPRETER: Tile(32, 64, 128, 4, 1),
    1: _FROM_REGISTERS,
}


def architecture(device: torch.device) -> int:
    """Compute capability as one number, 90 for a Hopper GPU; 0 for the interpreter on the CPU."""
    if device.type != "cuda":
        return _INTERPRETER
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def product_tile(arch: int, dtype: torch.dtype, width: int) -> Tile:
    """Tile of a product of rows of `width` numbers on an architecture."""
    tile = _table_row(arch, dtype)
    # Where possible at least two steps along the width: a whole product in one step was reported wrong on a GPU.
    return tile._replace(BLOCK_K=max(16, min(tile.BLOCK_K, _power_of_2(width) // 2)))


def narrow_tile(arch: int, dtype: torch.dtype, width: int) -> Tile:
    """As `product_tile`, but with at most half a register file of scores: there must be room beside them."""
    tile = product_tile(arch, dtype, width)
    return tile._replace(BLOCK_J=min(tile.BLOCK_J, 128))


def weighted_sum_tile(arch: int, dtype: torch.dtype, width: int) -> Tile:
    """Tile of a product of a panel by (M, width): BLOCK_J of the components, BLOCK_K columns of the panel at a time."""
    tile = _table_row(arch, dtype)
    block = tile.BLOCK_J
    while block > 64 and width % block:  # 384 is three blocks of 128, not one and a half of 256
        block //= 2
    return tile._replace(BLOCK_J=max(16, min(block, _power_of_2(width))), BLOCK_K=min(tile.BLOCK_K, tile.BLOCK_J))


def column_sum_tile(arch: int, dtype: torch.dtype, width: int) -> Tile:
    """As `weighted_sum_tile` for a panel's columns, BLOCK_I of them; narrower, since entries pass through registers."""
    tile = weighted_sum_tile(arch, dtype, width)
    return tile._replace(BLOCK_J=min(tile.BLOCK_J, 128))


def _table_row(arch: int, dtype: torch.dtype) -> Tile:
    table = _SINGLE if dtype == torch.float32 else _HALF
    return table[max(key for key in table if key <= arch)]


def precision(dtype: torch.dtype) -> str:
    """Triton's name for the arithmetic of a product: full float32 for float32, not tf32; half types have no choice."""
    return "ieee" if dtype == torch.float32 else "tf32"


def panel_scratch_rows(rows: int, row_bytes: int, tile: Tile, device: torch.device) -> int:
    """Rows of a panel: whole tiles, as many as the budget holds, at least one and no more than there are."""
    budget = _PANEL_BYTES.get(device.type, _PANEL_BYTES["cpu"]) // (row_bytes * tile.BLOCK_I)
    return tile.BLOCK_I * max(1, min(budget, ceil_div(rows, tile.BLOCK_I)))


def column_splits(row_tiles: int, column_tiles: int) -> int:
    """Stretches of the columns, so that few rows still make enough programs to fill a GPU."""
    return max(1, min(column_tiles, 256 // row_tiles))


def row_tile(width: int) -> tuple[int, int]:
    """Rows and padded width of the block of a kernel that holds whole rows in registers."""
    padded = _power_of_2(width)
    return max(1, 2048 // padded), padded


def ceil_div(a: int, b: int) -> int:
    """Quotient, rounded up."""
    return -(-a // b)


def _power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()
