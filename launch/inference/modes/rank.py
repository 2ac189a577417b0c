"""`rank`: which of many comments answer a comment, by reply matching."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from commentree.models.config import Condition
from commentree.models.model import CommentTreeModel
from commentree.tasks.forests.forest_layout import ForestShape
from commentree.tasks.forests.pack_items import PackItem
from commentree.tasks.subtrees import splitting
from commentree.tasks.trees.comment_tree import POST, CommentTree

# Threads that are compared with all candidates at once, for the sake of memory.
_ROWS_AT_ONCE = 256
# Cosines that differ by less are equal: vectors of one text, of two forests.
_TIE = 1e-6
_WITHOUT_MATCHER = (
  "this run has no reply matching (ModelConfig.reply_matching_weight is 0): replies are"
  " ranked by the cosine of their pooled vector with the mean of their thread's"
)


@dataclasses.dataclass(frozen=True, eq=False)
class VectorsDocument(TokenizedTree):
  """A tree and the vectors of its nodes.

  Attributes:
    in_threads: what each node adds to the vector of a thread, `[D]`.
    as_replies: its vector as a reply, `[D]`.
  """

  in_threads: dict[int, np.ndarray]
  as_replies: dict[int, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Candidates:
  """The comments that may be replies.

  Attributes:
    trees: id of each one's tree.
    comments: id of each.
    parents: id of what each answers; None for a post.
    vectors: of length 1. [N, D]
    of_tree: places of a tree's comments, by its id.
  """

  trees: Sequence[str]
  comments: Sequence[str]
  parents: Sequence[str | None]
  vectors: np.ndarray
  of_tree: Mapping[str, Sequence[int]]


class Rank(Mode[VectorsDocument]):
  """The `top_k` likeliest replies to each comment among the candidates."""

  name = "rank"

  def __init__(
    self,
    run: RunContext,
    ancestors: Condition = "true",
    *,
    top_k: int = 10,
    candidates: Callable[[], Iterable[CommentTree]] = tuple,
  ):
    """Sets up.

    Args:
      run: the run.
      ancestors: which of the comments above it a reply sees.
      top_k: replies for each comment.
      candidates: gives the trees whose comments may be replies; read once.

    Raises:
      UserError: if `top_k` or `ancestors` are of no use.
    """
    if top_k < 1:
      raise UserError(f"--top_k={top_k}: must be at least 1")
    if ancestors == "none":
      raise UserError(
        "--ancestors=none: --mode=rank compares replies with what is above them; give"
        " true or parent_only"
      )
    self._top_k = top_k
    self._read_candidates = candidates
    self._candidates: _Candidates | None = None
    self._bias_P = np.zeros(0, np.float32)
    super().__init__(run, ancestors)

  @property
  def note(self) -> str:
    """What the user should know of the run."""
    matches = self.run.config.model.reply_matching_weight
    return "" if matches else _WITHOUT_MATCHER

  def make_shape(self) -> ForestShape:
    """Returns what forests hold; nothing is predicted."""
    causal = self.run.predicts_causally
    return self.shape_of(
      self.run.decoder_length,
      optional_features=causal.optional_features if causal else (),
    )

  def read(self, tree: CommentTree) -> VectorsDocument:
    """Makes a document of a tree."""
    return VectorsDocument.read(tree, self.run.builder, in_threads={}, as_replies={})

  def items(self, document: VectorsDocument) -> Iterator[PackItem]:
    """Yields every comment to be encoded."""
    return forests.encoded_alone(document.subtree(), self.shape)

  def compute(self, model: CommentTreeModel) -> Compute:
    """Returns vectors by slot `[B, E, D]`, and biases of distances `[B, P]`."""

    def compute(params: Any, batch: Any) -> Any:
      encoded = model.encode(params, batch)
      threads_BED, replies_BED, bias_P = model.matching_parts(params, encoded)
      bias_BP = jnp.broadcast_to(bias_P, (len(threads_BED), len(bias_P)))
      return {"threads": threads_BED, "replies": replies_BED, "bias": bias_BP}

    return compute

  def collect(self, arrays: Any, filled: PackedForest) -> None:
    """Takes in the vectors of a forest."""
    self._bias_P = arrays["bias"]
    for slot, (document, node) in enumerate(filled.slots):
      document.in_threads[node] = arrays["threads"][slot]
      document.as_replies[node] = arrays["replies"][slot]

  def prepare(
    self, documents: Callable[[Iterable[CommentTree]], Iterator[VectorsDocument]]
  ) -> None:
    """Computes the candidates' vectors."""
    trees: list[str] = []
    comments: list[str] = []
    parents: list[str | None] = []
    vectors: list[np.ndarray] = []
    of_tree: dict[str, list[int]] = {}
    for document in documents(self._read_candidates()):
      tree = document.tree
      found = document.means(document.as_replies)
      for index, comment in enumerate(tree.comments):
        # A post is no reply; one that stands alone is a text that may be one.
        if index not in found or (index == POST and len(tree.comments) > 1):
          continue
        of_tree.setdefault(tree.id, []).append(len(comments))
        trees.append(tree.id)
        comments.append(comment.id)
        parents.append(None if index == POST else tree.comments[comment.parent].id)
        vectors.append(found[index])
    if not vectors:
      raise UserError(
        "no comment with a text to rank: give trees with comments by --candidates"
      )
    self._candidates = _Candidates(
      trees, comments, parents, _unit(np.stack(vectors)), of_tree
    )

  def answers(self, document: VectorsDocument) -> list[Answer]:
    """Returns `replies` to each comment, and where those that it has come."""
    seen_NA, threads_ND = self._threads(document)
    found: list[Answer] = []
    for first in range(0, len(threads_ND), _ROWS_AT_ONCE):
      rows = slice(first, first + _ROWS_AT_ONCE)
      found += self._ranked(document.tree, rows, seen_NA[rows], threads_ND[rows])
    return found

  def _threads(self, document: VectorsDocument) -> tuple[np.ndarray, np.ndarray]:
    """What a reply to each comment sees.

    Returns:
      Which of its ancestors have a vector, bool `[N, A]`; the vector of all, `[N, D]`.
    """
    tree = document.tree
    number = len(tree.comments)
    parents = np.array([comment.parent for comment in tree.comments], np.intp)
    depths = np.array(tree.depths())
    most = 1 if self.ancestors == "parent_only" else self.shape.max_ancestors
    # The replies stand behind the comments that they answer.
    with_replies = np.concatenate([parents, np.arange(number)])
    above_NA = splitting.visible_ancestors(with_replies, most)[number:]
    vectors = document.means(document.in_threads)
    width = len(next(iter(vectors.values()), ()))
    vectors_ND = np.zeros((number, width), np.float32)
    has_N = np.zeros(number, bool)
    for index, vector in vectors.items():
      vectors_ND[index], has_N[index] = vector, True
    seen_NA = (above_NA >= 0) & has_N[above_NA]
    distances_NA = depths[:, None] + 1 - depths[above_NA]
    farthest = max(0, len(self._bias_P) - 1)
    bias_P = self._bias_P if len(self._bias_P) else np.zeros(1, np.float32)
    scores_NA = np.where(seen_NA, bias_P[np.clip(distances_NA, 0, farthest)], -np.inf)
    most_N1 = np.where(seen_NA.any(1), scores_NA.max(1), 0)[:, None]
    weights_NA = np.exp(scores_NA - most_N1)
    weights_NA /= np.maximum(weights_NA.sum(1, keepdims=True), 1e-30)
    threads_ND = np.zeros_like(vectors_ND)
    for hop in range(most):
      threads_ND += weights_NA[:, hop, None] * vectors_ND[above_NA[:, hop]]
    return seen_NA, _unit(threads_ND)

  def _ranked(
    self, tree: CommentTree, rows: slice, seen_NA: np.ndarray, threads_ND: np.ndarray
  ) -> list[Answer]:
    known = self._candidates
    assert known is not None
    own = known.of_tree.get(tree.id, ())
    others = len(known.comments) - len(own)
    if not seen_NA.any():
      return [{"replies": None, "why": EMPTY}] * len(seen_NA)
    scores_NX = threads_ND @ known.vectors.T
    own_NX = scores_NX[:, own]
    scores_NX[:, own] = -np.inf
    found: list[Answer] = []
    for row, comment in enumerate(tree.comments[rows]):
      if not seen_NA[row].any():
        found.append({"replies": None, "why": EMPTY})
        continue
      scores_X = scores_NX[row]
      true = {
        place: own_NX[row, i]
        for i, place in enumerate(own)
        if known.parents[place] == comment.id
      }
      true_replies = [
        {
          "comment": known.comments[place],
          "score": rounded(float(score)),
          "rank": 1 + int((scores_X >= score - _TIE).sum()),
        }
        for place, score in true.items()
      ]
      for place, score in true.items():
        scores_X[place] = score
      best = _best(scores_X, min(self._top_k, others + len(true)))
      replies = [
        {
          "tree": known.trees[place],
          "comment": known.comments[place],
          "score": rounded(float(scores_X[place])),
          "rank": rank,
        }
        for rank, place in enumerate(best, 1)
      ]
      found.append(
        {"replies": replies, "true_replies": true_replies, "candidates": others}
      )
    return found

  def summary(self, answers: Iterable[Answer]) -> str:
    """Returns how often a reply that there is comes first, in one sentence."""
    ranks: list[int] = []
    candidates: list[int] = []
    for answer in answers:
      for reply in answer.get("true_replies") or ():
        ranks.append(reply["rank"])
        candidates.append(answer["candidates"] + 1)
    if not ranks:
      return "none of the candidates answers a comment of --input: no recall to tell"
    found = np.array(ranks)
    return (
      f"of {len(ranks):,} replies, each among {np.mean(candidates):,.0f} candidates on"
      f" average, {(found == 1).mean():.1%} come first by their threads and"
      f" {(found <= 10).mean():.1%} among the first ten; mean reciprocal rank"
      f" {(1 / found).mean():.3f}"
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
  squares = np.square(vectors).sum(-1, keepdims=True)
  return (vectors / np.sqrt(np.maximum(squares, 1e-12))).astype(np.float32)


def _best(scores: np.ndarray, many: int) -> list[int]:
  """Places of the highest scores, the highest first; of equals, the earlier."""
  if not many:
    return []
  places = np.arange(len(scores))
  if many < len(scores):
    places = np.sort(np.argpartition(-scores, many - 1)[:many])
  return [int(i) for i in places[np.argsort(-scores[places], kind="stable")][:many]]
