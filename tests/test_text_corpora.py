"""cae/text/corpora.py: where texts come from, how they are normalised, and what bad sources are told."""

import csv
import gzip
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import ClassVar

import pytest

from cae.text import Corpus, TextError, load_corpus
from cae.text.corpora import MAX_BYTES, everyday_words, is_scientific

SHARED = Path(__file__).parents[2] / "shared" / "data"


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def test_text_file_is_normalised(tmp_path):
    source = write(tmp_path / "a.txt", "\ufeff a  dog\r\n\n  \t\na dog\nA dog\nzwölf Boxkämpfer\u00a0\nlast".encode())
    corpus = load_corpus("caption", source)
    assert corpus.texts == ["a dog", "A dog", "zwölf Boxkämpfer", "last"]
    assert (corpus.kind, corpus.name, corpus.glosses, corpus.source_rows) == ("caption", "a.txt", None, 7)


def test_nouns_that_differ_in_case_are_one(tmp_path):
    assert load_corpus("noun", write(tmp_path / "a.txt", b"Turkey\nturkey\nbull\n")).texts == ["Turkey", "bull"]


@pytest.mark.parametrize("name", ["a.txt.gz", "no_suffix"])
def test_gzip_is_known_by_its_content(tmp_path, name):
    assert load_corpus("noun", write(tmp_path / name, gzip.compress(b"cat\ndog\n"))).texts == ["cat", "dog"]


def test_hash_is_of_the_normalised_texts(tmp_path):
    one, same, other = (
        load_corpus("noun", write(tmp_path / name, content))
        for name, content in [("a", b"cat\ndog\n"), ("b", b"cat\n\ncat\n dog"), ("c", b"dog\ncat\n")]
    )
    assert one.sha256 == same.sha256 != other.sha256
    assert one.provenance() == {"kind": "noun", "name": "a", "rows": 2, "source_rows": 2, "sha256": one.sha256}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\t\r\n", "is empty"),
        (b"cat\nd\0g\n", r"binary file \(a NUL byte in line 2\)"),
        (b"\xff\xfec\0a\0t\0", "binary file"),
        (b"caf\xe9\n", "not text in UTF-8"),
        (b"cat\n" + b"x" * 10_000_000, "line 2 of .* is longer than 10,000 bytes"),
        (gzip.compress(b"cat\n" * 1000)[:-12], "cannot be read"),
        (gzip.compress(b"cat\n" * 1000)[:12] + b"rubbish" * 9, "cannot be read"),
        (gzip.compress(b""), "is empty"),
    ],
)
def test_bad_text_files(tmp_path, content, message):
    source = write(tmp_path / "bad.txt", content)
    with pytest.raises(TextError, match=message) as error:
        load_corpus("caption", source)
    assert "bad.txt" in str(error.value)
    assert "expected" in str(error.value)


def test_longest_line_is_accepted(tmp_path):
    assert len(load_corpus("caption", write(tmp_path / "a", b"x" * (MAX_BYTES - 1) + b"\ny")).texts) == 2


def test_folder_unknown_name_and_unknown_kind(tmp_path):
    with pytest.raises(TextError, match="is a folder: expected a UTF-8 text file"):
        load_corpus("noun", str(tmp_path))
    with pytest.raises(
        TextError, match="no noun corpus 'flickr30k' and no such file: expected wordnet, imagenet22k, or"
    ):
        load_corpus("noun", "flickr30k")
    with pytest.raises(TextError, match="unknown kind of texts 'verb'"):
        load_corpus("verb", "wordnet")


def test_no_corpus_is_empty():
    with pytest.raises(TextError, match="mine holds no texts"):
        Corpus("noun", "mine", [], None, 0)


def test_imagenet22k():
    corpus = load_corpus("noun", "imagenet22k")
    assert (len(corpus.texts), corpus.source_rows) == (32_441, 40_744)
    assert len({text.lower() for text in corpus.texts}) == len(corpus.texts) == len(corpus.glosses)
    assert not any("_" in text or text != text.strip() for text in corpus.texts)
    assert all(corpus.glosses)
    bird, lifter = corpus.glosses[corpus.texts.index("crane")]
    assert bird.startswith("large long-necked wading bird")
    assert lifter.startswith("lifts and moves heavy objects")


@pytest.mark.parametrize(
    ("lemma", "scientific"),
    [("Equus caballus", True), ("Siamese cat", False), ("Dane", False),
     ("New World monkey", False), ("St. Bernard", False), ("domestic dog", False), ("CD-ROM", False)],
)  # fmt: skip
def test_scientific_names_are_told_by_words_that_only_follow_a_capital(lemma, scientific):
    assert is_scientific(lemma, everyday_words()) == scientific


def test_a_scientific_name_is_a_noun_only_where_there_is_no_other():
    nouns = set(load_corpus("noun", "imagenet22k").texts)
    assert {"horse", "Siamese cat", "Lanthanotus borneensis"} < nouns
    assert not {"Equus caballus", "Canis familiaris"} & nouns


def test_glosses_are_those_of_the_nouns():
    corpus = load_corpus("caption", "glosses")
    assert (len(corpus.texts), corpus.source_rows) == (21_770, 21_844)
    nouns = load_corpus("noun", "imagenet22k")
    assert {gloss for glosses in nouns.glosses for gloss in glosses} == set(corpus.texts)


class Sense:
    def __init__(self, gloss, *lemmas):
        self.gloss, self.lemmas = gloss, lemmas

    def lemma_names(self):
        return self.lemmas

    def definition(self):
        return self.gloss


class TinyWordNet:
    """What `nltk.corpus.wordnet` answers, for three lemmas."""

    bird = Sense("a bird", "turkey", "Meleagris_gallopavo")
    state = Sense("a republic", "Turkey")
    press = Sense("the press", "medium", "media")
    middle = Sense("the middle", "medium")
    index: ClassVar = {"media": [press, press, middle], "meleagris_gallopavo": [bird], "turkey": [bird, state]}

    def __init__(self, missing=False):
        self.missing = missing

    def ensure_loaded(self):
        if self.missing:
            raise LookupError("not found")

    def all_synsets(self, pos):
        return [self.bird, self.state, self.press, self.middle]

    def all_lemma_names(self, pos):
        return iter(self.index)

    def synsets(self, name, pos):
        return self.index[name]


def test_wordnet_keeps_the_first_spelling_and_the_senses_of_the_word_itself(monkeypatch):
    monkeypatch.setattr("nltk.corpus.wordnet", TinyWordNet())
    corpus = load_corpus("noun", "wordnet")
    assert corpus.texts == ["media", "Meleagris gallopavo", "turkey"]
    assert corpus.glosses == [("the press",), ("a bird",), ("a bird", "a republic")]
    assert corpus.source_rows == 4


def test_wordnet_out_of_reach(monkeypatch):
    def refuse(*args, timeout):
        assert timeout <= 5
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("nltk.corpus.wordnet", TinyWordNet(missing=True))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(TextError, match=r"no route to host.*Set NLTK_DATA .*imagenet22k, or a text file"):
        load_corpus("noun", "wordnet")


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "nltk_data").is_dir(), reason="needs WordNet in ../shared/data/nltk_data")
def test_wordnet_counts(monkeypatch):
    import nltk
    from nltk.corpus import wordnet

    monkeypatch.setattr(nltk.data, "path", [str(SHARED / "nltk_data")])
    corpus = load_corpus("noun", "wordnet")
    # Both are the numbers of WordNet 3.0's own statistics for nouns: unique strings, and word-sense pairs.
    assert (len(corpus.texts), corpus.source_rows) == (117_798, 146_312)
    # What TAC counts: every lemma of every synset, and those unique with case.
    lemmas = [lemma for synset in wordnet.all_synsets("n") for lemma in synset.lemma_names()]
    assert (len(lemmas), len(set(lemmas))) == (146_347, 119_034)
    assert len({text.lower() for text in corpus.texts}) == len(corpus.texts) == len(corpus.glosses)
    assert not any("_" in text for text in corpus.texts)
    assert all(corpus.glosses)
    turkey = corpus.glosses[corpus.texts.index("turkey")]
    assert len(turkey) == 5
    assert turkey[0].startswith("large gallinaceous bird")


@pytest.fixture
def flickr30k_csv(tmp_path, monkeypatch):
    """A stand-in for the hub's file, with its columns, found where the hub's cache would have it."""
    path = tmp_path / "flickr_annotations_30k.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["raw", "sentids", "split", "filename", "img_id"])
        writer.writerow([json.dumps(["A dog runs.", 'He says "no" ,  twice.']), "[0, 1]", "train", "1.jpg", 0])
        writer.writerow([json.dumps(["A dog runs.", "Ein Mädchen."]), "[2, 3]", "test", "2.jpg", 1])
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args, **kwargs: str(path))


def test_flickr30k(flickr30k_csv):
    corpus = load_corpus("caption", "flickr30k")
    assert corpus.texts == ["A dog runs.", 'He says "no" , twice.', "Ein Mädchen."]
    assert (corpus.name, corpus.source_rows) == ("flickr30k", 4)


def test_flickr30k_out_of_reach(monkeypatch):
    def refuse(self, repo, timeout):
        assert timeout <= 5
        raise ConnectionError("name or service not known")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args, **kwargs: None)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    with pytest.raises(TextError, match=r"name or service not known.*HF_HOME .*glosses, or a text file"):
        load_corpus("caption", "flickr30k")


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "captions").is_dir(), reason="needs ../shared/data/captions")
def test_flickr30k_as_a_file():
    corpus = load_corpus("caption", str(SHARED / "captions" / "flickr30k_en.txt.gz"))
    assert (len(corpus.texts), corpus.source_rows) == (154_573, 155_070)
