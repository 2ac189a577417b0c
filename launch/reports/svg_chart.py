"""Charts as SVG: lines over steps with bands of error, in the colours of a page.

Colours are CSS variables (`--series-0` …), so that a page in the dark has its own.
Lines differ by dashes too, for those who do not tell colours apart.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence

_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 14, 12, 44
_TICKS = 5
_DASHES = ("", "7 4", "2 3", "9 3 2 3", "5 2", "1 2")
_TOO_LARGE = 1e300
_LEAST_DIFFERENCE = 1e-12  # of two heights, relative to them; floats tell no less
_MOST_MARKERS = 60  # of a line; longer ones have none
_ROOM = 0.06  # of the heights, above and below
NUMBER_OF_SERIES = len(_DASHES)


@dataclasses.dataclass(frozen=True)
class Point:
  """A point of a line.

  Attributes:
    x: such as a step.
    y: a value.
    error: standard error of `y`; None for no band.
  """

  x: float
  y: float
  error: float | None = None


@dataclasses.dataclass(frozen=True)
class Series:
  """A line.

  Attributes:
    label: its name in the legend.
    points: in the order of `x`; those that are not finite, or too large for a
      difference of two to be, are left out.
  """

  label: str
  points: Sequence[Point]

  def finite(self) -> list[Point]:
    """Returns the points that can be drawn."""
    return [p for p in self.points if abs(p.x) < _TOO_LARGE and abs(p.y) < _TOO_LARGE]


def chart(
  series: Sequence[Series], y_label: str, x_label: str = "step", *, zero: bool = False
) -> str:
  """Returns a figure with its legend; "" if no series has a point.

  Args:
    series: at most `NUMBER_OF_SERIES` lines.
    y_label: what the height is, with its unit.
    x_label: what the other axis is.
    zero: whether 0 is shown, by a line.
  """
  lines = [each for each in series if each.finite()]
  if not lines:
    return ""
  points = [point for line in lines for point in line.finite()]
  heights = [p.y + sign * (p.error or 0.0) for p in points for sign in (-1, 1)]
  if zero:
    heights.append(0.0)
  xs = _Scale([p.x for p in points], _LEFT, _WIDTH - _RIGHT, 0.0)
  ys = _Scale(heights, _HEIGHT - _BOTTOM, _TOP, _ROOM)
  parts = [_grid(xs, ys, x_label, y_label)]
  if zero:
    y = f"{ys(0.0):.1f}"
    parts.append(
      f'<line class="zero" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
    )
  for number, line in enumerate(lines):
    parts.append(_line(number, line.finite(), xs, ys))
  legend = "".join(
    f'<li><svg viewBox="0 0 26 8" aria-hidden="true"><path class="s{number}"'
    f' stroke-dasharray="{_DASHES[number % len(_DASHES)]}" d="M0 4H26"/></svg>'
    f"{html.escape(line.label)}</li>"
    for number, line in enumerate(lines)
  )
  return (
    f'<figure class="chart"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
    f' aria-label="{html.escape(y_label)} by {html.escape(x_label)}">'
    f'{"".join(parts)}</svg><ul class="legend">{legend}</ul></figure>\n'
  )


class _Scale:
  """Places of values on an axis, and its ticks."""

  def __init__(self, values: Sequence[float], start: float, end: float, room: float):
    low, high = float(min(values)), float(max(values))
    if high - low <= abs(low) * _LEAST_DIFFERENCE:
      low, high = low - (abs(low) or 1.0) * 0.1, high + (abs(high) or 1.0) * 0.1
    margin = (high - low) * room
    self._low, self._high = low - margin, high + margin
    self._start, self._end = start, end
    self.ticks = _round_numbers(self._low, self._high)

  def __call__(self, value: float) -> float:
    share = (value - self._low) / (self._high - self._low)
    return self._start + share * (self._end - self._start)


def _round_numbers(low: float, high: float) -> list[float]:
  """Some round numbers between two others: multiples of 1, 2 or 5 by a power of 10."""
  rough = (high - low) / _TICKS
  power = 10.0 ** math.floor(math.log10(rough))
  step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
  first = math.ceil(low / step)
  count = math.floor(high / step) - first + 1
  return [(first + number) * step for number in range(count)]


def _grid(xs: _Scale, ys: _Scale, x_label: str, y_label: str) -> str:
  parts: list[str] = []
  for tick in ys.ticks:
    y = f"{ys(tick):.1f}"
    parts.append(
      f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
      f'<text class="tick" x="{_LEFT - 8}" y="{y}" dy="0.35em" text-anchor="end">'
      f"{_short(tick)}</text>"
    )
  for tick in xs.ticks:
    parts.append(
      f'<text class="tick" x="{xs(tick):.1f}" y="{_HEIGHT - _BOTTOM + 18}"'
      f' text-anchor="middle">{_short(tick)}</text>'
    )
  middle = (_TOP + _HEIGHT - _BOTTOM) / 2
  parts.append(
    f'<text class="axis" x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 5}"'
    f' text-anchor="middle">{html.escape(x_label)}</text>'
    f'<text class="axis" transform="translate(13 {middle}) rotate(-90)"'
    f' text-anchor="middle">{html.escape(y_label)}</text>'
  )
  return "".join(parts)


def _line(number: int, points: Sequence[Point], xs: _Scale, ys: _Scale) -> str:
  name = f"s{number % NUMBER_OF_SERIES}"
  parts: list[str] = []
  banded = [p for p in points if p.error]
  if len(banded) > 1:
    above = [f"{xs(p.x):.1f} {ys(p.y + (p.error or 0)):.1f}" for p in banded]
    below = [f"{xs(p.x):.1f} {ys(p.y - (p.error or 0)):.1f}" for p in reversed(banded)]
    parts.append(f'<path class="band {name}" d="M{"L".join([*above, *below])}Z"/>')
  places = [f"{xs(p.x):.1f} {ys(p.y):.1f}" for p in points]
  dashes = _DASHES[number % len(_DASHES)]
  parts.append(
    f'<path class="line {name}" stroke-dasharray="{dashes}" d="M{"L".join(places)}"/>'
  )
  if len(points) <= _MOST_MARKERS:
    for point, place in zip(points, places):
      x, y = place.split()
      error = "" if point.error is None else f" ± {point.error:.3g}"
      parts.append(
        f'<circle class="{name}" cx="{x}" cy="{y}" r="2.6">'
        f"<title>{_short(point.x)}: {point.y:.4g}{error}</title></circle>"
      )
  return "".join(parts)


def _short(value: float) -> str:
  """A number without needless digits; thousands as `12k`."""
  if value and abs(value) >= 10_000 and value % 1_000 == 0:
    return f"{value / 1_000:g}k"
  return f"{value:.4g}" if abs(value) < 1e6 else f"{value:.3g}"
