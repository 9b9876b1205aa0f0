"""cae/text/bank.py: a bank is embedded once, survives interruptions, and is never read damaged."""

import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from cae.text import Corpus, TextBank, TextError, bank, build_bank


@pytest.fixture
def corpus():
    """100 nouns of very different lengths."""
    return Corpus("noun", "things", [f"thing {i} " + "x" * (i * 37 % 50) for i in range(100)], None, 123)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(bank, "BLOCK", 16)


class Counting:
    """An encoder that writes down what it is asked for, and stops at the n-th call."""

    def __init__(self, encoder, stop_at=None, error=KeyboardInterrupt):
        self.encoder, self.stop_at, self.error, self.calls = encoder, stop_at, error, []

    def __getattr__(self, name):
        return getattr(self.encoder, name)

    def encode_texts(self, texts):
        if len(self.calls) == self.stop_at:
            raise self.error
        self.calls.append(list(texts))
        return self.encoder.encode_texts(texts)

    @property
    def texts(self):
        return [text for call in self.calls for text in call]


def expected(corpus, encoder, prompt):
    return encoder.encode_texts([prompt.replace("{}", text) for text in corpus.texts]).half()


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.rglob(pattern)
    return found


def test_bank_is_in_the_order_of_the_corpus(corpus, fake_encoder):
    made = build_bank(corpus, fake_encoder)
    assert isinstance(made, TextBank)
    assert torch.equal(made.embeddings, expected(corpus, fake_encoder, "a photo of {}"))
    assert made.embeddings.dtype == torch.float16
    assert made.texts is corpus.texts
    assert made.glosses is None
    assert (made.prompt, made.encoder, made.fingerprint) == ("a photo of {}", "fake", "fake-1")
    assert made.provenance() == {**corpus.provenance(), "prompt": "a photo of {}"}


def test_captions_are_embedded_as_they_are(fake_encoder):
    captions = Corpus("caption", "c", ["{} and {}", "a dog"], None, 2)
    made = build_bank(captions, fake_encoder)
    assert made.prompt == "{}"
    assert torch.equal(made.embeddings, fake_encoder.encode_texts(captions.texts).half())


def test_braces_in_a_text_are_text(fake_encoder):
    nouns = Corpus("noun", "n", ["{}", "{0}", "{", "%s"], None, 4)
    encoder = Counting(fake_encoder)
    build_bank(nouns, encoder, prompt="the {}!")
    assert sorted(encoder.texts) == sorted(["the {}!", "the {0}!", "the {!", "the %s!"])


@pytest.mark.parametrize("prompt", ["a photo", "{} {}", ""])
def test_prompt_without_one_place_for_the_text(corpus, fake_encoder, prompt):
    with pytest.raises(TextError, match=r"must hold \{\} once"):
        build_bank(corpus, fake_encoder, prompt=prompt)


def test_texts_of_like_length_are_embedded_together(corpus, fake_encoder):
    encoder = Counting(fake_encoder)
    build_bank(corpus, encoder)
    lengths = [len(text) for text in encoder.texts]
    assert lengths == sorted(lengths, reverse=True)
    assert [len(call) for call in encoder.calls] == [16] * 6 + [4]


def test_second_build_reads_the_cache(corpus, fake_encoder):
    first = build_bank(corpus, fake_encoder)
    encoder = Counting(fake_encoder, stop_at=0)
    second = build_bank(corpus, encoder, progress=lambda done, total: pytest.fail("nothing to report"))
    assert torch.equal(first.embeddings, second.embeddings)


def test_key_is_encoder_prompt_and_texts(corpus, fake_encoder, isolated_cache):
    other_encoder = Counting(fake_encoder)
    other_encoder.fingerprint = "fake-2"
    other_texts = Corpus("noun", "things", corpus.texts[:-1], None, 123)
    same_texts = Corpus("noun", "copy", list(corpus.texts), None, 100)
    build_bank(corpus, fake_encoder)
    build_bank(corpus, fake_encoder, prompt="{}")
    build_bank(corpus, other_encoder)
    build_bank(other_texts, fake_encoder)
    build_bank(same_texts, fake_encoder)
    assert len(list(isolated_cache.rglob("bank.json"))) == 4


def test_files_of_a_bank(corpus, fake_encoder, isolated_cache):
    build_bank(corpus, fake_encoder)
    description = only(isolated_cache, "bank.json")
    assert {file.name for file in description.parent.iterdir()} == {"bank.json", "embeddings.safetensors"}
    recorded = json.loads(description.read_text(encoding="utf-8"))
    assert recorded["corpus"] == corpus.provenance()
    assert (recorded["format"], recorded["prompt"], recorded["dim"]) == (1, "a photo of {}", 48)
    assert (recorded["encoder"], recorded["fingerprint"]) == ("fake", "fake-1")
    assert not list(isolated_cache.rglob("*.partial")), "blocks are dropped once the bank is whole"


@pytest.mark.parametrize("stop_at", [0, 3, 6])
def test_interrupted_build_goes_on_where_it_stopped(corpus, fake_encoder, stop_at):
    first = Counting(fake_encoder, stop_at)
    with pytest.raises(KeyboardInterrupt):
        build_bank(corpus, first)
    second, reported = Counting(fake_encoder), []
    resumed = build_bank(corpus, second, progress=lambda *at: reported.append(at))
    assert torch.equal(resumed.embeddings, expected(corpus, fake_encoder, "a photo of {}"))
    assert sorted(first.texts + second.texts) == sorted(f"a photo of {text}" for text in corpus.texts)
    assert reported == [(done, 100) for done in (0, 16, 32, 48, 64, 80, 96, 100)]


def test_killed_build_goes_on_where_it_stopped(corpus, fake_encoder, isolated_cache):
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from conftest import FakeEncoder
from cae.text import Corpus, bank, build_bank

class Killed(FakeEncoder):
    calls = 0
    def encode_texts(self, texts):
        if self.calls == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        self.calls += 1
        return super().encode_texts(texts)

bank.BLOCK = 16
build_bank(Corpus("noun", "things", {corpus.texts!r}, None, 123), Killed())
"""
    killed = subprocess.run([sys.executable, "-c", script], env={**os.environ, "CAE_CACHE": str(isolated_cache)})
    assert killed.returncode == -signal.SIGKILL
    encoder = Counting(fake_encoder)
    assert torch.equal(build_bank(corpus, encoder).embeddings, expected(corpus, fake_encoder, "a photo of {}"))
    assert len(encoder.calls) == 5


def flip_last_bit(content):
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-7], lambda b: b[:-64] + bytes(64), flip_last_bit, lambda b: b"", lambda b: b"junk"]
)
def test_damaged_block_is_embedded_again(corpus, fake_encoder, isolated_cache, damage):
    with pytest.raises(KeyboardInterrupt):
        build_bank(corpus, Counting(fake_encoder, 3))
    block = sorted(isolated_cache.rglob("*.safetensors"))[1]
    block.write_bytes(damage(block.read_bytes()))
    encoder = Counting(fake_encoder)
    assert torch.equal(build_bank(corpus, encoder).embeddings, expected(corpus, fake_encoder, "a photo of {}"))
    assert len(encoder.calls) == 5


def change_format(folder):
    description = folder / "bank.json"
    description.write_text(json.dumps({**json.loads(description.read_text()), "format": 99}))


def flip_a_bit(folder):
    file = folder / "embeddings.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "truncated": lambda folder: os.truncate(folder / "embeddings.safetensors", 500),
    "one bit": flip_a_bit,
    "no embeddings": lambda folder: (folder / "embeddings.safetensors").unlink(),
    "no description": lambda folder: (folder / "bank.json").unlink(),
    "half a description": lambda folder: os.truncate(folder / "bank.json", 50),
    "not a dict": lambda folder: (folder / "bank.json").write_text("[]"),
    "binary description": lambda folder: (folder / "bank.json").write_bytes(b"\xff\xfe\0"),
    "other format": change_format,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_bank_is_rebuilt_and_said_once(corpus, fake_encoder, isolated_cache, caplog, damage):
    build_bank(corpus, fake_encoder)
    damage(only(isolated_cache, "bank.json").parent)
    encoder = Counting(fake_encoder)
    with caplog.at_level(logging.WARNING, "cae"):
        rebuilt = build_bank(corpus, encoder)
        build_bank(corpus, encoder)
    assert torch.equal(rebuilt.embeddings, expected(corpus, fake_encoder, "a photo of {}"))
    assert len(encoder.texts) == 100
    assert [record.message.split(" ", 4)[:4] for record in caplog.records] == [["the", "cached", "text", "bank"]]


def test_bank_of_other_width_is_rebuilt(corpus, fake_encoder, isolated_cache):
    """As happens to an encoder under development, whose fingerprint does not change with its width."""
    wide = Counting(fake_encoder)
    wide.dim = 96
    wide.encode_texts = lambda texts: fake_encoder.encode_texts(texts).repeat(1, 2) / math.sqrt(2)
    build_bank(corpus, wide)
    assert build_bank(corpus, fake_encoder).embeddings.shape == (100, 48)


def test_two_builds_at_once_embed_once(corpus, fake_encoder):
    encoder = Counting(fake_encoder)
    made = []
    threads = [threading.Thread(target=lambda: made.append(build_bank(corpus, encoder))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(encoder.texts) == 100
    assert len(made) == 3
    assert all(torch.equal(one.embeddings, made[0].embeddings) for one in made)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda v: v[:, :-1], r"the encoder fake returned vectors of shape \(16, 47\) for 16 texts at width 48"),
        (lambda v: v[:-1], r"shape \(15, 48\) for 16 texts"),
        (lambda v: v * torch.nan, "NaN or infinite"),
        (lambda v: v * 2, "not of unit length"),
        (lambda v: v * 0, "not of unit length"),
    ],
)
def test_wrong_answers_of_an_encoder(corpus, fake_encoder, isolated_cache, answer, message):
    wrong = Counting(fake_encoder)
    wrong.encode_texts = lambda texts: answer(fake_encoder.encode_texts(texts))
    with pytest.raises(TextError, match=message):
        build_bank(corpus, wrong)
    assert not list(isolated_cache.rglob("*.safetensors"))


def test_cache_that_cannot_be_written(corpus, fake_encoder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CAE_CACHE", str(tmp_path / "file"))
    with pytest.raises(TextError, match=r"cannot write to .*set CAE_CACHE to a folder with room"):
        build_bank(corpus, fake_encoder)


def test_a_lock_that_cannot_be_taken_is_told_with_the_remedy(corpus, fake_encoder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("cae.utils.files.hold", refuse)
    with pytest.raises(TextError, match=r"cannot write to .*Permission denied.*set CAE_CACHE to a folder with room"):
        build_bank(corpus, fake_encoder)


def test_disk_that_fills_up(corpus, fake_encoder, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bank, "save_file", full)
    with pytest.raises(TextError, match=r"No space left on device.*set CAE_CACHE"):
        build_bank(corpus, fake_encoder)
