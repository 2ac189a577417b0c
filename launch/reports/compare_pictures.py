"""Pictures of what `commentree compare` compares, over the steps of training."""

from __future__ import annotations

import io
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from commentree.errors import UserError

if TYPE_CHECKING:
  from commentree.launch.reports.comparison import Row, Value

_INCHES = (9.0, 3.6)
# Told apart without colour too (Okabe and Ito's colours).
_STYLES = (
  ("#0072b2", "o", "-"),
  ("#d55e00", "s", "--"),
  ("#009e73", "^", "-."),
  ("#cc79a7", "D", ":"),
  ("#e69f00", "v", "-"),
  ("#56b4e9", "P", "--"),
  ("#000000", "X", "-."),
)


def draw(curves: Mapping[str, Sequence[Row]], path: str) -> None:
  """Draws held-out loss, and what the content of ancestors is worth, by step.

  Bars are standard errors: over runs, or over held-out trees where there is one run.

  Args:
    curves: by label, the evaluations of a model in the order of their steps.
    path: of the file, `.svg`, `.pdf` or `.png`.

  Raises:
    UserError: if Matplotlib is missing, or the file cannot be written.
  """
  kind = pathlib.Path(path).suffix.removeprefix(".")
  if kind not in ("svg", "pdf", "png"):
    raise UserError(f"--picture={path}: the name must end in .svg, .pdf or .png")
  try:
    import matplotlib
    from matplotlib.figure import Figure
  except ImportError:
    raise UserError(
      f"--picture={path}: needs Matplotlib, which the extra `pictures` brings:"
      " pip install 'commentree[pictures]' (from a checkout, pip install -e"
      " '.[pictures]')"
    ) from None
  # The same runs make the same file.
  with matplotlib.rc_context({"svg.hashsalt": "commentree", "svg.fonttype": "none"}):
    figure = Figure(figsize=_INCHES, layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (label, rows) in enumerate(curves.items()):
      look = _look(number, label)
      _curve(left, [(row.steps[0], row.loss()) for row in rows], look)
      _curve(right, [(row.steps[0], row.minus_true("shuffled")) for row in rows], look)
    units = [r.results[0]["true"].unit[0] for rows in curves.values() for r in rows]
    unit = units[0] if units else "nats a token"
    left.set_ylabel(f"held-out loss, {unit}")
    right.set_ylabel(f"shuffled − true, {unit}")
    right.axhline(0, color="#888888", linewidth=0.8)
    for axes in (left, right):
      axes.set_xlabel("step")
      axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, fontsize="small")
    drawn = io.BytesIO()
    figure.savefig(drawn, format=kind, metadata=_undated(kind))
  try:
    pathlib.Path(path).write_bytes(drawn.getvalue())
  except OSError as error:
    raise UserError(f"--picture={path}: {error.strerror}") from None


def _look(number: int, label: str) -> dict[str, Any]:
  color, marker, line = _STYLES[number % len(_STYLES)]
  return {
    "color": color,
    "marker": marker,
    "linestyle": line,
    "label": label,
    "markersize": 4,
    "capsize": 2,
    "linewidth": 1.3,
  }


def _curve(
  axes: Any, points: Sequence[tuple[int, Value | None]], look: Mapping[str, Any]
) -> None:
  told = [(step, value) for step, value in points if value is not None]
  told = [(step, value) for step, value in told if math.isfinite(value.mean)]
  if told:
    axes.errorbar(
      [step for step, _ in told],
      [value.mean for _, value in told],
      yerr=[value.error or 0.0 for _, value in told],
      **look,
    )


def _undated(kind: str) -> dict[str, None]:
  return {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
