"""A run as one page of HTML that needs nothing else: no network, no scripts."""

from __future__ import annotations

import dataclasses
import html
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath
from rich.table import Table

from commentree import local_files
from commentree.errors import UserError
from commentree.launch.reports import comparison, samples
from commentree.launch.reports.samples import Sample
from commentree.launch.reports.svg_chart import Point, Series, chart
from commentree.training.metrics import regression
from commentree.training.reports import evaluation_report

Row = Mapping[str, Any]

_MOST_POINTS = 400  # of a line over all steps of training
_CONDITIONS = ("true", "shuffled", "parent_only", "none")
_BETWEEN = (("shuffled", "shuffled − true"), ("parent_only", "parent_only − true"))
_SECONDS = {
  "step": "training steps",
  "input": "waiting for input",
  "eval": "evaluation",
  "checkpoint": "checkpoints",
  "compile": "compiling",
  "data": "opening data",
  "state": "drawing or restoring the state",
  "imports": "imports",
  "hosts": "waiting for hosts",
}

CSS = (
  """
:root {
  color-scheme: light dark;
  --paper: #faf9f6; --card: #fff; --ink: #23211d; --soft: #6d6a63; --line: #e5e2da;
  --series-0: #0072b2; --series-1: #c44e00; --series-2: #00795a; --series-3: #a8528a;
  --series-4: #9a6b00; --series-5: #2a7fb0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #17181b; --card: #1f2125; --ink: #e6e4df; --soft: #a09d96; --line: #33353b;
    --series-0: #56b4e9; --series-1: #ff9a52; --series-2: #4fd0a5; --series-3: #e79ccb;
    --series-4: #e6b84f; --series-5: #9ad0f5;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
main { max-width: 1180px; margin: 0 auto; padding: 2.2rem 1.2rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 0.6rem; }
p { max-width: 46rem; margin: 0.4rem 0; }
.soft { color: var(--soft); }
.said { font-size: 1.12rem; font-weight: 600; }
.charts {
  display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr));
}
figure {
  margin: 0; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: 0.7rem 0.8rem 0.6rem;
}
.chart > svg { display: block; width: 100%; height: auto; overflow: visible; }
.grid { stroke: var(--line); }
.zero { stroke: var(--soft); stroke-dasharray: 2 2; }
text { fill: var(--soft); font-size: 12px; }
@media (max-width: 600px) { text { font-size: 17px; } }
path.line, .legend path { fill: none; stroke-width: 1.8; }
.legend {
  display: flex; flex-wrap: wrap; gap: 0.1rem 1.2rem; list-style: none;
  margin: 0.3rem 0 0; padding: 0; font-size: 0.85rem; color: var(--soft);
}
.legend svg { width: 26px; height: 8px; margin-right: 0.4em; }
.band { opacity: 0.18; stroke: none; }
"""
  + "".join(
    f"path.s{n} {{ stroke: var(--series-{n}); }}"
    f" circle.s{n}, path.band.s{n} {{ fill: var(--series-{n}); }}\n"
    for n in range(6)
  )
  + """
.scroll { overflow-x: auto; }
table {
  border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 0.6rem 0;
}
caption { text-align: left; color: var(--soft); padding-bottom: 0.3rem; }
th, td { padding: 0.22rem 0.8rem 0.22rem 0; text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
tr.section td { border-top: 1px solid var(--line); }
"""
  + samples.CSS
  + """
.bar { display: flex; height: 1.1rem; border-radius: 5px; overflow: hidden; }
.bar span { display: block; min-width: 1px; }
details { margin: 0.5rem 0; }
summary { cursor: pointer; }
pre { overflow-x: auto; font-size: 0.82rem; background: var(--card); padding: 0.8rem;
  border: 1px solid var(--line); border-radius: 10px; }
@media print { figure, table { break-inside: avoid; } }
"""
  + "".join(
    f".f{n} {{ background: var(--series-{n % 6}); opacity: {1 if n < 6 else 0.5}; }}\n"
    for n in range(len(_SECONDS))
  )
)


@dataclasses.dataclass(frozen=True)
class RunLog:
  """What a run wrote.

  Attributes:
    folder: its MODEL_DIR.
    rows: of metrics.jsonl, by their kinds, in order; of a step that was trained again
      after a stop, the last.
    settings: text of its config.gin; None if there is none.
    samples: comments under its model.
  """

  folder: str
  rows: Mapping[str, Sequence[Row]]
  settings: str | None
  samples: Sequence[Sample] = ()


def read(folder: str) -> RunLog:
  """Reads what a run wrote; no samples.

  Raises:
    UserError: if it has written no metrics, or they are damaged.
  """
  file, listed = comparison.metric_rows(folder)
  rows: dict[str, dict[Any, Row]] = {}
  for number, row in enumerate(listed):
    key = (row["step"], row.get("dataset"), number if row["kind"] == "start" else 0)
    of_kind = rows.setdefault(row["kind"], {})
    of_kind.pop(key, None)
    of_kind[key] = row
  if not rows:
    raise UserError(f"{file}: no metrics yet; the run has not reached a step to log")
  config = epath.Path(folder) / "config.gin"
  try:
    settings = config.read_text()
  except OSError:
    settings = None
  return RunLog(
    folder, {kind: list(found.values()) for kind, found in rows.items()}, settings
  )


def write(log: RunLog, path: str) -> None:
  """Writes the page; it appears whole or not at all.

  Raises:
    UserError: if the file cannot be written, or rows are not as a run writes them.
  """
  try:
    content = page(log).encode("utf-8", "replace")
  except (AttributeError, LookupError, TypeError, ValueError) as error:
    raise UserError(
      f"{log.folder}/metrics.jsonl: has rows that are not as a run writes them"
      f" ({error!r}); take them out"
    ) from error
  try:
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    local_files.write_bytes(path, content, sole_writer=False)
  except OSError as error:
    raise UserError(
      f"--html={path}: cannot be written ({error.strerror}); give another place"
    ) from error


def page(log: RunLog) -> str:
  """Returns the page's HTML."""
  name = pathlib.PurePath(log.folder).name or log.folder
  return "".join(
    [
      '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
      '<meta http-equiv="Content-Security-Policy" content="default-src \'none\';'
      " style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">\n",
      '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
      f"<title>{_escape(name)}: a run of commentree</title>\n",
      f"<style>{CSS}</style>\n</head>\n<body>\n<main>\n",
      *_head(log, name),
      *_evaluations(log),
      *_training(log),
      *(samples.render(log.samples) if log.samples else ()),
      *_speed(log),
      *_settings(log),
      "</main>\n</body>\n</html>\n",
    ]
  )


def _escape(text: str) -> str:
  return html.escape(text)


def _head(log: RunLog, name: str) -> Iterator[str]:
  yield f"<h1>{_escape(name)}</h1>\n"
  steps = [row["step"] for rows in log.rows.values() for row in rows]
  facts = [f"at step {max(steps):,}"]
  starts = len(log.rows.get("start", ()))
  if starts > 1:
    facts.append(f"started {starts} times")
  comments = sum(row.get("comments") or 0 for row in log.rows.get("train", ()))
  if comments:
    facts.append(f"{comments:,} comments in the steps that were logged")
  yield f'<p class="soft">{_escape(log.folder)}: {", ".join(facts)}</p>\n'


def _evaluations(log: RunLog) -> Iterator[str]:
  by_dataset: dict[str, list[Row]] = {}
  for row in log.rows.get("eval", ()):
    by_dataset.setdefault(row["dataset"], []).append(row)
  if not by_dataset:
    yield "<h2>Evaluations</h2><p>None yet (EVAL_PERIOD says how often).</p>\n"
  for dataset, rows in by_dataset.items():
    last = evaluation_report.with_numbers(rows[-1]["results"])
    yield f"<h2>Do ancestors help? ({_escape(dataset)})</h2>\n"
    said = evaluation_report.lines(last)
    unit = regression.unit(next(iter(last.values())))
    for number, line in enumerate(said):
      yield f'<p class="{"soft" if number else "said"}">{_escape(line)}</p>\n'
    yield '<div class="charts">\n'
    yield chart(
      [
        Series(condition, _points(rows, condition, "loss")) for condition in _CONDITIONS
      ],
      f"held-out loss, {unit}",
    )
    yield chart(
      [
        Series(label, _points(rows, condition, "minus_true", "standard_error"))
        for condition, label in _BETWEEN
      ],
      f"how much worse, {unit}",
      zero=True,
    )
    yield "</div>\n"
    yield (
      '<p class="soft">Bands are standard errors over held-out trees. shuffled: the'
      " ancestors of another tree, the control for what ancestors say; none: no"
      " ancestors, which also differs for a model that never learnt to do without."
      "</p>\n"
    )
    title = f"step {rows[-1]['step']:,}"
    for table in (evaluation_report.table(last), evaluation_report.bags_table(last)):
      if table is not None:
        yield _table(table, title)


def _points(
  rows: Sequence[Row], condition: str, name: str, error: str | None = None
) -> list[Point]:
  found: list[Point] = []
  for row in rows:
    result = row["results"].get(condition, {})
    if result.get(name) is not None:
      found.append(
        Point(row["step"], result[name], None if error is None else result.get(error))
      )
  return found


def _table(table: Table, title: str) -> str:
  """A table of Rich's as one of HTML."""
  heads = "".join(f"<th>{_escape(str(c.header))}</th>" for c in table.columns)
  cells = [[str(cell) for cell in column.cells] for column in table.columns]
  lines: list[str] = []
  section = False
  for number, row in enumerate(zip(*cells)):
    content = "".join(f"<td>{_escape(cell)}</td>" for cell in row)
    lines.append(f"<tr{' class=section' if section else ''}>{content}</tr>\n")
    section = table.rows[number].end_section
  caption = " · ".join(str(part) for part in (table.title, title) if part)
  return (
    f'<div class="scroll"><table><caption>{_escape(caption)}</caption><thead><tr>'
    f"{heads}</tr></thead><tbody>\n{''.join(lines)}</tbody></table></div>\n"
  )


def _unit(log: RunLog) -> str:
  """What losses are in, as far as evaluations tell."""
  for row in log.rows.get("eval", ()):
    return regression.unit(next(iter(row["results"].values())))
  return "nats"


def _training(log: RunLog) -> Iterator[str]:
  rows = log.rows.get("train", ())
  if not rows:
    return
  yield '<h2>Training</h2>\n<div class="charts">\n'
  for name, label in (
    ("loss", f"training loss, {_unit(log)}"),
    ("gradient_norm", "norm of the gradients"),
    ("learning_rate", "learning rate"),
  ):
    points = [
      Point(row["step"], row[name]) for row in rows if row.get(name) is not None
    ]
    yield chart([Series(name.replace("_", " "), _thinned(points))], label)
  yield "</div>\n"
  if len(rows) > _MOST_POINTS:
    yield (
      f'<p class="soft">Each point is the mean of about {len(rows) / _MOST_POINTS:.0f}'
      " logged steps.</p>\n"
    )


def _thinned(points: Sequence[Point]) -> list[Point]:
  """Means of stretches, so that there are not too many."""
  size = -(-len(points) // _MOST_POINTS)
  if size <= 1:
    return list(points)
  stretches = [points[start : start + size] for start in range(0, len(points), size)]
  return [
    Point(stretch[-1].x, sum(p.y for p in stretch) / len(stretch))
    for stretch in stretches
  ]


def _speed(log: RunLog) -> Iterator[str]:
  rows = log.rows.get("speed", ())
  if not rows:
    return
  yield '<h2>Speed</h2>\n<div class="charts">\n'
  yield chart(
    [Series("comments", [Point(r["step"], r["comments_per_second"]) for r in rows])],
    "comments a second",
    zero=True,
  )
  yield chart(
    [
      Series(
        f"{stack} rows", [Point(r["step"], r[f"non_padding_{stack}"]) for r in rows]
      )
      for stack in ("encoder", "decoder")
    ],
    "share of positions that hold a token",
  )
  yield "</div>\n"
  total: dict[str, float] = {}
  for kind in ("start", "speed"):
    for row in log.rows.get(kind, ()):
      for part, seconds in row.get("seconds", {}).items():
        total[part] = total.get(part, 0.0) + seconds
  whole = sum(total.values())
  if not whole:
    return
  yield "<p>Where the time went:</p>\n"
  shares = sorted(total.items(), key=lambda item: -item[1])
  places = list(_SECONDS)
  bar = "".join(
    f'<span class="f{places.index(part)}" style="width:{seconds / whole:.2%}"></span>'
    for part, seconds in shares
    if part in _SECONDS
  )
  yield f'<div class="bar" role="img" aria-label="shares of the time">{bar}</div>\n'
  yield "<p class=soft>"
  yield ", ".join(
    f"{_SECONDS.get(part, part)} {seconds / whole:.1%}"
    for part, seconds in shares
    if seconds / whole >= 0.001
  )
  yield f" of {whole / 3600:.2f} hours</p>\n"


def _settings(log: RunLog) -> Iterator[str]:
  if log.settings is not None:
    yield "<h2>Settings</h2>\n<details><summary>config.gin, with which the same run"
    yield f" starts again</summary><pre>{_escape(log.settings)}</pre></details>\n"
