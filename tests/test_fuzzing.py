"""Short of the drills (tests/drills): what damage does, tried a few hundred times."""

import pytest
import torch
from mutations import verdicts


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
