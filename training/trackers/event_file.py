"""TensorBoard's event files, written by TensorBoard's own code without TensorFlow.

TensorBoard's `EventFileWriter` opens files through TensorFlow where that is installed,
so only its records and its summaries are used here. A bucket has no appending: there a
file is kept in memory and written whole, now and then, and a new one begins before it
is large. TensorBoard reads the files of a folder one after the other.
"""

from __future__ import annotations

import io
import itertools
import os
import socket
import time
from collections.abc import Mapping
from typing import IO

from etils import epath
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
from tensorboard.plugins.scalar import summary_v2
from tensorboard.plugins.text import metadata as text_metadata
from tensorboard.summary.writer import record_writer

from commentree.training.checkpointing import storage

_UPLOAD_SECONDS = 60.0
_UPLOAD_BYTES = 2**22
_VERSION = "brain.Event:2"

# TensorBoard reads files in the order of their names.
_numbers = itertools.count()


class EventFile:
  """Scalars of one run as TensorBoard sees runs: one folder."""

  def __init__(self, folder: epath.Path):
    """Begins a file; makes the folder if it is not there."""
    self._folder = folder
    self._is_remote = storage.is_remote(folder)
    self._begin()

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Takes the scalars of a step.

    They are in a local file on return, and in a bucket within about a minute, if more
    are written by then.
    """
    for name, value in scalars.items():
      summary = summary_v2.scalar_pb(name, value)
      self._add(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))
    if not self._is_remote:
      self._stream.flush()
    elif time.monotonic() - self._uploaded_at >= _UPLOAD_SECONDS:
      self._upload()

  def write_text(self, name: str, markdown: str) -> None:
    """Takes a text, shown formatted; it is on disk with the next scalars."""
    value = summary_pb2.Summary.Value(
      tag=name,
      metadata=text_metadata.create_summary_metadata(name, ""),
      tensor=tensor_pb2.TensorProto(
        dtype=types_pb2.DT_STRING, string_val=[markdown.encode()]
      ),
    )
    summary = summary_pb2.Summary(value=[value])
    self._add(event_pb2.Event(wall_time=time.time(), step=0, summary=summary))

  def close(self) -> None:
    """Writes what is left."""
    if self._is_remote:
      self._upload()
    self._stream.close()

  def _begin(self) -> None:
    name = (
      f"events.out.tfevents.{int(time.time()):010}.{next(_numbers):06}"
      f".{socket.gethostname()}.{os.getpid()}"
    )
    self._file = self._folder / name
    self._folder.mkdir(parents=True, exist_ok=True)
    self._stream: IO[bytes] = io.BytesIO() if self._is_remote else self._file.open("wb")
    self._records = record_writer.RecordWriter(self._stream)
    self._add(event_pb2.Event(wall_time=time.time(), file_version=_VERSION))
    self._uploaded_at = time.monotonic()

  def _add(self, event: event_pb2.Event) -> None:
    self._records.write(event.SerializeToString())

  def _upload(self) -> None:
    assert isinstance(self._stream, io.BytesIO)
    self._file.write_bytes(self._stream.getvalue())
    self._uploaded_at = time.monotonic()
    if self._stream.tell() >= _UPLOAD_BYTES:
      self._begin()
