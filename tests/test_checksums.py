"""Checksums tell what is in a file from everything else, and what is read is what was written."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from cae.utils.checksums import (
    check_kinds,
    content_hash,
    content_hashes,
    json_hash,
    load_tensors,
    parse_json,
    save_tensors,
)


def test_files_are_known_by_their_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two")
    paths, told = [tmp_path / "a", tmp_path / "missing", tmp_path / "b"], []
    hashes = content_hashes(paths, lambda done, total: told.append((done, total)))
    assert hashes == [hashlib.sha256(b"one").hexdigest(), None, hashlib.sha256(b"two").hexdigest()]
    assert hashes == [content_hash(path) for path in paths]
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_json_is_known_by_its_values():
    assert json_hash({"a": 1, "b": [2]}) == json_hash({"b": [2], "a": 1})
    assert json_hash({"a": 1}) != json_hash({"a": "1"})


def test_tensors_come_back_as_they_were_or_not_at_all(tmp_path):
    tensors = {"x": torch.arange(6.0).reshape(2, 3), "n": torch.tensor([1, 2])}
    save_tensors(tensors, tmp_path / "t.safetensors")
    for name, tensor in load_tensors(tmp_path / "t.safetensors").items():
        assert torch.equal(tensor, tensors[name])
    content = bytearray((tmp_path / "t.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "t.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="its checksum differs"):
        load_tensors(tmp_path / "t.safetensors")
    save_file(tensors, tmp_path / "t.safetensors")
    with pytest.raises(ValueError, match="its checksum differs"):
        load_tensors(tmp_path / "t.safetensors")


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [(True, int, "in place of int"), (None, str, "in place of str"), (["a", 1], list[str], "else than strings")],
)
def test_values_of_another_kind_are_refused(value, kind, message):
    with pytest.raises(ValueError, match=message):
        check_kinds({"name": value}, {"name": kind})


def test_json_that_is_nested_too_deeply_is_refused():
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)
