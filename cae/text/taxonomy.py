"""Which nouns are kinds of which: the part of WordNet's hierarchy that ImageNet-22k covers, 21,844 synsets.

A briard is a shepherd dog, that a working dog, and so on up to animal. The table of who is right above whom comes with
the package (118 KB, `make_hypernyms.py`), the words of each synset with timm: nothing is downloaded.
"""

from __future__ import annotations

import gzip
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from scipy.sparse import csr_array

from cae.text.corpora import timm_table
from cae.utils.sparse import incidence

_EXPLAINED = re.compile(r"\([^()]*\)")

TABLE = Path(__file__).with_name("hypernyms.tsv.gz")


@dataclass(frozen=True)
class Taxonomy:
    """T nouns, and the S synsets that they may mean.

    Attributes:
        senses: (T, S) float32, 1 where a synset is a sense of a noun. A noun outside of this part of WordNet has none.
        above: (S, S) float32, 1 where the second synset is the first one or above it.
    """

    senses: csr_array
    above: csr_array

    @classmethod
    def of(cls, nouns: Iterable[str]) -> Taxonomy:
        """The taxonomy of nouns, in any case.

        Examples:
            >>> taxonomy = Taxonomy.of(["briard", "dog", "cat"])
            >>> kinds = taxonomy.senses @ taxonomy.above @ taxonomy.senses.T  # of which noun is which a kind?
            >>> kinds.toarray()[:, 1] > 0
            array([ True,  True, False])
        """
        known = _synsets_of_words()
        senses = [known.get(bare(noun), []) for noun in nouns]
        return cls(incidence(senses, _above().shape[0]), _above())


def bare(noun: str) -> str:
    """A noun as dictionaries have it: in lower case, without what a vocabulary explains in parentheses.

    Examples:
        >>> bare("Pan (for cooking)")
        'pan'
    """
    return " ".join(_EXPLAINED.sub(" ", noun).lower().split())


@cache
def _synsets_of_words() -> dict[str, list[int]]:
    """The rows of the table that are senses of each word, by the word in lower case."""
    found = defaultdict(list)
    for row, lemmas in enumerate(timm_table("lemma").values()):
        for word in dict.fromkeys(lemmas.replace("_", " ").lower().split(", ")):
            found[word].append(row)
    return dict(found)


@cache
def _above() -> csr_array:
    """`Taxonomy.above`, which is the same for all nouns."""
    lines = [line.split("\t") for line in gzip.decompress(TABLE.read_bytes()).decode().splitlines()]
    rows = {name: row for row, (name, _) in enumerate(lines)}
    parents = [[rows[name] for name in above.split()] for _, above in lines]
    found: dict[int, set[int]] = {}

    def climb(row: int) -> set[int]:
        if row not in found:
            found[row] = {row}.union(*map(climb, parents[row]))
        return found[row]

    return incidence([sorted(climb(row)) for row in range(len(parents))], len(parents))
