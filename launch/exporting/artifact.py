"""The folder that functions are exported to: written whole or not at all."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import flax
import jax
import jax.export
from etils import epath

from commentree import __version__
from commentree.errors import StorageError, UserError
from commentree.launch.exporting import runner, text_parts
from commentree.launch.exporting.functions import Function
from commentree.launch.inference.run_context import RunContext
from commentree.models.model import CommentTreeModel
from commentree.tasks.objectives import label_objectives
from commentree.tasks.vocabulary import vocabulary_files
from commentree.training.checkpointing import storage
from commentree.training.warm_starts import safetensors_writing, writing
from commentree.training.warm_starts.formats.array_source import ArraySource

PLATFORMS = ("cpu", "tpu", "cuda")
RUNNER_FILE = "run.py"
# In a bucket the last file, without which the others are no artifact.
SPEC_FILE = "spec.json"
_FORMAT = 1


def write(
  folder: epath.Path,
  functions: Sequence[Function],
  run: RunContext,
  model: CommentTreeModel,
  checkpoint: ArraySource,
  say: Callable[[str], None],
) -> None:
  """Exports functions and writes them with the parameters.

  Args:
    folder: where to, not there yet.
    functions: what to export.
    run: the run, for its vocabulary and labels.
    model: its model.
    checkpoint: holds the parameters.
    say: receives progress.

  Raises:
    UserError: if the folder is there, or the checkpoint is of another model.
    StorageError: if it cannot be written.
  """
  safetensors_writing.refuse_existing(folder)
  params = safetensors_writing.parameters_of(checkpoint)
  _check_is_of(model, params)
  try:
    with writing.drafted(folder) as draft:
      about = {}
      for function in functions:
        say(f"exporting {function.name} for {', '.join(PLATFORMS)}")
        about[function.name] = _write_function(draft, function, params)
      weights = safetensors_writing.write(params, draft, {"format": "commentree"})
      weights = [name for name in weights if name.endswith(".safetensors")]
      vocabulary = _write_vocabulary(draft, run)
      source = pathlib.Path(runner.__file__).read_text()
      storage.write_text(draft / RUNNER_FILE, source)
      text = text_parts.settings_of(run)
      if "why_not" in text:
        say(f"{RUNNER_FILE} will read no text: {text['why_not']}")
      for name, source in text_parts.files().items():
        (draft / name).parent.mkdir(parents=True, exist_ok=True)
        storage.write_text(draft / name, source)
      spec = {
        "format": _FORMAT,
        "made_by": f"commentree {__version__}, jax {jax.__version__}",
        "checkpoint": str(checkpoint.path),
        "objectives": list(run.objectives),
        "platforms": list(PLATFORMS),
        "weights": weights,
        "vocabulary": vocabulary,
        "text": text,
        "labels": list(
          label_objectives.label_names(
            run.config.data.preprocessing, run.config.data.objective_names[0]
          )
        ),
        "functions": about,
      }
      storage.write_text(draft / "README.md", _readme(spec))
      storage.write_text(draft / SPEC_FILE, json.dumps(spec, indent=2) + "\n")
  except Exception as error:
    if isinstance(error, UserError) or not storage.refused(error):
      raise
    raise StorageError(
      f"{folder} cannot be written ({storage.reason(error)})"
    ) from error


def _check_is_of(model: CommentTreeModel, params: ArraySource) -> None:
  """Raises UserError unless parameters are a model's."""
  from commentree.models.batch import smallest

  shapes = {name: feature.shape for name, feature in smallest().items()}
  abstract = jax.eval_shape(
    lambda: model.get_initial_variables(jax.random.key(0), shapes)["params"]
  )
  expected = {
    name: tuple(leaf.shape)
    for name, leaf in flax.traverse_util.flatten_dict(abstract, sep=".").items()
  }
  found = {name: spec.shape for name, spec in params.arrays.items()}
  differing = sorted(
    name
    for name in expected.keys() | found.keys()
    if expected.get(name) != found.get(name)
  )
  if differing:
    name = differing[0]
    raise UserError(
      f"{params.path} is of another model than the settings: {len(differing)}"
      f" parameters differ, such as {name}: {found.get(name)}, for"
      f" {expected.get(name)}"
    )


def _write_function(
  draft: epath.Path, function: Function, params: ArraySource
) -> dict[str, Any]:
  """Writes a function; returns what is said of it."""

  def compute(params: Any, inputs: Any) -> dict[str, jax.Array]:
    return function.compute(flax.traverse_util.unflatten_dict(params, sep="."), inputs)

  arrays = {
    name: jax.ShapeDtypeStruct(spec.shape, spec.dtype)
    for name, spec in params.arrays.items()
  }
  inputs = {
    name: jax.ShapeDtypeStruct(given.shape, given.dtype)
    for name, given in function.inputs.items()
  }
  exported = jax.export.export(jax.jit(compute), platforms=PLATFORMS)(arrays, inputs)
  file = f"{function.name}.jax_export"
  storage.write_bytes(draft / file, bytes(exported.serialize()))
  outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
  return {
    "file": file,
    "about": function.about,
    "settings": dict(function.settings),
    "inputs": {
      name: {
        "shape": list(given.shape),
        "dtype": given.dtype,
        "about": given.about,
      }
      for name, given in function.inputs.items()
    },
    "outputs": {
      name: {
        "shape": list(outputs[name].shape),
        "dtype": str(outputs[name].dtype),
        "about": about,
      }
      for name, about in function.outputs.items()
    },
  }


def _write_vocabulary(draft: epath.Path, run: RunContext) -> dict[str, Any]:
  """Copies the vocabulary; returns what is said of it."""
  content = run.tokenizer.content
  is_json = vocabulary_files.is_json(content)
  file = vocabulary_files.file_name(content)
  storage.write_bytes(draft / file, content)
  return {
    "file": file,
    "kind": "Hugging Face tokenizers" if is_json else "SentencePiece",
    "size": run.tokenizer.vocab_size,
    "fingerprint": run.tokenizer.fingerprint,
  }


def _readme(spec: dict[str, Any]) -> str:
  """Returns what is said to those who find the folder."""
  lines = [
    "# An exported model of comment trees",
    "",
    f"Made by {spec['made_by']} of `{spec['checkpoint']}`. To run, it takes JAX and"
    " flatbuffers, not commentree:",
    "",
    f"    python {RUNNER_FILE} {next(iter(spec['functions']))} --inputs=in.npz"
    " --outputs=out.npz",
    "",
    f"`{RUNNER_FILE}` says more, and lays trees out; `{SPEC_FILE}` has all that follows"
    " for programs. Text is read by --trees, see"
    f" `{text_parts.READER_FILE}`.",
    "",
    f"- functions: StableHLO as `jax.export` writes it, for"
    f" {', '.join(spec['platforms'])}, each of the parameters by name and the inputs by"
    " name;",
    f"- parameters: {', '.join(spec['weights'])}, by the model's own names;",
    f"- vocabulary: {spec['vocabulary']['file']} ({spec['vocabulary']['kind']},"
    f" {spec['vocabulary']['size']:,} tokens).",
    "",
    "B: examples; R: rows, of L tokens; E: slots of encoded comments; T: targets; A:"
    " ancestors of a target; M: predicted positions of a row. Comments stand in rows"
    " one behind the other, none across two. Shapes are fixed.",
  ]
  if spec["labels"]:
    lines += ["", f"Labels by number: {', '.join(spec['labels'])}."]
  for name, about in spec["functions"].items():
    lines += ["", f"## {name}", "", about["about"]]
    if about["settings"]:
      settings = ", ".join(f"{k} = {v}" for k, v in about["settings"].items())
      lines += ["", f"Settings: {settings}."]
    for side in ("inputs", "outputs"):
      lines += ["", f"| {side} | shape | type | |", "|---|---|---|---|"]
      lines += [
        f"| `{key}` | {' x '.join(map(str, array['shape'])) or 'scalar'} |"
        f" {array['dtype']} | {array['about']} |"
        for key, array in about[side].items()
      ]
  return "\n".join(lines) + "\n"
