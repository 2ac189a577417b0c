"""CommentTreeModel: the network behind T5X's model interface."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp

from commentree.errors import UserError
from commentree.models import batch as batch_lib
from commentree.models import diagnostics
from commentree.models.batch import masked_targets
from commentree.models.conditions import apply_condition, drop_ancestors
from commentree.models.config import Condition, ModelConfig
from commentree.models.context import threads
from commentree.models.context.encoded import Encoded
from commentree.models.context.pooling import vector_sums
from commentree.models.decoding import decoding
from commentree.models.decoding.decoding import Replies
from commentree.models.decoding.decoding_config import DecodingConfig
from commentree.models.heads import heads, matching, regression, scored
from commentree.models.heads.heads import Scores
from commentree.models.interface import Batch, Metrics, PyTree
from commentree.models.layers import Array
from commentree.models.metrics import metrics_of_sums
from commentree.models.network import CommentTreeTransformer
from commentree.models.transformer.roberta import ROBERTA
from commentree.models.transformer.stacks import Family
from commentree.models.transformer.t5 import T5
from commentree.settings import check_range

FAMILIES: dict[str, Family] = {"t5": T5, "roberta": ROBERTA}


class CommentTreeModel:
  """A model of comment trees, as trainers see it: of masked tokens, labels or numbers.

  Runs under our trainer and under T5X's (`interface.Model`). Batches are forests
  (`batch.FEATURE_AXES`). With a head (`ModelConfig.head`) labels or numbers stand where
  the tokens to predict do, and all that is said of those holds of them.
  """

  def __init__(
    self,
    config: ModelConfig,
    *,
    input_vocabulary: Any = None,
    output_vocabulary: Any = None,
    optimizer_def: Any = None,
    feature_converter_cls: Callable[..., Any] | None = None,
    loss_normalizing_factor: float | None = None,
    decoding_config: DecodingConfig | None = None,
  ):
    """Makes the model; no parameters yet.

    Args:
      config: architecture and loss, with the vocabulary's size filled in.
      input_vocabulary: SeqIO vocabulary, for T5X's inference.
      output_vocabulary: likewise; the input's if None.
      optimizer_def: T5X's optimizer wrapper, for training under T5X.
      feature_converter_cls: makes forests of a SeqIO task, for T5X.
      loss_normalizing_factor: the summed loss is divided by it; if None, by the
        number of masked tokens in the batch. T5X adds up microbatches' gradients,
        so give a number when microbatching there.
      decoding_config: makes `predict_batch` write replies in place of a forest's
        targets; None for predictions at masked positions.
    """
    check_range("ModelConfig", "vocab_size", config.vocab_size, 1, whole=True)
    if config.head != "masked_lm":
      check_range("ModelConfig", "num_labels", config.num_labels, 1, whole=True)
    if loss_normalizing_factor is not None:
      check_range(
        "CommentTreeModel", "loss_normalizing_factor", loss_normalizing_factor, 1e-9
      )
    self.config = config
    self.module = CommentTreeTransformer(config, FAMILIES[config.family])
    self._init = jax.jit(
      lambda rng: self.module.init(rng, batch_lib.smallest()), inline=True
    )
    self.optimizer_def = optimizer_def
    self._input_vocabulary = input_vocabulary
    self._output_vocabulary = output_vocabulary
    self._feature_converter_cls = feature_converter_cls
    self._loss_normalizing_factor = loss_normalizing_factor
    self._decoding_config = decoding_config

  @property
  def FEATURE_CONVERTER_CLS(self) -> Callable[..., Any]:
    """The SeqIO feature converter given to the constructor."""
    if self._feature_converter_cls is None:
      raise UserError(
        "CommentTreeModel has no feature converter: give feature_converter_cls"
      )
    return self._feature_converter_cls

  @property
  def input_vocabulary(self) -> Any:
    """Vocabulary of the encoder's tokens."""
    return self._input_vocabulary

  @property
  def output_vocabulary(self) -> Any:
    """Vocabulary of the predicted tokens."""
    if self._output_vocabulary is None:
      return self._input_vocabulary
    return self._output_vocabulary

  def get_initial_variables(
    self,
    rng: Array,
    input_shapes: Mapping[str, tuple[int, ...]],
    input_types: Mapping[str, Any] | None = None,
  ) -> dict[str, PyTree]:
    """Draws the parameters.

    Their shapes depend on the configuration alone, so the network is traced on the
    smallest forest there is; once, though a run first asks for shapes.

    Args:
      rng: a random key.
      input_shapes: shapes of the batch's features; checked.
      input_types: ignored.

    Returns:
      `params`, and `params_axes` with each parameter's logical axes under its name
      plus `_axes`.

    Raises:
      UserError: if a feature is missing or has the wrong rank.
    """
    del input_types
    batch_lib.check_shapes(input_shapes)
    variables = self._init(rng)
    return {"params": variables["params"], "params_axes": variables["params_axes"]}

  def logits(
    self, params: PyTree, batch: Batch, dropout_rng: Array | None = None
  ) -> Array:
    """Returns logits at the masked positions, `[B, G, M, V]` float32.

    With a pointer copies are counted. With a head those of labels, `[B, G, M, C]`; for
    a chain, its emissions.

    Args:
      params: the parameters.
      batch: a batch of forests.
      dropout_rng: key of all dropout, of ancestors too; None for none.
    """
    return scored.logits_of(self._scores(params, batch, dropout_rng))

  def _scores(self, params: PyTree, batch: Batch, dropout_rng: Array | None) -> Scores:
    """Returns what the network does; arguments as `logits`."""
    return cast(Scores, self._apply(params, batch, dropout_rng, "__call__"))

  def _apply(
    self, params: PyTree, batch: Batch, dropout_rng: Array | None, method: str
  ) -> Any:
    if dropout_rng is None:
      return self.module.apply({"params": params}, batch, method=method)
    dropout_rng, ancestor_rng = jax.random.split(dropout_rng)
    if self.config.ancestor_dropout_rate > 0:
      batch = drop_ancestors(batch, ancestor_rng, self.config.ancestor_dropout_rate)
    training = self.module.clone(deterministic=False)
    rngs = {"dropout": dropout_rng}
    return training.apply({"params": params}, batch, rngs=rngs, method=method)

  def loss_sums(
    self, params: PyTree, batch: Batch, dropout_rng: Array | None
  ) -> tuple[Array, Array, dict[str, Array]]:
    """Computes sums that may be added over microbatches and devices.

    Returns:
      The summed loss, the summed weight of masked tokens, and sums by name:
      `loss` (negative log likelihood, nats), `z_loss`, `accuracy` (correct
      tokens), `weights`, `comments` (targets), `encoder_tokens`, `decoder_tokens`, and
      `encoder_positions`, `decoder_positions` (padding included). With a pointer not
      `accuracy`, for which copies would be spread over the vocabulary, but
      `logits_accuracy`, of the logits alone; of numbers neither, and `loss` is by
      `ModelConfig.regression_loss`. Weights of classes are in the first two alone. With
      reply matching also `reply_matching`, its summed loss in nats, which is in the
      first as the mean of its pairs times its weight for each masked token, and
      `reply_pairs`.
    """
    of_replies = None
    if self.config.reply_matching_weight:
      scores, of_replies = self._apply(params, batch, dropout_rng, "with_matching")
    else:
      scores = self._scores(params, batch, dropout_rng)
    with jax.named_scope("loss"):
      losses = scored.losses_of(self.config, scores, batch)
    weights_BGM = scored.weights_of(self.config, batch)
    weight_sum = jnp.sum(weights_BGM)
    sums = {
      "loss": jnp.sum(losses.nll * weights_BGM),
      "z_loss": jnp.sum(losses.z_loss * weights_BGM),
      "weights": weight_sum,
    }
    if losses.logits_correct is not None:
      sums["logits_accuracy"] = jnp.sum(losses.logits_correct * weights_BGM)
    elif losses.correct is not None:
      sums["accuracy"] = jnp.sum(losses.correct * weights_BGM)
    if self.config.class_weights:
      weights_BGM = weights_BGM * heads.class_weights_of(self.config, batch)
      weight_sum = jnp.sum(weights_BGM)
    for side in ("encoder", "decoder"):
      present_BRL = batch[f"{side}_segment_ids"] > 0
      if side == "encoder" and self.config.context == "concatenated":
        present_BRL = threads.find(batch, self.config.max_context_tokens).in_use_BTC
      sums[f"{side}_tokens"] = jnp.sum(present_BRL, dtype=jnp.float32)
      sums[f"{side}_positions"] = jnp.float32(present_BRL.size)
      if side == "decoder":
        begins_BRL = present_BRL & (
          batch_lib.positions_in_comment(batch, "decoder") == 0
        )
        sums["comments"] = jnp.sum(begins_BRL, dtype=jnp.float32)
    loss = jnp.sum(losses.loss * weights_BGM)
    if of_replies is not None:
      sums["reply_matching"], sums["reply_pairs"] = of_replies
      mean = of_replies[0] / jnp.maximum(of_replies[1], 1)
      loss += self.config.reply_matching_weight * mean * weight_sum
    return loss, weight_sum, sums

  def loss_fn(
    self,
    params: PyTree,
    batch: Batch,
    dropout_rng: Array | None,
    flax_mutables: PyTree | None = None,
  ) -> tuple[Array, Metrics]:
    """Returns the loss of a batch, all its masked tokens equal, and its metrics.

    Args:
      params: the parameters.
      batch: a batch of forests.
      dropout_rng: key of all dropout; None for none.
      flax_mutables: ignored; the network has no mutable state.
    """
    del flax_mutables
    loss_sum, weight_sum, sums = self.loss_sums(params, batch, dropout_rng)
    # A batch of empty forests has no loss.
    normalizer = jnp.where(weight_sum > 0, weight_sum, 1)
    if self._loss_normalizing_factor is not None:
      normalizer = jnp.float32(self._loss_normalizing_factor)
    return loss_sum / normalizer, metrics_of_sums(sums)

  def eval_fn(
    self, params: PyTree, batch: Batch, flax_mutables: PyTree | None = None
  ) -> tuple[Array, Metrics]:
    """Returns loss and metrics without dropout."""
    return self.loss_fn(params, batch, None, flax_mutables)

  def evaluate_batch(
    self, params: PyTree, batch: Batch, condition: Condition
  ) -> dict[str, Array]:
    """Evaluates a batch under an ancestor condition, token by token.

    Args:
      params: the parameters.
      batch: a batch of forests.
      condition: "true", "shuffled", "parent_only" or "none"; static under jit.

    Returns:
      `nll` (nats), `correct` (0 or 1) and `weights`, `[B, G, M]` float32, and
      `targets`, the target that each is of, from 1, `[B, G, M]` int32. With a head
      for labels also `labels` and `predictions`, and `chains`, the target of each
      label, 0 for none; of numbers no `correct`, but the sums `regression`. Under
      "true" also `attention`: sums over what each of the decoder's layers did with its
      ancestors, see `diagnostics`.
    """
    # Noted under all conditions, for differences between them: kernels, which would
    # compute what is not noted, round otherwise.
    scores, variables = self._noted_scores(params, apply_condition(batch, condition))
    noted: dict[str, Any] = {}
    if condition == "true":
      noted["attention"] = diagnostics.sums_by_layer(variables)
    losses = scored.losses_of(self.config, scores, batch)
    tokens: dict[str, Any] = {
      "nll": losses.nll,
      "weights": scored.weights_of(self.config, batch),
      "targets": masked_targets(batch),
      **noted,
    }
    if self.config.head == "regression":
      predicted_BGM = cast(Array, scores)[..., 0]
      sums = regression.sums_of(self.config, predicted_BGM, batch)
      return tokens | {"regression": sums}
    tokens["correct"] = losses.correct
    if self.config.head == "masked_lm":
      return tokens
    chains_BGM = heads.chains_of(batch)
    return tokens | {
      "labels": heads.labels_of(self.config, batch),
      "predictions": heads.best_labels(scores, chains_BGM),
      "chains": chains_BGM,
    }

  def _noted_scores(self, params: PyTree, batch: Batch) -> tuple[Scores, PyTree]:
    """Returns what `_scores` does, and what the decoder notes meanwhile."""
    noted = self.module.apply(
      {"params": params}, batch, mutable=[diagnostics.COLLECTION]
    )
    return cast(tuple[Scores, PyTree], noted)

  def encode(self, params: PyTree, batch: Batch) -> Encoded:
    """Encodes and pools the comments of a batch, see `encoded.Encoded`."""
    encoded = self.module.apply({"params": params}, batch, method=self.module.encode)
    return cast(Encoded, encoded)

  def decode_states(self, params: PyTree, encoded: Encoded, batch: Batch) -> Array:
    """Returns the decoder's last states of all tokens, `[B, R, L, D]`.

    Args:
      params: the parameters.
      encoded: what `encode` returned.
      batch: the batch.
    """
    method = self.module.decode_states
    return cast(
      Array, self.module.apply({"params": params}, encoded, batch, method=method)
    )

  def vector_sums(self, params: PyTree, batch: Batch) -> dict[str, Array]:
    """Adds up the pooled vectors of a batch's comments, see `pooling.vector_sums`.

    Returns nothing if comments are not pooled.
    """
    if self.config.context != "pooled":
      return {}
    encoded = self.encode(params, batch)
    return vector_sums(encoded.vectors_BEJD, encoded.used_BEJ)

  def recall_sums(self, params: PyTree, batch: Batch) -> dict[str, dict[str, Array]]:
    """Adds up how well threads find their replies, see `matching.recall_sums`.

    Returns:
      Sums by name: `vectors`, by the cosine of a comment's pooled vector with the mean
      of all above it; `vectors_of_parent`, with that of the comment it answers. With
      reply matching also `matcher` and `matcher_of_parent`, by what was trained to.
      Nothing if comments are not pooled.
    """
    if self.config.context != "pooled":
      return {}
    encoded = self.encode(params, batch)
    means_BED = matching.mean_vectors(encoded.vectors_BEJD, encoded.used_BEJ)
    even_P = jnp.zeros(self.config.max_ancestor_distance + 1)
    found = {}
    whole = matching.pairs_of(batch)
    parents = whole.of_parents()
    # The same pairs, however much of their threads is shown.
    whole = dataclasses.replace(whole, valid_BT=parents.valid_BT)
    for name, pairs in (("", whole), ("_of_parent", parents)):
      threads_BTD = matching.thread_means(means_BED, pairs, even_P)
      replies_BTD = matching.of_slots(means_BED, pairs.slots_BT)
      found[f"vectors{name}"] = matching.recall_sums(
        matching.unit(threads_BTD), matching.unit(replies_BTD), pairs
      )
      if self.config.reply_matching_weight:
        vectors: Any = self.module.apply(
          {"params": params}, encoded, pairs, method="match"
        )
        threads_BTD, replies_BTD, _ = vectors
        found[f"matcher{name}"] = matching.recall_sums(threads_BTD, replies_BTD, pairs)
    return found

  def matching_parts(
    self, params: PyTree, encoded: Encoded
  ) -> tuple[Array, Array, Array]:
    """Returns what vectors of threads and replies are made of, for later comparison.

    Without reply matching these are what comments are pooled to, and threads are plain
    means. See `matching.ReplyMatcher.in_parts`.
    """
    if not self.config.reply_matching_weight:
      means_BED = matching.mean_vectors(encoded.vectors_BEJD, encoded.used_BEJ)
      return means_BED, means_BED, jnp.zeros(self.config.max_ancestor_distance + 1)
    parts: Any = self.module.apply({"params": params}, encoded, method="match_in_parts")
    return cast(tuple[Array, Array, Array], parts)

  def predict_batch(
    self, params: PyTree, batch: Batch, rng: Array | None = None
  ) -> Array:
    """Returns the likeliest token at each masked position, `[B, G, M]`, or replies."""
    return self.predict_batch_with_aux(params, batch, rng)[0]

  def predict_batch_with_aux(
    self, params: PyTree, batch: Batch, rng: Array | None = None
  ) -> tuple[Array, dict[str, Array]]:
    """Predicts the masked tokens.

    Args:
      params: the parameters.
      batch: a batch of forests.
      rng: of sampled replies alone.

    Returns:
      The likeliest tokens, `[B, G, M]` int32, 0 where nothing is masked; and their
      log probabilities as `scores`. With a head also `probabilities` of all labels,
      `[B, G, M, C]`; those of a chain are marginals, its labels the likeliest path.
      Of numbers these, float32, as they are learnt, and nothing else.
      With a `decoding_config` the tokens of replies `[B, T, K, L]`, and their log
      probabilities as `scores` `[B, T, K]`.
    """
    if self._decoding_config is not None:
      return self._write_replies(params, batch, self._decoding_config, rng)
    if self.config.head == "regression":
      return self.logits(params, batch)[..., 0], {}
    if self.config.head != "masked_lm":
      return scored.predictions_of(self._scores(params, batch, None), batch)
    log_probs_BGMV = jax.nn.log_softmax(self.logits(params, batch))
    used_BGM = batch["decoder_loss_weights"] > 0
    tokens_BGM = jnp.where(used_BGM, jnp.argmax(log_probs_BGMV, axis=-1), 0)
    scores_BGM = jnp.where(used_BGM, jnp.max(log_probs_BGMV, axis=-1), 0)
    return tokens_BGM.astype(jnp.int32), {"scores": scores_BGM}

  def _write_replies(
    self, params: PyTree, batch: Batch, config: DecodingConfig, rng: Array | None
  ) -> tuple[Array, dict[str, Array]]:
    depths_BT = batch["target_depths"]
    keys = None
    if config.method == "sample":
      places = jnp.arange(depths_BT.size).reshape(depths_BT.shape)
      rng = jax.random.key(0) if rng is None else rng
      keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (None, 0))(rng, places)
    # Slots of a forest that hold no target are not written for.
    written = batch["decoder_segment_ids"].max(axis=(1, 2))[:, None]
    wanted = jnp.arange(depths_BT.shape[-1])[None] < written
    replies = self.generate(params, batch, config, keys, wanted=wanted)
    return replies.tokens, {"scores": replies.log_probabilities}

  def score_batch(self, params: PyTree, batch: Batch) -> Array:
    """Returns the summed log likelihood of each target's masked tokens, `[B, T]`.

    Of numbers the negative loss.
    """
    losses = scored.losses_of(self.config, self._scores(params, batch, None), batch)
    scores_BGM = -losses.nll * scored.weights_of(self.config, batch)
    num_targets = batch["target_depths"].shape[-1]
    target_BGMT = jax.nn.one_hot(masked_targets(batch) - 1, num_targets)
    return jnp.sum(scores_BGM[..., None] * target_BGMT, axis=(1, 2))

  def generate(
    self,
    params: PyTree,
    batch: Batch,
    config: DecodingConfig,
    keys: Array | None = None,
    *,
    wanted: Array | None = None,
    first_tokens: Array | None = None,
  ) -> Replies:
    """Writes replies, with a model trained by the objective `clm`.

    The reply to target t is written by t's ancestors, nearest first, at t's depth, as
    if t itself had not been written yet. What it is does not depend on the other
    targets, on how many there are, nor on where in the batch t stands (up to
    rounding, which differs between shapes of a batch); but with `num_thread_layers`,
    where threads are longer than what is shown of them, see `thread_transformer`. To be
    jitted with `config` static; compiles one step.

    Args:
      params: the parameters.
      batch: forests; of the features those of the encoder, `ancestor_slots`,
        `ancestor_distances` and `target_depths`. The others may be missing.
      config: method, length, what is never written.
      keys: of the method "sample" alone: a random key for each target `[B, T]`, see
        `decoding.reply_keys`.
      wanted: to which targets replies are wanted, bool `[B, T]`; None for all. The
        others' replies are empty, and the loop does not wait for them.
      first_tokens: tokens that replies are to begin with, as an author's marker,
        `[B, T, I]` int32; `decoding.FREE` (-1) where the model is to choose.

    Returns:
      `tokens` `[B, T, K, L]`, `log_probabilities`, `lengths` and `ended` `[B, T, K]`,
      with K = `config.num_replies` and L = `config.max_length`.

    Raises:
      UserError: if the configuration does not fit the model.
    """
    return decoding.generate(
      self.module,
      params,
      batch,
      config,
      keys,
      wanted=wanted,
      first_tokens=first_tokens,
    )
