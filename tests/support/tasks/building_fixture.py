"""Builds in this process, and what is in what they build."""

import json
import pathlib

from commentree.tasks.building import building, parts, workers
from commentree.tasks.dataset_files import tfrecord, tree_record


class Here:
  """Does a build's work in this process; knows nothing of progress."""

  peak_bytes = 0

  def __init__(self):
    self.done = []

  def run(self, work, tasks, at_once=None):
    for task in tasks:
      work(*task, report=lambda rows, size: None)
      self.done.append(work.__name__)

  def stage(self, *facts):
    pass


def build(patterns, out, config, share_mb=200, pool=None, labels=None):
  division = workers.Division(share_mb + 210, 1)
  assert division.share_mb == share_mb
  sources = building.list_sources([str(p) for p in patterns], config, labels)
  pool = pool or Here()
  folder = pathlib.Path(out)
  return building.build(sources, folder, config, pool, division, Here(), labels)


def contents(folder):
  return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}


def trees(folder, split="*"):
  """Yields the trees of a built dataset, in order."""
  return trees_of_files(sorted(pathlib.Path(folder).glob(f"*-{split}.tfrecord-*")))


def trees_of_files(paths):
  """Yields the trees in files of records."""
  for path in paths:
    with open(path, "rb") as file:
      for record in tfrecord.read(file):
        yield tree_record.decode(record)


def comment(ident, parent, body="some words here", score=1, created=10, **fields):
  return {
    "id": ident,
    "parent_id": parent,
    "author": "ann",
    "body": body,
    "score": score,
    "created_utc": created,
    **fields,
  }


def write_trees(folder, *records):
  """Tree JSONL; returns its path."""
  folder.mkdir(exist_ok=True)
  path = folder / "trees.jsonl"
  path.write_text("".join(json.dumps(record) + "\n" for record in records))
  return path


def record(ident, *comments, **fields):
  return {"id": ident, "title": "title", "comments": comments, **fields}


def write_parts(patterns, folder, config, part_bytes=2**22):
  """Only stage 1."""
  sources = building.list_sources([str(p) for p in patterns], config)
  for bundle in parts.bundles(sources):
    parts.write_parts(
      bundle, folder, config, part_bytes, 2**27, lambda rows, size: None
    )
