"""Inference with no more than `launch/inference/requirements.txt`."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import commentree
from commentree.tests.support.launch import made_runs

ROOT = Path(commentree.__file__).parent
# The modules of what the default install holds besides, and what comes with those.
OTHERS = {
  "array_record": ["array_record"],
  "duckdb": ["duckdb"],
  "seqio": ["seqio", "t5", "tensorflow_text"],
  "tensorboard": ["tensorboard"],
  "tensorflow-datasets": ["tensorflow_datasets", "tensorflow"],
}
WITHOUT = """
import sys

class Finder:
  def __init__(self, whole):
    self._whole = whole

  def find_spec(self, name, path=None, target=None):
    if name.partition(".")[0] not in {blocked}:
      return self._whole.find_spec(name, path, target)

  def __getattr__(self, name):
    return getattr(self._whole, name)

sys.meta_path[:] = map(Finder, sys.meta_path)
from commentree.launch import main

sys.exit(main.main(sys.argv[1:]))
"""


def run(*arguments):
  blocked = [module for modules in OTHERS.values() for module in modules]
  return subprocess.run(
    [sys.executable, "-c", WITHOUT.format(blocked=blocked), *map(str, arguments)],
    capture_output=True,
    text=True,
  )


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
  return made_runs.make(tmp_path_factory.mktemp("small"))


def test_the_default_install_holds_these_besides():
  required = re.search(
    r"INSTALL_REQUIRES = \[(.*?)\n\]", (ROOT / "setup.py").read_text(), re.S
  )
  assert set(re.findall(r'"([\w-]+)[>=]', required[1])) == OTHERS.keys()


def test_comments_are_scored(model_dir, tmp_path):
  tree = {"id": "t", "title": "one", "comments": [{"id": "a", "body": "two"}]}
  (tmp_path / "trees.jsonl").write_text(json.dumps(tree))
  done = run(
    *("infer", f"--model_dir={model_dir}", "--mode=score"),
    *(f"--input={tmp_path / 'trees.jsonl'}", f"--output={tmp_path / 'out.jsonl'}"),
  )
  assert done.returncode == 0, done.stderr
  lines = (tmp_path / "out.jsonl").read_text().splitlines()
  assert [json.loads(line)["comment"] for line in lines] == ["t", "a"]


def test_what_is_not_there_is_told_in_one_line(model_dir):
  done = run("eval", f"--model_dir={model_dir}")
  assert done.returncode == 2
  assert re.search(r"needs the package of \w+, which is not installed", done.stderr)
  assert "Traceback" not in done.stderr
