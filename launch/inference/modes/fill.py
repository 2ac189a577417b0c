"""`fill`: what may stand in the places that are masked in the comments given."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Hashable, Iterator
from typing import Any

import jax
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
from commentree.tasks.trees.comment_tree import CommentTree
from commentree.tasks.vocabulary.token_texts import Slot

MASK = "<mask>"

# Tokens behind a mask that are read to tell how what is put there joins them.
_READ_BEHIND = 8

# Supplementary private use, one for each mask of a comment: text that cleaning lets
# pass, so that a mask is found again behind it.
_FIRST_SENTINEL, _SENTINELS = 0xF0000, 0xFFFE
_SENTINEL = re.compile("[\U000f0000-\U000ffffd]")
_NO_MASK = "no mask in it"
_LOST = "lost in cleaning, as within an address"
_CUT = "behind the tokens that the model reads of a comment"
_PARTIAL = "not filled: the likeliest token is only a part of a character"


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedDocument(TokenizedTree):
  """A tree with masks in its comments' texts.

  Attributes:
    tokens: of each comment, as far as its last mask and a little farther.
    starts: where each mask of a comment begins in its text as given.
    kept: which of those cleaning left, by their tokens' places in the comment.
    found: ids of what may stand there and their probabilities, by comment and mask.
  """

  tokens: list[np.ndarray]
  starts: list[list[int]]
  kept: list[dict[int, int]]
  found: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]


class Fill(Mode[MaskedDocument]):
  """The `top_k` likeliest tokens for each mask, and the text with the first of them."""

  name = "fill"

  def __init__(
    self,
    run: RunContext,
    ancestors: Condition = "true",
    *,
    top_k: int = 5,
    mask: str = MASK,
  ):
    """Sets up.

    Args:
      run: the run.
      ancestors: which ancestors comments see.
      top_k: tokens for each mask.
      mask: what stands for a masked token in the text.

    Raises:
      UserError: if `top_k` or `mask` are of no use.
    """
    words = int(run.tokenizer.maskable.sum())
    if not 1 <= top_k <= words:
      raise UserError(
        f"--top_k={top_k}: must be from 1 to {words}, the tokens that a mask may hide"
      )
    if not mask or mask != mask.strip():
      raise UserError(f"--mask={mask!r}: must be a word, without white space around")
    self._top_k = top_k
    self._mask = mask
    # More masks of a comment than a row has room for are predicted a lot at a time.
    self._lot = max(8, run.decoder_length // 4)
    super().__init__(run, ancestors)

  @property
  def program_key(self) -> Hashable:
    """Equal for modes of one run with the same computation."""
    return super().program_key, self._top_k

  def make_shape(self) -> ForestShape:
    """Returns what forests hold."""
    return self.shape_of(self._lot)

  def read(self, tree: CommentTree) -> MaskedDocument:
    """Makes a document of a tree and finds its masks."""
    comments, starts = [], []
    for comment in tree.comments:
      text, places = self._with_sentinels(comment.text)
      comments.append(dataclasses.replace(comment, text=text, spans=()))
      starts.append(places)
    builder, tokenizer = self.run.builder, self.run.tokenizer
    texts = builder.texts(dataclasses.replace(tree, comments=comments))
    marked = [_SENTINEL.sub(MASK, text) for text in texts]
    encoded = builder.encode_texts(marked, with_masks=True)
    kept = [
      {
        place: ord(sentinel) - _FIRST_SENTINEL
        for place, sentinel in zip(
          np.flatnonzero(ids == tokenizer.mask_id).tolist(), _SENTINEL.findall(text)
        )
      }
      for ids, text in zip(encoded, texts)
    ]
    read = [
      ids[: max(places, default=-_READ_BEHIND) + _READ_BEHIND]
      for ids, places in zip(encoded, kept)
    ]
    return MaskedDocument.of(
      tree, encoded, builder, tokens=read, starts=starts, kept=kept, found={}
    )

  def _with_sentinels(self, text: str) -> tuple[str, list[int]]:
    """Returns a text with a sentinel for each mask, and where the masks begin."""
    places = re.finditer(re.escape(self._mask), text)
    starts = [place.start() for place, _ in zip(places, range(_SENTINELS))]
    marked, at = "", 0
    for number, start in enumerate(starts):
      marked += _SENTINEL.sub(" ", text[at:start]) + chr(_FIRST_SENTINEL + number)
      at = start + len(self._mask)
    return marked + _SENTINEL.sub(" ", text[at:]), starts

  def items(self, document: MaskedDocument) -> Iterator[PackItem]:
    """Yields the comments that have masks."""
    nodes = document.subtree()
    lengths = nodes["lengths"]
    node_of = np.repeat(np.arange(len(lengths)), lengths)
    shown = forests.columns(lengths) < self.run.decoder_length
    masked = shown & (nodes["tokens"] == self.run.tokenizer.mask_id)
    before = np.concatenate([[0], np.cumsum(masked)])
    rank = before[:-1] - before[np.cumsum(lengths) - lengths][node_of]
    nodes["lots"] = np.where(masked, rank // self._lot, -1)
    in_node = np.bincount(node_of, masked, len(lengths))
    for lot in range(int(nodes["lots"].max(initial=-1)) + 1):
      for subtree in forests.cut(
        nodes,
        in_node > lot * self._lot,
        self.run.builder.preprocessing.subtrees,
        per_token=("tokens", "lots"),
      ):
        subtree["input_tokens"] = subtree["tokens"]
        subtree["is_masked"] = (subtree["lots"] == lot).astype(np.int32)
        yield from forests.items_of(subtree, self.shape)

  def compute(self, model: CommentTreeModel) -> Compute:
    """Returns log probabilities and ids of the likeliest tokens, `[B, G, M, k]`."""
    # Markers and the like are never hidden, and so never sought.
    words = np.zeros(model.config.vocab_size, bool)
    words[: len(self.run.tokenizer.maskable)] = self.run.tokenizer.maskable

    def compute(params: Any, batch: Any) -> Any:
      log_probs = jax.nn.log_softmax(model.logits(params, self.hide(batch)))
      found = jnp.where(words[None, None, None], log_probs, -jnp.inf)
      return jax.lax.top_k(found, self._top_k)

    return compute

  def collect(self, arrays: Any, filled: PackedForest) -> None:
    """Takes in what may stand in a forest's masks."""
    log_probs, ids = arrays
    for row, column, target, position in filled.predicted():
      document, node = filled.targets[target]
      comment = document.comment_of(node)
      number = document.kept[comment].get(int(document.firsts[node]) + position)
      if number is not None:
        chosen = ids[row, column], np.exp(log_probs[row, column])
        document.found[comment, number] = chosen

  def answers(self, document: MaskedDocument) -> list[Answer]:
    """Returns `masks` of each comment, and its text `filled`."""
    empty = document.is_empty()
    return [
      self._answer(document, comment, empty=bool(empty[comment]))
      for comment in range(len(empty))
    ]

  def _answer(self, document: MaskedDocument, comment: int, *, empty: bool) -> Answer:
    starts = document.starts[comment]
    if not starts:
      return {"masks": None, "filled": None, "why": EMPTY if empty else _NO_MASK}
    masks: list[Answer] = []
    place_of = {number: place for place, number in document.kept[comment].items()}
    tokens = document.tokens[comment].copy()
    slots: list[Slot] = []
    for number, start in enumerate(starts):
      if (comment, number) not in document.found:
        why = _CUT if number in place_of else _LOST
        masks.append({"start": start, "candidates": None, "why": why})
        continue
      ids, probabilities = document.found[comment, number]
      candidates = [
        {"token": self.run.tokenizer.id_to_piece(token), "probability": rounded(share)}
        for token, share in zip(ids.tolist(), probabilities.tolist())
      ]
      masks.append({"start": start, "candidates": candidates})
      tokens[place_of[number]] = ids[0]
      slots.append(Slot(start, start + len(self._mask), place_of[number]))
    filled, left = self.run.tokenizer.texts.write(
      document.tree.comments[comment].text, slots, tokens
    )
    for slot in left:
      masks[starts.index(slot.start)]["why"] = _PARTIAL
    return {"masks": masks, "filled": filled}
