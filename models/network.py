"""The network: encode comments, pool them, decode targets given their ancestors."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn

from .ancestors import Ancestors
from .config import ModelConfig
from .layers import Array
from .pooling import CommentPooling
from .stacks import DecoderStack, EncoderStack, Family


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
    self.pooling = CommentPooling(cfg)
    self.ancestors = Ancestors(cfg)
    self.decoder = DecoderStack(cfg, self.family, self.deterministic)

  def __call__(self, batch: Mapping[str, Array]) -> Array:
    """Returns logits at the masked positions, `[B, R, M, V]` float32."""
    return self.decode(*self.encode(batch), batch)

  def encode(self, batch: Mapping[str, Array]) -> tuple[Array, Array]:
    """Returns pooled vectors `[B, E, J, D]` and which are in use `[B, E, J]`.

    Raises:
      UserError: if a comment as long as a row would be longer than the family can.
    """
    self.family.check_length(self.config, batch["encoder_segment_ids"].shape[-1])
    slots_BRL = batch["encoder_segment_ids"]
    rows = (-1, slots_BRL.shape[-1])
    x_RLD = self.token_embedder(
      batch["encoder_input_tokens"].reshape(rows),
      batch["encoder_positions"].reshape(rows),
      None,
    )
    x_RLD = self.encoder(x_RLD, slots_BRL.reshape(rows))
    return self.pooling(
      x_RLD.reshape(*slots_BRL.shape, -1),
      slots_BRL,
      batch["encoder_positions"],
      batch["encoder_slot_depths"].shape[-1],
    )

  def decode(
    self, vectors_BEJD: Array, used_BEJ: Array, batch: Mapping[str, Array]
  ) -> Array:
    """Returns logits `[B, R, M, V]` given what `encode` returned.

    Raises:
      UserError: as `encode`.
    """
    self.family.check_length(self.config, batch["decoder_segment_ids"].shape[-1])
    targets_BRL = batch["decoder_segment_ids"]
    masked_BRM = batch["decoder_masked_positions"]
    batch_size, _, length = targets_BRL.shape
    targets_BN = targets_BRL.reshape(batch_size, -1)
    context = self.ancestors.context(vectors_BEJD, used_BEJ, targets_BN, batch)
    x_BND = self.token_embedder(
      batch["decoder_input_tokens"].reshape(batch_size, -1),
      batch["decoder_positions"].reshape(batch_size, -1),
      self.ancestors.target_inputs(targets_BN, batch["target_depths"]),
    )
    logits_RMV = self.decoder(
      x_BND.reshape(-1, length, x_BND.shape[-1]),
      targets_BRL.reshape(-1, length),
      context,
      masked_BRM.reshape(-1, masked_BRM.shape[-1]),
      self.token_embedder,
    )
    return logits_RMV.reshape(*masked_BRM.shape, -1)
