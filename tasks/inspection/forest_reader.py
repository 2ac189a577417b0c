"""Forests read back into what a person can follow."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from commentree.tasks.config.objective import (
  LANGUAGE_FEATURES,
  PREFIXES,
  TARGET_NUMBERS,
)
from commentree.tasks.config.preprocessing import SEQUENCE_ENDS
from commentree.tasks.forests.pack_items import PackItem
from commentree.tasks.forests.packing import Fill, Forest
from commentree.tasks.inspection.views import (
  AncestorView,
  BlockView,
  ForestView,
  PartView,
  TokenKind,
  TokenView,
)
from commentree.tasks.objectives import label_objectives

if TYPE_CHECKING:
  from commentree.tasks.tree_task import TreeTask

# Tokens in front of another that tell how it joins them.
_READ_BEFORE = 4


@dataclasses.dataclass(frozen=True)
class ForestEntry:
  """A measured subtree.

  Attributes:
    item: the subtree.
    tree: index of its tree among those shown; None if it only fills the forest up.
    number: its place among all subtrees, in order of the trees.
  """

  item: PackItem
  tree: int | None
  number: int


class ForestReader:
  """Reads forests back, as the task's objective made them."""

  def __init__(self, task: TreeTask):
    """Takes the task that the forests are of."""
    self._tokenizer = task.tokenizer
    self._texts = task.tokenizer.texts
    self._maskable = task.tokenizer.maskable
    self._mask_id = task.tokenizer.mask_id
    self._objective = task.preprocessing.objective
    self._has_ends = task.preprocessing.subtrees.sequence_ends
    self._numbers = task.preprocessing.comment_numbers
    self._labels = label_objectives.label_names(task.preprocessing)
    # Parts of each (tree, comment), with their subtree's number.
    self._parts: dict[tuple[int, int], list[tuple[int, PartView]]] = (
      collections.defaultdict(list)
    )

  def parts(self, tree: int, comment: int) -> tuple[PartView, ...]:
    """Parts of a comment as a target, in the forests read so far, in its order."""
    found = sorted(self._parts[tree, comment], key=lambda part: part[0])
    return tuple(part for _, part in found)

  def read(self, number: int, entries: list[ForestEntry], forest: Forest) -> ForestView:
    """Returns the forest's blocks; notes the parts of comments that are shown."""
    targets = _owners(entries, [entry.item.targets for entry in entries])
    encoded = _owners(entries, [entry.item.encoded for entry in entries])
    decoder = _blocks(forest["decoder_segment_ids"], targets)
    answers = _answers(forest)
    numbers = [e.number for e in entries for _ in e.item.targets]
    for block in decoder:
      if block.tree is None:
        continue
      slot = block.slot - 1
      ancestors = tuple(
        AncestorView(encoded[seen - 1][1], distance, seen)
        for seen, distance in zip(
          forest["ancestor_slots"][slot].tolist(),
          forest["ancestor_distances"][slot].tolist(),
        )
        if seen
      )
      columns = slice(block.column, block.column + block.length)
      own = answers[block.row, columns]
      read = forest["decoder_input_tokens"][block.row, columns]
      in_place = self._objective.name in ("mlm", "tlm")
      predicted: tuple[TokenView, ...] = ()
      if self._objective.name == "regress":
        predicted = self._number(forest[TARGET_NUMBERS][slot])
      elif not in_place:
        predicted = self._predicted(read, own)
      part = PartView(
        number,
        block.slot,
        block.row,
        block.column,
        self.tokens(read, own if in_place else None),
        ancestors,
        shown=self._count_shown(read, own),
        number_predicted=int((own >= 0).sum()),
        predicted=predicted,
        breaks=self._breaks(forest, block),
      )
      self._parts[block.tree, block.comment].append((numbers[slot], part))
    fill = Fill()
    fill.add(forest)
    return ForestView(
      decoder=decoder,
      encoder=_blocks(forest["encoder_segment_ids"], encoded),
      masked=int(np.count_nonzero(forest["decoder_loss_weights"])),
      fill=fill,
    )

  def tokens(
    self, read: Sequence[int] | np.ndarray, answers: np.ndarray | None = None
  ) -> tuple[TokenView, ...]:
    """Tokens from ids.

    Args:
      read: what the model reads.
      answers: what is to be predicted in their places, -1 where nothing is.
    """
    ids = np.asarray(read).tolist()
    hidden = [-1] * len(ids) if answers is None else answers.tolist()
    whole = [seen if answer < 0 else answer for answer, seen in zip(hidden, ids)]
    apart = {place for place, answer in enumerate(hidden) if answer >= 0}
    views = []
    for place, written in enumerate(self._texts.shown(whole, apart)):
      seen, answer = ids[place], hidden[place]
      kind: TokenKind = "plain" if self._maskable[seen] else "marker"
      if answer >= 0:
        kind = "random"
        if seen == self._mask_id:
          kind = "masked"
        elif seen == answer:
          kind = "kept"
      shown = self._in_place(whole, place, seen) if kind == "random" else written
      if kind == "masked":
        shown = self._tokenizer.id_to_piece(seen)
      views.append(TokenView(written, shown, kind))
    return tuple(views)

  def _in_place(self, ids: Sequence[int], place: int, token_id: int) -> str:
    """What is shown of a token that is read in another's place."""
    before = ids[max(0, place - _READ_BEFORE) : place]
    return self._texts.shown([*before, token_id], {len(before)})[-1]

  def _number(self, learnt: np.floating) -> tuple[TokenView, ...]:
    """The number to predict, as the data has it and as it is learnt."""
    shown = f" {self._numbers.restored(float(learnt)):.6g}"
    if not self._numbers.keeps_numbers:
      shown += f" (learnt as {learnt:.4g})"
    return (TokenView(shown, shown, "plain"),)

  def _predicted(self, read: np.ndarray, answers: np.ndarray) -> tuple[TokenView, ...]:
    """What is predicted, in order; of labels, those that say something."""
    if not self._labels:
      return self.tokens(answers[answers >= 0])
    labels = [self._labels[answer] for answer in answers[answers >= 0].tolist()]
    if self._objective.name == "tag":
      texts = self._texts.shown(read)
      places = np.flatnonzero(answers >= 0).tolist()
      labels = [
        f"{texts[place].strip()}/{label}"
        for place, label in zip(places, labels)
        # Of a character of several tokens the first is shown, with its label.
        if label != label_objectives.OUTSIDE and texts[place]
      ]
    return tuple(TokenView(f" {label}", f" {label}", "plain") for label in labels)

  def _count_shown(self, read: np.ndarray, answers: np.ndarray) -> int:
    """Tokens of the comment itself that a target reads or predicts."""
    name = self._objective.name
    if name == "clm":
      words = len(read) - int(answers[-1] == self._tokenizer.end_id)
      return words + SEQUENCE_ENDS * self._has_ends
    if name == "span_corruption":
      sentinels = self._tokenizer.sentinels
      seen = np.append(read[answers < 0], answers[answers >= 0])
      return int((~np.isin(seen, sentinels)).sum())
    return len(read)

  def _breaks(self, forest: Forest, block: BlockView) -> tuple[tuple[int, str], ...]:
    """Columns of a target in front of which something begins, and what that is."""
    if self._objective.name == "span_corruption":
      return ((int(forest[PREFIXES][block.slot - 1]), "‖"),)
    if LANGUAGE_FEATURES[1] not in forest:
      return ()
    columns = slice(block.column, block.column + block.length)
    languages = forest[LANGUAGE_FEATURES[1]][block.row, columns]
    begins = np.flatnonzero(np.diff(languages, prepend=0))
    names = ("no language", *self._objective.languages)
    return tuple((int(at), f"{names[languages[at]]}:") for at in begins)


def _owners(
  entries: list[ForestEntry], nodes: list[np.ndarray]
) -> list[tuple[int | None, int]]:
  """The (tree, comment) of each slot, in the order in which slots are numbered."""
  return [
    (entry.tree, comment)
    for entry, own in zip(entries, nodes)
    for comment in np.asarray(entry.item.subtree["node_ids"])[own].tolist()
  ]


def _answers(forest: Forest) -> np.ndarray:
  """What is to be predicted at each position, -1 where nothing is: int32 [Rd, Ld]."""
  answers = np.full_like(forest["decoder_input_tokens"], -1)
  group, used = np.nonzero(forest["decoder_loss_weights"])
  positions = forest["decoder_masked_positions"][group, used]
  by_group = answers.reshape(len(forest["decoder_loss_weights"]), -1)
  by_group[group, positions] = forest["decoder_target_tokens"][group, used]
  return answers


def _blocks(
  segments: np.ndarray, owners: list[tuple[int | None, int]]
) -> tuple[BlockView, ...]:
  """Where each segment stands in the rows, by slot."""
  rows, columns = np.nonzero(segments)
  slots, first, lengths = np.unique(
    segments[rows, columns], return_index=True, return_counts=True
  )
  return tuple(
    BlockView(slot, row, column, length, *owners[slot - 1])
    for slot, row, column, length in zip(
      slots.tolist(), rows[first].tolist(), columns[first].tolist(), lengths.tolist()
    )
  )
