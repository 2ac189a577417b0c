"""A run that knows languages answers for comments in theirs."""

import jax
import numpy as np
import pytest

import commentree
from commentree.models.batch import smallest
from commentree.tests.support.launch import made_runs

TEXT = "nozo tomi"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  folder = made_runs.make(
    tmp_path_factory.mktemp("languages"), "tlm", LANGUAGES=("en", "de")
  )
  return commentree.load(folder)


def tree(language):
  words = {"body": f"{TEXT} <mask>", "author": "ann"}
  return {
    "id": "t",
    "selftext": TEXT,
    "author": "bob",
    "language": language,
    "comments": [{"id": "a", "parent_id": "t", "language": language, **words}],
  }


def test_a_comment_is_encoded_in_its_language(model):
  found = model.embed(tree("de"))[0]["vectors"]
  (tokens, *_) = model.run.builder.encode_texts([f"<user_0> {TEXT}"])
  batch = {name: np.asarray(values) for name, values in smallest().items()}
  row = np.asarray(tokens)[None, None]
  batch["encoder_input_tokens"] = row
  batch["encoder_segment_ids"] = np.ones_like(row)
  batch["encoder_positions"] = np.arange(len(tokens), dtype=np.int32)[None, None]
  for number, expected in ((2, True), (1, False), (0, False)):
    batch["encoder_languages"] = np.full_like(row, number)
    encoded = jax.jit(model.model.encode)(model.params, batch)
    equal = np.allclose(encoded.vectors_BEJD[0, 0], found, rtol=1e-4, atol=1e-5)
    assert equal == expected


def test_all_answers_depend_on_the_language_alone_and_others_are_none(model):
  asks = {
    "fill": lambda given: model.fill(given)[1]["masks"][0]["candidates"],
    "score": lambda given: [a["log_likelihood"] for a in model.score(given)],
    "embed": lambda given: model.embed(given, contextual=True)[1]["in_thread"].tolist(),
  }
  for ask in asks.values():
    answers = {language: ask(tree(language)) for language in ("en", "de", "fr", None)}
    assert answers["en"] != answers["de"] != answers["fr"] != answers["en"]
    assert answers["fr"] == answers[None]
