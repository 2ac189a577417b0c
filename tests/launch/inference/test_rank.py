"""`commentree infer --mode=rank`: replies ranked by models that are untrained."""

import json

import jax
import numpy as np
import pytest

import commentree
from commentree.errors import UserError
from commentree.launch import main
from commentree.tests.support.launch import made_runs

MATCHING = {"ModelConfig.reply_matching_weight": 0.1}


pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("rank")


@pytest.fixture(scope="module")
def model_dir(folder):
  return made_runs.make(folder, **MATCHING)


@pytest.fixture(scope="module")
def trees(model_dir):
  return made_runs.trees(model_dir, 5)


@pytest.fixture(scope="module")
def answers(model, trees):
  return model.rank(trees, top_k=4)


def unit(x):
  return x / np.sqrt(np.maximum((x * x).sum(-1, keepdims=True), 1e-12))


def by_hand(model, trees, matcher, most):
  """Scores of every comment of every tree as a reply to each, by NumPy."""
  vectors = {
    (answer["tree"], answer["comment"]): np.float64(answer["vectors"]).mean(0)
    for of_tree in model.embed(trees)
    for answer in of_tree
  }
  replies = {
    (tree["id"], comment["id"]): unit(
      vectors[tree["id"], comment["id"]] @ matcher["reply"]["kernel"]
    )
    for tree in trees
    for comment in tree["comments"]
  }
  bias = matcher["distance_bias"]
  scores = {}
  for tree in trees:
    ids = [tree["id"], *(comment["id"] for comment in tree["comments"])]
    parents = dict(zip(ids[1:], (c["parent_id"] for c in tree["comments"])))
    for ident in ids:
      above = [ident]
      while above[-1] in parents:
        above.append(parents[above[-1]])
      hops = range(1, len(above) + 1)
      seen = list(zip(hops, above))
      if len(seen) > most:
        seen = [*seen[: most - 1], seen[-1]] if most > 1 else seen[:1]
      weights = np.exp([bias[min(hop, len(bias) - 1)] for hop, _ in seen])
      thread = sum(
        w * vectors[tree["id"], name]
        for w, (_, name) in zip(weights / weights.sum(), seen)
      )
      thread = unit(thread @ matcher["thread"]["kernel"])
      scores[tree["id"], ident] = {
        name: float(thread @ vector)
        for name, vector in replies.items()
        if name[0] != tree["id"] or parents[name[1]] == ident
      }
  return scores


def check(found, scores, top_k):
  for answer in (answer for of_tree in found for answer in of_tree):
    tree = answer["tree"]
    expected = scores[tree, answer["comment"]]
    # Of comments with equal texts either may be first.
    best = sorted(expected.values(), reverse=True)[:top_k]
    names = [(r["tree"], r["comment"]) for r in answer["replies"]]
    assert len(set(names)) == top_k
    assert [r["rank"] for r in answer["replies"]] == list(range(1, top_k + 1))
    np.testing.assert_allclose([expected[name] for name in names], best, atol=1e-5)
    scores_told = [r["score"] for r in answer["replies"]]
    np.testing.assert_allclose(scores_told, best, atol=1e-5)
    others = [score for name, score in expected.items() if name[0] != tree]
    assert answer["candidates"] == len(others)
    true = {name[1]: score for name, score in expected.items() if name[0] == tree}
    assert {r["comment"] for r in answer["true_replies"]} == set(true)
    for reply in answer["true_replies"]:
      score = true[reply["comment"]]
      np.testing.assert_allclose(reply["score"], score, atol=1e-5)
      # Ties count against a reply.
      assert reply["rank"] == 1 + sum(other >= score - 1e-6 for other in others)


@pytest.mark.parametrize(("ancestors", "most"), [("true", 4), ("parent_only", 1)])
def test_replies_are_ranked_by_the_matcher_as_numpy_does(model, trees, ancestors, most):
  params = jax.device_get(model._engine.devices._groups[0].params)
  matcher = jax.tree.map(np.float64, params["reply_matcher"])
  scores = by_hand(model, trees, matcher, most)
  check(model.rank(trees, top_k=4, ancestors=ancestors), scores, 4)


def test_without_a_matcher_pooled_vectors_are_compared_with_means_of_threads(
  folder, trees
):
  plain = commentree.load(made_runs.make(folder / "plain"))
  even = np.eye(16)
  matcher = {
    "thread": {"kernel": even},
    "reply": {"kernel": even},
    "distance_bias": np.zeros(8),
  }
  check(plain.rank(trees, top_k=4), by_hand(plain, trees, matcher, 4), 4)


def test_candidates_may_be_texts_and_other_trees(model, trees, answers):
  texts = [comment["body"] for tree in trees[1:] for comment in tree["comments"]]
  found = model.rank(trees[0], texts, top_k=4)
  for answer, own in zip(found, answers[0], strict=True):
    assert answer["candidates"] == len(texts) == own["candidates"]
    assert answer["true_replies"] == []
  posts = [{"id": f"text {i}", "selftext": text} for i, text in enumerate(texts)]
  assert model.rank(trees[0], posts, top_k=4) == found
  # A leaf has no reply of its own among the candidates, so that both rank the same.
  answered = {comment["parent_id"] for comment in trees[0]["comments"]}
  leaf = next(a for a in answers[0] if a["comment"] not in answered)
  others = model.rank(trees[0], trees[1:], top_k=4)
  assert [a["replies"] for a in others if a["comment"] == leaf["comment"]] == [
    leaf["replies"]
  ]


def test_a_text_is_a_candidate_whatever_the_trees_are_called(model, trees):
  texts = [comment["body"] for comment in trees[1]["comments"][:3]]
  numbered = {**trees[0], "id": "1"}
  for answer in model.rank(numbered, texts, top_k=4):
    assert answer["candidates"] == len(answer["replies"]) == 3
  # Several texts are ranked among each other.
  for (answer,) in model.rank(texts, top_k=4):
    assert answer["candidates"] == len(answer["replies"]) == 2
  ((answer,),) = model.rank(texts[:1], texts[1])
  assert [reply["tree"] for reply in answer["replies"]] == ["text 0"]


def test_comments_without_a_text_rank_nothing_and_are_no_candidates(model):
  tree = {"id": "t", "comments": [{"id": "a", "parent_id": "t", "body": "bako"}]}
  post, comment = model.rank(tree, ["goma"])
  assert post["replies"] is None
  assert post["why"]
  assert [r["tree"] for r in comment["replies"]] == ["text 0"]


def test_the_command_writes_what_python_gives_and_tells_recall(
  folder, model_dir, trees, answers, capfd
):
  path = made_runs.write(folder / "trees.jsonl", trees)
  output = folder / "ranked.jsonl"
  flags = [f"--model_dir={model_dir}", "--mode=rank", f"--output={output}"]
  assert main.main(["infer", *flags, "--input", path, "--top_k=4"]) == 0
  lines = [json.loads(line) for line in output.read_text().splitlines()]
  assert lines == [answer for of_tree in answers for answer in of_tree]
  ranks = np.array([r["rank"] for line in lines for r in line["true_replies"]])
  assert len(ranks) == sum(len(tree["comments"]) for tree in trees)
  told = " ".join(capfd.readouterr().out.split())
  assert f"of {len(ranks):,} replies" in told
  assert f"{(ranks == 1).mean():.1%} come first" in told
  assert f"mean reciprocal rank {(1 / ranks).mean():.3f}" in told
  # Candidates decide answers: others are refused.
  other = made_runs.write(folder / "others.jsonl", trees[1:])
  again = ["--input", path, "--top_k=4", "--candidates", other]
  assert main.main(["infer", *flags, *again]) == 2
  assert "--candidates" in capfd.readouterr().err


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (["--input", "-"], "--candidates"),
    (["--top_k=0", "--input", "{}"], "--top_k=0"),
    (["--ancestors=none", "--input", "{}"], "--ancestors=none"),
    (["--mode=embed", "--candidates", "{}", "--input", "{}"], "--candidates"),
  ],
)
def test_what_cannot_be_ranked_is_said_in_a_line(
  folder, model_dir, trees, flags, said, capsys
):
  path = made_runs.write(folder / "refused.jsonl", trees)
  given = [f"--model_dir={model_dir}", "--mode=rank", f"--output={folder / 'no.jsonl'}"]
  flags = [flag.format(path) for flag in flags]
  assert main.main(["infer", *given, *flags]) == 2
  assert said in capsys.readouterr().err


def test_only_posts_are_no_candidates(model):
  tree = {"id": "t", "title": "bako", "comments": []}
  assert model.rank(tree)[0]["candidates"] == 0
  with pytest.raises(UserError, match="--candidates"):
    model.rank(tree, [])
