"""Text banks: a corpus embedded once by one encoder, kept on disk.

A bank lies in `cache_dir()/banks/<key>/` as `embeddings.safetensors` and `bank.json`; the key is the hash of encoder
fingerprint, prompt and corpus. While it is embedded, finished blocks lie in `<key>.partial/`, so a run that is
interrupted at any moment goes on at the block where it stopped. Every file is written whole or not at all.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cae.config import Modality
from cae.encoders import Encoder
from cae.encoders.deferred import NO_ENCODER
from cae.text.corpora import Corpus, TextError, load_corpus
from cae.utils.cache import cache_dir
from cae.utils.checksums import content_hash, json_hash, load_json, load_tensors, save_tensors
from cae.utils.console import at_first_use, progress_bars
from cae.utils.files import committing, dump_json, holding, replacing, tidy
from cae.utils.progress import Progress, Reporter

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the files below. Change it with their layout, the block size, or the order of the blocks."""

BLOCK = 1024
"""Texts embedded at a time, and so the most that a kill loses."""


@dataclass(frozen=True)
class TextBank:
    """A corpus and its embeddings.

    Attributes:
        corpus: The T texts, their glosses and provenance.
        embeddings: (T, D) float16 unit rows on the CPU.
        prompt: What the texts were put into before they were embedded, with `{}` for the text.
        encoder: Spec of the encoder; `none` where the embeddings were given.
        fingerprint: Fingerprint of the encoder; of the embeddings where they were given.

    Examples:
        >>> from cae.text import bank_of_vectors
        >>> bank = bank_of_vectors("noun", ["ant", "bee"], torch.eye(2))
        >>> bank.texts
        ['ant', 'bee']
    """

    corpus: Corpus
    embeddings: Tensor
    prompt: str
    encoder: str
    fingerprint: str

    @property
    def texts(self) -> list[str]:
        """The T texts, without the prompt."""
        return self.corpus.texts

    @property
    def glosses(self) -> list[tuple[str, ...]] | None:
        """For each text its definitions, where the corpus has any."""
        return self.corpus.glosses

    def provenance(self) -> dict[str, str | int]:
        """What a result records about the bank."""
        known = self.corpus.provenance()
        if self.encoder == NO_ENCODER:  # the prompt is not known either
            return {**known, "vectors": self.fingerprint}
        return {**known, "prompt": self.prompt}


def load_bank(
    kind: Modality,
    source: str,
    encoder: Encoder,
    reporter: Reporter | None = None,
) -> TextBank:
    """The bank of a corpus by name, as `load_corpus` and `build_bank` make it.

    Args:
        kind: `noun` or `caption`.
        source: name or file, see `load_corpus`.
        encoder: Embeds the texts.
        reporter: Called with `nouns` or `captions`; returns what takes the progress as (done, total). By default a bar
            is shown if there is something to embed; `cae.utils.progress.silent` shows none.

    Raises:
        TextError: The corpus cannot be had, or not be embedded.

    Examples:
        >>> from cae.encoders import load_encoder
        >>> load_bank("noun", "nouns.txt", load_encoder("open_clip:ViT-B-32/openai")).texts[0]
        'thing 0'
    """
    corpus = load_corpus(kind, source)
    if reporter is None:
        with progress_bars() as bars:
            return build_bank(corpus, encoder, progress=at_first_use(bars, f"{kind}s"))
    progress = reporter(f"{kind}s")
    bank = build_bank(corpus, encoder, progress=progress)
    progress(len(corpus.texts), len(corpus.texts))  # a bank from the cache reports nothing itself
    return bank


def build_bank(
    corpus: Corpus,
    encoder: Encoder,
    *,
    prompt: str | None = None,
    progress: Progress | None = None,
) -> TextBank:
    """Embed a corpus, or read its bank from the cache without touching the encoder's text tower.

    Args:
        corpus: What to embed.
        encoder: Embeds the texts.
        prompt: What to put each text into, with `{}` for the text. By default the encoder's own prompt for nouns, and
            captions as they are.
        progress: Called with the number of texts embedded so far and in all, at the start and after every block; not
            called when the bank is read from the cache.

    Raises:
        TextError: The prompt has no place for the text, the encoder returns something else than finite unit rows of
            its width, or the cache cannot be written.

    Examples:
        >>> from cae.encoders import load_encoder
        >>> from cae.text import load_corpus
        >>> bank = build_bank(load_corpus("noun", "nouns.txt"), load_encoder("open_clip:ViT-B-32/openai"))
        >>> bank.embeddings.shape
        torch.Size([60, 48])
    """
    if prompt is None:
        prompt = encoder.prompt if corpus.kind == "noun" else "{}"
    if prompt.count("{}") != 1:
        raise TextError(f"the prompt {prompt!r} must hold {{}} once, where the text goes")
    manifest = {
        "format": FORMAT,
        "corpus": corpus.provenance(),
        "prompt": prompt,
        "encoder": encoder.spec,
        "fingerprint": encoder.fingerprint,
        "dim": encoder.dim,
    }
    folder = cache_dir() / "banks" / _key(corpus, encoder, prompt)
    embeddings = _read(folder, corpus, encoder.dim)
    if embeddings is None:
        with ExitStack() as held:
            with _writing(folder.parent):
                folder.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(holding(folder.with_suffix(".lock")))
            # Another process may have built the bank while this one waited.
            embeddings = _read(folder, corpus, encoder.dim, warn=True)
            if embeddings is None:
                embeddings = _embed(corpus.texts, encoder, prompt, folder.with_suffix(".partial"), progress)
                _write(folder, embeddings, corpus.texts, manifest)
    # This also removes what is left of a run that was killed just after it had finished the bank.
    shutil.rmtree(folder.with_suffix(".partial"), ignore_errors=True)
    return TextBank(corpus, embeddings, prompt, encoder.spec, encoder.fingerprint)


def _key(corpus: Corpus, encoder: Encoder, prompt: str) -> str:
    return json_hash([encoder.fingerprint, prompt, corpus.sha256])[:32]


def _embed(texts: list[str], encoder: Encoder, prompt: str, folder: Path, progress: Progress | None) -> Tensor:
    """Embed block by block, taking the blocks that an interrupted run has left in `folder`.

    Longest texts first: a block then holds texts of about one length, which encoders batch without padding, and
    memory runs out at once or never. The blocks are the same whether a run was interrupted or not, and so are the
    vectors.

    Returns:
        (T, D) float16 unit rows in the order of `texts`.
    """
    order = np.argsort([-len(text) for text in texts], kind="stable")
    embeddings = torch.empty(len(texts), encoder.dim, dtype=torch.float16)
    for start in range(0, len(texts), BLOCK):
        if progress:
            progress(start, len(texts))
        rows = order[start : start + BLOCK]
        file = folder / f"{FORMAT}-{start:09d}.safetensors"
        block = _read_block(file, len(rows), encoder.dim)
        if block is None:
            block = _checked(encoder.encode_texts([prompt.replace("{}", texts[i]) for i in rows]), len(rows), encoder)
            with _writing(folder), replacing(file) as unfinished:
                save_tensors({"embeddings": block}, unfinished)
        embeddings[torch.from_numpy(rows)] = block
    if progress:
        progress(len(texts), len(texts))
    return embeddings


def _checked(vectors: Tensor, rows: int, encoder: Encoder) -> Tensor:
    """An encoder's answer as float16 on the CPU.

    Raises:
        TextError: It is not (rows, D) finite unit rows.
    """
    who = f"the encoder {encoder.spec} returned"
    if vectors.shape != (rows, encoder.dim):
        raise TextError(f"{who} vectors of shape {tuple(vectors.shape)} for {rows} texts at width {encoder.dim}")
    if not vectors.isfinite().all():
        raise TextError(f"{who} NaN or infinite values; its weights may be damaged, or overflow in half precision")
    vectors = vectors.detach().to("cpu", torch.float16)
    if not _unit(vectors):
        raise TextError(f"{who} vectors that are not of unit length")
    return vectors


def _unit(vectors: Tensor) -> bool:
    """Whether all rows are of unit length, as far as half precision can tell; False for NaN."""
    return bool(((vectors.float().norm(dim=1) - 1).abs() < 1e-2).all())


def _read_block(file: Path, rows: int, dim: int) -> Tensor | None:
    """A block that an interrupted run has finished, or None where there is none or it is damaged."""
    try:
        block = load_tensors(file)["embeddings"]
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    return block if block.shape == (rows, dim) and block.dtype == torch.float16 and _unit(block) else None


def _read(folder: Path, corpus: Corpus, dim: int, *, warn: bool = False) -> Tensor | None:
    """The embeddings of a cached bank, or None where there is no bank or it is damaged."""
    file = folder / "embeddings.safetensors"
    try:
        tidy(folder)
        manifest: dict[str, Any] = load_json(folder / "bank.json")
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']} instead of {FORMAT}")
        if manifest["sha256"] != content_hash(file):
            raise ValueError("its checksum differs")
        embeddings = load_file(file)["embeddings"]
        if embeddings.shape != (len(corpus.texts), dim):
            raise ValueError(f"{tuple(embeddings.shape)} embeddings for {len(corpus.texts)} texts at width {dim}")
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        if warn and folder.exists():
            logger.warning(
                "the cached text bank %s is damaged or of another version (%s): rebuilding it", folder, error
            )
        return None
    return embeddings


def _write(folder: Path, embeddings: Tensor, texts: list[str], manifest: dict[str, Any]) -> None:
    """Put a finished bank in its place. With the texts in it, the file can be taken elsewhere (`cae.text.vectors`)."""
    with _writing(folder), committing(folder) as draft:
        metadata = {"texts": json.dumps(texts)}
        save_file({"embeddings": embeddings}, draft / "embeddings.safetensors", metadata)
        dump_json({**manifest, "sha256": content_hash(draft / "embeddings.safetensors")}, draft / "bank.json")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say what to do where the cache cannot be written.

    Raises:
        TextError: In place of errors of the file system; safetensors has its own kind.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise TextError(f"cannot write to {folder} ({error}): set CAE_CACHE to a folder with room") from error
