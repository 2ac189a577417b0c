# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Starting from a model of Hugging Face
#
# A RoBERTa reads one text; a model of comment trees has an encoder, a decoder, and
# attention to the comments above. Started from the one, the other computes the same
# *before its first step*, whatever stands above a comment: what is new adds nothing
# yet. The RoBERTa is written out in NumPy from the names in its file, the decoder in
# plain JAX from commentree's parameters, and the states of both must be the
# product's.
#
# The RoBERTa is a tiny one of random numbers, so that nothing is downloaded; a released
# one goes the same way.
#
# Names of arrays end in their axes: N comments, L tokens of a comment, S what is
# attended to, D width, H heads, K width of a head.

# %%
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import ByteLevelBPETokenizer

import commentree
from commentree.tasks.config.generated import GeneratedTreesConfig
from commentree.tasks.sources import generated

# Where products of float32 are as exact as that, and no accelerator is waited for.
jax.config.update("jax_platforms", "cpu")

# %% [markdown]
# ## Trees, and a folder as Hugging Face has it
#
# Of any model three files are read: `config.json`, `model.safetensors` and
# `tokenizer.json`.

# %%
trees = GeneratedTreesConfig(hops=(1,), max_filler_words=4)
texts = []
with open("trees.jsonl", "w") as file:
  for number in range(200):
    tree = generated.generate_tree(trees, trees.seed, number)
    post = tree.comments[0]
    comments = [
      {
        "id": comment.id,
        "parent_id": tree.comments[comment.parent].id,
        "author": comment.author,
        "body": comment.text,
      }
      for comment in tree.comments[1:]
    ]
    record = {"id": post.id, "author": post.author, "selftext": post.text}
    file.write(json.dumps({**record, "comments": comments}) + "\n")
    texts += [comment.text for comment in tree.comments]

folder = pathlib.Path("tiny_roberta")
folder.mkdir(exist_ok=True)
tokenizer = ByteLevelBPETokenizer()
special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
tokenizer.train_from_iterator(texts, vocab_size=400, special_tokens=special)
tokenizer.save(str(folder / "tokenizer.json"))

theirs = {
  "model_type": "roberta",
  "vocab_size": tokenizer.get_vocab_size(),
  "hidden_size": 64,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "intermediate_size": 128,
  "hidden_act": "gelu",
  "max_position_embeddings": 66,
  "type_vocab_size": 1,
  "layer_norm_eps": 1e-5,
  "pad_token_id": 1,
}
(folder / "config.json").write_text(json.dumps(theirs, indent=2))

WIDTH, WIDE = theirs["hidden_size"], theirs["intermediate_size"]
shapes = {
  "embeddings.word_embeddings.weight": (theirs["vocab_size"], WIDTH),
  "embeddings.position_embeddings.weight": (theirs["max_position_embeddings"], WIDTH),
  "embeddings.token_type_embeddings.weight": (1, WIDTH),
}
# PyTorch has linear maps the other way round: [to, from].
maps, norms = {}, ["embeddings.LayerNorm"]
for number in range(theirs["num_hidden_layers"]):
  layer = f"encoder.layer.{number}"
  for part in ("self.query", "self.key", "self.value", "output.dense"):
    maps[f"{layer}.attention.{part}"] = (WIDTH, WIDTH)
  maps[f"{layer}.intermediate.dense"] = (WIDE, WIDTH)
  maps[f"{layer}.output.dense"] = (WIDTH, WIDE)
  norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
for name, shape in maps.items():
  shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
for name in norms:
  shapes |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}

rng = np.random.default_rng(0)
arrays = {}
for name, shape in shapes.items():
  drawn = rng.normal(0, 0.3, shape)
  # The scales of norms lie around 1.
  arrays[name] = (drawn + name.endswith("LayerNorm.weight")).astype(np.float32)
save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})

# %% [markdown]
# ## Three commands
#
# The vocabulary, with markers of authors behind its tokens; the settings that the model
# asks for; and a first checkpoint, made from the file. What it prints says of each
# parameter where it is from. (`commentree train` with `INITIAL_CHECKPOINT_PATH` starts
# and trains in one.)

# %% language="bash"
# set -e
# commentree vocab --from=tiny_roberta/tokenizer.json --output=tiny.json
# commentree convert tiny_roberta --print_gin | tee tiny_roberta.gin
# cat > mine.gin <<'END'
# include 'runs/pretrain.gin'
# include 'tiny_roberta.gin'
# MIXTURE_OR_TASK_NAME = 'commentree_files'
# FILES = 'trees.jsonl'
# VOCABULARY = 'tiny.json'
# TASK_FEATURE_LENGTHS = {'encoder': 64, 'decoder': 64}
# SubtreeConfig.max_comment_tokens = 64
# ForestLayout.decoder_rows = 16
# BATCH_SIZE = 1
# TRAIN_STEPS = 30
# WARMUP_STEPS = 5
# OPTIMIZER = 'adamw'
# LEARNING_RATE = 0.001
# HELD_OUT_SHARE = 0
# ModelConfig.dtype = 'float32'
# END
# commentree convert tiny_roberta runs/started/checkpoint_0 --gin_file=mine.gin

# %% [markdown]
# ## A tree
#
# A comment a row; commentree packs several to a row, and knows which are which by
# their segments. RoBERTa was trained on texts between `<s>` and `</s>`, so these
# stand around each comment. In front of its text is its author's marker, which
# RoBERTa does not have: the new rows of the table of tokens are the mean of those
# that it has.

# %%
started = commentree.load("runs/started")
model, config, builder = started.model, started.model.config, started.run.builder
LENGTH, MOST = 64, builder.preprocessing.subtrees.max_ancestors

tree = generated.generate_tree(trees, trees.seed, 1002)  # not in the file
depths = np.array(tree.depths())
tokens = builder.encode_texts(builder.texts(tree))
print(*map(started.run.tokenizer.id_to_piece, tokens[1]))

tokens_NL = np.zeros((len(tokens), LENGTH), np.int32)
there_NL = np.zeros((len(tokens), LENGTH), bool)
slots_NA = np.zeros((len(tokens), MOST), np.int32)
hops_NA = np.zeros((len(tokens), MOST), np.int32)
for number, own in enumerate(tokens):
  tokens_NL[number, : len(own)] = own
  there_NL[number, : len(own)] = True
  above = []
  while (parent := tree.comments[above[-1] if above else number].parent) >= 0:
    above.append(parent)
  slots_NA[number, : len(above)] = np.array(above, int) + 1
  hops_NA[number, : len(above)] = np.arange(len(above)) + 1

ids_NL = np.arange(1, len(tokens) + 1)[:, None] * there_NL
rows = {"encoder_slot_depths": depths, "target_depths": depths}
rows |= {"ancestor_slots": slots_NA, "ancestor_distances": hops_NA}
for side in ("encoder", "decoder"):
  rows[f"{side}_input_tokens"] = tokens_NL
  rows[f"{side}_segment_ids"] = ids_NL
  rows[f"{side}_positions"] = np.broadcast_to(np.arange(LENGTH), tokens_NL.shape)
batch = {name: values[None] for name, values in rows.items()}


@jax.jit
def states_of(params):
  """States of all tokens by commentree, of the encoder and the decoder `[N, L, D]`."""
  encoded = model.encode(params, batch)
  decoded = model.decode_states(params, encoded, batch)[0]
  return encoded.states_BND.reshape(decoded.shape), decoded


# %% [markdown]
# ## What the file's model computes
#
# RoBERTa (Liu et al. 2019) for one text, in NumPy and float64, from the names in the
# file: a norm after each sum, learnt positions that begin at 2, biases everywhere.

# %%
arrays = {
  name: values.astype(np.float64)
  for name, values in load_file(folder / "model.safetensors").items()
}


def linear(name, x):
  """A linear map of the file."""
  return x @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"]


def standardized(name, x):
  """A norm of the file: mean 0, variance 1, then scaled and shifted."""
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + theirs["layer_norm_eps"])
  return x * arrays[f"{name}.weight"] + arrays[f"{name}.bias"]


def roberta(tokens_L):
  """The states of a text's tokens, `[L, D]`."""
  table = arrays["embeddings.word_embeddings.weight"]
  known_L1 = (tokens_L < len(table))[:, None]
  x_LD = np.where(known_L1, table[np.minimum(tokens_L, len(table) - 1)], table.mean(0))
  first = theirs["pad_token_id"] + 1
  positions = arrays["embeddings.position_embeddings.weight"]
  x_LD = x_LD + positions[first : first + len(tokens_L)]
  x_LD = x_LD + arrays["embeddings.token_type_embeddings.weight"][0]
  x_LD = standardized("embeddings.LayerNorm", x_LD)
  for number in range(theirs["num_hidden_layers"]):
    layer = f"encoder.layer.{number}"
    attention = f"{layer}.attention"
    q, k, v = (
      linear(f"{attention}.self.{part}", x_LD).reshape(len(x_LD), HEADS, -1)
      for part in ("query", "key", "value")
    )
    scores_HLS = np.einsum("lhk,shk->hls", q, k) / np.sqrt(q.shape[-1])
    weights_HLS = np.exp(scores_HLS - scores_HLS.max(-1, keepdims=True))
    weights_HLS /= weights_HLS.sum(-1, keepdims=True)
    mixed_LD = np.einsum("hls,shk->lhk", weights_HLS, v).reshape(x_LD.shape)
    x_LD = x_LD + linear(f"{attention}.output.dense", mixed_LD)
    x_LD = standardized(f"{attention}.output.LayerNorm", x_LD)
    wide = linear(f"{layer}.intermediate.dense", x_LD)
    wide *= (1 + np.vectorize(math.erf)(wide / math.sqrt(2))) / 2
    x_LD = x_LD + linear(f"{layer}.output.dense", wide)
    x_LD = standardized(f"{layer}.output.LayerNorm", x_LD)
  return x_LD


HEADS = theirs["num_attention_heads"]
reference = [roberta(own) for own in tokens]

# %% [markdown]
# Both stacks start from it: at step 0 the encoder's states and the decoder's are these,
# for the post, which has nothing above it, and for every comment.


# %%
def furthest(states_NLD, others):
  """The largest difference in a token of any comment."""
  return max(
    np.abs(states_NLD[number, : len(other)] - other).max()
    for number, other in enumerate(others)
  )


encoded_NLD, decoded_NLD = map(np.asarray, states_of(started.params))
print(f"{len(tokens)} comments, states up to {max(map(np.max, reference)):.1f}")
for side, states_NLD in (("encoder", encoded_NLD), ("decoder", decoded_NLD)):
  print(f"{side}: largest difference {furthest(states_NLD, reference):.1e}")
  assert furthest(states_NLD, reference) < 1e-4

# %% [markdown]
# ## Why: the decoder in plain JAX
#
# From commentree's parameters. What is RoBERTa's is as above; in between, tokens
# attend to the vectors of the comments above, the means of those comments' states.
# The last map of that attention starts at 0. It adds nothing, but has a gradient, and
# so it learns.


# %%
def linear_of(p, x):
  """A linear map."""
  return x @ p["kernel"] + p["bias"]


def norm(p, x):
  """A norm."""
  x -= x.mean(-1, keepdims=True)
  x /= jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + config.layer_norm_epsilon)
  return x * p["scale"] + p["bias"]


def attend(p, x_LD, keys_SD, visible_LS, bias=0.0):
  """What tokens take from those they see, by heads."""
  q, k, v = (
    linear_of(p[name], x).reshape(len(x), config.num_heads, config.head_dim)
    for name, x in (("query", x_LD), ("key", keys_SD), ("value", keys_SD))
  )
  scores_HLS = jnp.einsum("lhk,shk->hls", q, k) / jnp.sqrt(config.head_dim) + bias
  weights_HLS = jax.nn.softmax(jnp.where(visible_LS, scores_HLS, -1e9))
  mixed_LHK = jnp.einsum("hls,shk->lhk", weights_HLS, v)
  return linear_of(p["out"], mixed_LHK.reshape(len(x_LD), -1))


def decode(params, tokens_L, there_L, vectors_AD, hops_A):
  """The decoder's states of a comment, given the vectors of those above it `[L, D]`."""
  p, place = params["token_embedder"], params["ancestors"]
  positions = p["position_embedding"][config.position_offset :][:LENGTH]
  x = norm(p["norm"], p["embedding"][tokens_L] + positions + p["type_embedding"][0])
  # A comment with nothing above it attends to a vector for that.
  keys_SD = jnp.concatenate([place["null_vector"][None], vectors_AD])
  seen_S = jnp.append(~(hops_A > 0).any(), hops_A > 0)
  # How many hops up an ancestor stands is told by a bias of each head.
  rows_A = jnp.clip(hops_A, 0, config.max_ancestor_distance)
  bias_HS = jnp.pad(place["distance_bias"][:, rows_A], ((0, 0), (1, 0)))
  for number in range(config.num_decoder_layers):
    layer = params["decoder"][f"layers_{number}"]
    x += attend(layer["self_attention"], x, x, there_L[None])
    look_up = layer["encoder_decoder_attention"]
    x += attend(look_up, x, keys_SD, seen_S[None], bias_HS[:, None])
    x = norm(layer["post_cross_attention_layer_norm"], x)
    wide = jax.nn.gelu(linear_of(layer["mlp"]["wi"], x), approximate=False)
    x = norm(layer["post_mlp_layer_norm"], x + linear_of(layer["mlp"]["wo"], wide))
  return x


@jax.jit
def page(params, encoded_NLD):
  """The decoder's states of all comments, `[N, L, D]`."""
  sums_ND = (encoded_NLD * there_NL[..., None]).sum(1)
  means_ND = sums_ND / there_NL.sum(1, keepdims=True)
  vectors_NAD = means_ND[slots_NA - 1]
  of_comments = jax.vmap(decode, (None, 0, 0, 0, 0))
  return of_comments(params, tokens_NL, there_NL, vectors_NAD, hops_NA)


def compare(params):
  """The largest difference between the page and commentree; how much is added."""
  encoded_NLD, decoded_NLD = map(np.asarray, states_of(params))
  ours_NLD = np.asarray(page(params, encoded_NLD))
  own = [ours_NLD[number, : len(text)] for number, text in enumerate(tokens)]
  layers = (params["decoder"][f"layers_{n}"] for n in range(config.num_decoder_layers))
  last = [
    np.abs(layer["encoder_decoder_attention"]["out"]["kernel"]) for layer in layers
  ]
  return furthest(decoded_NLD, own), np.max(last), furthest(decoded_NLD, reference)


def tell(params):
  """Prints `compare`, and checks that page and product are the same."""
  apart, largest, from_file = compare(params)
  print(f"page and product differ by {apart:.1e} at most; the map's largest weight is")
  print(f"{largest:.3f}; the decoder is {from_file:.1e} from what the file computes")
  assert apart < 1e-4
  return largest


assert tell(started.params) == 0

# %% [markdown]
# ## Thirty steps
#
# The same command as for any run, which continues from the checkpoint made above. After
# it the page still computes what commentree does; but the last map is no longer 0, and
# the states are no longer the file's.

# %% language="bash"
# commentree train --gin_file=mine.gin --gin.MODEL_DIR='"runs/started"'

# %%
trained = commentree.load("runs/started")
print(trained)
assert tell(trained.params) > 0

# %% [markdown]
# Thirty steps from random numbers say nothing of what starting from a model is worth;
# docs/hugging_face.md ("Does it pay?") and docs/results.md have figures with controls.

# %% [markdown]
# ## Adapt it to your use
#
# - A released model: a folder with the three files, of RoBERTa, DistilRoBERTa, BERT,
#   MiniLM, T5 and others (docs/hugging_face.md) in place of `tiny_roberta`, and longer
#   rows. To start and train in one:
#
#       commentree vocab --from=roberta-base/tokenizer.json --output=roberta.json
#       commentree convert roberta-base --print_gin > roberta.gin
#       commentree train --gin_file=runs/pretrain.gin --gin_file=roberta.gin \
#         --gin.MIXTURE_OR_TASK_NAME='"commentree_files"' --gin.FILES='"trees.jsonl"' \
#         --gin.VOCABULARY='"roberta.json"' --gin.MODEL_DIR='"runs/mine"' \
#         --gin.INITIAL_CHECKPOINT_PATH='"roberta-base"' --gin.OPTIMIZER='"adamw"' \
#         --gin.LEARNING_RATE=0.0001 --gin.TRAIN_STEPS=20000
#
# - `commentree train --dry_run …` says of each parameter where it would come from.
# - Fewer layers than the file has: `ModelConfig.num_encoder_layers` and
#   `.num_decoder_layers`; the lowest are taken.
