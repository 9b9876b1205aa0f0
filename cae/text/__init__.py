"""Corpora of nouns and captions, and the banks of their embeddings."""

from cae.text.bank import TextBank, build_bank, load_bank
from cae.text.corpora import Corpus, TextError, load_corpus

__all__ = ["Corpus", "TextBank", "TextError", "build_bank", "load_bank", "load_corpus"]
