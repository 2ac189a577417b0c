"""`commentree compare` reads metrics.jsonl alone, so that rows are written by hand."""

from __future__ import annotations

import json
import math

import pytest

from commentree.launch import main


def write(folder, true, shuffled, *, tokens=100, step=10, dataset="held_out"):
  folder.mkdir(parents=True, exist_ok=True)
  results = {
    "true": {"loss": true, "tokens": tokens},
    "shuffled": {
      "loss": shuffled,
      "tokens": tokens,
      "minus_true": shuffled - true,
      "standard_error": 0.125,
    },
    "bag_own": {"loss": 7.5},
  }
  row = {"kind": "eval", "step": step, "dataset": dataset, "results": results}
  with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
    file.write('{"kind": "train", "step": 1, "loss": 3.0}\n')
    file.write(json.dumps(row) + "\n")
  return str(folder)


def write_results(folder, results, **facts):
  folder.mkdir(parents=True, exist_ok=True)
  row = {"kind": "eval", "step": 10, "dataset": "held_out", "results": results}
  (folder / "metrics.jsonl").write_text(json.dumps({**row, **facts}) + "\n")
  return str(folder)


@pytest.fixture
def compare(capsys):
  def run(*arguments):
    code = main.main(["compare", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err

  return run


def cells(text, label):
  line = next(line for line in text.splitlines() if line.startswith(f"| {label} |"))
  return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_a_run_has_the_standard_error_over_its_trees(tmp_path, compare):
  run = write(tmp_path / "mine", 5.0, 5.5)
  code, out, _ = compare(run)
  assert code == 0
  assert cells(out, "mine") == ["1", "10", "5.0000", "+0.5000 ± 0.1250", "", ""]
  assert cells(out, "bag of the comment's own words") == ["7.5000"]


def test_seeds_of_a_model_are_a_row_with_the_standard_error_over_runs(
  tmp_path, compare
):
  for seed, loss in enumerate((5.0, 5.5, 6.0)):
    write(tmp_path / f"a_{seed}", loss, loss + 0.25)
    write(tmp_path / f"b_{seed}", loss + 1, loss + 1)
  output = tmp_path / "table.md"
  given = [f"{label}={tmp_path}/{label}_*" for label in "ab"]
  code, out, _ = compare(*given, "--against=b", f"--output={output}")
  assert code == 0
  error = 0.5 / math.sqrt(3)
  assert cells(out, "a")[2] == f"5.5000 ± {error:.4f}"
  assert cells(out, "a")[3] == "+0.2500 ± 0.0000"
  assert cells(out, "a")[-1] == "+1.0000 ± 0.0000"
  assert cells(out, "b")[-1] == ""
  assert output.read_text(encoding="utf-8") == out


def test_the_last_evaluation_counts_or_that_of_a_step(tmp_path, compare):
  run = write(tmp_path / "mine", 5.0, 5.5, step=10)
  write(tmp_path / "mine", 4.0, 4.5, step=20)
  write(tmp_path / "mine", 1.0, 1.5, step=30, dataset="other")
  assert cells(compare(run)[1], "mine")[1:3] == ["20", "4.0000"]
  assert cells(compare(run, "--step=10")[1], "mine")[1:3] == ["10", "5.0000"]
  assert cells(compare(run, "--dataset=other")[1], "mine")[2] == "1.0000"


def test_what_cannot_be_compared_is_one_line(tmp_path, compare):
  one = write(tmp_path / "one", 5.0, 5.5)
  two = write(tmp_path / "two", 5.0, 5.5, tokens=99)
  (tmp_path / "empty").mkdir()
  (tmp_path / "empty" / "metrics.jsonl").write_text("")
  (tmp_path / "odd").mkdir()
  (tmp_path / "odd" / "metrics.jsonl").write_text("[1]\n{}\n")
  write_results(tmp_path / "other", {"none": {"loss": 5.0, "tokens": 100}})
  for arguments, told in (
    ([one, two], "not evaluated on the same masked tokens: 99 (two), 100 (one)"),
    ([str(tmp_path / "none")], "give the MODEL_DIR of a run"),
    ([f"a={tmp_path}/none*"], "there is no folder"),
    ([str(tmp_path / "empty")], "no evaluation on 'held_out'; there is none"),
    ([str(tmp_path / "odd")], "metrics.jsonl:1: not a row of metrics"),
    ([str(tmp_path / "other")], "with 'true' in EvalConfig.conditions"),
    ([f"a={one}", "b=abc://bucket/b"], "abc://"),
    ([one, "--output="], "--output=: "),
    ([one, one], "two rows are called 'one'"),
    ([one, "--step=11"], "no evaluation at step 11; there are 10"),
    ([one, "--dataset=x"], "no evaluation on 'x'; there are held_out"),
    ([one, "--against=two"], "no such row; there are 'one'"),
    ([one, f"--output={tmp_path}"], "Is a directory"),
  ):
    code, _, error = compare(*arguments)
    assert code == 2, arguments
    assert told in error, error
    assert len(error.splitlines()) == 1


def test_recall_and_copies_have_columns_where_runs_have_them(tmp_path, compare):
  def recall(share):
    return {"recall_at_1": share, "candidates": 99.6, "pairs": 7}

  plain = {"loss": 5.0, "tokens": 100}
  for seed, share in enumerate((0.25, 0.5)):
    matching = {"vectors": recall(share), "matcher": recall(2 * share)}
    attention = {"copy_share": share, "entropy": 1.0}
    true = {**plain, "reply_matching": matching, "cross_attention": attention}
    write_results(tmp_path / f"a_{seed}", {"true": true})
  one = {**plain, "reply_matching": {"vectors": recall(0.125)}}
  write_results(tmp_path / "b", {"true": one})
  lost = {**plain, "cross_attention": {"copy_share": None}}
  write_results(tmp_path / "c", {"true": lost})
  _, out, _ = compare(f"a={tmp_path}/a_*", *(f"{n}={tmp_path}/{n}" for n in "bc"))
  assert cells(out, "model")[-3:] == ["recall@1", "recall@1, matcher", "copy share"]
  assert cells(out, "a")[-3:] == [
    "0.3750 ± 0.1250",
    "0.7500 ± 0.2500",
    "0.3750 ± 0.1250",
  ]
  assert cells(out, "b")[-3:] == ["0.1250", "", ""]
  assert cells(out, "c")[-3:] == ["", "", ""]
  assert "finds its reply among 100 comments" in out
  assert "recall" not in compare(f"c={tmp_path}/c")[1]


def test_a_line_that_a_kill_cut_off_is_passed_over(tmp_path, compare):
  run = write(tmp_path / "mine", 5.0, 5.5)
  with open(tmp_path / "mine" / "metrics.jsonl", "a", encoding="utf-8") as file:
    file.write('{"kind": "eval", "ste')
  assert cells(compare(run)[1], "mine")[2] == "5.0000"


@pytest.mark.parametrize(
  "row",
  [
    {"results": [1]},
    {"results": None},
    {"results": {"true": []}},
    {"results": {"true": {"loss": 5.0, "tokens": "100"}}},
    {"results": {"true": {"loss": 10**400, "tokens": 100}}},
    {"results": {"true": {"loss": 5.0, "tokens": 100, "minus_true": "x"}}},
    {"results": {"true": {"loss": 5.0, "tokens": 1, "reply_matching": {"vectors": 1}}}},
    {"results": {"true": {"loss": 5.0, "tokens": 1, "cross_attention": [1]}}},
    {"step": float("inf")},
    {"dataset": 1},
  ],
  ids=str,
)
def test_a_row_of_another_shape_is_named(tmp_path, compare, row):
  run = write_results(tmp_path / "mine", **{"results": {}, **row})
  code, _, error = compare(run)
  assert code == 2
  assert error == f"commentree: {run}/metrics.jsonl:1: not a row of metrics\n"


def test_a_loss_that_is_not_finite_is_told_and_not_averaged_away(tmp_path, compare):
  write(tmp_path / "a_0", 5.0, 5.5)
  diverged = {"loss": None, "tokens": 100, "minus_true": None}
  write_results(tmp_path / "a_1", {"true": diverged, "shuffled": diverged})
  write_results(tmp_path / "a_2", {"true": {"loss": math.inf, "tokens": 100}})
  code, out, _ = compare(f"a={tmp_path}/a_*", f"b={tmp_path}/a_1")
  assert code == 0
  assert cells(out, "a")[2:] == cells(out, "b")[2:] == ["nan", "", "", ""]


def test_a_label_stays_in_its_cell(tmp_path, compare):
  run = write(tmp_path / "mine", 5.0, 5.5)
  _, out, _ = compare(f"a\n|\udcff={run}")
  assert "| a \\|\\udcff | 1 |" in out


def test_a_picture_shows_all_models_and_is_the_same_again(tmp_path, compare):
  for step in (10, 20):
    write(tmp_path / "a_0", 5.0 - step / 100, 5.5, step=step)
    write(tmp_path / "b_0", 6.0, 6.0, step=step)
  pictures = [tmp_path / f"{number}.svg" for number in (1, 2)]
  for picture in pictures:
    given = [f"<{label}>={tmp_path}/{label}_*" for label in "ab"]
    code, _, err = compare(*given, f"--picture={picture}")
    assert code == 0, err
  text = pictures[0].read_text(encoding="utf-8")
  assert text.startswith("<?xml")
  for said in ("&lt;a&gt;", "&lt;b&gt;", "held-out loss", "shuffled"):
    assert said in text
  assert text == pictures[1].read_text(encoding="utf-8")


@pytest.mark.parametrize(
  ("name", "said"), [("a.txt", "must end in .svg"), ("no/where.svg", "No such file")]
)
def test_a_picture_that_cannot_be_written_is_said_in_a_line(
  tmp_path, compare, name, said
):
  run = write(tmp_path / "mine", 5.0, 5.5)
  code, _, err = compare(run, f"--picture={tmp_path}/{name}")
  assert code == 2
  assert said in err
  assert len(err.strip().splitlines()) == 1


def test_what_is_saved_is_compared_seed_by_seed(tmp_path, compare):
  for seed, loss in enumerate((5.0, 5.5, 6.0)):
    write(tmp_path / f"a_{seed}", loss, loss)
    write(tmp_path / f"b_{seed}", loss + 0.1 * (seed + 1), loss)
  given = [f"{label}={tmp_path}/{label}_*" for label in "ab"]
  _, out, _ = compare(*given, "--against=b")
  assert cells(out, "a")[-1] == f"+0.2000 ± {0.1 / math.sqrt(3):.4f}"


def test_losses_of_numbers_are_said_in_their_unit_and_compared_with_no_others(
  tmp_path, compare
):
  def numbers(name, **measures):
    found = {"loss": 0.5, "tokens": 100, "pearson": None, "pairs": 0, **measures}
    return write_results(tmp_path / name, {"true": found})

  squared, ranked = numbers("squared", r2=0.25), numbers("ranked")
  said = compare(squared)[1]
  assert "Held-out loss in squared error a comment, over 100 comments." in said
  assert "in nats a comment, over 100 comments." in compare(ranked)[1]
  code, _, error = compare(squared, write(tmp_path / "tokens", 5.0, 5.5))
  assert code == 2
  kinds = "nats a token (tokens), squared error a comment (squared)"
  assert f"the runs' losses are not of one kind: {kinds}" in error
