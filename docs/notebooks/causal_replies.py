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
# # Writing replies, step by step in plain JAX
#
# A causal model is trained for half a minute. Then all that it does is written out for
# one thread: vectors of the comments above, a decoder that sees no token behind its
# own, and the loop that writes a reply. Likelihoods and replies must be commentree's.
#
# Names of arrays end in their axes: A ancestors, L tokens of a comment, S what is
# attended to, D width, H heads, K width of a head, V the vocabulary.

# %% [markdown]
# ## Training
#
# Generated trees, in which the word after `[hop_1]` is one for the fact that the parent
# states after `[fact]`: one of eight, and in 5% of the cases a fact drawn anew.
# `objectives/clm.gin` makes each token one to predict, from those before it.

# %% language="bash"
# commentree train --gin_file=runs/demo.gin --gin_file=objectives/clm.gin \
#   --gin.MODEL_DIR='"runs/replies"' --gin.TRAIN_STEPS=300 --gin.EVAL_BATCHES=5 \
#   --gin.TASK_FEATURE_LENGTHS="{'encoder': 32, 'decoder': 32}" \
#   --gin.SubtreeConfig.max_comment_tokens=32 \
#   --gin.ModelConfig.ancestor_positions='"relative_bias"' \
#   --gin.GeneratedTreesConfig.hops='(1,)' \
#   --gin.GeneratedTreesConfig.max_filler_words=4 \
#   --gin.GeneratedTreesConfig.num_train_trees=2000

# %% [markdown]
# The line `eval` has the loss with the thread's own comments above (`true`) and, as its
# control, with those of other threads (`shuffled`); below it, what the thread saves.

# %%
import jax
import jax.numpy as jnp
import numpy as np

import commentree
from commentree.models.decoding.decoding_config import DecodingConfig
from commentree.tasks.sources import generated

# Where products of float32 are as exact as that, and no accelerator is waited for.
jax.config.update("jax_platforms", "cpu")

trained = commentree.load("runs/replies")
params, config = trained.params, trained.model.config
print(trained)

# %% [markdown]
# ## A thread
#
# Of a tree that was held out. What is read of a comment is its author's marker, then
# its text; the post's author is `<user_0>`.

# %%
builder, tokenizer = trained.run.builder, trained.run.tokenizer
trees = trained.run.config.data.generated


def held_out(number):
  """A tree that was not trained on."""
  return generated.generate_tree(trees, trees.seed, trees.num_train_trees + number)


def tokens_of(tree):
  """The tokens of each comment."""
  return builder.encode_texts(builder.texts(tree))


def above(tree, number):
  """The comments above one, nearest first."""
  found = []
  while (number := tree.comments[number].parent) >= 0:
    found.append(number)
  return shown(found)


def shown(chain):
  """Those of a chain of comments that a model sees: the nearest, and the post."""
  return chain if len(chain) <= MOST else [*chain[: MOST - 1], chain[-1]]


LENGTH, MOST = 32, builder.preprocessing.subtrees.max_ancestors
tree = held_out(0)
last = len(tree.comments) - 1
for number in [*above(tree, last)[::-1], last]:
  print(builder.texts(tree)[number], tokens_of(tree)[number])

# %% [markdown]
# ## The model's page
#
# T5 1.1's blocks, for one comment. Arrays are padded to one length, so that each
# function is compiled once.


# %%
def norm(p, x):
  """T5's norm: the root mean square becomes 1, or what is learnt."""
  mean_square = jnp.mean(x * x, axis=-1, keepdims=True)
  return x / jnp.sqrt(mean_square + 1e-6) * p["scale"]


def attend(p, x_LD, keys_SD, visible_LS, bias):
  """What tokens take from those they see, by heads."""

  def heads(name, x):
    return (x @ p[name]["kernel"]).reshape(len(x), config.num_heads, config.head_dim)

  scores_HLS = jnp.einsum("lhk,shk->hls", heads("query", x_LD), heads("key", keys_SD))
  weights_HLS = jax.nn.softmax(jnp.where(visible_LS, scores_HLS + bias, -1e9))
  mixed_LHK = jnp.einsum("hls,shk->lhk", weights_HLS, heads("value", keys_SD))
  return mixed_LHK.reshape(len(x_LD), -1) @ p["out"]["kernel"]


def mlp(p, x):
  """A gated layer on each token."""
  gate = jax.nn.gelu(x @ p["wi_0"]["kernel"])
  return (gate * (x @ p["wi_1"]["kernel"])) @ p["wo"]["kernel"]


def position_bias(p, *, causal):
  """T5's bias by relative position: each near one its own, the far ones in groups."""
  offsets_LL = np.arange(LENGTH)[None] - np.arange(LENGTH)[:, None]
  # A causal decoder looks back alone, and has all its parameters for that.
  exact = 16 if causal else 8
  distances = np.maximum(-offsets_LL, 0) if causal else np.abs(offsets_LL)
  far = exact + (
    np.log(np.maximum(distances, 1) / exact) / np.log(128 / exact) * exact
  ).astype(int)
  buckets = np.where(distances < exact, distances, np.minimum(far, 2 * exact - 1))
  if causal:
    return p["relpos_bias"]["causal_rel_embedding"][:, buckets]
  return p["relpos_bias"]["rel_embedding"][:, buckets + 16 * (offsets_LL > 0)]


def encode(params, tokens_L, there_L):
  """A vector for a comment above: the mean of its tokens' states, `[D]`."""
  p = params["encoder"]
  x = params["token_embedder"]["embedding"][tokens_L]
  for number in range(config.num_encoder_layers):
    layer = p[f"layers_{number}"]
    normed = norm(layer["pre_attention_layer_norm"], x)
    bias = position_bias(p, causal=False)
    x += attend(layer["attention"], normed, normed, there_L[None], bias)
    x += mlp(layer["mlp"], norm(layer["pre_mlp_layer_norm"], x))
  return jnp.mean(norm(p["encoder_norm"], x), axis=0, where=there_L[:, None])


def decode(params, tokens_L, vectors_AD, hops_A):
  """Logits of what follows each token, given the vectors of the comments above.

  There are ancestors where there are hops to them. Padding behind a reply needs no
  mask: no token sees what is behind it.
  """
  p, place = params["decoder"], params["ancestors"]
  x = params["token_embedder"]["embedding"][tokens_L]
  before_LL = np.tri(LENGTH, dtype=bool)
  # A comment without ancestors attends to a learnt vector.
  keys_SD = jnp.concatenate([place["null_vector"][None], vectors_AD])
  seen_S = jnp.append(~(hops_A > 0).any(), hops_A > 0)
  # How many hops up an ancestor stands is told by a bias of each head.
  rows_A = jnp.clip(hops_A, 0, config.max_ancestor_distance)
  bias_HS = jnp.pad(place["distance_bias"][:, rows_A], ((0, 0), (1, 0)))
  for number in range(config.num_decoder_layers):
    layer = p[f"layers_{number}"]
    normed = norm(layer["pre_self_attention_layer_norm"], x)
    bias = position_bias(p, causal=True)
    x += attend(layer["self_attention"], normed, normed, before_LL, bias)
    normed = norm(layer["pre_cross_attention_layer_norm"], x)
    look_up = layer["encoder_decoder_attention"]
    x += attend(look_up, normed, keys_SD, seen_S[None], bias_HS[:, None])
    x += mlp(layer["mlp"], norm(layer["pre_mlp_layer_norm"], x))
  return norm(p["decoder_norm"], x) @ params["decoder"]["logits_dense"]["kernel"]


@jax.jit
def log_probabilities(params, read_L, above_AL, there_AL, hops_A):
  """Log probabilities of what follows each token read, `[L, V]`, given a thread."""
  vectors_AD = jax.vmap(encode, (None, 0, 0))(params, above_AL, there_AL)
  # Of places without a comment nothing is to be seen, not even by a weight of 0.
  vectors_AD = jnp.where((hops_A > 0)[:, None], vectors_AD, 0)
  return jax.nn.log_softmax(decode(params, read_L, vectors_AD, hops_A))


# %%
def padded(tokens):
  """Tokens in an array as long as all others."""
  return np.pad(np.array(tokens, np.int32), (0, LENGTH - len(tokens)))


def thread_arrays(tree, numbers):
  """The comments above, nearest first, as the model's page takes them."""
  tokens, depths = tokens_of(tree), tree.depths()
  above_AL = np.zeros((MOST, LENGTH), np.int32)
  there_AL = np.zeros((MOST, LENGTH), bool)
  hops_A = np.zeros(MOST, np.int32)
  for place, number in enumerate(numbers):
    above_AL[place] = padded(tokens[number])
    there_AL[place] = np.arange(LENGTH) < len(tokens[number])
    hops_A[place] = 1 + depths[numbers[0]] - depths[number]
  return above_AL, there_AL, hops_A


# %% [markdown]
# ## Is it the product's model?
#
# The likelihood of every comment of the tree, by the page and by `score`. The decoder
# reads a start, the author's marker, which is given, and the text; it predicts the text
# and an end.

# %%
START, END = trained.run.causal.start_id, trained.run.causal.end_id


def log_likelihood(tree, number):
  """Of a comment's text and its end given all above it, in nats."""
  tokens = tokens_of(tree)[number]
  arrays = thread_arrays(tree, above(tree, number))
  log_probs_LV = log_probabilities(params, padded([START, *tokens]), *arrays)
  predicted = [*tokens[1:], END]
  return float(log_probs_LV[np.arange(1, len(tokens) + 1), predicted].sum())


ours = [log_likelihood(tree, number) for number in range(len(tree.comments))]
theirs = [answer["log_likelihood"] for answer in trained.score(tree)]
np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
furthest = np.abs(np.subtract(ours, theirs)).max()
print(f"{len(ours)} comments, largest difference {furthest:.1e} nats")

# %% [markdown]
# ## The loop
#
# A token at a time: log probabilities of what follows the last one, without what is
# never written; one of the rest is chosen, and the end ends it. Greedy takes the
# likeliest. Drawn, it is one of the fewest likeliest with a share `top_p` of the
# probability (nucleus sampling, Holtzman et al. 2020), by a key for each place.

# %%
MOST_TOKENS, TOP_P = LENGTH - 1, 0.9
# Padding and markers are never written, but for the cues, which say what comes next.
may_write_V = np.zeros(config.vocab_size, bool)
may_write_V[: tokenizer.vocab_size] = tokenizer.maskable
may_write_V[[END, *map(tokenizer.piece_to_id, generated.cues(trees))]] = True


def greedy(log_probs_V, position):
  """The likeliest token."""
  del position
  return int(jnp.argmax(log_probs_V))


def drawn_by(key):
  """Draws a token from the nucleus."""

  def draw(log_probs_V, position):
    order_V = jnp.argsort(-log_probs_V)
    sorted_V = log_probs_V[order_V]
    shares_V = jax.nn.softmax(sorted_V)
    # Those in front of which stands less than the share: always the first.
    kept_V = jnp.cumsum(shares_V) - shares_V < TOP_P
    scores_V = jnp.where(kept_V, sorted_V, -jnp.inf)
    now = jax.random.fold_in(jax.random.fold_in(key, 0), position)
    return int(order_V[jax.random.categorical(now, scores_V)])

  return draw


def reply(arrays, author, choose):
  """Writes a reply to the nearest comment; returns its tokens and log likelihood.

  The author's marker is given.
  """
  tokens, likelihood = [author], 0.0
  while len(tokens) < MOST_TOKENS:
    log_probs_LV = log_probabilities(params, padded([START, *tokens]), *arrays)
    log_probs_V = jnp.where(may_write_V, log_probs_LV[len(tokens)], -jnp.inf)
    token = choose(log_probs_V, len(tokens))
    likelihood += float(log_probs_V[token])
    if token == END:
      break
    tokens.append(token)
  return tokens, likelihood


# %% [markdown]
# commentree writes many replies at the same time, and keeps the keys and values of the
# tokens that it read before. It takes the same arrays, here a comment a row (its
# `generate` packs several, and knows which are which by their segments).

# %%


def write(threads, author, keys=None):
  """Replies by commentree, to several threads at once."""
  above_BAL, there_BAL, hops_BA = map(np.stack, zip(*threads))
  places_A = np.arange(1, MOST + 1)
  batch = {
    "encoder_input_tokens": above_BAL,
    "encoder_segment_ids": places_A[:, None] * there_BAL,
    "encoder_positions": np.broadcast_to(np.arange(LENGTH), above_BAL.shape),
    # By how far up they stand, not by depth, does this model know its ancestors.
    "encoder_slot_depths": np.zeros_like(hops_BA),
    "target_depths": np.zeros_like(hops_BA[:, :1]),
    "ancestor_slots": np.where(hops_BA > 0, places_A, 0)[:, None],
    "ancestor_distances": hops_BA[:, None],
  }
  decoding = DecodingConfig(
    START,
    END,
    max_length=MOST_TOKENS,
    method="greedy" if keys is None else "sample",
    top_p=1.0 if keys is None else TOP_P,
    never=tuple(np.flatnonzero(~may_write_V).tolist()),
  )
  first_tokens = np.full((len(threads), 1, 1), author)
  generate = jax.jit(trained.model.generate, static_argnums=2)
  found = generate(params, batch, decoding, keys, first_tokens=first_tokens)
  lengths = found.lengths[:, 0, 0]
  written = [found.tokens[n, 0, 0, :length] for n, length in enumerate(lengths)]
  return written, found.log_probabilities[:, 0, 0]


def asked_in(tree):
  """The comments that nobody answered, and threads that end with them."""
  answered = {comment.parent for comment in tree.comments}
  numbers = [n for n in range(len(tree.comments)) if n not in answered]
  chains = [shown([number, *above(tree, number)]) for number in numbers]
  return numbers, [thread_arrays(tree, chain) for chain in chains]


author = int(tokens_of(tree)[0][0])
numbers, threads = asked_in(tree)
keys = jax.random.split(jax.random.key(1), len(threads))
for how, theirs in (
  ("greedy", write(threads, author)),
  ("drawn", write(threads, author, keys[:, None])),
):
  for key, arrays, tokens, likelihood in zip(keys, threads, *theirs):
    choose = greedy if how == "greedy" else drawn_by(key)
    own_tokens, own_likelihood = reply(arrays, author, choose)
    assert own_tokens == tokens.tolist()
    np.testing.assert_allclose(own_likelihood, likelihood, rtol=1e-4, atol=1e-4)
  print(f"{how}: {len(threads)} replies are equal; the last one, to")
  print(f"  {tree.comments[numbers[-1]].text}")
  print(f"  {' '.join(map(tokenizer.id_to_piece, own_tokens))}")

# %% [markdown]
# ## Do the replies depend on the thread?
#
# Where a reply says `[hop_1]`, the word behind it should be one for the fact of the
# comment that it answers. The control: the same words held against the fact of a
# comment of another tree, which one in eight meets by chance. (So short a run has not
# learnt all: docs/replies.md has the figures of a longer one.)

# %%
words = generated.words(trees)
facts, recalls = words.facts, words.recalls[1]
several, threads = [], []
for number in range(1, 25):
  other = held_out(number)
  numbers, of_tree = asked_in(other)
  several += [other.comments[n].text for n in numbers]
  threads += of_tree
answered = [facts.index(text.split("[fact] ")[1].split()[0]) for text in several]
replies, _ = write(threads, author)
said = []
for tokens in replies:
  text = tokenizer.texts.whole(tokens.tolist())
  word = text.partition("[hop_1] ")[2].split(" ")[0]
  said.append(recalls.index(word) if word in recalls else -1)
said, answered = np.array(said), np.array(answered)
there = said >= 0
# Half of all further on stands another tree.
others = np.roll(answered, len(answered) // 2)
right = np.mean(said[there] == answered[there])
control = np.mean(said[there] == others[there])
print(f"{there.sum()} of {len(there)} replies recall a fact:")
print(f"{right:.1%} that of the comment they answer, {control:.1%} that of another's")
assert there.sum() > 50
assert right > 0.4 > 0.25 > control

# %% [markdown]
# ## Adapt it to your use
#
# - Your trees, after `commentree vocab --input=trees.jsonl --output=trees.model`:
#
#       commentree train --gin_file=runs/pretrain.gin --gin_file=objectives/clm.gin \
#         --gin.MIXTURE_OR_TASK_NAME='"commentree_files"' --gin.FILES='"trees.jsonl"' \
#         --gin.VOCABULARY='"trees.model"' --gin.MODEL_DIR='"runs/mine"' \
#         --gin.TRAIN_STEPS=20000
#
# - `pretrain.gin` adds a pointer to ancestors' tokens, which this page does not have.
# - `commentree infer --mode=generate --model_dir=runs/mine --input trees.jsonl …`
#   writes replies to a file, and `trained.generate(tree)` returns them; both write no
#   markers at all. docs/replies.md tells how tokens are chosen.
# - Real comments have no fact to look for: compare the losses with `true` and
#   `shuffled` ancestors, as the line `eval` does, before you say that replies know
#   their thread.
