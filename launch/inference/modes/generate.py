"""`generate`: replies to comments, written by a causal model.

A reply is a pure function of the seed, the tree's id, the comment's id and what stands
above it, whatever else is asked for with it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Hashable, Iterator
from typing import Any, Literal, get_args

import numpy as np

from commentree.errors import UserError
from commentree.launch.inference import forests
from commentree.launch.inference.devices import Compute
from commentree.launch.inference.documents import TokenizedTree
from commentree.launch.inference.forests import PackedForest
from commentree.launch.inference.modes.base import Answer, Mode, rounded
from commentree.launch.inference.run_context import RunContext
from commentree.models.config import Condition
from commentree.models.decoding import decoding
from commentree.models.decoding.decoding_config import DecodingConfig, DecodingMethod
from commentree.models.model import CommentTreeModel
from commentree.tasks.forests.forest_layout import ForestShape
from commentree.tasks.forests.pack_items import PackItem
from commentree.tasks.forests.packing import Forest
from commentree.tasks.trees import markers
from commentree.tasks.trees.comment_tree import Comment, CommentTree

ReplyTo = Literal["leaves", "post", "all", "marked"]
MARK = "<reply>"

# Replies that are written at the same time.
_AT_ONCE = 64
_NOT_ASKED = "no reply to it was asked for"
_IDENTITY_WORDS = 4


@dataclasses.dataclass(frozen=True, eq=False)
class AnsweredDocument(TokenizedTree):
  """A tree and the replies to its comments.

  Attributes:
    asked: the comments to be replied to.
    author: id of the marker that replies begin with; `decoding.FREE` for none given.
    replies: by comment.
  """

  asked: list[int]
  author: int
  replies: dict[int, list[Answer]]


class Generate(Mode[AnsweredDocument]):
  """Replies to comments."""

  name = "generate"

  def __init__(
    self,
    run: RunContext,
    ancestors: Condition = "true",
    *,
    reply_to: ReplyTo = "leaves",
    author: str | None = None,
    mark: str = MARK,
    seed: int = 0,
    max_tokens: int = 64,
    num_replies: int = 1,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    beam_width: int | None = None,
    length_penalty: float | None = None,
  ):
    """Sets up.

    Args:
      run: the run.
      ancestors: which ancestors replies see.
      reply_to: comments without replies, posts, all, or those whose text holds `mark`.
      author: who writes; somebody new if None.
      mark: what marks a comment; it is taken out of the text.
      seed: of what is drawn.
      max_tokens: most tokens of a reply.
      num_replies: replies to each comment.
      temperature: see `DecodingConfig`; this, `top_k` and `top_p` make replies drawn,
        as do several of them without a beam.
      top_k: likewise.
      top_p: likewise.
      beam_width: makes replies searched for by a beam.
      length_penalty: of the beam.

    Raises:
      UserError: if settings are out of range or contradict each other.
    """
    if reply_to not in get_args(ReplyTo):
      raise UserError(
        f"--reply_to={reply_to}: is none of {', '.join(get_args(ReplyTo))}"
      )
    if not mark.strip():
      raise UserError(f"--mark={mark!r}: must be a word")
    if not 0 <= seed < 2**32:
      raise UserError(f"--seed={seed}: must be from 0 to {2**32 - 1}")
    self._reply_to = reply_to
    self._author = author
    self._mark = mark
    self._seed = seed
    assert run.causal is not None
    asked = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    drawn: dict[str, Any] = {k: v for k, v in asked.items() if v is not None}
    method: DecodingMethod = "sample" if drawn or num_replies > 1 else "greedy"
    if beam_width is not None or length_penalty is not None:
      method = "beam"
      beam_width = max(num_replies, 4) if beam_width is None else beam_width
      drawn["beam_width"] = beam_width
      if length_penalty is not None:
        drawn["length_penalty"] = length_penalty
    never = np.ones(run.model_config.vocab_size, bool)
    never[: run.tokenizer.vocab_size] = ~run.tokenizer.maskable
    never[run.causal.end_id] = False
    try:
      self.config = DecodingConfig(
        run.causal.start_id,
        run.causal.end_id,
        max_length=max_tokens,
        method=method,
        num_replies=num_replies,
        never=tuple(np.flatnonzero(never).tolist()),
        **drawn,
      )
    except UserError as error:
      said = str(error).replace("DecodingConfig.max_length", "--max_tokens")
      raise UserError(said.replace("DecodingConfig.", "--")) from None
    super().__init__(run, ancestors)

  @property
  def program_key(self) -> Hashable:
    """Equal for modes of one run with the same computation."""
    return super().program_key, self.config

  def make_shape(self) -> ForestShape:
    """Returns what forests hold: so many replies, and all that they answer to."""
    shape = self.shape_of(8)
    at_once = max(1, _AT_ONCE // self.config.rows)
    return dataclasses.replace(shape, target_slots=min(shape.target_slots, at_once))

  def read(self, tree: CommentTree) -> AnsweredDocument:
    """Makes a document of a tree with a node for each reply that is asked for."""
    marked = {i for i, c in enumerate(tree.comments) if self._mark in c.text}
    comments = list(tree.comments)
    if self._reply_to == "marked":
      for index in marked:
        text = comments[index].text.replace(self._mark, "").strip()
        comments[index] = dataclasses.replace(comments[index], text=text, spans=())
    has_reply = {comment.parent for comment in comments}
    asked = {
      "leaves": [i for i in range(len(comments)) if i not in has_reply],
      "post": [0],
      "all": list(range(len(comments))),
      "marked": sorted(marked),
    }[self._reply_to]
    builder, tokenizer = self.run.builder, self.run.tokenizer
    author = self._author or _somebody_new(tree)
    reply = Comment("", 0, author, "", None)
    more = dataclasses.replace(tree, comments=[*comments, reply])
    marker = markers.author_markers(more, builder.preprocessing.markers)[-1]
    first = tokenizer.piece_to_id(marker) if marker else None
    encoded = builder.encode_texts(builder.texts(more)[:-1])
    # A reply is a comment of one token that is not read, below what it answers.
    replies = [dataclasses.replace(reply, parent=parent) for parent in asked]
    grown = dataclasses.replace(tree, comments=[*comments, *replies])
    unread = [np.zeros(1, np.int32)] * len(replies)
    return AnsweredDocument.of(
      grown,
      [*encoded, *unread],
      builder,
      asked=asked,
      author=decoding.FREE if first is None else first,
      replies={},
    )

  def items(self, document: AnsweredDocument) -> Iterator[PackItem]:
    """Yields the replies, each as a target."""
    nodes = document.subtree()
    count = len(document.tree.comments) - len(document.asked)
    is_reply = document.nodes["node_ids"] >= count
    for subtree in forests.cut(
      nodes, is_reply, self.run.builder.preprocessing.subtrees
    ):
      subtree["input_tokens"] = subtree["tokens"]
      subtree["is_masked"] = np.repeat(subtree["is_target"], subtree["lengths"])
      yield from forests.items_of(subtree, self.shape)

  def arrays(self, filled: PackedForest) -> Forest:
    """Returns the forest with what replies begin with and what distinguishes them."""
    slots = self.shape.target_slots
    firsts = np.full((slots, 1), decoding.FREE, np.int32)
    identities = np.zeros((slots, _IDENTITY_WORDS), np.uint32)
    for target, (document, node) in enumerate(filled.targets):
      comment = document.tree.comments[document.comment_of(node)]
      answered = document.tree.comments[comment.parent]
      firsts[target] = document.author
      identities[target] = _identity(document.tree.id, answered.id)
    return {
      **filled.forest,
      "wanted": np.arange(slots) < len(filled.targets),
      "first_tokens": firsts,
      "identities": identities,
      "seed": np.array(self._seed, np.uint32),
    }

  def compute(self, model: CommentTreeModel) -> Compute:
    """Returns `decoding.Replies`."""

    def compute(params: Any, batch: Any) -> Any:
      keys = None
      if self.config.method == "sample":
        keys = decoding.reply_keys(batch["seed"][0], batch["identities"])
      return model.generate(
        params,
        self.hide(batch),
        self.config,
        keys,
        wanted=batch["wanted"],
        first_tokens=batch["first_tokens"],
      )

    return compute

  def collect(self, arrays: Any, filled: PackedForest) -> None:
    """Takes in the replies of a forest."""
    for target, (document, node) in enumerate(filled.targets):
      comment = document.tree.comments[document.comment_of(node)]
      document.replies[comment.parent] = [
        self._reply(
          arrays.tokens[target, number][: arrays.lengths[target, number]],
          float(arrays.log_probabilities[target, number]),
          ended=bool(arrays.ended[target, number]),
        )
        for number in range(self.config.num_replies)
        if np.isfinite(arrays.log_probabilities[target, number])
      ]

  def _reply(self, tokens: np.ndarray, log_likelihood: float, *, ended: bool) -> Answer:
    tokenizer = self.run.tokenizer
    written = tokens[tokenizer.maskable[tokens]].tolist()
    return {
      "text": tokenizer.texts.whole(written).strip(),
      "log_likelihood": rounded(log_likelihood),
      "tokens": len(written),
      "ended": ended,
    }

  def answers(self, document: AnsweredDocument) -> list[Answer]:
    """Returns `replies` to each comment."""
    count = len(document.tree.comments) - len(document.asked)
    return [
      {"replies": document.replies[comment]}
      if comment in document.replies
      else {"replies": None, "why": _NOT_ASKED}
      for comment in range(count)
    ]


def _somebody_new(tree: CommentTree) -> str:
  """A name that no one in the tree has."""
  names = {comment.author for comment in tree.comments}
  return next(name for n in range(len(names) + 1) if (name := f"{n}") not in names)


def _identity(tree: str, comment: str) -> np.ndarray:
  """Words that tell a comment from all others, uint32."""
  text = f"{len(tree)} {tree} {comment}".encode("utf-8", "replace")
  digest = hashlib.blake2b(text, digest_size=4 * _IDENTITY_WORDS).digest()
  return np.frombuffer(digest, "<u4")
