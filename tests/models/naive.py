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


def gelu(x):
  return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def bucket(offset):
  """T5's relative position bucket of key minus query: 32 buckets up to 128."""
  side = 16 if offset > 0 else 0
  distance = abs(offset)
  if distance < 8:
    return side + distance
  wide = 8 + int(math.log(distance / 8) / math.log(128 / 8) * 8)
  return side + min(wide, 15)


def heads_of(kernel, x, cfg):
  return (x @ kernel).reshape(len(x), cfg.num_heads, cfg.head_dim)


def attention(p, x, keys, values, bias):
  """Attends from x [L, D] to per-head keys and values [S, H, K]."""
  num_heads, head_dim = keys.shape[1:]
  query = (x @ p["query"]["kernel"]).reshape(-1, num_heads, head_dim)
  heads = []
  for h in range(num_heads):
    weights = softmax(query[:, h] @ keys[:, h].T + bias[h])
    heads.append(weights @ values[:, h])
  return np.concatenate(heads, axis=-1) @ p["out"]["kernel"]


def self_attention(p, table, x, cfg):
  length = len(x)
  buckets = np.array([[bucket(k - q) for k in range(length)] for q in range(length)])
  keys, values = (heads_of(p[name]["kernel"], x, cfg) for name in ("key", "value"))
  return attention(p, x, keys, values, table[:, buckets])


def mlp(p, x):
  gate = gelu(x @ p["wi_0"]["kernel"])
  return (gate * (x @ p["wi_1"]["kernel"])) @ p["wo"]["kernel"]


def encode(params, comment, cfg):
  p = params["encoder"]
  x = params["token_embedder"]["embedding"][np.array(comment.tokens)]
  for i in range(cfg.num_encoder_layers):
    layer = p[f"layers_{i}"]
    normed = rms_norm(layer["pre_attention_layer_norm"]["scale"], x)
    x = x + self_attention(
      layer["attention"], p["relpos_bias"]["rel_embedding"], normed, cfg
    )
    x = x + mlp(layer["mlp"], rms_norm(layer["pre_mlp_layer_norm"]["scale"], x))
  return rms_norm(p["encoder_norm"]["scale"], x)


def pool(params, x, cfg):
  """Returns the list of a comment's vectors."""
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


def decode(params, comment, tokens, ancestors, cfg):
  """Returns logits [L, V] given [(vectors, distance, depth)] of the ancestors."""
  p = params["decoder"]
  x = params["token_embedder"]["embedding"][np.array(tokens)]
  x = x + depth_vector(params, comment.depth, cfg)
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
  for i in range(cfg.num_decoder_layers):
    layer = p[f"layers_{i}"]
    normed = rms_norm(layer["pre_self_attention_layer_norm"]["scale"], x)
    x = x + self_attention(
      layer["self_attention"], p["relpos_bias"]["rel_embedding"], normed, cfg
    )
    normed = rms_norm(layer["pre_cross_attention_layer_norm"]["scale"], x)
    cross = layer["encoder_decoder_attention"]
    keys, values = (
      heads_of(cross[name]["kernel"], keys_in, cfg) for name in ("key", "value")
    )
    x = x + attention(cross, normed, keys, values, bias)
    x = x + mlp(layer["mlp"], rms_norm(layer["pre_mlp_layer_norm"]["scale"], x))
  return rms_norm(p["decoder_norm"]["scale"], x) @ p["logits_dense"]["kernel"]


def loss_sum(params, forest, masked_tokens, cfg):
  """Returns the loss summed over the masked tokens of a forest's targets."""
  vectors = {}
  total = 0.0
  for comment in forest:
    if not comment.is_target:
      continue
    for a in comment.ancestors:
      if a not in vectors:
        vectors[a] = pool(params, encode(params, forest[a], cfg), cfg)
    ancestors = [
      (vectors[a], distance, forest[a].depth)
      for a, distance in zip(comment.ancestors, comment.distances)
    ]
    logits = decode(params, comment, masked_tokens(comment), ancestors, cfg)
    for position in comment.masked:
      log_z = np.log(np.exp(logits[position]).sum())
      total += log_z - logits[position, comment.tokens[position]]
      total += cfg.z_loss * log_z**2
  return total
