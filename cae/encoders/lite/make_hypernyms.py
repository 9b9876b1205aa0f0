"""Writes hypernyms.tsv, the table beside this script, from NLTK's WordNet 3.0: `python make_hypernyms.py`.

A line is a noun, a tab, and the indices of the ImageNet-1k classes below one of its synsets. Nouns whose synset covers
more than `MAX_CLASSES` classes ("object", "animal") name nothing that a mean of classes could stand for.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from nltk.corpus import wordnet
from timm.data.imagenet_info import ImageNetInfo

MAX_CLASSES = 250
TABLE = Path(__file__).with_name("hypernyms.tsv")


def main() -> None:
    """Collect the classes below every ancestor of a class, and write one line per lemma of it."""
    classes = defaultdict(set)
    for index, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names()):
        leaf = wordnet.synset_from_pos_and_offset("n", int(wnid[1:]))
        for synset in {leaf, *leaf.closure(lambda s: s.hypernyms() + s.instance_hypernyms())}:
            classes[synset].add(index)
    lines = sorted(
        f"{lemma.replace('_', ' ')}\t{' '.join(map(str, sorted(below)))}\n"
        for synset, below in classes.items()
        if len(below) <= MAX_CLASSES
        for lemma in synset.lemma_names()
    )
    TABLE.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
