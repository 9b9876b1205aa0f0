"""The kernel package on its own: as Hugging Face's `kernels` loads it, and as a copy under any other name."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HUB = ROOT / "hub"

# Every op against its reference, in eager mode, in a graph and, by Triton's interpreter, on CUDA's path.
CHECK = """
import sys
import torch
from torch.nn.functional import normalize

def check(ops, namespace):
    x, u = (normalize(torch.randn(rows, 16, generator=torch.Generator().manual_seed(rows)), dim=1) for rows in (20, 9))
    def y(x, backend="auto"):
        return ops.counterparts(x, u, ops.cosine_sinkhorn(x, u, epsilon=0.1, tol=1e-6).g, epsilon=0.1, backend=backend)
    expected = y(x, "reference").float()
    for result in (y(x), y(x, "triton"), torch.compile(y, fullgraph=True, backend="aot_eager")(x)):
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
    def gradient(backend):
        leaf = x.clone().requires_grad_()
        g = ops.cosine_sinkhorn(x, u, epsilon=0.1, tol=1e-6).g
        return torch.autograd.grad(ops.counterparts(leaf, u, g, epsilon=0.1, backend=backend).sum(), leaf)[0]
    for backend in ("auto", "triton"):
        torch.testing.assert_close(gradient(backend), gradient("reference"), atol=1e-5, rtol=1e-5)
    assert torch.equal(ops.nearest(x, u).labels, (x @ u.T).argmax(dim=1))
    assert torch.equal(ops.retrieve(u, x, top_k=9), torch.arange(9))
    fused, reference = (ops.fuse([x, y(x)], gamma=0.1, backend=name)[0] for name in ("triton", "reference"))
    torch.testing.assert_close(fused, reference.float(), atol=1e-5, rtol=0)
    for name in ("counterparts", "fuse_gradient", "cosine_sinkhorn"):
        assert hasattr(getattr(torch.ops, namespace), name), (namespace, name)
"""


def lay_out(*arguments: object, owner: str = "someone") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, HUB / "lay_out.py", *arguments, "--owner", owner]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    lay_out(folder)
    return folder


def run(code: str, folder: Path) -> None:
    """Run code after `CHECK`, away from the checkout, whose folder `kernels/` hides the library of that name."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [sys.executable, "-I", "-c", CHECK + code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert not ran.returncode, ran.stderr


@pytest.fixture(scope="module")
def library() -> None:
    try:
        metadata.version("kernels")
    except metadata.PackageNotFoundError:
        pytest.skip("Hugging Face's kernels is not installed; see CONTRIBUTING.md")


def test_the_library_loads_it_and_its_ops_agree_with_the_reference(laid_out, library):
    run(
        "from pathlib import Path\n"
        "from kernels import get_loaded_kernels, get_local_kernel\n"
        "ops = get_local_kernel(Path('.').absolute())\n"
        "(loaded,) = get_loaded_kernels()\n"
        "assert ops.__name__ == loaded.metadata.id and loaded.metadata.version == 1\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'cae']\n"
        "check(ops, loaded.metadata.id)\n",
        laid_out,
    )


def test_the_library_takes_the_build_file(library, tmp_path):
    run(f"from kernels._rust import Build\nassert len(Build.open({str(HUB)!r}).general.backends) == 2\n", tmp_path)


def test_a_copy_works_beside_the_package_of_cae(laid_out):
    (variant, _) = sorted((laid_out / "build").iterdir())
    name = json.loads((variant / "metadata.json").read_text())["id"]
    run(
        "import importlib.util\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import cae.kernels\n"
        f"spec = importlib.util.spec_from_file_location({name!r}, {str(variant / '__init__.py')!r})\n"
        f"copy = sys.modules[{name!r}] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(copy)\n"
        "assert copy.counterparts is not cae.kernels.counterparts\n"
        f"check(copy, {name!r})\n"
        "check(cae.kernels, 'cae')\n",
        laid_out,
    )


def test_a_version_has_a_name_of_its_own(laid_out, tmp_path):
    spec = importlib.util.spec_from_file_location("lay_out", HUB / "lay_out.py")
    lay_out = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lay_out)
    ids = [json.loads(path.read_text())["id"] for path in laid_out.glob("build/*/metadata.json")]
    digest = lay_out.digest(ROOT / "kernels")
    assert sorted(ids) == [f"_cae_kernels_{backend}_{digest}" for backend in ("cpu", "cuda")]
    (tmp_path / "a.py").write_text("1")
    before = lay_out.digest(tmp_path)
    (tmp_path / "a.py").write_text("2")
    assert lay_out.digest(tmp_path) != before
    with pytest.raises(FileExistsError, match="choose another folder"):
        lay_out.lay_out(laid_out, "someone")


def test_a_build_that_is_there_is_named_in_one_line(laid_out):
    ran = lay_out(laid_out)
    assert ran.returncode == 2
    assert ran.stderr.endswith(f"{laid_out} is not empty: choose another folder\n")
    assert "Traceback" not in ran.stderr


def test_the_owner_must_be_given_and_stands_in_the_card(laid_out, tmp_path):
    card = (laid_out / "README.md").read_text(encoding="utf-8")
    assert 'get_kernel("someone/cae-kernels", version=1' in card
    assert "OWNER" not in card
    ran = subprocess.run([sys.executable, HUB / "lay_out.py", tmp_path], capture_output=True, text=True)
    assert ran.returncode == 2 and "--owner" in ran.stderr
    ran = lay_out(tmp_path, owner="some one")
    assert ran.returncode == 2 and ran.stderr.endswith("an organisation of the hub, got 'some one'\n")
    assert not list(tmp_path.iterdir())


def test_the_card_names_every_function(laid_out):
    card = (laid_out / "README.md").read_text(encoding="utf-8")
    exported = ast.literal_eval(
        re.search(r"__all__ = (\[.*?\])", (ROOT / "kernels/__init__.py").read_text(), re.DOTALL)[1]
    )
    functions = {name for name in exported if name.islower()}
    assert functions == set(re.findall(r"^\| `(\w+)\(", card, re.MULTILINE))


def test_the_package_imports_itself_by_relative_paths_and_else_torch_alone():
    for path in (ROOT / "kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                named = [node.module]
            roots = {name.partition(".")[0] for name in named}
            assert roots <= {"torch", "triton", *sys.stdlib_module_names}, path
