"""Corpora of nouns and captions, and the banks of their embeddings."""

from cae.text.bank import TextBank, build_bank, load_bank
from cae.text.corpora import Corpus, TextError, load_corpus
from cae.text.vectors import bank_of_vectors, load_banks, load_vectors

__all__ = [
    "Corpus",
    "TextBank",
    "TextError",
    "bank_of_vectors",
    "build_bank",
    "load_bank",
    "load_banks",
    "load_corpus",
    "load_vectors",
]
