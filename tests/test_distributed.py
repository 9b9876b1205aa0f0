"""Several processes: the collective operations, and a fit that does not depend on how the images are spread."""

import pickle

import pytest
import torch
import torch.distributed as dist
from processes import leave_group
from test_pipeline import K, toy_world

from cae.config import CAEConfig
from cae.method import kmeans as clustering
from cae.method import pipeline
from cae.method.kmeans import cluster_sums, kmeans
from cae.utils.distributed import all_gather_rows, all_reduce_count, broadcast_from_first, first_occurrence_mask

WORLDS = (2, 3)
CONFIG = CAEConfig(n_clusters=K, images_per_center=50, n_init=3)


def _enter(rank, job, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(job(rank, world)))
    leave_group()


def on_ranks(job, world, folder):
    """What `job(rank, world)` returns on each of `world` processes."""
    torch.multiprocessing.spawn(_enter, (job, world, folder), nprocs=world)
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(world)]


def spread(n, world, how):
    """Rows of each rank."""
    rows = torch.arange(n)
    if how == "interleaved":
        return [rows[rank::world] for rank in range(world)]
    if how == "uneven":
        return list(rows[torch.randperm(n, generator=torch.Generator().manual_seed(0))].split([n // 7, n - n // 7]))
    return [rows, *[rows[:0]] * (world - 1)]


def fit_everything(rank, world):
    """All that the tests of this file ask of a group, in one start of the processes."""
    group = dist.group.WORLD
    images, _, banks = toy_world()
    found = {}
    for how in ("interleaved", "one rank has all") + (("uneven",) if world == 2 else ()):
        rows = spread(len(images), world, how)[rank]
        fitted, prediction = pipeline.fit(images[rows], banks, CONFIG, index=rows, group=group)
        found[how] = (
            rows,
            prediction.cluster,
            fitted.means,
            fitted.partition.centroids,
            fitted.clusters,
            fitted.n_images,
        )
    rows = spread(len(images), world, "interleaved")[rank]
    # As if there were too many points for FAISS.
    clustering.SAMPLE = clustering.SAMPLE_PER_CENTROID = 50
    options = {"spherical": True, "n_init": 3, "max_iter": 100, "seed": 0}
    found["sampled"] = kmeans(images[rows], K, **options, index=rows, group=group)
    found["sums"] = cluster_sums(images[rows], rows % 5, 5, group)[0]
    # Collective operations.
    share = torch.arange(3 * rank).reshape(-1, 1)
    found["gathered"] = all_gather_rows(share, group)
    found["total"] = all_reduce_count(rank, group)
    found["first"] = broadcast_from_first(torch.tensor([rank + 7]), group)
    found["unrepeated"] = first_occurrence_mask(torch.tensor([10 * rank, 3, 10 * rank + 1, 4]), group)
    # Ids on one rank that are too few, that another has as well, and that are not there.
    found["bad ids"] = []
    for wrong in (rows[1:], torch.where(rows == rows[0], 0, rows), None):
        with pytest.raises(ValueError) as refused:
            pipeline.fit(images[rows], banks, CONFIG, index=wrong if rank == 1 else rows, group=group)
        found["bad ids"].append(str(refused.value))
    # One row that nobody can use, on one rank.
    if rank == 1:
        images[rows[0]] = float("nan")
    with pytest.raises(ValueError) as refused:
        pipeline.fit(images[rows], banks, CONFIG, index=rows, group=group)
    found["refused"] = str(refused.value)
    return found


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    return {world: on_ranks(fit_everything, world, tmp_path_factory.mktemp("ranks")) for world in WORLDS}


@pytest.fixture(scope="module")
def alone():
    images, _, banks = toy_world()
    return pipeline.fit(images, banks, CONFIG)


@pytest.mark.parametrize(
    ("world", "how"), [(w, h) for w in WORLDS for h in ("interleaved", "one rank has all")] + [(2, "uneven")]
)
def test_labels_are_those_of_one_process(groups, alone, world, how):
    fitted, prediction = alone
    for rank in range(world):
        rows, labels, means, centroids, clusters, n_images = groups[world][rank][how]
        assert torch.equal(labels, prediction.cluster[rows])
        # Sinkhorn stops at an error of 1e-3, on paths that rounding alone tells apart.
        torch.testing.assert_close(means, fitted.means, atol=2e-3, rtol=0)
        torch.testing.assert_close(centroids, fitted.partition.centroids, atol=2e-3, rtol=0)
        assert [cluster.size for cluster in clusters] == [cluster.size for cluster in fitted.clusters]
        assert n_images == fitted.n_images


@pytest.mark.parametrize("world", WORLDS)
def test_every_rank_has_the_same_state(groups, world):
    for how in ("interleaved", "one rank has all"):
        states = [rank[how][2:4] for rank in groups[world]]
        assert all(torch.equal(a, b) for state in states for a, b in zip(state, states[0], strict=True))


@pytest.mark.parametrize("world", WORLDS)
def test_kmeans_on_a_sample_and_all_points_gives_the_same_bits(groups, world, monkeypatch):
    images, _, _ = toy_world()
    monkeypatch.setattr(clustering, "SAMPLE", 50)
    monkeypatch.setattr(clustering, "SAMPLE_PER_CENTROID", 50)
    expected = kmeans(images, K, spherical=True, n_init=3, max_iter=100, seed=0)
    sums = cluster_sums(images, torch.arange(len(images)) % 5, 5)[0]
    for rank in groups[world]:
        assert torch.equal(rank["sampled"], expected)
        assert torch.equal(rank["sums"], sums)


@pytest.mark.parametrize("world", WORLDS)
def test_collective_operations(groups, world):
    ranks = groups[world]
    for rank in ranks:
        assert rank["gathered"].flatten().tolist() == [i for r in range(world) for i in range(3 * r)]
        assert rank["total"] == sum(range(world))
        assert rank["first"].tolist() == [7]
    # 3 and 4 are on every rank and count once; the others are one rank's own.
    kept = torch.stack([rank["unrepeated"] for rank in ranks])
    assert kept[:, [0, 2]].all()
    assert kept[:, [1, 3]].sum(dim=0).tolist() == [1, 1]


@pytest.mark.parametrize("world", WORLDS)
def test_what_one_rank_cannot_use_stops_all_with_the_reason(groups, world):
    assert {rank["refused"] for rank in groups[world]} == {
        "1 of 700 image embeddings hold NaN or infinity; leave these out, or fix what made them"
    }


@pytest.mark.parametrize("world", WORLDS)
def test_ids_that_do_not_fit_on_one_rank_stop_all(groups, world):
    for rank in groups[world]:
        short, repeated, missing = rank["bad ids"]
        assert "must hold an id for each image" in short and "must hold an id for each image" in missing
        assert repeated == "the ids of images in `index` must all be different, but 1 of them repeat another"
    short, _, missing = groups[world][1]["bad ids"]
    assert "(349,) torch.int64 for 350 images" in short or "(232,) torch.int64 for 233 images" in short
    assert "missing for 3" in missing or "missing for 2" in missing


def test_repeats_are_found_without_a_group():
    assert first_occurrence_mask(torch.tensor([5, 2, 5, 7, 2]), None).tolist() == [True, True, False, True, False]


def test_a_group_needs_to_know_which_image_is_which():
    images, _, _ = toy_world()
    with pytest.raises(ValueError, match="needs the `index`"):
        clustering.sample_rows(images, None, 10, 0, group=object())
