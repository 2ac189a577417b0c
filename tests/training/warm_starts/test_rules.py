"""Which array a parameter comes from, and that everything is accounted for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from commentree.errors import UserError
from commentree.training.warm_starts import apply, rules, transforms
from commentree.training.warm_starts.formats import array_source
from commentree.training.warm_starts.formats.array_source import ArraySpec
from commentree.training.warm_starts.rules import Rule

F32 = np.dtype(np.float32)


class InMemory:
  """Arrays that were never in a file."""

  path, kind = epath.Path("/memory"), "arrays in memory"

  def __init__(self, arrays):
    self.values = {name: np.asarray(a) for name, a in arrays.items()}
    self.arrays = {n: ArraySpec(a.shape, a.dtype) for n, a in self.values.items()}

  def read(self, name, index):
    assert all(s.start is not None and s.stop is not None for s in index)
    return self.values[name][index]

  def check(self):
    return []


def counted(*shape):
  return np.arange(1, math.prod(shape) + 1, dtype=np.float32).reshape(shape)


def specs(**shapes):
  return {
    name.replace("__", "."): ArraySpec(shape, F32) for name, shape in shapes.items()
  }


def loaded(target, arrays, assignment, own=()):
  """Returns each parameter as the plan would fill it, but for what is grown."""
  source = InMemory(arrays)
  plan = rules.plan(target, source, assignment, own)
  return plan, {
    line.parameter: apply.read_part(line, source, array_source.whole(line.spec.shape))
    for line in plan.of("loaded", "grown")
  }


# From a text and an array to what NumPy makes of it.
ORACLES = {
  "": lambda a: a,
  "transpose": lambda a: a.T,
  "rows:2:": lambda a: a[2:],
  "rows:1:3": lambda a: a[1:3],
  "part:1/3": lambda a: np.split(a, 3)[1],
  "part:1:0/2": lambda a: np.split(a, 2, axis=1)[0],
  "scale:0.5": lambda a: a * np.float32(0.5),
  "rows:1:, transpose": lambda a: a[1:].T,
  "transpose, part:2/3": lambda a: np.split(a.T, 3)[2],
  "part:2/3, scale:2, transpose": lambda a: 2 * np.split(a, 3)[2].T,
  "reshape": lambda a: a.reshape(3, 2, 2, 6),
  "rows:1:5, reshape": lambda a: a[1:5].reshape(4, 2, 3, 2),
}


@settings(max_examples=150)
@given(st.data())
def test_a_part_of_what_is_made_is_made_of_that_part(data):
  text = data.draw(st.sampled_from(sorted(ORACLES)))
  array = counted(6, 12)
  expected = ORACLES[text](array)
  chain = transforms.parse(text, expected.shape)
  assert chain.shape(array.shape) == expected.shape
  bounds = [
    sorted(data.draw(st.tuples(*2 * [st.integers(0, n)]))) for n in expected.shape
  ]
  index = tuple(slice(*bound) for bound in bounds)
  if all(s.stop > s.start for s in index):
    read = chain.read(lambda i: array[i], index, array.shape)
    np.testing.assert_array_equal(read, expected[index])


@settings(max_examples=60)
@given(st.data())
def test_reshaping_reads_few_rows_more_than_those_that_are_wanted(data):
  chain = transforms.parse("reshape", (8, 4, 6))
  start = data.draw(st.integers(0, 7))
  stop = data.draw(st.integers(start + 1, 8))
  asked = []

  def read(index):
    asked.append(index)
    return counted(16, 12)[index]

  index = (slice(start, stop), slice(1, 3), slice(0, 6))
  part = chain.read(read, index, (16, 12))
  np.testing.assert_array_equal(part, counted(8, 4, 6)[index])
  assert array_source.extent(asked[0])[0] <= 2 * (stop - start)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("transposed", "'transposed' is none of transpose, reshape"),
    ("rows:a:", "'rows:a:' is none of"),
    ("part:3/3", "'part:3/3' is none of"),
    ("grow:0, transpose", "'grow:0' must come last"),
    ("reshape, transpose", "'reshape' must come last"),
  ],
)
def test_an_operation_that_there_is_not_is_named(text, message):
  with pytest.raises(UserError, match=message):
    loaded(specs(w=(2, 3)), {"x": counted(2, 3)}, [Rule("w", "x", text)])


def test_the_first_rule_that_matches_counts_and_the_users_come_first():
  arrays = {"x": counted(2, 2), "y": 10 * counted(2, 2)}
  _, read = loaded(specs(w=(2, 2)), arrays, [Rule("w", "x"), Rule("w", "y")])
  np.testing.assert_array_equal(read["w"], arrays["x"])
  own = [Rule("w", "y", "transpose")]
  _, read = loaded(specs(w=(2, 2)), arrays, [Rule("w", "x")], own)
  np.testing.assert_array_equal(read["w"], arrays["y"].T)


def test_groups_of_the_expression_stand_in_the_arrays_name():
  arrays = {f"bert.{i}.{part}": counted(2) * (i + 1) for i in (0, 1) for part in "qk"}
  target = specs(layers_0__q=(2,), layers_1__q=(2,), layers_0__k=(2,), layers_1__k=(2,))
  _, read = loaded(
    target, arrays, [Rule(r"layers_(\d+)\.(?P<part>.)", r"bert.\1.\g<part>")]
  )
  for name, values in read.items():
    np.testing.assert_array_equal(values, counted(2) * (int(name[7]) + 1))


def test_stacked_layers_come_layer_by_layer_in_order():
  arrays = {f"h.{i}.w": counted(3, 2) + 100 * i for i in range(12)}
  target = specs(stack__layers__w=(12, 2, 3))
  rule = Rule(r"stack\.layers_(\d+)\.w", r"h.\1.w", "transpose")
  plan, read = loaded(target, arrays, [rule])
  expected = np.stack([arrays[f"h.{i}.w"].T for i in range(12)])
  np.testing.assert_array_equal(read["stack.layers.w"], expected)
  (line,) = plan.lines
  index = (slice(5, 7), slice(1, 2), slice(0, 3))
  part = apply.read_part(line, InMemory(arrays), index)
  np.testing.assert_array_equal(part, expected[index])


def test_a_stack_in_the_file_comes_apart_along_either_axis():
  for axis in (0, 1):
    stack = counted(4, 4, 4)
    source = array_source.Unstacked(
      InMemory({"s.w": stack, "s.b": counted(4)}),
      lambda name: (f"s_{{}}.{name[2:]}", axis) if name == "s.w" else None,  # noqa: B023
    )
    assert list(source.arrays) == ["s_0.w", "s_1.w", "s_2.w", "s_3.w", "s.b"]
    for layer in range(4):
      part = source.read(f"s_{layer}.w", (slice(1, 3), slice(0, 4)))
      np.testing.assert_array_equal(part, stack.take(layer, axis)[1:3])


def test_every_parameter_and_every_array_has_a_line():
  arrays = {
    "target.a.layers_0.w": counted(2),
    "target.a.layers_1.w": counted(2),
    "target.table": counted(3, 2),
    "target.old_head": counted(7),
    "state.step": counted(),
    "state.param_states.a": counted(2),
  }
  target = specs(a__layers_0__w=(2,), a__layers_1__w=(2,), table=(5, 2), new=(4,))
  assignment = [Rule("table", "target.table", "grow:0"), Rule(".*", r"target.\g<0>?")]
  plan, _ = loaded(target, arrays, assignment)
  assert {line.parameter: line.fate for line in plan.lines} == {
    "a.layers_0.w": "loaded",
    "a.layers_1.w": "loaded",
    "table": "grown",
    "new": "fresh",
  }
  assert plan.unused == ("target.old_head",)
  assert plan.left_behind == 2
  report = [" ".join(line.split()) for line in plan.report()]
  assert report == [
    "a.layers_{0-1}.w 2 from target.a.layers_{0-1}.w",
    "table 5 x 2 from target.table: grown from 3, what is new is their mean",
    "new 4 fresh",
    "unused: target.old_head",
    "left behind: optimizer state and step, 2 arrays",
  ]
  assert "2 loaded (4 numbers), 1 grown (10 numbers), 1 fresh (4" in plan.summary()
  assert "arrays unused: 1" in plan.summary()
  assert plan.to_json() == {
    "path": "/memory",
    "kind": "arrays in memory",
    "loaded": 2,
    "grown": ["table"],
    "fresh": ["new"],
    "zero": [],
    "unused": ["target.old_head"],
    "optimizer_arrays_left_behind": 2,
  }


def test_all_that_does_not_fit_is_told_at_once_in_one_line():
  arrays = {
    "x.layers_0.w": counted(2, 3),
    "x.layers_1.w": counted(2, 3),
    "y": counted(5),
    "ids": np.arange(4),
  }
  target = specs(
    layers_0__w=(3, 3), layers_1__w=(3, 3), y=(6,), ids=(4,), gone=(1,), stray=(1,)
  )
  assignment = [Rule(r"layers.*", r"x.\g<0>"), Rule("y|ids|gone", r"\g<0>")]
  with pytest.raises(UserError) as raised:
    loaded(target, arrays, assignment)
  message = str(raised.value)
  for part in (
    "6 parameters do not fit",
    "layers_{0-1}.w: has shape (2, 3) there, (3, 3) here",
    "y: has shape (5,) there, (6,) here",
    "ids: is int64 there",
    "gone: is not there",
    "stray: no rule says where it comes from",
  ):
    assert part in message
  assert "\n" not in message


def test_a_stack_of_which_some_layers_are_there_does_not_fit():
  target = specs(layers__w=(2, 3))
  with pytest.raises(UserError, match="only some of its layers are there"):
    loaded(target, {"layers_0.w": counted(3)}, [Rule(".*", r"\g<0>?")])


def test_an_array_that_is_longer_does_not_fit_a_rule_that_allows_for_growth():
  with pytest.raises(UserError, match=r"has shape \(4, 2\) there, \(3, 2\) here"):
    loaded(specs(t=(3, 2)), {"t": counted(4, 2)}, [Rule("t", "t", "grow:0")])


def test_what_is_cut_takes_the_first_and_says_so():
  plan, read = loaded(specs(t=(3, 2)), {"t": counted(4, 2)}, [Rule("t", "t", "cut:0")])
  np.testing.assert_array_equal(read["t"], counted(4, 2)[:3])
  assert "cut from 4" in plan.report()[0]


def test_no_more_is_cut_than_a_rule_allows():
  arrays = {"t": counted(9, 2)}
  for rows, fits in ((11, True), (7, True), (6, False)):
    rule = Rule("t", "t", "grow:0, cut:0:2")
    if fits:
      plan, _ = loaded(specs(t=(rows, 2)), arrays, [rule])
      assert ("cut from 9" if rows < 9 else "grown from 9") in plan.report()[0]
    else:
      with pytest.raises(UserError, match=r"has shape \(9, 2\) there, \(6, 2\) here"):
        loaded(specs(t=(rows, 2)), arrays, [rule])


@pytest.mark.parametrize(
  ("own", "message"),
  [
    ([Rule("nothing", "x")], "'nothing' matches no parameter"),
    ([Rule("w(", "x")], r"'w\(' is no regular expression"),
    ([Rule("w", r"\3")], "the rule for 'w' cannot be read"),
  ],
)
def test_a_users_rule_that_does_nothing_or_cannot_be_read_is_named(own, message):
  with pytest.raises(UserError, match=message):
    loaded(specs(w=(1,)), {"x": counted(1)}, [Rule("w", "x")], own)


def test_a_source_of_which_nothing_is_taken_is_none():
  with pytest.raises(UserError, match="holds no array that a parameter could come"):
    loaded(specs(w=(1,)), {"x": counted(1)}, [Rule(".*", r"\g<0>?")])


def test_what_no_array_is_for_is_0_where_a_rule_says_so():
  arrays = {"x": counted(2), "layers_0.v": counted(2)}
  target = specs(w=(2,), x=(2,), y=(2, 3), z=(1,), layers__u=(2, 3))
  assignment = [
    Rule("w", "gone?", "transpose, zeros"),
    Rule("x", "x?", "zeros"),
    Rule("z", None),
    Rule("y|layers.*", None, "zeros"),
  ]
  plan, read = loaded(target, arrays, assignment)
  read_counts = {line.parameter: line.fate for line in plan.lines}
  zero = dict.fromkeys(("w", "y", "layers.u"), "zero")
  assert read_counts == zero | {"x": "loaded", "z": "fresh"}
  np.testing.assert_array_equal(read["x"], counted(2))
  assert plan.fresh() == ["w", "y", "z", "layers.u"]
  assert set(rules.fresh_of(plan.to_json())) == set(plan.fresh())
  assert "fresh, at 0" in plan.report()[0]
  assert "1 fresh (1 numbers), 3 fresh at 0 (14 numbers)" in plan.summary()


def test_layers_of_one_stack_start_in_one_way():
  assignment = [Rule(r"layers_0.*", None, "zeros"), Rule(".*", None)]
  with pytest.raises(UserError, match="some of its layers are 0 and others drawn"):
    loaded(specs(layers__u=(2, 3)), {"x": counted(2)}, assignment)


def test_names_of_many_layers_are_told_as_one():
  names = [f"encoder.layers_{i}.w" for i in (0, 1, 2, 5)] + ["encoder.norm"]
  assert rules.collapsed(names) == ["encoder.layers_{0-2,5}.w", "encoder.norm"]
  assert rules.expanded(rules.collapsed(names)) == names
  hugging_face = [f"block.{i}.layer.0.q" for i in range(3)]
  assert rules.collapsed(hugging_face) == ["block.{0-2}.layer.0.q"]
  assert rules.collapsed(["wi_0", "wi_1"]) == ["wi_0", "wi_1"]
