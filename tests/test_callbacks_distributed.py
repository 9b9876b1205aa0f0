"""The callbacks on two processes: one result for all, nobody waits for a rank that failed, no sample twice."""

import json
import os
import warnings

import lightning.pytorch as pl
import pyarrow.parquet as pq
import pytest
import torch
import torch.multiprocessing as mp
from callback_cases import Classifier, K, fit, loader, samples, validate
from callback_cases import trainer as single
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy
from processes import free_port, leave_group
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from cae.callbacks import ClusteringCallback, ClusteringError, PredictionWriter
from cae.callbacks.ranks import gather, on_rank_zero


def trainer(*callbacks, **options):
    options = {"max_epochs": 2, "num_sanity_val_steps": 0, "strategy": "ddp", **options}
    return pl.Trainer(
        accelerator="cpu",
        devices=2,
        plugins=[LightningEnvironment()],
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def identity(module=None):
    """A model whose embeddings are its samples, so that one process can tell what two should find."""
    module = module or Classifier()
    torch.nn.init.eye_(module.body.weight)
    torch.nn.init.zeros_(module.body.bias)
    return module


class OneRank(IterableDataset):
    """All samples on rank 0, none on the others."""

    def __iter__(self):
        return iter(samples() if torch.distributed.get_rank() == 0 else ())


def plain(metrics):
    return {name: float(value) for name, value in metrics.items()}


def validated(rank, folder):
    """Scores of the embeddings of both ranks."""
    callback = ClusteringCallback(K, label="label", strict=True)
    run = trainer(callback)
    validate(run, identity())
    return plain(run.callback_metrics)


class Sharded(Classifier):
    """Its weights are shared out between the ranks, by PyTorch's FSDP."""

    def configure_model(self):
        for layer in (self.body, self.head):
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])


def sharded(rank, folder):
    """The embeddings of a module whose weights no rank has whole, as it returns them and by calling it."""
    heard = []
    for source in ({}, {"method": "embed"}):
        callback = ClusteringCallback(K, label=None if source else "label", strict=True, **source)
        run = trainer(callback, strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1))
        validate(run, identity(Sharded()))
        heard.append(plain(run.callback_metrics))
    return heard


def fitted(rank, folder):
    """Monitors that act on the scores."""
    pl.seed_everything(0, verbose=False)
    callback = ClusteringCallback(K, label="label", every_n_epochs=2, strict=True)
    checkpoint = ModelCheckpoint(folder / "checkpoints", monitor="cluster_acc", mode="max")
    stopping = EarlyStopping("cluster_acc", mode="max", stopping_threshold=0.9)
    run = trainer(callback, checkpoint, stopping, max_epochs=6)
    fit(run)
    return {
        "epochs": run.current_epoch,
        "best": float(checkpoint.best_model_score),
        "path": checkpoint.best_model_path,
        "labels": callback.clustering.labels.tolist(),
    }


def empty_rank(rank, folder):
    run = trainer(ClusteringCallback(K, label="label", strict=True))
    validate(run, identity(), DataLoader(OneRank(), batch_size=32))
    return plain(run.callback_metrics)


def failing_rank(rank, folder):
    """Rank 1 has no embeddings to give."""
    heard = {}
    for strict in (False, True):
        module = Classifier(lambda z, y: {"embedding": z} if rank == 0 else {})
        run = trainer(ClusteringCallback(K, strict=strict))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                fit(run, module)
            except ClusteringError as error:
                heard["error"] = str(error)
            else:
                heard["epochs"] = run.current_epoch
                heard["warnings"] = [str(w.message) for w in caught if "not clustered" in str(w.message)]
    return heard


class Double(pl.LightningModule):
    def predict_step(self, batch, batch_idx):
        return {"double": 2 * batch}


def written(rank, folder):
    """101 samples on two ranks, which the user's own sampler makes 102; and an odd number by Lightning's."""
    data = torch.arange(101.0)
    repeating = DataLoader(data, batch_size=4, sampler=DistributedSampler(data, 2, rank, shuffle=False))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        for name, batches in (("repeated", repeating), ("uneven", DataLoader(data, batch_size=4))):
            path = folder / f"{name}.parquet"
            runner = trainer(PredictionWriter(path), use_distributed_sampler=name == "uneven")
            runner.predict(Double(), batches, return_predictions=False)
            assert path.exists()
    return sorted(file.name for file in folder.iterdir())


def spoken(rank, folder):
    """What `ranks` promises."""
    run = trainer()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        validate(run, identity())
    try:
        on_rank_zero(run, lambda: 1 / 0)
    except (ZeroDivisionError, RuntimeError) as error:
        failure = repr(error)
    return {"gathered": gather(run, "r" * rank), "given": on_rank_zero(run, lambda: 7 + rank), "failure": failure}


SCENES = (validated, sharded, fitted, empty_rank, failing_rank, written, spoken)


def play(rank, port, folder):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank))
    heard = {}
    for scene in SCENES:
        (folder / scene.__name__).mkdir(exist_ok=True)
        heard[scene.__name__] = scene(rank, folder / scene.__name__)
    (folder / f"{rank}.json").write_text(json.dumps(heard))
    leave_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each scene came to on each rank, and the folder of its files; one start of the processes for all."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(play, (free_port(), folder), nprocs=2)
    heard = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    return {scene.__name__: ([h[scene.__name__] for h in heard], folder / scene.__name__) for scene in SCENES}


@pytest.fixture(scope="module")
def alone():
    run = single(ClusteringCallback(K, label="label", strict=True))
    validate(run, identity(), loader())
    return plain(run.callback_metrics)


@pytest.mark.parametrize("scene", ["validated", "empty_rank"])
def test_both_ranks_log_the_scores_of_one_process(ranks, alone, scene):
    (first, second), _ = ranks[scene]
    assert first == second
    assert first == pytest.approx(alone)
    assert first["cluster_acc"] > 0.9


def test_a_module_that_is_sharded_has_the_scores_of_one_process(ranks, alone):
    (first, second), _ = ranks["sharded"]
    assert first == second
    returned, called = first
    assert returned == pytest.approx(alone)
    assert called["cluster_silhouette"] == pytest.approx(alone["cluster_silhouette"])


def test_monitors_agree(ranks):
    (first, second), _ = ranks["fitted"]
    assert first == second
    assert first["epochs"] < 6
    assert first["best"] > 0.9


def test_a_failure_on_one_rank_is_told_on_all_and_nobody_waits(ranks):
    (first, second), _ = ranks["failing_rank"]
    assert first["epochs"] == second["epochs"] == 2
    message = "rank 1, on_validation_batch_end, batch 0: validation_step has no 'embedding'"
    assert message in first["warnings"][0]
    assert second["warnings"] == []  # rank 0 speaks for all
    assert message in first["error"]
    assert message in second["error"]


@pytest.mark.parametrize("name", ["repeated", "uneven"])
def test_predictions_of_both_ranks_are_in_order_and_once(ranks, name):
    listed, folder = ranks["written"]
    table = pq.read_table(folder / f"{name}.parquet")
    assert table["index"].to_pylist() == list(range(101))
    assert table["double"].to_pylist() == [2.0 * i for i in range(101)]
    assert listed[1] == ["repeated.parquet", "uneven.parquet"]


def test_ranks_hear_of_each_other(ranks):
    (first, second), _ = ranks["spoken"]
    assert (first["gathered"], second["gathered"]) == (["", "r"], [])
    assert first["given"] == second["given"] == 7
    assert first["failure"].startswith("ZeroDivisionError")
    assert "rank 0 failed: ZeroDivisionError" in second["failure"]
