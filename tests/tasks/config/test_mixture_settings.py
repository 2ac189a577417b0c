"""Mixtures by settings and by SeqIO: what is in them, and what is refused."""

import dataclasses
import json
from fractions import Fraction

import numpy as np
import pytest
import seqio

from commentree.errors import UserError
from commentree.launch.inference import run_context
from commentree.launch.settings.configurables import RunConfig
from commentree.models.config import ModelConfig
from commentree.tasks import data
from commentree.tasks.config.generated import GeneratedTreesConfig
from commentree.tasks.config.mixture_config import members
from commentree.tasks.config.objective import ObjectiveConfig
from commentree.tasks.config.preprocessing import (
  CommentLabelsConfig,
  MarkersConfig,
  PreprocessingConfig,
)
from commentree.tasks.data_config import DataConfig
from commentree.tasks.forests.forest_layout import ForestLayout
from commentree.tasks.seqio_tasks import registration, registry
from commentree.tasks.seqio_tasks.feature_converters import (
  CommentForestFeatureConverter,
)
from commentree.tasks.sources import generated
from commentree.tests.support.tasks.building_fixture import comment, record, write_trees
from commentree.training.config import TrainConfig

TREES = GeneratedTreesConfig(num_train_trees=40, num_validation_trees=8)
LENGTHS = {"encoder": 32, "decoder": 32}
LAYOUT = ForestLayout(decoder_rows=4, max_ancestors=4, lookahead=16)
BOTH = {"commentree_generated:mlm": 0.7, "commentree_generated:clm": 0.3}


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.fixture
def config(cache_dir):
  return DataConfig(
    "commentree_mixture",
    LENGTHS,
    mixture=BOTH,
    cache_dir=str(cache_dir),
    generated=TREES,
    layout=LAYOUT,
  )


@pytest.fixture(scope="module")
def vocabulary(cache_dir):
  return str(generated.vocabulary(TREES, MarkersConfig(), str(cache_dir)))


def forum(folder, prefix, count=12, **fields):
  folder.mkdir()
  trees = [
    record(
      f"{prefix}{i}",
      comment("a", f"{prefix}{i}", f"{prefix} word word", **fields),
      comment("b", "a", "some words"),
    )
    for i in range(count)
  ]
  return str(write_trees(folder, *trees))


def names(mixture, corpora=None, objective="mlm"):
  return [m.name for m in members(mixture, corpora or {}, objective)]


def test_entries_name_a_corpus_an_objective_or_both():
  corpora = {"ufc": "data/ufc", "iac": ["a", "b"]}
  mixture = {"ufc": 1, "iac:clm": 2, "clm": 3, "commentree_generated": 4}
  assert names(mixture, corpora) == [
    "commentree_files:clm",
    "commentree_generated:mlm",
    "iac:clm",
    "ufc:mlm",
  ]
  assert names({"ufc": 1, "iac": 1}, corpora, "clm") == ["iac:clm", "ufc:clm"]


@pytest.mark.parametrize(
  ("mixture", "corpora", "told"),
  [
    ({"ufcc": 1}, {"ufc": "x"}, "there is no corpus 'ufcc'; CORPORA has ufc"),
    ({"ufc:mmm": 1}, {"ufc": "x"}, "there is no objective 'mmm'; there are mlm, clm"),
    ({"ufc": 1, "ufc:mlm": 1}, {"ufc": "x"}, "'ufc:mlm' is in it twice"),
    ({"ufc": 1}, {"ufc": "x", "iac": "y"}, "no rate for iac"),
    ({"clm:clm": 1}, {"clm": "x"}, "'clm' cannot be a corpus's name"),
    ({"a b": 1}, {"a b": "x"}, "'a b' cannot be a corpus's name"),
  ],
)
def test_entries_that_cannot_be_are_told(mixture, corpora, told):
  with pytest.raises(UserError, match=told):
    names(mixture, corpora)


@pytest.mark.parametrize(
  ("settings", "told"),
  [
    ({"mixture": None}, "MIXTURE = None: the mixture 'commentree_mixture' needs rates"),
    ({"mixture": {"mlm": 1}}, "FILES is missing"),
    (
      {"mixture": {"a": 1}, "corpora": {"a": "x"}},
      "VOCABULARY is missing: a checkpoint needs its own.*for a new model, make one",
    ),
    (
      {"mixture_or_task_name": "commentree_files", "files": "x", "mixture": None},
      "VOCABULARY is missing: a checkpoint needs its own.*for a new model, make one",
    ),
    ({"mixture": {"mlm": 0}, "files": "x", "vocabulary": "v"}, "must be above 0"),
    ({"mixture_or_task_name": "commentree_generated"}, "MIXTURE is for"),
    ({"mixture": {"commentree_generated:tag": 1}}, r"LabelsConfig\.names is missing"),
  ],
)
def test_settings_that_do_not_go_together_are_told_before_anything_is_read(
  config, settings, told
):
  with pytest.raises(UserError, match=told):
    dataclasses.replace(config, **settings)


@pytest.fixture
def opened(config):
  return data.open_data(config)


def test_a_mixture_of_objectives_shares_subtrees_vocabulary_and_forests(opened, config):
  assert [part.task.name for part in opened.parts] == sorted(BOTH)
  assert [part.share for part in opened.parts] == [Fraction(3, 10), Fraction(7, 10)]
  digests = {part.splits["train"].totals.digest for part in opened.parts}
  assert len(digests) == 1
  assert opened.shape.optional_features == ("target_prefix_lengths",)
  assert opened.shape.masked_per_group == 32
  alone = data.open_data(
    dataclasses.replace(
      config, mixture_or_task_name="commentree_generated", mixture=None
    )
  )
  assert alone.shape.masked_per_group < 32
  assert alone.shape.optional_features == ()
  # Whoever would change the rates learns that the run is another.
  facts = json.loads(json.dumps(opened.facts()))
  mlm, clm = BOTH
  assert facts["mixture"] == f"3/10 {clm}, 7/10 {mlm}"
  assert facts[f"{clm}.ObjectiveConfig.name"] == "clm"
  assert facts["ForestLayout.lookahead"] == LAYOUT.lookahead
  assert not {"ObjectiveConfig.name", "DataConfig.cache_dir"} & facts.keys()
  assert "mixture" not in alone.facts()
  as_written = json.loads(json.dumps(alone.facts()))
  for name in ("MaskingConfig.mask_share", "CleaningConfig.urls"):
    assert as_written[name] == facts[f"{mlm}.{name}"]


def test_a_run_s_first_lines_tell_about_what_a_step_and_an_epoch_hold(config):
  alone = data.open_data(
    dataclasses.replace(
      config, mixture_or_task_name="commentree_generated", mixture=None
    )
  )
  pace = alone.pace(2)
  batches = alone.train_batches(2, 0)
  taken = [next(batches) for _ in range(40)]
  for told, sums in (
    (pace.comments, [(b["decoder_segment_ids"].max((1, 2))).sum() for b in taken]),
    (pace.tokens, [(b["decoder_segment_ids"] > 0).sum() for b in taken]),
    (pace.masked_tokens, [(b["decoder_loss_weights"] > 0).sum() for b in taken]),
  ):
    assert told == pytest.approx(np.mean(sums), rel=0.15)
  trees = alone.splits["train"]
  comments = sum((record["is_target"] > 0).sum() for record in trees)
  assert pace.epoch_comments == pytest.approx(comments, rel=0.05)
  assert f"an epoch {pace.epoch_comments:,} comments in" in str(pace)


def test_a_mixture_has_no_epoch(opened):
  assert opened.pace(2).epoch_comments is None
  assert "epoch" not in str(opened.pace(2))


@pytest.mark.parametrize("other", ["clm", "span_corruption"])
def test_a_mixtures_vocabulary_is_found_by_its_settings(config, other):
  mixture = {"commentree_generated:mlm": 1, f"commentree_generated:{other}": 1}
  config = dataclasses.replace(config, mixture=mixture)
  registration.register_tasks(config)
  run = RunConfig(ModelConfig(), config, TrainConfig("none", 1, 1))
  tokenizer = run_context.of_run(run).tokenizer
  for part in registry.get_parts("commentree_mixture"):
    assert part.task.tokenizer.fingerprint == tokenizer.fingerprint


def test_each_task_of_a_mixture_is_evaluated_on_its_own(opened):
  for number, part in enumerate(opened.parts):
    causal = part.task.preprocessing.objective.name == "clm"
    for batch in opened.eval_batches(2, part=number):
      lengths = [np.bincount(s.ravel())[1:] for s in batch["decoder_segment_ids"]]
      prefixes = batch["target_prefix_lengths"]
      for own, prefix in zip(lengths, prefixes):
        assert (prefix[: len(own)] == (0 if causal else own)).all()


def test_corpora_keep_their_rates_whatever_their_sizes(tmp_path, config, vocabulary):
  corpora = {
    "small": forum(tmp_path / "small", "s", 15),
    "large": forum(tmp_path / "large", "l", 60),
  }
  opened = data.open_data(
    dataclasses.replace(
      config,
      mixture={"small": 3, "large": 1},
      corpora=corpora,
      vocabulary=vocabulary,
      held_out_share=0.3,
    )
  )
  assert [part.task.name for part in opened.parts] == ["large:mlm", "small:mlm"]
  assert "mixture" in opened.facts()
  batches = opened.train_batches(1, seed=0)
  state: dict = {}
  for _ in range(60):
    next(batches)
    state = batches.get_state()
  order = batches._streams[0]._order
  turns = np.bincount([order.turn(p)[0] for p in range(state["0"]["next"])])
  assert turns.sum() > 100
  assert 0.65 < turns[1] / turns.sum() < 0.85


def test_a_task_with_nothing_to_predict_is_told(tmp_path, config, vocabulary):
  labels = CommentLabelsConfig("label", ("for", "against"))
  files = {
    "labelled": forum(tmp_path / "labelled", "x", label="for"),
    "bare": forum(tmp_path / "bare", "y"),
  }
  config = dataclasses.replace(
    config,
    mixture={"labelled:classify": 1, "bare:classify": 1},
    corpora=files,
    vocabulary=vocabulary,
    preprocessing=PreprocessingConfig(comment_labels=labels),
    held_out_share=0.3,
  )
  assert config.objective_names == ("classify",)
  with pytest.raises(UserError, match=r"bare:classify: no comment of the split .train"):
    data.open_data(config)


@pytest.mark.long
def test_seqio_mixes_tasks_of_several_objectives(config):
  registration.register_tasks(config)
  mixture = seqio.get_mixture_or_task("commentree_mixture")
  assert isinstance(mixture, seqio.Mixture)
  ds = mixture.get_dataset(LENGTHS, split="train", shuffle=False, seed=1)
  kinds = set()
  for example in ds.take(30).as_numpy_iterator():
    assert set(example) == set(mixture.output_features)
    causal = (example["prefix_lengths"] == 0).all()
    kinds.add(bool(causal))
    if not causal:
      assert (example["target_tokens"] == example["tokens"]).all()
      assert (example["prefix_lengths"] == example["lengths"]).all()
  assert kinds == {True, False}
  forests = CommentForestFeatureConverter(layout=LAYOUT)(ds.take(30), LENGTHS)
  forest = next(iter(forests.as_numpy_iterator()))
  assert forest["decoder_loss_weights"].any()
  assert "target_prefix_lengths" in forest


@pytest.mark.long
def test_seqio_mixes_tasks_with_languages_and_without(tmp_path, config, vocabulary):
  translated = {
    "language": "en",
    "translation": {"language": "de", "text": "einige Worte"},
  }
  config = dataclasses.replace(
    config,
    mixture={"tlm": 1, "clm": 1},
    files=forum(tmp_path / "forum", "t", 20, **translated),
    vocabulary=vocabulary,
    preprocessing=PreprocessingConfig(
      objective=ObjectiveConfig("mlm", languages=("en", "de"))
    ),
    held_out_share=0.3,
  )
  registration.register_tasks(config)
  mixture = seqio.get_mixture_or_task("commentree_mixture")
  ds = mixture.get_dataset(LENGTHS, split="train", shuffle=False, seed=1).take(12)
  forests = CommentForestFeatureConverter(layout=LAYOUT)(ds, LENGTHS)
  of_run = data.open_data(config).train_batches(1, 0)
  for taken in (
    list(forests.as_numpy_iterator())[:2],
    [{k: v[0] for k, v in next(of_run).items()} for _ in range(2)],
  ):
    check_languages(taken)


def check_languages(forests):
  """Checks forests that hold targets of `tlm` and of `clm`, between them."""
  languages: set[int] = set()
  causal = 0
  for forest in forests:
    segments = forest["decoder_segment_ids"]
    lengths = np.bincount(segments.ravel())[1:]
    prefixes = forest["target_prefix_lengths"][: len(lengths)]
    for slot, prefix in enumerate(prefixes, 1):
      of_target = set(forest["decoder_languages"][segments == slot].tolist())
      # A causal target knows none; of the others, the author's marker has its own.
      assert of_target == {0} if prefix == 0 else of_target <= {0, 1, 2}
      languages |= of_target
      causal += prefix == 0
  assert {1, 2} <= languages
  assert causal


def add(name, vocabulary, folder, **preprocessing):
  return registry.add_files_task(
    name,
    forum(folder, name),
    vocabulary,
    preprocessing=PreprocessingConfig(**preprocessing),
  )


def test_mixtures_registered_with_seqio_may_hold_mixtures(tmp_path, vocabulary):
  for name in ("one", "two", "three"):
    add(name, vocabulary, tmp_path / name)
  for name in ("inner", "outer"):
    if name in seqio.MixtureRegistry.names():
      seqio.MixtureRegistry.remove(name)
  seqio.MixtureRegistry.add("inner", [("two", 1.0), ("three", lambda task: 3.0)])
  seqio.MixtureRegistry.add("outer", [("one", 2.0), ("inner", 6.0)])
  parts = registry.get_parts("outer")
  assert [(part.task.name, part.share) for part in parts] == [
    ("one", Fraction(2, 8)),
    ("two", Fraction(6, 8) / 4),
    ("three", Fraction(6, 8) * 3 / 4),
  ]
  with pytest.raises(
    UserError, match=r"is a mixture, where one task is wanted: .*three"
  ):
    registry.get_task("outer")


def test_tasks_that_do_not_mix_are_told_by_name(tmp_path, vocabulary, cache_dir):
  other = str(generated.vocabulary(TREES, MarkersConfig(max_users=3), str(cache_dir)))
  labels = CommentLabelsConfig("label", ("for", "against"))
  few = MarkersConfig(max_users=3)
  add("mixed_a", vocabulary, tmp_path / "a")
  add("mixed_b", other, tmp_path / "b", markers=few)
  add(
    "mixed_c",
    vocabulary,
    tmp_path / "c",
    objective=ObjectiveConfig("classify"),
    comment_labels=labels,
  )
  add("mixed_d", vocabulary, tmp_path / "d", comment_labels=labels)
  registry.add_mixture("vocabularies", {"mixed_a": 1, "mixed_b": 1})
  with pytest.raises(
    UserError, match="the vocabularies of 'mixed_a' and 'mixed_b' differ"
  ):
    registry.get_parts("vocabularies")
  registry.add_mixture("heads", {"mixed_d": 1, "mixed_c": 1})
  with pytest.raises(
    UserError, match="'mixed_d' predicts tokens where 'mixed_c' predicts for, against"
  ):
    registry.get_parts("heads")
  with pytest.raises(UserError, match="'mixed_a' has features that 'mixed_d' lacks"):
    registry.add_mixture("features", {"mixed_a": 1, "mixed_d": 1})
  with pytest.raises(UserError, match="no such task of comment trees, nor mixture"):
    registry.get_parts("nothing_of_the_kind")


def test_tasks_of_others_are_told_by_name(tmp_path, vocabulary):
  task = add("ours_alone", vocabulary, tmp_path / "a")
  if "not_ours" not in seqio.TaskRegistry.names():
    seqio.TaskRegistry.add(
      "not_ours",
      source=task.tree_source,
      preprocessors=[],
      output_features=task.output_features,
    )
    seqio.MixtureRegistry.add("with_others", [("ours_alone", 1), ("not_ours", 1)])
  with pytest.raises(UserError, match="its task 'not_ours' is not of comment trees"):
    registry.get_parts("with_others")
