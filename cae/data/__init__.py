"""Pictures and embeddings as LightningDataModules, and reading them.

The data modules are loaded at first use, so that reading pictures does not wait for Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cae.data.pictures import (
    ImageBatch,
    ImageError,
    PictureDataset,
    Pictures,
    collate_readable,
    files_identity,
    list_images,
    read_image,
)

if TYPE_CHECKING:
    from cae.data.embeddings import EmbeddingData, EmbeddingError, read_embeddings
    from cae.data.modules import HuggingFaceData, ImageData, ImageFolderData, TorchvisionData

_HOMES = {
    "EmbeddingData": "cae.data.embeddings",
    "EmbeddingError": "cae.data.embeddings",
    "HuggingFaceData": "cae.data.modules",
    "ImageData": "cae.data.modules",
    "ImageFolderData": "cae.data.modules",
    "TorchvisionData": "cae.data.modules",
    "read_embeddings": "cae.data.embeddings",
}

__all__ = [
    "EmbeddingData",
    "EmbeddingError",
    "HuggingFaceData",
    "ImageBatch",
    "ImageData",
    "ImageError",
    "ImageFolderData",
    "PictureDataset",
    "Pictures",
    "TorchvisionData",
    "collate_readable",
    "files_identity",
    "list_images",
    "read_embeddings",
    "read_image",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
