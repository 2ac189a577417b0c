"""What a build is of: its settings and files, for telling it from another.

A build continues, or is finished already, only if its plan is the same; the first
difference is named otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from commentree import differences
from commentree.errors import StorageError, UserError
from commentree.tasks.building import parts
from commentree.tasks.building.config import BuildConfig
from commentree.tasks.building.label_file import LabelFile
from commentree.tasks.building.parts import SourceFile
from commentree.tasks.dataset_files import folder_commit, manifest

SOURCES = ".sources.json"

# Raise when parts, shards or records get another form: what was begun before is then
# refused, and not gone on with.
FORMAT_VERSION = 7

BuildPlan = dict[str, Any]


def make_plan(
  sources: Sequence[SourceFile], config: BuildConfig, labels: LabelFile | None
) -> BuildPlan:
  """All that decides what comes out, for comparing; times tell a file that changed."""
  return {
    "building_format": FORMAT_VERSION,
    "settings": config.as_dict(),
    "labels": None if labels is None else labels.identity(),
    "input": [
      {
        "name": os.path.basename(source.path),
        "format": source.format,
        "bytes": os.path.getsize(source.path),
        "times": [os.stat(path).st_mtime_ns for path in parts.all_files(source)],
      }
      for source in sources
    ],
  }


def difference(old: BuildPlan, new: BuildPlan) -> str | None:
  """What the first difference between two plans is, in words, or None."""
  if old.get("building_format") != new["building_format"]:
    return "was made by another version of commentree"
  for name, was, now in differences.find(old["settings"], new["settings"]):
    return f"has {name} = {was}, not {now}"
  if old["labels"] != new["labels"]:
    return _other_labels(old["labels"], new["labels"])
  files = {"was": old["input"], "is": new["input"]}
  names = {when: [file["name"] for file in listed] for when, listed in files.items()}
  if names["was"] != names["is"]:
    odd = sorted(set(names["was"]) ^ set(names["is"])) or names["is"]
    return f"is of other files ({odd[0]})"
  for was, now in zip(files["was"], files["is"]):
    if any(was[key] != now[key] for key in was.keys() & now.keys()):
      return _changed(now["name"])
  return None


def _other_labels(was: dict[str, Any] | None, now: dict[str, Any] | None) -> str:
  if was is None:
    return "was made without --labels"
  if now is None:
    return f"has the labels of --labels={was['name']}"
  if was["sha256"] != now["sha256"]:
    return f"has the labels of {was['name']} as it was, not of {now['name']}"
  return f"has labels read as {was['columns']}, not {now['columns']}"


def _changed(name: str) -> str:
  return f"is of another {name}: the file has changed"


def stats_if_same(
  version: pathlib.Path, sources: Sequence[SourceFile], plan: BuildPlan
) -> dict[str, Any]:
  """The statistics of a dataset that is there, if it is what is asked for."""
  try:
    stats = json.loads((version / manifest.STATS).read_text("utf-8"))
    found = difference(stats["made_from"], plan)
    if found is None:
      found = _changed_contents(version.parent, sources, stats["made_from"], plan)
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(
      f"{version}: is no dataset made by `commentree build`; give another --out"
    ) from error
  if found:
    raise UserError(
      f"{version}: the dataset here {found}; give another --out, or delete it"
    )
  return stats


def _changed_contents(
  out: pathlib.Path,
  sources: Sequence[SourceFile],
  old: BuildPlan,
  plan: BuildPlan,
) -> str | None:
  """Whether a file is another than that a dataset was made from; if so, which.

  Files whose time of change is not the one noted are read: they may be copies.
  """
  try:
    noted = json.loads((out / SOURCES).read_text("utf-8"))
  except (OSError, ValueError):
    noted = []
  if noted == plan["input"]:
    return None
  for source, facts, now in zip(sources, old["input"], plan["input"]):
    if now not in noted and parts.digest(source) != facts["sha256"]:
      return _changed(now["name"])
  with contextlib.suppress(StorageError):
    folder_commit.write_json(out / SOURCES, plan["input"])
  return None


def made_from(plan: BuildPlan, digests: Mapping[int, str]) -> dict[str, Any]:
  """What a dataset says that it was made from: contents of files, not their times."""
  files = [
    {"name": file["name"], "format": file["format"], "bytes": file["bytes"]}
    | {"sha256": digests[number]}
    for number, file in enumerate(plan["input"])
  ]
  return {**plan, "input": files}
