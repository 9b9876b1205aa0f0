"""Products by oneDNN: as exact as MKL's, only where they are, and nothing is left switched."""

import pytest
import torch

from cae.encoders.onednn import products_by_onednn

MATMUL = torch.backends.mkldnn.matmul


def test_products_stay_those_of_float32():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(300, 384, generator=generator), torch.randn(384, 200, generator=generator)
    with products_by_onednn():
        product = a @ b
    torch.testing.assert_close(product.double(), a.double() @ b.double(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("able", "inside"),
    [
        ({"avx512_f": True, "amx_bf16": False}, "bf16"),
        ({"avx512_f": True, "amx_bf16": True}, "ieee"),
        ({"avx512_f": False, "amx_bf16": False}, "ieee"),
        ({"neon": True}, "ieee"),
    ],
)
def test_only_processors_that_gain_and_round_nothing_are_switched(able, inside, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    before = MATMUL.fp32_precision
    MATMUL.fp32_precision = "ieee"
    try:
        with products_by_onednn(), products_by_onednn():
            assert MATMUL.fp32_precision == inside
        assert MATMUL.fp32_precision == "ieee"
    finally:
        MATMUL.fp32_precision = before


def test_what_was_set_before_is_set_again_after_an_error():
    before = MATMUL.fp32_precision
    with pytest.raises(ZeroDivisionError), products_by_onednn():
        raise ZeroDivisionError
    assert MATMUL.fp32_precision == before
