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
# # Labels of comments, and whether the thread helps to find them
#
# A model is pretrained on masked tokens, and a head fine-tuned on it that labels
# comments. The head's equations are written out, and must give the probabilities and
# gradients that commentree gives. Then the question that every such model has to
# answer: is the label found by help of the thread?
#
# Names of arrays end in their axes: N comments, L tokens of a comment, A ancestors, D
# width, C labels.

# %% [markdown]
# ## Comments with labels
#
# Generated trees: after `[fact]` a comment states a fact, after `[hop_1]` it says what
# its parent stated. In half of the cases that is drawn anew, so mostly wrong: is a
# comment one that *quotes* its parent, or one that *misquotes*? No comment tells by
# itself.

# %%
import json
import re

import jax
import jax.numpy as jnp
import numpy as np

import commentree
from commentree.tasks.config.generated import GeneratedTreesConfig
from commentree.tasks.sources import generated

# Where products of float32 are as exact as that, and no accelerator is waited for.
jax.config.update("jax_platforms", "cpu")

LABELS = ("quotes", "misquotes")
trees = GeneratedTreesConfig(
  hops=(1,), num_values=8, recall_rate=1.0, noise=0.5, max_filler_words=4
)
words = generated.words(trees)


def label_of(tree, number):
  """What a comment is labelled."""
  comment = tree.comments[number]
  fact = re.search(r"\[fact\] (\w+)", tree.comments[comment.parent].text)[1]
  said = re.search(r"\[hop_1\] (\w+)", comment.text)[1]
  right = words.facts.index(fact) == words.recalls[1].index(said)
  return LABELS[0 if right else 1]


def as_record(tree):
  """A tree as a line of tree JSONL has it, with a label for each comment."""
  post = tree.comments[0]
  comments = [
    {
      "id": comment.id,
      "parent_id": tree.comments[comment.parent].id,
      "author": comment.author,
      "body": comment.text,
      "label": label_of(tree, number),
    }
    for number, comment in enumerate(tree.comments)
    if number
  ]
  return {
    "id": post.id,
    "author": post.author,
    "selftext": post.text,
    "comments": comments,
  }


with open("quotes.jsonl", "w") as file:
  for number in range(600):
    record = as_record(generated.generate_tree(trees, trees.seed, number))
    file.write(json.dumps(record) + "\n")
print(json.dumps(record)[:330], "…")

# %% [markdown]
# ## Pretraining, then the head
#
# Settings that both runs share lie in a file. The first learns masked tokens of trees
# whose comments quote nearly always right, without labels.

# %% language="bash"
# cat > small.gin <<'END'
# TASK_FEATURE_LENGTHS = {'encoder': 32, 'decoder': 32}
# SubtreeConfig.max_comment_tokens = 32
# BATCH_SIZE = 1
# MAX_ANCESTORS = 6
# ModelConfig.ancestor_positions = 'relative_bias'
# ModelConfig.max_ancestor_distance = 8
# ModelConfig.dtype = 'float32'
# # A small weight on the size of logits, which the equations below leave out.
# ModelConfig.z_loss = 0.0
# END
# commentree train --gin_file=runs/demo.gin --gin_file=small.gin \
#   --gin.MODEL_DIR='"runs/pretrained"' --gin.TRAIN_STEPS=250 --gin.HELD_OUT_SHARE=0 \
#   --gin.GeneratedTreesConfig.hops='(1,)' \
#   --gin.GeneratedTreesConfig.max_filler_words=4 \
#   --gin.GeneratedTreesConfig.num_train_trees=2000

# %% [markdown]
# The second starts from its checkpoint, with its vocabulary. Its report names `head…`
# alone as fresh.

# %% language="bash"
# commentree train --gin_file=runs/finetune_classify.gin --gin_file=small.gin \
#   --gin.MODEL_DIR='"runs/classify"' --gin.FILES='"quotes.jsonl"' \
#   --gin.LABEL_SOURCE='"label"' --gin.LABELS="('quotes', 'misquotes')" \
#   --gin.VOCABULARY='"runs/pretrained/vocabulary/vocabulary.model"' \
#   --gin.INITIAL_CHECKPOINT_PATH='"runs/pretrained/checkpoint_250"' \
#   --gin.TRAIN_STEPS=200 --gin.WARMUP_STEPS=20 --gin.LEARNING_RATE=0.001 \
#   --gin.EVAL_PERIOD=0 --gin.OptimizerConfig.layer_decay=1.0

# %% [markdown]
# ## A batch
#
# One tree, a comment a row; commentree packs several to a row, and knows which are
# which by their segments. Of each comment: its tokens, which comments are above it, at
# how many hops. A label stands where a masked token would, at a comment's first token.

# %%
trained = commentree.load("runs/classify")
params, model = trained.params, trained.model
builder = trained.run.builder
LENGTH, MOST = 32, builder.preprocessing.subtrees.max_ancestors

tree = generated.generate_tree(trees, trees.seed, 1000)  # not in the file
labels = [0, *(LABELS.index(label_of(tree, n)) for n in range(1, len(tree.comments)))]
depths = np.array(tree.depths())


def above(number):
  """The comments above one that a model sees: the nearest, and the post."""
  found = []
  while (number := tree.comments[number].parent) >= 0:
    found.append(number)
  return found if len(found) <= MOST else [*found[: MOST - 1], found[-1]]


tokens = builder.encode_texts(builder.texts(tree))
tokens_NL = np.zeros((len(tokens), LENGTH), np.int32)
there_NL = np.zeros((len(tokens), LENGTH), bool)
slots_NA = np.zeros((len(tokens), MOST), np.int32)
hops_NA = np.zeros((len(tokens), MOST), np.int32)
for number, own in enumerate(tokens):
  tokens_NL[number, : len(own)] = own
  there_NL[number, : len(own)] = True
  seen = np.array(above(number), int)
  slots_NA[number, : len(seen)] = seen + 1
  hops_NA[number, : len(seen)] = depths[number] - depths[seen]

ids_NL = np.arange(1, len(tokens) + 1)[:, None] * there_NL
positions_NL = np.broadcast_to(np.arange(LENGTH), tokens_NL.shape)
# The post has no label; it is above the others.
is_labelled_N = np.arange(len(tokens)) > 0
rows = {
  "encoder_input_tokens": tokens_NL,
  "encoder_segment_ids": ids_NL,
  "encoder_positions": positions_NL,
  "encoder_slot_depths": depths,
  "decoder_input_tokens": tokens_NL,
  "decoder_segment_ids": ids_NL,
  "decoder_positions": positions_NL,
  "decoder_masked_positions": np.zeros((len(tokens), 1), np.int32),
  "decoder_target_tokens": np.array(labels)[:, None],
  "decoder_loss_weights": is_labelled_N[:, None].astype(np.float32),
  "target_depths": depths,
  "ancestor_slots": slots_NA,
  "ancestor_distances": hops_NA,
}
batch = {name: values[None] for name, values in rows.items()}

# %% [markdown]
# ## The head's equations
#
# The decoder gives a state for each token of a comment, which knows the whole comment
# and all above it (the notebook of masked pretraining writes that out). The head takes
# their mean, a hidden layer, and a linear map to the labels:
#
#     h = tanh(W mean(states) + b)
#     p = softmax(U h + c)
#
# The loss is -log p of the right label; all labelled comments count the same.


# %%
def log_probabilities(head, states_NLD):
  """Log probability of each label of each comment, `[N, C]`."""
  sums_ND = (states_NLD * there_NL[..., None]).sum(1)
  mean_ND = sums_ND / there_NL.sum(1, keepdims=True)
  hidden_ND = jnp.tanh(mean_ND @ head["hidden"]["kernel"] + head["hidden"]["bias"])
  return jax.nn.log_softmax(
    hidden_ND @ head["logits"]["kernel"] + head["logits"]["bias"]
  )


def loss(head, states_NLD):
  """The mean over labelled comments, nats."""
  of_label_N = log_probabilities(head, states_NLD)[np.arange(len(labels)), labels]
  return -jnp.mean(of_label_N, where=is_labelled_N)


states_NLD = model.decode_states(params, model.encode(params, batch), batch)[0]
probabilities_NC = np.exp(log_probabilities(params["head"], states_NLD))

# %% [markdown]
# What `classify` answers for the tree must be the same, and so must be the loss and its
# gradients:

# %%
answers = trained.classify(tree)
theirs_NC = [[answer["probabilities"][name] for name in LABELS] for answer in answers]
np.testing.assert_allclose(probabilities_NC, theirs_NC, rtol=1e-4, atol=1e-5)
furthest = np.abs(probabilities_NC - theirs_NC).max()
print(f"{len(answers)} comments, largest difference {furthest:.1e}")

ours, own_gradients = jax.value_and_grad(loss)(params["head"], states_NLD)
theirs, gradients = jax.jit(
  jax.value_and_grad(lambda params: model.loss_fn(params, batch, None)[0])
)(params)
np.testing.assert_allclose(ours, theirs, rtol=1e-4)
jax.tree.map(
  lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
  own_gradients,
  gradients["head"],
)
for number in range(1, 5):
  text, found = tree.comments[number].text, answers[number]["label"]
  print(f"{text}: {found}; is: {label_of(tree, number)}")

# %% [markdown]
# ## Does the thread help?
#
# On held-out trees, with a comment's own ancestors (`true`), and with none. The latter
# is not enough of a control: a model may only be at a loss without anything above. With
# the ancestors of a comment of another tree (`shuffled`) it sees as much as ever, and
# only *whose* thread it is differs. What `true` is better than that is the thread's.

# %%
with open("runs/classify/metrics.jsonl") as file:
  results = [line["results"] for line in map(json.loads, file) if "results" in line][-1]
print(f"{'ancestors':<12}{'loss, nats':>12}{'accuracy':>10}{'macro F1':>10}")
for condition in ("true", "shuffled", "none"):
  found = results[condition]
  macro = found["f1"]["macro"]
  print(
    f"{condition:<12}{found['loss']:>12.3f}{found['accuracy']:>10.1%}{macro:>10.3f}"
  )
assert results["true"]["accuracy"] > results["shuffled"]["accuracy"] + 0.2

# %% [markdown]
# Shuffled threads have the largest loss, since the model trusts them; what it gets
# right there tells what takes no thread. The run's line `ancestors save …` has the
# difference with a standard error over trees. It is one run: whether *pretraining*
# helped, nothing here says. That takes the second run again, without
# `INITIAL_CHECKPOINT_PATH`, and both from several seeds.

# %% [markdown]
# ## Adapt it to your use
#
# - Your labels: `"label"` in tree JSONL as above, a column of a table, or a file beside
#   the data (docs/data.md, "Labels"); the names in the order you like.
# - From a pretraining run of yours, a size as it had:
#
#       commentree train --gin_file=runs/finetune_classify.gin \
#         --gin_file=models/small.gin --gin.MODEL_DIR='"runs/labels"' \
#         --gin.FILES='"mine.jsonl"' --gin.LABEL_SOURCE='"label"' \
#         --gin.LABELS="('for', 'against')" \
#         --gin.VOCABULARY='"runs/mine/vocabulary/vocabulary.model"' \
#         --gin.INITIAL_CHECKPOINT_PATH='"runs/mine/checkpoint_20000"'
#
# - Rare labels: `ModelConfig.class_weights`, and macro F1 in place of accuracy.
# - `commentree eval --model_dir=runs/labels` prints all four conditions, by label.
