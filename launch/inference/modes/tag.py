"""`tag`: labelled parts of comments, by their places in the texts as given."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from commentree.launch.inference import forests
from commentree.launch.inference.devices import Compute
from commentree.launch.inference.documents import EMPTY, TokenizedTree
from commentree.launch.inference.forests import PackedForest
from commentree.launch.inference.modes.base import Answer, Mode, rounded
from commentree.launch.inference.run_context import RunContext
from commentree.models.config import Condition
from commentree.models.model import CommentTreeModel
from commentree.tasks.forests.forest_layout import ForestShape
from commentree.tasks.forests.pack_items import PackItem
from commentree.tasks.objectives import label_objectives
from commentree.tasks.objectives.label_objectives import OUTSIDE
from commentree.tasks.subtrees import spans
from commentree.tasks.trees.comment_tree import CommentTree
from commentree.tasks.trees.copied_quotations import CleanText

_BEGINNING = "B-"


@dataclasses.dataclass(frozen=True, eq=False)
class TaggedDocument(TokenizedTree):
  """A tree and the labels of its tokens.

  Attributes:
    clean: each comment's text, cleaned.
    offsets: of each comment's tokens in that; those of the author's marker are below 0.
    labels: of each token in all nodes, by number; 0 where none was predicted.
    probabilities: of those.
  """

  clean: list[CleanText]
  offsets: list[np.ndarray]
  labels: np.ndarray
  probabilities: np.ndarray


class Tag(Mode[TaggedDocument]):
  """The spans of each comment that have a label."""

  name = "tag"

  def __init__(self, run: RunContext, ancestors: Condition = "true"):
    """Sets up."""
    super().__init__(run, ancestors)
    self._names = label_objectives.label_names(
      run.config.data.preprocessing, run.config.data.objective_names[0]
    )

  def make_shape(self) -> ForestShape:
    """Returns what forests hold: every token has a label."""
    return self.shape_of(self.run.decoder_length)

  def read(self, tree: CommentTree) -> TaggedDocument:
    """Makes a document of a tree."""
    builder = self.run.builder
    clean = builder.clean(tree)
    texts = builder.texts(tree, clean)
    encoded, offsets = [], []
    for text, (own, *_), (ids, places) in zip(
      texts, clean, builder.encode_texts_with_offsets(texts)
    ):
      # `texts` has the author's marker in front, and no white space at its ends.
      left_out = len(own) - len(own.lstrip())
      encoded.append(ids)
      offsets.append(places - (len(text) - len(own.strip()) - left_out))
    document = TaggedDocument.of(
      tree,
      encoded,
      builder,
      clean=clean,
      offsets=offsets,
      labels=np.empty(0, np.int32),
      probabilities=np.empty(0),
    )
    tokens = len(document.nodes["tokens"])
    return dataclasses.replace(
      document, labels=np.zeros(tokens, np.int32), probabilities=np.zeros(tokens)
    )

  def items(self, document: TaggedDocument) -> Iterator[PackItem]:
    """Yields every comment once."""
    builder, nodes = self.run.builder, document.subtree()
    for subtree in forests.cut(
      nodes, nodes["lengths"] > 0, builder.preprocessing.subtrees
    ):
      shown = forests.columns(subtree["lengths"]) < self.run.decoder_length
      shown &= ~builder.is_end(subtree["tokens"])
      subtree["input_tokens"] = subtree["tokens"]
      subtree["is_masked"] = shown.astype(np.int32)
      yield from forests.items_of(subtree, self.shape)

  def compute(self, model: CommentTreeModel) -> Compute:
    """Returns labels and their log probabilities, `[B, G, M]`."""

    def compute(params: Any, batch: Any) -> Any:
      labels, beside = model.predict_batch_with_aux(params, self.hide(batch))
      return labels, beside["scores"]

    return compute

  def collect(self, arrays: Any, filled: PackedForest) -> None:
    """Takes in the labels of a forest."""
    labels, log_probs = arrays
    for row, column, target, position in filled.predicted():
      document, node = filled.targets[target]
      place = document.start_of(node) + position
      document.labels[place] = labels[row, column]
      document.probabilities[place] = np.exp(np.float64(log_probs[row, column]))

  def answers(self, document: TaggedDocument) -> list[Answer]:
    """Returns `spans` of each comment."""
    found: list[Answer] = []
    counts = np.bincount(
      document.nodes["node_ids"], document.nodes["lengths"], len(document.clean)
    ).astype(int)
    ends = np.cumsum(counts).tolist()
    for comment, (count, end) in enumerate(zip(counts.tolist(), ends)):
      if not count:
        found.append({"spans": None, "why": EMPTY})
        continue
      own = slice(end - count, end)
      words = ~self.run.builder.is_end(document.nodes["tokens"][own])
      names = [self._names[label] for label in document.labels[own][words].tolist()]
      answer: Answer = {
        "spans": self._spans(
          document.tree.comments[comment].text,
          document.clean[comment],
          document.offsets[comment][:count][words],
          names,
          document.probabilities[own][words],
        )
      }
      if cut := int(document.tokens_cut[comment]):
        answer["tokens_cut"] = cut
      found.append(answer)
    return found

  def _spans(
    self,
    text: str,
    clean: CleanText,
    offsets: np.ndarray,
    names: Sequence[str],
    probabilities: np.ndarray,
  ) -> list[Answer]:
    chunks = spans_of(names)
    if not chunks:
      return []
    words = spans.words_through_cleaning(
      text, clean.whole, self.run.builder.preprocessing.cleaning, clean.cuts
    )
    found: list[Answer] = []
    for first, behind, label in chunks:
      places = offsets[first:behind]
      visible = places[(places[:, 0] >= 0) & (places[:, 0] < places[:, 1])]
      if not len(visible):
        continue
      begins, ends = int(visible[0, 0]), int(visible[-1, 1])
      place = as_given(begins, ends, clean.text, text, words)
      start, end = place or (None, None)
      found.append(
        {
          "start": start,
          "end": end,
          "label": label,
          "score": rounded(float(probabilities[first:behind].mean())),
          "text": clean.text[begins:ends] if end is None else text[start:end],
        }
      )
    return found


def spans_of(names: Sequence[str]) -> list[tuple[int, int, str]]:
  """Returns first token, the one behind the last, and label of each span.

  A span begins at a `B-`, or at an `I-` that continues nothing, as in seqeval.
  """
  found: list[tuple[int, int, str]] = []
  for number, name in enumerate(names):
    if name == OUTSIDE:
      continue
    label = name.partition("-")[2]
    goes_on = (
      not name.startswith(_BEGINNING) and found and found[-1][1:] == (number, label)
    )
    if goes_on:
      found[-1] = (found[-1][0], number + 1, label)
    else:
      found.append((number, number + 1, label))
  return found


def as_given(
  start: int,
  end: int,
  clean: str,
  text: str,
  words: Sequence[tuple[tuple[int, int], tuple[int, int]]],
) -> tuple[int, int] | None:
  """Returns where a part of a cleaned text is in the text as given.

  Args:
    start: of the part.
    end: of the part.
    clean: the cleaned text.
    text: as given.
    words: see `spans.words_through_cleaning`.

  Returns:
    Start and end, or None if it is nowhere. Inside of a word that cleaning changed
    they are the word's.
  """
  inside = [pair for pair in words if pair[1][0] < end and pair[1][1] > start]
  if not inside:
    return None
  first, last = inside[0], inside[-1]
  begins, ends = first[0][0], last[0][1]
  if clean[slice(*first[1])] == text[slice(*first[0])]:
    begins += max(0, start - first[1][0])
  if clean[slice(*last[1])] == text[slice(*last[0])]:
    ends -= max(0, last[1][1] - end)
  return begins, ends
