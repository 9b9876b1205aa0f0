"""The fitted state on disk: whole, readable without code execution, and refused when it is not right."""

import json
from dataclasses import asdict

import pytest
import torch
from torch.nn.functional import normalize

from cae.config import CAEConfig
from cae.method.fitted import FORMAT_VERSION, ClusterDescription, FittedCAE, ModelError, SelectedTexts
from cae.method.partition import Partition
from cae.utils.checksums import tensors_hash


@pytest.fixture
def fitted():
    def rows(n):
        return normalize(torch.randn(n, 8, generator=torch.Generator().manual_seed(n)), dim=1)

    return FittedCAE(
        config=CAEConfig(n_clusters=2, epsilon=0.03),
        n_images=40,
        selected={
            "noun": SelectedTexts(["a", "b", "ü"], rows(3), torch.arange(3.0)),
            "caption": SelectedTexts(["c"], rows(1), torch.zeros(1)),
        },
        means=rows(3),
        partition=Partition(rows(2), rows(8)[:, :1], spherical=False),
        clusters=[ClusterDescription(k, f"n{k}", "", 20, ["a"], ["c"]) for k in range(2)],
        provenance={"encoder": {"spec": "toy", "fingerprint": "0"}},
    )


def assert_same(one: FittedCAE, other: FittedCAE) -> None:
    assert (one.config, one.n_images, one.clusters, one.provenance) == (
        other.config,
        other.n_images,
        other.clusters,
        other.provenance,
    )
    assert torch.equal(one.means, other.means)
    assert torch.equal(one.partition.centroids, other.partition.centroids)
    assert torch.equal(one.partition.metric, other.partition.metric)
    assert one.partition.spherical == other.partition.spherical
    for modality, texts in one.selected.items():
        assert texts.texts == other.selected[modality].texts
        assert torch.equal(texts.embeddings, other.selected[modality].embeddings)
        assert torch.equal(texts.g, other.selected[modality].g)


def test_survives_a_folder_and_a_weights_only_checkpoint(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    assert_same(fitted, FittedCAE.load(tmp_path / "model"))
    torch.save(fitted.state_dict(), tmp_path / "state.pt")
    assert_same(fitted, FittedCAE.from_state_dict(torch.load(tmp_path / "state.pt", weights_only=True)))
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_order_of_modalities_survives(fitted, tmp_path):
    fitted.save(tmp_path)
    assert list(FittedCAE.load(tmp_path).selected) == ["noun", "caption"]


def edit_config(folder, change):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    change(config)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "cannot be read"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"junk"), "cannot be read"),
        (lambda folder: edit_config(folder, lambda c: c.update(format_version=FORMAT_VERSION + 1)), "upgrade cae"),
        (lambda folder: edit_config(folder, lambda c: c.pop("format_version")), "not a fitted CAE"),
        (lambda folder: edit_config(folder, lambda c: c.pop("texts")), "incomplete or damaged"),
        (lambda folder: edit_config(folder, lambda c: c["config"].update(wings=2)), "incomplete or damaged"),
        (lambda folder: edit_config(folder, lambda c: c["texts"]["noun"].pop()), "incomplete or damaged"),
    ],
)
def test_damaged_or_foreign_folders_are_refused(fitted, tmp_path, damage, message):
    fitted.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError, match=message):
        FittedCAE.load(tmp_path)


def test_a_failed_save_leaves_the_old_model(fitted, tmp_path, monkeypatch):
    fitted.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("cae.method.fitted.dump_json", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fitted.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def flip_last_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip_last_bit(folder / "model.safetensors"),
        lambda folder: edit_config(folder, lambda c: c["config"].update(epsilon=0.04)),
        lambda folder: edit_config(folder, lambda c: c["clusters"][0].update(name="other")),
        lambda folder: edit_config(folder, lambda c: c.pop("sha256")),
    ],
)
def test_any_change_is_noticed(fitted, tmp_path, damage):
    fitted.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError, match=r"incomplete or damaged.*; fit it again"):
        FittedCAE.load(tmp_path)


def test_a_model_from_before_there_were_checksums_loads(fitted, tmp_path):
    fitted.save(tmp_path)
    edit_config(tmp_path, lambda c: c.pop("sha256") and c.update(format_version=1))
    assert_same(fitted, FittedCAE.load(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["clusters"].__setitem__(0, "text"),
        lambda c: c["clusters"][0].update(nouns="text"),
        lambda c: c["clusters"].pop(),
        lambda c: c["texts"].update(noun="abc"),
        lambda c: c["texts"]["noun"].__setitem__(1, None),
        lambda c: c.update(n_images="40"),
        lambda c: c.update(method=["cae"]),
        lambda c: c.update(provenance=[]),
        lambda c: c["config"].update(modalities=["noun"]),
    ],
)
def test_values_of_another_kind_are_refused_where_there_is_no_checksum(fitted, tmp_path, change):
    fitted.save(tmp_path)
    edit_config(tmp_path, lambda c: c.update(format_version=1) or change(c))
    with pytest.raises(ModelError, match="incomplete or damaged"):
        FittedCAE.load(tmp_path)


@pytest.mark.parametrize("name", ["means", "centroids", "metric"])
def test_a_tensor_of_another_shape_is_refused_where_there_is_no_checksum(fitted, name):
    state = {**fitted.state_dict(), "format_version": 1}
    state["tensors"][name] = state["tensors"][name][0]
    with pytest.raises(ModelError, match="incomplete or damaged"):
        FittedCAE.from_state_dict(state)


def test_a_checkpoint_notices_a_changed_number(fitted):
    state = fitted.state_dict()
    state["tensors"]["means"] = state["tensors"]["means"].clone()
    state["tensors"]["means"][0, 0] += 1e-3
    with pytest.raises(ModelError, match="checksum"):
        FittedCAE.from_state_dict(state)


def test_a_model_from_before_there_was_a_metric_goes_by_its_kmeans(fitted):
    state = {**fitted.state_dict(), "format_version": 1}
    del state["tensors"]["metric"], state["plain"]["config"]["clustering"]
    loaded = FittedCAE.from_state_dict(state)
    assert loaded.config.clustering == "kmeans"
    assert loaded.partition.metric is None
    assert loaded.partition.spherical


def test_a_tree_survives_the_disk_and_a_cut_too(tree_folder, tmp_path):
    fitted = FittedCAE.load(tree_folder / "model")
    fitted.cut(fitted.hierarchy.levels[-1]).save(tmp_path / "cut")
    read = FittedCAE.load(tmp_path / "cut")
    assert read.hierarchy.splits == fitted.hierarchy.splits
    assert [cluster.id for cluster in read.clusters] == list(range(read.config.n_clusters))
    assert read.config.n_clusters == fitted.hierarchy.levels[-1]
    assert [asdict(node) for node in read.cut(6).nodes] == [asdict(node) for node in fitted.nodes]
    assert [asdict(cluster) for cluster in read.cut(6).clusters] == [asdict(cluster) for cluster in fitted.clusters]


@pytest.mark.parametrize(
    ("part", "value"),
    [("splits", [0, 0]), ("roots", 2**40), ("leaves", "abc"), ("nodes", []), ("nodes", [{}]), ("n_clusters", None)],
)
def test_a_tree_that_is_none_is_refused_by_name(tree_folder, part, value):
    state = FittedCAE.load(tree_folder / "model").state_dict()
    state["plain"]["tree"][part] = value
    state["sha256"] = tensors_hash(state["tensors"], state["plain"])
    with pytest.raises(ModelError, match="incomplete or damaged"):
        FittedCAE.from_state_dict(state)
