"""A comment tree as a record: the bytes of a `tf.train.Example`, without TensorFlow.

The features are those of `columns`, and TFDS reads the records with the `features.json`
that `manifest` writes. Messages are declared here from scratch because what TensorFlow
and TFDS generated for them takes hundreds of megabytes to import.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message import DecodeError

from commentree.tasks.dataset_files import tfrecord
from commentree.tasks.trees.columns import COLUMNS, from_columns, to_columns
from commentree.tasks.trees.comment_tree import CommentTree

_PACKAGE = "commentree"


def _example_class() -> Any:
  """The class of `tf.train.Example` messages; only what records hold of it."""
  file = FileDescriptorProto(
    name="commentree/example.proto", package=_PACKAGE, syntax="proto3"
  )

  def message(name: str, *fields: FieldDescriptorProto) -> None:
    file.message_type.add(name=name).field.extend(fields)

  def one_of(
    name: str, number: int, message_name: str, **more: int
  ) -> FieldDescriptorProto:
    return FieldDescriptorProto(
      name=name,
      number=number,
      label=FieldDescriptorProto.LABEL_OPTIONAL,
      type=FieldDescriptorProto.TYPE_MESSAGE,
      type_name=f".{_PACKAGE}.{message_name}",
      **more,
    )

  def many(type_: int) -> FieldDescriptorProto:
    return FieldDescriptorProto(
      name="value", number=1, label=FieldDescriptorProto.LABEL_REPEATED, type=type_
    )

  message("BytesList", many(FieldDescriptorProto.TYPE_BYTES))
  message("Int64List", many(FieldDescriptorProto.TYPE_INT64))
  message(
    "Feature",
    one_of("bytes_list", 1, "BytesList", oneof_index=0),
    one_of("int64_list", 3, "Int64List", oneof_index=0),
  )
  file.message_type[-1].oneof_decl.add(name="kind")
  entries = one_of("feature", 1, "Features.FeatureEntry")
  entries.label = FieldDescriptorProto.LABEL_REPEATED
  message("Features", entries)
  entry = file.message_type[-1].nested_type.add(name="FeatureEntry")
  entry.options.map_entry = True
  entry.field.add(
    name="key",
    number=1,
    label=FieldDescriptorProto.LABEL_OPTIONAL,
    type=FieldDescriptorProto.TYPE_STRING,
  )
  entry.field.append(one_of("value", 2, "Feature"))
  message("Example", one_of("features", 1, "Features"))
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  descriptor = pool.FindMessageTypeByName(f"{_PACKAGE}.Example")
  return message_factory.GetMessageClass(descriptor)


Example = _example_class()


def encode(tree: CommentTree) -> bytes:
  """Serialises a tree; equal trees give equal bytes."""
  return encode_columns(to_columns(tree))


def _nothing_in(name: str) -> bytes:
  """The record of a tree whose only feature is an empty list."""
  example = Example()
  feature = example.features.feature[name]
  held = feature.bytes_list if COLUMNS[name][0] == "str" else feature.int64_list
  held.SetInParent()  # TFDS would not take a missing one
  return example.SerializeToString()


_NOTHING = {name: _nothing_in(name) for name, (_, rank) in COLUMNS.items() if rank}


def encode_columns(columns: Mapping[str, Any]) -> bytes:
  """Serialises a tree that `columns.to_columns` made columns of."""
  example = Example()
  features = example.features.feature
  empty = []
  for name, value in columns.items():
    kind, rank = COLUMNS[name]
    if rank and not len(value):
      # Most trees lack labels, spans and translations: half of the columns.
      empty.append(_NOTHING[name])
    elif kind == "str":
      features[name].bytes_list.value.extend(value if rank else (value,))
    else:
      features[name].int64_list.value.extend(value.tolist())
  # Messages one behind the other are one message with the fields of all.
  return example.SerializeToString(deterministic=True) + b"".join(empty)


def decode(record: bytes) -> CommentTree:
  """The inverse of `encode`.

  Raises:
    tfrecord.DamagedError: if the record holds no tree, regardless of its checksum.
  """
  columns: dict[str, Any] = {}
  try:
    features = Example.FromString(record).features.feature
    for name, (kind, rank) in COLUMNS.items():
      if kind == "str":
        values = features[name].bytes_list.value
        columns[name] = values if rank else values[0]
      else:
        columns[name] = np.array(features[name].int64_list.value, kind)
    return from_columns(columns)
  except (DecodeError, LookupError, OverflowError, ValueError) as error:
    raise tfrecord.DamagedError(f"holds no tree ({error})") from error
