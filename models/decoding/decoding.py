"""Writing replies token by token, each given the vectors of its ancestors.

The forest is encoded once and the ancestors' keys and values are projected once; then
every step of one compiled loop reads one token of each reply, next to the cached keys
and values of those before. The loop ends when all replies have.

Letters besides those of `models/__init__`: Q targets, W replies written for a target at
the same time, I forced first tokens; here K stands for `num_replies`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from commentree.models.decoding import beam_search
from commentree.models.decoding.beam_search import BeamSearch
from commentree.models.decoding.decoding_config import DecodingConfig
from commentree.models.decoding.sampling import TokenSampler
from commentree.models.layers import Array
from commentree.models.network import CommentTreeTransformer
from commentree.models.transformer.attention import CACHED_TOKENS

PyTree = Any

# Stands in `first_tokens` where the model is to choose.
FREE = -1


@flax.struct.dataclass
class Replies:
  """Replies to each target's ancestors.

  Attributes:
    tokens: `[B, T, K, L]` int32, the end and what is after it `end_id`. A beam's
      replies come best first.
    log_probabilities: `[B, T, K]` float32, in nats: of all tokens that the model chose,
      its end included, under the model's own distribution, regardless of the
      temperature or what is never written. Forced tokens do not count. -inf: there is
      no such reply, as a beam found fewer.
    lengths: `[B, T, K]` int32, tokens without the end.
    ended: `[B, T, K]` bool, False for what `max_length` cut off.
  """

  tokens: Array
  log_probabilities: Array
  lengths: Array
  ended: Array


class _Loop(NamedTuple):
  """What a step begins with."""

  position: Array
  last_X: Array
  cache: PyTree
  written: Any


def reply_keys(seed: int | Array, identities: Array) -> Array:
  """Returns a random key for each reply, that depends on nothing else.

  Args:
    seed: of all replies.
    identities: `[..., n]` integers that tell a reply from all others, such as words of
      a hash of its tree's and its comment's ids.

  Returns:
    Keys `[...]`.
  """
  words = jnp.asarray(identities).astype(jnp.uint32)
  fold_in = jax.vmap(jax.random.fold_in)
  rows = words.reshape(-1, words.shape[-1])
  keys = jnp.broadcast_to(jax.random.key(seed), rows.shape[:1])
  for column in range(rows.shape[-1]):
    keys = fold_in(keys, rows[:, column])
  return keys.reshape(words.shape[:-1])


def generate(
  module: CommentTreeTransformer,
  params: PyTree,
  batch: Mapping[str, Array],
  config: DecodingConfig,
  keys: Array | None = None,
  *,
  wanted: Array | None = None,
  first_tokens: Array | None = None,
) -> Replies:
  """Writes replies; see `CommentTreeModel.generate`."""
  config.check_vocabulary(module.config.vocab_size)
  batch_size, targets = batch["target_depths"].shape
  num_texts = batch_size * targets * config.rows
  step, cache = _stepper(module, params, batch, config)
  restrict = _restrictions(module.config.vocab_size, config, first_tokens)
  settled_Q = jnp.zeros(batch_size * targets, bool)
  if wanted is not None:
    settled_Q = ~wanted.reshape(-1).astype(bool)
  method: BeamSearch | TokenSampler
  if config.method == "beam":
    method = BeamSearch(config)
  else:
    method = TokenSampler(config, _keys_of_texts(keys, config))

  def body(loop: _Loop) -> _Loop:
    logits_XV, cache = step(loop.cache, loop.last_X, loop.position)
    log_probs_XV = restrict(jax.nn.log_softmax(logits_XV), loop.position)
    written, last_X, parents_QW = method.advance(
      loop.written, log_probs_XV, loop.position
    )
    if parents_QW is not None:
      cache = _of_parents(cache, parents_QW)
    return _Loop(loop.position + 1, last_X, cache, written)

  def more(loop: _Loop) -> Array:
    return (loop.position < config.max_length) & ~method.is_done(loop.written).all()

  start_X = jnp.full(num_texts, config.start_id, jnp.int32)
  begin = _Loop(jnp.int32(0), start_X, cache, method.begin(settled_Q))
  end = jax.lax.while_loop(more, body, begin)

  tokens_QKL, log_probs_QK = method.replies(end.written)
  # Searches that were not asked for run until the others finish.
  tokens_QKL = jnp.where(settled_Q[:, None, None], config.end_id, tokens_QKL)
  log_probs_QK = jnp.where(settled_Q[:, None], 0, log_probs_QK)
  shape = (batch_size, targets, config.num_replies)
  tokens = tokens_QKL.reshape(*shape, config.max_length)
  lengths = (tokens != config.end_id).sum(-1, dtype=jnp.int32)
  return Replies(
    tokens, log_probs_QK.reshape(shape), lengths, lengths < config.max_length
  )


def _stepper(
  module: CommentTreeTransformer,
  params: PyTree,
  batch: Mapping[str, Array],
  config: DecodingConfig,
) -> tuple[Callable[[PyTree, Array, Array], tuple[Array, PyTree]], PyTree]:
  """Encodes the forest.

  Returns:
    A function of a cache, the texts' newest tokens `[X]` and their position, that
    returns logits for the next `[X, V]` and the next cache; and the first cache.
  """
  context, added_BND = module.apply(
    {"params": params}, batch, config.rows, method="begin_replies"
  )

  def read(variables: PyTree, tokens_X: Array, position: Array):
    logits_BNV, changed = module.apply(
      {"params": params, **variables},
      tokens_X.reshape(context.visible_BNS.shape[:2]),
      position,
      config.max_length,
      context,
      added_BND,
      method="next_logits",
      mutable=["cache"],
    )
    return logits_BNV.reshape(len(tokens_X), -1), changed["cache"]

  def step(cache: PyTree, tokens_X: Array, position: Array) -> tuple[Array, PyTree]:
    return read({"cache": cache}, tokens_X, position)

  any_X = jnp.zeros(context.visible_BNS.shape[:2], jnp.int32).reshape(-1)
  _, cache = read({}, any_X, jnp.int32(0))
  # Nothing has been read yet. XLA drops what this makes superfluous: all of the reading
  # but the ancestors' keys and values.
  cache = jax.tree_util.tree_map_with_path(
    lambda path, leaf: jnp.zeros_like(leaf) if _of_texts(path) else leaf, cache
  )
  return step, cache


def _of_texts(path: tuple[Any, ...]) -> bool:
  """Whether a leaf of the cache is of the texts' own tokens."""
  return path[-1].key in CACHED_TOKENS


def _of_parents(cache: PyTree, parents_QW: Array) -> PyTree:
  """Returns the cache for texts that continue others."""

  def pick(path: tuple[Any, ...], leaf: Array) -> Array:
    if not _of_texts(path):
      return leaf
    # [R, L, H, K], after an axis of layers if these are scanned.
    return beam_search.reorder(leaf, parents_QW, axis=leaf.ndim - 4)

  return jax.tree_util.tree_map_with_path(pick, cache)


def _restrictions(
  vocab_size: int, config: DecodingConfig, first_tokens_BTI: Array | None
) -> Callable[[Array, Array], Array]:
  """Returns what sets log probabilities `[X, V]` of what is not to be written to -inf.

  It takes the position of the token as well. A token that is forced has 0, in place of
  its log probability.
  """
  never = jnp.asarray(config.never, jnp.int32)
  never_V = jnp.zeros(vocab_size, bool).at[never].set(True)
  forced_XI = None
  if first_tokens_BTI is not None and first_tokens_BTI.shape[-1]:
    forced_QI = first_tokens_BTI.reshape(-1, first_tokens_BTI.shape[-1])
    forced_XI = jnp.repeat(forced_QI, config.rows, axis=0)

  def restrict(log_probs_XV: Array, position: Array) -> Array:
    allowed_XV = jnp.where(never_V[None], -jnp.inf, log_probs_XV)
    if forced_XI is None:
      return allowed_XV
    last = forced_XI.shape[-1] - 1
    token_X1 = jax.lax.dynamic_index_in_dim(forced_XI, jnp.minimum(position, last), 1)
    certain_XV = jnp.where(jnp.arange(vocab_size)[None] == token_X1, 0.0, -jnp.inf)
    is_forced_X1 = (token_X1 != FREE) & (position <= last)
    return jnp.where(is_forced_X1, certain_XV, allowed_XV)

  return restrict


def _keys_of_texts(keys_BT: Array | None, config: DecodingConfig) -> Array | None:
  """Returns a key for each text `[X]`, the same for the first few of them or many."""
  if config.method != "sample":
    return None
  if keys_BT is None:
    raise ValueError("the method 'sample' needs keys")
  fold_in = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
  return fold_in(keys_BT.reshape(-1), jnp.arange(config.rows)).reshape(-1)
