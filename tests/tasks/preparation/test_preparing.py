"""Prepared subtrees are known by all that shapes them."""

from __future__ import annotations

import dataclasses
import types

from commentree.tasks.config.preprocessing import PreprocessingConfig
from commentree.tasks.preparation import preparing, records


def key(preprocessing):
  """The key of the subtrees of a task that needs neither files nor vocabulary."""
  builder = types.SimpleNamespace(preprocessing=preprocessing, phrases=())
  task = types.SimpleNamespace(
    subtree_builder=lambda: builder,
    tree_source=types.SimpleNamespace(signature=lambda split: {"split": split}),
    tokenizer=types.SimpleNamespace(fingerprint="f"),
  )
  return records.fingerprint(preparing.settings(task, "train"))


def test_an_added_setting_shapes_subtrees_unless_it_is_named_as_one_that_does_not():
  @dataclasses.dataclass(frozen=True)
  class Added(PreprocessingConfig):
    added: int = 0

  assert key(Added()) != key(Added(added=1))


def test_what_applies_when_subtrees_are_read_does_not_prepare_them_again():
  plain = PreprocessingConfig()
  masking = dataclasses.replace(plain.masking, rate=0.5)
  cleaning = dataclasses.replace(plain.cleaning, urls=False)
  trees = dataclasses.replace(plain.trees, target_post=True)
  assert key(plain) == key(dataclasses.replace(plain, masking=masking))
  assert key(plain) != key(dataclasses.replace(plain, cleaning=cleaning))
  assert key(plain) != key(dataclasses.replace(plain, trees=trees))
