"""Text vectors made elsewhere: with them, embeddings are clustered without an encoder.

They come as files or folders (`cae.data.vector_files`). The texts stand inside, in a column of a table or as a JSON
list in the metadata of a safetensors file, or beside: STEM.txt, one text a line.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

from torch import Tensor

from cae.config import CAEConfig, Modality
from cae.data.vector_files import EmbeddingError, Vectors, holds_vectors, read_vectors
from cae.encoders import Encoder, EncoderError
from cae.encoders.deferred import NO_ENCODER
from cae.text.bank import TextBank, load_bank
from cae.text.corpora import Corpus, TextError, check_corpus, normalise, read_lines
from cae.utils.checksums import tensors_hash
from cae.utils.progress import Reporter

Source = str | os.PathLike[str]
"""A corpus by name, a text file, or text vectors."""

DEFAULTS: dict[Modality, Source] = {"noun": "imagenet22k", "caption": "glosses"}


TEXTS_FOR_EMBEDDINGS = (
    "give vectors of nouns that the embeddings' own encoder has made (--nouns FILE, nouns=FILE), with which no encoder "
    "is needed, or give that encoder (--encoder, encoder=); for groups without names, of the embeddings alone, use "
    "cae.CAEClusterer"
)


@contextmanager
def texts_for_embeddings(source: object | None) -> Iterator[None]:
    """Load the encoder of the texts that embeddings are clustered with.

    Args:
        source: names the embeddings; None where nobody knows yet whether they are images or embeddings.

    Raises:
        EncoderError: it cannot be had. To take another one, as for images, is no way out for embeddings.
    """
    try:
        yield
    except EncoderError as error:
        if source is None:
            raise EncoderError(f"{error}. If your batches hold embeddings, {TEXTS_FOR_EMBEDDINGS}") from error
        problem = f"{source} holds embeddings, and texts cannot be embedded to go with them: {error.problem}"
        raise EncoderError(f"{problem}; {TEXTS_FOR_EMBEDDINGS}") from error


def text_sources(nouns: Source | None, captions: Source | None) -> dict[Modality, Source]:
    """Where each kind of texts comes from.

    A kind that is not given has a default, unless the other kind is vectors: embedding a default would need their
    encoder, which is not known.

    Raises:
        TypeError: something else than a name or a path, as an array.
    """
    given: dict[Modality, Source | None] = {"noun": nouns, "caption": captions}
    for kind, source in given.items():
        if not isinstance(source, str | os.PathLike | None):
            raise TypeError(
                f"{kind}s: expected the name of a corpus or a file, got {type(source).__name__}; save vectors as "
                f"{kind}s.npy, with their texts beside them in {kind}s.txt, one a line, and pass {kind}s='{kind}s.npy'"
            )
    named = {kind: source for kind, source in given.items() if source is not None}
    return named if any(map(is_vectors, named.values())) else {**DEFAULTS, **named}


def is_vectors(source: Source) -> bool:
    """Whether texts come as vectors, by the name of the file or the layout of the folder."""
    return holds_vectors(source, "texts")


def limit_modalities(config: CAEConfig, sources: Collection[str]) -> CAEConfig:
    """Leave out the modalities that there are no texts for: those that are not among `sources`.

    Raises:
        TextError: none is left.
    """
    left = tuple(modality for modality in config.modalities if modality in sources)
    if not left:
        missing = " and ".join(f"{modality}s" for modality in config.modalities)
        raise TextError(f"these settings need {missing}, and only {', '.join(sources)}s are given as vectors: add them")
    return replace(config, modalities=left)


def check_sources(modalities: Sequence[Modality], sources: Mapping[Modality, Source]) -> None:
    """Refuse corpora that `load_banks` could not find, before an encoder is loaded, or downloaded, for them.

    Raises:
        TextError: a source is neither a corpus's name nor a file.
    """
    for modality in modalities:
        if modality in sources and not is_vectors(sources[modality]):
            check_corpus(modality, os.fspath(sources[modality]))


def load_banks(
    modalities: Sequence[Modality],
    sources: Mapping[Modality, Source],
    encoder: Callable[[], Encoder],
    reporter: Reporter | None = None,
) -> dict[str, TextBank]:
    """A bank for each modality: vectors as they are, the rest embedded.

    Args:
        modalities: the modalities that are needed.
        sources: sources from `text_sources`.
        encoder: called only if something has to be embedded, and once.
        reporter: see `load_bank`.

    Raises:
        TextError: a source is missing or cannot be used.

    Examples:
        >>> from cae.encoders import load_encoder
        >>> sources = {"noun": "nouns.txt", "caption": "captions.txt"}
        >>> banks = load_banks(("noun", "caption"), sources, lambda: load_encoder("open_clip:ViT-B-32/openai"))
        >>> {modality: len(bank.texts) for modality, bank in banks.items()}
        {'noun': 60, 'caption': 90}
    """
    banks: dict[str, TextBank] = {}
    encoder = cache(encoder)
    for modality in modalities:
        if modality not in sources:
            raise TextError(
                f"no {modality}s are given beside the vectors: give a file of vectors, or a corpus for the encoder to "
                f"embed, as {modality}s={DEFAULTS[modality]!r}; or leave {modality} out of the modalities"
            )
        source = sources[modality]
        vectors = is_vectors(source)
        banks[modality] = (
            load_vectors(modality, source) if vectors else load_bank(modality, os.fspath(source), encoder(), reporter)
        )
    return banks


def load_vectors(kind: Modality, source: Source) -> TextBank:
    """A bank of text vectors from disk.

    Args:
        kind: `noun` or `caption`.
        source: .npy, .safetensors or .parquet, or a folder of clip-retrieval.

    Raises:
        TextError: it cannot be read, or vectors and texts do not fit; the message names the file and the row.

    Examples:
        >>> load_vectors("noun", "nouns.npy").embeddings.shape
        torch.Size([60, 48])
    """
    texts, vectors = read_text_vectors(source)
    return bank_of_vectors(kind, texts, vectors, name=Path(source).name)


def bank_of_vectors(kind: Modality, texts: Sequence[str], vectors: Tensor, *, name: str = "vectors") -> TextBank:
    """A bank of texts and their vectors in memory; of repeated texts the first counts.

    Args:
        kind: `noun` or `caption`. Nouns that differ only in case are one noun.
        texts: T strings.
        vectors: (T, D) floats of any length.
        name: name in results.

    Raises:
        TextError: not as many vectors as texts, or a vector without a direction.

    Example:
        >>> import torch
        >>> bank = bank_of_vectors("noun", ["ant", "bee", "Ant"], torch.eye(3))
        >>> bank.texts, tuple(bank.embeddings.shape)
        (['ant', 'bee'], (2, 3))
    """
    if vectors.ndim != 2 or len(texts) != len(vectors):
        raise TextError(f"{len(texts)} texts for vectors of shape {tuple(vectors.shape)}: there must be a row for each")
    rows: dict[str, int] = {}
    for row, text in enumerate(texts):
        if not normalise(text):
            raise TextError(f"row {row} (the first is 0) of {name} has no text")
        rows.setdefault(normalise(text).lower() if kind == "noun" else normalise(text), row)
    kept = list(rows.values())
    unit = _unit(vectors, name)[kept]
    corpus = Corpus(kind, name, [normalise(texts[row]) for row in kept], None, len(texts))
    return TextBank(corpus, unit, "{}", NO_ENCODER, tensors_hash({"embeddings": unit}, {})[:32])


def _unit(vectors: Tensor, name: str) -> Tensor:
    try:
        rows = Vectors(vectors.detach().float().cpu().numpy(), None, None, None, ((name, len(vectors)),)).unit_rows()
    except EmbeddingError as error:
        raise TextError(str(error)) from error
    return rows.half()


def read_text_vectors(source: Source) -> tuple[list[str], Tensor]:
    """The T texts of a source and their (T, D) float32 unit vectors, in its order.

    Raises:
        TextError: it cannot be read, or vectors and texts do not fit; the message names the file and the row.
    """
    try:
        found = read_vectors(source, "texts")
        vectors = found.unit_rows()
    except EmbeddingError as error:
        raise TextError(str(error)) from error
    if found.texts is not None:
        texts, where = found.texts, found.name
    else:
        texts, where = _texts_beside(Path(source))
    if len(texts) != len(vectors):
        row = min(len(texts), len(vectors))
        lacks = "text" if len(texts) < len(vectors) else "vector"
        raise TextError(
            f"{where} holds {len(texts)} texts, {found.name} {len(vectors)} vectors: row {row} (the first is 0) is the "
            f"first without a {lacks}"
        )
    checked = [normalise(text) if isinstance(text, str) else "" for text in texts]
    if "" in checked:
        row = checked.index("")
        place = found.place(row) if found.texts is not None else f"line {row + 1} of {where}"
        raise TextError(f"{place} has no text: leave its vector out, or write its text there")
    return checked, vectors


def _texts_beside(path: Path) -> tuple[list[str | None], str]:
    """The lines of STEM.txt and its name; blank ones at the end do not count."""
    if path.is_dir():
        raise TextError(f"there are vectors in {path}, but no texts: expected a column `caption` in metadata/*.parquet")
    file = path.with_suffix(".txt")
    if not file.is_file():
        inside = {".safetensors": "a JSON list `texts` in its metadata, or ", ".parquet": "a column `text`, or "}
        expected = f"{inside.get(path.suffix, '')}{file} with one text a line"
        raise TextError(f"there are vectors in {path}, but no texts: expected {expected}")
    lines = read_lines(file)
    while lines and not lines[-1].strip():
        lines.pop()
    return list(lines), str(file)


def check_width(banks: Mapping[str, TextBank], sources: Mapping[Modality, Source], dim: int, images: str) -> None:
    """Refuse texts of another space than the images'.

    Raises:
        TextError: a bank has another width than `dim`, that of `images`.
    """
    for modality, bank in banks.items():
        width = bank.embeddings.shape[1]
        if width != dim:
            raise TextError(
                f"{sources[modality]} holds vectors of width {width}, {images} embeddings of width {dim}: "  # type: ignore[index]
                "both must come from the same encoder"
            )
