"""CLIP and its relatives through open_clip: the encoder of the paper."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import open_clip
import torch
from huggingface_hub import constants, try_to_load_from_cache
from open_clip.pretrained import download_pretrained, get_pretrained_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from cae.encoders.base import EncoderError
from cae.encoders.length_buckets import encode_by_length
from cae.encoders.memory import encode_in_halves
from cae.encoders.micro_batches import encode_in_micro_batches
from cae.utils.hub import reach_hub

# Files that `torch.load(weights_only=True)` or safetensors read; open_clip would also take NumPy archives.
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
IMAGES_ON_CPU, IMAGES_ON_GPU = 8, 256
TEXTS_ON_CPU, TEXTS_ON_GPU = 32, 1024


class OpenCLIPEncoder:
    """Any model of open_clip with any of its pretrained weights, or with a weights file.

    Runs in float32 on the CPU and in half precision (float32 sums and norms, by autocast) on a GPU.

    Vectors do not depend on the batch: images are encoded in micro-batches of one fixed size, texts in batches of one
    length (see `encode_by_length`) where the tower is causal and read out at its end-of-text token, else as open_clip
    does it. Without the fixed size ViT-B/32 differs by up to 3e-7 between batch sizes; with it the vectors are equal to
    the bit.

    Args:
        model: A model name of open_clip, "ViT-B-32".
        pretrained: A pretrained tag of that model, "openai". It names the weights to download, and with `weights` says
            how they were trained (activation, image mean and deviation). Without a tag, `weights` is required.
        weights: A weights file in place of a download.

    Raises:
        EncoderError: Unknown model or tag, the hub cannot be reached, or the file does not fit the model.

    Examples:
        >>> model = open_clip.create_model("RN50")
        >>> torch.save(model.state_dict(), "weights.pt")
        >>> OpenCLIPEncoder("RN50", None, weights=Path("weights.pt")).dim
        1024
    """

    prompt = "a photo of {}"

    def __init__(self, model: str, pretrained: str | None, *, weights: Path | None = None) -> None:
        tag = _tag_config(model, pretrained)
        if weights is None:
            if pretrained is None:
                raise EncoderError(
                    f"open_clip:{model} needs a pretrained tag (one of {_tags(model)}) or a weights file"
                )
            weights = _hub_weights(tag, f"{model}/{pretrained}")
        self._model = _load(model, tag, weights)
        self._model_name = model
        self._tokenizer: Callable[[Sequence[str]], Tensor] | None = None
        self._device = torch.device("cpu")
        preprocess_config = PreprocessCfg(**self._model.visual.preprocess_cfg)
        self.spec = f"open_clip:{model}/{pretrained}" if pretrained else f"open_clip:{model}"
        self.dim: int = open_clip.get_model_config(model)["embed_dim"]
        self.preprocess: Callable[[Image.Image], Tensor] = image_transform_v2(preprocess_config, is_train=False)
        self.image_size = max(preprocess_config.input_size)
        self.fingerprint = _fingerprint(self._model, model, bool(tag.get("quick_gelu")))

    def to(self, device: torch.device | str) -> Self:
        """Move the weights to a device and return the encoder."""
        self._device = torch.device(device)
        self._model.to(self._device)
        return self

    def encode_images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float32 ↦ (B, D) float32 unit rows; a row is the same to the bit in any batch."""
        size = IMAGES_ON_CPU if self._device.type == "cpu" else IMAGES_ON_GPU
        with torch.inference_mode(), self._precision():
            vectors = encode_in_micro_batches(images.to(self._device), size, self._model.encode_image)
            return normalize(vectors.float(), dim=1)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts ↦ (len(texts), D) float32 unit rows in the order given, cut at the model's context length."""
        out = torch.empty(len(texts), self.dim, device=self._device)
        if not texts:
            return out
        tokens = self._tokens(texts)
        with torch.inference_mode(), self._precision():
            if self._reads_out_at_end_of_text():
                # The end-of-text token has the highest number in its text.
                encode_by_length(tokens.argmax(1) + 1, lambda index, length: self._cut(tokens[index, :length]), out)
            else:
                size = TEXTS_ON_CPU if self._device.type == "cpu" else TEXTS_ON_GPU
                for start in range(0, len(texts), size):
                    part = tokens[start : start + size].to(self._device)
                    vectors = encode_in_halves(part, self._model.encode_text)
                    out[start : start + size] = normalize(vectors.float(), dim=1)
        return out

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self._device.type == "cpu":
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, torch.float16)

    def _tokens(self, texts: Sequence[str]) -> Tensor:
        if self._tokenizer is None:
            try:
                self._tokenizer = open_clip.get_tokenizer(self._model_name)
            except Exception as error:  # Some models take their tokenizer from a hub, through a library that may lack.
                raise EncoderError(f"the tokenizer of {self._model_name} cannot be had: {error}") from error
        return self._tokenizer(list(texts))

    def _reads_out_at_end_of_text(self) -> bool:
        """Whether tokens after the end of the text change nothing, so that the batch may be cut there."""
        model = self._model
        return type(model) is open_clip.CLIP and model.attn_mask is not None and model.text_pool_type == "argmax"

    def _cut(self, tokens: Tensor) -> Tensor:
        """Unit vectors (B, D) of tokens (B, L), with what has the context's length in the model cut to L as well."""
        length = tokens.shape[1]
        cut = {
            "positional_embedding": self._model.positional_embedding[:length],
            "attn_mask": self._model.attn_mask[:length, :length],
        }
        output = torch.func.functional_call(self._model, cut, kwargs={"text": tokens.to(self._device)})
        return normalize(output[1].float(), dim=1)


def _tags(model: str) -> str:
    return ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"


def _tag_config(model: str, pretrained: str | None) -> dict[str, Any]:
    """What open_clip knows of the weights that a tag names; empty without a tag."""
    models = open_clip.list_models()
    if model not in models:
        near = difflib.get_close_matches(model, models, n=5, cutoff=0.5)
        hint = f"near names: {', '.join(near)}" if near else "`open_clip.list_models()` lists all"
        raise EncoderError(f"open_clip has no model {model!r}; {hint}")
    if pretrained is None:
        return {}
    config = get_pretrained_cfg(model, pretrained)
    if not config:
        raise EncoderError(f"open_clip has no weights {pretrained!r} for {model}; it has: {_tags(model)}")
    return config


def _hub_weights(tag: dict[str, Any], name: str) -> Path:
    """The tag's weights file, from the hub's local cache, else downloaded.

    The cache is asked first and the hub's address tried once: left to itself the hub's client repeats for most of a
    minute before it says that it cannot be reached, and asks the network even for files that it has.
    """
    repository, _, file = tag.get("hf_hub", "").rpartition("/")
    names = [file] if file else [open_clip.constants.HF_SAFE_WEIGHTS_NAME, open_clip.constants.HF_WEIGHTS_NAME]
    for candidate in (Path(names[0]).with_suffix(".safetensors").name, *names):
        cached = try_to_load_from_cache(repository, candidate) if repository else None
        if isinstance(cached, str):
            return Path(cached)
    try:
        reach_hub()
        return Path(download_pretrained(tag))
    except Exception as error:  # The client's errors change with its HTTP library.
        raise EncoderError(
            f"the weights of {name} cannot be downloaded from {constants.ENDPOINT} ({error})",
            "Without a connection use `--encoder lite`, whose weights come from installed packages, or "
            "`--encoder-weights FILE`; from Python, encoder='lite' or encoder_weights=FILE",
        ) from error


def _load(model: str, tag: dict[str, Any], weights: Path) -> Any:
    """The model in float32 on the CPU, with the activation and preprocessing that its tag asks for."""
    if weights.suffix not in WEIGHT_SUFFIXES:
        raise EncoderError(f"{weights}: expected a weights file that ends in {', '.join(WEIGHT_SUFFIXES)}")
    if not weights.is_file():
        raise EncoderError(f"{weights}: no such weights file; give the path of one that has been downloaded")
    preprocess = {key: tag[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in tag}
    try:
        loaded = open_clip.create_model(
            model,
            pretrained=str(weights),
            force_quick_gelu=bool(tag.get("quick_gelu")),
            force_preprocess_cfg=preprocess,
            weights_only=True,
        )
    except Exception as error:  # open_clip, torch, pickle and safetensors each raise their own.
        raise EncoderError(f"{weights} cannot be loaded as plain weights of {model}: {error}") from error
    return loaded.eval().requires_grad_(False)


def _fingerprint(model: Any, name: str, quick_gelu: bool) -> str:
    """Hash of the architecture, the preprocessing and the weights, whatever file or tag these came from."""
    digest = hashlib.sha256(json.dumps([name, quick_gelu, model.visual.preprocess_cfg]).encode())
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:16]
