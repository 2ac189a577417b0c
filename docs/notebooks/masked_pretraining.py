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
# # Masked pretraining on trees, step by step in plain JAX
#
# The model in a page of `jax.numpy`: no rows, no packing, a comment an array. Then the
# same parameters and the same comments go through commentree, and every loss must be
# the same. At the end the page is trained.
#
# Names of arrays end in their axes: E encoded comments, T targets (comments whose
# masked tokens are predicted), L tokens of a comment, A ancestors, S what is attended
# to, D width, H heads, K width of a head.

# %%
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from commentree.console import Console
from commentree.launch import assemble_run
from commentree.launch.settings import gin_cli
from commentree.tasks import data as data_lib
from commentree.tasks.seqio_tasks import registration
from commentree.training.partitioning import ProcessShard

# Where products of float32 are as exact as that, and no accelerator is waited for.
jax.config.update("jax_platforms", "cpu")

# %% [markdown]
# ## Trees
#
# Generated ones: the word after `[hop_1]` recalls what the parent's `[fact]` states,
# that after `[hop_2]` what the parent's parent states. Nobody can know it from the
# comment alone.

# %%
run = gin_cli.load(
  ["runs/demo.gin"],
  [
    "MODEL_DIR = 'runs/notebook'",
    "HELD_OUT_SHARE = 0",
    "GeneratedTreesConfig.num_train_trees = 300",
    "GeneratedTreesConfig.max_filler_words = 6",
    "TASK_FEATURE_LENGTHS = {'encoder': 32, 'decoder': 32}",
    "SubtreeConfig.max_comment_tokens = 32",
    "ModelConfig.ancestor_positions = 'relative_bias'",
    # A small weight on the size of logits, which the page leaves out.
    "ModelConfig.z_loss = 0.0",
  ],
)
registration.register_tasks(run.data)
data = data_lib.open_data(run.data, Console(quiet=True), ("train",))
tree = next(iter(data.task.tree_source.trees("train")))
for comment in tree.comments[:5]:
  above = "" if comment.parent < 0 else f" answers {tree.comments[comment.parent].id}"
  print(f"{comment.id}{above}: {comment.text}")

# %% [markdown]
# ## From a batch to comments
#
# commentree packs comments into rows of fixed length. Here each is taken out again, to
# an array of its own. Of a target: which of its tokens are masked, what they were, and
# which encoded comments are its ancestors, from 1, 0 for none, at how many hops.

# %%
LENGTH = 32


def taken_out(tokens, ids, count):
  """Returns the tokens of segments 1 to count, and where there are any: `[N, L]`."""
  found = np.zeros((count, LENGTH), np.int32)
  there = np.zeros((count, LENGTH), bool)
  for number in range(count):
    own = tokens[ids == number + 1]
    found[number, : len(own)] = own
    there[number, : len(own)] = True
  return found, there


def comments_of(batch):
  """Returns a forest's comments as arrays of their own, and where its masks went."""
  forest = {name: np.asarray(values[0]) for name, values in batch.items()}
  ancestors_TA = forest["ancestor_slots"]
  encoded_EL, encoded_there_EL = taken_out(
    forest["encoder_input_tokens"],
    forest["encoder_segment_ids"],
    len(forest["encoder_slot_depths"]),
  )
  targets_TL, targets_there_TL = taken_out(
    forest["decoder_input_tokens"], forest["decoder_segment_ids"], len(ancestors_TA)
  )
  true_TL = np.zeros_like(targets_TL)
  masked_TL = np.zeros_like(targets_there_TL)
  places = []
  # Masked tokens of all rows are kept together: a position is of the whole forest.
  for group, column in np.argwhere(forest["decoder_loss_weights"] > 0):
    place = forest["decoder_masked_positions"][group, column]
    target = forest["decoder_segment_ids"].reshape(-1)[place] - 1
    in_comment = forest["decoder_positions"].reshape(-1)[place]
    true_TL[target, in_comment] = forest["decoder_target_tokens"][group, column]
    masked_TL[target, in_comment] = True
    places.append((target, in_comment))
  comments = {
    "encoded_EL": encoded_EL,
    "encoded_there_EL": encoded_there_EL,
    "targets_TL": targets_TL,
    "targets_there_TL": targets_there_TL,
    "true_TL": true_TL,
    "masked_TL": masked_TL,
    "ancestors_TA": ancestors_TA,
    "hops_TA": forest["ancestor_distances"],
  }
  return comments, tuple(np.transpose(places))


batches = assemble_run.train_data(run, data)(ProcessShard(0, 1))
batch = next(batches)
comments, places = comments_of(batch)
print({name: values.shape for name, values in comments.items()})

# %% [markdown]
# ## The model's page
#
# T5 1.1's blocks: a norm before each part, no biases, scores that nothing divides, a
# learnt bias for each relative position.

# %%
model = assemble_run.build_model(run, data.task)
config = model.config


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
  """T5's bias by relative position: each near one its own, the far ones in groups."""
  offsets = np.arange(LENGTH)[None] - np.arange(LENGTH)[:, None]
  distances = np.abs(offsets)
  far = 8 + (np.log(np.maximum(distances, 1) / 8) / np.log(16) * 8).astype(int)
  buckets = np.where(distances < 8, distances, np.minimum(far, 15)) + 16 * (offsets > 0)
  return p["relpos_bias"]["rel_embedding"][:, buckets]


def encode(params, tokens_EL, there_EL):
  """A vector for each comment: the mean of its tokens' states, `[E, D]`."""
  p = params["encoder"]
  x = params["token_embedder"]["embedding"][tokens_EL]
  visible_ELL = jnp.broadcast_to(there_EL[:, None], (*there_EL.shape, LENGTH))
  for number in range(config.num_encoder_layers):
    layer = p[f"layers_{number}"]
    normed = norm(layer["pre_attention_layer_norm"], x)
    x += attend(layer["attention"], normed, normed, visible_ELL, position_bias(p))
    x += mlp(layer["mlp"], norm(layer["pre_mlp_layer_norm"], x))
  x = norm(p["encoder_norm"], x) * there_EL[..., None]
  return x.sum(1) / jnp.maximum(there_EL.sum(1), 1)[:, None]


def decode(params, tokens_TL, there_TL, vectors_ED, ancestors_TA, hops_TA):
  """Logits of each token, given the vectors of the comment's ancestors."""
  p, place = params["decoder"], params["ancestors"]
  x = params["token_embedder"]["embedding"][tokens_TL]
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


def losses(params, comments):
  """The loss of each masked token, in nats, 0 elsewhere: `[T, L]`.

  Comments are encoded once, however many are below them; gradients flow back through
  their vectors from all of those.
  """
  vectors_ED = encode(params, comments["encoded_EL"], comments["encoded_there_EL"])
  logits_TLV = decode(
    params,
    comments["targets_TL"],
    comments["targets_there_TL"],
    vectors_ED,
    comments["ancestors_TA"],
    comments["hops_TA"],
  )
  log_probs_TLV = jax.nn.log_softmax(logits_TLV)
  true_TL1 = comments["true_TL"][..., None]
  found_TL = jnp.take_along_axis(log_probs_TLV, true_TL1, axis=-1)[..., 0]
  return jnp.where(comments["masked_TL"], -found_TL, 0)


def mean_loss(params, comments):
  """The mean over masked tokens, nats."""
  return losses(params, comments).sum() / comments["masked_TL"].sum()


# %% [markdown]
# ## Is it the product's model?
#
# The same parameters, drawn by commentree; the same batch, packed there and taken out
# here. Each masked token's loss, with all ancestors and without any:

# %%
shapes = {name: values.shape for name, values in batch.items()}
params = model.get_initial_variables(jax.random.key(0), shapes)["params"]


def check(params, batch):
  """Compares the loss of every masked token with commentree's."""
  evaluate = jax.jit(functools.partial(model.evaluate_batch, condition="true"))
  comments, places = comments_of(batch)
  theirs = np.asarray(evaluate(params, batch)["nll"])[batch["decoder_loss_weights"] > 0]
  ours = np.asarray(jax.jit(losses)(params, comments))[places]
  assert len(theirs) == len(ours) > 50
  np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
  print(
    f"{len(ours)} masked tokens, largest difference {np.abs(ours - theirs).max():.1e}"
  )


check(params, batch)
check(params, {**batch, "ancestor_slots": np.zeros_like(batch["ancestor_slots"])})

# %% [markdown]
# And the gradients, which reach the encoder through the vectors of all ancestors:

# %%
ours = jax.jit(jax.grad(mean_loss))(params, comments)
theirs = jax.jit(jax.grad(lambda params: model.loss_fn(params, batch, None)[0]))(params)
jax.tree.map(
  functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6), ours, theirs
)

# %% [markdown]
# ## Training the page
#
# A forest a step, Adam, and the same page; after it commentree still computes the same
# with the parameters that came out.

# %%
optimizer = optax.adam(1e-3)


@jax.jit
def update(params, state, comments):
  """A step of Adam."""
  loss, gradients = jax.value_and_grad(mean_loss)(params, comments)
  changes, state = optimizer.update(gradients, state)
  return optax.apply_updates(params, changes), state, loss


state, curve = optimizer.init(params), []
for step in range(60):
  params, state, loss = update(params, state, comments_of(next(batches))[0])
  curve.append(float(loss))
  if step % 10 == 9:
    print(f"step {step + 1}: loss {np.mean(curve[-10:]):.3f} nats a masked token")
assert np.mean(curve[-10:]) < np.mean(curve[:10]) - 0.2
check(params, batch)

# %% [markdown]
# ## Adapt it to your use
#
# - Your trees: `["runs/pretrain.gin"]` with `FILES` and `VOCABULARY` in `gin_cli.load`;
#   `pretrain.gin` adds a pointer to ancestors' tokens, which this page does not have
#   (`ModelConfig.ancestor_pointer = False`).
# - Another pooling: replace the mean at the end of `encode`.
# - Whether ancestors help takes longer than this and a control: `make train`, and
#   docs/evaluation.md.
