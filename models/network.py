"""The network: encode comments, pool them, decode targets given their ancestors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from commentree.models.ancestor_context import AncestorContext
from commentree.models.batch import masked_targets, positions_in_comment
from commentree.models.config import ModelConfig
from commentree.models.context.ancestors import Ancestors, by_slot
from commentree.models.context.encoded import Encoded
from commentree.models.context.pooling import CommentPooling, resize
from commentree.models.context.thread_transformer import ThreadTransformer
from commentree.models.context.threads import ThreadAncestors, as_rows, read_threads
from commentree.models.heads.heads import HEADS, Scores
from commentree.models.heads.matching import (
  Pairs,
  ReplyMatcher,
  matching_loss,
  pairs_of,
)
from commentree.models.heads.pointer import AncestorPointer, Copies, PointerScores
from commentree.models.heads.vectors_to_logits import VectorsToLogits
from commentree.models.layers import Array, parameter, small_normal
from commentree.models.transformer.stacks import (
  DecoderStack,
  EncoderStack,
  Family,
  in_order,
  same_segment,
)


class CommentTreeTransformer(nn.Module):
  """Masked language model of comments given the vectors of their ancestors.

  Attributes:
    config: sizes and kinds.
    family: the blocks of both stacks.
    deterministic: whether dropout is off.
  """

  config: ModelConfig
  family: Family
  deterministic: bool = True

  @property
  def scan_layers(self) -> bool:
    """Whether layers are scanned; T5X asks."""
    return self.config.scan_layers

  def setup(self):
    """Makes the parts; their names are those of T5X's checkpoints."""
    cfg = self.config
    self.token_embedder = self.family.embedder(cfg)
    self.encoder = EncoderStack(cfg, self.family, self.deterministic)
    if cfg.context != "concatenated":
      self.pooling = CommentPooling(cfg)
    own_keys = cfg.context == "concatenated" or cfg.nearest_context_tokens
    if cfg.num_thread_layers:
      self.thread_transformer = ThreadTransformer(cfg, self.deterministic)
    self.ancestors = ThreadAncestors(cfg) if own_keys else Ancestors(cfg)
    self.decoder = DecoderStack(cfg, self.family, self.deterministic)
    if cfg.ancestor_pointer:
      self.pointer = AncestorPointer(cfg)
    if cfg.vectors_to_logits:
      self.vectors_to_logits = VectorsToLogits(cfg)
    if cfg.reply_matching_weight:
      self.reply_matcher = ReplyMatcher(cfg)
    if cfg.head != "masked_lm":
      self.head = HEADS[cfg.head](cfg, self.deterministic)
    if cfg.num_languages:
      self.languages_XD = parameter(
        "language_embedding",
        small_normal,
        (cfg.num_languages, cfg.emb_dim),
        ("languages", "embed"),
      )

  def __call__(self, batch: Mapping[str, Array]) -> Scores:
    """Returns logits at the masked positions, `[B, G, M, V]` float32.

    With a pointer also what is copied. With a head, logits of labels, `[B, G, M, C]`,
    or the scores of chains of them, or numbers, `[B, G, M, 1]`.
    """
    encoded = self.encode(batch)
    if self.config.reply_matching_weight and self.is_initializing():
      self.match(encoded, pairs_of(batch))
    return self._scores(encoded, batch)

  def with_matching(
    self, batch: Mapping[str, Array]
  ) -> tuple[Scores, tuple[Array, Array]]:
    """Returns what `__call__` does, and the loss of matching replies and its pairs."""
    encoded, pairs = self.encode(batch), pairs_of(batch)
    loss = matching_loss(*self.match(encoded, pairs), pairs)
    return self._scores(encoded, batch), loss

  def match(self, encoded: Encoded, pairs: Pairs) -> tuple[Array, Array, Array]:
    """Returns vectors of threads and of replies `[B, T, D]`, and a scale `[1]`."""
    vectors = self.reply_matcher(encoded.vectors_BEJD, encoded.used_BEJ, pairs)
    return cast(tuple[Array, Array, Array], vectors)

  def match_in_parts(self, encoded: Encoded) -> tuple[Array, Array, Array]:
    """Returns what threads and replies are made of, see `ReplyMatcher.in_parts`."""
    parts = self.reply_matcher.in_parts(encoded.vectors_BEJD, encoded.used_BEJ)
    return cast(tuple[Array, Array, Array], parts)

  def _scores(self, encoded: Encoded, batch: Mapping[str, Array]) -> Scores:
    if self.config.head == "masked_lm":
      return self.decode(encoded, batch)
    return self.head(self.decode_states(encoded, batch), batch)

  def encode(self, batch: Mapping[str, Array]) -> Encoded:
    """Encodes and pools the comments; with `context = "none"` nothing is in use.

    Raises:
      UserError: if a comment as long as a row would be longer than the family can.
    """
    cfg = self.config
    pooled = cfg.context != "concatenated"
    read = batch if pooled else as_rows(batch, cfg.max_context_tokens)
    slots_BRL = read["encoder_segment_ids"]
    self.family.check_length(cfg, slots_BRL.shape[-1])
    rows = (-1, slots_BRL.shape[-1])
    if cfg.context == "none" and not self.is_initializing():
      dtype = jnp.dtype(cfg.dtype)
      slots = (len(slots_BRL), read["encoder_slot_depths"].shape[-1])
      used_BEJ = jnp.zeros((*slots, cfg.vectors_per_comment), jnp.bool_)
      return Encoded(
        jnp.zeros((*used_BEJ.shape, cfg.emb_dim), dtype),
        used_BEJ,
        jnp.zeros((len(slots_BRL), slots_BRL[0].size, cfg.emb_dim), dtype),
      )
    x_WLD = self.token_embedder(
      read["encoder_input_tokens"].reshape(rows),
      read["encoder_positions"].reshape(rows),
      self._language_vectors(read, "encoder", rows),
    )
    x_WLD = self.encoder(x_WLD, slots_BRL.reshape(rows))
    states_BND = x_WLD.reshape(len(slots_BRL), -1, x_WLD.shape[-1])
    if not pooled:
      states_BTCD = x_WLD.reshape(*slots_BRL.shape, -1)
      return Encoded(states_BTCD, slots_BRL > 0, states_BND)
    vectors_BEJD, used_BEJ = self.pooling(
      x_WLD.reshape(*slots_BRL.shape, -1),
      slots_BRL,
      positions_in_comment(batch, "encoder"),
      batch["encoder_slot_depths"].shape[-1],
    )
    if cfg.normalize_pooled_vectors:
      slots_BN = slots_BRL.reshape(len(slots_BRL), -1)
      vectors_BEJD = resize(vectors_BEJD, states_BND, slots_BN)
    return Encoded(vectors_BEJD, used_BEJ, states_BND)

  def decode(
    self, encoded: Encoded, batch: Mapping[str, Array]
  ) -> Array | PointerScores:
    """Returns logits `[B, G, M, V]` given what `encode` returned.

    With a pointer also what is copied.

    Raises:
      UserError: as `encode`.
    """
    masked_BGM = batch["decoder_masked_positions"]
    logits_BGMV, copies = self._decode(encoded, batch, masked_BGM)
    return logits_BGMV if copies is None else PointerScores(logits_BGMV, copies)

  def decode_states(self, encoded: Encoded, batch: Mapping[str, Array]) -> Array:
    """Returns the decoder's last states `[B, R, L, D]` in place of logits.

    Raises:
      UserError: as `encode`.
    """
    x_WLD, _ = self._decode(encoded, batch, None)
    return x_WLD.reshape(*batch["decoder_segment_ids"].shape, -1)

  def begin_replies(
    self, batch: Mapping[str, Array], copies: int
  ) -> tuple[AncestorContext, Array | None]:
    """Encodes what replies are written to.

    Args:
      batch: the encoder's features, and the ancestors and depths of the targets; a
        reply's ancestors are those of a target.
      copies: replies written for each target.

    Returns:
      What each reply attends to and what is added to its tokens' vectors
      `[B, T * copies, D]` or None, for `next_logits`.

    Raises:
      UserError: as `encode`.
    """
    encoded = self.encode(batch)
    batch_size, targets = batch["target_depths"].shape
    targets_N = jnp.repeat(jnp.arange(1, targets + 1), copies)
    targets_BN = jnp.broadcast_to(targets_N, (batch_size, targets * copies))
    context = self._context(
      encoded, targets_BN.reshape(batch_size, targets, copies), targets_BN, batch
    )
    return context, self.ancestors.target_inputs(targets_BN, batch["target_depths"])

  def next_logits(
    self,
    tokens_BN: Array,
    position: Array,
    length: int,
    context: AncestorContext,
    added_BND: Array | None,
  ) -> Array:
    """Reads one token of each reply; returns logits for the next `[B, N, V]`.

    To be applied with the collection "cache" mutable, from position 0 on.

    Args:
      tokens_BN: the tokens.
      position: theirs, the same for all.
      length: most tokens that will be read.
      context: as returned by `begin_replies`.
      added_BND: likewise.

    Raises:
      UserError: if the family has no positions for that length.
    """
    self.family.check_length(self.config, length)
    if added_BND is not None:
      added_BND = added_BND.reshape(*tokens_BN.shape, -1)
    x_BND = self.token_embedder(
      tokens_BN, jnp.broadcast_to(position, tokens_BN.shape), added_BND
    )
    x_BN1D, logits = self.decoder(
      x_BND.reshape(-1, 1, x_BND.shape[-1]),
      (jnp.arange(length) <= position)[None, None],
      context,
      jnp.zeros((*tokens_BN.shape, 1), jnp.int32),
      self.token_embedder,
      position,
    )
    logits_BN1V = cast(Array, logits)
    if context.tokens is not None:
      logits_BN1V = self.pointer(x_BN1D, context.tokens).add_to(logits_BN1V)
    return logits_BN1V[:, :, 0]

  def _context(
    self,
    encoded: Encoded,
    targets: Array,
    queries_BQ: Array | None,
    batch: Mapping[str, Array],
  ) -> AncestorContext:
    """Returns what decoder tokens attend to, and what is behind their logits.

    Args:
      encoded: the comments.
      targets: target id of each decoder token `[B, ...]`, 0 for padding.
      queries_BQ: target id of each position that logits are wanted for; None if none.
      batch: see `Ancestors.context`.
    """
    if self.config.num_thread_layers:
      vectors_BEJD = self.thread_transformer(
        encoded.vectors_BEJD, encoded.used_BEJ, batch
      )
      encoded = dataclasses.replace(encoded, vectors_BEJD=vectors_BEJD)
    context = self.ancestors.context(encoded, targets, batch)
    cfg = self.config
    if queries_BQ is None or not (cfg.ancestor_pointer or cfg.vectors_to_logits):
      return context
    if cfg.context == "concatenated":
      thread = read_threads(batch, cfg.max_context_tokens)
      tokens = self.pointer.tokens_of_threads(encoded.states_BND, *thread, queries_BQ)
      return dataclasses.replace(context, tokens=tokens)
    visible_BUE, distances_BUE = by_slot(batch, encoded.used_BEJ.shape[1])
    visible_BUE &= encoded.used_BEJ.any(-1)[:, None]
    if cfg.vectors_to_logits:
      changes_BQD = self.vectors_to_logits(
        encoded, visible_BUE, distances_BUE, queries_BQ
      )
      context = dataclasses.replace(context, logit_changes_BQD=changes_BQD)
    if not cfg.ancestor_pointer:
      return context
    slots_BN = batch["encoder_segment_ids"].reshape(len(queries_BQ), -1)
    tokens = self.pointer.tokens(
      encoded.states_BND,
      batch["encoder_input_tokens"].reshape(slots_BN.shape),
      slots_BN,
      visible_BUE,
      distances_BUE,
      queries_BQ,
    )
    return dataclasses.replace(context, tokens=tokens)

  def _decode(
    self,
    encoded: Encoded,
    batch: Mapping[str, Array],
    masked_BGM: Array | None,
  ) -> tuple[Array, Copies | None]:
    """Returns logits `[B, G, M, V]` and copies; without masked positions states.

    Those are of rows that are not sorted by example, `[W, L, D]`.
    """
    self.family.check_length(self.config, batch["decoder_segment_ids"].shape[-1])
    targets_BRL = batch["decoder_segment_ids"]
    positions_BRL = batch["decoder_positions"]
    batch_size, _, length = targets_BRL.shape
    targets_BN = targets_BRL.reshape(batch_size, -1)
    queries_BQ = None
    if masked_BGM is not None:
      queries_BGM = masked_targets(batch)
      # Columns that pad the masked ones copy nothing; exported functions have none.
      if "decoder_loss_weights" in batch:
        queries_BGM = jnp.where(batch["decoder_loss_weights"] > 0, queries_BGM, 0)
      queries_BQ = queries_BGM.reshape(batch_size, -1)
    context = self._context(encoded, targets_BRL, queries_BQ, batch)
    added = _sum_of(
      self.ancestors.target_inputs(targets_BN, batch["target_depths"]),
      self._language_vectors(batch, "decoder", targets_BN.shape),
    )
    x_BND = self.token_embedder(
      batch["decoder_input_tokens"].reshape(targets_BN.shape),
      positions_BRL.reshape(targets_BN.shape),
      added,
    )
    visible_WLL = same_segment(targets_BRL.reshape(-1, length))
    if "target_prefix_lengths" in batch:
      prefix_BN = of_target(batch["target_prefix_lengths"], targets_BN)
      visible_WLL &= in_order(
        prefix_BN.reshape(-1, length), positions_BRL.reshape(-1, length)
      )
    x_WLD = x_BND.reshape(-1, length, x_BND.shape[-1])
    x, logits_BGMV = self.decoder(
      x_WLD, visible_WLL, context, masked_BGM, self.token_embedder
    )
    if logits_BGMV is None:
      return x, None
    copies = None if context.tokens is None else self.pointer(x, context.tokens)
    return logits_BGMV, copies

  def _language_vectors(
    self, batch: Mapping[str, Array], side: str, shape: tuple[int, ...]
  ) -> Array | None:
    """Returns what to add to the embedded tokens `[*shape, D]`, or None."""
    ids = batch.get(f"{side}_languages")
    if ids is None or not self.config.num_languages:
      return None
    dtype = jnp.dtype(self.config.dtype)
    # A product, as the gradient of a gather would be a scatter; nothing for 0.
    onehot = jax.nn.one_hot(ids.reshape(shape) - 1, len(self.languages_XD), dtype=dtype)
    return onehot @ self.languages_XD.astype(dtype)


def of_target(values_BT: Array, targets: Array) -> Array:
  """Returns each token's value by its target from 1, that of the first for padding.

  Args:
    values_BT: values of the targets.
    targets: target of each token `[B, ...]`.
  """
  return jax.vmap(lambda values_T, ids: values_T[jnp.maximum(ids - 1, 0)])(
    values_BT, targets
  )


def _sum_of(one: Array | None, other: Array | None) -> Array | None:
  if one is None or other is None:
    return other if one is None else one
  return one + other
