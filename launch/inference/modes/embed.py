"""`embed`: the vectors of comments, by themselves and as part of their threads."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from commentree.launch.inference import forests
from commentree.launch.inference.devices import Compute
from commentree.launch.inference.documents import EMPTY, TokenizedTree
from commentree.launch.inference.forests import PackedForest
from commentree.launch.inference.modes.base import Answer, Mode
from commentree.launch.inference.run_context import RunContext
from commentree.models.config import Condition
from commentree.models.model import CommentTreeModel
from commentree.tasks.forests.forest_layout import ForestShape
from commentree.tasks.forests.pack_items import PackItem
from commentree.tasks.trees.comment_tree import CommentTree


@dataclasses.dataclass(frozen=True, eq=False)
class EmbeddedDocument(TokenizedTree):
  """A tree and the vectors of its nodes.

  Attributes:
    alone: what each node is pooled to, `[J, D]`.
    in_thread: mean of the decoder's states over each node, `[D]`.
  """

  alone: dict[int, np.ndarray]
  in_thread: dict[int, np.ndarray]


class Embed(Mode[EmbeddedDocument]):
  """The pooled vectors of each comment; if asked for, its vector given its thread."""

  name = "embed"

  def __init__(
    self, run: RunContext, ancestors: Condition = "true", *, contextual: bool = False
  ):
    """Sets up.

    Args:
      run: the run.
      ancestors: which ancestors comments see; of effect with `contextual` alone.
      contextual: whether to give vectors in threads too.
    """
    self._contextual = contextual
    super().__init__(run, ancestors)

  @property
  def program_key(self) -> Hashable:
    """Equal for modes of one run with the same computation."""
    return super().program_key, self._contextual

  def make_shape(self) -> ForestShape:
    """Returns what forests hold; nothing is predicted, but each target asks for it."""
    causal = self.run.predicts_causally
    return self.shape_of(
      self.run.decoder_length,
      optional_features=causal.optional_features if causal else (),
      # Every comment by itself, and what comments see.
      encoded_share=1.6,
    )

  def read(self, tree: CommentTree) -> EmbeddedDocument:
    """Makes a document of a tree."""
    return EmbeddedDocument.read(tree, self.run.builder, alone={}, in_thread={})

  def items(self, document: EmbeddedDocument) -> Iterator[PackItem]:
    """Yields every comment to be encoded, and all as targets if asked for.

    What is encoded for a target's sake has numbers beyond the document's nodes.
    """
    nodes = document.subtree()
    yield from forests.encoded_alone(nodes, self.shape)
    if not self._contextual:
      return
    lengths = nodes["lengths"]
    nodes["node_ids"] = nodes["node_ids"] + len(lengths)
    for subtree in forests.cut(
      nodes, lengths > 0, self.run.builder.preprocessing.subtrees
    ):
      if (causal := self.run.predicts_causally) is not None:
        subtree = causal(subtree, self.run.decoder_length, 0, 0, 0)
      else:
        subtree["input_tokens"] = subtree["tokens"]
        subtree["is_masked"] = (forests.columns(subtree["lengths"]) == 0).astype(
          np.int32
        )
      yield from forests.items_of(subtree, self.shape)

  def compute(self, model: CommentTreeModel) -> Compute:
    """Returns vectors by slot `[B, E, J, D]` and, if asked for, target `[B, T, D]`."""

    def compute(params: Any, batch: Any) -> Any:
      batch = self.hide(batch)
      encoded = model.encode(params, batch)
      alone = encoded.vectors_BEJD.astype(jnp.float32)
      if not self._contextual:
        return {"alone": alone}
      states_BRLD = model.decode_states(params, encoded, batch)
      batch_size, _, _, width = states_BRLD.shape
      targets_BN = batch["decoder_segment_ids"].reshape(batch_size, -1)
      of_target_BNT = jax.nn.one_hot(
        targets_BN - 1, batch["target_depths"].shape[-1], dtype=jnp.float32
      )
      sums_BTD = jnp.einsum(
        "bnt,bnd->btd",
        of_target_BNT,
        states_BRLD.reshape(batch_size, -1, width).astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
      )
      counts_BT1 = of_target_BNT.sum(1)[..., None]
      return {"alone": alone, "in_thread": sums_BTD / jnp.maximum(counts_BT1, 1)}

    return compute

  def collect(self, arrays: Any, filled: PackedForest) -> None:
    """Takes in the vectors of a forest."""
    for slot, (document, node) in enumerate(filled.slots):
      if node < len(document.firsts):
        document.alone[node] = arrays["alone"][slot]
    for target, (document, number) in enumerate(filled.targets):
      node = number - len(document.firsts)
      document.in_thread[node] = arrays["in_thread"][target]

  def answers(self, document: EmbeddedDocument) -> list[Answer]:
    """Returns `vectors` of each comment, and `in_thread` if asked for."""
    found: list[Answer] = []
    for empty in document.is_empty().tolist():
      found.append({"vectors": None, "why": EMPTY} if empty else {})
      if empty and self._contextual:
        found[-1] = {"vectors": None, "in_thread": None, "why": EMPTY}
    for name, vectors in self._by_name(document):
      for comment, vector in document.means(vectors).items():
        found[comment][name] = vector
    return found

  def _by_name(
    self, document: EmbeddedDocument
  ) -> list[tuple[str, dict[int, np.ndarray]]]:
    named = [("vectors", document.alone)]
    return [*named, ("in_thread", document.in_thread)] if self._contextual else named
