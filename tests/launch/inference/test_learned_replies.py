"""A model that learned to write replies writes what only the comments above tell."""

from __future__ import annotations

import dataclasses
import itertools
import re

import pytest

from commentree.launch import main
from commentree.launch.inference import forests, run_context
from commentree.launch.inference.engine import Engine
from commentree.launch.inference.modes.generate import Generate
from commentree.launch.settings import run_folder
from commentree.tasks.sources import generated
from commentree.tasks.vocabulary.backend import WORD_START

TREES = 40
SETTINGS = [
  "--gin_file=runs/demo.gin",
  "--gin_file=objectives/clm.gin",
  "--gin.TRAIN_STEPS=1200",
  "--gin.EVAL_BATCHES=1",
  "--gin.GeneratedTreesConfig.max_filler_words=12",
]


def recalled(engine, config, ancestors):
  """Writes replies to held-out comments; counts the words that ancestors decide.

  Returns:
    How many of them are right, and how many there are.
  """
  words, tokenizer = generated.words(config), engine.run.tokenizer
  mode = Generate(engine.run, ancestors, reply_to="all", max_tokens=40)
  # Markers are not for readers, but here they say which word is due.
  cues = {tokenizer.piece_to_id(cue) for cue in generated.cues(config)}
  never = tuple(token for token in mode.config.never if token not in cues)
  mode.config = dataclasses.replace(mode.config, never=never)
  trees = [
    generated.generate_tree(config, config.seed, config.num_train_trees + n)
    for n in range(TREES)
  ]
  items = itertools.chain.from_iterable(mode.items(mode.read(tree)) for tree in trees)
  filled = forests.fill(items, mode.shape)
  right = due = 0
  for replies, forest in engine.program(mode).over((mode.arrays(f), f) for f in filled):
    for target, (document, node) in enumerate(forest.targets):
      comments = document.tree.comments
      above, facts = comments[document.comment_of(node)].parent, []
      while above >= 0:
        fact = re.search(r"\[fact\] (\w+)", comments[above].text)[1]
        facts.append(words.facts.index(fact))
        above = comments[above].parent
      ids = replies.tokens[target, 0][: replies.lengths[target, 0]]
      subtrees = [tokenizer.id_to_piece(i).strip(WORD_START) for i in ids.tolist()]
      for cue, word in itertools.pairwise(subtrees):
        hop = next((h for h in config.hops if generated.hop_cue(h) == cue), None)
        if hop is not None and hop <= len(facts):
          due += 1
          right += word == words.recalls[hop][facts[hop - 1]]
  return right, due


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_replies_have_the_words_that_ancestors_decide(tmp_path):
  model_dir = str(tmp_path / "run")
  assert main.main(["train", *SETTINGS, f"--gin.MODEL_DIR={model_dir!r}"]) == 0
  run = run_folder.load(model_dir)
  engine = Engine(run_context.of_run(run))
  right, due = recalled(engine, run.data.generated, "true")
  assert due > 300
  assert right / due > 0.98
  # Of 8 facts, without knowing which.
  right, due = recalled(engine, run.data.generated, "none")
  assert due > 300
  assert right / due < 0.25
