"""Images and embeddings as LightningDataModules, and reading them.

The data modules are loaded at first use, so that reading images does not wait for Lightning.
"""

from typing import TYPE_CHECKING

from cae.data.dataset import ImageBatch, ImageDataset, Images, collate_readable, files_identity
from cae.data.images import ImageError, read_image
from cae.data.listing import Listing, list_folder, list_images
from cae.utils.lazy import lazy

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
    "ImageDataset",
    "ImageError",
    "ImageFolderData",
    "Images",
    "Listing",
    "TorchvisionData",
    "collate_readable",
    "files_identity",
    "list_folder",
    "list_images",
    "read_embeddings",
    "read_image",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)
