from __future__ import annotations

import numpy as np

from commentree.training.reports.metrics_log import MetricsLog, read


def test_a_restart_drops_later_rows_and_a_line_cut_short(tmp_path):
  file = tmp_path / "metrics.jsonl"
  log = MetricsLog(file, 0)
  for step in range(1, 6):
    log.write({"kind": "train", "step": step})
  log.close()
  with file.open("a") as stream:
    stream.write('{"kind":"train","step":')
  log = MetricsLog(file, 3)
  log.write({"kind": "train", "step": 4})
  log.close()
  assert [row["step"] for row in read(file)] == [1, 2, 3, 4]


def test_a_new_run_starts_an_empty_file(tmp_path):
  file = tmp_path / "metrics.jsonl"
  file.write_text('{"kind":"train","step":1}\n')
  MetricsLog(file, 0).close()
  assert file.read_text() == ""


def test_numbers_keep_every_bit_and_those_that_are_none_are_strings(tmp_path):
  file = tmp_path / "metrics.jsonl"
  log = MetricsLog(file, 0)
  value = float(np.float32(0.1))
  log.write({"kind": "train", "step": 1, "loss": value, "deep": {"x": float("nan")}})
  log.write({"kind": "speed", "step": 1})
  log.close()
  (row,) = read(file, "train")
  assert row["loss"] == value
  assert row["deep"] == {"x": "nan"}


def test_rows_are_on_disk_once_synced(tmp_path):
  log = MetricsLog(tmp_path / "metrics.jsonl", 0)
  log.write({"kind": "train", "step": 1})
  log.sync()
  assert len(read(tmp_path / "metrics.jsonl")) == 1
  log.close()
