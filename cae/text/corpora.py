"""Where the nouns and captions come from: WordNet, timm's ImageNet-22k synsets, Flickr30k, or a text file.

Every corpus leaves here normalised the same way: runs of whitespace are one space, no text is blank, no text occurs
twice. Nouns that differ only in case are one noun, because the text towers of the encoders ignore case: two such rows
would have the same vector and take two of the `top_k` places of a center (Eq. 3).

| corpus             | rows in the source                   | texts   | needs                                    |
|--------------------|--------------------------------------|---------|------------------------------------------|
| noun/wordnet       | 146,312 (sense, lemma) pairs         | 117,798 | NLTK's WordNet 3.0 (downloaded once)     |
| noun/imagenet22k   | 40,744 lemmas of 21,844 synsets      |  32,441 | nothing: comes with timm                 |
| caption/flickr30k  | 155,070 captions of 31,014 images    | 154,573 | the Hugging Face hub (downloaded once)   |
| caption/glosses    | 21,844 definitions                   |  21,770 | nothing: comes with timm                 |
| a text file        | one text a line, plain or .gz, UTF-8 |         |                                          |

Texts whose vectors are there already are for `cae.text.vectors`.

WordNet 3.0 has 119,034 noun lemmas when case counts; 117,798 is the number of noun strings in its own statistics.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import logging
import re
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import BinaryIO, get_args

from cae.config import Modality
from cae.data.vector_files import READERS

logger = logging.getLogger(__name__)


MAX_BYTES = 10_000
"""Longest line of a text file. Text towers read about 77 tokens; a longer line is not a single text."""

HUB_TIMEOUT = 5.0
"""Seconds in which a server must answer at all. The hubs' own clients retry for half a minute and more."""

FLICKR30K = ("nlphuji/flickr30k", "flickr_annotations_30k.csv")
"""Hub dataset and the file in it that holds every caption but no image (13 MB; the images are 4 GB)."""


class TextError(ValueError):
    """A corpus or text bank is not available; the message says why and what to do instead."""


@dataclass(frozen=True)
class Corpus:
    """Unique, normalised texts and where they come from.

    Attributes:
        kind: `noun` or `caption`.
        name: `wordnet`, `imagenet22k`, `flickr30k`, `glosses`, or the name of a text file.
        texts: The T texts.
        glosses: For each text its definitions, most frequent sense first where the source knows the order; None for
            corpora without definitions.
        source_rows: Rows of the source before blank and repeated ones were dropped.

    Examples:
        >>> corpus = Corpus("noun", "mine", ["dog", "cat"], glosses=None, source_rows=2)
        >>> corpus.provenance()["rows"]
        2
    """

    kind: Modality
    name: str
    texts: list[str]
    glosses: list[tuple[str, ...]] | None
    source_rows: int

    def __post_init__(self) -> None:
        if not self.texts:
            raise TextError(f"{self.name} holds no texts: give a corpus with at least one")

    @cached_property
    def sha256(self) -> str:
        """Hash of the texts, which identifies the corpus in results and caches."""
        return hashlib.sha256("\n".join(self.texts).encode()).hexdigest()

    def provenance(self) -> dict[str, str | int]:
        """What a result records about the corpus."""
        return {
            "kind": self.kind,
            "name": self.name,
            "rows": len(self.texts),
            "source_rows": self.source_rows,
            "sha256": self.sha256,
        }


def load_corpus(kind: Modality, source: str) -> Corpus:
    """Load nouns or captions.

    Args:
        kind: `noun` or `caption`.
        source: For nouns `wordnet`, `imagenet22k` or a text file; for captions `flickr30k`, `glosses` or a text file.

    Raises:
        TextError: The source is unknown, cannot be reached, or is not a text file; the message says what to do.

    Examples:
        >>> corpus = load_corpus("noun", "nouns.txt")
        >>> corpus.texts[:2]
        ['thing 0', 'thing 1']
    """
    named = _named_corpora(kind)
    if source not in named and Path(source).suffix in READERS:
        raise TextError(f"{source} holds vectors, and texts to embed are expected here; cae.text.load_vectors reads it")
    check_corpus(kind, source)
    corpus = named[source]() if source in named else _text_file(kind, Path(source))
    logger.info("%s %s: %d texts from %d rows", corpus.kind, corpus.name, len(corpus.texts), corpus.source_rows)
    return corpus


def check_corpus(kind: Modality, source: str) -> None:
    """Refuse a source that `load_corpus` could not find, without reading anything.

    Raises:
        TextError: it is neither a corpus's name nor a file.
    """
    named = _named_corpora(kind)
    if source not in named and not Path(source).exists():
        raise TextError(
            f"no {kind} corpus {source!r} and no such file: expected {', '.join(named)}, or a file with one text a "
            f"line or of text vectors ({', '.join(READERS)})"
        )


def _named_corpora(kind: Modality) -> dict[str, Callable[[], Corpus]]:
    if kind not in get_args(Modality):
        raise TextError(f"unknown kind of texts {kind!r}: expected 'noun' or 'caption'")
    named: dict[Modality, dict[str, Callable[[], Corpus]]] = {
        "noun": {"wordnet": _wordnet, "imagenet22k": _imagenet22k},
        "caption": {"flickr30k": _flickr30k, "glosses": _glosses},
    }
    return named[kind]


def _wordnet() -> Corpus:
    """All noun lemmas of WordNet 3.0 (Fellbaum, 1998), in the order of its index, spelled as in their first sense."""
    from nltk.corpus import wordnet

    ensure_wordnet()
    list(wordnet.all_synsets("n"))  # one pass over the data file: six times faster than looking each synset up
    texts, glosses, pairs = [], [], 0
    for name in wordnet.all_lemma_names("n"):
        # `synsets` also answers for the base form ("media" also gives the senses of "medium"): keep the word itself,
        # and once where one sense holds both forms.
        found = dict.fromkeys(wordnet.synsets(name, "n"))
        senses = [sense for sense in found if name in map(str.lower, sense.lemma_names())]
        pairs += len(senses)
        spelling = next(lemma for lemma in senses[0].lemma_names() if lemma.lower() == name)
        texts.append(spelling.replace("_", " "))
        glosses.append(tuple(normalise(sense.definition()) for sense in senses))
    return Corpus("noun", "wordnet", texts, glosses, pairs)


def ensure_wordnet() -> None:
    """Download WordNet where NLTK does not find it.

    Raises:
        TextError: It is neither found nor downloaded.
    """
    import nltk
    from nltk.downloader import Downloader

    try:
        nltk.corpus.wordnet.ensure_loaded()
    except LookupError:
        logger.info("WordNet is not on this machine: downloading it through NLTK")
        try:
            # NLTK waits minutes, or forever, for a server that does not answer: check first.
            urllib.request.urlopen(Downloader.DEFAULT_URL, timeout=HUB_TIMEOUT).close()
            nltk.download("wordnet", quiet=True, raise_on_error=True)
            nltk.corpus.wordnet.ensure_loaded()
        except (OSError, ValueError, LookupError) as error:
            raise TextError(
                f"WordNet is not on this machine and NLTK cannot download it ({_reason(error)}). Set NLTK_DATA to a "
                "folder that holds corpora/wordnet, or use nouns that need no download: imagenet22k, or a text file"
            ) from error


def _imagenet22k() -> Corpus:
    """The lemmas of ImageNet's 21,844 synsets as timm ships them, in its order; senses in the order of the synsets.

    A scientific name is left out where its synset has another: "horse", not "Equus caballus". Nobody looks for it among
    names of groups, an encoder knows little of it, and in word pieces these are the longest nouns.
    """
    definitions, words = timm_table("definition"), everyday_words()
    glosses: dict[str, list[str]] = {}
    spelling: dict[str, str] = {}
    rows = 0
    for synset, row in timm_table("lemma").items():
        lemmas = row.replace("_", " ").split(", ")
        rows += len(lemmas)
        for text in [lemma for lemma in lemmas if not is_scientific(lemma, words)] or lemmas:
            spelling.setdefault(text.lower(), text)
            glosses.setdefault(text.lower(), []).append(definitions[synset])
    # A synset may hold two spellings of one lemma; its gloss counts once.
    unique = [tuple(dict.fromkeys(g)) for g in glosses.values()]
    return Corpus("noun", "imagenet22k", list(spelling.values()), unique, rows)


def everyday_words() -> set[str]:
    """The words of ImageNet's lemmas and definitions that stand elsewhere than after one with a capital."""
    texts = " ".join([*timm_table("lemma").values(), *timm_table("definition").values()]).replace("_", " ")
    return set(re.findall(r"[a-z]+", re.sub(r"\b[A-Z]\S* [a-z]+", "", texts)))


def is_scientific(lemma: str, words: Set[str]) -> bool:
    """Whether a lemma is like "Equus caballus": a word with a capital, then one that is no everyday word."""
    genus, *species = lemma.split()
    return genus[0].isupper() and bool(species) and species[0].islower() and species[0] not in words


def _glosses() -> Corpus:
    """The definitions of ImageNet's 21,844 synsets, as captions: what a thing looks like, in a phrase."""
    definitions = timm_table("definition").values()
    return Corpus("caption", "glosses", _unique(definitions), None, len(definitions))


@cache
def timm_table(name: str) -> dict[str, str]:
    """One of timm's tables of ImageNet synsets, as a dict."""
    lines = timm_file(f"imagenet_synset_to_{name}.txt").read_text(encoding="utf-8").splitlines()
    entries = (line.split("\t", 1) for line in lines)
    return {synset: normalise(text) for synset, text in entries}


def timm_file(name: str) -> Path:
    """One of timm's files on ImageNet, to read as data, because importing timm takes seconds."""
    timm = importlib.util.find_spec("timm")
    assert timm is not None and timm.origin is not None, "timm is a declared dependency"
    return Path(timm.origin).parent / "data" / "_info" / name


def _flickr30k() -> Corpus:
    """The crowd captions of Flickr30k (Young et al., 2014; Plummer et al., 2015), five per image."""
    import datasets

    rows = datasets.load_dataset("csv", data_files=str(_flickr30k_file()), split="train", streaming=True)
    captions = [caption for row in rows for caption in json.loads(row["raw"])]
    return Corpus("caption", "flickr30k", _unique(captions), None, len(captions))


def _flickr30k_file() -> Path:
    """The captions' file in the hub's local cache, downloaded if it is not there.

    Raises:
        TextError: The hub cannot be reached.
    """
    import huggingface_hub as hub

    repo, file = FLICKR30K
    cached = hub.try_to_load_from_cache(repo, file, repo_type="dataset")
    if isinstance(cached, str):
        return Path(cached)
    try:
        # The download retries for half a minute if the hub cannot be reached: check first.
        hub.HfApi().dataset_info(repo, timeout=HUB_TIMEOUT)
        return Path(hub.hf_hub_download(repo, file, repo_type="dataset"))
    except Exception as error:  # the hub's client raises its HTTP library's errors, which differ between versions
        raise TextError(
            f"Flickr30k's captions cannot be downloaded from the Hugging Face hub ({_reason(error)}). Set HF_HOME to a "
            "cache that holds them, or use captions that need no download: glosses, or a text file"
        ) from error


def _text_file(kind: Modality, path: Path) -> Corpus:
    """A text file, see `read_lines`.

    Raises:
        TextError: It is no such file, or holds no text.
    """
    lines = read_lines(path)
    texts = _unique(lines, fold_case=kind == "noun")
    if not texts:
        raise TextError(f"{path} is empty: {_TEXT_FILE}")
    return Corpus(kind, path.name, texts, None, len(lines))


_TEXT_FILE = "expected a UTF-8 text file, plain or gzip, with one text a line"


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, plain or gzip, UTF-8.

    Raises:
        TextError: It is no such file.
    """
    if path.is_dir():
        raise TextError(f"{path} is a folder: {_TEXT_FILE}")
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with gzip.open(raw) if zipped else raw as file:
                return list(_lines(file, path))
    except (OSError, EOFError, zlib.error) as error:  # gzip's errors are these three
        raise TextError(f"{path} cannot be read ({_reason(error)}): {_TEXT_FILE}") from error
    except UnicodeDecodeError as error:
        raise TextError(f"{path} is not text in UTF-8: {_TEXT_FILE}") from error


def _lines(file: BinaryIO | gzip.GzipFile, path: Path) -> Iterator[str]:
    """The lines of a text file, never holding more than `MAX_BYTES` of a line that does not end."""
    number = 0
    while line := file.readline(MAX_BYTES + 1):
        number += 1
        if b"\0" in line:
            raise TextError(f"{path} is a binary file (a NUL byte in line {number}): expected UTF-8 text, one a line")
        if len(line) > MAX_BYTES:
            raise TextError(f"line {number} of {path} is longer than {MAX_BYTES:,} bytes: expected one text a line")
        yield line.decode("utf-8-sig" if number == 1 else "utf-8")


def _unique(texts: Iterable[str], *, fold_case: bool = False) -> list[str]:
    """Normalised texts without blank and repeated ones; the first spelling stays."""
    first: dict[str, str] = {}
    for text in map(normalise, texts):
        if text:
            first.setdefault(text.lower() if fold_case else text, text)
    return list(first.values())


def normalise(text: str) -> str:
    """Runs of whitespace become one space, and none surrounds the text."""
    return " ".join(text.split())


def _reason(error: Exception) -> str:
    """The first line of an error, or its type where it has no message."""
    return next(iter(str(error).splitlines()), type(error).__name__)
