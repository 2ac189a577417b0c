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
# # Claims and premises by a linear-chain CRF
#
# Parts of comments are labelled by a conditional random field (Lafferty et al. 2001):
# a score for each tag of each token, and for each pair of tags side by side. Its
# forward recursion and Viterbi's algorithm are written out, and must give what
# commentree gives, and what trying all sequences of tags gives.
#
# Names of arrays end in their axes: R rows, M places with a tag, L tokens of one
# comment, C tags.

# %% [markdown]
# ## Annotated threads
#
# In the form of the corpus change-my-view-modes: a file a thread, each reply to the one
# before it, claims and premises marked. The texts are generated ones; in each, what the
# comment states (`[fact] …`) is taken for its claim, what it says of its parent
# (`[hop_1] …`) for a premise, both with the words that follow.

# %%
import itertools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np

import commentree
from commentree.console import Console
from commentree.launch import assemble_run
from commentree.models.heads import crf, heads
from commentree.tasks import data as data_lib
from commentree.tasks.config.generated import GeneratedTreesConfig
from commentree.tasks.config.preprocessing import MarkersConfig
from commentree.tasks.seqio_tasks import registration
from commentree.tasks.sources import generated
from commentree.training.partitioning import ProcessShard

# Where products of float32 are as exact as that, and no accelerator is waited for.
jax.config.update("jax_platforms", "cpu")

trees = GeneratedTreesConfig(hops=(1,), num_values=8, max_filler_words=6)
KINDS = {"[fact]": "claim", "[hop_1]": "premise"}


def marked(text):
  """A text with its claim and premise as elements."""
  written, opened = [], None
  for word in text.split():
    if word in KINDS:
      if opened:
        written.append(f"</{opened}>")
      opened = KINDS[word]
      written.append(f"<{opened}>")
    written.append(word)
  return " ".join([*written, f"</{opened}>"])


def thread_of(tree):
  """The comments down to the deepest, the post first."""
  depths = tree.depths()
  number, found = depths.index(max(depths)), []
  while number >= 0:
    found.append(tree.comments[number])
    number = found[-1].parent
  return found[::-1]


def as_xml(tree):
  """A thread of a tree, annotated."""
  post, *replies = thread_of(tree)
  lines = [f'<thread ID="{tree.id}"><title></title>']
  lines.append(f'<OP author="{post.author}">{marked(post.text)}</OP>')
  for reply in replies:
    head = f'<reply id="{reply.id}" author="{reply.author}">'
    lines.append(f"{head}{marked(reply.text)}</reply>")
  return "\n".join([*lines, "</thread>"])


folder = pathlib.Path("annotated")
folder.mkdir(exist_ok=True)
for number in range(400):
  xml = as_xml(generated.generate_tree(trees, trees.seed, number))
  (folder / f"{number:03}.xml").write_text(xml)
print(xml)
# A vocabulary of these words; of your own texts `commentree vocab` makes one.
shutil.copy(generated.vocabulary(trees, MarkersConfig()), "words.model")

# %% language="bash"
# commentree train --gin_file=runs/finetune_tag.gin \
#   --gin.MODEL_DIR='"runs/tag"' --gin.ModelConfig.tagger='"crf"' \
#   --gin.FILES='"annotated"' --gin.VOCABULARY='"words.model"' \
#   --gin.TASK_FEATURE_LENGTHS="{'encoder': 32, 'decoder': 32}" \
#   --gin.SubtreeConfig.max_comment_tokens=32 --gin.MAX_ANCESTORS=6 \
#   --gin.ModelConfig.dtype='"float32"' --gin.TRAIN_STEPS=100 \
#   --gin.WARMUP_STEPS=10 --gin.LEARNING_RATE=0.001 --gin.EVAL_PERIOD=0

# %% [markdown]
# ## Scores
#
# A held-out batch, as commentree packs it: several comments to a row, each of which
# is a chain of its own. The decoder's states become a score for each of five tags by
# a linear map. Tags are `O` outside, and for each kind its beginning and its inside.

# %%
trained = commentree.load("runs/tag")
params, model, run = trained.params, trained.model, trained.run.config
registration.register_tasks(run.data)
data = data_lib.open_data(run.data, Console(quiet=True), ("validation",))
batches = assemble_run.held_out_data(run, data)["held_out"](ProcessShard(0, 1))
batch = next(iter(batches))

TAGS = ("O", "B-claim", "I-claim", "B-premise", "I-premise")
head = params["head"]
states_RLD = model.decode_states(params, model.encode(params, batch), batch)[0]
scores_RLC = states_RLD @ head["logits"]["kernel"] + head["logits"]["bias"]
chains_RM = np.asarray(heads.chains_of(batch))[0]
labels_RM = np.asarray(heads.labels_of(model.config, batch))[0]

emissions, labels = [], []
for target in range(1, chains_RM.max() + 1):
  row, places = np.nonzero(chains_RM == target)
  tokens = batch["decoder_masked_positions"][0][row, places]
  emissions.append(np.asarray(scores_RLC)[row, tokens])
  labels.append(labels_RM[row, places])
print(len(emissions), "chains; the first:", [TAGS[tag] for tag in labels[0]])

# %% [markdown]
# What is learnt of tags side by side, and what is ruled out: an inside may follow its
# own kind's beginning or inside alone.

# %%
NEVER = -1e9
between_CC, first_C = np.array(head["transitions"]), np.array(head["start"])
last_C = np.array(head["end"])
for after, tag in enumerate(TAGS):
  if tag.startswith("I-"):
    first_C[after] = NEVER
    for before, other in enumerate(TAGS):
      if other[2:] != tag[2:]:
        between_CC[before, after] = NEVER

# %% [markdown]
# ## The forward recursion
#
# The score of a sequence of tags is a sum: of its tags' scores, of its pairs', of its
# first's and last's. Its probability is the exponential of that over the sum of those
# of all sequences. There are C to the power of L of these, but a prefix matters by
# its last tag alone: `forward_C` has the log of the sum over all prefixes that end in
# each tag.


# %%
def score(emissions_LC, tags_L):
  """The score of one sequence of tags."""
  own = emissions_LC[np.arange(len(tags_L)), tags_L].sum()
  pairs = between_CC[tags_L[:-1], tags_L[1:]].sum()
  return own + pairs + first_C[tags_L[0]] + last_C[tags_L[-1]]


@jax.jit
def log_partition(emissions_LC):
  """The log of the summed exponentials of all sequences' scores."""
  forward_C = first_C + emissions_LC[0]
  for emission_C in emissions_LC[1:]:
    steps_CC = forward_C[:, None] + between_CC
    forward_C = jax.nn.logsumexp(steps_CC, axis=0) + emission_C
  return jax.nn.logsumexp(forward_C + last_C)


# %% [markdown]
# ## Viterbi
#
# The same with the maximum in place of the sum; where each maximum came from leads back
# from the best last tag.


# %%
def viterbi(emissions_LC):
  """The likeliest sequence of tags."""
  best_C, came_from = first_C + emissions_LC[0], []
  for emission_C in emissions_LC[1:]:
    steps_CC = best_C[:, None] + between_CC
    came_from.append(steps_CC.argmax(0))
    best_C = steps_CC.max(0) + emission_C
  tags = [int((best_C + last_C).argmax())]
  for before_C in came_from[::-1]:
    tags.append(int(before_C[tags[-1]]))
  return np.array(tags[::-1])


# %% [markdown]
# ## By brute force
#
# All sequences of a short chain, one by one. The derivative of the log partition by a
# score is the probability of that tag at that place: what it sums over says so.

# %%
LENGTH = 5
sequences = [np.array(tags) for tags in itertools.product(range(5), repeat=LENGTH)]
# A chain that the model is sure of, and one that nobody can be.
drawn_LC = np.random.default_rng(0).normal(size=(LENGTH, len(TAGS)))
for short_LC in (emissions[0][:LENGTH], drawn_LC.astype(np.float32)):
  all_scores = np.array([score(short_LC, tags) for tags in sequences])
  total = np.logaddexp.reduce(all_scores)
  np.testing.assert_allclose(log_partition(short_LC), total, rtol=1e-5)
  best = sequences[all_scores.argmax()]
  np.testing.assert_array_equal(viterbi(short_LC), best)

  probabilities = np.exp(all_scores - total)
  marginals_LC = np.zeros((LENGTH, len(TAGS)))
  for tags, probability in zip(sequences, probabilities):
    marginals_LC[np.arange(LENGTH), tags] += probability
  np.testing.assert_allclose(jax.grad(log_partition)(short_LC), marginals_LC, atol=1e-5)
  print(f"of {len(sequences):,} sequences the likeliest has {probabilities.max():.1%}:")
  print("  ", *(TAGS[tag] for tag in best))

# %% [markdown]
# ## Is it the product's?
#
# `models/heads/crf.py` does the same with one scan along a row, in which a chain begins
# anew with each comment. First its functions on one chain, then the whole model on the
# batch: the loss of every comment (it spreads a chain's evenly over the tokens) and the
# tags.

# %%
transitions = crf.Transitions(*map(jnp.asarray, (between_CC, first_C, last_C)))
one_L = np.ones(LENGTH, int)
theirs = crf.log_partition(short_LC, one_L, transitions)[-1]
np.testing.assert_allclose(log_partition(short_LC), theirs, rtol=1e-6)
np.testing.assert_array_equal(
  viterbi(short_LC), crf.viterbi(short_LC, one_L, transitions)
)
np.testing.assert_allclose(
  marginals_LC, crf.marginals(short_LC, one_L, transitions), atol=1e-5
)

evaluate = jax.jit(model.evaluate_batch, static_argnums=2)
found = jax.tree.map(lambda x: np.asarray(x)[0], evaluate(params, batch, "true"))
for target, (emissions_LC, tags_L) in enumerate(zip(emissions, labels), 1):
  chain = chains_RM == target
  loss = log_partition(emissions_LC) - score(emissions_LC, tags_L)
  np.testing.assert_allclose(loss, found["nll"][chain].sum(), rtol=1e-3, atol=1e-3)
  np.testing.assert_array_equal(viterbi(emissions_LC), found["predictions"][chain])
print(len(emissions), "chains: losses and tags are equal")

# %% [markdown]
# ## What the model says
#
# Of a thread that was not trained on, as `commentree infer --mode=tag` answers, too:

# %%
post, *replies = thread_of(generated.generate_tree(trees, trees.seed, 1000))
above = [post, *replies]
thread = {
  "id": post.id,
  "author": post.author,
  "selftext": post.text,
  "comments": [
    {"id": c.id, "parent_id": p.id, "author": c.author, "body": c.text}
    for p, c in zip(above, replies)
  ],
}
for comment, answer in zip(above, trained.tag(thread)):
  print(comment.text)
  print("  ", *(f"{span['label']}: {span['text']};" for span in answer["spans"]))

# %% [markdown]
# Spans that are right (F1, of seqeval's definition) on held-out threads, and the
# control: the same with the ancestors of another thread.

# %%
with open("runs/tag/metrics.jsonl") as file:
  results = [line["results"] for line in map(json.loads, file) if "results" in line][-1]
for condition in ("true", "shuffled"):
  print(f"{condition:<10}span F1 {results[condition]['span_f1']['micro']:.3f}")
assert results["true"]["span_f1"]["micro"] > 0.9

# %% [markdown]
# Here both are the same: the words alone tell what is a claim, and a high F1 with
# `true` ancestors shows nothing of threads. Where they matter, `shuffled` is lower.
# Nor is this a measure of the chain; that would be a run with `ModelConfig.tagger =
# 'linear'` beside it, from several seeds (docs/finetuning.md has a table of one).

# %% [markdown]
# ## Adapt it to your use
#
# - Your annotations: in XML as above, `<claim>` and `<premise>`; start from a model:
#
#       commentree vocab --from=minilm/tokenizer.json --output=minilm.json
#       commentree train --gin_file=runs/finetune_tag.gin --gin_file=models/minilm.gin \
#         --gin.MODEL_DIR='"runs/mine"' --gin.ModelConfig.tagger='"crf"' \
#         --gin.FILES='"my_annotations"' --gin.VOCABULARY='"minilm.json"' \
#         --gin.INITIAL_CHECKPOINT_PATH='"minilm"'
#
# - One kind of span: `--gin.LABELS="('claim',)"`; there are then three tags.
# - `commentree infer --mode=tag --model_dir=runs/mine --input … --output tags.jsonl`
#   gives spans by their characters in the text as given.
