"""Writes hypernyms.tsv.gz, the table beside this script, from NLTK's WordNet 3.0: `python make_hypernyms.py`.

A line is a synset of ImageNet-22k, in timm's order, a tab, and those among the others that are right above it: a synset
in between that is none of ImageNet's is passed over.
"""

from __future__ import annotations

import gzip
from collections.abc import Container, Iterator
from typing import Any

from nltk.corpus import wordnet

from cae.text.corpora import timm_table
from cae.text.taxonomy import TABLE


def main() -> None:
    """Look each synset up by its number in WordNet's file, which is the number in ImageNet's name of it."""
    synsets = list(timm_table("lemma"))
    known = set(synsets)
    lines = [f"{name}\t{' '.join(sorted(set(_above(_synset(name), known))))}\n" for name in synsets]
    TABLE.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))


def _synset(name: str) -> Any:
    return wordnet.synset_from_pos_and_offset("n", int(name[1:]))


def _above(synset: Any, known: Container[str]) -> Iterator[str]:
    for above in synset.hypernyms() + synset.instance_hypernyms():
        name = f"n{above.offset():08d}"
        if name in known:
            yield name
        else:
            yield from _above(above, known)


if __name__ == "__main__":
    main()
