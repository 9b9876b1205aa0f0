"""What people hand in: settings, command lines, text files, embeddings."""

import gzip
import random
import traceback
import warnings
from dataclasses import fields

import numpy as np
import pytest
import torch
from conftest import FakeEncoder
from mutations import DAMAGES
from test_estimator import text_banks
from test_fuzzing import VALUES
from torch.nn.functional import normalize
from typer.testing import CliRunner

from cae import CAEClusterer
from cae.cli.commands import app
from cae.config import CAEConfig
from cae.data import EmbeddingData, EmbeddingError
from cae.method import pipeline
from cae.text import TextError, load_corpus
from drills.record import record

pytestmark = [pytest.mark.drill, pytest.mark.timeout(3600)]

TEXTS = (
    "", " ", "\0", "nan", "inf", "-1", "0", "1", "2", "3", "1e400", "9" * 30, "é", "\x1b[31m", "[red]", "../..", "/",
    "x" * 5000,
)  # fmt: skip


def finish(name, tried, lost, note):
    record(name, tried=tried, lost=len(lost), note=note)
    for case, why in lost[:8]:
        print(name, case, why)
    assert not lost, f"{name}: {len(lost)} lost"


def test_settings():
    """Each value for each setting, then random pairs of settings, through a whole fit."""
    x = normalize(torch.randn(40, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    banks, chance, names = text_banks(16), random.Random(0), [field.name for field in fields(CAEConfig)]
    cases = [{name: value} for name in names for value in VALUES]
    cases += [{name: chance.choice(VALUES) for name in chance.sample(names, 2)} for _ in range(2000)]
    lost, fitted, slow = [], 0, ("kmeans_iter", "n_init", "sinkhorn_iter")
    for case in cases:
        if any(isinstance(case.get(name), int) and case[name] > 1000 for name in slow):
            case = {name: 7 if name in slow else value for name, value in case.items()}
        try:
            config = CAEConfig(**{"n_clusters": 3, "n_init": 2, **case})
        except ValueError as error:
            if not any(name in str(error) for name in case):
                lost.append((case, f"no name in: {error}"))
            continue
        except Exception:
            lost.append((case, traceback.format_exc()[-600:]))
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _, found = pipeline.fit(x, banks, config)
            fitted += 1
            if not all(column.isfinite().all() for column in found):
                lost.append((case, "not finite"))
        except ValueError as error:
            if "clusters of 40 images" not in str(error):
                lost.append((case, f"accepted, then: {error}"))
        except Exception:
            lost.append((case, traceback.format_exc()[-600:]))
    finish("settings", len(cases), lost, f"{fitted:,} fitted with finite results, the others refused by name")


COMMANDS = {
    "cluster": ("DIR", "--clusters", "--out", "--encoder", "--encoder-weights", "--nouns", "--captions", "--preset",
                "--method", "--device", "--seed", "--batch-size", "--workers"),
    "predict": ("DIR", "DIR", "--out", "--encoder-weights", "--device", "--batch-size", "--workers"),
    "report": ("DIR", "--out", "--images"),
    "update": ("DIR", "DIR", "--images", "--device"),
    "compare": ("DIR", "DIR", "--json"),
    "export": ("DIR", "--to", "--out", "--by", "--images"),
    "cut": ("DIR", "--clusters", "--images"),
    "edit": ("DIR", "rename", "DIR", "DIR"),
    "search": ("DIR", "--like", "--limit", "--encoder", "--images", "--device", "--json"),
    "duplicates": ("DIR", "--near", "--out", "--images", "--json"),
    "evaluate": ("--dataset", "--methods", "--seeds", "--fit-on", "--labels", "--class-names", "--out", "--data-root"),
    "texts": ("build", "--nouns", "--captions", "--device"),
}  # fmt: skip


def tame(folder):
    """Another folder in place of all that this machine has: its pictures would take hours."""
    return "../.." if folder == "/" else folder


def test_command_lines(tmp_path, monkeypatch, picture_folder, result_folder, text_files):
    for home in ("cae.models.embedder", "cae.encoders", "cae.encoders.deferred", "cae.evaluation.run"):
        monkeypatch.setattr(f"{home}.load_encoder", lambda *_, **__: FakeEncoder())
    (tmp_path / "a/b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a/b")
    good = {"--clusters": "3", "--to": "csv", "--dataset": str(picture_folder), "--nouns": text_files["nouns"],
            "--captions": text_files["captions"], "--workers": "0", "--methods": "kmeans", "--seeds": "1",
            "--like": str(picture_folder / "red/0.png")}  # fmt: skip
    places, chance, lost, codes = [str(picture_folder), str(result_folder)], random.Random(1), [], {}
    for _ in range(1500):
        command = chance.choice(list(COMMANDS))
        arguments = [command]
        for name in COMMANDS[command]:
            wild = chance.random() < 0.3
            if name == "DIR":
                arguments.append(tame(chance.choice(TEXTS)) if wild else chance.choice(places))
            elif not name.startswith("--") or name == "--json":
                arguments.append(name)
            elif wild or name in good:
                value = chance.choice(TEXTS) if wild else good[name]
                value = tame(value) if name == "--dataset" else value
                # No process a picture, and no download.
                value = "0" if name == "--workers" and value.isdecimal() and len(value) > 1 else value
                value = "kmeans" if name == "--methods" and not wild else value
                arguments += [name, value]
        if command == "evaluate" and "--out" not in arguments:
            arguments += ["--out", "evaluated"]
        found = CliRunner().invoke(app, arguments)
        codes[found.exit_code] = codes.get(found.exit_code, 0) + 1
        if found.exit_code not in (0, 1, 2) or not isinstance(found.exception, SystemExit | None):
            trace = "".join(traceback.format_exception(found.exception))[-900:] if found.exception else ""
            lost.append((arguments, f"{found.exit_code} {trace}"))
        elif found.exit_code and not found.output.strip():
            lost.append((arguments, "no message"))
    finish("command-lines", 1500, lost, ", ".join(f"exit code {code}: {n:,}" for code, n in sorted(codes.items())))


def test_text_files(tmp_path):
    """Corpora of every encoding, and damaged ones: texts as they should be, or TextError."""
    hebrew, family = "\u05e9\u05dc\u05d5\u05dd \u202eright\u202c", "\U0001f436\u200d\U0001f466"
    texts = "\n".join(("dog", hebrew, family, "café\r", "  two  words ", "\x1b[31mred", "dog", "DOG", ""))
    seeds = [texts.encode(code) for code in ("utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-7")]
    seeds += [
        texts.encode("latin-1", "replace"),
        b"",
        b"\n" * 9,
        b" \t\r\n",
        b"x" * 20_000,
        b"\xff\xfe",
        texts.encode() * 300,
    ]
    seeds += [gzip.compress(texts.encode()), gzip.compress(b"a\n" * 10**6)]
    chance, lost, read = random.Random(2), [], 0
    for number in range(6000):
        content = bytearray(seeds[number % len(seeds)])
        if number >= len(seeds):
            for _ in range(chance.randint(0, 2)):
                content = chance.choice(DAMAGES)(content, chance)
        path = tmp_path / "texts.txt"
        path.write_bytes(content)
        try:
            corpus = load_corpus("noun" if number % 2 else "caption", str(path))
            read += 1
            if not all(text and text == " ".join(text.split()) for text in corpus.texts):
                lost.append((number, "not normalised"))
            if len(set(corpus.texts)) < len(corpus.texts) or any("\0" in text for text in corpus.texts):
                lost.append((number, "twice, or a NUL"))
        except TextError:
            pass
        except BaseException:
            lost.append((number, traceback.format_exc()[-600:]))
    finish("text-files", 6000, lost, f"{read:,} read as unique normalised texts, the others refused")


def odd_embeddings(chance):
    """Embeddings of a kind that nobody would hand in on purpose."""
    n, d = chance.choice((1, 2, 3, 5, 40)), chance.choice((1, 2, 16))
    generator = np.random.default_rng(chance.randrange(10**6))
    x = generator.standard_normal((n, d)).astype(chance.choice((np.float16, np.float32, np.float64)))
    for _ in range(chance.randint(1, 2)):
        kind, row = chance.randrange(13), chance.randrange(n)
        with np.errstate(all="ignore"):
            if kind == 0:
                x[row] = np.nan
            elif kind == 1:
                x[row, 0] = chance.choice((np.inf, -np.inf))
            elif kind == 2:
                x[row] = 0
            elif kind == 3:
                x[:] = x[0]
            elif kind == 4:
                x = (x * np.float64(1e-42)).astype(x.dtype)
            elif kind == 5:
                x = (x.astype(np.float64) * 1e38).astype(x.dtype)
            elif kind == 6:
                x = x.astype(chance.choice((np.int64, bool, np.complex64, object, "U8")))
                break
            elif kind == 7:
                x = x[0]
                break
            elif kind == 8:
                x = x[None]
                break
            elif kind == 9:
                x = x[:0]
                break
            elif kind == 10:
                x = np.repeat(x, 30, axis=0)[:60]
            elif kind == 11:
                x[:] = 0
            n = len(x)
    return x


def test_embeddings():
    chance, lost, clustered = random.Random(3), [], 0
    banks = {d: text_banks(d) for d in (1, 2, 16)}
    for number in range(3000):
        x = odd_embeddings(chance)
        texts = banks.get(x.shape[-1]) if x.ndim and chance.random() < 0.6 else None
        k, preset = chance.choice((2, 3)), chance.choice(("auto", "default", "paper", "tac"))
        case = (number, x.dtype, x.shape, k, preset, texts is not None)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = CAEClusterer(k, banks=texts, preset=preset, settings={"n_init": 2}).fit(x)
                again = found.predict(x)
            labels = found.labels_
            clustered += 1
            if len(labels) != len(x) or labels.min() < 0 or labels.max() >= k:
                lost.append((case, f"labels {labels}"))
            if not np.isfinite(found.cluster_centers_).all() or not (again == labels).all():
                lost.append((case, "centers are not finite, or predictions differ"))
        except (ValueError, TypeError) as error:  # scikit-learn's own checks raise TypeError for objects
            if not str(error):
                lost.append((case, "no message"))
        except Exception:
            lost.append((case, traceback.format_exc()[-900:]))
        try:
            EmbeddingData(x)
        except (EmbeddingError, TypeError):
            pass
        except Exception:
            lost.append((case, traceback.format_exc()[-900:]))
    finish("embeddings", 3000, lost, f"{clustered:,} clustered, the others refused")
