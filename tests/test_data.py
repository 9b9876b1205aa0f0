"""Pictures of every kind that a folder may hold, files that are none, and the data modules."""

import os
import tarfile
from types import SimpleNamespace

import datasets
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import GifImagePlugin, Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file
from torch.utils.data import ConcatDataset, Dataset, Subset, random_split
from torchvision.datasets import FakeData
from torchvision.datasets import ImageFolder as TorchvisionFolder

from cae.data import (
    EmbeddingData,
    EmbeddingError,
    HuggingFaceData,
    ImageError,
    ImageFolderData,
    TorchvisionData,
    list_images,
    read_embeddings,
    read_image,
)
from cae.data.images import image_size
from cae.models.embedder import Embedder


def gradient(mode: str, size=(40, 30)) -> Image.Image:
    ramp = np.linspace(0, 255, size[0] * size[1]).reshape(size[1], size[0]).astype(np.uint8)
    return Image.fromarray(ramp).convert(mode)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *(("a.png", mode) for mode in ("P", "RGBA", "LA", "1")),
        *(("a.jpg", mode) for mode in ("CMYK", "L")),
        *((name, "RGB") for name in ("a.gif", "a.webp", "a.tiff", "a.bmp", "A.JPEG")),
    ],
)
def test_reads_every_mode_as_rgb(tmp_path, name, mode):
    gradient(mode).save(tmp_path / name)
    image = read_image(tmp_path / name)
    assert (image.mode, image.size) == ("RGB", (40, 30))


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_16_bit_grey_keeps_its_shades(tmp_path, ending):
    values = np.linspace(0, 65535, 1200).reshape(30, 40).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / f"deep.{ending}")
    read = np.asarray(read_image(tmp_path / f"deep.{ending}"))[..., 0]
    np.testing.assert_allclose(read, values / 257, atol=1)


def test_transparency_shows_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


def test_exif_rotation_is_undone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    gradient("RGB").save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (30, 40)


def test_a_large_jpeg_is_decoded_small_but_never_below_twice_the_side(tmp_path):
    gradient("RGB", (1600, 1200)).save(tmp_path / "large.jpg")
    assert read_image(tmp_path / "large.jpg", side=100).size == (400, 300)


@pytest.mark.parametrize(
    "content",
    [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 50],
)
def test_files_that_are_no_pictures_are_named_as_such(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError):
        read_image(tmp_path / "a.png")


def test_truncated_pictures_are_refused(tmp_path):
    gradient("RGB", (200, 200)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:1500])
    with pytest.raises(ImageError, match="truncated"):
        read_image(tmp_path / "cut.jpg")


def test_a_picture_under_another_ending_is_read(tmp_path):
    gradient("RGB").save(tmp_path / "really.png")
    (tmp_path / "really.png").rename(tmp_path / "called.jpg")
    assert read_image(tmp_path / "called.jpg").size == (40, 30)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [1100, 500])  # of 1,200 pixels; over twice the limit Pillow itself refuses
def test_decompression_bombs_are_refused(tmp_path, monkeypatch, limit):
    gradient("RGB").save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ImageError, match=f"^over the limit of {limit:,} pixels"):
        read_image(tmp_path / "huge.png")


def test_a_link_to_nowhere_is_told_in_words(tmp_path):
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match=r"^No such file or directory$"):
        read_image(tmp_path / "gone.png")


def test_programs_are_never_run_as_pictures(tmp_path, monkeypatch):
    """Pillow reads EPS by handing it to Ghostscript, whatever the file is called."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("the program is run"))
    gradient("RGB").save(tmp_path / "program.eps")
    (tmp_path / "program.eps").rename(tmp_path / "called.jpg")
    with pytest.raises(ImageError, match="without EPS and WMF"):
        read_image(tmp_path / "called.jpg")
    with pytest.raises(ImageError):
        image_size(tmp_path / "called.jpg")


def test_values_that_are_no_numbers_are_black(tmp_path):
    values = np.full((4, 4), 2.0, dtype=np.float32)
    values[0] = np.nan, np.inf, -np.inf, 1
    Image.fromarray(values).save(tmp_path / "odd.tiff")
    assert np.asarray(read_image(tmp_path / "odd.tiff"))[:2, :, 0].tolist() == [[0, 0, 0, 127], [255] * 4]


@pytest.mark.parametrize(("size", "left"), [((20_000, 10), (500, 10)), ((1, 70_000), (1, 50)), ((1, 1), (1, 1))])
def test_pictures_of_any_shape_fit_into_an_encoder(tmp_path, size, left):
    picture = Image.new("RGB", size)
    picture.putpixel((size[0] // 2, size[1] // 2), (9, 9, 9))
    picture.save(tmp_path / "odd.png")
    assert read_image(tmp_path / "odd.png").size == size
    assert read_image(tmp_path / "odd.png", side=260).size == left
    assert read_image(tmp_path / "odd.png", side=260).getpixel((left[0] // 2, left[1] // 2)) == (9, 9, 9)


def test_much_text_in_a_small_picture_is_refused(tmp_path):
    texts = PngInfo()
    for i in range(100):
        texts.add_text(f"key {i}", "a" * 1_000_000, zip=True)
    gradient("RGB").save(tmp_path / "bomb.png", pnginfo=texts)
    assert (tmp_path / "bomb.png").stat().st_size < 200_000
    with pytest.raises(ImageError, match="text"):
        read_image(tmp_path / "bomb.png")


def test_of_many_frames_only_the_first_is_decoded(tmp_path, monkeypatch):
    second = gradient("L").rotate(180)
    gradient("L").save(tmp_path / "two.gif", save_all=True, append_images=[second], duration=10)
    content = (tmp_path / "two.gif").read_bytes()
    start = content.rindex(b"\x21\xf9")  # where the second frame begins
    (tmp_path / "many.gif").write_bytes(content[:start] + content[start:-1] * 100_000 + b";")
    seen, seek = [], GifImagePlugin.GifImageFile._seek
    monkeypatch.setattr(GifImagePlugin.GifImageFile, "_seek", lambda self, *at: seen.append(at) or seek(self, *at))
    assert read_image(tmp_path / "many.gif").size == (40, 30)
    assert len(seen) < 3


def test_links_are_followed_to_files_and_nowhere_else(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    gradient("RGB").save(tmp_path / "outside.png")
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    (root / "lost.png").symlink_to(tmp_path / "nothing.png")
    (root / "self.png").symlink_to(root / "self.png")
    (root / "loop").symlink_to(root)
    (root / "up.png").symlink_to(tmp_path)
    os.mkfifo(root / "pipe.png")
    (root / "endless.png").symlink_to("/dev/zero")
    found = list_images(root)
    assert [path.name for path in found] == ["link.png", "lost.png", "self.png"]
    assert read_image(found[0]).size == (40, 30)
    for path in found[1:]:
        with pytest.raises(ImageError):
            read_image(path)
    assert ImageFolderData(root).identity


def test_lists_recursively_in_order_and_passes_over_the_rest(tmp_path):
    for name in ("b/2.png", "a/c/1.JPG", "3.webp", ".hidden.png", ".cache/4.png", "notes.txt", "paper.pdf"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [str(path.relative_to(tmp_path)) for path in list_images(tmp_path)] == ["3.webp", "a/c/1.JPG", "b/2.png"]


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(ImageError, match="no such folder"):
        list_images(tmp_path / "nowhere")
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    with pytest.raises(ImageError, match=r"not a folder but a file: .*one\.png"):
        list_images(tmp_path / "one.png")
    (tmp_path / "one.png").unlink()
    with pytest.raises(ImageError, match="no pictures"):
        list_images(tmp_path)


@pytest.fixture
def attached(fake_encoder):
    """Gives a data module the trainer and the module that it would have inside `trainer.fit`."""

    def attach(data):
        trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        trainer.strategy._lightning_module = embedder = Embedder(fake_encoder)
        embedder.trainer = trainer
        data.trainer = trainer
        return data

    return attach


def samples(data, loader="predict_dataloader"):
    """Path and class of each sample by its index, in the order they come; and the pictures."""
    batches = list(getattr(data, loader)())
    found = {}
    for batch in batches:
        labels = batch["label"].tolist() if "label" in batch else [None] * len(batch["index"])
        found.update(zip(batch["index"].tolist(), zip(batch["path"], labels, strict=True), strict=True))
    return found, torch.cat([batch["image"] for batch in batches])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("loader", ["predict_dataloader", "test_dataloader", "train_dataloader"])
def test_a_folder_has_order_paths_and_classes(attached, picture_folder, workers, loader):
    data = attached(ImageFolderData(picture_folder, batch_size=7, num_workers=workers))
    found, images = samples(data, loader)
    assert list(found) == list(range(30))
    assert data.classes == ["blue", "green", "red"]
    for index, (path, label) in found.items():
        assert picture_folder / path == data.paths[index]
        assert path.startswith(data.classes[label])
    assert images.shape == (30, 3, 4, 4)


def test_unreadable_pictures_are_left_out_and_the_rest_keep_their_numbers(attached, picture_folder):
    (picture_folder / "green" / "0.png").write_bytes(b"")
    data = attached(ImageFolderData(picture_folder, batch_size=1, num_workers=0))
    found, images = samples(data)
    assert sorted(set(range(30)) - set(found)) == [10]
    assert len(images) == 29


def test_loose_pictures_have_no_classes(attached, picture_folder):
    (picture_folder / "red" / "0.png").rename(picture_folder / "loose.png")
    data = attached(ImageFolderData(picture_folder, num_workers=0))
    assert data.classes == []
    assert "label" not in next(iter(data.predict_dataloader()))


def test_identity_tells_of_any_change(picture_folder):
    def identity():
        return ImageFolderData(picture_folder).identity

    seen = [identity()]
    assert identity() == seen[0]
    (picture_folder / "red" / "0.png").write_bytes((picture_folder / "red" / "1.png").read_bytes())
    seen.append(identity())
    (picture_folder / "red" / "0.png").rename(picture_folder / "red" / "x.png")
    seen.append(identity())
    (picture_folder / "red" / "x.png").unlink()
    seen.append(identity())
    assert len(set(seen)) == 4


def test_what_the_store_has_is_not_read_again(attached, picture_folder, tmp_path, fake_encoder):
    data = attached(ImageFolderData(picture_folder, num_workers=0))
    embedder = data.trainer.lightning_module
    embedder.store_folder = tmp_path / "store"
    embedder.open_store()
    embedder.store.append(torch.arange(12), torch.eye(fake_encoder.dim)[:12])
    assert list(samples(data, "train_dataloader")[0]) == list(range(12, 30))
    assert list(samples(data)[0]) == list(range(30))
    embedder.store.close()


def test_without_a_trainer_there_is_nobody_to_ask(picture_folder):
    with pytest.raises(RuntimeError, match="only inside a trainer"):
        ImageFolderData(picture_folder).predict_dataloader()


@pytest.fixture
def rows(picture_folder):
    paths = list_images(picture_folder)
    names = sorted({path.parent.name for path in paths})
    columns = {"picture": [str(path) for path in paths], "label": [names.index(path.parent.name) for path in paths]}
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize("streaming", [False, True])
def test_hugging_face_gives_what_the_folder_gives(attached, rows, picture_folder, streaming):
    expected, images = samples(attached(ImageFolderData(picture_folder, num_workers=0)))
    data = HuggingFaceData(rows.to_iterable_dataset() if streaming else rows, batch_size=7, num_workers=0)
    found, same = samples(attached(data))
    assert {i: label for i, (_, label) in found.items()} == {i: label for i, (_, label) in expected.items()}
    assert torch.equal(same, images)


def test_hugging_face_streams_are_shared_out(attached, rows, monkeypatch):
    shares = []
    for rank in range(3):
        data = attached(HuggingFaceData(rows.to_iterable_dataset(), batch_size=7, num_workers=0))
        monkeypatch.setattr(type(data.trainer), "world_size", 3)
        monkeypatch.setattr(type(data.trainer), "global_rank", rank)
        shares.append(list(samples(data)[0]))
    assert [len(share) for share in shares] == [10, 10, 10]
    assert sorted(index for share in shares for index in share) == list(range(30))


def test_hugging_face_passes_over_damaged_pictures_and_names_missing_columns(attached, rows):
    broken = rows.cast_column("picture", datasets.Image(decode=False)).map(
        lambda row, i: {"picture": {"bytes": b"none", "path": None} if i == 4 else row["picture"]}, with_indices=True
    )
    data = HuggingFaceData(broken, image="picture", num_workers=0)
    assert 4 not in samples(attached(data))[0]
    with pytest.raises(ValueError, match="no column 'photo'; its columns are picture, label"):
        HuggingFaceData(rows, image="photo")
    with pytest.raises(ValueError, match="no column of pictures"):
        HuggingFaceData(rows.remove_columns("picture"))


def as_strings(rows):
    names = rows.features["label"].names
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.Value("string")})
    columns = {"picture": rows["picture"][:], "label": [names[i] for i in rows["label"]]}
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize(
    "change",
    [
        as_strings,
        lambda rows: rows.cast_column("label", datasets.Value("int32")),
        lambda rows: rows.cast_column("label", datasets.Value("int64")).rename_column("label", "cls"),
    ],
)
def test_hugging_face_labels_may_be_strings_or_plain_numbers(attached, rows, picture_folder, change):
    expected, _ = samples(attached(ImageFolderData(picture_folder, num_workers=0)))
    found, _ = samples(attached(HuggingFaceData(change(rows), num_workers=0)))
    assert {i: label for i, (_, label) in found.items()} == {i: label for i, (_, label) in expected.items()}


def test_hugging_face_says_what_to_hand_over_instead(rows, picture_folder):
    with pytest.raises(TypeError, match=r"a DatasetDict of train, test: choose a split, as dataset\['train'\]"):
        HuggingFaceData(datasets.DatasetDict(train=rows, test=rows))
    frame = pd.DataFrame({"path": [str(path) for path in list_images(picture_folder)]})
    with pytest.raises(TypeError, match=r"a DataFrame is no data set of Hugging Face: make one with .*from_pandas"):
        HuggingFaceData(frame)
    dataset = datasets.Dataset.from_pandas(frame)
    with pytest.raises(ValueError, match=r"its columns are path\. If one holds paths, use \.cast_column"):
        HuggingFaceData(dataset)
    assert len(HuggingFaceData(dataset.cast_column("path", datasets.Image())).images) == 30
    with pytest.raises(ValueError, match="are strings, which a stream cannot number"):
        HuggingFaceData(as_strings(rows).to_iterable_dataset())
    missing = as_strings(rows).map(lambda row, i: {"label": None if i == 4 else row["label"]}, with_indices=True)
    with pytest.raises(ValueError, match=r"row 4 \(the first is 0\) has no label"):
        HuggingFaceData(missing)


@pytest.mark.parametrize("streaming", [False, True])
def test_archives_of_webdataset_are_data_sets_of_hugging_face(
    attached, picture_folder, tmp_path, monkeypatch, streaming
):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    with tarfile.open(tmp_path / "pictures.tar", "w") as archive:
        for number, path in enumerate(list_images(picture_folder)):
            (tmp_path / "class").write_text(str(number // 10))
            archive.add(path, f"{number:04d}.png")
            archive.add(tmp_path / "class", f"{number:04d}.cls")
    rows = datasets.load_dataset(
        "webdataset", data_files={"train": str(tmp_path / "pictures.tar")}, split="train", streaming=streaming
    )
    expected, images = samples(attached(ImageFolderData(picture_folder, num_workers=0)))
    found, same = samples(attached(HuggingFaceData(rows, num_workers=0)))
    assert {i: label for i, (_, label) in found.items()} == {i: label for i, (_, label) in expected.items()}
    assert torch.equal(same, images)


def test_torchvision(attached, picture_folder):
    expected, images = samples(attached(ImageFolderData(picture_folder, num_workers=0)))
    data = attached(TorchvisionData(TorchvisionFolder(picture_folder), num_workers=0))
    found, same = samples(data)
    assert found == expected
    assert torch.equal(same, images)
    assert data.identity == ImageFolderData(picture_folder).identity
    assert samples(attached(TorchvisionData(FakeData(5), num_workers=0)))[1].shape == (5, 3, 4, 4)
    with pytest.raises(TypeError, match="leave its transform unset"):
        samples(attached(TorchvisionData(FakeData(5, transform=lambda _: torch.zeros(3)), num_workers=0)))


X = torch.nn.functional.normalize(torch.randn(10, 4, generator=torch.Generator().manual_seed(0)), dim=1).numpy()
Y = np.arange(10) % 3


def write_npy(folder):
    np.save(folder / "x.npy", X)
    np.save(folder / "x.labels.npy", Y)
    return folder / "x.npy"


def write_safetensors(folder):
    save_file({"embeddings": torch.from_numpy(X), "labels": torch.from_numpy(Y)}, folder / "x.safetensors")
    return folder / "x.safetensors"


def write_parquet(folder):
    table = pa.table({"embedding": pa.array(list(X)), "label": Y})
    pq.write_table(table, folder / "x.parquet", row_group_size=3)
    return folder / "x.parquet"


def write_fixed_parquet(folder):
    column = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), 4)
    pq.write_table(pa.table({"embedding": column, "label": Y}), folder / "x.parquet")
    return folder / "x.parquet"


@pytest.mark.parametrize(
    "write", [write_npy, write_safetensors, write_parquet, write_fixed_parquet, lambda _: torch.from_numpy(X)]
)
@pytest.mark.parametrize("workers", [0, 2])
def test_embeddings_from_anywhere(attached, tmp_path, write, workers):
    source = write(tmp_path)
    labels = torch.from_numpy(Y) if isinstance(source, torch.Tensor) else None
    data = attached(EmbeddingData(source, labels, batch_size=4, num_workers=workers))
    batches = list(data.predict_dataloader())
    assert [len(batch["index"]) for batch in batches] == [4, 4, 2]
    for key, expected in (("embedding", X), ("index", np.arange(10)), ("label", Y)):
        np.testing.assert_array_equal(torch.cat([batch[key] for batch in batches]).numpy(), expected)


@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8", "f2", "f8", "g"])
def test_embeddings_may_be_floats_of_any_size_and_order_of_bytes(tmp_path, dtype):
    np.save(tmp_path / "x.npy", np.asfortranarray(X.astype(dtype)))
    np.testing.assert_allclose(EmbeddingData(tmp_path / "x.npy").x.float().numpy(), X, atol=1e-3)


def test_npy_files_are_mapped(tmp_path):
    x, _ = read_embeddings(write_npy(tmp_path))
    assert isinstance(x, np.memmap)


def write_ragged(folder):
    pq.write_table(pa.table({"embedding": [[1.0, 2.0], [3.0]]}), folder / "x.parquet")
    return folder / "x.parquet"


def write_named(folder):
    save_file({"vectors": torch.zeros(3, 2)}, folder / "x.safetensors")
    return folder / "x.safetensors"


def write_numbers(folder):
    np.save(folder / "x.npy", np.arange(10))
    return folder / "x.npy"


def write_archive(folder):
    np.savez(folder / "x.npz", X)
    return (folder / "x.npz").rename(folder / "x.npy")


def write_plain_column(folder):
    pq.write_table(pa.table({"embedding": [1.0, 2.0]}), folder / "x.parquet")
    return folder / "x.parquet"


def write_nothing(folder):
    (folder / "x.npy").touch()
    return folder / "x.npy"


def write_pickle(folder):
    np.save(folder / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    return folder / "x.npy"


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: folder / "none.npy", "no such file"),
        (lambda folder: folder / "x.csv", "is none of .npy"),
        (write_nothing, "cannot be used as embeddings"),
        (write_ragged, "rows that are not 2 numbers"),
        (write_named, "expected a tensor `embeddings`, found vectors"),
        (write_numbers, r"not embeddings \(N, D\)"),
        (write_pickle, "cannot be used as embeddings"),
        (write_archive, "an archive of arrays"),
        (write_plain_column, "cannot be used as embeddings"),
    ],
)
def test_files_that_hold_no_embeddings_are_named(tmp_path, write, message):
    with pytest.raises(EmbeddingError, match=message):
        EmbeddingData(write(tmp_path))


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(EmbeddingError, match=r"10 embeddings, but labels of shape \(3,\)"):
        EmbeddingData(X, np.arange(3))
    with pytest.raises(EmbeddingError, match=r"got torch.int64 of shape \(10,\)"):
        EmbeddingData(Y)


@pytest.mark.parametrize("dtype", ["bool", "i1", "u1", "u2", "u4", "u8", ">i2", "<U3"])
def test_labels_of_embeddings_may_be_of_any_integer_type_or_names(tmp_path, dtype):
    labels = (Y > 0 if dtype == "bool" else Y).astype(dtype)
    expected = np.unique(labels, return_inverse=True)[1]
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "x.labels.npy", labels)
    for data in (EmbeddingData(tmp_path / "x.npy"), EmbeddingData(X, labels)):
        assert data.labels.dtype == torch.int64
        assert data.labels.tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", ["f2", "f8", ">f4", "c8"])
def test_labels_that_are_floats_are_refused_by_name(tmp_path, dtype):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "x.labels.npy", Y.astype(dtype))
    with pytest.raises(EmbeddingError, match=r"x\.labels\.npy.*labels are (>f4|float|complex).*, not classes: "):
        EmbeddingData(tmp_path / "x.npy")
    with pytest.raises(EmbeddingError, match=r"labels are (>f4|float|complex).*, not classes: "):
        EmbeddingData(X, Y.astype(dtype))


def test_fewer_samples_than_processes_are_refused():
    data = EmbeddingData(torch.eye(2), num_workers=0)
    data.trainer = SimpleNamespace(world_size=3, global_rank=0)
    with pytest.raises(ValueError, match="2 samples cannot be shared by 3 processes"):
        data.loader()


def torchvision_like(**attributes):
    """A data set of six images that keeps its classes as one of torchvision's does."""

    class Like(Dataset):
        def __getitem__(self, index):
            return Image.new("RGB", (8, 8)), 0

        def __len__(self):
            return 6

    found = Like()
    vars(found).update(attributes)
    return found


CLASSES = [2, 0, 1, 1, 0, 2]


@pytest.mark.parametrize(
    "kept",
    [
        {"targets": CLASSES},  # CIFAR, ImageFolder, Places365, LFWPeople
        {"targets": torch.tensor(CLASSES)},  # MNIST
        {"labels": np.array(CLASSES, dtype=np.uint8)},  # STL10, SVHN
        {"_labels": CLASSES},  # DTD, Flowers102, Food101, Pets, SUN397, Aircraft, CLEVR
        {"y": CLASSES},  # Caltech101 and 256
        {"_samples": [("a.jpg", label) for label in CLASSES]},  # Cars, GTSRB, FER2013, SST2, Imagenette
    ],
    ids=lambda kept: next(iter(kept)),
)
def test_classes_are_found_where_torchvision_keeps_them_and_through_parts(kept):
    dataset = torchvision_like(classes=["a", "b", "c"], **kept)
    data = TorchvisionData(dataset)
    assert (data.images.labels.tolist(), data.classes) == (CLASSES, ["a", "b", "c"])
    part = Subset(Subset(dataset, [5, 3, 1]), [2, 0])
    assert TorchvisionData(part).images.labels.tolist() == [0, 2]
    first, second = random_split(dataset, [4, 2])
    both = TorchvisionData(ConcatDataset([first, second]))
    assert both.images.labels.tolist() == [CLASSES[i] for i in (*first.indices, *second.indices)]
    assert both.classes == ["a", "b", "c"]


@pytest.mark.parametrize(
    "kept",
    [
        {"targets": ["a.xml"] * 6},  # VOCDetection
        {"labels": [-1] * 6},  # STL10, unlabelled
        {"_samples": [("a.jpg", None)] * 6},  # FER2013, test
        {"targets": [[0, 1]] * 6},
        {"targets": [0, 1]},
        {},
    ],
)
def test_what_is_no_class_is_not_taken_for_one(kept):
    assert TorchvisionData(torchvision_like(**kept)).images.labels is None
    mixed = ConcatDataset([torchvision_like(**kept), torchvision_like(targets=CLASSES)])
    assert TorchvisionData(mixed).images.labels is None
