"""All that a GPU can tell about the kernels, by one command: `make gpu`, or `python benchmarks/gpu.py`.

Needs torch and Triton, no installation and no network. In at most `--minutes`, and in this order:

    smoke       every op against its float64 reference, about a minute
    tests       tests/test_kernels_*.py, compiled; where pytest is missing, the smoke test on more shapes and dtypes
    memory      that no op's memory grows with N x M
    benchmark   benchmarks/kernels.py on three shapes, with the peers that can be imported
    profile     the kernels of one iteration and of counterparts, by torch.profiler

Each step is a process of its own with a time limit, so that one that fails, hangs or loses the GPU's context leaves
the others alone. What came of it is written as it ends: a line in `gpu.jsonl`, its output in `gpu.log`, and a
benchmark's figures after every call in `kernels_cuda*.json` and `.md`. A later run with the same folder and the same
sources goes on with what this one did not reach. At the end stands a table of the figures against their goals.

`--device cpu` rehearses all this on any machine, with the kernels in Triton's interpreter; that of Triton 3.6 needs
NumPy below 2.4.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any

from kernel_bench.goals import goal_table

ROOT = Path(__file__).parents[1]
OPS = ("cosine_sinkhorn", "counterparts", "fuse", "nearest", "retrieve", "gradients")
# The most important first; those of compiling need no GPU.
TESTS = (
    "triton",
    "counterparts",
    "sinkhorn",
    "fuse",
    "nearest",
    "retrieve",
    "gradients",
    "exact",
    "operators",
    "checks",
    "properties",
)
# Seconds of each stage, in the order of the stages; one that ends early leaves its time to the next.
STAGES = {"smoke": 110, "tests": 160, "memory": 50, "benchmark": 130, "profile": 30}
SHAPES = {
    "cuda": ("1281167,20000,512", "250000,20000,512", "40000,20000,512"),
    "cpu": ("500,200,64", "400,160,64", "300,120,64"),
}
# The goals' shape, and the one that benchmarks/kernels.py takes by itself: its files are called after the device alone.
LARGEST = SHAPES["cuda"][0]
LEAST_S = 5  # no step is begun with less time
WORKER_GB = 8  # of the GPU's memory for each process of pytest: a test at scale takes up to 6 in the float64 reference


@dataclass(frozen=True)
class Step:
    """One process."""

    stage: str
    name: str
    command: tuple[str, ...]
    limit_s: float


@dataclass(frozen=True)
class Outcome:
    """What came of a step, as it stands in gpu.jsonl."""

    step: str
    status: str
    """"ok", "failed" or "out of time"; the last one is tried again."""
    seconds: float
    found: Any
    """The last line of JSON in its output, or else the last line."""
    sources: str
    """Hash of the sources that ran."""


def main() -> None:
    args = arguments()
    # As an exception, so that the step that runs is stopped too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    args.out.mkdir(parents=True, exist_ok=True)
    sources = hash_of_sources()
    journal, log = args.out / "gpu.jsonl", args.out / "gpu.log"
    start = time.monotonic()
    environment = run(Step("", "environment", module("environment", args.device), 120), args.device, log, sources)
    print(environment.found, flush=True)
    if environment.status != "ok":
        sys.exit(1)
    record(journal, environment)
    earlier = {} if args.fresh else outcomes(journal, sources)
    not_reached, ends = [], stage_ends(60 * args.minutes, args.only)
    for step in pending(steps(args, workers(environment.found["memory_gb"])), earlier):
        left = min(step.limit_s, start + ends[step.stage] - time.monotonic())
        if left < LEAST_S:
            not_reached.append(step.name)
            continue
        outcome = run(step, args.device, log, sources, limit_s=left)
        record(journal, outcome)
        print(f"{outcome.status:11} {outcome.seconds:6.1f} s  {step.name}: {brief(outcome.found)}", flush=True)
    summary = summarize(outcomes(journal, sources), not_reached, args.out)
    with log.open("a") as file:
        file.write(summary)
    print(summary)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("OUT") or "gpu-results"), help="default: $OUT or gpu-results"
    )
    parser.add_argument("--only", nargs="+", metavar="STAGE", choices=STAGES, default=list(STAGES))
    parser.add_argument("--shapes", nargs="+", metavar="N,M,D", help="of the benchmark, instead of its three")
    parser.add_argument("--fresh", action="store_true", help="run again what an earlier run has done")
    return parser.parse_args()


def workers(memory_gb: float | None) -> int:
    """Processes of pytest, where pytest-xdist is there to run several: as many as cores and a GPU's memory are for."""
    room = 12 if memory_gb is None else int(memory_gb // WORKER_GB)
    return max(1, min(12, os.cpu_count() or 1, room))


def steps(args: argparse.Namespace, workers: int) -> list[Step]:
    """All steps in order."""
    shapes = args.shapes or SHAPES[args.device]
    stages = {
        "smoke": [Step("smoke", f"smoke {op}", module("smoke", op, args.device), 60) for op in OPS],
        "tests": [
            Step("tests", f"tests {name}", pytest(workers, f"tests/test_kernels_{name}.py", "-k", "not memory"), 150)
            for name in TESTS
            if name != "properties" or find_spec("hypothesis")
        ],
        "memory": [
            Step("memory", f"memory {name}", pytest(workers, f"tests/test_kernels_{name}.py", "-k", "memory"), 60)
            for name in ("memory", "triton", "gradients")
        ],
        "benchmark": [
            Step("benchmark", f"benchmark {shape}", benchmark(shape, args.device, args.out), 300) for shape in shapes
        ],
        "profile": [Step("profile", f"profile {shapes[0]}", module("profile", shapes[0], args.device), 60)],
    }
    if not find_spec("pytest"):
        print("pytest is not installed: more shapes and dtypes of the smoke test stand for the tests; no memory tests")
        stages["tests"] = [
            Step("tests", f"thorough {op}", module("smoke", op, args.device, "--thorough"), 60) for op in OPS
        ]
        stages["memory"] = []
    return [step for stage in STAGES if stage in args.only for step in stages[stage]]


def module(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"kernel_bench.{name}", *arguments)


def pytest(workers: int, *arguments: str) -> tuple[str, ...]:
    """Tests without the project's settings and conftest.py, which ask for more packages."""
    spread = ("-n", str(workers)) if workers > 1 and find_spec("xdist") else ()
    plain = ("-c", os.devnull, "--rootdir", ".", "--noconftest", "--import-mode=importlib", "-p", "no:cacheprovider")
    return (sys.executable, "-m", "pytest", "-q", "-rfE", *plain, *spread, "-m", "gpu or not slow", *arguments)


def benchmark(shape: str, device: str, out: Path) -> tuple[str, ...]:
    chosen = () if shape == LARGEST else ("--shape", shape)
    return (sys.executable, "benchmarks/kernels.py", "--device", device, "--out", str(out.resolve()), *chosen)


def stage_ends(seconds: float, only: Sequence[str]) -> dict[str, float]:
    """Seconds from the start by which each of these stages has to end: shares of the whole, as STAGES has them."""
    shares = {stage: share for stage, share in STAGES.items() if stage in only}
    parts = accumulate(shares.values())
    return {stage: seconds * part / sum(shares.values()) for stage, part in zip(shares, parts, strict=True)}


def pending(steps: list[Step], earlier: dict[str, Outcome]) -> Iterator[Step]:
    """What is left to do, stage by stage: first what was never tried, then what ran out of time."""
    for stage in STAGES:
        of_stage = [step for step in steps if step.stage == stage]
        yield from (step for step in of_stage if step.name not in earlier)
        yield from (step for step in of_stage if step.name in earlier and earlier[step.name].status == "out of time")


def run(step: Step, device: str, log: Path, sources: str, limit_s: float | None = None) -> Outcome:
    """Run a step's process, its output into the log, and kill it with all its children at its limit or on Ctrl-C."""
    paths = (ROOT, ROOT / "benchmarks", ROOT / "tests", os.environ.get("PYTHONPATH", ""))
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)).rstrip(os.pathsep), "PYTHONUNBUFFERED": "1"}
    if device == "cpu":
        env["TRITON_INTERPRET"] = "1"
    start = time.monotonic()
    with log.open("a") as file:
        file.write(f"\n===== {step.name}: {' '.join(step.command)}\n")
        file.flush()
        begin = file.tell()
        process = subprocess.Popen(
            step.command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = "failed" if process.wait(limit_s or step.limit_s) else "ok"
        except subprocess.TimeoutExpired:
            status = "out of time"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    output = log.read_bytes()[begin:].decode(errors="replace").strip()
    if status == "failed":
        print(output[-1000:], flush=True)
    return Outcome(step.name, status, round(time.monotonic() - start, 1), finding(output), sources)


def finding(output: str) -> Any:
    """The last line of JSON, which a library may have a last word after, or else the last line."""
    lines = output.splitlines() or [""]
    for line in reversed(lines):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                continue
    return lines[-1]


def record(journal: Path, outcome: Outcome) -> None:
    with journal.open("a") as file:
        file.write(json.dumps(asdict(outcome)) + "\n")


def outcomes(journal: Path, sources: str) -> dict[str, Outcome]:
    """The last outcome of each step with these sources; a line that a kill cut short is passed over."""
    found = {}
    for line in journal.read_text().splitlines():
        try:
            outcome = Outcome(**json.loads(line))
        except (ValueError, TypeError):
            continue
        if outcome.sources == sources:
            found[outcome.step] = outcome
    return found


def hash_of_sources() -> str:
    """Changes with what is tested and measured, so that a later run does not rely on figures of other kernels."""
    patterns = ("kernels/**/*.py", "benchmarks/kernel*.py", "benchmarks/kernel_bench/*.py", "tests/*kernel*.py")
    digest = hashlib.sha256()
    for file in sorted(file for pattern in patterns for file in ROOT.glob(pattern)):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def brief(found: Any) -> str:
    """One line of what a step found."""
    text = found if isinstance(found, str) else json.dumps(found)
    return re.sub(r"\s+", " ", text)[:160]


def summarize(done: dict[str, Outcome], not_reached: list[str], out: Path) -> str:
    """Steps that did not succeed, and figures against their goals."""
    lines = ["", f"{sum(outcome.status == 'ok' for outcome in done.values())} of {len(done)} steps succeeded."]
    again = {"out of time": " (run again: what it has compiled is kept)"}
    lines += [
        f"- {outcome.status}: {name}{again.get(outcome.status, '')}"
        for name, outcome in done.items()
        if outcome.status != "ok"
    ]
    lines += [f"- not reached, run again: {name}" for name in not_reached]
    if "environment" in done:
        lines += [f"- not installed: {', '.join(done['environment'].found['missing']) or 'nothing'}"]
    return "\n".join([*lines, "", goal_table(out)])


if __name__ == "__main__":
    main()
