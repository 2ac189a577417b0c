"""Settings of the model: plain data, importable without JAX.

gin binds these fields (see `launch/settings/configurables.py`); `models/` reads them
and knows nothing of gin.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from commentree.errors import UserError
from commentree.settings import (
  MayChange,
  NonNegative,
  NonNegativeInt,
  PositiveInt,
  Share,
  check_fields,
)

Pooling = Literal["mean", "max", "first", "attention"]
AncestorPositions = Literal["none", "distance", "depth", "sinusoidal", "relative_bias"]
Attention = Literal["auto", "xla", "pallas"]
RematPolicy = Literal["none", "full", "attention", "minimal"]
DType = Literal["float32", "bfloat16"]
Condition = Literal["true", "shuffled", "parent_only", "none"]
"""Which ancestors the targets see in an evaluation."""
Activation = Literal["gelu", "gelu_exact", "relu", "silu", "linear"]
FamilyName = Literal["t5", "roberta"]
HeadName = Literal["masked_lm", "classification", "tagging", "regression"]
RegressionLoss = Literal["squared", "ranking"]
Tagger = Literal["linear", "gru", "crf"]
ClassifyFrom = Literal["mean", "first"]
Context = Literal["pooled", "concatenated", "none"]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Architecture and loss of a `CommentTreeModel`.

  The names and meanings are T5X's `T5Config`'s where it has them, and the parameter
  shapes of T5 1.1 follow from it. Sizes are numbers of units, not bytes.

  Attributes:
    family: kind of the blocks: 't5' for T5 1.1's, 'roberta' for those of RoBERTa and
      BERT.
    vocab_size: rows of the table of tokens; 0 for as many as the vocabulary needs,
      rounded up to a multiple of 128.
    emb_dim: width of the states between layers.
    num_heads: heads of each attention.
    num_encoder_layers: layers that read a comment by itself.
    num_decoder_layers: layers that read a target with its ancestors.
    head_dim: width of a head.
    mlp_dim: width of the hidden layer of each MLP.
    mlp_activations: of the MLP; several are multiplied with each other, as in T5 1.1's
      gated GELU.
    dropout_rate: share of values that dropout sets to 0 in training.
    dtype: of activations; parameters are float32.
    attention: what computes attention: 'xla' plain JAX; 'pallas' kernels for TPUs,
      whose scores stay in on-chip memory; 'auto' kernels where they can: on TPUs
      from v4 on, in rows of a multiple of 128 tokens. Results differ by rounding alone.
      Plain JAX always reads tokens that are written one by one, ancestors in
      evaluations, which tell of attention to them, and ancestors with
      `ancestor_positions` 'distance' or with tokens of theirs.
    scan_layers: whether layers are compiled once and run in a loop, the last one of all
      tokens, as the others, and not of masked ones alone.
    remat_policy: what the backward pass computes again to save memory: 'none' nothing,
      'full' whole layers, 'attention' all but the outputs of attention kernels,
      'minimal' all but these and matrix products.
    causal_position_buckets: of the family 't5': whether all buckets of the decoder's
      relative positions are for tokens before the query, as in T5's decoder, for
      objectives that read in order; else half of them are for tokens behind it.
    logits_via_embedding: of the family 't5': whether logits are products with the table
      of tokens over the square root of `emb_dim`, as in T5 1.0; 'roberta' always has
      the table's.
    num_positions: of the family 'roberta': rows of the table of positions. RoBERTa's
      value is the default; BERT's is 512.
    position_offset: of the family 'roberta': the row of a comment's first token; BERT:
      0.
    type_vocab_size: of the family 'roberta': token types, of which all tokens have the
      first; BERT: 2.
    layer_norm_epsilon: of the family 'roberta'; BERT: 1e-12.
    norm_before_ancestors: of the family 'roberta': whether the decoder normalizes
      between self-attention and attention to ancestors, as decoders of Hugging Face
      with cross-attention do; else behind both, so that a decoder whose attention to
      ancestors adds nothing is the encoder that it started from.
    context: what the decoder sees of the ancestors: 'pooled' for vectors that each
      comment is pooled to; 'concatenated' for the states of `max_context_tokens`
      tokens of their texts, read as one, the nearest first; 'none' for nothing.
    max_context_tokens: of the context 'concatenated'.
    nearest_context_tokens: so many tokens of the nearest ancestors whose states the
      decoder sees beside the vectors of all; 0 for none.
    pooling: how a comment becomes vectors: see `pooling`.
    vectors_per_comment: how many.
    normalize_pooled_vectors: whether each vector is given the size of its comment's
      states; see `pooling.resize`.
    num_thread_layers: layers in which comments' vectors attend to those of their own
      ancestors before targets attend to them; see `thread_transformer`.
    ancestor_positions: what a target knows of where its ancestors stand.
    max_ancestor_distance: hops, and learned depths, beyond it count as it.
    ancestor_dropout_rate: share of training targets whose ancestors are hidden (half of
      them: all but the parent), so that a model without context stays calibrated.
    ancestor_pointer: whether masked tokens may be copied from ancestors; see `pointer`.
    pointer_logits_loss_weight: weight of the loss of the logits alone, beside that of
      what they and the copies say.
    vectors_to_logits: whether the ancestors' vectors move the logits of masked tokens
      directly too; see `vectors_to_logits`.
    reply_matching_weight: weight of the loss that tells a comment from those of other
      trees by what is above it, see `matching`; 0 for none.
    num_languages: languages that tokens may be of ('tlm'); each has a vector, added to
      its tokens.
    head: what is predicted: 'masked_lm' for tokens of the vocabulary, 'classification'
      for a label of each comment, 'tagging' for one of each token, 'regression' for a
      number of each comment.
    num_labels: how many labels there are; 0 for as many as the data has. 1 of the head
      'regression'.
    tagger: of the head 'tagging': what labels come from.
    classify_from: the vector that a comment's label or number comes from: the mean of
      its states, or the first.
    regression_loss: of the head 'regression': 'squared' for the squared error of each
      number; 'ranking' for the order of replies to the same comment, see `regression`.
    head_dropout_rate: as `dropout_rate`, of heads for labels and numbers.
    class_weights: weight of each label in the loss; () for equal ones.
    label_smoothing: share of the likelihood that the loss spreads over all tokens.
    z_loss: weight of the squared logarithm of the softmax's normalizer in the loss.
  """

  family: FamilyName = "t5"
  vocab_size: NonNegativeInt = 0
  emb_dim: PositiveInt = 128
  num_heads: PositiveInt = 4
  num_encoder_layers: PositiveInt = 2
  num_decoder_layers: PositiveInt = 2
  head_dim: PositiveInt = 32
  mlp_dim: PositiveInt = 256
  mlp_activations: tuple[Activation, ...] = ("gelu", "linear")
  dropout_rate: Share = 0.0
  dtype: DType = "bfloat16"
  attention: MayChange[Attention] = "auto"
  scan_layers: bool = False
  remat_policy: MayChange[RematPolicy] = "none"
  causal_position_buckets: bool = False
  logits_via_embedding: bool = False

  num_positions: PositiveInt = 514
  position_offset: NonNegativeInt = 2
  type_vocab_size: NonNegativeInt = 1
  layer_norm_epsilon: NonNegative = 1e-5
  norm_before_ancestors: bool = False

  context: Context = "pooled"
  max_context_tokens: PositiveInt = 256
  nearest_context_tokens: NonNegativeInt = 0
  pooling: Pooling = "mean"
  vectors_per_comment: PositiveInt = 1
  normalize_pooled_vectors: bool = False
  num_thread_layers: NonNegativeInt = 0
  ancestor_positions: AncestorPositions = "relative_bias"
  max_ancestor_distance: PositiveInt = 32
  ancestor_dropout_rate: Share = 0.0
  ancestor_pointer: bool = False
  pointer_logits_loss_weight: NonNegative = 1.0
  vectors_to_logits: bool = False
  reply_matching_weight: NonNegative = 0.0
  num_languages: NonNegativeInt = 0

  head: HeadName = "masked_lm"
  num_labels: NonNegativeInt = 0
  tagger: Tagger = "linear"
  classify_from: ClassifyFrom = "mean"
  regression_loss: RegressionLoss = "squared"
  head_dropout_rate: Share = 0.1
  class_weights: tuple[NonNegative, ...] = ()
  label_smoothing: Share = 0.0
  z_loss: NonNegative = 1e-4

  def __post_init__(self):
    check_fields(self)
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
    if not self.mlp_activations:
      raise UserError("ModelConfig.mlp_activations = (): must name at least one")
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
    if self.head == "regression":
      for field, known in (("num_labels", (0, 1)), ("class_weights", ((),))):
        if getattr(self, field) not in known:
          raise UserError(
            f"ModelConfig.{field} = {getattr(self, field)}: must be left out with"
            " ModelConfig.head = 'regression', which predicts one number"
          )
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

  @property
  def last_layer_of_masked_tokens(self) -> bool:
    """Whether the decoder's last layer may be computed of masked tokens alone.

    Heads for labels read its output of all tokens. Where targets have keys of their
    own, all tokens of a comment attend together. Scanned layers are one program.
    """
    own_keys = self.context == "concatenated" or self.nearest_context_tokens > 0
    return self.head == "masked_lm" and not own_keys and not self.scan_layers

  def _check_concatenated(self) -> None:
    """Raises UserError for what a model without pooled vectors cannot be set to."""
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
