"""Trees as the model sees them, as plain data for people to look at.

A few trees of a task go through the very code of a run: cleaned, tokenised, split,
masked, packed into forests. What comes out is read back from the forests' arrays, so
that what is shown is what a model would get. Rendering is elsewhere (see
`terminal` and `html_page`).
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from commentree.errors import UserError
from commentree.tasks.forests import forest_layout, packing
from commentree.tasks.forests.forest_layout import ForestShape, SubtreeTotals
from commentree.tasks.forests.pack_items import PackItem
from commentree.tasks.forests.packing import Fill, Forest, ForestBuilder
from commentree.tasks.inspection import labelled_text
from commentree.tasks.inspection.forest_reader import ForestEntry, ForestReader
from commentree.tasks.inspection.views import (
  CommentView,
  Inspection,
  InspectionConfig,
  TreeView,
)
from commentree.tasks.subtrees.subtree_builder import Subtree, target_lengths
from commentree.tasks.trees import cleaning, copied_quotations, markers

if TYPE_CHECKING:
  from commentree.tasks.subtrees.subtree_builder import SubtreeBuilder
  from commentree.tasks.tree_task import TreeTask
  from commentree.tasks.trees.comment_tree import CommentTree

# Texts can have a million characters; a page should not.
_MAX_CHARACTERS = 2000
_MAX_COMPARED_WORDS = 400
# Further trees are read until they could fill a forest so many times over.
_FILLING = 4.0
_MIN_FILLING_SUBTREES = 64
# Weight of filling both sides alike when forests are filled up.
_BALANCE = 4.0


@dataclasses.dataclass(frozen=True)
class _Shown:
  """A tree to be shown.

  Attributes:
    tree: the tree.
    order: indices of the comments to show, depth first.
    subtrees: number of subtrees.
    masked: masked subtrees: those with a target to show, and a few others.
    encoded: all tokens of each comment to show, the author's marker in front.
  """

  tree: CommentTree
  order: list[int]
  subtrees: int
  masked: list[Subtree]
  encoded: list[np.ndarray]

  def shows(self, item: PackItem) -> bool:
    """Whether a target of the item is a comment to show."""
    targets = np.asarray(item.subtree["node_ids"])[item.targets]
    return bool(np.isin(targets, self.order).any())


def inspect_trees(task: TreeTask, config: InspectionConfig) -> Inspection:
  """Takes trees through the pipeline of a run; reads no more than it needs.

  Raises:
    UserError: if there is no such tree.
  """
  builder = task.subtree_builder()
  objective = task.objective()
  encoder_length, decoder_length = forest_layout.row_lengths(config.lengths)
  numbers = itertools.count()  # of the subtrees, as a run numbers them: masks go by it

  def masked_subtrees(tree: CommentTree) -> Iterator[Subtree]:
    for subtree, number in zip(builder(tree), numbers):
      yield objective(subtree, decoder_length, config.seed, config.epoch, number)

  def pass_over(tree: CommentTree) -> None:
    collections.deque(zip(builder(tree), numbers), maxlen=0)

  source = task.tree_source.trees(config.split)
  shown = [
    _show(tree, masked_subtrees(tree), config.max_comments, builder)
    for tree in _choose(task, config, source, pass_over)
  ]

  capacity = config.layout.decoder_rows * decoder_length
  others: list[Subtree] = []
  lacking, ran_out = _FILLING * capacity, True
  for subtree in itertools.chain.from_iterable(map(masked_subtrees, source)):
    others.append(subtree)
    lacking -= int(target_lengths(subtree, decoder_length).sum())
    enough = lacking <= 0 and len(others) >= _MIN_FILLING_SUBTREES
    if enough or len(others) >= config.layout.lookahead:
      ran_out = False
      break

  subtrees = [*itertools.chain.from_iterable(s.masked for s in shown), *others]

  def totals(shape: ForestShape | None) -> SubtreeTotals:
    return packing.total(
      subtrees,
      (encoder_length, decoder_length),
      config.layout.max_ancestors,
      objective.most_masked(decoder_length),
      shape,
    )

  def choose(found: SubtreeTotals) -> ForestShape:
    return forest_layout.resolve(
      config.layout, config.lengths, found, objective.optional_features
    )

  shape, _ = forest_layout.fit(choose, totals(None), totals)

  ordinals = itertools.count()

  def entries(subtrees: Iterable[Subtree], tree: int | None) -> list[ForestEntry]:
    return [
      ForestEntry(item, tree, next(ordinals))
      for subtree in subtrees
      for item in packing.fitting_items(subtree, shape)
    ]

  wanted: list[ForestEntry] = []
  filling = entries(others, None)
  for number, one in enumerate(shown):
    for entry in entries(one.masked, number):
      (wanted if one.shows(entry.item) else filling).append(entry)
  packed = _pack(wanted, filling, shape)
  fill = Fill()
  for _, forest in packed:
    fill.add(forest)
  reader = ForestReader(task)
  views = tuple(reader.read(i, *each) for i, each in enumerate(packed))
  cleaned: collections.Counter[str] = collections.Counter()
  trees = tuple(
    _tree_view(one, builder, reader, number, config, cleaned)
    for number, one in enumerate(shown)
  )
  items = [entry.item for taken, _ in packed for entry in taken]
  return Inspection(
    task=task.name,
    objective=task.preprocessing.objective.name,
    config=config,
    shape=shape,
    trees=trees,
    forests=views,
    fill=fill,
    row_each={
      "decoder": _mean([i.target_lengths for i in items]) / decoder_length,
      "encoder": _mean([i.encoded_lengths for i in items]) / encoder_length,
    },
    ran_out=ran_out and fill.decoder < 0.9,
    cleaned={kind: number for kind, number in cleaned.most_common() if number},
    read_counts=_fates(task),
  )


def _choose(
  task: TreeTask,
  config: InspectionConfig,
  source: Iterator[CommentTree],
  pass_over: Callable[[CommentTree], None],
) -> Iterator[CommentTree]:
  """Yields the trees asked for, from a source that may be used on behind them."""
  reached, skipped, found = config.tree_id is None, 0, 0
  for tree in source:
    reached = reached or tree.id == config.tree_id
    if reached and skipped == config.skip:
      found += 1
      yield tree
      if found == config.count:
        return
    else:
      skipped += reached
      pass_over(tree)  # its subtrees have numbers, which those of later trees follow
  if found:
    return
  where = f"split {config.split!r} of the task {task.name!r}"
  if not reached:
    raise UserError(
      f"--tree_id={config.tree_id}: no such tree in {where}; it may be in the other"
      " --split"
    )
  if skipped:
    raise UserError(
      f"--skip={config.skip}: passes over all there is in {where}, {skipped} trees"
    )
  reasons = ", ".join(
    f"{number} {what} {fate}"
    for what, fate, number in _fates(task)
    if not fate.startswith(("kept", "read"))
  )
  raise UserError(
    f"no trees in {where}"
    + (f" ({reasons})" if reasons else "")
    + "; try the other --split, or look at the files"
  )


def _show(
  tree: CommentTree,
  subtrees: Iterator[Subtree],
  max_comments: int,
  builder: SubtreeBuilder,
) -> _Shown:
  order = depth_first(tree.children(), max_comments)
  kept = []
  number = others = 0
  for subtree in subtrees:
    number += 1
    targets = np.asarray(subtree["node_ids"])[subtree["is_target"] == 1]
    shows = bool(np.isin(targets, order).any())
    if shows or others < _MIN_FILLING_SUBTREES:
      kept.append(subtree)
      others += not shows
  encoded, _ = builder.encode(tree)
  return _Shown(tree, order, number, kept, [encoded[index] for index in order])


def depth_first(children: Sequence[Sequence[int]], limit: int) -> list[int]:
  """The first `limit` nodes in depth-first order; every node's parent is among them."""
  order: list[int] = []
  waiting = [0] if children else []
  while waiting and len(order) < limit:
    node = waiting.pop()
    order.append(node)
    waiting += reversed(children[node])
  return order


def _pack(
  entries: list[ForestEntry], filling: list[ForestEntry], shape: ForestShape
) -> list[tuple[list[ForestEntry], Forest]]:
  """Puts entries into as few forests as may be, and what fills these up behind them."""
  packed = []
  while entries:
    builder = ForestBuilder(shape)
    taken: list[ForestEntry] = []
    left: list[ForestEntry] = []
    for entry in entries:
      (taken if builder.add(entry.item) else left).append(entry)
    entries = left
    waiting, filling = filling, []
    while waiting:
      room = [_room_beside(entry.item, builder, shape) for entry in waiting]
      entry = waiting.pop(room.index(min(room)))
      (taken if builder.add(entry.item) else filling).append(entry)
    packed.append((taken, builder.build()))
  return packed


def _room_beside(item: PackItem, builder: ForestBuilder, shape: ForestShape) -> float:
  """How much room an item would leave, and how unequally on the two sides.

  What `packing.Packer` goes by, which would spread the trees shown over many forests.
  """
  left = builder.left[:2].tolist()
  decoder = (left[0] - item.sizes[0]) / (shape.decoder_rows * shape.decoder_length)
  encoder = (left[1] - item.sizes[1]) / (shape.encoder_rows * shape.encoder_length)
  if decoder < 0 or encoder < 0:
    return math.inf
  return decoder**2 + encoder**2 + _BALANCE * (decoder - encoder) ** 2


def _tree_view(
  one: _Shown,
  builder: SubtreeBuilder,
  reader: ForestReader,
  number: int,
  config: InspectionConfig,
  cleaned: collections.Counter[str],
) -> TreeView:
  tree, depths = one.tree, one.tree.depths()
  children = tree.children()
  last = {siblings[-1] for siblings in children if siblings} | {0}
  author_markers = markers.author_markers(tree, builder.preprocessing.markers)
  limit = min(
    builder.preprocessing.subtrees.max_comment_tokens, config.lengths["encoder"]
  )
  every = copied_quotations.clean_tree(tree, builder.preprocessing.cleaning)
  comments = []
  for index, encoded in zip(one.order, one.encoded):
    comment = tree.comments[index]
    parts = reader.parts(number, index)
    cleaning.clean_text(
      comment.text, builder.preprocessing.cleaning, cleaned
    )  # for its counts
    cleaned[copied_quotations.COPIED] += len(every[index].cuts)
    clean = every[index].text
    context = encoded[: 0 if parts else limit]
    kept = sum(part.shown for part in parts) or len(context)
    comments.append(
      CommentView(
        index=index,
        id=comment.id,
        parent=comment.parent,
        depth=depths[index],
        is_last=index in last,
        replies=len(children[index]),
        author=comment.author,
        marker=author_markers[index],
        raw=comment.text[:_MAX_CHARACTERS],
        clean=clean[:_MAX_CHARACTERS],
        left_out=max(0, len(comment.text) - _MAX_CHARACTERS),
        changes=compare(comment.text, clean),
        tokens_cut=len(encoded) - kept,
        context=reader.tokens(context),
        parts=parts,
        labelled=labelled_text.cut(comment.text, comment.spans, _MAX_CHARACTERS),
        label=comment.label,
        reply_deleted=comment.reply_deleted,
        language=comment.language,
        translated=comment.translation.language if comment.translation else None,
      )
    )
  return TreeView(
    id=tree.id,
    size=len(tree.comments),
    max_depth=max(depths),
    subtrees=one.subtrees,
    comments=tuple(comments),
  )


def compare(raw: str, clean: str) -> tuple[tuple[str, str], ...]:
  """What cleaning did to the beginning of a text, word by word.

  Returns:
    (operation, text) pairs, the operation being 'equal', 'delete' or 'insert'; none
    if the words are the same.
  """
  before = raw[:_MAX_CHARACTERS].split()[:_MAX_COMPARED_WORDS]
  after = clean[:_MAX_CHARACTERS].split()[:_MAX_COMPARED_WORDS]
  steps = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
  cut_off = len(raw) > _MAX_CHARACTERS or len(before) == _MAX_COMPARED_WORDS
  if cut_off and steps[-1:] and steps[-1][0] != "equal":
    # The two are not cut at the same word, which looks like a change.
    steps.pop()
  if all(operation == "equal" for operation, *_ in steps):
    return ()
  changes = []
  for operation, i, j, k, m in steps:
    if operation == "equal":
      changes.append(("equal", " ".join(before[i:j])))
      continue
    if i < j:
      changes.append(("delete", " ".join(before[i:j])))
    if k < m:
      changes.append(("insert", " ".join(after[k:m])))
  return tuple(changes)


def _mean(lengths: list[np.ndarray]) -> float:
  joined = np.concatenate([np.zeros(0), *lengths])
  return float(joined.mean()) if len(joined) else 0.0


def _fates(task: TreeTask) -> tuple[tuple[str, str, int], ...]:
  """The source's counts, if it keeps any."""
  read_counts = task.tree_source.read_counts
  return tuple(
    (field.name, fate, number)
    for field in dataclasses.fields(read_counts)
    for fate, number in getattr(read_counts, field.name).most_common()
  )
