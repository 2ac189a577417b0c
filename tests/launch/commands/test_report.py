"""`commentree report`: a run as one page."""

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from commentree.launch.main import main
from commentree.launch.reports.svg_chart import Point, Series, chart


def evaluation(step, true=5.0, gain=0.25, error=0.01):
  def found(loss, **more):
    slices = {"10+": {"loss": loss, "accuracy": 0.1, "tokens": 9, **more}}
    return {
      "loss": loss,
      "accuracy": 0.1,
      "tokens": 9,
      "by_occurrence": {},
      "by_frequency": {},
      "by_depth": slices,
      "by_group": {},
      **more,
    }

  paired = {"minus_true": gain, "standard_error": error, "trees": 7}
  results = {"true": found(true), "shuffled": found(true + gain, **paired)}
  return {"kind": "eval", "step": step, "dataset": "held_out", "results": results}


def train(step, loss=6.0):
  return {
    "kind": "train",
    "step": step,
    "loss": loss,
    "gradient_norm": 1.0,
    "learning_rate": 0.001,
    "comments": 4,
  }


SPEED = {
  "kind": "speed",
  "step": 2,
  "comments_per_second": 3.5,
  "non_padding_encoder": 0.9,
  "non_padding_decoder": 0.8,
  "seconds": {"step": 3.0, "input": 1.0},
}


@pytest.fixture
def report(tmp_path, capsys):
  """Writes rows of a run and returns what its page says."""

  def report_(*rows, name="a <run>", tail=""):
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines + tail)
    (folder / "config.gin").write_text("X = '<b>'\n")
    page = tmp_path / "page.html"
    assert main(["report", f"--model_dir={folder}", f"--html={page}"]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    return page.read_text()

  return report_


def charts(page):
  return [ElementTree.fromstring(found) for found in re.findall(
    r'<svg viewBox="0 0 560.*?</svg>', page, re.DOTALL
  )]  # fmt: skip


def test_the_page_says_whether_ancestors_help_and_draws_every_condition(report):
  page = report(train(1), evaluation(1, 5.5), train(2), evaluation(2, 5.0), SPEED)
  assert "ancestors save 0.250 ± 0.010 nats a token (7 trees" in page
  losses, differences, *_ = charts(page)
  lines = [path.get("d") for path in losses.iter("path")]
  assert len(lines) == 2
  assert all(line.count("L") == 1 for line in lines)
  titles = [title.text for title in losses.iter("title")]
  assert titles == ["1: 5.5", "2: 5", "1: 5.75", "2: 5.25"]
  told = [title.text for title in differences.iter("title")]
  assert told == ["1: 0.25 ± 0.01", "2: 0.25 ± 0.01"]
  assert sum("band" in path.get("class") for path in differences.iter("path")) == 1
  assert "<td>depth 10+</td>" in page
  assert "<td>+0.250 ± 0.010</td>" in page
  assert "training steps 75.0%, waiting for input 25.0%" in page


def test_nothing_that_a_run_holds_is_markup_and_no_script_runs(report):
  page = report(train(1), evaluation(1))
  assert "<script" not in page
  assert "default-src &#x27;none&#x27;" in page or "default-src 'none'" in page
  assert "<run>" not in page
  assert "a &lt;run&gt;" in page
  assert "&lt;b&gt;" in page


def test_a_run_that_is_still_going_or_was_killed_is_shown(report):
  page = report(train(1), tail='{"kind": "train", "st')
  assert "None yet (EVAL_PERIOD says how often)" in page
  assert "at step 1" in page


def test_steps_trained_again_after_a_stop_count_once(report):
  page = report(
    {"kind": "start", "step": 1, "seconds": {}},
    train(1, 9.0),
    {"kind": "start", "step": 1, "seconds": {}},
    train(1, 7.0),
    train(2, 6.0),
  )
  assert [title.text for title in charts(page)[0].iter("title")] == ["1: 7", "2: 6"]
  assert "started 2 times" in page


def test_a_loss_that_is_not_finite_leaves_a_gap(report):
  diverged = evaluation(2)
  diverged["results"]["true"]["loss"] = None
  page = report(train(1, None), train(2), evaluation(1), diverged)
  assert "<td>nan</td>" in page
  titles = [title.text for title in charts(page)[0].iter("title")]
  assert titles == ["1: 5", "1: 5.25", "2: 5.25"]


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("no json\n", "metrics.jsonl:1: not a row of metrics"),
    ("", "no metrics yet"),
    ('{"kind": "eval", "step": 1}\n', "metrics.jsonl: has rows that are not as a run"),
    ('{"kind": "train", "step": 1, "loss": "x"}\n', "has rows that are not as a run"),
    (None, "No such file or directory; give the MODEL_DIR of a run"),
  ],
)
def test_what_is_no_run_is_one_line(tmp_path, capsys, content, message):
  if content is not None:
    (tmp_path / "metrics.jsonl").write_text(content)
  page = tmp_path / "page.html"
  assert main(["report", f"--model_dir={tmp_path}", f"--html={page}"]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert message in line
  assert not page.exists()


def test_a_page_that_cannot_be_written_is_one_line(tmp_path, capsys):
  (tmp_path / "metrics.jsonl").write_text(json.dumps(train(1)) + "\n")
  (tmp_path / "file").write_text("")
  page = tmp_path / "file" / "page.html"
  assert main(["report", f"--model_dir={tmp_path}", f"--html={page}"]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(f"commentree: --html={page}: cannot be written")


def test_a_chart_has_round_ticks_and_all_its_points_inside():
  points = [Point(step, 3.0 + step / 7) for step in range(0, 101, 10)]
  (figure,) = charts(chart([Series("x", points)], "y", zero=True))
  ticks = [
    float(text.text) for text in figure.iter("text") if text.get("class") == "tick"
  ]
  assert ticks[:4] == [0.0, 5.0, 10.0, 15.0]
  for circle in figure.iter("circle"):
    assert 76 <= float(circle.get("cx")) <= 546
    assert 12 <= float(circle.get("cy")) <= 256


def test_a_chart_of_one_point_or_of_equal_ones_is_drawn():
  assert charts(chart([Series("x", [Point(1, 0.0)])], "y"))
  assert charts(chart([Series("x", [Point(1, 2.0), Point(2, 2.0)])], "y"))
  assert chart([Series("x", [Point(1, float("nan"))])], "y") == ""


def test_a_chart_of_huge_or_of_nearly_equal_numbers_is_drawn():
  huge = [Point(1, 1e308), Point(2, -1e299), Point(3, 1e299)]
  (figure,) = charts(chart([Series("x", huge)], "y"))
  assert len(list(figure.iter("circle"))) == 2
  assert charts(chart([Series("x", [Point(10**18, 1.0), Point(10**18 + 1, 1.0)])], "y"))


def test_losses_of_numbers_are_drawn_in_their_unit(report):
  row = evaluation(2)
  for found in row["results"].values():
    del found["accuracy"]
    found |= {"r2": 0.5, "pearson": 0.75, "pairwise_accuracy": None, "pairs": 0}
  page = report(train(1), row)
  assert "training loss, squared error" in page
  assert "how much worse, squared error" in page
  assert "squared error a comment" in page
  assert "0.750" in page
  assert ", nats" not in page
