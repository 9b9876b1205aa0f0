import torch

from cae.encoders.length_buckets import TOKENS_ON_CPU, encode_by_length


def test_every_batch_has_one_length_and_a_bounded_number_of_tokens():
    lengths = torch.randint(3, 40, (2000,), generator=torch.Generator().manual_seed(0))
    seen = []

    def encode(index, length):
        assert (lengths[index] == length).all()
        assert len(index) * length <= TOKENS_ON_CPU
        seen.extend(index.tolist())
        return index[:, None].float()

    out = torch.full((2000, 1), torch.nan)
    encode_by_length(lengths, encode, out)
    assert torch.equal(out[:, 0], torch.arange(2000.0))
    assert sorted(seen) == list(range(2000))


def test_a_text_longer_than_the_budget_is_encoded_alone():
    out = torch.empty(2, 1)
    encode_by_length(torch.tensor([TOKENS_ON_CPU * 2] * 2), lambda index, _: index[:, None].float(), out)
    assert out.flatten().tolist() == [0.0, 1.0]


def test_no_texts_call_nothing():
    encode_by_length(torch.empty(0, dtype=torch.int64), lambda *_: 1 / 0, torch.empty(0, 4))
