"""Rates of encoding: `python benchmarks/embedding.py` writes benchmarks/results/embedding.{json,md}.

Three questions, each with what was expected before it was measured:
1. texts/s of length-bucketed encoding against plain `encode_text` (ViT-B/32 shape, random weights:
   the work is the same).
2. photographs/s from JPEG to vector against the plain loop of open_clip's README.
3. photographs/s of the lite encoder.

Vectors are compared before anything is timed. Rates are the best of several rounds, the contenders taking turns, since
other work on the machine can only make a round slower. Beside the clock's rate stands the rate by processor time (of
all processes): with `--threads 1` that one holds on a busy machine too, as no thread then spins waiting for another.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data.imagenet_info import ImageNetInfo
from torch.utils.data import DataLoader

from cae.data import ImageDataset, ImageFolderData, collate_readable
from cae.encoders import Encoder, load_encoder

RESULTS = Path(__file__).parent / "results"
MODEL = "ViT-B-32"
EXPECTED = {
    "texts: bucketed / plain": "at least 8, about 12: prompts have 8 tokens where the plain tower takes 77",
    "images: pipeline / plain loop": "1.0-1.3 on a CPU, where decoding and encoding compete; more on a GPU",
    "lite images/s": "46 or more on 2 idle cores",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--texts", type=int, default=1024, help="prompts for the bucketed encoder; plain gets a 16th")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        model = open_clip.create_model(MODEL).eval()
        weights = Path(folder) / "random.safetensors"
        save_file(model.state_dict(), weights)
        encoder = load_encoder(f"open_clip:{MODEL}", weights=weights, device=args.device)
        model.to(args.device)
        photographs = make_photographs(Path(folder), args.images)
        results = {
            **text_rates(model, encoder, args.texts, args.rounds),
            **image_rates(model, encoder, photographs, args.rounds),
            **lite_rates(photographs, args.device, args.rounds),
        }
    conditions = {
        "device": args.device,
        "processor": processor(),
        "cpus": os.cpu_count(),
        "load average before and after": [round(load_before, 1), round(os.getloadavg()[0], 1)],
        "versions": {name: version(name) for name in ("torch", "open_clip_torch", "pillow")},
        "python": platform.python_version(),
        "arguments": vars(args),
    }
    write(results, conditions)


def text_rates(model: open_clip.CLIP, encoder: Encoder, count: int, rounds: int) -> dict[str, float]:
    """Texts/s of both ways on noun prompts, after a check that their vectors are equal."""
    nouns = ImageNetInfo("imagenet-22k").label_descriptions()
    generator = np.random.default_rng(0)
    prompts = [encoder.prompt.format(nouns[i].split(",")[0]) for i in generator.permutation(len(nouns))[:count]]
    few = prompts[: max(1, count // 16)]
    tokenizer = open_clip.get_tokenizer(MODEL)

    def plain(texts: list[str]) -> torch.Tensor:
        with torch.inference_mode():
            return model.encode_text(tokenizer(texts).to(encoder_device(model)), normalize=True).float()

    difference = (plain(few) - encoder.encode_texts(few)).abs().max().item()
    tolerance = 1e-5 if encoder_device(model).type == "cpu" else 5e-3  # half precision on a GPU
    if difference > tolerance:
        raise SystemExit(f"bucketed vectors differ from plain ones by {difference:.1e}")
    times = best(rounds, {"plain": partial(plain, few), "bucketed": partial(encoder.encode_texts, prompts)})
    return {
        "texts: largest difference": difference,
        **rates("texts/s plain", len(few), times["plain"]),
        **rates("texts/s bucketed", len(prompts), times["bucketed"]),
        **ratios("texts: bucketed / plain", times["plain"] / len(few), times["bucketed"] / len(prompts)),
    }


def image_rates(model: open_clip.CLIP, encoder: Encoder, paths: list[Path], rounds: int) -> dict[str, float]:
    """Photographs/s from file to vector: the package's way, and the loop of open_clip's README in batches."""

    def plain() -> None:
        with torch.inference_mode():
            for start in range(0, len(paths), 32):
                part = [encoder.preprocess(Image.open(path).convert("RGB")) for path in paths[start : start + 32]]
                model.encode_image(torch.stack(part).to(encoder_device(model)), normalize=True)

    times = best(rounds, {"plain": plain, "pipeline": partial(encode_files, encoder, paths)})
    return {
        **rates("images/s plain loop", len(paths), times["plain"]),
        **rates("images/s pipeline", len(paths), times["pipeline"]),
        **ratios("images: pipeline / plain loop", times["plain"], times["pipeline"]),
    }


def lite_rates(paths: list[Path], device: str, rounds: int) -> dict[str, float]:
    """Images/s of the lite encoder alone, and from file to vector."""
    encoder = load_encoder("lite", device=device)
    images = torch.stack([encoder.preprocess(Image.open(path)) for path in paths[:32]])
    times = best(
        rounds, {"encode": partial(encoder.encode_images, images), "files": partial(encode_files, encoder, paths)}
    )
    return {
        **rates("lite images/s", len(images), times["encode"]),
        **rates("lite files/s", len(paths), times["files"]),
    }


def rates(name: str, count: int, seconds: np.ndarray) -> dict[str, float]:
    """Things per second, by the clock and by processor time."""
    return {name: count / seconds[0], f"{name} (processor time)": count / seconds[1]}


def ratios(name: str, baseline: np.ndarray, ours: np.ndarray) -> dict[str, float]:
    """How many times as fast as the baseline, by the clock and by processor time."""
    return {name: baseline[0] / ours[0], f"{name} (processor time)": baseline[1] / ours[1]}


def encode_files(encoder: Encoder, paths: list[Path]) -> None:
    """Read in worker processes, encode here."""
    pictures = ImageFolderData(paths[0].parent, paths=paths).images
    dataset = ImageDataset(pictures, encoder.preprocess, encoder.image_size)
    collate = partial(collate_readable, pictures, encoder.image_size)
    for batch in DataLoader(dataset, batch_size=32, num_workers=os.cpu_count() or 1, collate_fn=collate):
        encoder.encode_images(batch["image"])


def best(rounds: int, contenders: dict[str, Callable[[], object]]) -> dict[str, np.ndarray]:
    """The shortest times of each contender, (clock, processor) in seconds, after one round that does not count."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, run in contenders.items():
            start = os.times()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            end = os.times()
            times[name].append((end.elapsed - start.elapsed, sum(end[:4]) - sum(start[:4])))
    return {name: np.min(seconds[1:], axis=0) for name, seconds in times.items()}


def make_photographs(folder: Path, count: int) -> list[Path]:
    """JPEG files of 1024 x 768 with the detail of photographs: smooth noise."""
    generator = np.random.default_rng(0)
    paths = []
    for index in range(count):
        noise = generator.integers(0, 256, (96, 128, 3), dtype=np.uint8)
        paths.append(folder / f"{index}.jpg")
        Image.fromarray(noise).resize((1024, 768), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def encoder_device(model: open_clip.CLIP) -> torch.device:
    return model.logit_scale.device


def processor() -> str:
    """The CPU's name where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
    ]
    return names[0] if names else platform.processor()


def write(results: dict[str, float], conditions: dict[str, object]) -> None:
    """Both forms of the result."""
    RESULTS.mkdir(exist_ok=True)
    record = {"results": results, "expected": EXPECTED, "conditions": conditions}
    (RESULTS / "embedding.json").write_text(json.dumps(record, indent=2) + "\n")
    rows = [f"| {name} | {value:.3g} | {EXPECTED.get(name, '')} |" for name, value in results.items()]
    lines = ["# Encoding rates", "", "| what | measured | expected beforehand |", "|---|---:|---|", *rows, ""]
    lines += [f"- {name}: {value}" for name, value in conditions.items()]
    text = "\n".join(lines) + "\n"
    (RESULTS / "embedding.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
