"""`score`: how likely comments are, with the comments above them and without.

A model of masked tokens gives the pseudo-log-likelihood: each token's log probability
where it alone is masked (Salazar, Liang, Nguyen and Kirchhoff, "Masked Language Model
Scoring", 2020). A causal one gives the log-likelihood. The difference is what a thread
explains of a comment, in nats; `attribution` shares it out to the ancestors.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np

from commentree.launch.inference import forests
from commentree.launch.inference.devices import Compute
from commentree.launch.inference.documents import EMPTY, TokenizedTree
from commentree.launch.inference.forests import PackedForest
from commentree.launch.inference.modes.base import Answer, Mode, rounded
from commentree.launch.inference.run_context import RunContext
from commentree.models.attribution import leave_one_out
from commentree.models.config import Condition
from commentree.models.model import CommentTreeModel
from commentree.tasks.forests.forest_layout import ForestShape
from commentree.tasks.forests.pack_items import PackItem
from commentree.tasks.subtrees import splitting
from commentree.tasks.subtrees.subtree_builder import Subtree
from commentree.tasks.trees.comment_tree import CommentTree

_NO_TOKEN = "no token that the model predicts"


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredDocument(TokenizedTree):
  """A tree and the sums over its comments.

  Attributes:
    sums: of each comment, log probabilities with ancestors and without, nats, and the
      tokens they are of. float64 [comments, 3]
    without: of each comment, by an ancestor that it sees, the hops to that and what
      the loss of its tokens is without it more than with it, summed, nats.
  """

  sums: np.ndarray
  without: dict[int, dict[int, tuple[int, float]]]


class Score(Mode[ScoredDocument]):
  """How likely each comment is; subclasses say what is predicted of what."""

  name = "score"

  def __init__(
    self, run: RunContext, ancestors: Condition = "true", *, attribution: bool = False
  ):
    """Sets up.

    Args:
      run: what is known of the run.
      ancestors: which ancestors comments see.
      attribution: whether to tell how much each of them counts.
    """
    super().__init__(run, ancestors)
    self.attribution = attribution

  @property
  def program_key(self) -> Hashable:
    """Equal for modes of one run with the same computation."""
    return super().program_key, self.attribution

  def read(self, tree: CommentTree) -> ScoredDocument:
    """Makes a document of a tree."""
    sums = np.zeros((len(tree.comments), 3))
    return ScoredDocument.read(tree, self.run.builder, sums=sums, without={})

  def compute(self, model: CommentTreeModel) -> Compute:
    """Returns the loss of each predicted token `[B, R, M]`, with and without.

    With attribution also without each ancestor in turn, `[B, A, R, M]`.
    """

    def compute(params: Any, batch: Any) -> Any:
      found = [
        model.evaluate_batch(params, batch, condition)["nll"]
        for condition in (self.ancestors, "none")
      ]
      if self.attribution:
        found.append(leave_one_out(model, params, batch, self.ancestors))
      return found

    return compute

  def collect(self, arrays: Any, filled: PackedForest) -> None:
    """Takes in the losses of a forest."""
    with_ancestors, without, *left_out = arrays
    for row, column, target, _ in filled.predicted():
      document, node = filled.targets[target]
      loss = float(with_ancestors[row, column])
      comment = document.comment_of(node)
      document.sums[comment] += (-loss, -float(without[row, column]), 1)
      if not left_out:
        continue
      of_comment = document.without.setdefault(comment, {})
      for ancestor, (hops, place) in self._seen(filled, target).items():
        _, before = of_comment.get(ancestor, (hops, 0.0))
        more = float(left_out[0][place, row, column]) - loss
        of_comment[ancestor] = hops, before + more

  def _seen(self, filled: PackedForest, target: int) -> dict[int, tuple[int, int]]:
    """Returns the comments above a target that it sees, nearest first.

    Each with the hops to it and its first place in `ancestor_slots`.
    """
    document, _ = filled.targets[target]
    slots = filled.forest["ancestor_slots"][target].tolist()
    distances = filled.forest["ancestor_distances"][target].tolist()
    farthest = {"none": 0, "parent_only": 1}.get(self.ancestors, math.inf)
    found: dict[int, tuple[int, int]] = {}
    for place, (slot, hops) in enumerate(zip(slots, distances)):
      # No hops: an earlier chunk of the target's own comment.
      if slot and 0 < hops <= farthest:
        _, node = filled.slots[slot - 1]
        found.setdefault(document.comment_of(node), (hops, place))
    return found

  def answers(self, document: ScoredDocument) -> list[Answer]:
    """Returns log-likelihoods of each comment and their difference, in nats."""
    found: list[Answer] = []
    rows = zip(
      document.is_empty().tolist(), document.sums.tolist(), document.tokens_cut.tolist()
    )
    for comment, (empty, sums, cut) in enumerate(rows):
      given, without, tokens = sums
      if tokens:
        answer: Answer = {
          "log_likelihood": rounded(given),
          "without_ancestors": rounded(without),
          "difference": rounded(given - without),
          "tokens": int(tokens),
        }
        if cut:
          answer["tokens_cut"] = cut
      else:
        names = ("log_likelihood", "without_ancestors", "difference")
        answer = {**dict.fromkeys(names), "tokens": 0}
        answer["why"] = EMPTY if empty else _NO_TOKEN
      if self.attribution:
        answer["ancestors"] = [
          {
            "comment": document.tree.comments[ancestor].id,
            "distance": hops,
            "nats_per_token": rounded(nats / tokens),
          }
          for ancestor, (hops, nats) in document.without.get(comment, {}).items()
        ]
      found.append(answer)
    return found

  @abc.abstractmethod
  def items(self, document: ScoredDocument) -> Iterator[PackItem]:
    """Yields comments and what is predicted of them."""


class PseudoLikelihood(Score):
  """Of a model of masked tokens: each token is masked in turn."""

  def make_shape(self) -> ForestShape:
    """Returns what forests hold: a token to predict in every copy of a comment."""
    return self.shape_of(max(8, self.run.decoder_length // 4), encoded_share=0.2)

  def items(self, document: ScoredDocument) -> Iterator[PackItem]:
    """Yields every comment as often as it has tokens."""
    nodes = document.subtree()
    max_ancestors = self.run.builder.preprocessing.subtrees.max_ancestors
    visible = splitting.visible_ancestors(nodes["parents"], max_ancestors)
    starts = np.cumsum(nodes["lengths"]) - nodes["lengths"]
    for node in range(len(starts)):
      seen = visible[node]
      above = [i for i in seen[::-1].tolist() if i >= 0 and nodes["lengths"][i]]
      subtree = self._copies(nodes, starts, node, above)
      if subtree is not None:
        yield from forests.items_of(subtree, self.shape)

  def _copies(
    self, nodes: Subtree, starts: np.ndarray, node: int, above: list[int]
  ) -> Subtree | None:
    """Returns a subtree of a node's ancestors and copies of it, each with a mask."""
    tokenizer = self.run.tokenizer

    def tokens_of(which: int) -> np.ndarray:
      return nodes["tokens"][starts[which] : starts[which] + nodes["lengths"][which]]

    tokens = tokens_of(node)
    places = np.flatnonzero(tokenizer.maskable[tokens[: self.run.decoder_length]])
    if not len(places):
      return None
    copies = np.tile(tokens, (len(places), 1))
    masked = copies.copy()
    masked[np.arange(len(places)), places] = tokenizer.mask_id
    # A copy's parent stands in front of it: for one without, a node without tokens.
    context = [tokens_of(which) for which in above] or [np.empty(0, np.int32)]
    before = np.concatenate(context)
    depths = nodes["depths"]
    return {
      **nodes,
      "tokens": np.concatenate([before, copies.ravel()]),
      "input_tokens": np.concatenate([before, masked.ravel()]),
      "is_masked": np.concatenate(
        [np.zeros(len(before), np.int32), (masked != copies).ravel().astype(np.int32)]
      ),
      "lengths": np.array([*map(len, context), *[len(tokens)] * len(places)], np.int32),
      "parents": np.array(
        [*range(-1, len(context) - 1), *[len(context) - 1] * len(places)], np.int32
      ),
      "depths": np.array(
        [*(depths[above] if above else [0]), *[depths[node]] * len(places)], np.int32
      ),
      "is_target": np.repeat([0, 1], [len(context), len(places)]).astype(np.int32),
      "node_ids": np.array([*(above or [-1]), *[node] * len(places)], np.int32),
    }


class Likelihood(Score):
  """Of a causal model: each token from those before it."""

  def make_shape(self) -> ForestShape:
    """Returns what forests hold: every token is predicted."""
    assert self.run.causal is not None
    return self.shape_of(
      self.run.decoder_length, optional_features=self.run.causal.optional_features
    )

  def items(self, document: ScoredDocument) -> Iterator[PackItem]:
    """Yields every comment once; along threads, for attribution, apart."""
    nodes = document.subtree()
    assert self.run.causal is not None
    has_tokens = nodes["lengths"] > 0
    together = [has_tokens]
    if self.attribution and self.run.config.model.num_thread_layers:
      # See `leave_one_out`.
      together = [*np.diag(has_tokens)[has_tokens]]
    for is_target in together:
      for subtree in forests.cut(
        nodes, is_target, self.run.builder.preprocessing.subtrees
      ):
        read = self.run.causal(subtree, self.run.decoder_length, 0, 0, 0)
        yield from forests.items_of(read, self.shape)
