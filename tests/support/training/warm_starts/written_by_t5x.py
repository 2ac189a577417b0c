"""T5X's native checkpoints by msgpack and TensorStore alone, to be written and read.

Nothing of commentree or Flax is used, so that a mistake of theirs is none here.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import tensorstore as ts

Spec = dict[str, Any]


def write(
  folder: pathlib.Path,
  arrays: Mapping[str, np.ndarray],
  inside: Iterable[str] = ("state.step",),
  chunks: Callable[[tuple[int, ...]], list[int]] = lambda shape: list(shape),
  change: Callable[[str, Spec], Spec] = lambda name, spec: spec,
) -> pathlib.Path:
  """Writes a checkpoint.

  Args:
    folder: where.
    arrays: by dotted name, `target.…` and `state.…`.
    inside: names of those that lie in the msgpack.
    chunks: from a shape, that of an array's chunks.
    change: what to note as an array's specification instead of the right one.
  """
  folder.mkdir(parents=True, exist_ok=True)
  optimizer: dict[str, Any] = {}
  for name, array in arrays.items():
    *path, last = name.split(".")
    parent = optimizer
    for key in path:
      parent = parent.setdefault(key, {})
    if name in set(inside):
      parent[last] = extension(array)
      continue
    spec = spec_of(name, array, chunks(array.shape))
    absolute = {**spec, "kvstore": {"driver": "file", "path": f"{folder}/{name}"}}
    ts.open(absolute, create=True).result().write(array).result()
    parent[last] = change(name, spec)
  tree = {"version": 3, "optimizer": optimizer}
  (folder / "checkpoint").write_bytes(msgpack.packb(tree))
  return folder


def spec_of(name: str, array: np.ndarray, chunks: list[int]) -> Spec:
  """Returns what T5X notes of an array."""
  return {
    "driver": "zarr",
    "dtype": array.dtype.name,
    "kvstore": {"driver": "file", "path": f"{name}/"},
    "metadata": {
      "chunks": chunks,
      "compressor": {"id": "gzip", "level": 1},
      "shape": list(array.shape),
    },
  }


def extension(array: np.ndarray) -> msgpack.ExtType:
  """Returns an array as Flax has it in msgpack."""
  content = (array.shape, array.dtype.name, array.tobytes())
  return msgpack.ExtType(1, msgpack.packb(content))


def read(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns all arrays of a checkpoint by dotted name."""

  def ext(code, data):
    assert code in (1, 3)
    shape, dtype, buffer = msgpack.unpackb(data)
    dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    return np.frombuffer(buffer, dtype).reshape(shape)

  tree = msgpack.unpackb((folder / "checkpoint").read_bytes(), ext_hook=ext)
  assert tree["version"] == 3
  found = {}

  def walk(tree, prefix):
    for key, value in tree.items():
      name = f"{prefix}{key}"
      if not isinstance(value, dict):
        found[name] = value
      elif "driver" in value:
        # What T5X insists on.
        assert {"chunks", "compressor", "shape"} <= value["metadata"].keys()
        assert not value["kvstore"]["path"].startswith("/")
        path = f"{folder}/{value['kvstore']['path']}"
        spec = {**value, "kvstore": {"driver": "file", "path": path}}
        found[name] = ts.open(spec, open=True).result().read().result()
      else:
        walk(value, f"{name}.")

  walk(tree["optimizer"], "")
  return found


def write_sparse(
  folder: pathlib.Path,
  shapes: Mapping[str, tuple[int, ...]],
  parts: Mapping[str, tuple[Any, float]],
) -> None:
  """Writes a checkpoint of which most chunks are not on disk, and so 0.

  Args:
    folder: where.
    shapes: of all arrays, float32.
    parts: of some, which part holds which number.
  """
  folder.mkdir(parents=True)
  optimizer: dict[str, Any] = {"state": {"step": extension(np.int32(0))}}
  for name, shape in shapes.items():
    *path, last = name.split(".")
    parent = optimizer
    for key in path:
      parent = parent.setdefault(key, {})
    chunks = [min(size, 256) for size in shape]
    parent[last] = spec_of(name, np.empty(0, np.float32), chunks)
    parent[last]["metadata"]["shape"] = list(shape)
    place = {"driver": "file", "path": f"{folder}/{name}"}
    store = ts.open({**parent[last], "kvstore": place}, create=True).result()
    if name in parts:
      index, value = parts[name]
      store[index] = value
  tree = {"version": 3, "optimizer": optimizer}
  (folder / "checkpoint").write_bytes(msgpack.packb(tree))


def t5_shapes(
  *, layers: int, width: int, vocab: int, heads: int, joined: int, mlp: int
) -> dict[str, tuple[int, ...]]:
  """Returns the parameters of a T5 1.1 as T5X names them."""
  shapes: dict[str, tuple[int, ...]] = {
    "token_embedder.embedding": (vocab, width),
    "decoder.logits_dense.kernel": (width, vocab),
  }
  sides = {
    "encoder": {"attention": "pre_attention_layer_norm"},
    "decoder": {
      "self_attention": "pre_self_attention_layer_norm",
      "encoder_decoder_attention": "pre_cross_attention_layer_norm",
    },
  }
  for side, attentions in sides.items():
    shapes[f"{side}.relpos_bias.rel_embedding"] = (heads, 32)
    shapes[f"{side}.{side}_norm.scale"] = (width,)
    for layer in range(layers):
      prefix = f"{side}.layers_{layer}"
      for attention, norm in attentions.items():
        for part in ("query", "key", "value"):
          shapes[f"{prefix}.{attention}.{part}.kernel"] = (width, joined)
        shapes[f"{prefix}.{attention}.out.kernel"] = (joined, width)
        shapes[f"{prefix}.{norm}.scale"] = (width,)
      for part in ("wi_0", "wi_1"):
        shapes[f"{prefix}.mlp.{part}.kernel"] = (width, mlp)
      shapes[f"{prefix}.mlp.wo.kernel"] = (mlp, width)
      shapes[f"{prefix}.pre_mlp_layer_norm.scale"] = (width,)
  return shapes


def t5_arrays(seed: int = 0, *, layers: int = 2) -> dict[str, np.ndarray]:
  """Returns a small T5 1.1 (`CONFIG`), its optimizer and its step.

  No two arrays are alike.
  """
  rng = np.random.default_rng(seed)
  shapes = t5_shapes(layers=layers, width=16, vocab=32, heads=2, joined=32, mlp=48)
  arrays = {
    f"target.{name}": rng.normal(0, 0.1, shape).astype(np.float32)
    for name, shape in shapes.items()
  }
  for name, array in list(arrays.items()):
    statistics = name.replace("target.", "state.param_states.", 1)
    arrays[f"{statistics}.v"] = np.zeros(array.shape, np.float32)
  arrays["state.step"] = np.array(1000, np.int32)
  return arrays


CONFIG = {
  "vocab_size": 32,
  "emb_dim": 16,
  "num_heads": 2,
  "head_dim": 16,
  "mlp_dim": 48,
  "num_encoder_layers": 2,
  "num_decoder_layers": 2,
  "dtype": "float32",
}
"""`ModelConfig`'s sizes for `t5_arrays`."""
