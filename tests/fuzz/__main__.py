"""Fuzzes surfaces and prints a table, a line as each is done: `make fuzz`.

Each surface runs in a process of its own. With Atheris (the extra `fuzz`) coverage
guides the search; without it inputs are mutated blindly. Failing inputs are written to
--failures.

examples:
  python -m commentree.tests.fuzz --runs=20000
  python -m commentree.tests.fuzz --surface=compression --runs=1000000 --seed=3
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import importlib.util
import itertools
import json
import os
import pathlib
import random
import resource
import subprocess
import sys
import tempfile

from commentree.launch.settings import library_noise

_MEMORY_BYTES = 4 * 2**30


def main() -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--surface", action="append", help="repeatable; all if left out")
  parser.add_argument("--runs", type=int, default=20_000, help="inputs a surface")
  parser.add_argument("--seed", type=int, default=1, help="of the draw of inputs")
  parser.add_argument("--processes", type=int, default=os.cpu_count())
  parser.add_argument("--failures", default="fuzz_failures", help="folder for inputs")
  parser.add_argument("--one", help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  library_noise.disable_libtpu_without_tpu()
  if arguments.one:
    _fuzz(arguments)
    return
  from commentree.tests.fuzz.surfaces import SURFACES

  names = arguments.surface or list(SURFACES)
  if unknown := set(names) - set(SURFACES):
    parser.error(f"no such surface: {unknown}; there are {', '.join(SURFACES)}")
  guided = importlib.util.find_spec("atheris") is not None
  print(f"{'guided by coverage' if guided else 'blind'}, seed {arguments.seed}\n")
  print("| surface | inputs | refused | failed | slowest |\n|---|---|---|---|---|")
  failures: list[str] = []
  with concurrent.futures.ThreadPoolExecutor(arguments.processes) as pool:
    results = pool.map(lambda name: _in_process(name, arguments), names)
    for name, result in zip(names, results):
      found = result["failures"]
      failures += [f"{name}: {found[where]:,} times {where}" for where in sorted(found)]
      print(
        f"| {SURFACES[name].name} | {result['tried']:,} | {result['refused']:,}"
        f" | {sum(found.values()):,} | {result['slowest']:.2f} s |",
        flush=True,
      )
  print(*failures, sep="\n")
  sys.exit(1 if failures else 0)


def _in_process(name: str, arguments: argparse.Namespace) -> dict:
  with tempfile.TemporaryDirectory() as folder:
    report = pathlib.Path(folder, "report.json")
    command = [
      *(sys.executable, "-m", "commentree.tests.fuzz", "--one", str(report)),
      *("--surface", name, f"--runs={arguments.runs}", f"--seed={arguments.seed}"),
      f"--failures={arguments.failures}",
    ]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if report.exists() and run.returncode == 0:
      return json.loads(report.read_text())
    died = f"the process ended with {run.returncode}: {run.stderr[-300:]!r}"
    return {"tried": 0, "refused": 0, "slowest": 0.0, "failures": {died: 1}}


def _fuzz(arguments: argparse.Namespace) -> None:
  """Fuzzes one surface in this process."""
  resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))
  [name] = arguments.surface
  if importlib.util.find_spec("atheris") is None:
    from commentree.tests.fuzz import engine
    from commentree.tests.fuzz.surfaces import SURFACES

    trial = engine.Trial(SURFACES[name])
    inputs = engine.mutations(trial.seeds, arguments.seed)
    for data in itertools.islice(inputs, arguments.runs):
      trial(data)
    _report(trial, arguments)
    return
  import atheris

  with atheris.instrument_imports(include=["commentree.tasks", "commentree.training"]):
    from commentree.tests.fuzz import engine, json_mutation
    from commentree.tests.fuzz.surfaces import SURFACES
  trial = engine.Trial(SURFACES[name])
  corpus = pathlib.Path(tempfile.mkdtemp())
  for seed in trial.seeds:
    (corpus / hashlib.sha256(seed).hexdigest()).write_bytes(seed)

  def one(data: bytes) -> None:
    trial(data)
    # libFuzzer ends the process by itself after the last run.
    if trial.outcome.tried in (arguments.runs, 1) or not trial.outcome.tried % 1_000:
      _report(trial, arguments)

  def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    draw = random.Random(seed)
    changed = None
    if draw.random() < engine.JSON_SHARE:
      changed = json_mutation.mutate(data, draw)
    if changed is None or len(changed) > max_size:
      changed = atheris.Mutate(data, max_size)
    return changed

  atheris.Setup(
    [
      *(sys.argv[0], str(corpus), f"-runs={arguments.runs}", f"-seed={arguments.seed}"),
      *(f"-max_len={engine.MAX_BYTES}", "-rss_limit_mb=0", "-verbosity=0"),
    ],
    one,
    custom_mutator=mutate,
  )
  atheris.Fuzz()


def _report(trial, arguments: argparse.Namespace) -> None:
  outcome = trial.outcome
  facts = {
    "tried": outcome.tried,
    "refused": outcome.refused,
    "slowest": outcome.slowest,
    "failures": {where: times for where, (times, _) in outcome.failures.items()},
  }
  pathlib.Path(arguments.one).write_text(json.dumps(facts))
  for _, data in outcome.failures.values():
    folder = pathlib.Path(arguments.failures, arguments.surface[0])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


if __name__ == "__main__":
  main()
