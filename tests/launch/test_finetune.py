"""Fine-tuning by the whole command, on made-up trees whose labels need ancestors."""

import json
import random

import pytest

from commentree.launch import main
from commentree.tasks.config.preprocessing import MarkersConfig
from commentree.tasks.trees.markers import all_markers
from commentree.tasks.vocabulary.sentencepiece_backend import write_word_vocabulary

COLOURS = ("red", "blue")
# What a span begins with, and what continues it.
CUE, INSIDE = "namely", ("moru", "pake", "suli")
# Words that tell the number of the replies to a comment.
LEVELS = {"low": -1.0, "middle": 0.0, "high": 1.5}
# So few that no comment can be known by its words.
FILLERS = ("bama", "deni", "gipo", "kolu", "tera")
SMALL = {
  "BATCH_SIZE": 1,
  "CACHE_DIR": None,
  "EVAL_PERIOD": 0,
  "EVAL_BATCHES": None,
  "TASK_FEATURE_LENGTHS": {"encoder": 32, "decoder": 32},
  "LEARNING_RATE": 0.005,
  "WARMUP_STEPS": 20,
  "DROPOUT_RATE": 0.0,
  "ANCESTOR_DROPOUT_RATE": 0.2,
  "MAX_ANCESTORS": 4,
  "ForestLayout.decoder_rows": 16,
  "SubtreeConfig.max_tree_size": 16,
  "SubtreeConfig.max_comment_tokens": 32,
  "ModelConfig.emb_dim": 48,
  "ModelConfig.num_encoder_layers": 1,
  "ModelConfig.num_decoder_layers": 1,
  "ModelConfig.mlp_dim": 96,
  "ModelConfig.dtype": "float32",
  "OptimizerConfig.layer_decay": 1.0,
  "OptimizerConfig.learning_rate_rules": [],
  "EvalConfig.conditions": ("true", "none"),
  "TrainConfig.trackers": (),
}
# For comments of a few words.
SHORT = {
  "TASK_FEATURE_LENGTHS": {"encoder": 16, "decoder": 16},
  "SubtreeConfig.max_comment_tokens": 16,
}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
  path = tmp_path_factory.mktemp("vocabulary") / "words.model"
  write_word_vocabulary(
    [*FILLERS, *COLOURS, CUE, *INSIDE, *LEVELS], path, all_markers(MarkersConfig())
  )
  return path


def thread(rng, number):
  """A chain of comments as annotated XML. A comment's one span is what the cue begins;
  whether that is a claim or a premise, the post's colour says."""
  colour = rng.choice(COLOURS)
  kind = {"red": "claim", "blue": "premise"}[colour]
  parts = [
    f'<thread ID="t{number}"><title>{rng.choice(FILLERS)}</title>'
    f'<OP author="a">{rng.choice(FILLERS)} {colour}</OP>'
  ]
  for reply in range(3):
    span = " ".join([CUE, *rng.choices(INSIDE, k=2)])
    units = [
      *rng.choices(FILLERS, k=rng.randint(2, 4)),
      f'<{kind} id="{reply}">{span}</{kind}>',
    ]
    rng.shuffle(units)
    text, author = " ".join(units), "bc"[reply % 2]
    parts.append(f'<reply id="r{number}_{reply}" author="{author}">{text}</reply>')
  return "".join([*parts, "</thread>"])


def tree(rng, number):
  """A tree of which all comments are labelled with the colour that the post names."""
  colour = rng.choice(COLOURS)
  words = rng.choices(FILLERS, k=3)
  title = " ".join([*words[:1], colour, *words[1:]])
  comments = [
    {
      "id": f"t{number}_{i}",
      "parent_id": f"t{number}_{rng.randrange(i)}"
      if i and rng.random() < 0.5
      else f"t{number}",
      "author": rng.choice("abc"),
      "body": " ".join(rng.choices(FILLERS, k=rng.randint(1, 4))),
      "label": colour,
    }
    for i in range(6)
  ]
  return {"id": f"t{number}", "title": title, "comments": comments}


def numbered_tree(rng, number, number_of):
  """A tree in which a comment's number is a function of its own word and its parent's.

  Numbers are labels, as files have them: text, or JSON's.
  """
  words = [rng.choice(list(LEVELS)) for _ in range(9)]
  texts = [" ".join([rng.choice(FILLERS), word, rng.choice(FILLERS)]) for word in words]
  parents = [None, *(rng.randrange(i) for i in range(1, 9))]
  comments = [
    {
      "id": f"n{number}_{i}",
      "parent_id": f"n{number}_{parents[i]}" if parents[i] else f"n{number}",
      "author": rng.choice("abc"),
      "body": texts[i],
      "label": number_of(words[i], words[parents[i]]),
    }
    for i in range(1, 9)
  ]
  return {"id": f"n{number}", "title": texts[0], "comments": comments}


def write_numbered(folder, seed, number_of):
  rng = random.Random(seed)
  path = folder / "trees.jsonl"
  trees = (numbered_tree(rng, number, number_of) for number in range(300))
  path.write_text("".join(json.dumps(tree) + "\n" for tree in trees))
  return path


def results_of(verb_file, folder, files, vocabulary, settings):
  """Trains; returns what its last evaluation found."""
  flags = {
    **SMALL,
    "MODEL_DIR": str(folder / "run"),
    "CACHE_DIR": str(folder / "cache"),
    "FILES": str(files),
    "VOCABULARY": str(vocabulary),
    "HELD_OUT_SHARE": 0.2,
    **settings,
  }
  command = [f"--gin.{name}={value!r}" for name, value in flags.items()]
  assert main.main(["train", f"--gin_file=runs/{verb_file}.gin", *command]) == 0
  rows = (folder / "run" / "metrics.jsonl").read_text().splitlines()
  (row,) = (row for row in map(json.loads, rows) if row["kind"] == "eval")
  return row["results"]


@pytest.mark.slow
def test_tags_follow_words_and_the_post(tmp_path, vocabulary, capsys):
  rng = random.Random(1)
  files = tmp_path / "threads"
  files.mkdir()
  for number in range(300):
    (files / f"{number}.xml").write_text(thread(rng, number))
  results = results_of(
    "finetune_tag",
    tmp_path,
    files,
    vocabulary,
    {
      "TRAIN_STEPS": 300,
      "TreeConfig.target_post": False,
      "ModelConfig.tagger": "crf",
    },
  )
  assert results["true"]["span_f1"]["micro"] > 0.95
  # Without the post spans are found, and their kinds guessed.
  assert 0.3 < results["none"]["span_f1"]["micro"] < 0.7
  assert "span F1" in capsys.readouterr().out
  # Again, of all trees at once.
  path = tmp_path / "results.json"
  command = ["eval", f"--model_dir={tmp_path / 'run'}", f"--json={path}"]
  assert main.main([*command, "--gin.HELD_OUT_SHARE=1.0"]) == 0
  assert "F1 of spans: premise" in capsys.readouterr().out
  all_trees = json.loads(path.read_text())["true"]["span_f1"]["by_label"]
  assert sum(kind["there"] for kind in all_trees.values()) == 300 * 3
  assert all(kind["f1"] > 0.95 for kind in all_trees.values())


def test_labels_that_only_the_post_tells_are_learnt_from_it(tmp_path, vocabulary):
  rng = random.Random(2)
  files = tmp_path / "trees.jsonl"
  with files.open("w") as stream:
    for number in range(200):
      stream.write(json.dumps(tree(rng, number)) + "\n")
  results = results_of(
    "finetune_classify",
    tmp_path,
    files,
    vocabulary,
    {"TRAIN_STEPS": 120, "LABEL_SOURCE": "label", "LABELS": COLOURS, **SHORT},
  )
  assert results["true"]["f1"]["macro"] > 0.95
  assert results["true"]["accuracy"] > 0.95
  assert results["none"]["accuracy"] < 0.65
  assert results["none"]["loss"] > 0.6


def test_numbers_that_only_the_parent_tells_are_learnt_from_it(
  tmp_path, vocabulary, capsys
):
  files = write_numbered(tmp_path, 3, lambda own, parent: str(LEVELS[parent]))
  results = results_of(
    "finetune_regress",
    tmp_path,
    files,
    vocabulary,
    {
      "TRAIN_STEPS": 180,
      # Which of the ancestors is the parent is learnt sooner so.
      "ModelConfig.ancestor_positions": "distance",
      **SHORT,
      # Small forests, for more steps in the same time.
      "ForestLayout.decoder_rows": 8,
      "NUMBER_SOURCE": "label",
      "EvalConfig.conditions": ("true", "shuffled", "parent_only", "none"),
    },
  )
  assert results["true"]["r2"] > 0.9
  assert results["true"]["pearson"] > 0.95
  assert results["parent_only"]["r2"] == pytest.approx(results["true"]["r2"], abs=0.02)
  for hidden in ("none", "shuffled"):
    assert results[hidden]["r2"] < 0.1
    assert results[hidden]["minus_true"] > 5 * results[hidden]["standard_error"] > 0
  # Replies to one comment have the same number.
  assert results["true"]["pairs"] == 0
  told = capsys.readouterr().out
  assert "comments with numbers: mean" in told
  assert "squared error a comment" in told
  # The same again, by a command of its own.
  path = tmp_path / "results.json"
  command = ["eval", f"--model_dir={tmp_path / 'run'}", f"--json={path}"]
  assert main.main([*command, f"--gin.CACHE_DIR={str(tmp_path / 'cache')!r}"]) == 0
  assert '"pearson"' in path.read_text()
  again = json.loads(path.read_text())["true"]
  for name in ("loss", "r2", "tokens"):
    assert again[name] == pytest.approx(results["true"][name], rel=1e-5)
  # And told of comments, in the scale of the data.
  output = tmp_path / "numbers.jsonl"
  command = ["infer", f"--model_dir={tmp_path / 'run'}", "--mode=regress"]
  assert main.main([*command, "--input", str(files), f"--output={output}"]) == 0
  there = {
    comment["id"]: float(comment["label"])
    for tree in map(json.loads, files.read_text().splitlines())
    for comment in tree["comments"]
  }
  found = map(json.loads, output.read_text().splitlines())
  told = {line["comment"]: line["number"] for line in found if line["comment"] in there}
  assert told.keys() == there.keys()
  errors = [abs(told[name] - number) for name, number in there.items()]
  assert sum(error < 0.5 for error in errors) > 0.95 * len(errors)


@pytest.mark.slow
def test_ranking_learns_the_order_of_replies_and_nothing_else(tmp_path, vocabulary):
  # What the parent adds to all replies tells nothing of their order.
  files = write_numbered(
    tmp_path, 4, lambda own, parent: LEVELS[own] + 100 * LEVELS[parent]
  )
  results = results_of(
    "finetune_regress",
    tmp_path,
    files,
    vocabulary,
    {
      "TRAIN_STEPS": 200,
      "BATCH_SIZE": 2,
      "NUMBER_SOURCE": "label",
      "ModelConfig.regression_loss": "ranking",
      "CheckpointConfig.best_metric": "true/pairwise_accuracy",
    },
  )
  assert results["true"]["pairwise_accuracy"] > 0.95
  assert results["true"]["pairs"] > 50
  assert results["true"]["loss"] < 0.3
  assert "r2" not in results["true"]
