"""Files read back: what flipped bytes, cut files, swapped files and wrong JSON do to each kind that the project reads.

*Noticed* is an error or a warning that names the file. *Harmless* is the same result as before, to the bit.
"""

import collections
import copy
import json
import logging
import random
import shutil
import traceback
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from conftest import FakeEncoder
from mutations import DAMAGES

from cae import CAE
from cae.data.embedding_store import EmbeddingStore
from cae.method.fitted import FittedCAE, ModelError
from cae.report import write_report
from cae.results.cut import cut
from cae.results.edits import EditError, Rename
from cae.results.edits_file import save_edits
from cae.results.export import ExportError, export
from cae.results.layout import ResultError
from cae.results.make_edits import anchors_of
from cae.results.saved import SavedResult
from cae.results.writing import OutputError
from cae.text import Corpus, bank, build_bank
from drills.record import record

pytestmark = [pytest.mark.drill, pytest.mark.timeout(3600)]

WRONG = (None, True, -1, 0, 3, 1e300, float("nan"), "", "\0", "text", [], [3], [None], {}, {"a": 1}, [["x"]], 2**70)


def damaged(content: bytes, chance: random.Random) -> bytes:
    content = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2))):
        content = chance.choice(DAMAGES)(content, chance)
    return bytes(content)


def with_wrong_value(content: bytes, chance: random.Random) -> bytes:
    """JSON with one value somewhere in it replaced or taken away."""
    value = json.loads(content)
    places = list(walk(value))
    if not places:
        return b"[]"
    holder, key = chance.choice(places)
    if chance.random() < 0.2:
        del holder[key]
    else:
        holder[key] = copy.deepcopy(chance.choice(WRONG))
    return json.dumps(value).encode()


def walk(value):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from walk(inner)


def drill(name, file, read, expected, errors, caplog, n, *, note=""):
    """Damage a file n times. `read` gives plain values, and must give the same again or say what is wrong.

    Args:
        name: of the drill.
        file: what is damaged; restored after each time, with its folder.
        read: reads it back.
        expected: what reading the whole file gives.
        errors: kinds of errors that are answers.
        caplog: sees warnings.
        n: tries.
    """
    folder, keep = file.parent, file.parent.with_name(f"{file.parent.name}-whole")
    shutil.copytree(folder, keep)
    whole, counts, lost = file.read_bytes(), collections.Counter(), {}
    for number in range(n):
        chance = random.Random(number)
        structured = file.suffix == ".json" and number % 2
        content = (with_wrong_value if structured else damaged)(whole, chance)
        file.write_bytes(content)
        caplog.clear()
        try:
            found = read()
            said = [message.message for message in caplog.records if message.levelno >= logging.WARNING]
            if said:
                counts["warned"] += 1
            elif found == expected:
                counts["harmless"] += 1
            else:
                lost[number] = "a silent wrong result"
        except errors as error:
            counts["refused"] += 1
            if not str(error):
                lost[number] = "an error without a message"
        except BaseException:
            lost[number] = traceback.format_exc()[-1500:]
        shutil.rmtree(folder)
        shutil.copytree(keep, folder)
    shutil.rmtree(keep)
    record(
        name,
        tried=n,
        lost=len(lost),
        note=f"{note}: " + ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items())),
    )
    for number, why in list(lost.items())[:8]:
        print(name, number, why)
    assert len(lost) == 0, f"{name}: {len(lost)} lost; the first are printed"


def of_tensor(tensor):
    return str(tensor.dtype), tuple(tensor.shape), tensor.numpy().tobytes()


def of_state(fitted: FittedCAE):
    return json.dumps(fitted._plain(), sort_keys=True), {k: of_tensor(v) for k, v in sorted(fitted._tensors().items())}


def of_result(result: SavedResult):
    edited = result.edited
    run = {key: value for key, value in result.run.items() if key != "sha256"}
    plain = edited.assignments.to_pylist(), edited.clusters, run, str(result.root), result.unmatched_edits
    placed = list(map(of_tensor, result.placement))
    return json.dumps(plain, sort_keys=True), of_tensor(result.embeddings), placed, of_state(result.fitted)


@pytest.mark.parametrize(
    ("file", "n"),
    [
        ("assignments.parquet", 3000),
        ("embeddings.safetensors", 3000),
        ("placement.safetensors", 3000),
        ("clusters.json", 3000),
        ("run.json", 3000),
        ("edits.json", 2000),
        ("model/model.safetensors", 2000),
        ("model/config.json", 3000),
    ],
)
def test_result(result_folder, caplog, file, n):
    result = SavedResult.load(result_folder)
    save_edits([Rename(anchors_of(result.view, 1), "renamed")], result_folder)
    expected = of_result(SavedResult.load(result_folder))
    errors = (ResultError, ModelError) if file != "edits.json" else (ResultError, EditError)

    def read():
        found = of_result(SavedResult.load(result_folder))
        # People and programs write edits by hand: another name or another picture is another edit, not a damaged one.
        return expected if file == "edits.json" else found

    name, note = f"read-{Path(file).name}", "of a result or its model"
    if file == "edits.json":
        note = "people may write it, so it has no checksum and is read, or refused with the reason"
    drill(name, result_folder / file, read, expected, errors, caplog, n, note=note)


@pytest.mark.parametrize("file", ["clusters.json", "run.json"])
def test_report_exports_and_cut_of_wrong_json(result_folder, tmp_path, caplog, file):
    """What is only warned about when it is read must do no harm later."""

    def use():
        result = SavedResult.load(result_folder)
        write_report(result, tmp_path / "page", lambda _: lambda *_: None)
        for target in ("csv", "json", "hf", "coco", "folders"):
            shutil.rmtree(tmp_path / "exported", ignore_errors=True)
            export(result, target, tmp_path / "exported")
        cut(result, 3)

    use()
    drill(
        f"use-{file}", result_folder / file, use, None, (ResultError, OutputError, ExportError), caplog, 300,
        note="report, exports and cut of a result whose JSON was changed",
    )  # fmt: skip


def test_export_manifest(result_folder, tmp_path, caplog):
    result, out = SavedResult.load(result_folder), tmp_path / "exported"
    export(result, "folders", out)
    (out / "mine").mkdir()
    (out / "mine/notes.txt").write_text("mine")

    def names():
        return sorted(str(path.relative_to(out)) for path in out.rglob("*"))

    expected = names()

    def again():
        export(result, "folders", out)
        return names()

    drill(
        "read-export-manifest",
        out / ".cae-export.json",
        again,
        expected,
        ExportError,
        caplog,
        1000,
        note="exported again",
    )


def test_text_bank(tmp_path, isolated_cache, caplog, monkeypatch):
    monkeypatch.setattr(bank, "BLOCK", 16)
    corpus, encoder = Corpus("noun", "things", [f"thing {i}" for i in range(100)], None, 100), FakeEncoder()
    expected = of_tensor(build_bank(corpus, encoder).embeddings)

    def read():
        return of_tensor(build_bank(corpus, encoder).embeddings)

    (description,) = isolated_cache.rglob("bank.json")
    for file in (description, description.with_name("embeddings.safetensors")):
        drill(
            f"read-bank-{file.suffix[1:]}", file, read, expected, (), caplog, 1500, note="of a text bank in the cache"
        )


def test_partial_text_bank(isolated_cache, caplog, monkeypatch):
    monkeypatch.setattr(bank, "BLOCK", 16)
    corpus = Corpus("noun", "things", [f"thing {i}" for i in range(60)], None, 60)

    class Stopped(FakeEncoder):
        calls = 0

        def encode_texts(self, texts):
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().encode_texts(texts)

    expected = of_tensor(build_bank(corpus, FakeEncoder()).embeddings)
    shutil.rmtree(isolated_cache)
    with pytest.raises(KeyboardInterrupt):
        build_bank(corpus, Stopped())
    block = sorted(isolated_cache.rglob("*.safetensors"))[0]

    def read():
        found = of_tensor(build_bank(corpus, FakeEncoder()).embeddings)
        for folder in (isolated_cache / "banks").iterdir():
            if folder.is_dir() and folder.suffix != ".partial" and not folder.name.endswith("-whole"):
                shutil.rmtree(folder)
        block.parent.mkdir(exist_ok=True)
        return found

    drill("read-bank-block", block, read, expected, (), caplog, 1500, note="of an interrupted text bank")


@pytest.mark.parametrize("file", ["embeddings.bin", "index.bin", "blocks.jsonl"])
def test_embedding_store(tmp_path, caplog, monkeypatch, file):
    monkeypatch.setattr("cae.data.embedding_store.BLOCK", 10)
    rows = torch.randn(35, 6, generator=torch.Generator().manual_seed(0))

    def read():
        store = EmbeddingStore(6, folder=tmp_path / "store", identity={"data": "a"})
        for start in range(0, 35, 5):
            store.append(torch.arange(start, start + 5), rows[start : start + 5])
        store.finish()
        found = of_tensor(store.rows.clone()), of_tensor(store.index.clone())
        store.close()
        return found

    expected = read()
    # A warning is not enough here: what was lost is embedded again.
    monkeypatch.setattr("cae.data.embedding_store.logger.warning", lambda *_: None)
    drill(
        f"read-store-{file}",
        tmp_path / "store" / file,
        read,
        expected,
        (),
        caplog,
        2000,
        note="of a store of embeddings",
    )


def test_map_of_texts(tmp_path, isolated_cache, caplog, monkeypatch):
    from cae.encoders.lite import text_map

    fitted = text_map.TextMap(torch.randn(20, 8), torch.randn(20, 5))
    monkeypatch.setattr(text_map, "fit_text_map", lambda _: fitted)

    def read():
        return [of_tensor(part) for part in text_map.load_text_map(None, "abc").state_dict().values()]

    expected = read()
    file = isolated_cache / "lite/text_map-abc.safetensors"
    drill("read-text-map", file, read, expected, (), caplog, 2000, note="of the lite encoder, in the cache")


def test_checkpoint(tmp_path, caplog, text_files):
    """torch.load checks no checksum of a tensor."""
    x = torch.nn.functional.normalize(torch.randn(40, 48, generator=torch.Generator().manual_seed(0)), dim=1)
    module = CAE(3, encoder=FakeEncoder(), **text_files)
    module.fit_embeddings(x)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(module)
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints/model.ckpt"
    trainer.save_checkpoint(file)

    def read():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = CAE.load_from_checkpoint(file, encoder=FakeEncoder(), weights_only=True)
        assert loaded.fitted is not None
        return of_state(loaded.fitted)

    expected = read()
    # Lightning and torch raise their own errors for files that are none of theirs; each says so.
    drill("read-checkpoint", file, read, expected, Exception, caplog, 2000, note="of Lightning, `weights_only=True`")
