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
# # Comments and their translations, with language embeddings
#
# Translation language modelling (Conneau and Lample 2019): a comment and its
# translation are read together, words of both are masked, and a word that is hidden
# in one language may be found in the other. The model is that of masked pretraining
# with one thing more, a vector for each language. It is written out, and every loss
# must be commentree's.
#
# Names of arrays end in their axes: E encoded comments, T targets, L tokens of a
# comment and its translation, A ancestors, S what is attended to, D width.

# %% [markdown]
# ## Pairs
#
# Generated trees without their cues, in two languages: a word of the second is one of
# the first, read backwards. All comments are of five words, so that a word's
# counterpart always stands as far away: that is learnt in a minute, and what
# languages do is not.

# %%
import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np

import commentree
from commentree.console import Console
from commentree.launch import assemble_run
from commentree.tasks import data as data_lib
from commentree.tasks.config.generated import GeneratedTreesConfig
from commentree.tasks.seqio_tasks import registration
from commentree.tasks.sources import generated
from commentree.training.partitioning import ProcessShard

# Where products of float32 are as exact as that, and no accelerator is waited for.
jax.config.update("jax_platforms", "cpu")

trees = GeneratedTreesConfig(
  hops=(1,),
  num_values=8,
  recall_rate=1.0,
  median_filler_words=3,
  filler_words_sigma=0.0,
)


def text_of(comment):
  """Its words, without `[fact]` and `[hop_1]`."""
  return re.sub(r"\[\w+\] ", "", comment.text)


def translated(text):
  """The text in the second language."""
  return " ".join(word[::-1] for word in text.split())


def as_record(tree, other):
  """A tree as a line of tree JSONL has it, with translations of another's comments."""

  def said(number):
    text = text_of(other.comments[number % len(other.comments) or 1])
    translation = {"language": "back", "text": translated(text)}
    return {"language": "forth", "translation": translation}

  post = tree.comments[0]
  comments = [
    {
      "id": comment.id,
      "parent_id": tree.comments[comment.parent].id,
      "author": comment.author,
      "body": text_of(comment),
      **said(number),
    }
    for number, comment in enumerate(tree.comments)
    if number
  ]
  return {
    "id": post.id,
    "author": post.author,
    "selftext": text_of(post),
    "language": "forth",
    "comments": comments,
  }


def write(path, numbers, shift=0):
  """Writes trees, each with translations from the one `shift` further on."""
  with open(path, "w") as file:
    for number in numbers:
      tree, other = (
        generated.generate_tree(trees, trees.seed, n) for n in (number, number + shift)
      )
      file.write(json.dumps(as_record(tree, other)) + "\n")


write("pairs.jsonl", range(600))
write("held_out.jsonl", range(600, 640))
# The control: no comment has its own translation.
write("swapped.jsonl", range(600, 640), shift=1)

# %% language="bash"
# head -1 held_out.jsonl | cut -c 1-420
# commentree vocab --input pairs.jsonl --output=pairs --size=300

# %% language="bash"
# commentree train --gin_file=runs/demo.gin --gin_file=objectives/tlm.gin \
#   --gin.LANGUAGES="('forth', 'back')" --gin.MODEL_DIR='"runs/pairs"' \
#   --gin.MIXTURE_OR_TASK_NAME='"commentree_files"' --gin.FILES='"pairs.jsonl"' \
#   --gin.VOCABULARY='"pairs.model"' --gin.HELD_OUT_SHARE=0 --gin.TRAIN_STEPS=400 \
#   --gin.TASK_FEATURE_LENGTHS="{'encoder': 32, 'decoder': 32}" \
#   --gin.SubtreeConfig.max_comment_tokens=32 --gin.MaskingConfig.rate=0.25 \
#   --gin.ModelConfig.ancestor_positions='"relative_bias"'

# %% [markdown]
# ## A batch
#
# Of held-out trees, as commentree packs it; then each comment with its translation is
# taken out, to an array of its own. New beside masked pretraining: the language of each
# token, 1 or 2, or 0 for none.

# %%
trained = commentree.load("runs/pairs")
params, model, config = trained.params, trained.model, trained.model.config
LENGTH = 16


def batches_of(path):
  """Batches of all trees of a file."""
  files = dataclasses.replace(trained.run.config.data, files=path, held_out_share=1.0)
  run = dataclasses.replace(trained.run.config, data=files)
  registration.register_tasks(run.data)
  data = data_lib.open_data(run.data, Console(quiet=True), ("validation",))
  return assemble_run.held_out_data(run, data)["held_out"](ProcessShard(0, 1))


def taken_out(values, ids, count):
  """Returns the values of segments 1 to count, and where there are any: `[N, L]`."""
  found = np.zeros((count, LENGTH), np.int32)
  there = np.zeros((count, LENGTH), bool)
  for number in range(count):
    own = values[ids == number + 1]
    found[number, : len(own)] = own
    there[number, : len(own)] = True
  return found, there


def comments_of(batch):
  """Returns a forest's comments as arrays of their own, and where its masks went."""
  forest = {name: np.asarray(values[0]) for name, values in batch.items()}
  comments = {"ancestors_TA": forest["ancestor_slots"]}
  comments["hops_TA"] = forest["ancestor_distances"]
  counts = {
    "encoder": len(forest["encoder_slot_depths"]),
    "decoder": len(forest["ancestor_slots"]),
  }
  for side, count in counts.items():
    ids = forest[f"{side}_segment_ids"]
    for name in ("input_tokens", "languages"):
      found, there = taken_out(forest[f"{side}_{name}"], ids, count)
      comments[f"{side}_{name}"], comments[f"{side}_there"] = found, there
  # Positions begin anew in a translation; here a token's place is counted through.
  true_TL = np.zeros_like(comments["decoder_input_tokens"])
  places = []
  # Masked tokens of all rows are kept together: a position is of the whole forest.
  ids = forest["decoder_segment_ids"].reshape(-1)
  for group, column in np.argwhere(forest["decoder_loss_weights"] > 0):
    place = forest["decoder_masked_positions"][group, column]
    target = ids[place] - 1
    in_comment = place - np.argmax(ids == ids[place])
    true_TL[target, in_comment] = forest["decoder_target_tokens"][group, column]
    places.append((target, in_comment))
  return {**comments, "true_TL": true_TL}, tuple(np.transpose(places))


batch = next(iter(batches_of("held_out.jsonl")))
comments, places = comments_of(batch)
decode_text = trained.run.tokenizer.id_to_piece
for name in ("input_tokens", "languages"):
  values = comments[f"decoder_{name}"][0][comments["decoder_there"][0]].tolist()
  print(*(map(decode_text, values) if name == "input_tokens" else values))

# %% [markdown]
# ## The model's page
#
# T5 1.1's blocks, as in masked pretraining. What is new is the second line of
# `embed`: a word is told apart from the same letters in another language, and the
# translation from the comment.


# %%
def embed(params, tokens, languages):
  """Vectors of tokens, with those of their languages added, but for 0."""
  x = params["token_embedder"]["embedding"][tokens]
  none_XD = jnp.zeros_like(params["language_embedding"][:1])
  return x + jnp.concatenate([none_XD, params["language_embedding"]])[languages]


def norm(p, x):
  """T5's norm: the root mean square becomes 1, or what is learnt."""
  mean_square = jnp.mean(x * x, axis=-1, keepdims=True)
  return x / jnp.sqrt(mean_square + 1e-6) * p["scale"]


def attend(p, x_NLD, keys_NSD, visible_NLS, bias):
  """What tokens take from those they see, by heads."""

  def heads(name, x):
    y = x @ p[name]["kernel"]
    return y.reshape(*y.shape[:-1], config.num_heads, config.head_dim)

  scores_NHLS = jnp.einsum(
    "nlhk,nshk->nhls", heads("query", x_NLD), heads("key", keys_NSD)
  )
  scores_NHLS = jnp.where(visible_NLS[:, None], scores_NHLS + bias, -1e9)
  weights_NHLS = jax.nn.softmax(scores_NHLS)
  mixed = jnp.einsum("nhls,nshk->nlhk", weights_NHLS, heads("value", keys_NSD))
  return mixed.reshape(*x_NLD.shape[:-1], -1) @ p["out"]["kernel"]


def mlp(p, x):
  """A gated layer on each token."""
  gate = jax.nn.gelu(x @ p["wi_0"]["kernel"])
  return (gate * (x @ p["wi_1"]["kernel"])) @ p["wo"]["kernel"]


def position_bias(p):
  """T5's bias by relative position, counted on through the translation."""
  offsets = np.arange(LENGTH)[None] - np.arange(LENGTH)[:, None]
  distances = np.abs(offsets)
  far = 8 + (np.log(np.maximum(distances, 1) / 8) / np.log(16) * 8).astype(int)
  buckets = np.where(distances < 8, distances, np.minimum(far, 15)) + 16 * (offsets > 0)
  return p["relpos_bias"]["rel_embedding"][:, buckets]


def encode(params, tokens_EL, languages_EL, there_EL):
  """A vector for each comment and its translation: the mean of states, `[E, D]`."""
  p, x = params["encoder"], embed(params, tokens_EL, languages_EL)
  visible_ELL = jnp.broadcast_to(there_EL[:, None], (*there_EL.shape, LENGTH))
  for number in range(config.num_encoder_layers):
    layer = p[f"layers_{number}"]
    normed = norm(layer["pre_attention_layer_norm"], x)
    x += attend(layer["attention"], normed, normed, visible_ELL, position_bias(p))
    x += mlp(layer["mlp"], norm(layer["pre_mlp_layer_norm"], x))
  x = norm(p["encoder_norm"], x) * there_EL[..., None]
  return x.sum(1) / jnp.maximum(there_EL.sum(1), 1)[:, None]


def decode(
  params, tokens_TL, languages_TL, there_TL, vectors_ED, ancestors_TA, hops_TA
):
  """Logits of each token, given the vectors of the comment's ancestors."""
  p, place = params["decoder"], params["ancestors"]
  x = embed(params, tokens_TL, languages_TL)
  visible_TLL = jnp.broadcast_to(there_TL[:, None], (*there_TL.shape, LENGTH))
  # A comment without ancestors attends to a learnt vector.
  null_T1D = jnp.broadcast_to(place["null_vector"], (len(x), 1, x.shape[-1]))
  keys_TSD = jnp.concatenate([null_T1D, vectors_ED[ancestors_TA - 1]], axis=1)
  seen_TA = ancestors_TA > 0
  seen_TS = jnp.concatenate([~seen_TA.any(1, keepdims=True), seen_TA], axis=1)
  seen_TLS = jnp.broadcast_to(seen_TS[:, None], (len(x), LENGTH, seen_TS.shape[1]))
  # How many hops up an ancestor stands is told by a bias of each head.
  rows_TA = jnp.clip(hops_TA, 0, config.max_ancestor_distance)
  bias_HTA = place["distance_bias"][:, rows_TA]
  bias_TH1S = jnp.pad(bias_HTA, ((0, 0), (0, 0), (1, 0))).transpose(1, 0, 2)[:, :, None]
  for number in range(config.num_decoder_layers):
    layer = p[f"layers_{number}"]
    normed = norm(layer["pre_self_attention_layer_norm"], x)
    x += attend(layer["self_attention"], normed, normed, visible_TLL, position_bias(p))
    normed = norm(layer["pre_cross_attention_layer_norm"], x)
    look_up = layer["encoder_decoder_attention"]
    x += attend(look_up, normed, keys_TSD, seen_TLS, bias_TH1S)
    x += mlp(layer["mlp"], norm(layer["pre_mlp_layer_norm"], x))
  return norm(p["decoder_norm"], x) @ p["logits_dense"]["kernel"]


@jax.jit
def losses(params, comments):
  """The loss of each token if it is the masked one, in nats, `[T, L]`."""

  def side(name):
    return [
      comments[f"{name}_{kind}"] for kind in ("input_tokens", "languages", "there")
    ]

  vectors_ED = encode(params, *side("encoder"))
  logits_TLV = decode(
    params, *side("decoder"), vectors_ED, comments["ancestors_TA"], comments["hops_TA"]
  )
  true_TL1 = comments["true_TL"][..., None]
  return -jnp.take_along_axis(jax.nn.log_softmax(logits_TLV), true_TL1, axis=-1)[..., 0]


# %% [markdown]
# ## Is it the product's model?
#
# The loss of every masked token of the batch. And as a check of the check: with the two
# languages mixed up on the page it must not be the same.

# %%
evaluate = jax.jit(model.evaluate_batch, static_argnums=2)
ours = np.asarray(losses(params, comments))[places]
theirs = np.asarray(evaluate(params, batch, "true")["nll"])
theirs = theirs[np.asarray(batch["decoder_loss_weights"]) > 0]
np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
print(
  f"{len(ours)} masked tokens, largest difference {np.abs(ours - theirs).max():.1e}"
)

mixed_up = {**params, "language_embedding": params["language_embedding"][::-1]}
other = np.asarray(losses(mixed_up, comments))[places]
print(f"with languages mixed up: {np.abs(other - theirs).max():.1f}")
assert np.abs(other - theirs).max() > 0.1

# %% [markdown]
# ## Is a word found in the other language?
#
# The control: the same comments and masks, but each with the translation of a comment
# of another tree. It has as many words and is as much a translation, only of
# something else.

# %%
means = {}
for path in ("held_out.jsonl", "swapped.jsonl"):
  total = count = 0.0
  for batch in batches_of(path):
    found = evaluate(params, batch, "true")
    total += float((found["nll"] * found["weights"]).sum())
    count += float(found["weights"].sum())
  means[path] = total / count
  print(f"{path}: {means[path]:.2f} nats a masked token ({count:.0f})")
assert means["swapped.jsonl"] > means["held_out.jsonl"] + 0.5

# %% [markdown]
# The difference is what the right translation tells, in one run of a minute; that a
# wrong one misleads is part of it. That the *thread* tells something is another
# question, with another control (`shuffled` ancestors), and of neither does such a
# toy say how much it is for real languages, whose words do not stand in the same
# order.

# %% [markdown]
# ## Adapt it to your use
#
# - Your pairs: `"language"` and `"translation": {"language": …, "text": …}` beside
#   `"body"` in tree JSONL; comments without are masked alone.
#
#       commentree vocab --input=mine.jsonl --output=mine --size=32000
#       commentree train --gin_file=runs/pretrain.gin --gin_file=objectives/tlm.gin \
#         --gin.LANGUAGES="('en', 'de')" --gin.MODEL_DIR='"runs/mine"' \
#         --gin.MIXTURE_OR_TASK_NAME='"commentree_files"' --gin.FILES='"mine.jsonl"' \
#         --gin.VOCABULARY='"mine.model"' --gin.TRAIN_STEPS=20000
#
# - Rows must hold both: `TASK_FEATURE_LENGTHS` and `SubtreeConfig.max_comment_tokens`
#   are of a comment and its translation together.
# - `commentree inspect --objective=tlm --languages en de …` shows what is masked.
# - Languages without translations: `objectives/mlm.gin`, `ObjectiveConfig.languages`.
