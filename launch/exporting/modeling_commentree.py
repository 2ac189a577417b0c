"""A model of comment trees for `transformers`: a comment's masked tokens by its thread.

    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_pretrained(FOLDER, trust_remote_code=True)

`commentree convert --to=hugging_face --whole_model` copies this file to the folder; it
takes PyTorch and `transformers` alone. Parameters have commentree's names and shapes.
There is no dropout.

Each comment that another one answers is encoded once, by itself, and pooled to vectors;
the decoder reads comments with masks, each attending to the vectors of its ancestors.

Letters at the end of tensors' names: T comments with masks, L their tokens; C comments
that these see, K their tokens; A ancestors of a comment; J vectors that a comment is
pooled to, S vectors that one attends to, N tokens that it may copy; D width of states,
H heads, X width of a head; V tokens of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

# What masks hide; next to any score its exponential is 0 in float32.
HIDDEN = -1e9
# T5's relative positions: how many biases a head has, and up to which distance.
NUM_BUCKETS, MAX_DISTANCE = 32, 128
# Copies of less weight count for nothing; smaller vectors are not resized.
LEAST_WEIGHT, LEAST_SQUARE = 2.0**-120, 1e-12

ACTIVATIONS = {
  "gelu": lambda x: F.gelu(x, approximate="tanh"),
  "gelu_exact": F.gelu,
  "relu": F.relu,
  "silu": F.silu,
  "linear": lambda x: x,
}

# What comments attend to `[T, S, D]`, what of it is visible, and what is added to
# scores; the last two broadcast to `[T, H, L, S]`.
Above = tuple[Tensor, Tensor, Tensor | None]


class CommentTreeConfig(PretrainedConfig):
  """What config.json says: commentree's ModelConfig, by the names that it has there."""

  model_type = "commentree"


def ancestors_of(parents: Sequence[int], most: int) -> tuple[Tensor, Tensor]:
  """Returns which comments of a tree each of them sees, and the hops to them.

  Args:
    parents: of each comment the one that it answers, by its place; -1 for the post.
    most: `config.max_ancestors`: of more ancestors the nearest are seen, and the post.

  Returns:
    Places and hops, int64 `[T, A]`, the nearest first, -1 and 0 where there is none.
  """
  found = torch.full((len(parents), most), -1)
  hops = torch.zeros_like(found)
  paths: list[list[int]] = []
  for place, parent in enumerate(parents):
    path = [parent, *paths[parent]] if parent >= 0 else []
    paths.append(path)
    if len(path) > most > 1:
      found[place, -1], hops[place, -1] = path[-1], len(path)
      path = path[: most - 1]
    for column, ancestor in enumerate(path[:most]):
      found[place, column], hops[place, column] = ancestor, column + 1
  return found, hops


class Dense(nn.Module):
  """A linear map of the last axis, its kernel `[inputs, outputs]`."""

  def __init__(self, inputs: int, outputs: int, *, bias: bool):
    super().__init__()
    self.kernel = nn.Parameter(torch.empty(inputs, outputs))
    self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

  def forward(self, x: Tensor) -> Tensor:
    """Maps `[..., inputs]` to `[..., outputs]`."""
    y = x @ self.kernel
    return y if self.bias is None else y + self.bias


class Norm(nn.Module):
  """RMSNorm of T5, or LayerNorm of RoBERTa."""

  def __init__(self, config: CommentTreeConfig):
    super().__init__()
    self.scale = nn.Parameter(torch.empty(config.emb_dim))
    self.bias, self.epsilon = None, 1e-6
    if config.family == "roberta":
      self.bias = nn.Parameter(torch.empty(config.emb_dim))
      self.epsilon = config.layer_norm_epsilon

  def forward(self, x: Tensor) -> Tensor:
    """Normalizes the last axis."""
    if self.bias is not None:
      return F.layer_norm(x, x.shape[-1:], self.scale, self.bias, self.epsilon)
    mean_square = x.square().mean(-1, keepdim=True)
    return x * torch.rsqrt(mean_square + self.epsilon) * self.scale


class Attention(nn.Module):
  """Attention of some vectors to others, of a few heads."""

  def __init__(self, config: CommentTreeConfig):
    super().__init__()
    joined, biased = config.num_heads * config.head_dim, config.family == "roberta"
    self.heads = config.num_heads
    # T5 leaves the division to the query's weights.
    self.scale = config.head_dim**-0.5 if biased else 1.0
    self.query, self.key, self.value = (
      Dense(config.emb_dim, joined, bias=biased) for _ in range(3)
    )
    self.out = Dense(joined, config.emb_dim, bias=biased)

  def forward(
    self, x_TLD: Tensor, seen_TSD: Tensor, visible: Tensor, bias: Tensor | None
  ) -> Tensor:
    """Attends where `visible`, with `bias` added; both broadcast to `[T, H, L, S]`."""

    def split(x: Tensor) -> Tensor:
      return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

    query_THLX, key_THSX = split(self.query(x_TLD)), split(self.key(seen_TSD))
    scores_THLS = query_THLX @ key_THSX.transpose(-1, -2) * self.scale
    if bias is not None:
      scores_THLS = scores_THLS + bias
    weights_THLS = scores_THLS.masked_fill(~visible, HIDDEN).softmax(-1)
    heads_THLX = weights_THLS @ split(self.value(seen_TSD))
    return self.out(heads_THLX.transpose(-2, -3).flatten(-2))


class Mlp(nn.Module):
  """The product of one or more activated projections, projected back."""

  def __init__(self, config: CommentTreeConfig):
    super().__init__()
    biased = config.family == "roberta"
    names = [f"wi_{i}" for i in range(len(config.mlp_activations))]
    self.gates = dict(
      zip(names if len(names) > 1 else ["wi"], config.mlp_activations, strict=True)
    )
    for name in self.gates:
      self.add_module(name, Dense(config.emb_dim, config.mlp_dim, bias=biased))
    self.wo = Dense(config.mlp_dim, config.emb_dim, bias=biased)

  def forward(self, x: Tensor) -> Tensor:
    """Returns `[..., D]`."""
    hidden = [ACTIVATIONS[f](self.get_submodule(n)(x)) for n, f in self.gates.items()]
    return self.wo(math.prod(hidden[1:], start=hidden[0]))


class Block(nn.Module):
  """A layer of the encoder or, with attention to ancestors, of the decoder."""

  def __init__(self, config: CommentTreeConfig, *, decodes: bool):
    super().__init__()
    self.before = config.family == "t5"
    self.own = "self_attention" if decodes else "attention"
    self.add_module(self.own, Attention(config))
    self.mlp = Mlp(config)
    parts = ["mlp"]
    # In RoBERTa's decoder one norm may stand behind both attentions.
    if self.before or not decodes or config.norm_before_ancestors:
      parts.append(self.own)
    self.encoder_decoder_attention = Attention(config) if decodes else None
    if decodes:
      parts.append("cross_attention")
    where = "pre" if self.before else "post"
    self.norms = {part: f"{where}_{part}_layer_norm" for part in parts}
    for name in self.norms.values():
      self.add_module(name, Norm(config))

  def add(self, part: str, x: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns `x` and what a part makes of it, with the norm before or behind."""
    norm = self.get_submodule(self.norms[part]) if part in self.norms else nn.Identity()
    return x + make(norm(x)) if self.before else norm(x + make(x))

  def forward(
    self, x_TLD: Tensor, visible: Tensor, bias: Tensor | None, above: Above | None
  ) -> Tensor:
    """Returns the next layer's states; `above` is what `Ancestors` returns."""
    own, look_up = self.get_submodule(self.own), self.encoder_decoder_attention
    x_TLD = self.add(self.own, x_TLD, lambda x: own(x, x, visible, bias))
    if above is not None and look_up is not None:
      x_TLD = self.add("cross_attention", x_TLD, lambda x: look_up(x, *above))
    return self.add("mlp", x_TLD, self.mlp)


class RelativePositions(nn.Module):
  """T5's learned bias of attention by relative position."""

  def __init__(self, config: CommentTreeConfig):
    super().__init__()
    self.rel_embedding = nn.Parameter(torch.empty(config.num_heads, NUM_BUCKETS))

  def forward(self, length: int) -> Tensor:
    """Returns the bias of comments of `length` tokens, `[H, L, L]`."""
    places = torch.arange(length, device=self.rel_embedding.device)
    offsets_LL = places[None] - places[:, None]  # key minus query
    side = NUM_BUCKETS // 2
    exact, distance = side // 2, offsets_LL.abs()
    ratio = distance.clamp(min=1).double() / exact + torch.finfo(torch.float32).eps
    rows = ratio.log() / math.log(MAX_DISTANCE / exact) * (side - exact)
    wide = (exact + rows.long()).clamp(max=side - 1)
    bucket = torch.where(distance < exact, distance, wide)
    return self.rel_embedding[:, bucket + side * (offsets_LL > 0)]


class Stack(nn.Module):
  """The encoder, or the decoder with what makes logits of its states."""

  def __init__(self, config: CommentTreeConfig, *, decodes: bool):
    super().__init__()
    layers = config.num_decoder_layers if decodes else config.num_encoder_layers
    self.layers = [f"layers_{i}" for i in range(layers)]
    for name in self.layers:
      self.add_module(name, Block(config, decodes=decodes))
    self.relpos_bias = self.final = None
    if config.family == "t5":
      self.relpos_bias = RelativePositions(config)
      self.final = "decoder_norm" if decodes else "encoder_norm"
      self.add_module(self.final, Norm(config))
    if decodes and config.family == "roberta":
      self.logits_transform = Dense(config.emb_dim, config.emb_dim, bias=True)
      self.logits_norm = Norm(config)
      self.logits_bias = nn.Parameter(torch.empty(config.vocab_size))
    elif decodes and not config.logits_via_embedding:
      self.logits_dense = Dense(config.emb_dim, config.vocab_size, bias=False)

  def forward(
    self, x_TLD: Tensor, mask_TL: Tensor, above: Above | None = None
  ) -> Tensor:
    """Returns the last states `[T, L, D]`; tokens see those that `mask_TL` has."""
    bias = None if self.relpos_bias is None else self.relpos_bias(x_TLD.shape[1])
    for name in self.layers:
      x_TLD = self.get_submodule(name)(x_TLD, mask_TL[:, None, None], bias, above)
    return x_TLD if self.final is None else self.get_submodule(self.final)(x_TLD)


class Embedder(nn.Module):
  """Tokens to vectors; RoBERTa's also have positions and a type, and are normalized."""

  def __init__(self, config: CommentTreeConfig):
    super().__init__()
    width = config.emb_dim
    self.embedding = nn.Parameter(torch.empty(config.vocab_size, width))
    self.learned = config.family == "roberta"
    if self.learned:
      self.offset, self.types = config.position_offset, config.type_vocab_size
      self.position_embedding = nn.Parameter(torch.empty(config.num_positions, width))
      if self.types:
        self.type_embedding = nn.Parameter(torch.empty(self.types, width))
      self.norm = Norm(config)

  def forward(self, ids_TL: Tensor) -> Tensor:
    """Returns `[T, L, D]`; a ValueError tells of too few positions."""
    x_TLD = self.embedding[ids_TL]
    if not self.learned:
      return x_TLD
    length, most = ids_TL.shape[1], len(self.position_embedding) - self.offset
    if length > most:
      raise ValueError(f"a comment of {length} tokens: the model has {most} positions")
    x_TLD = x_TLD + self.position_embedding[self.offset : self.offset + length]
    if self.types:
      x_TLD = x_TLD + self.type_embedding[0]
    return self.norm(x_TLD)


class Pooling(nn.Module):
  """Comments' states to vectors, as the run's setting `ModelConfig.pooling` says."""

  def __init__(self, config: CommentTreeConfig):
    super().__init__()
    self.kind, self.vectors = config.pooling, config.vectors_per_comment
    self.resized = config.normalize_pooled_vectors
    if self.kind == "attention":
      self.queries = nn.Parameter(torch.empty(self.vectors, config.emb_dim))

  def forward(self, x_CKD: Tensor, mask_CK: Tensor) -> tuple[Tensor, Tensor]:
    """Returns vectors `[C, J, D]`, 0 where unused, and which are used `[C, J]`."""
    if self.kind == "attention":
      scores_CKJ = x_CKD @ self.queries.T
      weights_CKJ = scores_CKJ.masked_fill(~mask_CK[..., None], HIDDEN).softmax(1)
      inside_CKJ = mask_CK[..., None].expand(weights_CKJ.shape)
      weights_CKJ = weights_CKJ * inside_CKJ
    else:
      # Token p of n belongs to span p * J / n; or, of `first`, to a vector of its own.
      places_K = torch.arange(x_CKD.shape[1], device=x_CKD.device)
      lengths_C1 = mask_CK.sum(1, keepdim=True).clamp(min=1)
      spans_CK = places_K * self.vectors // lengths_C1
      if self.kind == "first":
        spans_CK = places_K.expand(mask_CK.shape)
      of_span = torch.arange(self.vectors, device=x_CKD.device)
      inside_CKJ = mask_CK[..., None] & (spans_CK[..., None] == of_span)
      weights_CKJ = inside_CKJ / inside_CKJ.sum(1, keepdim=True).clamp(min=1)
    used_CJ = inside_CKJ.any(1)
    if self.kind == "max":
      hidden_CKJD = x_CKD[:, :, None].masked_fill(~inside_CKJ[..., None], -math.inf)
      vectors_CJD = hidden_CKJD.amax(1).masked_fill(~used_CJ[..., None], 0)
    else:
      vectors_CJD = torch.einsum("ckj,ckd->cjd", weights_CKJ.to(x_CKD.dtype), x_CKD)
    if self.resized:
      # The size of the comment's states; see `resize` in commentree.
      squares_CK = x_CKD.square().mean(-1) * mask_CK
      wanted_C = squares_CK.sum(1) / mask_CK.sum(1).clamp(min=1)
      own_CJ = vectors_CJD.square().mean(-1).clamp(min=LEAST_SQUARE)
      ratio_CJ = wanted_C.clamp(min=LEAST_SQUARE)[:, None] / own_CJ
      vectors_CJD = vectors_CJD * ratio_CJ.sqrt()[..., None]
    return vectors_CJD, used_CJ


class Ancestors(nn.Module):
  """What is known of where ancestors stand, and the vector for having none."""

  def __init__(self, config: CommentTreeConfig):
    super().__init__()
    self.farthest = config.max_ancestor_distance
    self.null_vector = nn.Parameter(torch.empty(config.emb_dim))
    self.distance_bias = self.distance_embedding = None
    if config.ancestor_positions == "relative_bias":
      shape = (config.num_heads, self.farthest + 1)
      self.distance_bias = nn.Parameter(torch.empty(shape))
    elif config.ancestor_positions == "distance":
      shape = (self.farthest + 1, config.emb_dim)
      self.distance_embedding = nn.Parameter(torch.empty(shape))

  def forward(
    self, vectors_TAJD: Tensor, visible_TAJ: Tensor, distances_TA: Tensor
  ) -> Above:
    """Returns what comments attend to, `Above`."""
    distances_TA = distances_TA.clamp(0, self.farthest)
    if self.distance_embedding is not None:
      vectors_TAJD = vectors_TAJD + self.distance_embedding[distances_TA][:, :, None]
    null_T1D = self.null_vector.expand(len(distances_TA), 1, -1)
    seen_TSD = torch.cat([null_T1D, vectors_TAJD.flatten(1, 2)], 1)
    sees_none_T1 = ~visible_TAJ.any((1, 2))[:, None]
    visible_TS = torch.cat([sees_none_T1, visible_TAJ.flatten(1)], 1)
    bias_TH1S = None
    if self.distance_bias is not None:
      bias_HTA1 = self.distance_bias[:, distances_TA][..., None]
      bias_HTX = bias_HTA1.expand(-1, *visible_TAJ.shape).flatten(2)
      # The null vector has no distance.
      bias_TH1S = F.pad(bias_HTX, (1, 0)).transpose(0, 1)[:, :, None]
    return seen_TSD, visible_TS[:, None, None], bias_TH1S


class Pointer(nn.Module):
  """Copies of ancestors' tokens, mixed with what the logits say."""

  def __init__(self, config: CommentTreeConfig):
    super().__init__()
    width, joined = config.emb_dim, config.num_heads * config.head_dim
    self.query, self.key = (Dense(width, joined, bias=False) for _ in range(2))
    self.salience = nn.Parameter(torch.empty(width))
    self.gate = nn.Parameter(torch.empty(width))
    self.log_odds = nn.Parameter(torch.empty(1))
    self.farthest = config.max_ancestor_distance
    self.distance_bias = nn.Parameter(torch.empty(self.farthest + 1))

  def forward(self, x_TLD: Tensor, logits_TLV: Tensor, *tokens: Tensor) -> Tensor:
    """Returns logits in which copies are counted.

    Args:
      x_TLD: the decoder's states.
      logits_TLV: by the vocabulary alone.
      *tokens: of ancestors: states `[T, A, K, D]`, ids and which of them are tokens
        `[T, A, K]`, hops to each ancestor `[T, A]`.
    """
    states_TAKD, ids_TAK, visible_TAK, distances_TA = tokens
    query_TLX, key_TNX = self.query(x_TLD), self.key(states_TAKD).flatten(1, 2)
    bias_TA1 = self.distance_bias[distances_TA.clamp(0, self.farthest)][..., None]
    salience_T1N = (states_TAKD @ self.salience + bias_TA1).flatten(1)[:, None]
    visible_T1N = visible_TAK.flatten(1)[:, None]
    scores_TLN = query_TLX @ key_TNX.transpose(1, 2) * query_TLX.shape[-1] ** -0.5
    scores_TLN = (scores_TLN + salience_T1N).masked_fill(~visible_T1N, HIDDEN)
    weights_TLN = scores_TLN.softmax(-1) * visible_T1N
    ids_TLN = ids_TAK.flatten(1)[:, None].expand(weights_TLN.shape)
    copies_TLV = torch.zeros_like(logits_TLV).scatter_add(-1, ids_TLN, weights_TLN)
    log_odds_TL1 = (x_TLD @ self.gate + self.log_odds)[..., None]
    copied_TLV = copies_TLV > LEAST_WEIGHT
    log_ratio_TLV = log_odds_TL1 + copies_TLV.where(copied_TLV, 1).log()
    raised_TLV = F.softplus(log_ratio_TLV - logits_TLV.log_softmax(-1))
    return logits_TLV + raised_TLV.where(copied_TLV, 0)


class CommentTreeForMaskedLM(PreTrainedModel):
  """Masked tokens of comments, given the comments above them."""

  config_class = CommentTreeConfig

  def __init__(self, config: CommentTreeConfig):
    super().__init__(config)
    self.token_embedder = Embedder(config)
    self.encoder = Stack(config, decodes=False)
    self.pooling = Pooling(config)
    self.ancestors = Ancestors(config)
    self.decoder = Stack(config, decodes=True)
    if config.ancestor_pointer:
      self.pointer = Pointer(config)
    self.post_init()

  def _init_weights(self, module: nn.Module) -> None:
    for name, weights in module.named_parameters(recurse=False):
      nn.init.normal_(weights, float(name == "scale"), std=0.02)

  def encode(
    self, input_ids: Tensor, attention_mask: Tensor | None = None
  ) -> tuple[Tensor, Tensor, Tensor]:
    """Encodes comments, each by itself.

    Args:
      input_ids: `[C, K]`, padded on the right.
      attention_mask: `[C, K]`, 0 for padding; without it nothing is.

    Returns:
      Vectors `[C, J, D]`, which of them are used `[C, J]`, and states `[C, K, D]`.
    """
    mask_CK = _mask(input_ids, attention_mask)
    states_CKD = self.encoder(self.token_embedder(input_ids), mask_CK)
    return *self.pooling(states_CKD, mask_CK), states_CKD

  def forward(
    self,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    context_input_ids: Tensor | None = None,
    context_attention_mask: Tensor | None = None,
    ancestors: Tensor | None = None,
    ancestor_distances: Tensor | None = None,
    labels: Tensor | None = None,
  ) -> MaskedLMOutput:
    """Predicts tokens of comments.

    Args:
      input_ids: comments with masks `[T, L]`, padded on the right.
      attention_mask: `[T, L]`, 0 for padding; without it nothing is.
      context_input_ids: comments that they see `[C, K]`, likewise; None for none.
      context_attention_mask: likewise.
      ancestors: of each comment with masks the places in `context_input_ids` of those
        above it, the nearest first, -1 for none, `[T, A]`; see `ancestors_of`.
      ancestor_distances: hops to them `[T, A]`, 1 for the parent; if None, 1 to A.
      labels: tokens that were masked `[T, L]`, -100 where none was.

    Returns:
      Logits `[T, L, V]` and, of labels, the mean loss in nats.
    """
    if (context_input_ids is None) != (ancestors is None):
      raise ValueError("give context_input_ids and ancestors, both or neither")
    if context_input_ids is None or ancestors is None:
      context_input_ids = input_ids.new_zeros((1, 1))
      context_attention_mask = torch.zeros_like(context_input_ids)
      ancestors = input_ids.new_full((len(input_ids), 1), -1)
    if ancestor_distances is None:
      hops_A = torch.arange(1, ancestors.shape[1] + 1, device=ancestors.device)
      ancestor_distances = hops_A.expand(ancestors.shape)
    encoded = self.encode(context_input_ids, context_attention_mask)
    vectors_CJD, used_CJ, states_CKD = encoded
    there_TA1, places_TA = (ancestors >= 0)[..., None], ancestors.clamp(min=0)
    used_TAJ = used_CJ[places_TA] & there_TA1
    above = self.ancestors(vectors_CJD[places_TA], used_TAJ, ancestor_distances)
    mask_TL = _mask(input_ids, attention_mask)
    x_TLD = self.decoder(self.token_embedder(input_ids), mask_TL, above)
    logits_TLV = self._logits(x_TLD)
    if self.config.ancestor_pointer:
      mask_CK = _mask(context_input_ids, context_attention_mask)
      tokens = [each[places_TA] for each in (states_CKD, context_input_ids, mask_CK)]
      tokens[2] = tokens[2] & there_TA1
      logits_TLV = self.pointer(x_TLD, logits_TLV, *tokens, ancestor_distances)
    loss = None
    if labels is not None:
      loss = F.cross_entropy(logits_TLV.flatten(0, 1), labels.flatten())
    return MaskedLMOutput(loss=loss, logits=logits_TLV)

  def _logits(self, x_TLD: Tensor) -> Tensor:
    table_VD = self.token_embedder.embedding
    if self.config.family == "roberta":
      activation = ACTIVATIONS[self.config.mlp_activations[0]]
      x_TLD = self.decoder.logits_norm(activation(self.decoder.logits_transform(x_TLD)))
      return x_TLD @ table_VD.T + self.decoder.logits_bias
    if self.config.logits_via_embedding:
      return x_TLD @ table_VD.T * self.config.emb_dim**-0.5
    return self.decoder.logits_dense(x_TLD)


def _mask(ids: Tensor, mask: Tensor | None) -> Tensor:
  """Returns where there are tokens, bool."""
  return torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
