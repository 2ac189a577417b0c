import io
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from commentree.tasks.building import order
from commentree.tasks.dataset_files import tfrecord, tree_record
from commentree.tasks.trees.columns import COLUMNS, from_columns, to_columns
from commentree.tasks.trees.comment_tree import Comment, CommentTree, Span, Translation

TREE = CommentTree(
  "p",
  [
    Comment("p", -1, None, "title\n\nbody é", None),
    Comment(
      "a",
      0,
      "ann",
      "x" * 20_000,
      2**40,
      -7,
      (Span(0, 3, "claim"),),
      "é",
      True,
      "en",
      Translation("ß", "ö"),
    ),
    Comment("b", 1, "bob", "\U0001f600", 0, 2**31 - 1),
  ],
  "sub",
)
BARE = CommentTree("q", [Comment("q", -1, None, "", None)])


def features():
  kinds = {"str": tfds.features.Text(), "int32": np.int32, "int64": np.int64}
  return tfds.features.FeaturesDict(
    {
      name: tfds.features.Sequence(kinds[kind]) if rank else kinds[kind]
      for name, (kind, rank) in COLUMNS.items()
    }
  )


@pytest.mark.parametrize("tree", [TREE, BARE])
def test_a_record_is_what_tfds_itself_makes_of_the_columns(tree):
  record = tree_record.encode(tree)
  as_tensorflow_has_it = tf.train.Example.FromString(record)
  theirs = features().serialize_example(features().encode_example(to_columns(tree)))
  assert as_tensorflow_has_it == tf.train.Example.FromString(theirs)


@pytest.mark.parametrize("tree", [TREE, BARE])
def test_a_tree_comes_back_from_its_record_by_tfds(tree):
  read = features().deserialize_example(tree_record.encode(tree))
  assert from_columns({k: v.numpy() for k, v in read.items()}) == tree


def test_tensorflow_reads_what_was_framed_and_frames_the_same(tmp_path):
  records = [b"", b"a", b"some bytes" * 1000]
  theirs, ours = tmp_path / "theirs", tmp_path / "ours"
  with tf.io.TFRecordWriter(str(theirs)) as writer:
    for record in records:
      writer.write(record)
  ours.write_bytes(b"".join(map(tfrecord.frame, records)))
  assert ours.read_bytes() == theirs.read_bytes()
  assert list(tf.data.TFRecordDataset(str(ours)).as_numpy_iterator()) == records
  with open(theirs, "rb") as file:
    assert list(tfrecord.read(file)) == records


@pytest.mark.parametrize("at", range(0, 40, 3))
def test_a_flipped_bit_or_an_early_end_anywhere_is_seen(at):
  whole = tfrecord.frame(b"0123456789") + tfrecord.frame(b"abc")
  flipped = bytearray(whole)
  flipped[at] ^= 16
  for bad in (bytes(flipped), whole[: at + 1]):
    with pytest.raises(tfrecord.DamagedError):
      list(tfrecord.read(io.BytesIO(bad)))


@pytest.mark.parametrize("num_shards", [1, 2, 3, 8, 1000])
def test_shards_are_ranges_of_keys_that_meet(num_shards):
  assert order.first_key(0, num_shards) == 0
  assert order.first_key(num_shards, num_shards) == 2**64
  for shard in range(num_shards):
    first = order.first_key(shard, num_shards)
    last = order.first_key(shard + 1, num_shards) - 1
    assert order.shard_of(first, num_shards) == shard
    assert order.shard_of(last, num_shards) == shard


def test_keys_depend_on_the_seed_and_are_no_order_of_ids():
  keys = [order.shuffle_key(0, str(i)) for i in range(1000)]
  assert sorted(keys) != keys
  assert len(set(keys)) == 1000
  assert 400 < sum(key < 2**63 for key in keys) < 600
  assert order.shuffle_key(1, "0") != keys[0]
  # Other keys would be other bytes from the same input.
  assert keys[0] == 0x2BC42E553A894A51


def test_records_are_made_without_anything_heavy():
  code = (
    "import sys, commentree.tasks.dataset_files.tree_record,"
    " commentree.tasks.dataset_files.tfrecord, commentree.tasks.building.order;"
    " print([m for m in ('tensorflow', 'tensorflow_datasets', 'seqio', 'jax')"
    " if m in sys.modules])"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == "[]"
