"""From input to output: the chunks that are missing, then all parts joined."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax

from commentree.errors import UserError
from commentree.launch.inference import chunks, outputs
from commentree.launch.inference.chunks import Chunk, ChunkSize
from commentree.launch.inference.engine import Engine
from commentree.launch.inference.modes.base import Mode
from commentree.launch.inference.parts import Parts
from commentree.launch.inference.progress import InferenceProgress
from commentree.launch.inference.run_context import RunContext
from commentree.launch.inference.trees import Input
from commentree.settings import identity
from commentree.tasks.trees.comment_tree import KEPT, ReadCounts
from commentree.training import runtime
from commentree.training.checkpointing import run_record, storage
from commentree.training.cluster import hosts
from commentree.training.cluster.distributed import Cluster
from commentree.training.cluster.signals import StopRequest

# Raise when lines, vectors or the dealing of chunks get another form.
_FORMAT_VERSION = 1
_LOOK_SECONDS = 1.0
_STDOUT = "-"


@dataclasses.dataclass(frozen=True)
class InferenceJob:
  """What is to be done.

  Attributes:
    run: the run.
    step: the checkpoint; the newest if None.
    mode: the kind of answer.
    options: of the mode, by flag; they decide answers.
    found: the input.
    output: file to write; `-` for standard output.
    chunk: when a chunk is full.
    batch_size: forests that are begun before the first is waited for; None for two
      a group of devices.
  """

  run: RunContext
  step: int | Literal["best"] | None
  mode: Mode
  options: Mapping[str, Any]
  found: Input
  output: str
  chunk: ChunkSize = ChunkSize()
  batch_size: int | None = None


def infer(job: InferenceJob, joined: Cluster) -> None:
  """Answers for all comments of the input, and writes the output.

  Raises:
    UserError: for anything the user can mend.
    SystemExit: with 143 after SIGTERM and 130 after SIGINT; what is done is kept.
  """
  runtime.set_flags(job.run.config.train.compile_cache_dir)
  with StopRequest() as stop:
    tick = _Tick(stop, joined)
    engine = Engine(job.run, job.step)
    mode = job.mode
    if job.output == _STDOUT:
      _stream(job, engine, mode, tick)
      return
    settings = _settings(job, engine)
    joined.watchdog.agree(settings, "settings")
    form = outputs.for_path(job.output, mode.name)
    parts = Parts(storage.as_path(job.output), form.part_ending, settings, joined.say)
    again = job.found.signature is not None
    if hosts.run_on_host0("parts", lambda: parts.begin(again=again)):
      joined.say(f"nothing to do: {parts.output} is whole")
      return
    storage.check_shared(parts.folder, "--output's folder")
    joined.say(f"checkpoint {engine.path}")
    if mode.note:
      joined.say(mode.note)
    _fill_in(job, engine, mode, form, parts, joined, tick)
    joined.watchdog.at(0, "data")
    hosts.wait_for_all("parts written", tick)
    hosts.run_on_host0("join", lambda: _join(job, form, parts, joined))


def _fill_in(
  job: InferenceJob,
  engine: Engine,
  mode: Mode,
  form: outputs.Output,
  parts: Parts,
  joined: Cluster,
  tick: Callable[[], None],
) -> None:
  """Writes the parts that are this host's to write and not there yet."""
  read_counts = ReadCounts()
  done = parts.done()
  if done:
    joined.say(f"going on: {sum(map(len, done.values())):,} parts are there")
  progress = InferenceProgress(job.found.units, joined.say)
  missing = chunks.missing(
    job.found.units,
    job.chunk,
    done,
    jax.process_index(),
    jax.process_count(),
    read_counts,
  )
  program = engine.program(mode)
  program.tell = joined.say
  engine.prepare(mode, program, job.batch_size, tick)
  found = engine.answers(
    mode,
    program,
    ((c.trees, c) for c in missing),
    job.batch_size,
    tick,
    progress.see,
  )
  for answers, chunk in found:
    parts.write(chunk, form.encode(chunk.trees, answers))
    progress.add(chunk)
  progress.end()
  _tell_fates(read_counts, joined)


def _tell_fates(read_counts: ReadCounts, joined: Cluster) -> None:
  """Tells what became of what was read, if anything but well."""
  became = [*read_counts.trees, *read_counts.comments]
  if read_counts.repaired or not all(fate == KEPT for fate in became):
    read_counts.tell(joined.console)


def _join(
  job: InferenceJob, form: outputs.Output, parts: Parts, joined: Cluster
) -> None:
  done = parts.done()
  if not chunks.is_whole(job.found.units, done):
    raise UserError(f"{parts.folder}: parts went missing; start the same command again")
  comments = form.join(parts.in_order(), parts.output)
  parts.finish({"comments": comments, "versions": run_record.versions()})
  joined.say(f"{parts.output}: {comments:,} comments")
  if form.part_ending == outputs.JsonLines.part_ending:
    with parts.output.open("rb") as file:
      if said := job.mode.summary(map(json.loads, file)):
        joined.say(said)


def _stream(
  job: InferenceJob, engine: Engine, mode: Mode, tick: Callable[[], None]
) -> None:
  """Writes answers to standard output as they come."""

  def read() -> Iterator[tuple[Any, Chunk]]:
    for which, unit in enumerate(job.found.units):
      for chunk in chunks.cut(unit, which, job.chunk, ReadCounts()):
        yield chunk.trees, chunk

  program = engine.program(mode)
  engine.prepare(mode, program, job.batch_size, tick)
  for answers, chunk in engine.answers(mode, program, read(), job.batch_size, tick):
    for line in outputs.lines(chunk.trees, answers):
      sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _settings(job: InferenceJob, engine: Engine) -> dict[str, Any]:
  """What decides answers, by the names that the user knows."""
  config = job.run.config
  sums = engine.path / "checksums.json"
  return {
    "format": _FORMAT_VERSION,
    **job.options,
    "--input": job.found.signature,
    "--step": engine.step,
    "the checkpoint's checksums": _digest(sums.read_text() if sums.exists() else ""),
    "the vocabulary": job.run.tokenizer.fingerprint,
    "--chunk_trees": job.chunk.trees,
    **identity(config.model),
    **identity(config.data),
  }


def _digest(text: str) -> str:
  return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class _Tick:
  """Called now and then: tells the watchdog, and ends all hosts after a signal."""

  def __init__(self, stop: StopRequest, joined: Cluster):
    self._stop = stop
    self._joined = joined
    self._looked = time.monotonic()

  def __call__(self) -> None:
    self._joined.watchdog.at(0, "infer")
    number = self._stop.number
    if number:
      hosts.set_flag("stop", str(number))
    elif time.monotonic() - self._looked > _LOOK_SECONDS:
      self._looked = time.monotonic()
      number = int(hosts.flag("stop") or 0)
    if number:
      name = signal.Signals(number).name
      self._joined.say(f"{name}: stopped; the same command continues from what is done")
      raise SystemExit(128 + number)
