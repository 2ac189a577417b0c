"""Costs read from small HLO texts, written here."""

from __future__ import annotations

import pytest

from commentree.training.tpu_compile import compiled_costs, compiled_report, hlo
from commentree.training.tpu_compile.tpu_chips import CHIPS


def module(body: str, *computations: str) -> str:
  return "\n".join(
    ["HloModule test, is_scheduled=true", *computations, "ENTRY %main () -> f32[] {"]
    + [f"  {line}" for line in body.strip().splitlines()]
    + ["}"]
  )


def costs(text: str, devices: int = 8, slices: int = 1) -> compiled_costs.Costs:
  return compiled_costs.costs_of(hlo.parse(text), devices, slices)


def estimate(cycles: int, **more: str) -> str:
  fields = "".join(f',"{name}":{value}' for name, value in more.items())
  return (
    'backend_config={"flag_configs":[],"window_config":{"output_window_bounds":["1"],'
    f'"estimated_cycles":"{cycles}"}}{fields}}}'
  )


BODY = f"""
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %p = (s32[]{{:T(128)}}, f32[8]{{0:T(128)S(1)}}) parameter(0)
  %x = f32[8]{{0:T(128)}} get-tuple-element(%p), index=1
  %work = f32[8]{{0:T(128)}} fusion(%x), kind=kLoop, calls=%f, {estimate(100)}
  %r = f32[8]{{0}} all-reduce(%work), replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %t = (s32[], f32[8]) tuple(%i, %r)
}}"""
CONDITION = """
%cond (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[]{:T(128)}, f32[8]{0:T(128)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %n = s32[]{:T(128)} constant(24)
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}"""
LOOP = "%w = (s32[], f32[8]) while(%t0), condition=%cond, body=%body"


def test_a_loops_body_counts_as_often_as_its_condition_lets_it():
  found = costs(module(LOOP, BODY, CONDITION))
  assert found.cycles == 2400
  assert [c.times for c in found.collectives] == [24]
  assert found.unknown_loops == 0


def test_the_compilers_own_trip_count_goes_before_the_condition():
  text = LOOP + ', backend_config={"known_trip_count":{"n":"3"},"known_init_step":{}}'
  assert costs(module(text, BODY, CONDITION)).cycles == 300


def test_loops_in_loops_multiply():
  outer = """
%outer (p: (s32[])) -> (s32[]) {
  %start = (s32[], f32[8]) parameter(0)
  ROOT %inner = (s32[], f32[8]) while(%start), condition=%cond, body=%body
}"""
  text = (
    "%w = (s32[], f32[8]) while(%t0), condition=%cond, body=%outer,"
    ' backend_config={"known_trip_count":{"n":"2"}}'
  )
  assert costs(module(text, BODY, CONDITION, outer)).cycles == 2 * 24 * 100


def test_a_condition_inside_a_fusion_is_read():
  condition = """
%compare (a: s32[], b: s32[]) -> pred[] {
  ROOT %lt = pred[] compare(%a, %b), direction=LT
}
%cond (p: (s32[], f32[8])) -> pred[] {
  %n = s32[] constant(5)
  ROOT %f = pred[] fusion(%i, %n), kind=kLoop, calls=%compare
}"""
  assert costs(module(LOOP, BODY, condition)).cycles == 500


def test_a_loop_whose_end_is_not_seen_counts_once_and_is_told():
  condition = """
%cond (p: (s32[], pred[])) -> pred[] {
  ROOT %go = pred[] get-tuple-element(%p), index=1
}"""
  found = costs(module(LOOP, BODY, condition))
  assert found.cycles == 100
  assert found.unknown_loops == 1


def test_of_branches_the_costliest_counts():
  branches = [
    f"%b{i} (p: f32[8]) -> f32[8] {{\n  ROOT %x{i} = f32[8] add(%p, %p),"
    f" {estimate(cycles)}\n}}"
    for i, cycles in enumerate((10, 70))
  ]
  text = "%c = f32[8] conditional(%i, %x, %x), branch_computations={%b0, %b1}"
  assert costs(module(text, *branches)).cycles == 70


def test_the_costliest_operations_come_first_with_their_source():
  text = f"""
%a = f32[8]{{0}} copy(%x), metadata={{op_name="jit(f)/small"}}, {estimate(5)}
%b = f32[8]{{0}} copy(%x), metadata={{op_name="jit(f)/large" stack_frame_id=3}}, {
    estimate(50)
  }
"""
  found = costs(module(text))
  assert [o.source for o in found.operations] == ["jit(f)/large", "jit(f)/small"]


def test_the_layers_of_a_stack_are_one_place():
  text = "\n".join(
    f'%c{i} = f32[8]{{0}} copy(%x), metadata={{op_name="jit(f)/layers_{i}/{what}"}},'
    f" {estimate(cycles)}"
    for i, (what, cycles) in enumerate((("mlp", 30), ("norm", 50), ("mlp", 40)))
  )
  found = compiled_report.costliest_places(costs(module(text)), CHIPS["v5e"], 1.0)
  assert [(c.source, c.times, c.name) for c in found] == [
    ("layers/mlp", 2, "c2"),
    ("layers/norm", 1, "c1"),
  ]
  clock = CHIPS["v5e"].clock_hz
  assert [c.share for c in found] == [70 / clock, 50 / clock]


def gather(name: str, flag: int) -> str:
  """A fusion's part in a message that runs beside others."""
  config = f'"async_collective_fusion_config":{{"flag_start":"{flag}"}}'
  return f"""
%{name} (p: bf16[4,8]) -> bf16[32,8] {{
  %p{name} = bf16[4,8]{{1,0}} parameter(0)
  ROOT %g{name} = bf16[32,8]{{1,0}} all-gather(%p{name}), channel_id=7,\
 replica_groups=[1,8]<=[8], dimensions={{0}}, backend_config={{{config}}}
}}"""


ASYNC = [gather("starts", -1), gather("meanwhile", 2), gather("ends", 2)]


def test_a_message_beside_other_operations_counts_once_and_as_asynchronous():
  text = """
%async-collective-start = (bf16[4,8], bf16[32,8]) fusion(%x), calls=%starts
%fusion.1 = (f32[8], bf16[32,8]) fusion(%y), kind=kOutput, calls=%meanwhile
%async-collective-done = bf16[32,8] fusion(%z), kind=kCustom, calls=%ends
"""
  (message,) = costs(module(text, *ASYNC)).collectives
  assert (message.kind, message.bytes) == ("all-gather", 32 * 8 * 2)
  assert message.asynchronous


def test_a_message_handed_to_another_core_counts_as_asynchronous():
  called = """
%called (p: f32[64]) -> f32[8] {
  %p = f32[64]{0} parameter(0)
  ROOT %s = f32[8]{0} reduce-scatter(%p), replica_groups=[1,8]<=[8], to_apply=%add
}"""
  text = (
    "%c = ((f32[64]{0}), f32[8]{0}) call-start(%x),"
    ' async_execution_thread="sparsecore", to_apply=%called'
  )
  (message,) = costs(module(text, called)).collectives
  assert (message.kind, message.bytes) == ("reduce-scatter", 256)
  assert message.asynchronous


def test_an_all_reduce_of_which_each_device_keeps_a_part_is_a_reduce_scatter():
  inner = """
%all-reduce-scatter.3 (p: f32[64]) -> f32[8] {
  %p = f32[64]{0} parameter(0)
  %r = f32[64]{0} all-reduce(%p), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %d = f32[8]{0} dynamic-slice(%r, %i), dynamic_slice_sizes={8}
}"""
  text = "%f = f32[8]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3"
  (message,) = costs(module(text, inner)).collectives
  assert (message.kind, message.bytes) == ("reduce-scatter", 256)


def test_a_message_rounded_on_the_way_has_the_bytes_that_are_sent():
  text = (
    "%x = f32[1024]{0} parameter(0)\n"
    "%r = bf16[1024]{0} all-reduce(%x), replica_groups=[1,8]<=[8], to_apply=%add"
  )
  (message,) = costs(module(text)).collectives
  assert message.bytes == 2048


def test_what_is_sent_between_slices_is_told_apart():
  text = (
    "%x = f32[1024]{0} parameter(0)\n"
    "%s = (f32[1024]{0}, u32[], token[]) send(%x, %tok), is_host_transfer=true,"
    ' frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
    '_xla_megascale_transfer_type="ALL_REDUCE"}'
  )
  (message,) = costs(module(text), 8, 2).collectives
  assert message.between_slices
  assert (message.kind, message.bytes, message.group) == ("all-reduce", 4096, 2)
  v5e = CHIPS["v5e"]
  assert message.seconds(v5e) == pytest.approx(4096 / v5e.dcn_bytes_per_second)


@pytest.mark.parametrize(
  ("groups", "size"),
  [
    ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
    ("replica_groups=[4,2]<=[8]", 2),
    ("replica_groups=[2,2,2]<=[4,2]T(1,0)", 2),
    ("replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}", 8),
    ("replica_groups=mesh['a'=2,'b'=1,'c'=4] {'a','b'}", 2),
    ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", 4),
    ("replica_groups=mesh['a'=8] {'a':(2)4}", 4),
    ("replica_groups={}", 8),
  ],
)
def test_groups_of_devices_are_read_in_every_notation(groups, size):
  text = f"%r = f32[8] all-reduce(%x), channel_id=1, {groups}, to_apply=%add"
  (message,) = costs(module(text)).collectives
  assert message.group == size


@pytest.mark.parametrize(
  ("type_", "size"),
  [
    ("f32[128,256]{1,0:T(8,128)S(1)}", 128 * 256 * 4),
    ("bf16[3]{0:T(256)(128)(2,1)}", 6),
    ("pred[]", 1),
    ("(s8[4], /*index=1*/u32[]{:S(2)}, token[])", 8),
    ("f8e4m3fn[16]", 16),
    ("s4[16]", 8),
  ],
)
def test_bytes_follow_from_the_type_not_its_layout(type_, size):
  assert hlo.type_bytes(type_) == size


def test_a_matrix_product_counts_two_flops_a_product():
  text = """
%a = f32[16,32]{1,0} parameter(0)
%b = f32[32,8]{1,0} parameter(1)
%c = f32[16,8]{1,0} convolution(%a, %b), dim_labels=bf_io->bf
%d = f32[16,8]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
"""
  assert costs(module(text)).flops == 2 * (2 * 16 * 32 * 8)


def test_batched_products_written_as_convolutions_count_no_empty_windows():
  # [4, 16, 32] x [4, 32, 8]: the batch is a spatial dimension, spread by its size.
  text = (
    "%a = bf16[4,16,32]{2,1,0} parameter(0)\n"
    "%b = bf16[4,32,8]{2,1,0} parameter(1)\n"
    "%c = f32[4,16,8]{2,1,0} convolution(%a, %b),"
    " window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0io->0bf"
  )
  assert costs(module(text)).flops == 2 * 4 * 16 * 32 * 8


def test_an_operation_has_the_file_and_line_that_traced_it():
  tables = """
FileNames
1 "/somewhere/models/losses.py"

FunctionNames
1 "token_losses"

FileLocations
1 {file_name_id=1 function_name_id=1 line=86 end_line=86 column=3 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
"""
  traced = 'metadata={op_name="jit(f)/reduce_sum" stack_frame_id=1}'
  text = f"%a = f32[8]{{0}} copy(%x), {traced}, {estimate(5)}"
  (operation,) = costs(module(text, tables)).operations
  assert operation.place == "models/losses.py:86"


def test_text_that_is_no_module_is_refused():
  with pytest.raises(ValueError, match="ENTRY"):
    hlo.parse("hello")


def kernel(name: str, source: str, config: str = "{}") -> str:
  """A call of a kernel, as libtpu prints it but for the kernel's own program."""
  return (
    f"%{name} = bf16[8,128,512]{{2,1,0}} custom-call(%q),"
    f' custom_call_target="tpu_custom_call", metadata={{op_name="{source}"}},'
    ' backend_config={"custom_call_config":{"body":"TUzv",'
    f'"cost_estimate":{config}}}}}'
  )


STATED = (
  '{"flops":"4000000000","transcendentals":"8192000","bytes_accessed":"81900000",'
  '"remote_bytes_transferred":"0"}'
)
SOURCE = "jit(f)/encoder/transpose(jvp(self_attention_kernel))/pallas_call"


def test_a_kernel_costs_a_range_from_its_bytes_to_its_schedule():
  (found,) = costs(module(kernel("k", SOURCE, STATED))).untimed
  v5e = CHIPS["v5e"]
  moving = 81_900_000 / 819e9
  assert found.least_seconds(v5e) == pytest.approx(moving)
  # 8,000 registers of scores.
  assert found.most_seconds(v5e) == pytest.approx(moving + 8000 * 11 / 1500e6)
  v6e = CHIPS["v6e"]
  moving = 81_900_000 / 1638e9
  assert found.most_seconds(v6e) == pytest.approx(moving + 8000 * 9 / 1750e6)


def test_a_kernel_of_many_products_takes_those_at_least():
  stated = STATED.replace('"flops":"4', '"flops":"400')
  (found,) = costs(module(kernel("k", SOURCE, stated))).untimed
  assert found.least_seconds(CHIPS["v5e"]) == pytest.approx(4e11 / 196.6e12, rel=1e-3)


def test_a_kernels_products_are_the_devices_and_loops_multiply_it():
  body = f"""
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {{
  {kernel("k", SOURCE, STATED)}
}}"""
  found = costs(module(LOOP, body, CONDITION))
  assert [each.times for each in found.untimed] == [24]
  assert found.flops == 24 * 4_000_000_000
  assert found.cycles == 0


def test_a_kernel_that_is_not_known_takes_its_bytes_at_least_and_nobody_knows_at_most():
  text = "%q = bf16[8,128,512]{2,1,0} parameter(0)\n" + kernel("k", "jit(f)/other")
  (found,) = costs(module(text)).untimed
  assert found.bytes == 2 * 2 * 8 * 128 * 512
  assert found.least_seconds(CHIPS["v5e"]) == pytest.approx(found.bytes / 819e9)
  assert found.most_seconds(CHIPS["v5e"]) is None


def test_an_operation_that_the_compiler_gives_up_on_is_not_its_largest_number():
  text = f"""
%q = f32[1000]{{0}} parameter(0)
%f = f32[1000]{{0}} fusion(%q), kind=kLoop, calls=%c, {estimate(2**63 - 1)}
%g = f32[1000]{{0}} copy(%q), {estimate(70)}
"""
  found = costs(module(text))
  assert found.cycles == 70
  (unknown,) = found.untimed
  assert (unknown.bytes, unknown.most_seconds(CHIPS["v5e"])) == (8000, None)
