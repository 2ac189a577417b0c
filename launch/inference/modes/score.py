"""`score`: how likely comments are, with the comments above them and without.

A model of masked tokens gives the pseudo-log-likelihood: each token's log probability
where it alone is masked (Salazar, Liang, Nguyen and Kirchhoff, "Masked Language Model
Scoring", 2020), or, to be quicker, where others are masked that stand far apart. A
causal one gives the log-likelihood. The difference is what a thread explains of a
comment, in nats; `attribution` shares it out to the ancestors.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from commentree.errors import UserError
from commentree.launch.inference import forests
from commentree.launch.inference.devices import Compute
from commentree.launch.inference.documents import EMPTY, TokenizedTree
from commentree.launch.inference.forests import PackedForest
from commentree.launch.inference.modes.base import Answer, Mode, rounded
from commentree.launch.inference.run_context import RunContext
from commentree.models import attribution as attribution_lib
from commentree.models.config import Condition
from commentree.models.model import CommentTreeModel
from commentree.settings import check_range
from commentree.tasks.forests.forest_layout import ForestShape
from commentree.tasks.forests.pack_items import PackItem, drop_empty
from commentree.tasks.forests.packing import Forest
from commentree.tasks.subtrees import splitting
from commentree.tasks.subtrees.subtree_builder import Subtree, ranges
from commentree.tasks.trees.comment_tree import CommentTree

# Forests that may be cut from copies laid out at once.
_FORESTS_SHARED = 8
_NO_TOKEN = "no token that the model predicts"
_PREDICTED = (
  "decoder_masked_positions",
  "decoder_target_tokens",
  "decoder_loss_weights",
)


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
    self,
    run: RunContext,
    ancestors: Condition = "true",
    *,
    attribution: bool = False,
    masks_apart: int | None = None,
  ):
    """Sets up.

    Args:
      run: what is known of the run.
      ancestors: which ancestors comments see.
      attribution: whether to tell how much each of them counts.
      masks_apart: tokens from one mask to the next, of a model of masked tokens; None
        for one mask at a time.

    Raises:
      UserError: if `masks_apart` is no number from 1 on.
    """
    if masks_apart is not None:
      check_range("score", "masks_apart", masks_apart, 1, whole=True)
    self.masks_apart = masks_apart
    super().__init__(run, ancestors)
    self.attribution = attribution

  @property
  def program_key(self) -> Hashable:
    """Equal for modes of one run with the same computation."""
    return super().program_key, self.attribution, self.masks_apart

  def read(self, tree: CommentTree) -> ScoredDocument:
    """Makes a document of a tree."""
    sums = np.zeros((len(tree.comments), 3))
    return ScoredDocument.read(tree, self.run.builder, sums=sums, without={})

  def compute(self, model: CommentTreeModel) -> Compute:
    """Returns the loss of each predicted token `[B, X, R, M]`.

    With its ancestors and without; with attribution then without each in turn.
    """

    def compute(params: Any, batch: Any) -> Any:
      encoded = attribution_lib.encode_once(model, params, batch)
      given = (model, params, encoded, batch)
      conditions: tuple[Condition, ...] = (self.ancestors, "none")
      losses_XBGM = attribution_lib.losses_by_condition(*given, conditions)
      losses_BXGM = jnp.moveaxis(losses_XBGM, 0, 1)
      if not self.attribution:
        return losses_BXGM
      left_out_BAGM = attribution_lib.leave_one_out(*given, self.ancestors)
      return jnp.concatenate([losses_BXGM, left_out_BAGM], axis=1)

    return compute

  def collect(self, arrays: Any, filled: PackedForest) -> None:
    """Takes in the losses of a forest."""
    predicted = filled.predicted()
    for target, losses in zip(
      (target for _, _, target, _ in predicted),
      self.losses_of(np.asarray(arrays, np.float64), predicted),
    ):
      document, node = filled.targets[target]
      with_ancestors, without, *left_out = losses.tolist()
      comment = document.comment_of(node)
      document.sums[comment] += (-with_ancestors, -without, 1)
      if not left_out:
        continue
      of_comment = document.without.setdefault(comment, {})
      for ancestor, (hops, place) in self._seen(filled, target).items():
        _, before = of_comment.get(ancestor, (hops, 0.0))
        of_comment[ancestor] = hops, before + left_out[place] - with_ancestors

  def losses_of(
    self, arrays_XGM: np.ndarray, predicted: Sequence[Sequence[int]]
  ) -> np.ndarray:
    """Returns what was computed of each of the predicted tokens, [tokens, X].

    Args:
      arrays_XGM: what was computed of a forest.
      predicted: see `PackedForest.predicted`.
    """
    rows, columns = ([found[i] for found in predicted] for i in range(2))
    return arrays_XGM[:, rows, columns].T

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
  """Of a model of masked tokens: each token is masked in a copy of its comment.

  Copies of a comment, and of those beside it, share the encoded comments above them.
  """

  def make_shape(self) -> ForestShape:
    """Returns what forests hold: of a row any token may be one to predict."""
    return self.shape_of(self.run.decoder_length, encoded_share=0.2)

  def arrays(self, filled: PackedForest) -> Forest:
    """Returns the forest with the tokens to predict side by side, not by row.

    Of most copies one token is: rows would be padded to the few in which comments of a
    word stand.
    """
    forest, shape = filled.forest, self.shape
    most = shape.target_slots
    if self.masks_apart is not None:
      most += shape.decoder_rows * shape.decoder_length // self.masks_apart
    groups, columns = np.nonzero(forest["decoder_loss_weights"] > 0)
    in_group = shape.decoder_rows // shape.masked_groups * shape.decoder_length
    found = {}
    for name in _PREDICTED:
      values = forest[name][groups, columns]
      if name == "decoder_masked_positions":
        values = values + groups * in_group
      found[name] = np.zeros((1, most), forest[name].dtype)
      found[name][0, : len(groups)] = values
    return {**forest, **found}

  def losses_of(
    self, arrays_XGM: np.ndarray, predicted: Sequence[Sequence[int]]
  ) -> np.ndarray:
    """Returns what was computed of each of the tokens that `arrays` put first."""
    return arrays_XGM[:, 0, : len(predicted)].T

  def items(self, document: ScoredDocument) -> Iterator[PackItem]:
    """Yields all copies of some comments, several forests full, to be cut for these."""
    nodes = document.subtree()
    max_ancestors = self.run.builder.preprocessing.subtrees.max_ancestors
    visible = splitting.visible_ancestors(nodes["parents"], max_ancestors)
    starts = np.cumsum(nodes["lengths"]) - nodes["lengths"]
    enough = _FORESTS_SHARED * self.shape.decoder_rows * self.shape.decoder_length
    # In threads longer than a comment sees, vectors would know of each other what other
    # comments see of them.
    apart = self.run.config.model.num_thread_layers > 0
    group, tokens = list[tuple[int, list[np.ndarray]]](), 0
    for node, (start, length) in enumerate(zip(starts, nodes["lengths"].tolist())):
      masks = self._masks(nodes["tokens"][start : start + length])
      if not masks:
        continue
      group.append((node, masks))
      tokens += length * len(masks)
      if apart or tokens >= enough:
        yield self._copies(nodes, visible, group)
        group, tokens = [], 0
    if group:
      yield self._copies(nodes, visible, group)

  def _masks(self, tokens: np.ndarray) -> list[np.ndarray]:
    """Returns which tokens of a comment each of its copies has masked."""
    tokenizer = self.run.tokenizer
    tokens = tokens[: self.run.decoder_length]
    places = np.flatnonzero(tokenizer.maskable[tokens] & (tokens != tokenizer.mask_id))
    apart = len(places) if self.masks_apart is None else self.masks_apart
    return [places[first::apart] for first in range(min(apart, len(places)))]

  def _copies(
    self,
    nodes: Subtree,
    visible: np.ndarray,
    group: Sequence[tuple[int, list[np.ndarray]]],
  ) -> PackItem:
    """Returns copies as targets, below the ancestors that they share.

    Args:
      nodes: all of the tree.
      visible: which of them each sees, [N, A].
      group: nodes, and which tokens each copy of one has masked.
    """
    shape = self.shape
    lengths = nodes["lengths"].astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    copied = np.repeat([node for node, _ in group], [len(masks) for _, masks in group])
    ancestors = drop_empty(visible[copied], lengths)
    encoded = np.unique(ancestors[ancestors >= 0])

    kept = np.concatenate([encoded, copied])
    places_kept = ranges(starts[kept], lengths[kept])
    tokens = nodes["tokens"][places_kept]
    is_masked = np.zeros(len(tokens), np.int32)
    masks = [places for _, of_node in group for places in of_node]
    firsts = (np.cumsum(lengths[kept]) - lengths[kept])[len(encoded) :]
    counts = np.fromiter(map(len, masks), np.int64, len(masks))
    is_masked[np.concatenate(masks) + np.repeat(firsts, counts)] = 1
    subtree = {
      **{name: nodes[name][kept] for name in ("lengths", "depths", "node_ids")},
      **{name: nodes[name][places_kept] for name in forests.languages_in(nodes)},
      "tokens": tokens,
      "input_tokens": np.where(is_masked, self.run.tokenizer.mask_id, tokens),
      "is_masked": is_masked,
      forests.DOCUMENT: nodes[forests.DOCUMENT],
    }
    return PackItem(
      subtree=subtree,
      targets=np.arange(len(encoded), len(kept)),
      target_lengths=np.minimum(lengths[copied], shape.decoder_length),
      masked=counts,
      encoded=np.arange(len(encoded)),
      encoded_lengths=np.minimum(lengths[encoded], shape.encoder_length),
      ancestors=np.where(ancestors >= 0, np.searchsorted(encoded, ancestors), -1),
    )


class Likelihood(Score):
  """Of a causal model: each token from those before it."""

  def __init__(
    self,
    run: RunContext,
    ancestors: Condition = "true",
    *,
    attribution: bool = False,
    masks_apart: int | None = None,
  ):
    """Sets up, as `Score`.

    Raises:
      UserError: for `masks_apart`.
    """
    if masks_apart is not None:
      raise UserError(
        f"--masks_apart={masks_apart}: this run is scored as a causal model, which has"
        " no masks: leave the flag out"
      )
    super().__init__(run, ancestors, attribution=attribution)

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
      # See `attribution.leave_one_out`.
      together = [*np.diag(has_tokens)[has_tokens]]
    for is_target in together:
      for subtree in forests.cut(
        nodes, is_target, self.run.builder.preprocessing.subtrees
      ):
        read = self.run.causal(subtree, self.run.decoder_length, 0, 0, 0)
        yield from forests.items_of(read, self.shape)
