"""What objectives need of a vocabulary: start, end and sentinels."""

import numpy as np
import pytest

from commentree.errors import UserError
from commentree.launch.main import main
from commentree.tasks.config.preprocessing import MarkersConfig
from commentree.tasks.trees import markers
from commentree.tasks.vocabulary import backend_kinds, vocabularies
from commentree.tasks.vocabulary.vocabularies import Tokenizer, VocabularyConfig
from commentree.tests.support.tasks.vocabulary_fixture import MAKERS, some_texts

MARKERS = markers.all_markers(MarkersConfig(max_users=3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("vocabularies")


@pytest.fixture(scope="module")
def grown(theirs, folder):
  paths = {}
  for kind, source in theirs.items():
    paths[kind] = folder / f"grown_{source.name}"
    vocabularies.add_markers(source, paths[kind], MARKERS, 5)
  return {k: Tokenizer(lambda path=path: path, MARKERS) for k, path in paths.items()}


@pytest.mark.parametrize(
  ("kind", "start", "end"),
  [
    ("t5", "<pad>", "</s>"),
    ("bpe", "<pad>", "</s>"),
    ("roberta", "<s>", "</s>"),
    ("bert", "[CLS]", "[SEP]"),
  ],
)
def test_a_comment_starts_and_ends_as_its_vocabulary_has_it(grown, kind, start, end):
  tokenizer = grown[kind]
  assert tokenizer.start_id == tokenizer.piece_to_id(start)
  assert tokenizer.end_id == tokenizer.piece_to_id(end)


def test_a_vocabulary_without_start_or_end_is_refused_by_name():
  tokenizer = Tokenizer(lambda: "there.json")
  tokenizer.__dict__["_encoder"] = type("Bare", (), {"start_id": None, "eos_id": None})
  with pytest.raises(UserError, match=r"there\.json: has no token to begin"):
    _ = tokenizer.start_id
  with pytest.raises(UserError, match=r"there\.json: has no token to end"):
    _ = tokenizer.end_id


@pytest.mark.parametrize("kind", MAKERS)
def test_sentinels_come_first_and_backwards_as_t5_numbers_them(theirs, grown, kind):
  before = backend_kinds.open_encoder(theirs[kind].read_bytes(), theirs[kind])
  tokenizer = grown[kind]
  expected = [before.size + 4 - number for number in range(5)]
  assert tokenizer.sentinels.tolist() == expected
  names = [tokenizer.id_to_piece(i) for i in tokenizer.sentinels]
  assert names == [f"<extra_id_{number}>" for number in range(5)]
  assert not tokenizer.maskable[tokenizer.sentinels].any()
  assert len(before.sentinels) == 0


@pytest.mark.parametrize("kind", MAKERS)
def test_sentinels_are_seen_in_what_tokens_say(grown, kind):
  tokenizer = grown[kind]
  (ids,) = tokenizer.encode_batch(["bade"])
  first, second = tokenizer.sentinels[:2].tolist()
  said = tokenizer.decode([first, *ids.tolist(), second, *ids.tolist()])
  assert said.replace(" ", "") == "<extra_id_0>bade<extra_id_1>bade"
  assert tokenizer.decode(ids.tolist()).strip() == "bade"


@pytest.mark.parametrize("kind", MAKERS)
def test_no_text_is_made_of_sentinels(grown, kind):
  (ids,) = grown[kind].encode_batch(["so <extra_id_0> and<extra_id_1>"])
  assert not np.isin(ids, grown[kind].sentinels).any()


@pytest.mark.parametrize("kind", ["t5", "roberta"])
def test_sentinels_that_are_there_are_kept(grown, folder, kind):
  path = folder / f"again_{kind}{'.model' if kind == 't5' else '.json'}"
  added = vocabularies.add_markers(grown[kind].path, path, MARKERS, 6)
  assert added == ["<extra_id_5>"]
  again = Tokenizer(lambda: path, MARKERS)
  assert again.sentinels[:5].tolist() == grown[kind].sentinels.tolist()
  assert again.sentinels[5] == again.vocab_size - 1


@pytest.mark.parametrize(("kind", "size"), [("unigram", 200), ("byte_bpe", 400)])
def test_a_vocabulary_is_trained_with_sentinels_as_part_of_its_size(
  tmp_path, kind, size
):
  path = tmp_path / "trained"
  config = VocabularyConfig(size, kind)
  vocabularies.train_vocabulary(some_texts(), path, config, MARKERS, 7)
  tokenizer = Tokenizer(lambda: path, MARKERS)
  assert tokenizer.vocab_size == size
  assert tokenizer.sentinels.tolist() == [size - 1 - number for number in range(7)]


def test_the_command_adds_sentinels_and_says_so(theirs, folder, capsys):
  output = folder / "by_command.model"
  flags = [f"--from={theirs['t5']}", f"--output={output}", "--sentinels=9"]
  assert main(["vocab", *flags, "--max_users=3"]) == 0
  assert "markers and sentinels" in capsys.readouterr().err
  assert len(Tokenizer(lambda: output).sentinels) == 9
  assert main(["vocab", *flags[:2], "--sentinels=-1"]) == 2
