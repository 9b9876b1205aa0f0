"""Every Triton kernel, compiled on any machine for the GPUs that it is meant for, as the host code would launch it.

A process of its own, in which Triton does not interpret, calls the host functions as if on some architecture, records
the launches instead of making them, compiles each one and prints what came out: as a table when this file is run as a
script (with the argument `all` for every case).
"""

import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from cae.kernels import triton as shared  # noqa: E402
from cae.kernels.counterparts import triton as counterparts  # noqa: E402
from cae.kernels.fuse import triton as fuse  # noqa: E402
from cae.kernels.nearest import triton as nearest  # noqa: E402
from cae.kernels.sinkhorn import triton as sinkhorn  # noqa: E402

# Architecture, width and dtype. What a default run compiles differs in its tiles or its code; the rest is for certain.
CASES = [
    *product([90], [512, 768, 1280], ["float16"]),
    *product([75, 80, 100, 120], [512], ["float16"]),
    *product([90], [512], ["float32", "bfloat16"]),
    (90, 3, "float16"),
]
ALL_CASES = [*product([75, 80, 90, 100, 120], [3, 384, 512, 768, 1280], ["float16", "float32", "bfloat16"])]
# The most shared memory of a block: 64 KB on T4, 227 KB on H100 and B200, 99 KB on RTX 50. RTX 30 and 40 and L4, which
# have 99 KB too, share their tiles with A100, which has 163.
SHARED_LIMIT = {75: 64 * 1024, 80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
# Bytes of stack that a thread may spill to. A panel weighted by similarity holds scores and softmax at once, and its
# gradient two tiles of scores, though only after the loop; nothing else spills more than two registers.
SPILL_BUDGET = {"softmax_panel_kernel weighted": 256, "score_gradient_kernel weighted": 256}
LEAST_SPILL_BUDGET = 8
# The instruction that a product of half types comes down to; Triton knows none for older GPUs.
MATRIX_INSTRUCTION = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma", 120: "mma.sync"}
MODULES = (shared, sinkhorn, counterparts, nearest, fuse)
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int64: "i64"}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
Launch = tuple[Any, tuple[Any, ...], dict[str, Any]]


ALL = pytest.param("all", marks=[pytest.mark.slow, pytest.mark.timeout(3600)])


@pytest.fixture(scope="module", params=["few", ALL])
def reports(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the compiler says of every launch of every case."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    child = subprocess.run([sys.executable, __file__, request.param, "--json"], env=env, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


@pytest.mark.parametrize("arch", SHARED_LIMIT)
def test_every_kernel_is_compiled(reports, arch):
    kernels = {name for module in MODULES for name in re.findall(r"def (\w+_kernel)\(", inspect.getsource(module))}
    assert kernels == {report["kernel"].split()[0] for report in reports if report["arch"] == arch}


def test_nothing_spills_beyond_its_budget(reports):
    assert not [
        report for report in reports if report["stack"] > SPILL_BUDGET.get(report["kernel"], LEAST_SPILL_BUDGET)
    ]


def test_shared_memory_fits(reports):
    assert not [report for report in reports if report["shared"] > SHARED_LIMIT[report["arch"]]]


def test_products_of_half_types_run_on_the_matrix_unit(reports):
    products = [report for report in reports if report["num_stages"] and report["dtype"] != "float32"]
    assert len(products) > 20
    able = [report for report in products if report["arch"] in MATRIX_INSTRUCTION and report["D"] >= 512]
    assert all(report["matrix_instructions"] for report in able)


@contextmanager
def recorded(arch: int) -> Iterator[list[Launch]]:
    """Makes the host code see an architecture, and collects its launches in place of making them."""
    launches: list[Launch] = []

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *args, **kwargs: launches.append((self.kernel, args, kwargs))

    with ExitStack() as stack:
        for module in MODULES:
            for name, value in list(vars(module).items()):
                if name.endswith("_kernel"):
                    stack.enter_context(mock.patch.object(module, name, Recorder(value)))
                if name == "architecture":
                    stack.enter_context(mock.patch.object(module, name, lambda device: arch))
        yield launches


def launch_all(D: int, dtype: torch.dtype) -> None:
    """Every host function once, with the options that change a kernel."""
    x, u, bias = torch.zeros(256, D, dtype=dtype), torch.zeros(512, D, dtype=dtype), torch.zeros(512)
    sinkhorn.TritonSweep(x, u, torch.ones(256), 0.02)(bias.double())
    counterparts.counterparts(x, u, bias, epsilon=0.02, normalize=True, similarity_weight=True)
    for weigh in (True, False):
        options = {"epsilon": 0.02, "normalize": True, "similarity_weight": weigh}
        counterparts.counterparts_gradient(x, x, u, bias, **options)
    nearest.nearest(x, u, k=1, bias=bias)
    nearest.nearest(x, u, k=5, bias=None)
    shared.SoftmaxPanel(x, u, dtype=None).fill(slice(0, 256), scale=1.0, bias=bias, log_z=torch.zeros(256))
    fuse.fuse((x, x, x), gamma=0.1)
    fuse.fuse_gradient(x, torch.zeros(256, 3), (x, x, x), gamma=0.1)


def source(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ASTSource:
    """A launch as Triton specialises it: pointers and, unless told otherwise, sizes known to be multiples of 16."""
    signature: dict[str, Any] = {}
    attributes = {}
    constants = {name: value for name, value in kwargs.items() if name not in OPTIONS}
    for i, (parameter, value) in enumerate(zip(kernel.params, args, strict=False)):
        if isinstance(value, tuple):
            signature[parameter.name] = tuple(f"*{TYPES[part.dtype]}" for part in value)
            attributes |= {(i, j): [["tt.divisibility", 16]] for j in range(len(value))}
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = f"*{TYPES[value.dtype]}"
            attributes[i,] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
            if signature[parameter.name] == "i32" and value % 16 == 0 and not parameter.do_not_specialize:
                attributes[i,] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature | dict.fromkeys(constants, "constexpr"), constants, attributes)


def compile_case(case: tuple[int, int, str]) -> list[dict[str, Any]]:
    """Reports on the launches of one case."""
    arch, D, dtype = case
    with recorded(arch) as launches:
        launch_all(D, getattr(torch, dtype))
    reports: dict[str, dict[str, Any]] = {}
    for kernel, args, kwargs in launches:
        name = kernel.fn.__name__ + " weighted" * kwargs.get("WEIGH", False) + " k=5" * (kwargs.get("K") == 5)
        if name == "softmax_panel_kernel" and not kwargs["KEEP"]:
            name += " normaliser only"
        if name in reports:
            continue
        options = {key: kwargs[key] for key in OPTIONS if key in kwargs}
        binary = triton.compile(source(kernel, args, kwargs), target=GPUTarget("cuda", arch, 32), options=options)
        reports[name] = {
            "kernel": name,
            "arch": arch,
            "D": D,
            "dtype": dtype,
            "num_stages": kwargs.get("num_stages"),
            "shared": binary.metadata.shared,
            "matrix_instructions": binary.asm["ptx"].count(MATRIX_INSTRUCTION.get(arch, "mma")),
            **resources(binary.asm["cubin"]),
        }
    return list(reports.values())


def resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread and bytes of its stack, which is what it spills to: the kernels have no local arrays."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", text).groups()
    return {"registers": int(registers), "stack": int(stack)}


def main() -> None:
    with ProcessPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        reports = [
            report for case in pool.map(compile_case, ALL_CASES if "all" in sys.argv else CASES) for report in case
        ]
    if "--json" in sys.argv:
        print(json.dumps(reports))
        return
    print("| kernel | sm | D | dtype | registers | spilled bytes | shared memory |")
    print("|---|---|---|---|---|---|---|")
    for r in reports:
        print("| {kernel} | {arch} | {D} | {dtype} | {registers} | {stack} | {shared} |".format(**r))


if __name__ == "__main__":
    main()
