"""Settings of the model: plain data, importable without JAX.

gin binds these fields (see `launch/settings/configurables.py`); `models/` reads them
and knows nothing of gin.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from commentree.errors import UserError
from commentree.setting_checks import check_choice, check_range

Pooling = Literal["mean", "max", "first", "attention"]
AncestorPositions = Literal["none", "distance", "depth", "sinusoidal", "relative_bias"]
RematPolicy = Literal["none", "full", "minimal"]
DType = Literal["float32", "bfloat16"]
Condition = Literal["true", "shuffled", "parent_only", "none"]
"""Which ancestors the targets see in an evaluation."""
Activation = Literal["gelu", "gelu_exact", "relu", "silu", "linear"]
FamilyName = Literal["t5", "roberta"]
HeadName = Literal["masked_lm", "classification", "tagging"]
Tagger = Literal["linear", "gru", "crf"]
ClassifyFrom = Literal["mean", "first"]
Context = Literal["pooled", "concatenated", "none"]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Architecture and loss of a `CommentTreeModel`.

  The first block has T5X's `T5Config` names and meanings, and the parameter shapes
  of T5 1.1 follow from it. Sizes are numbers of units, not bytes.
  """

  # Kind of the blocks: T5 1.1's, or those of RoBERTa and BERT.
  family: FamilyName = "t5"

  # 0: as many as the vocabulary needs, rounded up to a multiple of 128.
  vocab_size: int = 0
  emb_dim: int = 128
  num_heads: int = 4
  num_encoder_layers: int = 2
  num_decoder_layers: int = 2
  head_dim: int = 32
  mlp_dim: int = 256
  mlp_activations: tuple[str, ...] = ("gelu", "linear")
  dropout_rate: float = 0.0
  dtype: DType = "bfloat16"
  scan_layers: bool = False
  remat_policy: RematPolicy = "none"
  # Of the family "t5" alone: whether all buckets of the decoder's relative positions
  # are for tokens before the query, as in T5's decoder, for objectives that read in
  # order; else half of them are for tokens behind it.
  causal_position_buckets: bool = False

  # Of the family "t5" alone: whether logits are products with the table of tokens over
  # the square root of `emb_dim`, as in T5 1.0; "roberta" always has the table's.
  logits_via_embedding: bool = False

  # Of the family "roberta" alone, with RoBERTa's values; BERT: 512, 0, 2 and 1e-12.
  # Rows of the table of positions, of which a comment's tokens take those from
  # `position_offset` on; token types, of which all tokens have the first. Whether the
  # decoder normalizes between self-attention and attention to ancestors, as decoders of
  # Hugging Face with cross-attention do; else behind both, so that a decoder whose
  # attention to ancestors adds nothing is the encoder that it started from.
  num_positions: int = 514
  position_offset: int = 2
  type_vocab_size: int = 1
  layer_norm_epsilon: float = 1e-5
  norm_before_ancestors: bool = False

  # What the decoder sees of the ancestors: vectors that each comment is pooled to, the
  # states of so many tokens of their texts, read as one, the nearest first, or nothing.
  context: Context = "pooled"
  max_context_tokens: int = 256

  # So many tokens of the nearest ancestors whose states the decoder sees beside the
  # vectors of all; 0 for none.
  nearest_context_tokens: int = 0

  # How a comment becomes vectors.
  pooling: Pooling = "mean"
  vectors_per_comment: int = 1
  # Whether each vector is given the size of its comment's states, see `pooling.resize`.
  normalize_pooled_vectors: bool = False

  # Layers in which comments' vectors attend to those of their own ancestors before
  # targets attend to them, see `thread_transformer`.
  num_thread_layers: int = 0

  # What a target knows of where its ancestors stand.
  ancestor_positions: AncestorPositions = "relative_bias"
  # Hops, and learned depths, beyond it count as it.
  max_ancestor_distance: int = 32
  # Share of training targets whose ancestors are hidden (half of them: all but the
  # parent), so that a model without context stays calibrated.
  ancestor_dropout_rate: float = 0.0

  # Whether masked tokens may be copied from ancestors, see `pointer`, and the weight of
  # the loss of the logits alone, beside that of what they and the copies say.
  ancestor_pointer: bool = False
  pointer_logits_loss_weight: float = 1.0

  # Whether the ancestors' vectors move the logits of masked tokens directly too, see
  # `vectors_to_logits`.
  vectors_to_logits: bool = False

  # Weight of the loss that tells a comment from those of other trees by what is above
  # it, see `matching`; 0 for none.
  reply_matching_weight: float = 0.0

  # Languages that tokens may be of (`tlm`); each has a vector, added to its tokens.
  num_languages: int = 0

  # What is predicted: tokens of the vocabulary, or one of so many labels of comments,
  # or of their tokens. 0 labels: as many as the data has.
  head: HeadName = "masked_lm"
  num_labels: int = 0
  tagger: Tagger = "linear"
  # The vector that a comment's label comes from: the mean of its states, or the first.
  classify_from: ClassifyFrom = "mean"
  head_dropout_rate: float = 0.1
  # Weight of each label in the loss; () for equal ones.
  class_weights: tuple[float, ...] = ()

  # Loss.
  label_smoothing: float = 0.0
  z_loss: float = 1e-4

  def __post_init__(self):
    check_choice("ModelConfig", "family", self.family, FamilyName)
    for field in (
      "vocab_size",
      "position_offset",
      "type_vocab_size",
      "nearest_context_tokens",
      "num_thread_layers",
      "num_languages",
      "num_labels",
    ):
      check_range("ModelConfig", field, getattr(self, field), 0, whole=True)
    for field in (
      "emb_dim",
      "num_heads",
      "num_encoder_layers",
      "num_decoder_layers",
      "head_dim",
      "mlp_dim",
      "max_context_tokens",
      "vectors_per_comment",
      "max_ancestor_distance",
      "num_positions",
    ):
      check_range("ModelConfig", field, getattr(self, field), 1, whole=True)
    for field in (
      "dropout_rate",
      "ancestor_dropout_rate",
      "head_dropout_rate",
      "label_smoothing",
    ):
      check_range("ModelConfig", field, getattr(self, field), 0, 1)
    for field in (
      "z_loss",
      "layer_norm_epsilon",
      "pointer_logits_loss_weight",
      "reply_matching_weight",
    ):
      check_range("ModelConfig", field, getattr(self, field), 0)
    for field in (
      "causal_position_buckets",
      "logits_via_embedding",
      "norm_before_ancestors",
      "normalize_pooled_vectors",
      "ancestor_pointer",
      "vectors_to_logits",
    ):
      value = getattr(self, field)
      if not isinstance(value, bool):
        raise UserError(f"ModelConfig.{field} = {value!r}: must be True or False")
    if self.logits_via_embedding and self.family != "t5":
      raise UserError(
        "ModelConfig.logits_via_embedding = True: must be False with ModelConfig.family"
        f" = {self.family!r}, whose logits are by the table of tokens anyway"
      )
    if self.position_offset >= self.num_positions:
      raise UserError(
        f"ModelConfig.position_offset = {self.position_offset}: must be less than"
        f" num_positions = {self.num_positions}"
      )
    # gin hands over lists; a frozen configuration must be hashable.
    object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
    if not self.mlp_activations:
      raise UserError("ModelConfig.mlp_activations = (): must name at least one")
    for activation in self.mlp_activations:
      check_choice("ModelConfig", "mlp_activations", activation, Activation)
    check_choice("ModelConfig", "context", self.context, Context)
    check_choice("ModelConfig", "pooling", self.pooling, Pooling)
    if self.context == "concatenated":
      self._check_concatenated()
    if self.context != "pooled" and self.nearest_context_tokens:
      raise UserError(
        f"ModelConfig.nearest_context_tokens = {self.nearest_context_tokens}: must be 0"
        f" with ModelConfig.context = {self.context!r}: it is of tokens beside pooled"
        " vectors"
      )
    if self.context == "none":
      for field in (
        "vectors_to_logits",
        "normalize_pooled_vectors",
        "num_thread_layers",
        "reply_matching_weight",
      ):
        value = getattr(self, field)
        if value:
          raise UserError(
            f"ModelConfig.{field} = {value}: must be {type(value)(0)} with"
            " ModelConfig.context = 'none', which reads no thread"
          )
    if self.ancestor_pointer and self.label_smoothing:
      raise UserError(
        f"ModelConfig.label_smoothing = {self.label_smoothing}: must be 0 with"
        " ModelConfig.ancestor_pointer, whose loss needs the likelihood of one token"
      )
    check_choice("ModelConfig", "head", self.head, HeadName)
    check_choice("ModelConfig", "tagger", self.tagger, Tagger)
    check_choice("ModelConfig", "classify_from", self.classify_from, ClassifyFrom)
    object.__setattr__(self, "class_weights", tuple(self.class_weights))
    for weight in self.class_weights:
      check_range("ModelConfig", "class_weights", weight, 0)
    if self.head == "tagging" and self.num_labels and self.num_labels % 2 == 0:
      raise UserError(
        f"ModelConfig.num_labels = {self.num_labels}: must be odd: a tag for what is"
        " outside, and two for each kind of span, its beginning and its inside"
      )
    if len(self.class_weights) not in (0, self.num_labels) and self.num_labels:
      raise UserError(
        f"ModelConfig.class_weights has {len(self.class_weights)} weights: must have"
        f" one for each of the num_labels = {self.num_labels} labels"
      )
    check_choice(
      "ModelConfig", "ancestor_positions", self.ancestor_positions, AncestorPositions
    )
    check_choice("ModelConfig", "remat_policy", self.remat_policy, RematPolicy)
    check_choice("ModelConfig", "dtype", self.dtype, DType)

  def _check_concatenated(self) -> None:
    """Raises UserError for what a model without pooled vectors cannot be set to."""
    if self.ancestor_pointer:
      raise UserError(
        "ModelConfig.ancestor_pointer = True: must be False with ModelConfig.context ="
        " 'concatenated', which attends to all of its tokens anyway"
      )
    for field, default in (
      ("pooling", "mean"),
      ("vectors_per_comment", 1),
      ("vectors_to_logits", False),
      ("normalize_pooled_vectors", False),
      ("num_thread_layers", 0),
      ("reply_matching_weight", 0),
    ):
      if getattr(self, field) != default:
        raise UserError(
          f"ModelConfig.{field} = {getattr(self, field)!r}: must be {default!r} with"
          " ModelConfig.context = 'concatenated', which pools no comments"
        )
    positions = self.num_positions - self.position_offset
    if self.family == "roberta" and self.max_context_tokens > positions:
      raise UserError(
        f"ModelConfig.max_context_tokens = {self.max_context_tokens}: must be at most"
        f" {positions}, the positions that ModelConfig.num_positions ="
        f" {self.num_positions} leaves after ModelConfig.position_offset ="
        f" {self.position_offset}"
      )
