import pytest
import torch

from cae.encoders.micro_batches import encode_in_micro_batches


@pytest.mark.parametrize("count", [1, 4, 5, 11])
def test_every_call_has_the_fixed_size_and_padding_is_dropped(count):
    images = torch.rand(count, 3, 2, 2)

    def encode(batch):
        assert batch.shape == (4, 3, 2, 2)
        return batch.flatten(1)

    assert torch.equal(encode_in_micro_batches(images, 4, encode), images.flatten(1))
