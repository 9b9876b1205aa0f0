"""Pictures and embeddings as LightningDataModules, and reading them."""

from cae.data.embeddings import EmbeddingData, EmbeddingError, read_embeddings
from cae.data.modules import HuggingFaceData, ImageData, ImageFolderData, TorchvisionData
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
