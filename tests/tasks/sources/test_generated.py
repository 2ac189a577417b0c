"""The generated trees are what their closed-form entropies are the entropies of."""

import collections
import concurrent.futures
import itertools
import math
import os
import pathlib

import numpy as np
import pytest

from commentree.errors import UserError
from commentree.tasks.config.generated import GeneratedTreesConfig
from commentree.tasks.config.preprocessing import CleaningConfig, MarkersConfig
from commentree.tasks.sources import generated
from commentree.tasks.trees import cleaning
from commentree.tasks.vocabulary import vocabularies
from commentree.tasks.vocabulary.seqio_vocabulary import TokenizerVocabulary

DEFAULTS = GeneratedTreesConfig()
# Few values and much noise, so that frequencies tell probabilities.
TINY = GeneratedTreesConfig(
  num_values=3,
  noise=0.2,
  num_filler_words=4,
  median_filler_words=1,
  tree_size_sigma=0.5,
)


@pytest.fixture(scope="module")
def trees():
  return [generated.generate_tree(DEFAULTS, seed=1, index=i) for i in range(600)]


def parse(config, tree):
  """Values of each comment's words: fact, {hop: recall}, [fillers]."""
  words = generated.words(config)
  parsed = []
  for comment in tree.comments:
    tokens = comment.text.split()
    facts, recalls, fillers = [], {}, []
    while tokens:
      token = tokens.pop(0)
      if token == "[fact]":
        facts.append(words.facts.index(tokens.pop(0)))
      elif token.startswith("[hop_"):
        hop = int(token[5:-1])
        assert hop not in recalls
        recalls[hop] = words.recalls[hop].index(tokens.pop(0))
      else:
        fillers.append(words.fillers.index(token))
    (fact,) = facts
    parsed.append((fact, recalls, fillers))
  return parsed


def ancestor(tree, node, hop):
  for _ in range(hop):
    node = tree.comments[node].parent
  return node


def depths(tree):
  result = [0]
  for comment in tree.comments[1:]:
    result.append(result[comment.parent] + 1)
  return result


# What a tree is.


def test_a_tree_depends_on_nothing_but_configuration_seed_and_index(trees):
  again = [generated.generate_tree(DEFAULTS, seed=1, index=i) for i in (30, 7)]
  assert again == [trees[30], trees[7]]


def test_another_seed_or_index_gives_another_tree(trees):
  texts = {t.comments[0].text + str(len(t.comments)) for t in trees}
  assert len(texts) > 0.99 * len(trees)
  other = generated.generate_tree(DEFAULTS, seed=2, index=0)
  assert [c.text for c in other.comments] != [c.text for c in trees[0].comments]


def test_trees_share_no_random_numbers_with_masks_of_the_same_seed(trees):
  def first_size_from_the_masks_stream(index):
    rng = np.random.Generator(
      np.random.Philox(key=np.uint64(1), counter=[0, 0, 0, index])
    )
    size = DEFAULTS.median_tree_size * np.exp(
      DEFAULTS.tree_size_sigma * rng.standard_normal()
    )
    return max(2, round(min(size, DEFAULTS.max_tree_size)))

  same = [
    len(tree.comments) == first_size_from_the_masks_stream(index)
    for index, tree in enumerate(trees)
  ]
  assert np.mean(same) < 0.2


def test_parents_precede_children_and_times_never_go_back(trees):
  for tree in trees:
    assert tree.comments[0].parent == -1
    assert all(0 <= c.parent < i for i, c in enumerate(tree.comments) if i)
    times = [c.created_utc for c in tree.comments]
    assert times == sorted(times)
    assert len({c.id for c in tree.comments}) == len(tree.comments)


def test_shapes_are_those_of_reddit(trees):
  sizes = np.array([len(tree.comments) for tree in trees])
  assert 9 <= np.median(sizes) <= 15
  assert np.mean(sizes) > 1.4 * np.median(sizes)
  assert sizes.min() >= 2
  assert sizes.max() <= DEFAULTS.max_tree_size

  leaves = replies = 0
  for tree in trees:
    answered = {c.parent for c in tree.comments}
    replies += len(tree.comments) - 1
    leaves += sum(i not in answered for i in range(1, len(tree.comments)))
  assert 0.5 < leaves / replies < 0.7

  assert max(max(depths(tree)) for tree in trees) >= 15
  assert 2 < np.mean([d for tree in trees for d in depths(tree)[1:]]) < 4
  assert max(sum(c.parent == 0 for c in tree.comments) for tree in trees) >= 40


def test_comment_lengths_are_heavy_tailed_and_bounded(trees):
  lengths = [len(c.text.split()) for tree in trees for c in tree.comments]
  assert np.percentile(lengths, 99) > 3 * np.median(lengths)
  # The author's marker comes on top.
  assert max(lengths) + 1 <= DEFAULTS.max_comment_tokens


def test_a_tree_has_a_few_authors_and_nobody_answers_themselves(trees):
  large = [tree for tree in trees if len(tree.comments) > 20]
  for tree in large:
    authors = [c.author for c in tree.comments]
    assert 2 < len(set(authors)) < len(authors)
    assert all(
      authors[i] != authors[c.parent] for i, c in enumerate(tree.comments) if i
    )


# What its words are.


def test_word_forms_are_distinct_across_all_groups():
  config = GeneratedTreesConfig(
    hops=range(1, 9), num_values=2000, num_filler_words=2000
  )
  words = generated.words(config)
  every = [w for group in words.groups().values() for w in group]
  assert len(set(every)) == len(every) == 2000 + 9 * 2000
  assert all(w.isalpha() and w.islower() for w in every)


def test_hops_out_of_reach_or_not_configured_are_never_recalled():
  config = GeneratedTreesConfig(hops=(2, 4), recall_rate=1.0)
  for index in range(50):
    tree = generated.generate_tree(config, 0, index)
    for (_, recalls, _), depth in zip(parse(config, tree), depths(tree)):
      assert set(recalls) == {hop for hop in (2, 4) if hop <= depth}


def test_hops_are_recalled_at_the_configured_rate(trees):
  recalled = [
    2 in recalls
    for tree in trees
    for (_, recalls, _), depth in zip(parse(DEFAULTS, tree), depths(tree))
    if depth >= 2
  ]
  assert np.mean(recalled) == pytest.approx(DEFAULTS.recall_rate, abs=0.03)


def test_fillers_follow_the_zipf_distribution(trees):
  ranks = [r for t in trees for *_, fillers in parse(DEFAULTS, t) for r in fillers]
  seen = np.bincount(ranks, minlength=DEFAULTS.num_filler_words) / len(ranks)
  expected = generated.filler_probabilities(DEFAULTS)
  assert expected[0] == pytest.approx(10 * expected[9])
  assert expected.sum() == pytest.approx(1)
  np.testing.assert_allclose(seen, expected, atol=0.005)


def test_words_stand_in_random_order(trees):
  shares = []
  for tree in trees:
    for comment in tree.comments:
      tokens = comment.text.split()
      if len(tokens) > 10:
        shares.append(tokens.index("[fact]") / (len(tokens) - 2))
  assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
  assert np.std(shares) == pytest.approx(math.sqrt(1 / 12), abs=0.04)


# Its entropies.


def conditional_entropy(joint):
  """H(X | Y) of {(x, y): probability or count}, in nats."""
  total = sum(joint.values())
  marginal = collections.Counter()
  for (_, y), weight in joint.items():
    marginal[y] += weight
  return -sum(
    w / total * math.log(w / marginal[y]) for (_, y), w in joint.items() if w > 0
  )


def enumerated_entropies(config, recalled):
  """By going through all worlds: a chain post - a - b - c, in which c is the target.

  Args:
    config: noise and number of values, 2 or 3.
    recalled: which (node, hop) are recalled; nodes are 0 to 3.
  """
  values = range(config.num_values)
  worlds = []
  for facts in itertools.product(values, repeat=4):
    for copies in itertools.product(values, repeat=len(recalled)):
      probability = config.num_values**-4.0
      for (node, hop), recall in zip(recalled, copies):
        probability *= config.noise / config.num_values + (
          1 - config.noise if recall == facts[node - hop] else 0
        )
      worlds.append((probability, facts, dict(zip(recalled, copies))))

  def entropy(target, context):
    joint = collections.Counter()
    for probability, facts, recalls in worlds:
      own = [facts[3]] if target != "fact" else []
      own += [r for key, r in recalls.items() if key[0] == 3 and key != target]
      seen = [facts[node] for node in context]
      seen += [r for (node, _), r in recalls.items() if node in context]
      x = facts[3] if target == "fact" else recalls[target]
      joint[x, (*own, *seen)] += probability
    return conditional_entropy(joint)

  return {
    target: {
      "true": entropy(target, (0, 1, 2)),
      "parent_only": entropy(target, (2,)),
      "none": entropy(target, ()),
    }
    for target in [key for key in recalled if key[0] == 3] + ["fact"]
  }


def test_closed_forms_are_those_found_by_enumerating_all_worlds():
  config = GeneratedTreesConfig(num_values=2, noise=0.2, recall_rate=0.3)
  closed = generated.analytic_entropies(config)
  every = [(node, hop) for node in (1, 2, 3) for hop in (1, 2, 3) if hop <= node]
  # The recalls of the parent, node 2, are what matters: all, or none.
  full = enumerated_entropies(config, every)
  bare = enumerated_entropies(config, [key for key in every if key[0] != 2])
  for hop in (1, 2, 3):
    for condition in ("true", "parent_only", "none"):
      expected = 0.3 * full[3, hop][condition] + 0.7 * bare[3, hop][condition]
      assert closed[f"recall hop {hop}"][condition] == pytest.approx(expected)
  for condition in ("true", "parent_only", "none"):
    assert closed["own fact"][condition] == pytest.approx(full["fact"][condition])
  # The parent's recall matters, but is not as good as the fact.
  hop_2 = closed["recall hop 2"]
  assert hop_2["true"] + 0.1 < hop_2["parent_only"] < hop_2["none"] - 0.01


def test_a_parent_that_cannot_recall_the_same_fact_leaves_everything_open():
  closed = generated.analytic_entropies(GeneratedTreesConfig(hops=(3,)))
  assert closed["recall hop 3"]["parent_only"] == pytest.approx(math.log(16))


def test_without_noise_the_floor_is_zero():
  closed = generated.analytic_entropies(GeneratedTreesConfig(noise=0.0, recall_rate=1))
  assert closed["recall hop 3"] == pytest.approx(
    {"true": 0, "parent_only": 0, "none": math.log(16)}
  )


@pytest.mark.long
def test_closed_forms_are_those_of_the_trees_themselves():
  joints = {
    name: collections.Counter()
    for name in itertools.product(
      ("recall hop 1", "recall hop 2", "recall hop 3", "own fact", "filler"),
      ("true", "parent_only", "none"),
    )
  }
  for index in range(4000):
    tree = generated.generate_tree(TINY, 0, index)
    parsed = parse(TINY, tree)
    for node in range(1, len(parsed)):
      fact, recalls, fillers = parsed[node]
      parent_fact, parent_recalls, _ = parsed[tree.comments[node].parent]
      for hop, recall in recalls.items():
        told = parsed[ancestor(tree, node, hop)][0]
        # Beside what decides: the parent's fact, which must add nothing.
        group = f"recall hop {hop}"
        joints[group, "true"][recall, (told, parent_fact)] += 1
        joints[group, "parent_only"][
          recall, (parent_fact, parent_recalls.get(hop - 1))
        ] += 1
        joints[group, "none"][recall, fact] += 1
      joints["own fact", "true"][fact, (parent_fact, recalls.get(1))] += 1
      joints["own fact", "parent_only"][fact, parent_fact] += 1
      joints["own fact", "none"][fact, len(fillers)] += 1
      for left, right in itertools.pairwise(fillers):
        joints["filler", "true"][right, (left, parent_fact)] += 1
        joints["filler", "parent_only"][right, parent_fact] += 1
        joints["filler", "none"][right, left] += 1
  closed = generated.analytic_entropies(TINY)
  for (group, condition), joint in joints.items():
    assert sum(joint.values()) > 5000
    measured = conditional_entropy(joint)
    assert measured == pytest.approx(closed[group][condition], abs=0.02), (
      group,
      condition,
    )


# Its vocabulary.


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp("cache"))
  return vocabularies.Tokenizer(
    lambda: generated.vocabulary(DEFAULTS, MarkersConfig(), folder)
  )


def test_every_word_is_one_token_of_its_own_group(trees, tokenizer):
  groups = generated.token_groups(DEFAULTS, tokenizer)
  members = generated.words(DEFAULTS).groups()
  assert list(groups) == list(members)
  for name, words in members.items():
    encoded = tokenizer.encode_batch(words)
    assert [ids.tolist() for ids in encoded] == [[i] for i in groups[name]]
  every = np.concatenate(list(groups.values()))
  assert len(set(every.tolist())) == len(every)
  assert tokenizer.maskable[every].all()


def test_texts_become_a_token_a_word_with_unmaskable_cues(trees, tokenizer):
  texts = [f"<user_0> {c.text}" for tree in trees[:50] for c in tree.comments]
  for text, ids in zip(texts, tokenizer.encode_batch(texts)):
    is_word = [token.isalpha() for token in text.split()]
    assert tokenizer.maskable[ids].tolist() == is_word
    assert TokenizerVocabulary(tokenizer).unk_id not in ids
    assert TokenizerVocabulary(tokenizer).unk_id not in TokenizerVocabulary(
      tokenizer
    ).encode(text)


def test_cleaning_leaves_the_texts_as_they_are(trees):
  for comment in trees[0].comments:
    assert cleaning.clean_text(comment.text, CleaningConfig()) == comment.text


def test_the_vocabulary_has_the_same_bytes_each_time(tmp_path):
  paths = [
    generated.vocabulary(DEFAULTS, MarkersConfig(), str(tmp_path / name))
    for name in "ab"
  ]
  first, second = [pathlib.Path(path).read_bytes() for path in paths]
  assert first == second
  assert os.path.basename(paths[0]) == os.path.basename(paths[1])


def test_the_vocabulary_is_made_once_and_used_after(tmp_path):
  path = generated.vocabulary(DEFAULTS, MarkersConfig(), str(tmp_path))
  before = os.stat(path)
  assert generated.vocabulary(DEFAULTS, MarkersConfig(), str(tmp_path)) == path
  assert os.stat(path) == before


def test_other_words_or_markers_make_another_vocabulary(tmp_path):
  def path(config=DEFAULTS, users=3):
    return generated.vocabulary(config, MarkersConfig(max_users=users), str(tmp_path))

  other_words = GeneratedTreesConfig(num_values=8)
  assert len({path(), path(other_words), path(users=4)}) == 3
  # Settings that no word depends on do not.
  assert path(GeneratedTreesConfig(seed=5, median_tree_size=3)) == path()


def test_many_may_make_the_vocabulary_at_the_same_time(tmp_path):
  def make(_):
    path = generated.vocabulary(DEFAULTS, MarkersConfig(), str(tmp_path))
    return pathlib.Path(path).read_bytes()

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    contents = set(pool.map(make, range(16)))
  assert len(contents) == 1
  assert len(os.listdir(tmp_path / "vocabularies")) == 1


@pytest.mark.parametrize(
  ("settings", "name"),
  [
    ({"hops": ()}, "hops"),
    ({"hops": (1, 1)}, "hops"),
    ({"hops": (0,)}, "hops"),
    ({"hops": (9,)}, "hops"),
    ({"noise": 1.5}, "noise"),
    ({"num_values": 1}, "num_values"),
    ({"num_filler_words": 5000}, "num_filler_words"),
    ({"max_tree_size": 1}, "max_tree_size"),
    ({"recall_rate": -0.1}, "recall_rate"),
  ],
)
def test_a_setting_out_of_range_is_named(settings, name):
  with pytest.raises(UserError, match=f"GeneratedTreesConfig.{name} = "):
    GeneratedTreesConfig(**settings)
