"""Labelled images, or their embeddings, from folders, hubs, torchvision and files.

The eight data sets of the paper keep TAC's splits (arXiv 2310.11989): `test` is what is clustered and scored, `train`
is where TAC selects its texts.

| name            | from                                                   | train     | test   | classes |
|-----------------|--------------------------------------------------------|-----------|--------|---------|
| `cifar10`       | torchvision, downloaded                                | 50,000    | 10,000 | 10      |
| `cifar20`       | torchvision's CIFAR-100 by its superclasses            | 50,000    | 10,000 | 20      |
| `stl10`         | torchvision, downloaded                                | 5,000     | 8,000  | 10      |
| `dtd`           | torchvision, downloaded; train is train and val        | 3,760     | 1,880  | 47      |
| `ucf101`        | ROOT/UCF-101-midframes, ROOT/ucfTrainTestlist          | 9,537     | 3,783  | 101     |
| `imagenet`      | ROOT/imagenet/{train,val}/nXXXXXXXX                    | 1,281,167 | 50,000 | 1,000   |
| `imagenet10`    | the same, ten synsets (Chang et al. 2017)              | 13,000    | 500    | 10      |
| `imagenet-dogs` | the same, fifteen breeds (Chang et al. 2017)           | 19,500    | 750    | 15      |
| `demo`          | the images that come with cae; not of the paper        |           | 254    | 8       |
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cae.data import EmbeddingError, files_identity, list_images
from cae.data.demo import demo_images
from cae.data.modules import read_item, read_path, read_row
from cae.data.vector_files import READERS as EMBEDDING_READERS
from cae.data.vector_files import holds_vectors, read_vectors
from cae.text.corpora import timm_file
from cae.utils.cache import cache_dir
from cae.utils.hub import from_the_cache_if_unreachable

Split = Literal["train", "test"]


class DatasetError(ValueError):
    """A data set is not available or cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class LabelledImages:
    """Images with their classes.

    Attributes:
        name: name in tables.
        read: (index, side) to an RGB image, see `cae.data.read_image`; picklable, so that workers can read.
        labels: (N,) int64 in [0, C).
        class_names: C names, as they would be said.
        identity: a text that differs where the images do, by which embeddings are cached.

    Examples:
        >>> data = load_dataset("photos")
        >>> data.read(0, None).size
        (24, 20)
    """

    name: str
    read: Callable[[int, int | None], Image.Image]
    labels: Tensor
    class_names: list[str]
    identity: str


@dataclass(frozen=True)
class LabelledEmbeddings:
    """Image embeddings made elsewhere, with their classes.

    Attributes:
        name: name in tables.
        x: (N, D) float32 unit rows.
        labels: (N,) int64 in [0, C).
        class_names: C names, or None where the file has none.
        identity: hash of the embeddings.

    Examples:
        >>> data = LabelledEmbeddings("two", torch.eye(2), torch.tensor([0, 1]), ["ant", "bee"], identity="two")
        >>> data.class_names[data.labels[1]]
        'bee'
    """

    name: str
    x: Tensor
    labels: Tensor
    class_names: list[str] | None
    identity: str


def load_dataset(
    spec: str, *, split: Split = "test", root: Path | None = None, labels: Path | None = None
) -> LabelledImages | LabelledEmbeddings:
    """Load a data set.

    Args:
        spec: a name of the table above; `hf:NAME`, a data set of the Hugging Face hub or a local folder of one; a
            folder with a sub-folder per class, or with `train` and `test` (or `val`) above those; or a file of
            embeddings, .npy, .safetensors or .parquet (`embedding`, `label`).
        split: the part to take, where there are two.
        root: folder that named data sets lie in or are downloaded to; the cache by default.
        labels: a .npy file of N classes for a file of embeddings; for a .npy file by default STEM.labels.npy.

    Raises:
        DatasetError: no such data set or split, labels that are missing or do not fit, or one class only.

    Examples:
        >>> data = load_dataset("photos")
        >>> data.class_names, len(data.labels)
        (['blue', 'green', 'red'], 30)
    """
    path = Path(spec)
    if spec in NAMED:
        data: LabelledImages | LabelledEmbeddings = NAMED[spec](root or cache_dir() / "datasets", split)
    elif spec.startswith("hf:"):
        data = _hugging_face(spec.removeprefix("hf:"), split)
    elif path.is_dir() and not holds_vectors(path, "images"):
        data = _folder(path, split)
    elif holds_vectors(path, "images"):
        if split == "train":
            raise DatasetError(f"{path} holds one split: there is no other to select texts on; use --fit-on test")
        data = _embeddings(path, labels)
    else:
        raise DatasetError(
            f"no data set {spec!r}: expected {', '.join(NAMED)}, hf:NAME, a folder with a sub-folder per class, or a "
            f"file of embeddings ({', '.join(EMBEDDING_READERS)})"
        )
    if len(data.labels.unique()) < 2:
        raise DatasetError(f"{spec} has one class only, and nothing to tell apart; give a data set of at least two")
    return data


# Folders


def _folder(root: Path, split: Split) -> LabelledImages:
    """A folder per class; or such folders below `train`, and `test` or `val`."""
    train, test = (
        next((root / name for name in names if (root / name).is_dir()), None)
        for names in (("train",), ("test", "val", "validation"))
    )
    if train and test:
        root = train if split == "train" else test
    elif split == "train":
        raise DatasetError(
            f"{root} has no folders `train` and `test`: there is no other split to select texts on; use --fit-on test"
        )
    paths = list_images(root)
    tops = [path.relative_to(root).parts for path in paths]
    if loose := [path for path, parts in zip(paths, tops, strict=True) if len(parts) < 2]:
        raise DatasetError(f"{loose[0]} lies in no class: {root} must hold a sub-folder per class and nothing else")
    return _from_paths(root.name, root, paths, [parts[0] for parts in tops], _spoken)


def _from_paths(
    name: str, root: Path, paths: Sequence[Path], classes: Sequence[str], say: Callable[[str], str]
) -> LabelledImages:
    """Images of known paths and classes; `say` turns a class into what one would call it."""
    order = {label: i for i, label in enumerate(sorted(set(classes)))}
    return LabelledImages(
        name,
        partial(read_path, list(paths)),
        torch.tensor([order[label] for label in classes]),
        [say(label) for label in order],
        files_identity(root, paths),
    )


def _spoken(folder: str) -> str:
    """A folder's name as words."""
    return " ".join(folder.replace("_", " ").split())


# The Hugging Face hub


def _hugging_face(name: str, split: Split) -> LabelledImages:
    """A data set with a column of images and one of classes, which may be strings if it is called `label`."""
    import datasets

    wanted = {"train": ("train",), "test": ("test", "validation", "valid", "val")}[split]
    try:
        with nullcontext() if Path(name).exists() else from_the_cache_if_unreachable():
            splits = datasets.load_dataset(name)
    except Exception as error:  # the hub's client raises its HTTP library's errors, which differ between versions
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DatasetError(f"the data set {name} cannot be loaded ({reason})") from error
    part = next((part for part in wanted if part in splits), None)
    if part is None:
        raise DatasetError(f"{name} has no {split} split; its splits are {', '.join(splits)}")
    rows = splits[part]
    images = [key for key, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    classes = [key for key, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)]
    strings = [key for key in ("label", "labels") if getattr(rows.features.get(key), "dtype", "") == "string"]
    if strings and not classes:
        try:
            rows, classes = rows.class_encode_column(strings[0]), strings
        except ValueError as error:
            raise DatasetError(f"the column {strings[0]!r} of {name} cannot be used as classes ({error})") from error
    if len(images) != 1 or not classes:
        raise DatasetError(
            f"{name} needs one column of pictures and one of classes; its columns are {', '.join(rows.features)}"
        )
    label = "label" if "label" in classes else classes[0]
    return LabelledImages(
        name,
        partial(read_row, rows.cast_column(images[0], datasets.Image(decode=False)), images[0]),
        torch.tensor(rows[label][:]),
        [_spoken(each) for each in rows.features[label].names],
        f"hf:{name}/{part}/{rows._fingerprint}",
    )


# torchvision and the paper's data sets


def _torchvision(
    name: str,
    make: Callable[..., Any],
    parts: Mapping[str, Sequence[Mapping[str, Any]]],
    labels_of: Callable[[Any], Sequence[int]],
    class_names: list[str] | None,
    root: Path,
    split: Split,
) -> LabelledImages:
    """One of torchvision's data sets, of which a split may be several parts."""
    from torch.utils.data import ConcatDataset

    try:
        sets = [make(root, download=True, **options) for options in parts[split]]
    except (RuntimeError, OSError) as error:
        raise DatasetError(f"{name} is not in {root} and cannot be downloaded ({error})") from error
    return LabelledImages(
        name,
        partial(read_item, ConcatDataset(sets)),
        torch.tensor([label for part in sets for label in labels_of(part)]),
        [_spoken(each) for each in class_names or sets[0].classes],
        f"torchvision:{name}/{split}",
    )


def _cifar10(root: Path, split: Split) -> LabelledImages:
    from torchvision.datasets import CIFAR10

    parts = {"train": [{"train": True}], "test": [{"train": False}]}
    return _torchvision("CIFAR-10", CIFAR10, parts, lambda part: part.targets, None, root, split)


def _cifar20(root: Path, split: Split) -> LabelledImages:
    from torchvision.datasets import CIFAR100

    def superclasses(part: Any) -> list[int]:
        coarse = {fine: i for i, fines in enumerate(CIFAR_SUPERCLASSES.values()) for fine in fines.split()}
        return [coarse[part.classes[fine]] for fine in part.targets]

    parts = {"train": [{"train": True}], "test": [{"train": False}]}
    return _torchvision("CIFAR-20", CIFAR100, parts, superclasses, list(CIFAR_SUPERCLASSES), root, split)


def _stl10(root: Path, split: Split) -> LabelledImages:
    from torchvision.datasets import STL10

    parts = {"train": [{"split": "train"}], "test": [{"split": "test"}]}
    return _torchvision("STL-10", STL10, parts, lambda part: part.labels.tolist(), None, root, split)


def _dtd(root: Path, split: Split) -> LabelledImages:
    from torchvision.datasets import DTD

    parts = {"train": [{"split": "train"}, {"split": "val"}], "test": [{"split": "test"}]}
    return _torchvision("DTD", DTD, parts, lambda part: part._labels, None, root, split)


def _ucf101(root: Path, split: Split) -> LabelledImages:
    """The middle frame of each video as Zhou et al. (CoOp) and TAC use it, by the first of the official splits."""
    frames, listing = root / "UCF-101-midframes", root / "ucfTrainTestlist" / f"{split}list01.txt"
    if not frames.is_dir() or not listing.is_file():
        raise DatasetError(f"UCF-101 needs {frames}, a folder of middle frames per class, and {listing}")
    videos = {Path(line.split()[0]).stem for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()}
    paths = [path for path in list_images(frames) if path.stem in videos]
    if len(paths) != len(videos):
        raise DatasetError(f"{frames} holds the middle frames of {len(paths)} of the {len(videos)} videos in {listing}")
    return _from_paths("UCF-101", frames, paths, [path.parent.name for path in paths], _spoken)


def _imagenet(name: str, synsets: str | None, root: Path, split: Split) -> LabelledImages:
    folder = root / "imagenet" / {"train": "train", "test": "val"}[split]
    wanted = synsets.split() if synsets else sorted(_imagenet_names())
    if missing := [synset for synset in wanted if not (folder / synset).is_dir()]:
        raise DatasetError(f"{name} needs a folder per synset in {folder}; {missing[0]} is missing")
    paths = [path for synset in wanted for path in list_images(folder / synset)]
    return _from_paths(name, folder, paths, [path.parent.name for path in paths], _imagenet_names().__getitem__)


def _imagenet_names() -> dict[str, str]:
    """The 1,000 synsets and the names that CLIP's authors gave them for zero-shot classification."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    synsets = timm_file("imagenet_synsets.txt").read_text(encoding="utf-8").split()
    return dict(zip(synsets, IMAGENET_CLASSNAMES, strict=True))


CIFAR_SUPERCLASSES = {
    "aquatic mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food containers": "bottle bowl can cup plate",
    "fruit and vegetables": "apple mushroom orange pear sweet_pepper",
    "household electrical devices": "clock keyboard lamp telephone television",
    "household furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large carnivores": "bear leopard lion tiger wolf",
    "large man-made outdoor things": "bridge castle house road skyscraper",
    "large natural outdoor scenes": "cloud forest mountain plain sea",
    "large omnivores and herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium-sized mammals": "fox porcupine possum raccoon skunk",
    "non-insect invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles 1": "bicycle bus motorcycle pickup_truck train",
    "vehicles 2": "lawn_mower rocket streetcar tank tractor",
}
"""Krizhevsky 2009, table of superclasses; torchvision gives the fine labels only."""

IMAGENET_10 = (
    "n02056570 n02085936 n02128757 n02690373 n02692877 n03095699 n04254680 n04285008 n04467665 n07747607"
)  # fmt: skip
IMAGENET_DOGS = (
    "n02085936 n02086646 n02088238 n02091467 n02097130 n02099601 n02101388 n02101556 n02102177 n02105056 n02105412 "
    "n02105855 n02107142 n02110958 n02112137"
)


def _demo(root: Path, split: Split) -> LabelledImages:
    return replace(_folder(demo_images(), split), name="demo")


NAMED: dict[str, Callable[[Path, Split], LabelledImages]] = {
    "cifar10": _cifar10,
    "cifar20": _cifar20,
    "stl10": _stl10,
    "dtd": _dtd,
    "ucf101": _ucf101,
    "imagenet": partial(_imagenet, "ImageNet-1K", None),
    "imagenet10": partial(_imagenet, "ImageNet-10", IMAGENET_10),
    "imagenet-dogs": partial(_imagenet, "ImageNet-Dogs", IMAGENET_DOGS),
    "demo": _demo,
}


# Embeddings


def _embeddings(path: Path, labels: Path | None) -> LabelledEmbeddings:
    """Unit embeddings and classes of a file."""
    try:
        found = read_vectors(path, labels=labels)
        if found.labels is None:
            expected = {
                ".npy": f"{labels or path.with_suffix('.labels.npy')}",
                ".safetensors": "a tensor `labels`",
                ".parquet": "a column `label`",
            }.get(path.suffix, "a .parquet file with columns `embedding` and `label` in place of this folder")
            raise DatasetError(f"the labels of {path} are missing: expected {expected}, or a .npy file as --labels")
        rows = found.unit_rows()
    except EmbeddingError as error:
        raise DatasetError(str(error)) from error
    names, numbers = np.unique(found.labels, return_inverse=True)
    return LabelledEmbeddings(
        path.stem,
        rows,
        torch.from_numpy(numbers.astype(np.int64)),
        # Numbers are no names: nothing to encode for zero-shot.
        None if np.issubdtype(names.dtype, np.number) else [_spoken(str(name)) for name in names],
        hashlib.sha256(rows.numpy().tobytes()).hexdigest()[:32],
    )
