"""TensorBoard: event files in MODEL_DIR/tensorboard, written without TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etils import epath

from commentree.training.trackers import event_file
from commentree.training.trackers.tracker import TrackedRun


class TensorBoard:
  """Writes event files.

  What is of a condition goes to a folder of its own, which TensorBoard takes for a run:
  it draws equal names of several runs in one chart.
  """

  def __init__(self, folder: epath.Path):
    """Opens the first file.

    Args:
      folder: where they go.
    """
    self._folder = folder
    self._files: dict[str, event_file.EventFile] = {}
    self._file("")

  def log_settings(self, settings: Mapping[str, Any]) -> None:
    """Writes the settings as a table, for the tab of texts."""
    rows = [f"| {name} | `{value!r}` |" for name, value in sorted(settings.items())]
    table = "\n".join(["| setting | value |", "| --- | --- |", *rows])
    self._file("").write_text("settings", table)

  def log_scalars(
    self, step: int, scalars: Mapping[str, float], condition: str | None = None
  ) -> None:
    """Writes the scalars of a step."""
    self._file(condition or "").write(step, scalars)

  def finish(self, exit_code: int) -> None:
    """Writes what is left."""
    del exit_code
    for file in self._files.values():
      file.close()

  def _file(self, condition: str) -> event_file.EventFile:
    if condition not in self._files:
      self._files[condition] = event_file.EventFile(self._folder / condition)
    return self._files[condition]


def open_tracker(run: TrackedRun) -> TensorBoard:
  """Opens the files of a run."""
  return TensorBoard(run.model_dir / "tensorboard")
