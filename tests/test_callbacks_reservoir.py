"""A sample of a stream is uniform, repeatable, and merges with the samples of other ranks."""

import torch

from cae.callbacks.reservoir import Reservoir, smallest


def sampled(capacity, seed, n=100, batch=7):
    reservoir = Reservoir(capacity, seed)
    for rows in torch.arange(n).split(batch):
        reservoir.add(rows)
    return reservoir.sample()


def test_all_rows_stay_while_there_is_room():
    keys, positions, rows = sampled(100, seed=0)
    assert rows.tolist() == positions.tolist() == list(range(100))
    assert len(keys) == 100


def test_each_row_has_the_same_chance():
    runs = torch.stack([torch.bincount(sampled(20, seed=seed)[2], minlength=100) for seed in range(500)])
    assert (runs.sum(dim=1) == 20).all()
    assert runs.max() == 1
    # 500 draws at 0.2: mean 100, deviation 8.9; five deviations either side.
    assert runs.sum(dim=0).min() > 55
    assert runs.sum(dim=0).max() < 145


def test_same_stream_and_seed_give_the_same_sample():
    assert torch.equal(sampled(20, seed=1)[2], sampled(20, seed=1, batch=33)[2])
    assert not torch.equal(sampled(20, seed=1)[2], sampled(20, seed=2)[2])


def test_samples_of_ranks_merge_in_the_order_of_the_data_set():
    # As a DistributedSampler deals: rank 0 the even samples, rank 1 the odd ones.
    ranks = []
    for rank in range(2):
        reservoir = Reservoir(50, seed=rank)
        reservoir.add(torch.arange(rank, 40, 2))
        ranks.append(reservoir.sample())
    assert smallest(ranks, 50)[2].tolist() == list(range(40))
    kept = smallest(ranks, 10)[2]
    assert len(kept) == 10
    assert kept.tolist() == sorted(kept.tolist())


def test_rows_are_copies():
    rows = torch.zeros(3, 2)
    reservoir = Reservoir(5, seed=0)
    reservoir.add(rows)
    rows.fill_(1)
    assert not reservoir.sample()[2].any()


def test_an_empty_stream_has_no_sample_and_empty_batches_no_harm():
    reservoir = Reservoir(5, seed=0)
    assert reservoir.sample() is None
    reservoir.add(torch.zeros(0, 2))
    assert len(reservoir.sample()[2]) == 0
