"""Where memory runs out, batches are halved, nothing is lost, and it is said once."""

import subprocess
import sys
import warnings

import pytest
import torch

from cae.encoders.length_buckets import encode_by_length
from cae.encoders.memory import encode_in_halves
from cae.encoders.micro_batches import encode_in_micro_batches

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")


def small_memory(most, error=CUDA):
    def encode(batch):
        if len(batch) > most:
            raise error
        return batch.flatten(1).float() * 2

    return encode


@pytest.mark.parametrize("error", [CUDA, CPU, MemoryError()])
@pytest.mark.parametrize("most", [1, 3, 5, 16])
def test_what_does_not_fit_is_halved(most, error):
    batch = torch.arange(16).reshape(16, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(encode_in_halves(batch, small_memory(most, error)), batch.float() * 2)


def test_images_and_texts_are_halved(recwarn):
    images = torch.rand(11, 3, 2, 2)
    assert torch.equal(encode_in_micro_batches(images, 8, small_memory(2)), images.flatten(1) * 2)
    out = torch.empty(9, 1)
    encode_by_length(torch.full((9,), 5), lambda index, length: small_memory(2)(index[:, None]) * length, out)
    assert out.flatten().tolist() == [10.0 * i for i in range(9)]
    assert {str(warning.message) for warning in recwarn} == {
        "out of memory: going on with smaller batches, which takes longer"
    }


def test_it_is_said_once_a_run():
    code = """
import torch
from cae.encoders.memory import encode_in_halves
def encode(batch):
    if len(batch) > 2:
        raise MemoryError
    return batch
for _ in range(5):
    encode_in_halves(torch.zeros(16, 1), encode)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr.count("UserWarning") == 1


def test_a_row_that_does_not_fit_alone_ends_in_the_error():
    with pytest.warns(UserWarning, match="out of memory"), pytest.raises(torch.OutOfMemoryError):
        encode_in_halves(torch.zeros(4, 1), small_memory(0))


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shape"):
        encode_in_halves(torch.zeros(4, 1), small_memory(0, RuntimeError("shape mismatch")))
