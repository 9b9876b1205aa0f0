"""The one command for a GPU, rehearsed: its runner on small processes, its steps in Triton's interpreter."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from kernel_cases import unit
from test_benchmarks_peers import flash, given  # noqa: F401

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """The folder's modules, which belong to no installed package."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


@pytest.fixture
def gpu(monkeypatch):
    module = importlib.import_module("gpu")
    monkeypatch.setattr(module, "LEAST_S", 0.2)
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)  # the handler would outlive the test
    return module


STEPS = {
    "good": "print('said'); print('{\"found\": 1}')",
    "bad": "raise SystemExit('a reason')",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "slow": "import time; print('begun', flush=True); time.sleep(60)",
    "noisy": "print('{\"found\": 2}'); print('a library says goodbye')",
    "last": "print('words')",
}


@pytest.fixture
def run(gpu, monkeypatch, tmp_path, capsys):
    """Run the command on small steps; what it said, and the journal as (step, status, found)."""

    def call(minutes="1", sources="a"):
        monkeypatch.setattr(
            gpu,
            "steps",
            lambda *_: [gpu.Step("smoke", name, (sys.executable, "-c", code), 1) for name, code in STEPS.items()],
        )
        environment = {"missing": [], "memory_gb": 80}
        monkeypatch.setattr(gpu, "module", lambda *_: (sys.executable, "-c", f"print({json.dumps(environment)!r})"))
        monkeypatch.setattr(gpu, "hash_of_sources", lambda: sources)
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--out", str(tmp_path), "--minutes", minutes])
        begin = len(journal())
        gpu.main()
        return capsys.readouterr().out, journal()[begin + 1 :]

    def journal():
        file = tmp_path / "gpu.jsonl"
        lines = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
        return [(line["step"], line["status"], line["found"]) for line in lines]

    return call


def test_a_step_that_fails_leaves_the_others_alone(run, tmp_path):
    said, journal = run()
    assert journal == [
        ("good", "ok", {"found": 1}),
        ("bad", "failed", "a reason"),
        ("killed", "failed", ""),
        ("slow", "out of time", "begun"),
        ("noisy", "ok", {"found": 2}),
        ("last", "ok", "words"),
    ]
    for line in ("4 of 7 steps", "- failed: killed", "- out of time: slow (run again", "Nothing was measured on CUDA"):
        assert line in said  # the environment is a step, too
    log = (tmp_path / "gpu.log").read_text()
    assert "said" in log
    assert "4 of 7 steps succeeded" in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_leaves_no_process_behind(number, tmp_path):
    """A step that went on would hold the GPU, and its memory, against whoever comes next."""
    child = tmp_path / "child"
    step = f"import os, time; open({str(child)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"""
import sys, gpu
gpu.steps = lambda *_: [gpu.Step("smoke", "slow", (sys.executable, "-c", {step!r}), 60)]
gpu.module = lambda *_: (sys.executable, "-c", "print('{{\\"memory_gb\\": null}}')")
sys.argv = ["gpu.py", "--device", "cpu", "--out", {str(tmp_path)!r}]
gpu.main()
"""
    runner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT / "benchmarks", stderr=subprocess.DEVNULL)
    while not (child.exists() and child.read_text()):
        assert runner.poll() is None
        time.sleep(0.05)
    pid = int(child.read_text())
    runner.send_signal(number)
    assert runner.wait(30)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_later_run_goes_on(run):
    assert run()[1]
    assert [step for step, *_ in run()[1]] == ["slow"]  # the others are done
    assert [step for step, *_ in run(sources="b")[1]] == list(STEPS)  # other kernels


def test_what_there_is_no_time_for_is_said(run):
    said, journal = run(minutes="0")
    assert journal == []
    assert "- not reached, run again: good" in said


def test_stages_that_are_left_out_leave_their_time_to_the_others(gpu):
    ends = {"smoke": 110, "tests": 270, "memory": 320, "benchmark": 450, "profile": 480}
    assert gpu.stage_ends(480, list(gpu.STAGES)) == ends
    assert gpu.stage_ends(320, ["profile", "benchmark"]) == {"benchmark": 260, "profile": 320}


def test_tests_that_run_side_by_side_fit_into_the_gpu(gpu, monkeypatch):
    monkeypatch.setattr(gpu.os, "cpu_count", lambda: 16)
    assert [gpu.workers(memory) for memory in (None, 140.0, 79.2, 23.6, 14.7, 6.0)] == [12, 12, 9, 2, 1, 1]
    monkeypatch.setattr(gpu, "find_spec", lambda name: True)
    assert "-n" not in gpu.pytest(1, "tests")
    assert gpu.pytest(9, "tests")[-5:] == ("-n", "9", "-m", "gpu or not slow", "tests")


def test_all_steps_of_the_command_exist(gpu, monkeypatch):
    for pytest_is_there in (True, False):
        monkeypatch.setattr(gpu, "find_spec", lambda name, there=pytest_is_there: there)
        monkeypatch.setattr(sys, "argv", ["gpu.py"])
        steps = gpu.steps(gpu.arguments(), 2)
        assert {step.stage for step in steps} | {"memory"} == set(gpu.STAGES)
        for file in (word for step in steps for word in step.command if word.endswith(".py")):
            assert (ROOT / file).exists()
    assert {f"test_kernels_{name}.py" for name in (*gpu.TESTS, "memory", "compile")} == {
        file.name for file in (ROOT / "tests").glob("test_kernels_*.py")
    }


# What an op that is wrong would do, given the right one.
WRONG = {
    "cosine_sinkhorn": lambda right, x, u, **options: right(x[:20], u, **options),
    "counterparts": lambda right, x, *args, **options: right(x.flip(0), *args, **options),
    "fuse": lambda right, parts, **options: right(parts[:2] + parts[:1], **options),
    "nearest": lambda right, x, u, **options: right(x.flip(0), u, **options),
    "retrieve": lambda right, texts, centers, **options: right(texts, -centers, **options),
    "gradients": lambda right, *args, **options: 2 * right(*args, **options),
}


@pytest.mark.parametrize("op", WRONG)
def test_the_smoke_test_tells_right_from_wrong(op, monkeypatch):
    smoke = importlib.import_module("kernel_bench.smoke")
    x, u = unit(70, 64, torch.float16, seed=1), unit(45, 64, torch.float16, seed=2)
    assert smoke.OPS[op](x, u) <= 1
    name = "counterparts" if op == "gradients" else op
    right = getattr(smoke, name)

    def broken(*args, **options):
        return right(*args, **options) if options["backend"] == "reference" else WRONG[op](right, *args, **options)

    monkeypatch.setattr(smoke, name, broken)
    assert smoke.OPS[op](x, u) > 1


def test_figures_are_held_against_the_goals(tmp_path):
    goals = importlib.import_module("kernel_bench.goals")
    report = {
        "costs": {"ours, iteration": {"clock_s": 0.07}, "ours, to 1e-3": {"peak_mb": 4096.0}},
        "ratios": {"ours / flash-sinkhorn, one iteration": {"clock": 0.2}},
        "conditions": {"device": "NVIDIA H200", "inputs": "clustered, N=1281167, M=20000, D=512, float16"},
    }
    (tmp_path / "kernels_cuda.json").write_text(json.dumps(report))
    report["conditions"] = {"device": "NVIDIA H100", "inputs": "clustered, N=40000, M=20000, D=512, float16"}
    (tmp_path / "kernels_cuda_40000x20000x512.json").write_text(json.dumps(report))
    small, large = goals.goal_table(tmp_path).split("**clustered")[1:]
    assert "the goals are for N=1281167" in small
    assert "the goals are for" not in large
    for line in (
        "| one iteration, ms | 70 | ≤ 80 | met |",
        "| times faster than flash-sinkhorn, one iteration | 5 | ≥ 4 | met |",
        "| times faster than flash-sinkhorn, to 1e-3 | not measured | ≥ 8 | |",
        "| Sinkhorn: memory beyond inputs, GB | 4 | ≤ 2 | MISSED |",
    ):
        assert line in large


@pytest.mark.usefixtures("flash")
def test_the_benchmark_for_cuda(monkeypatch):
    """Its peers and its order, in the interpreter; clock and memory are those of the CPU."""
    contest = importlib.import_module("kernel_bench.contest")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**40, 2**40))
    x, u = given(unit(100, 64, torch.float16, seed=1), unit(40, 64, torch.float16, seed=2))
    monkeypatch.setattr(contest, "matrix_peak", lambda device, dtype: 100.0)
    *_, (figures, missing) = contest.measure(x, u, 0.05, 1)
    assert {"ours, to 1e-3", "flash-sinkhorn, iteration", "dense loop, to 1e-3"} <= figures["costs"].keys()
    assert list(figures["costs"])[-1] == "flash-sinkhorn, to 1e-3"
    assert "ours / flash-sinkhorn, counterparts" in figures["ratios"]
    assert figures["errors"]["flash-sinkhorn, counterparts: farthest row from ours"] < 2e-3
    assert max(error for name, error in figures["errors"].items() if "1e-3" in name) < 1.2e-3
    assert "POT: measured on the CPU only" in missing


@pytest.mark.slow
@pytest.mark.timeout(1800)  # it is given 20 minutes
def test_the_whole_command_on_the_cpu(gpu, monkeypatch, tmp_path, capsys):
    pytest.importorskip("triton")
    stages = ["smoke", "benchmark", "profile"]
    monkeypatch.setattr(
        sys, "argv", ["gpu.py", "--device", "cpu", "--out", str(tmp_path), "--minutes", "20", "--only", *stages]
    )
    gpu.main()
    assert "11 of 11 steps succeeded" in capsys.readouterr().out
    assert (tmp_path / "kernels_clustered_500x200x64.json").exists()
    assert len(list(tmp_path.iterdir())) <= 8
