"""The folder of a build: refused to others, gone on in, and left where nothing came."""

import json
import os

import pytest

from commentree import local_files
from commentree.errors import UserError
from commentree.tasks.building import building, parts, plans
from commentree.tasks.building.config import BuildConfig
from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tests.support.tasks import building_fixture
from commentree.tests.support.tasks.building_fixture import comment, record, write_trees

DEFAULT = BuildConfig()


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"seed": 1}, "has seed = 0, not 1"),
    ({"trees": TreeConfig("keep")}, "has trees.deleted = 'splice', not 'keep'"),
    ({"subreddits": ("a",)}, r"has subreddits = \[\], not \['a'\]"),
  ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_a_folder_of_another_build_is_refused_by_what_differs(
  tmp_path, change, words, finished
):
  path = write_trees(tmp_path, record("p", comment("a", "p"), subreddit="a"))
  out = tmp_path / "forum"
  begin(path, out, finished)
  with pytest.raises(UserError, match=words):
    building_fixture.build([path], out, BuildConfig(**change))
  again = building_fixture.build([path], out, DEFAULT)
  assert again.already == finished


def begin(path, out, finished):
  class Stopped(building_fixture.Here):
    def run(self, work, tasks, at_once=None):
      if self.done:
        raise KeyboardInterrupt
      super().run(work, tasks)

  if finished:
    building_fixture.build([path], out, DEFAULT)
    return
  with pytest.raises(KeyboardInterrupt):
    building_fixture.build([path], out, DEFAULT, pool=Stopped())


@pytest.mark.parametrize("finished", [False, True])
def test_another_input_is_refused_by_the_files_name(tmp_path, finished):
  path = write_trees(tmp_path, record("p", comment("a", "p")))
  out = tmp_path / "forum"
  begin(path, out, finished)
  other = write_trees(tmp_path / "more", record("p", comment("a", "p")))
  other = other.rename(other.with_name("more.jsonl"))
  with pytest.raises(UserError, match=r"is of other files \(more.jsonl\)"):
    building_fixture.build([path, other], out, DEFAULT)
  write_trees(tmp_path, record("p", comment("a", "p", "something else")))
  with pytest.raises(UserError, match=r"trees.jsonl: the file has changed"):
    building_fixture.build([path], out, DEFAULT)


def test_a_file_of_another_text_and_the_same_size_is_refused_of_a_finished_build(
  tmp_path,
):
  path = write_trees(tmp_path, record("p", comment("a", "p", "some words")))
  out = tmp_path / "forum"
  building_fixture.build([path], out, DEFAULT)
  size = path.stat().st_size
  for sources_noted in (True, False):
    write_trees(tmp_path, record("p", comment("a", "p", "other word")))
    assert path.stat().st_size == size
    with pytest.raises(UserError, match=r"trees.jsonl: the file has changed"):
      building_fixture.build([path], out, DEFAULT)
    write_trees(tmp_path, record("p", comment("a", "p", "some words")))
    if sources_noted:
      (out / plans.SOURCES).unlink()
  # A copy is of another time, and the same.
  os.utime(path, ns=(1, 1))
  assert building_fixture.build([path], out, DEFAULT).already
  monitored = parts.digest(building.list_sources([str(path)], DEFAULT)[0])
  (noted,) = json.loads((out / plans.SOURCES).read_text())
  assert noted["times"] == [1]
  (file,) = building_fixture.build([path], out, DEFAULT).stats["made_from"]["input"]
  assert file["sha256"] == monitored


def test_titles_that_lie_beside_a_file_are_of_its_contents(tmp_path):
  utterance = {"id": "p", "conversation_id": "p", "text": "x", "speaker": "s"}
  reply = {**utterance, "id": "a", "reply-to": "p"}
  path = tmp_path / "utterances.jsonl"
  path.write_text("".join(json.dumps(x) + "\n" for x in (utterance, reply)))
  titles = tmp_path / "conversations.json"
  titles.write_text(json.dumps({"p": {"meta": {"title": "one"}}}))
  out = tmp_path / "forum"
  building_fixture.build([path], out, DEFAULT)
  assert building_fixture.build([path], out, DEFAULT).already
  titles.write_text(json.dumps({"p": {"meta": {"title": "two"}}}))
  with pytest.raises(UserError, match=r"utterances.jsonl: the file has changed"):
    building_fixture.build([path], out, DEFAULT)


def test_a_build_that_came_to_nothing_leaves_its_folder_to_another(tmp_path):
  path = write_trees(tmp_path, record("p", comment("a", "p", "[deleted]")))
  out = tmp_path / "forum"

  class Failing(building_fixture.Here):
    def run(self, work, tasks, at_once=None):
      raise UserError("something is wrong")

  class Killed(building_fixture.Here):
    def run(self, work, tasks, at_once=None):
      os._exit(9)

  with pytest.raises(UserError, match="something is wrong"):
    building_fixture.build([path], out, DEFAULT, pool=Failing())
  assert not out.exists()
  with pytest.raises(UserError, match="no tree is left"):
    building_fixture.build([path], out, DEFAULT)
  assert not out.exists()
  pid = os.fork()
  if not pid:
    building_fixture.build([path], out, DEFAULT, pool=Killed())
  os.waitpid(pid, 0)
  assert (out / building.WORK / "plan.json").exists()
  keeping = BuildConfig(trees=TreeConfig("keep"))
  assert building_fixture.build([path], out, keeping).stats["comments_kept"] == 1


def test_a_damaged_plan_is_told_in_one_line(tmp_path):
  path = write_trees(tmp_path, record("p", comment("a", "p")))
  out = tmp_path / "forum"
  for damaged in ("", "[]", "{}", '{"building_format": 7, "settings": 3}'):
    begin(path, out, finished=False)
    (out / building.WORK / "plan.json").write_text(damaged)
    with pytest.raises(
      UserError, match=r"plan.json: is damaged; delete|another version"
    ):
      building_fixture.build([path], out, DEFAULT)
    (out / building.WORK / "plan.json").unlink()


def many_small_files(folder, number):
  folder.mkdir()
  for i in range(number):
    line = json.dumps(record(f"p{i}", comment("a", f"p{i}", f"text {i}")))
    (folder / f"{i:05}.jsonl").write_text(line)
  return folder


def test_small_files_are_put_together(tmp_path, monkeypatch):
  source = many_small_files(tmp_path / "small", 300)
  synced = []
  monkeypatch.setattr(local_files, "sync", synced.append)
  made = building_fixture.build([source], tmp_path / "forum", DEFAULT)
  assert len(synced) < 20
  assert made.stats["splits"]["train"]["trees"] > 250
  assert made.stats["comments"] == made.stats["posts"] == 300


def test_a_bundle_that_was_stopped_in_goes_on_between_and_inside_of_files(
  tmp_path, monkeypatch
):
  source = many_small_files(tmp_path / "small", 60)
  lines = [record(f"q{i}", comment("a", f"q{i}")) for i in range(40)]
  write_trees(source, *lines)
  wanted = building_fixture.build([source], tmp_path / "one" / "forum", DEFAULT)
  monkeypatch.setattr(parts, "_ROWS_AT_ONCE", 7)
  monkeypatch.setattr(building, "_PART_SHARE", 1e-6)
  whole = parts._write_part
  out = tmp_path / "two" / "forum"
  stops = 0
  while True:
    left = iter(range(3))

    def stop(*arguments):
      if next(left, None) is None:  # noqa: B023
        raise KeyboardInterrupt
      whole(*arguments)

    with monkeypatch.context() as patch:
      patch.setattr(parts, "_write_part", stop)
      try:
        made = building_fixture.build([source], out, DEFAULT)
        break
      except KeyboardInterrupt:
        stops += 1
  assert stops > 5
  assert building_fixture.contents(made.folder) == building_fixture.contents(
    wanted.folder
  )


def test_two_builds_in_one_folder_at_once_are_refused(tmp_path):
  path = write_trees(tmp_path, record("p", comment("a", "p")))
  out = tmp_path / "forum"

  class Meanwhile(building_fixture.Here):
    def run(self, work, tasks, at_once=None):
      with pytest.raises(UserError, match="another build is at work"):
        building_fixture.build([path], out, DEFAULT)
      super().run(work, tasks)

  assert building_fixture.build([path], out, DEFAULT, pool=Meanwhile()).stats
