"""Short of the drills (tests/drills): what damage does, tried a few hundred times."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from mutations import verdicts

from cae.config import CAEConfig

VALUES = (
    None, True, False, -1, 0, 1, 2, 3, 1.5, -0.5, 1e-320, 1e-30, 1e-5, 1e30, 1e300, float("nan"), float("inf"),
    -float("inf"), 2**31 - 1, 2**31, 2**70, 10**400, "", "x", "auto", [], [1], ("noun",), ("noun", "noun"),
    ("caption", "noun"), {}, b"a", np.float32(0.1), np.int64(3), np.float64("nan"),
)  # fmt: skip


def test_damaged_pictures_are_read_or_refused():
    found = verdicts(10**7, 10**7 + 300)
    assert {number: said for number, said in found.items() if said not in ("picture", "refused")} == {}
    assert len(found) == 300
    assert set(found.values()) == {"picture", "refused"}


def test_the_cached_map_of_texts_is_fitted_again_where_it_is_damaged(isolated_cache, monkeypatch, caplog):
    text_map = pytest.importorskip("cae.encoders.lite.text_map")
    fitted = text_map.TextMap(torch.eye(3, 4), torch.eye(3, 5))
    monkeypatch.setattr(text_map, "fit_text_map", lambda _: fitted)
    text_map.load_text_map(None, "abc")
    (file,) = isolated_cache.rglob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert not caplog.records
    assert torch.equal(text_map.load_text_map(None, "abc").coefficients, fitted.coefficients)
    assert "its checksum differs" in caplog.text
    caplog.clear()
    text_map.load_text_map(None, "abc")
    assert not caplog.records


@pytest.mark.parametrize("name", [field.name for field in fields(CAEConfig)])
def test_a_setting_is_taken_or_refused_by_name(name):
    for value in VALUES:
        try:
            CAEConfig(**{"n_clusters": 3, name: value})
        except ValueError as error:
            assert name in str(error)
