"""Runs the functions of this folder: pip install jax flatbuffers is all it takes.

    python run.py                                            what there is
    python run.py FUNCTION --inputs=IN.npz --outputs=OUT.npz
    python run.py FUNCTION --comments=TREE.json              lays a tree out, see below
    python run.py FUNCTION --trees=TREES.jsonl               reads text, see texts.py

From Python:

    import run
    model = run.Exported("/path/to/this/folder")
    outputs = model("embed", **inputs)          # arrays by name, as in spec.json

    inputs, places = model.lay_out("fill", comments)

`comments` are those of a tree, each after the one that it answers:

    [{"tokens": [5, 9, 7], "parent": -1},
     {"tokens": [4, 3, 8], "parent": 0, "predict": [1]}]

`tokens` are ids of the vocabulary; `predict` makes a comment a target, with the places
of its tokens to predict at. What is read there is the mask, or "reads" if a comment has
it. Replies are written to where "reply": true stands, as if that comment was yet to be
written.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import zipfile
from typing import Any

import jax
import jax.export
import ml_dtypes
import numpy as np

DTYPES = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16}


class Exported:
  """The functions of a folder, with its parameters.

  Attributes:
    spec: what is in spec.json.
    params: the parameters, by name; give others of the same shapes if you like.
  """

  def __init__(self, folder: str | pathlib.Path):
    """Reads the spec and the parameters; functions are read when they are called."""
    self._folder = pathlib.Path(folder)
    self.spec = json.loads((self._folder / "spec.json").read_text())
    self.params: dict[str, Any] = {}
    for file in self.spec["weights"]:
      self.params |= read_safetensors(self._folder / file)
    self.params = jax.device_put(self.params)
    self._functions: dict[str, Any] = {}

  def __call__(self, function: str, **inputs: Any) -> dict[str, np.ndarray]:
    """Calls a function; returns arrays by name."""
    about = self.spec["functions"][function]
    check(function, about["inputs"], inputs)
    if function not in self._functions:
      data = (self._folder / about["file"]).read_bytes()
      self._functions[function] = jax.jit(jax.export.deserialize(bytearray(data)).call)
    arrays = {
      name: np.asarray(values, about["inputs"][name]["dtype"])
      for name, values in inputs.items()
    }
    return jax.tree.map(np.asarray, self._functions[function](self.params, arrays))

  def lay_out(
    self, function: str, comments: list[dict[str, Any]]
  ) -> tuple[dict[str, np.ndarray], dict[Any, Any]]:
    """Lays a tree out as the one example of a function's inputs.

    Returns:
      The inputs, and by (comment, place) of what is predicted the (row, column) of it
      in `decoder_masked_positions`; for "embed" by comment its slot, for "generate" its
      target, both counted from 0.

    Raises:
      ValueError: if the tree does not fit.
    """
    about = self.spec["functions"][function]
    arrays = {
      name: np.zeros(given["shape"], given["dtype"])
      for name, given in about["inputs"].items()
    }
    arrays["encoder_slot_depths"] -= 1
    return fill_forest(arrays, function, about["settings"], comments)


def check(function: str, expected: dict[str, Any], given: dict[str, Any]) -> None:
  """Raises ValueError if arrays are not those that a function takes."""
  if set(expected) != set(given):
    raise ValueError(f"{function} takes {sorted(expected)}, not {sorted(given)}")
  for name, values in given.items():
    shape = tuple(expected[name]["shape"])
    if np.shape(values) != shape:
      raise ValueError(f"{name} has the shape {np.shape(values)}: must have {shape}")


def read_safetensors(file: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the arrays of a file, as they lie on the disk."""
  with open(file, "rb") as stream:
    size = int.from_bytes(stream.read(8), "little")
    header = json.loads(stream.read(size))
  header.pop("__metadata__", None)
  arrays: dict[str, np.ndarray] = {}
  for name, entry in header.items():
    shape, dtype = tuple(entry["shape"]), np.dtype(DTYPES[entry["dtype"]])
    begin, end = entry["data_offsets"]
    if begin == end:
      arrays[name] = np.zeros(shape, dtype)
      continue
    data = np.memmap(file, np.uint8, "r", 8 + size + begin, (end - begin,))
    arrays[name] = data.view(dtype).reshape(shape)
  return arrays


def fill_forest(
  arrays: dict[str, np.ndarray],
  function: str,
  settings: dict[str, Any],
  comments: list[dict[str, Any]],
) -> tuple[dict[str, np.ndarray], dict[Any, Any]]:
  """Fills the arrays of one example; see `Exported.lay_out`."""
  paths: list[list[int]] = []
  for comment in comments:
    parent = comment["parent"]
    paths.append([parent, *paths[parent]] if parent >= 0 else [])
  wanted = "reply" if function == "generate" else "predict"
  targets = [i for i, comment in enumerate(comments) if comment.get(wanted)]
  most = arrays["ancestor_slots"].shape[-1] if "ancestor_slots" in arrays else 0
  # The nearest ancestors, and the post.
  seen = {
    i: [*paths[i][: most - 1], paths[i][-1]]
    if len(paths[i]) > most > 1
    else paths[i][:most]
    for i in targets
  }
  encoded = sorted({a for i in targets for a in seen[i]})
  if function == "embed":
    encoded = list(range(len(comments)))
  slots = {comment: slot for slot, comment in enumerate(encoded)}
  room("encoder_slot_depths", arrays, len(slots))
  for number, slot in slots.items():
    put(arrays, "encoder", comments[number]["tokens"], slot + 1)
    arrays["encoder_slot_depths"][0, slot] = len(paths[number])
  if function == "embed":
    return arrays, slots
  room("target_depths", arrays, len(targets))
  places: dict[Any, Any] = {}
  for target, i in enumerate(targets):
    arrays["target_depths"][0, target] = len(paths[i])
    for a, ancestor in enumerate(seen[i]):
      arrays["ancestor_slots"][0, target, a] = slots[ancestor] + 1
      arrays["ancestor_distances"][0, target, a] = len(paths[i]) - len(paths[ancestor])
    if function == "generate":
      arrays["wanted"][0, target] = True
      first = comments[i].get("tokens") or [-1]
      arrays["first_tokens"][0, target] = first[0]
      if "identities" in arrays:
        arrays["identities"][0, target] = i
      places[i] = target
      continue
    predict_in(arrays, settings, comments[i], target, i, places)
  return arrays, places


def predict_in(
  arrays: dict[str, np.ndarray],
  settings: dict[str, Any],
  comment: dict[str, Any],
  target: int,
  number: int,
  places: dict[Any, Any],
) -> None:
  """Puts a target's tokens in a row, and notes where they are predicted."""
  tokens, predicted = comment["tokens"], comment["predict"]
  causal = "start_id" in settings
  if causal:
    reads = [settings["start_id"], *tokens]
    answers = [*tokens, settings["end_id"]]
  else:
    mask, answers = settings.get("mask_id"), tokens
    reads = comment.get("reads") or [
      mask if mask is not None and place in predicted else token
      for place, token in enumerate(tokens)
    ]
  row, start = put(arrays, "decoder", reads, target + 1)
  used = sum(where[0] == row for where in places.values())
  room("decoder_masked_positions", arrays, used + len(predicted))
  for column, place in enumerate(predicted, used):
    arrays["decoder_masked_positions"][0, row, column] = start + place
    if "decoder_target_tokens" in arrays:
      arrays["decoder_target_tokens"][0, row, column] = answers[place]
    places[number, place] = row, column
  if "target_prefix_lengths" in arrays:
    arrays["target_prefix_lengths"][0, target] = 0 if causal else len(reads)


def put(
  arrays: dict[str, np.ndarray], side: str, tokens: list[int], segment: int
) -> tuple[int, int]:
  """Puts tokens in the first row that has room; returns the row and the column."""
  segments = arrays[f"{side}_segment_ids"][0]
  used = (segments > 0).sum(-1)
  rows = np.flatnonzero(used + len(tokens) <= segments.shape[-1])
  if not len(rows):
    raise ValueError(f"no {side} row has room for {len(tokens)} more tokens")
  row, start = int(rows[0]), int(used[rows[0]])
  columns = slice(start, start + len(tokens))
  segments[row, columns] = segment
  arrays[f"{side}_input_tokens"][0, row, columns] = tokens
  arrays[f"{side}_positions"][0, row, columns] = np.arange(len(tokens))
  return row, start


def room(name: str, arrays: dict[str, np.ndarray], needed: int) -> None:
  """Raises ValueError if an input's last axis is too short."""
  if needed > arrays[name].shape[-1]:
    raise ValueError(f"{name} has room for {arrays[name].shape[-1]}, not for {needed}")


def answer_trees(
  model: Exported, folder: pathlib.Path, function: str, trees: str
) -> None:
  """Prints an answer for each comment, as JSON; exits with a line that says why not."""
  try:
    import texts

    for answer in texts.TextReader(model, folder).answers(function, trees):
      print(json.dumps(answer, ensure_ascii=False))
  except ImportError as error:
    sys.exit(
      f"{error}: trees of text take pip install jax flatbuffers msgspec 'etils[epath]'"
      " sentencepiece protobuf tokenizers"
    )
  except (ValueError, OSError) as error:
    sys.exit(str(error))


def main() -> None:
  """Runs a function once."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "function", nargs="?", help="of spec.json; lists them if left out"
  )
  parser.add_argument("--inputs", help="arrays by name, .npz")
  parser.add_argument("--comments", help="a tree's comments, .json")
  parser.add_argument("--trees", help="trees of text, .jsonl; an answer a line")
  parser.add_argument("--outputs", help="file to write, .npz; default: print")
  arguments = parser.parse_args()
  folder = pathlib.Path(__file__).parent
  model = Exported(folder)
  if arguments.function is None:
    for name, about in model.spec["functions"].items():
      print(f"{name}: {about['about']}")
    return
  if arguments.function not in model.spec["functions"]:
    sys.exit(f"{arguments.function}: there is {', '.join(model.spec['functions'])}")
  if arguments.trees:
    if arguments.outputs:
      sys.exit("--outputs: takes arrays; answers to --trees are printed, a line each")
    answer_trees(model, folder, arguments.function, arguments.trees)
    return
  try:
    if arguments.comments:
      inputs, _ = model.lay_out(arguments.function, read_comments(arguments.comments))
    elif not arguments.inputs:
      sys.exit("give --trees, --comments or --inputs")
    else:
      inputs = read_arrays(arguments.inputs)
    outputs: dict[str, Any] = model(arguments.function, **inputs)
    if arguments.outputs:
      np.savez(arguments.outputs, **outputs)
      return
  except (ImportError, ValueError, OSError) as error:
    sys.exit(str(error))
  print({name: values.tolist() for name, values in outputs.items()})


def read_comments(path: str) -> list[dict[str, Any]]:
  """Returns a tree's comments; raises ValueError for what is none of that form."""
  try:
    comments = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
  except (ValueError, RecursionError) as error:
    raise ValueError(f"--comments={path}: no JSON: {error}") from None
  if not isinstance(comments, list):
    raise ValueError(f"--comments={path}: must be a list; see python run.py --help")
  for number, comment in enumerate(comments):
    where = f"--comments={path}: comment {number}"
    if not isinstance(comment, dict):
      raise ValueError(f"{where} must be an object")
    parent = comment.get("parent")
    if type(parent) is not int or not -1 <= parent < number:
      raise ValueError(f"{where}: parent must be -1, or the number of one before it")
    tokens = comment.get("tokens", [] if comment.get("reply") else None)
    if not are_ids(tokens) or not are_ids(comment.get("reads", [])):
      raise ValueError(f"{where}: tokens, and reads, must be lists of ids")
    places = comment.get("predict", [])
    # Of a causal model what comes after the last token is predicted as well.
    if not are_ids(places) or any(place > len(tokens or ()) for place in places):
      raise ValueError(f"{where}: predict must be a list of places among its tokens")
  return comments


def are_ids(values: Any) -> bool:
  """Whether values are a list of whole numbers from 0 on."""
  return isinstance(values, list) and all(
    type(value) is int and 0 <= value < 2**31 for value in values
  )


def read_arrays(path: str) -> dict[str, Any]:
  """Returns arrays by name; raises ValueError if a file is none of numpy.savez."""
  try:
    return dict(np.load(path))
  except (ValueError, TypeError, EOFError, zipfile.BadZipFile):
    raise ValueError(f"--inputs={path}: is no file of numpy.savez") from None


if __name__ == "__main__":
  main()
