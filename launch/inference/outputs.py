"""The forms that answers are written in, told by how the output's name ends.

A part holds the answers of a chunk; all parts in order are the output, whichever runs
wrote them.
"""

from __future__ import annotations

import abc
import contextlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from commentree import local_files
from commentree.errors import UserError
from commentree.launch.inference.modes.base import Answer
from commentree.tasks.trees.comment_tree import CommentTree
from commentree.training.checkpointing import storage

_COPY_BYTES = 2**20
_IDS_ENDING = ".ids.jsonl"
_VECTORS = ("vectors", "in_thread")


class Output(abc.ABC):
  """A form of output.

  Attributes:
    part_ending: of the names of parts.
  """

  part_ending: str

  @abc.abstractmethod
  def encode(
    self, trees: Sequence[CommentTree], answers: Sequence[Sequence[Answer]]
  ) -> bytes:
    """Returns the part of some trees."""

  @abc.abstractmethod
  def join(self, parts: Sequence[epath.Path], output: epath.Path) -> int:
    """Writes the whole output, whole or not at all; returns its comments.

    Args:
      parts: in order.
      output: what the user named.
    """


def for_path(path: str, mode: str) -> Output:
  """Returns the form that a path's ending asks for.

  Raises:
    UserError: if the mode's answers cannot be written so.
  """
  ending = os.path.splitext(path)[1]
  if ending not in (".npy", ".parquet"):
    return JsonLines()
  if mode != "embed":
    raise UserError(
      f"--output={path}: {ending} is for --mode=embed alone; the answers of {mode} are"
      " JSONL: name it .jsonl"
    )
  return Npy() if ending == ".npy" else Parquet()


def lines(
  trees: Sequence[CommentTree], answers: Sequence[Sequence[Answer]]
) -> Iterator[str]:
  """Yields a line of JSON for each comment, in order."""
  for tree, of_tree in zip(trees, answers):
    for comment, answer in zip(tree.comments, of_tree, strict=True):
      line = {"tree": tree.id, "comment": comment.id, **answer}
      yield json.dumps(line, ensure_ascii=False, default=_plain)


def _plain(array: np.ndarray) -> Any:
  return [float(f"{x:.9g}") for x in array] if array.ndim == 1 else list(array)


class JsonLines(Output):
  """A JSON object a comment, one a line."""

  part_ending = ".jsonl"

  def encode(
    self, trees: Sequence[CommentTree], answers: Sequence[Sequence[Answer]]
  ) -> bytes:
    """Returns the lines of some trees."""
    return "".join(f"{line}\n" for line in lines(trees, answers)).encode()

  def join(self, parts: Sequence[epath.Path], output: epath.Path) -> int:
    """Puts the parts end to end."""
    comments = 0
    with _whole(output) as file:
      for part in parts:
        with part.open("rb") as source:
          while block := source.read(_COPY_BYTES):
            comments += block.count(b"\n")
            file.write(block)
    return comments


class Parquet(Output):
  """A table with the columns `tree`, `comment`, `vectors`, and `in_thread`."""

  part_ending = ".parquet"

  def encode(
    self, trees: Sequence[CommentTree], answers: Sequence[Sequence[Answer]]
  ) -> bytes:
    """Returns a table of the vectors of some trees."""
    ids = [(tree.id, comment.id) for tree in trees for comment in tree.comments]
    flat = [answer for of_tree in answers for answer in of_tree]
    columns = {
      "tree": pa.array([tree for tree, _ in ids], pa.string()),
      "comment": pa.array([comment for _, comment in ids], pa.string()),
      "vectors": _lists([answer["vectors"] for answer in flat], 2),
    }
    if flat and "in_thread" in flat[0]:
      columns["in_thread"] = _lists([answer["in_thread"] for answer in flat], 1)
    table = pa.table(columns)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="none", use_dictionary=False)
    return sink.getvalue()

  def join(self, parts: Sequence[epath.Path], output: epath.Path) -> int:
    """Writes a row group for each part."""
    comments = 0
    with _whole(output) as file:
      writer = None
      for table in _tables(parts):
        if writer is None:
          writer = pq.ParquetWriter(file, table.schema, compression="zstd")
        if len(table):
          writer.write_table(table, row_group_size=max(1, len(table)))
        comments += len(table)
      if writer is not None:
        writer.close()
    return comments


class Npy(Parquet):
  """Arrays of NumPy: `OUT.npy` `[comments, J, D]`, and the ids beside it.

  The ids are lines of JSON in `OUT.ids.jsonl`; vectors in threads, `[comments, D]`, are
  in `OUT.in_thread.npy`. Comments without vectors have NaN.
  """

  def join(self, parts: Sequence[epath.Path], output: epath.Path) -> int:
    """Writes the arrays, that which the user named last."""
    schema = pq.read_schema(io.BytesIO(parts[0].read_bytes()))
    comments = 0
    with _whole(output.with_suffix(_IDS_ENDING)) as file:
      for table in _tables(parts):
        comments += len(table)
        for tree, comment in zip(*(table[n].to_pylist() for n in ("tree", "comment"))):
          line = json.dumps({"tree": tree, "comment": comment}, ensure_ascii=False)
          file.write(f"{line}\n".encode())
    for name in reversed([name for name in _VECTORS if name in schema.names]):
      path = output.with_suffix(".in_thread.npy") if name != _VECTORS[0] else output
      self._write(parts, path, name, comments)
    return comments

  def _write(
    self, parts: Sequence[epath.Path], path: epath.Path, name: str, comments: int
  ) -> None:
    shape = next(
      (shape for t in _tables(parts) if (shape := _inner_shape(t[name])) is not None),
      (0,) * (2 if name == "vectors" else 1),
    )
    with _whole(path) as file:
      header = {"descr": "<f4", "fortran_order": False, "shape": (comments, *shape)}
      np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]
      for table in _tables(parts):
        file.write(_dense(table[name], shape).astype("<f4").tobytes())


def _tables(parts: Sequence[epath.Path]) -> Iterator[pa.Table]:
  for part in parts:
    yield pq.read_table(io.BytesIO(part.read_bytes()))


def _lists(vectors: Sequence[np.ndarray | None], rank: int) -> pa.Array:
  """Returns arrays of equal shapes, or None, as lists (of lists)."""
  there = [vector for vector in vectors if vector is not None]
  kind = pa.list_(pa.float32())
  if rank == 2:
    kind = pa.list_(kind)
  if not there:
    return pa.nulls(len(vectors), kind)
  shape = there[0].shape
  values = pa.array(np.concatenate([v.ravel() for v in there]), pa.float32())
  if rank == 2:
    ends = np.arange(len(there) * shape[0] + 1, dtype=np.int32) * shape[1]
    values = pa.ListArray.from_arrays(pa.array(ends), values)
  has = np.array([vector is not None for vector in vectors])
  ends = np.concatenate([[0], np.cumsum(has)]).astype(np.int32) * shape[0]
  return pa.ListArray.from_arrays(pa.array(ends), values, mask=pa.array(~has))


def _inner_shape(column: pa.ChunkedArray) -> tuple[int, ...] | None:
  """Returns the shape of the first that is there, None if none is."""
  there = column.drop_null()
  if not len(there):
    return None
  return np.asarray(there[0].as_py(), np.float32).shape


def _dense(column: pa.ChunkedArray, shape: tuple[int, ...]) -> np.ndarray:
  """Returns a column as `[rows, *shape]`, NaN where nothing is."""
  dense = np.full((len(column), *shape), np.nan, np.float32)
  values: Any = column.drop_null().combine_chunks()
  while pa.types.is_list(values.type):
    values = values.flatten()
  has = np.array([value.is_valid for value in column])
  dense[has] = values.to_numpy(zero_copy_only=False).reshape(-1, *shape)
  return dense


@contextlib.contextmanager
def _whole(path: epath.Path) -> Iterator[IO[bytes]]:
  """Opens a file that appears under its name only when it is whole."""
  if storage.is_remote(path):
    with path.open("wb") as file:
      yield file  # type: ignore[misc]
    return
  with local_files.draft(path) as written, open(written, "wb") as file:
    yield file
  storage.sync_folder(path.parent)
