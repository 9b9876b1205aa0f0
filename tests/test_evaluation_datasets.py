"""Every loader on a tiny stand-in with the layout of the real thing."""

import pickle
import time

import datasets as hf
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file

from cae.data import ImageError
from cae.evaluation import DatasetError, load_dataset
from cae.evaluation.datasets import CIFAR_SUPERCLASSES, IMAGENET_10, IMAGENET_DOGS, _imagenet_names


def picture(value: int = 0) -> Image.Image:
    return Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8))


def save(path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(value).save(path)


def test_folder_of_class_folders(picture_folder):
    (picture_folder / "red").rename(picture_folder / "dark_red")
    data = load_dataset(str(picture_folder))
    assert data.class_names == ["blue", "dark red", "green"]
    assert torch.bincount(data.labels).tolist() == [10, 10, 10]
    assert data.read(11, 4).mode == "RGB"
    again = load_dataset(str(picture_folder))
    assert again.identity == data.identity
    save(picture_folder / "blue" / "0.png", 7)
    assert load_dataset(str(picture_folder)).identity != data.identity


def test_folder_with_splits(tmp_path):
    for part, n in (("train", 3), ("val", 2)):
        for i in range(n):
            save(tmp_path / part / "cat" / f"{i}.png")
            save(tmp_path / part / "dog" / f"{i}.png")
    assert len(load_dataset(str(tmp_path)).labels) == 4
    assert len(load_dataset(str(tmp_path), split="train").labels) == 6


def test_folders_that_do_not_fit_are_named(tmp_path):
    save(tmp_path / "flat" / "cat" / "0.png")
    with pytest.raises(DatasetError, match="one class only"):
        load_dataset(str(tmp_path / "flat"))
    with pytest.raises(DatasetError, match="no folders `train` and `test`"):
        load_dataset(str(tmp_path / "flat"), split="train")
    save(tmp_path / "flat" / "loose.png")
    with pytest.raises(DatasetError, match=r"loose\.png lies in no class"):
        load_dataset(str(tmp_path / "flat"))
    with pytest.raises(DatasetError, match="no data set 'nowhere'"):
        load_dataset("nowhere")


def test_hugging_face(tmp_path, monkeypatch):
    monkeypatch.setattr(hf.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=["cat", "big_dog"])})
    for split, n in (("train", 6), ("test", 4)):
        rows = hf.Dataset.from_dict(
            {"image": [picture(i) for i in range(n)], "label": [i % 2 for i in range(n)]}, features=features
        )
        (tmp_path / "toy").mkdir(exist_ok=True)
        rows.to_parquet(tmp_path / "toy" / f"{split}.parquet")
    data = load_dataset(f"hf:{tmp_path / 'toy'}")
    assert data.class_names == ["cat", "big dog"]
    assert data.labels.tolist() == [0, 1, 0, 1]
    assert data.read(3, 8).getpixel((0, 0)) == (3, 3, 3)
    assert len(load_dataset(f"hf:{tmp_path / 'toy'}", split="train").labels) == 6
    with pytest.raises(DatasetError, match="cannot be loaded"):
        load_dataset(f"hf:{tmp_path / 'nowhere'}")


def test_classes_of_a_hugging_face_data_set_may_be_strings(tmp_path, monkeypatch):
    monkeypatch.setattr(hf.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    features = hf.Features({"image": hf.Image(), "label": hf.Value("string")})
    rows = hf.Dataset.from_dict(
        {"image": [picture(i) for i in range(3)], "label": ["b_c", "a", "b_c"]}, features=features
    )
    (tmp_path / "toy").mkdir()
    rows.to_parquet(tmp_path / "toy/test.parquet")
    data = load_dataset(f"hf:{tmp_path / 'toy'}")
    assert (data.class_names, data.labels.tolist()) == (["a", "b c"], [1, 0, 1])


def test_a_damaged_picture_is_one_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(hf.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=["cat", "dog"])})
    images = [{"bytes": b"no picture", "path": None}, picture(7)]
    rows = hf.Dataset.from_dict({"image": images, "label": [0, 1]}, features=features)
    (tmp_path / "toy").mkdir()
    rows.to_parquet(tmp_path / "toy" / "test.parquet")
    data = load_dataset(f"hf:{tmp_path / 'toy'}")
    with pytest.raises(ImageError, match="not a picture"):
        data.read(0, 8)
    assert data.read(1, 8).getpixel((0, 0)) == (7, 7, 7)


@pytest.fixture
def trusting(monkeypatch):
    """Stand-ins have no checksums of the real files."""
    for module in ("cifar", "stl10"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda *_, **__: True)


def _cifar(folder, batches, meta, key, labels) -> None:
    folder.mkdir(parents=True)
    for name in batches:
        content = {"data": np.zeros((len(labels), 3072), dtype=np.uint8), key: labels}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / meta[0]).write_bytes(pickle.dumps({meta[1]: meta[2]}))


def test_cifar10(tmp_path, trusting):
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    batches = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    _cifar(tmp_path / "cifar-10-batches-py", batches, ("batches.meta", "label_names", names), "labels", [3, 1, 4])
    data = load_dataset("cifar10", root=tmp_path)
    assert (data.name, data.class_names, data.labels.tolist()) == ("CIFAR-10", names, [3, 1, 4])
    assert data.read(0, 32).size == (32, 32)
    assert len(load_dataset("cifar10", root=tmp_path, split="train").labels) == 15


def test_cifar20_is_cifar100_by_superclass(tmp_path, trusting):
    fine = sorted(name for group in CIFAR_SUPERCLASSES.values() for name in group.split())
    assert len(fine) == len(set(fine)) == 100
    wanted = [fine.index("shark"), fine.index("tulip"), fine.index("tank")]
    _cifar(tmp_path / "cifar-100-python", ["train", "test"], ("meta", "fine_label_names", fine), "fine_labels", wanted)
    data = load_dataset("cifar20", root=tmp_path)
    assert [data.class_names[label] for label in data.labels] == ["fish", "flowers", "vehicles 2"]
    assert len(data.class_names) == 20


def test_stl10(tmp_path, trusting):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    for split, n in (("train", 4), ("test", 3)):
        np.zeros(n * 3 * 96 * 96, dtype=np.uint8).tofile(folder / f"{split}_X.bin")
        np.arange(1, n + 1, dtype=np.uint8).tofile(folder / f"{split}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(f"thing {i}" for i in range(10)))
    data = load_dataset("stl10", root=tmp_path)
    assert data.labels.tolist() == [0, 1, 2]
    assert data.read(0, 96).size == (96, 96)


def test_dtd_joins_train_and_val(tmp_path, monkeypatch):
    root = tmp_path / "dtd" / "dtd"
    for split, n in (("train1", 2), ("val1", 1), ("test1", 1)):
        lines = [f"{kind}/{kind}_{split}_{i}.jpg" for kind in ("banded", "woven") for i in range(n)]
        for line in lines:
            save(root / "images" / line)
        (root / "labels").mkdir(exist_ok=True)
        (root / "labels" / f"{split}.txt").write_text("\n".join(lines))
    assert load_dataset("dtd", root=tmp_path).class_names == ["banded", "woven"]
    train = load_dataset("dtd", root=tmp_path, split="train")
    assert train.labels.tolist() == [0, 0, 1, 1, 0, 1]
    assert train.read(5, 8).size == (8, 8)


def test_ucf101_takes_the_frames_of_its_list(tmp_path):
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "testlist01.txt").write_text("Biking/v_Biking_g01_c01.avi\nYoYo/v_YoYo_g01_c01.avi\n")
    (lists / "trainlist01.txt").write_text("Biking/v_Biking_g08_c01.avi 1\nYoYo/v_YoYo_g08_c01.avi 2\n")
    with pytest.raises(DatasetError, match="middle frames per class"):
        load_dataset("ucf101", root=tmp_path)
    for video in ("Biking/v_Biking_g01_c01", "Yo_Yo/v_YoYo_g01_c01", "Biking/v_Biking_g08_c01"):
        save(tmp_path / "UCF-101-midframes" / f"{video}.jpg")
    data = load_dataset("ucf101", root=tmp_path)
    assert data.class_names == ["Biking", "Yo Yo"]
    with pytest.raises(DatasetError, match="1 of the 2 videos"):
        load_dataset("ucf101", root=tmp_path, split="train")


def test_imagenet_and_its_subsets(tmp_path):
    assert len(IMAGENET_10.split()) == 10
    assert len(IMAGENET_DOGS.split()) == 15
    names = _imagenet_names()
    for synset in names:
        (tmp_path / "imagenet" / "val" / synset).mkdir(parents=True)
    for synset in {*IMAGENET_10.split(), *IMAGENET_DOGS.split()}:
        save(tmp_path / "imagenet" / "val" / synset / "0.JPEG")
    ten = load_dataset("imagenet10", root=tmp_path)
    assert ten.class_names[0] == "king penguin"
    assert len(ten.labels) == 10
    dogs = load_dataset("imagenet-dogs", root=tmp_path)
    assert {"golden retriever", "pug"} <= {name.lower() for name in dogs.class_names}
    with pytest.raises(DatasetError, match="n02056570 is missing"):
        load_dataset("imagenet10", root=tmp_path, split="train")


def test_a_set_that_cannot_be_downloaded_is_an_error(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", unreachable)
    with pytest.raises(DatasetError, match="cannot be downloaded"):
        load_dataset("cifar10", root=tmp_path)


def test_embeddings_of_three_kinds_are_the_same(tmp_path):
    x, labels = torch.randn(12, 5), torch.arange(12) % 3
    np.save(tmp_path / "a.npy", x.numpy())
    np.save(tmp_path / "a.labels.npy", labels.numpy())
    save_file({"embeddings": x, "labels": labels}, tmp_path / "b.safetensors")
    table = pa.table({"embedding": x.tolist(), "label": [["ant", "bee", "wild_cat"][i] for i in labels]})
    pq.write_table(table, tmp_path / "c.parquet")
    a, b, c = (load_dataset(str(tmp_path / name)) for name in ("a.npy", "b.safetensors", "c.parquet"))
    for data in (a, b, c):
        torch.testing.assert_close(data.x, torch.nn.functional.normalize(x, dim=1))
        assert torch.equal(data.labels, labels)
    assert (a.class_names, c.class_names) == (None, ["ant", "bee", "wild cat"])
    assert a.identity == b.identity


def test_labels_that_do_not_fit_are_named(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((4, 3), dtype=np.float32))
    with pytest.raises(DatasetError, match=r"labels of .* are missing: .*--labels"):
        load_dataset(str(tmp_path / "a.npy"))
    np.save(tmp_path / "y.npy", np.arange(3))
    with pytest.raises(DatasetError, match="4 embeddings, but there are 3 labels"):
        load_dataset(str(tmp_path / "a.npy"), labels=tmp_path / "y.npy")
    np.save(tmp_path / "y.npy", np.zeros(4, dtype=int))
    with pytest.raises(DatasetError, match="one class only"):
        load_dataset(str(tmp_path / "a.npy"), labels=tmp_path / "y.npy")
    np.save(tmp_path / "n.npy", np.full((4, 3), np.nan))
    with pytest.raises(DatasetError, match="NaN"):
        load_dataset(str(tmp_path / "n.npy"), labels=tmp_path / "y.npy")
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object))
    with pytest.raises(DatasetError, match="cannot be used"):
        load_dataset(str(tmp_path / "o.npy"), labels=tmp_path / "y.npy")
    save_file({"vectors": torch.ones(2, 2)}, tmp_path / "b.safetensors")
    with pytest.raises(DatasetError, match="expected a tensor `embeddings`, found vectors"):
        load_dataset(str(tmp_path / "b.safetensors"))
    pq.write_table(pa.table({"x": [1]}), tmp_path / "c.parquet")
    with pytest.raises(DatasetError, match="expected a column `embedding`, found x"):
        load_dataset(str(tmp_path / "c.parquet"))
    with pytest.raises(DatasetError, match="no such file"):
        load_dataset(str(tmp_path / "nowhere.npy"))


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch):
    asked = []

    def session():
        asked.append(1)
        raise OSError("Name or service not known")

    monkeypatch.setattr("cae.utils.hub.get_session", session)
    start = time.monotonic()
    with pytest.raises(DatasetError, match="nobody/nothing cannot be loaded"):
        load_dataset("hf:nobody/nothing")
    assert asked == [1]
    assert time.monotonic() - start < 10  # its client alone takes 23 s
    assert not constants.HF_HUB_OFFLINE
