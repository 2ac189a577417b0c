"""The model's definition, one comment at a time: no rows, no padding, no masks.

Written from the papers and the parameter names alone, to test the packed
computation against; nothing here comes from `commentree.models`, nor from JAX. Give
it parameters in float64, then differences of its losses are good gradients.
"""

from __future__ import annotations

import math

import numpy as np


def rms_norm(scale, x):
  return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale


def softmax(scores):
  exponentials = np.exp(scores - scores.max(-1, keepdims=True))
  return exponentials / exponentials.sum(-1, keepdims=True)


def layer_norm(p, x, cfg):
  x = x - x.mean(-1, keepdims=True)
  deviation = np.sqrt((x * x).mean(-1, keepdims=True) + cfg.layer_norm_epsilon)
  return x / deviation * p["scale"] + p["bias"]


def gelu(x):
  return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_exact(x):
  return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def bucket(offset):
  """T5's relative position bucket of key minus query: 32 buckets up to 128."""
  side = 16 if offset > 0 else 0
  distance = abs(offset)
  if distance < 8:
    return side + distance
  wide = 8 + int(math.log(distance / 8) / math.log(128 / 8) * 8)
  return side + min(wide, 15)


def causal_bucket(offset):
  """The same where all are for keys before the query; those behind it have its own."""
  distance = max(-offset, 0)
  if distance < 16:
    return distance
  wide = 16 + int(math.log(distance / 16) / math.log(128 / 16) * 16)
  return min(wide, 31)


def dense(p, x):
  return x @ p["kernel"] + p.get("bias", 0.0)


def attention(p, x, keys_in, bias, cfg):
  """Attends from x [L, D] to vectors [S, D], with a bias [H, L or 1, S] or 0."""
  query, keys, values = (
    dense(p[name], one).reshape(len(one), cfg.num_heads, cfg.head_dim)
    for name, one in (("query", x), ("key", keys_in), ("value", keys_in))
  )
  if cfg.family == "roberta":
    query = query / math.sqrt(cfg.head_dim)
  bias = np.broadcast_to(bias, (cfg.num_heads, len(x), len(keys_in)))
  heads = []
  for h in range(cfg.num_heads):
    weights = softmax(query[:, h] @ keys[:, h].T + bias[h])
    heads.append(weights @ values[:, h])
  return dense(p["out"], np.concatenate(heads, axis=-1))


def position_bias(p, length):
  buckets = np.array([[bucket(k - q) for k in range(length)] for q in range(length)])
  return p["relpos_bias"]["rel_embedding"][:, buckets]


def mlp(p, x):
  gate = gelu(x @ p["wi_0"]["kernel"])
  return (gate * (x @ p["wi_1"]["kernel"])) @ p["wo"]["kernel"]


def roberta_mlp(p, x):
  return dense(p["wo"], gelu_exact(dense(p["wi"], x)))


def roberta_embed(params, tokens, added, cfg):
  p = params["token_embedder"]
  x = p["embedding"][np.array(tokens)] + added
  x = x + p["position_embedding"][cfg.position_offset :][: len(tokens)]
  if cfg.type_vocab_size:
    x = x + p["type_embedding"][0]
  return layer_norm(p["norm"], x, cfg)


def roberta_encode(params, comment, cfg):
  x = roberta_embed(params, comment.tokens, 0.0, cfg)
  for i in range(cfg.num_encoder_layers):
    layer = params["encoder"][f"layers_{i}"]
    attended = attention(layer["attention"], x, x, 0.0, cfg)
    x = layer_norm(layer["post_attention_layer_norm"], x + attended, cfg)
    x = layer_norm(layer["post_mlp_layer_norm"], x + roberta_mlp(layer["mlp"], x), cfg)
  return x


def roberta_decode(params, tokens, depth, keys_in, bias, change, cfg):
  p = params["decoder"]
  x = roberta_embed(params, tokens, depth, cfg)
  for i in range(cfg.num_decoder_layers):
    layer = p[f"layers_{i}"]
    attended = attention(layer["self_attention"], x, x, 0.0, cfg)
    x = x + attended
    if cfg.norm_before_ancestors:
      x = layer_norm(layer["post_self_attention_layer_norm"], x, cfg)
    read = attention(layer["encoder_decoder_attention"], x, keys_in, bias, cfg)
    x = layer_norm(layer["post_cross_attention_layer_norm"], x + read, cfg)
    x = layer_norm(layer["post_mlp_layer_norm"], x + roberta_mlp(layer["mlp"], x), cfg)
  y = layer_norm(p["logits_norm"], gelu_exact(dense(p["logits_transform"], x)), cfg)
  return x, (y + change) @ params["token_embedder"]["embedding"].T + p["logits_bias"]


def encode(params, comment, cfg):
  if cfg.family == "roberta":
    return roberta_encode(params, comment, cfg)
  p = params["encoder"]
  x = params["token_embedder"]["embedding"][np.array(comment.tokens)]
  for i in range(cfg.num_encoder_layers):
    layer = p[f"layers_{i}"]
    normed = rms_norm(layer["pre_attention_layer_norm"]["scale"], x)
    bias = position_bias(p, len(x))
    x = x + attention(layer["attention"], normed, normed, bias, cfg)
    x = x + mlp(layer["mlp"], rms_norm(layer["pre_mlp_layer_norm"]["scale"], x))
  return rms_norm(p["encoder_norm"]["scale"], x)


def pool(params, x, cfg):
  """Returns the list of a comment's vectors."""
  vectors = pool_as_they_are(params, x, cfg)
  if cfg.normalize_pooled_vectors:
    vectors = [v * np.sqrt((x * x).mean() / (v * v).mean()) for v in vectors]
  return vectors


def pool_as_they_are(params, x, cfg):
  n, many = len(x), cfg.vectors_per_comment
  if cfg.pooling == "first":
    return [x[i] for i in range(min(n, many))]
  if cfg.pooling == "attention":
    queries = params["pooling"]["queries"]
    return [softmax(x @ query) @ x for query in queries]
  vectors = []
  for span in range(many):
    inside = [p for p in range(n) if p * many // n == span]
    if inside:
      part = x[np.array(inside)]
      vectors.append(part.mean(0) if cfg.pooling == "mean" else part.max(0))
  return vectors


def sinusoid(depth, width):
  angles = [depth / 10_000 ** (i / (width // 2 - 1)) for i in range(width // 2)]
  return np.array([*map(math.sin, angles), *map(math.cos, angles)])


def depth_vector(params, depth, cfg):
  if cfg.ancestor_positions == "depth":
    table = params["ancestors"]["depth_embedding"]
    return table[min(depth, cfg.max_ancestor_distance)]
  if cfg.ancestor_positions == "sinusoidal":
    return sinusoid(depth, cfg.emb_dim)
  return 0.0


def point(params, logits, x, ancestors, cfg):
  """Returns logits [L, V] with copies, of [(tokens, states, distance)] of ancestors."""
  if not ancestors:
    return logits
  p = params["pointer"]
  ids = np.concatenate([tokens for tokens, _, _ in ancestors])
  states = np.concatenate([states for _, states, _ in ancestors])
  bias = np.concatenate(
    [
      np.full(len(tokens), p["distance_bias"][min(distance, cfg.max_ancestor_distance)])
      for tokens, _, distance in ancestors
    ]
  )
  query, key = (dense(p[name], at) for name, at in (("query", x), ("key", states)))
  scores = query @ key.T / math.sqrt(query.shape[-1]) + states @ p["salience"] + bias
  odds = np.exp(x @ p["gate"] + p["log_odds"])
  copies = np.zeros_like(logits)
  for n, token in enumerate(ids):
    copies[:, token] += softmax(scores)[:, n]
  normalizer = np.exp(logits).sum(-1, keepdims=True)
  return np.log(np.exp(logits) + normalizer * odds[:, None] * copies)


def change_of_logits(params, vectors, cfg):
  """Returns what is added behind the logits, for [(vectors, distance)] of ancestors."""
  if not cfg.vectors_to_logits or not vectors:
    return 0.0
  p = params["vectors_to_logits"]
  means = [np.mean(of_one, axis=0) for of_one, _ in vectors]
  means = np.stack([m / np.linalg.norm(m) * math.sqrt(cfg.emb_dim) for m in means])
  hops = [min(distance, cfg.max_ancestor_distance) for _, distance in vectors]
  return softmax(p["distance_bias"][hops]) @ means @ p["map"]["kernel"]


def decode(params, comment, tokens, ancestors, cfg, change=0.0):
  """Returns states and logits, given [(vectors, distance, depth)] of the ancestors."""
  keys_in, bias = [], []
  for vectors, distance, depth in ancestors:
    hops = min(distance, cfg.max_ancestor_distance)
    for vector in vectors:
      vector = vector + depth_vector(params, depth, cfg)
      if cfg.ancestor_positions == "distance":
        vector = vector + params["ancestors"]["distance_embedding"][hops]
      keys_in.append(vector)
      if cfg.ancestor_positions == "relative_bias":
        bias.append(params["ancestors"]["distance_bias"][:, hops])
      else:
        bias.append(np.zeros(cfg.num_heads))
  if not keys_in:
    keys_in, bias = [params["ancestors"]["null_vector"]], [np.zeros(cfg.num_heads)]
  keys_in = np.stack(keys_in)
  bias = np.stack(bias, axis=1)[:, None]
  depth = depth_vector(params, comment.depth, cfg)
  if cfg.family == "roberta":
    return roberta_decode(params, tokens, depth, keys_in, bias, change, cfg)
  p = params["decoder"]
  x = params["token_embedder"]["embedding"][np.array(tokens)] + depth
  for i in range(cfg.num_decoder_layers):
    layer = p[f"layers_{i}"]
    normed = rms_norm(layer["pre_self_attention_layer_norm"]["scale"], x)
    at = position_bias(p, len(x))
    x = x + attention(layer["self_attention"], normed, normed, at, cfg)
    normed = rms_norm(layer["pre_cross_attention_layer_norm"]["scale"], x)
    x = x + attention(layer["encoder_decoder_attention"], normed, keys_in, bias, cfg)
    x = x + mlp(layer["mlp"], rms_norm(layer["pre_mlp_layer_norm"]["scale"], x))
  x = rms_norm(p["decoder_norm"]["scale"], x)
  if cfg.logits_via_embedding:
    table = params["token_embedder"]["embedding"]
    return x, (x + change) @ table.T / math.sqrt(cfg.emb_dim)
  return x, (x + change) @ p["logits_dense"]["kernel"]


def with_threads(params, vectors, forest, cfg):
  """Returns {comment: vectors} that know those of the comments above, as targets tell.

  A comment is below all that follow it in the list of any target.
  """
  above = {a: set() for a in vectors}
  for comment in forest:
    if comment.is_target:
      for i, a in enumerate(comment.ancestors):
        above[a].update(comment.ancestors[i + 1 :])

  def norm(p, x):
    if cfg.family == "roberta":
      return layer_norm(p, x, cfg)
    return rms_norm(p["scale"], x)

  p = params["thread_transformer"]
  vectors = {a: np.stack(own) for a, own in vectors.items()}
  for i in range(cfg.num_thread_layers):
    layer = p[f"layers_{i}"]
    normed = {
      a: norm(layer["pre_attention_layer_norm"], own) for a, own in vectors.items()
    }
    after = {}
    for a, own in vectors.items():
      seen = [a, *sorted(above[a])]
      hops = [forest[a].depth - forest[b].depth for b in seen for _ in normed[b]]
      bias = p["distance_bias"][:, np.minimum(hops, cfg.max_ancestor_distance)]
      keys_in = np.concatenate([normed[b] for b in seen])
      x = own + attention(layer["attention"], normed[a], keys_in, bias[:, None], cfg)
      y = norm(layer["pre_mlp_layer_norm"], x)
      update = roberta_mlp if cfg.family == "roberta" else mlp
      after[a] = x + update(layer["mlp"], y)
    vectors = after
  return vectors


def loss_sum(params, forest, masked_tokens, cfg):
  """Returns the loss summed over the masked tokens of a forest's targets."""
  states = {}
  vectors = {}
  total = 0.0
  for a in {a for comment in forest if comment.is_target for a in comment.ancestors}:
    states[a] = encode(params, forest[a], cfg)
    vectors[a] = pool(params, states[a], cfg)
  if cfg.num_thread_layers:
    vectors = with_threads(params, vectors, forest, cfg)
  for comment in forest:
    if not comment.is_target:
      continue
    ancestors = []
    left = cfg.nearest_context_tokens
    for a, distance in zip(comment.ancestors, comment.distances):
      seen = [*vectors[a], *states[a][:left]]
      left -= len(states[a][:left])
      ancestors.append((seen, distance, forest[a].depth))
    pooled = [(vectors[a], d) for a, d in zip(comment.ancestors, comment.distances)]
    change = change_of_logits(params, pooled, cfg)
    pointed = [
      (forest[a].tokens, states[a], distance)
      for a, distance in zip(comment.ancestors, comment.distances)
    ]
    masked = masked_tokens(comment)
    total += loss_of_target(params, comment, masked, ancestors, pointed, cfg, change)
  return total


def loss_of_target(params, comment, masked, ancestors, pointed, cfg, change=0.0):
  """Returns the loss of one target, summed over its masked tokens.

  Args:
    params: the model's.
    comment: the target.
    masked: its tokens, some of them masked.
    ancestors: [(vectors, distance, depth)], what is attended to.
    pointed: [(tokens, states, distance)], what a pointer points to.
    cfg: the model's settings.
    change: of the logits, by `vectors_to_logits`.
  """
  total = 0.0
  x, alone = decode(params, comment, masked, ancestors, cfg, change)
  logits = point(params, alone, x, pointed, cfg) if cfg.ancestor_pointer else alone
  for position in comment.masked:
    token = comment.tokens[position]
    total += negative_log_likelihood(logits[position], token)
    if cfg.ancestor_pointer:
      nll = negative_log_likelihood(alone[position], token)
      total += cfg.pointer_logits_loss_weight * nll
    total += cfg.z_loss * np.log(np.exp(alone[position]).sum()) ** 2
  return total


def negative_log_likelihood(logits, token):
  """Returns that of a token by logits [V], in nats."""
  return np.log(np.exp(logits).sum()) - logits[token]
