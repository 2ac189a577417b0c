"""The small cloud of the launch tests, for those that need one."""

import contextlib
import json
import os
import pathlib
import shlex
import signal
import sys

from commentree.tests.support.launch.stand_ins import gcloud as stand_in

STAND_INS = pathlib.Path(__file__).with_name("stand_ins")


class Cloud:
  """A folder that stands for a cloud, and stand-ins for its commands on PATH."""

  def __init__(self, folder, monkeypatch):
    self.folder = folder
    self.bin = folder / "programs on PATH"
    self.bin.mkdir(parents=True)
    for name in ("gcloud", "xpk", "kubectl"):
      program = self.bin / name
      words = shlex.join([sys.executable, f"{STAND_INS / name}.py"])
      program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
      program.chmod(0o755)
    monkeypatch.setenv("FAKE_CLOUD", str(folder))
    monkeypatch.setenv("PATH", f"{self.bin}:{os.environ['PATH']}")
    monkeypatch.setattr(stand_in, "CLOUD", folder)
    self.set(workers=2, looks=2)

  def set(self, **settings):
    (self.folder / "settings.json").write_text(json.dumps(settings))

  def calls(self):
    path = self.folder / "calls.jsonl"
    return (
      [json.loads(c) for c in path.read_text().splitlines()] if path.exists() else []
    )

  def requests(self):
    return sorted(p.name for p in (self.folder / "requests").glob("*"))

  def homes(self):
    return sorted((self.folder / "homes").glob("*"))

  def change(self, name, **changes):
    stand_in.save(name, {**stand_in.load(name), **changes})

  def preempt(self, name, state="SUSPENDED"):
    """Takes the slices away: SIGTERM, then all is gone."""
    nodes = stand_in.load(name)["nodes"]
    stand_in.end_workers(nodes, signal.SIGTERM)
    self.change(name, state=state)

  def end(self):
    for home in self.homes():
      with contextlib.suppress(FileNotFoundError):
        stand_in.end_workers([home.name.rpartition("-w")[0]])
