"""Tiny models with Hugging Face's names: written as safetensors, and computed.

The computation is float64 NumPy from the papers and the names in the files; nothing
here comes from `commentree`, nor from JAX.
"""

from __future__ import annotations

import json
import math
import struct

import ml_dtypes
import numpy as np

from commentree.tests.support.models.naive import softmax

ROBERTA = {
  "model_type": "roberta",
  "vocab_size": 30,
  "hidden_size": 16,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "intermediate_size": 40,
  "hidden_act": "gelu",
  "max_position_embeddings": 20,
  "type_vocab_size": 1,
  "layer_norm_eps": 1e-5,
  "pad_token_id": 1,
}
BERT = {
  **ROBERTA,
  "model_type": "bert",
  "num_attention_heads": 2,
  "type_vocab_size": 2,
  "layer_norm_eps": 1e-12,
  "pad_token_id": 0,
}
T5 = {
  "model_type": "t5",
  "vocab_size": 30,
  "d_model": 16,
  "d_kv": 6,
  "d_ff": 24,
  "num_layers": 2,
  "num_decoder_layers": 3,
  "num_heads": 2,
  "feed_forward_proj": "gated-gelu",
  "tie_word_embeddings": False,
}
T5_1_0 = {**T5, "feed_forward_proj": "relu", "tie_word_embeddings": True}

TYPES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "int64": "I64"}


def packed(arrays, metadata=None, **changes):
  """Returns the bytes of a safetensors file; `changes` are entries made otherwise."""
  header, data = {}, b""
  if metadata is not None:
    header["__metadata__"] = metadata
  for name, array in arrays.items():
    raw = np.ascontiguousarray(array).tobytes()
    header[name] = {
      "dtype": TYPES[array.dtype.name],
      "shape": list(array.shape),
      "data_offsets": [len(data), len(data) + len(raw)],
    } | changes.get(name, {})
    data += raw
  text = json.dumps(header).encode()
  return struct.pack("<Q", len(text)) + text + data


def write(folder, arrays, config=None, **changes):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "model.safetensors").write_bytes(
    packed(arrays, {"format": "pt"}, **changes)
  )
  if config is not None:
    (folder / "config.json").write_text(json.dumps(config))
  return folder


def write_in_parts(folder, arrays, config):
  """Writes as large models are: two files and an index."""
  folder.mkdir(parents=True, exist_ok=True)
  weight_map = {}
  for part in (0, 1):
    name = f"model-{part + 1:05}-of-00002.safetensors"
    mine = {n: a for i, (n, a) in enumerate(arrays.items()) if i % 2 == part}
    (folder / name).write_bytes(packed(mine))
    weight_map |= dict.fromkeys(mine, name)
  index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  (folder / "config.json").write_text(json.dumps(config))
  return folder


def draw(shapes, seed=0):
  rng = np.random.default_rng(seed)
  arrays = {}
  for name, shape in shapes.items():
    is_norm = "norm" in name.lower() and name.endswith((".weight", ".gamma"))
    size = shape[-1] ** -0.5 if len(shape) == 2 and "embed" not in name else 0.5
    values = rng.uniform(0.5, 1.5, shape) if is_norm else rng.normal(0, size, shape)
    arrays[name] = values.astype(np.float32)
  return arrays


def bert_arrays(config, prefix="", head=None, seed=0):
  """Returns a model's arrays; `head` is that of "roberta", of "bert" or None.

  A decoder with cross-attention if the config says so.
  """
  width, wide = config["hidden_size"], config["intermediate_size"]
  embeddings = f"{prefix}embeddings"
  shapes = {
    f"{embeddings}.word_embeddings.weight": (config["vocab_size"], width),
    f"{embeddings}.position_embeddings.weight": (
      config["max_position_embeddings"],
      width,
    ),
    f"{embeddings}.token_type_embeddings.weight": (config["type_vocab_size"], width),
  }

  def norm(name):
    shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

  def dense(name, inputs, outputs):
    shapes.update({f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)})

  norm(f"{embeddings}.LayerNorm")
  for i in range(config["num_hidden_layers"]):
    layer = f"{prefix}encoder.layer.{i}"
    for part in ("query", "key", "value"):
      dense(f"{layer}.attention.self.{part}", width, width)
    dense(f"{layer}.attention.output.dense", width, width)
    norm(f"{layer}.attention.output.LayerNorm")
    if config.get("add_cross_attention"):
      for part in ("query", "key", "value"):
        dense(f"{layer}.crossattention.self.{part}", width, width)
      dense(f"{layer}.crossattention.output.dense", width, width)
      norm(f"{layer}.crossattention.output.LayerNorm")
    dense(f"{layer}.intermediate.dense", width, wide)
    dense(f"{layer}.output.dense", wide, width)
    norm(f"{layer}.output.LayerNorm")
  if head == "roberta":
    dense("lm_head.dense", width, width)
    norm("lm_head.layer_norm")
    shapes["lm_head.bias"] = (config["vocab_size"],)
  elif head == "bert":
    dense("cls.predictions.transform.dense", width, width)
    norm("cls.predictions.transform.LayerNorm")
    shapes["cls.predictions.bias"] = (config["vocab_size"],)
  return draw(shapes, seed)


def t5_arrays(config, seed=0):
  width, wide = config["d_model"], config["d_ff"]
  joined = config["num_heads"] * config["d_kv"]
  gated = config["feed_forward_proj"].startswith("gated")
  shapes = {"shared.weight": (config["vocab_size"], width)}
  if config["tie_word_embeddings"] is False:
    shapes["lm_head.weight"] = (config["vocab_size"], width)
  for side, number in (
    ("encoder", config["num_layers"]),
    ("decoder", config["num_decoder_layers"]),
  ):
    shapes[f"{side}.final_layer_norm.weight"] = (width,)
    shapes[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (
      32,
      config["num_heads"],
    )
    names = ["SelfAttention", "EncDecAttention", "DenseReluDense"]
    if side == "encoder":
      names.remove("EncDecAttention")
    for i in range(number):
      for j, name in enumerate(names):
        layer = f"{side}.block.{i}.layer.{j}"
        shapes[f"{layer}.layer_norm.weight"] = (width,)
        if name == "DenseReluDense":
          for part in ("wi_0", "wi_1") if gated else ("wi",):
            shapes[f"{layer}.{name}.{part}.weight"] = (wide, width)
          shapes[f"{layer}.{name}.wo.weight"] = (width, wide)
        else:
          for part in "qkv":
            shapes[f"{layer}.{name}.{part}.weight"] = (joined, width)
          shapes[f"{layer}.{name}.o.weight"] = (width, joined)
  return draw(shapes, seed)


def t5_encoder_arrays(config, seed=0):
  """Returns the arrays of a T5's encoder alone."""
  arrays = t5_arrays(config, seed)
  return {n: a for n, a in arrays.items() if n.startswith(("shared.", "encoder."))}


def split(x, heads):
  return x.reshape(len(x), heads, -1).transpose(1, 0, 2)


def mixed(query, key, value, heads, bias=0.0, scale=1.0):
  """Attends from rows to rows; returns the heads side by side."""
  query, key, value = (split(x, heads) for x in (query, key, value))
  weights = softmax(query @ key.transpose(0, 2, 1) * scale + bias)
  return (weights @ value).transpose(1, 0, 2).reshape(query.shape[1], -1)


def bert_hidden(arrays, config, tokens, prefix="", states=None):
  """Returns what the encoder makes of a comment, `[L, D]`.

  Given `states` `[S, D]`, what a decoder that sees all tokens makes of it and those.
  """
  arrays = {name: np.float64(a) for name, a in arrays.items()}

  def dense(name, x):
    return x @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"]

  def norm(name, x):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config["layer_norm_eps"])
    return x * arrays[f"{name}.weight"] + arrays[f"{name}.bias"]

  first = config["pad_token_id"] + 1 if config["model_type"] == "roberta" else 0
  embeddings = f"{prefix}embeddings"
  x = arrays[f"{embeddings}.word_embeddings.weight"][tokens]
  x = x + arrays[f"{embeddings}.position_embeddings.weight"][first:][: len(tokens)]
  x = x + arrays[f"{embeddings}.token_type_embeddings.weight"][0]
  x = norm(f"{embeddings}.LayerNorm", x)
  heads = config["num_attention_heads"]
  scale = (config["hidden_size"] / heads) ** -0.5
  for i in range(config["num_hidden_layers"]):
    layer = f"{prefix}encoder.layer.{i}"
    read = [("attention", None)] + [("crossattention", states)] * (states is not None)
    for name, keys in read:
      keys = x if keys is None else keys
      query, key, value = (
        dense(f"{layer}.{name}.self.{part}", one)
        for part, one in (("query", x), ("key", keys), ("value", keys))
      )
      update = mixed(query, key, value, heads, scale=scale)
      update = dense(f"{layer}.{name}.output.dense", update)
      x = norm(f"{layer}.{name}.output.LayerNorm", x + update)
    hidden = dense(f"{layer}.intermediate.dense", x)
    hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    x = norm(f"{layer}.output.LayerNorm", x + dense(f"{layer}.output.dense", hidden))
  return x


def bert_logits(arrays, config, tokens, prefix, head, states=None):
  """Returns the logits of a model of masked tokens at every token, `[L, V]`."""
  hidden = bert_hidden(arrays, config, tokens, prefix, states)
  arrays = {name: np.float64(a) for name, a in arrays.items()}
  dense, norm = {
    "lm_head": ("lm_head.dense", "lm_head.layer_norm"),
    "cls.predictions": (
      "cls.predictions.transform.dense",
      "cls.predictions.transform.LayerNorm",
    ),
  }[head]
  x = hidden @ arrays[f"{dense}.weight"].T + arrays[f"{dense}.bias"]
  x = x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config["layer_norm_eps"])
  x = x * arrays[f"{norm}.weight"] + arrays[f"{norm}.bias"]
  table = arrays[f"{prefix}embeddings.word_embeddings.weight"]
  return x @ table.T + arrays[f"{head}.bias"]


def bucket(offset, causal):
  """Returns T5's bucket of a key `offset` after the query, written out."""
  side, buckets = 0, 32
  if causal:
    offset = min(offset, 0)
  else:
    buckets, side = 16, 16 if offset > 0 else 0
  distance, exact = abs(offset), buckets // 2
  if distance < exact:
    return side + distance
  wide = math.log(distance / exact) / math.log(128 / exact) * (buckets - exact)
  return side + min(exact + int(wide), buckets - 1)


def t5_hidden(arrays, config, side, tokens, states=None, causal=False):
  """Returns what a stack makes of a comment, `[L, D]`.

  Args:
    arrays: by Hugging Face's names.
    config: of the model.
    side: "encoder" or "decoder".
    tokens: the comment.
    states: what the decoder reads, `[S, D]`.
    causal: whether no token sees a later one, and positions are counted so.
  """
  arrays = {name: np.float64(a) for name, a in arrays.items()}
  heads, length = config["num_heads"], len(tokens)
  offsets = np.arange(length) - np.arange(length)[:, None]
  table = arrays[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
  buckets = np.vectorize(lambda offset: bucket(int(offset), causal))(offsets)
  bias = table[buckets].transpose(2, 0, 1)
  if causal:
    bias = np.where(offsets > 0, -1e9, bias)

  def norm(name, x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * arrays[f"{name}.weight"]

  def attended(layer, x, keys, bias):
    query, key, value = (
      one @ arrays[f"{layer}.{part}.weight"].T
      for part, one in (("q", x), ("k", keys), ("v", keys))
    )
    return mixed(query, key, value, heads, bias) @ arrays[f"{layer}.o.weight"].T

  def wide(layer, x):
    if f"{layer}.wi.weight" in arrays:
      hidden = np.maximum(x @ arrays[f"{layer}.wi.weight"].T, 0)
    else:
      gate = x @ arrays[f"{layer}.wi_0.weight"].T
      inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
      gate = 0.5 * gate * (1 + np.tanh(inner))
      hidden = gate * (x @ arrays[f"{layer}.wi_1.weight"].T)
    return hidden @ arrays[f"{layer}.wo.weight"].T

  x = arrays["shared.weight"][tokens]
  for i in range(config["num_layers" if side == "encoder" else "num_decoder_layers"]):
    block = f"{side}.block.{i}.layer"
    normed = norm(f"{block}.0.layer_norm", x)
    x = x + attended(f"{block}.0.SelfAttention", normed, normed, bias)
    last = 1
    if side == "decoder":
      normed = norm(f"{block}.1.layer_norm", x)
      x = x + attended(f"{block}.1.EncDecAttention", normed, states, 0.0)
      last = 2
    x = x + wide(
      f"{block}.{last}.DenseReluDense", norm(f"{block}.{last}.layer_norm", x)
    )
  return norm(f"{side}.final_layer_norm", x)


def in_bfloat16(arrays):
  return {name: a.astype(ml_dtypes.bfloat16) for name, a in arrays.items()}
