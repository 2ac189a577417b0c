"""`make aot`: every model size on slices of every TPU generation, as docs/aot.md.

    python -m commentree.launch.compiling.aot_table --minutes=40

Compiles cell by cell, the most telling first, and keeps each result in a JSON Lines
file beside the table, so that an interrupted run continues where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

from commentree.errors import UserError
from commentree.launch.settings import gin_cli, typical_forests
from commentree.launch.settings.typical_forests import COMMENT_TOKENS

_COMMAND = "python -m commentree.launch.compiling.aot_table"
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Cell:
  """A row of the table.

  Attributes:
    size: of gin/models/.
    topology: the slice.
    preset: of gin/partitioning/.
    forests: on each device.
    num_slices: slices of that kind.
    remat: `ModelConfig.remat_policy`.
  """

  size: str
  topology: str
  preset: str
  forests: int
  num_slices: int = 1
  remat: str = "full"

  def flags(self) -> list[str]:
    """The flags of `commentree compile` that give this row."""
    slices = [f"--num_slices={self.num_slices}"] if self.num_slices > 1 else []
    return [
      f"--gin_file=models/{self.size}.gin",
      f"--gin_file=partitioning/{self.preset}.gin",
      f"--topology={self.topology}",
      *slices,
      "--gin.ModelConfig.scan_layers=True",
      f'--gin.ModelConfig.remat_policy="{self.remat}"',
    ]


# The most telling first. A row takes ten minutes of a core and more.
CELLS = (
  Cell("base", "v5e:4x4", "dp", 4),
  Cell("base", "v5p:2x2x2", "dp", 8),
  Cell("large", "v5e:4x8", "fsdp", 2),
  Cell("xl", "v5e:8x8", "fsdp", 2),
  Cell("xxl", "v5p:4x4x4", "fsdp", 4),
  Cell("small", "v6e:2x4", "dp", 8),
  Cell("xl", "tpu7x:2x4x4", "fsdp", 4),
  Cell("large", "v4:2x4x4", "fsdp", 4),
  Cell("base", "v6e:2x4", "dp", 8),
  Cell("base", "v5e:8x8", "dp", 4, num_slices=2),
  Cell("xxl", "v5e:16x16", "fsdp", 1),
)

_HEAD = """\
# What training takes on TPU slices

Generated, not measured: every row is the real train step, compiled ahead of time by the
TPU compiler on a machine without a TPU. How the numbers come about and what they leave
out: [compile.md](compile.md).

    {command}

with {versions}. Layers are scanned in all rows (`scan_layers = True`), bfloat16,
Adafactor, a vocabulary of 32,128 pieces, forests of {forest}.
GiB are those of a device, needed and granted; a device is a chip, but of TPU7x half of
one. Times are the compiler's estimates, of
[kernels](performance.md#attention-kernels) the most. Small, base and large take less
time unrolled, with nothing computed again
([sizes and chips](performance.md#sizes-and-chips)). A row by itself, with its costliest
operations:

    {example}
"""

_COLUMNS = (
  "model",
  "slice",
  "chips",
  "partitioning",
  "forests/device",
  "remat",
  "fits",
  "GiB",
  "step, ms",
  "comments/s/chip",
  "MFU",
  "messages a step: count, GB",
)
_SIZES = ("small", "base", "large", "xl", "xxl")


def compile_cell(cell: Cell) -> dict[str, Any]:
  """Compiles a row; returns its report as JSON has it."""
  from commentree.launch.compiling import compile_job
  from commentree.training.tpu_compile import ahead_of_time, topologies

  topology = topologies.open_topology(cell.topology, cell.num_slices)
  rows = cell.forests * len(topology.devices)
  run = gin_cli.load(
    [
      "runs/compile.gin",
      f"models/{cell.size}.gin",
      f"partitioning/{cell.preset}.gin",
    ],
    [
      f"BATCH_SIZE = {rows}",
      "ModelConfig.scan_layers = True",
      f"ModelConfig.remat_policy = {cell.remat!r}",
    ],
  )
  ahead_of_time.set_flags()
  plan = compile_job.make_plan(run, topology)
  return ahead_of_time.compile_program(plan).to_json()


def read_results(path: pathlib.Path, versions: dict[str, str]) -> dict[Cell, Any]:
  """Returns the reports in a file by row, those of other versions left out."""
  if not path.exists():
    return {}
  rows = [json.loads(line) for line in path.read_text().splitlines() if line]
  return {
    Cell(**row["cell"]): row["report"] for row in rows if row["versions"] == versions
  }


def render(results: dict[Cell, Any], versions: dict[str, str], forest: str) -> str:
  """Returns the document: the rows there are, by size and number of chips."""
  known = {cell: results[cell] for cell in CELLS if cell in results}
  order = sorted(
    known, key=lambda cell: (_SIZES.index(cell.size), known[cell]["chips"])
  )
  example = next(iter(known))
  lines = [
    _HEAD.format(
      command=_COMMAND,
      versions=", ".join(f"{name} {version}" for name, version in versions.items()),
      forest=forest,
      example=" \\\n      ".join(
        [
          "commentree compile",
          *_quoted(example, known[example]["batch_size"]),
        ]
      ),
    ),
    f"| {' | '.join(_COLUMNS)} |",
    f"|{'---|' * len(_COLUMNS)}",
  ]
  lines += [f"| {' | '.join(_row(cell, known[cell]))} |" for cell in order]
  return "\n".join(lines) + "\n"


def forest_in_words() -> str:
  """Returns what the forests of all rows hold."""
  shape, comments = typical_forests.typical_shape(
    gin_cli.load(["runs/compile.gin"]).data, COMMENT_TOKENS
  )
  return (
    f"{shape.decoder_rows} decoder rows and {shape.encoder_rows} encoder rows of"
    f" {shape.decoder_length} tokens, some {comments:,.0f} comments of"
    f" {COMMENT_TOKENS} tokens"
  )


def _quoted(cell: Cell, batch_size: int) -> list[str]:
  flags = [*cell.flags(), f"--gin.BATCH_SIZE={batch_size}"]
  return [f"'{flag}'" if '"' in flag else flag for flag in flags]


def _row(cell: Cell, report: dict[str, Any]) -> list[str]:
  memory = report["memory"]
  needed, limit = memory["needed"], memory["limit"]
  slices = f"{cell.num_slices} x " if cell.num_slices > 1 else ""
  cells = [
    cell.size,
    f"{slices}{cell.topology}",
    str(report["chips"]),
    cell.preset,
    str(cell.forests),
    cell.remat,
    "yes" if report["fits"] else "**no**",
    f"{needed / _GIB:.1f} of {limit / _GIB:.1f}"
    if needed
    else f"- of {limit / _GIB:.1f}",
  ]
  if not report["fits"]:
    return [*cells, "-", "-", "-", "-"]
  messages = "; ".join(
    f"{m['kind']}{' over DCN' if m['network'] == 'DCN' else ''} {m['count']:,},"
    f" {m['bytes'] / 1e9:.1f}"
    for m in report["messages"]
    if m["bytes"] >= 5e7
  )
  return [
    *cells,
    f"{1e3 * report['step_seconds']:,.0f}",
    f"{report['comments_per_second_per_chip']:,.0f}",
    f"{report['utilization']:.0%}",
    messages or "-",
  ]


def main(argv: Sequence[str] | None = None) -> int:
  """Compiles what is not yet known and writes the table."""
  parser = argparse.ArgumentParser(
    prog=_COMMAND,
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--output", default="docs/aot.md", metavar="FILE")
  parser.add_argument(
    "--results",
    default="docs/aot.jsonl",
    metavar="FILE",
    help="what is known already; delete it to start anew",
  )
  parser.add_argument(
    "--minutes", type=float, help="start no row after so long; all rows if not given"
  )
  arguments = parser.parse_args(argv)
  os.environ["JAX_PLATFORMS"] = "cpu"
  from commentree.launch.compiling import compile_job

  path, versions = pathlib.Path(arguments.results), compile_job.versions()
  results = read_results(path, versions)
  started = time.monotonic()
  missing = [cell for cell in CELLS if cell not in results]
  for number, cell in enumerate(missing, start=1):
    minutes = (time.monotonic() - started) / 60
    if arguments.minutes is not None and minutes > arguments.minutes:
      print(f"{len(missing) - number + 1} rows left for another run", file=sys.stderr)
      break
    began = time.monotonic()
    print(
      f"row {number} of {len(missing)}: {cell.size} on {cell.topology} …",
      file=sys.stderr,
      flush=True,
    )
    report = compile_cell(cell)
    results[cell] = report
    row = {"cell": dataclasses.asdict(cell), "versions": versions, "report": report}
    with path.open("a") as file:
      file.write(json.dumps(row) + "\n")
    print(f"  {time.monotonic() - began:,.0f} s", file=sys.stderr, flush=True)
  if not results:
    raise UserError(f"--minutes={arguments.minutes}: too short for any row")
  output = pathlib.Path(arguments.output)
  output.write_text(render(results, versions, forest_in_words()))
  print(f"wrote {output}", file=sys.stderr)
  return 0


if __name__ == "__main__":
  from commentree.launch.main import run_verb

  sys.exit(run_verb(main, sys.argv[1:]))
