"""Where the time goes, read from small HLO texts, written here."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from commentree.training.tpu_compile import compiled_costs, hbm_traffic, hlo, roofline
from commentree.training.tpu_compile.tpu_chips import CHIPS

V5E = CHIPS["v5e"]
FORWARD = "jit(train_step)/jvp(CommentTreeTransformer)/decoder/decoder.run/while/body/"
BACKWARD = (
  "jit(train_step)/transpose(jvp(CommentTreeTransformer))/decoder/decoder.run/while/"
)
AGAIN = BACKWARD + "body/checkpoint/rematted_computation/"


def module(body: str, *computations: str) -> hlo.Module:
  lines = ["HloModule test", *computations, "ENTRY %main () -> f32[] {"]
  return hlo.parse(
    "\n".join([*lines, *(f"  {each}" for each in body.strip().splitlines()), "}"])
  )


def named(source: str, cycles: int = 0) -> str:
  estimate = f', backend_config={{"estimated_cycles":"{cycles}"}}' if cycles else ""
  return f'metadata={{op_name="{source}"}}{estimate}'


def rows(parsed: hlo.Module, step: float | None = None) -> dict:
  costs = compiled_costs.costs_of(parsed, 8)
  seconds = costs.cycles / V5E.clock_hz if step is None else step
  found = roofline.rows_of(costs, V5E, seconds)
  return {(row.part, row.phase): row for row in found}


@pytest.mark.parametrize(
  ("source", "part", "phase"),
  [
    (f"{FORWARD}layers/block/mlp/wi_0/dot_general", "MLP", "forward"),
    (f"{AGAIN}layers/block/mlp/wi_0/dot_general", "MLP", "recompute"),
    (f"{BACKWARD}layers_3/self_attention/query/dot_general", "self-attention", ""),
    (f"{FORWARD}layers/attention/softmax", "self-attention", "forward"),
    (f"{FORWARD}relpos_bias/pad", "self-attention", "forward"),
    (
      f"{BACKWARD}layers/encoder_decoder_attention/encoder_decoder_attention.out/out/mul",
      "ancestor-attention",
      "backward",
    ),
    ("jit(f)/jvp(M)/M._context/ancestors.context/reduce_or", "ancestor-attention", ""),
    (f"{FORWARD}layers/pre_mlp_layer_norm/rsqrt", "norms", "forward"),
    (f"{BACKWARD}layers/add_any", "norms", "backward"),
    (f"{FORWARD}jit(dynamic_update_index_in_dim)/dus", "scanned layers", "forward"),
    ("jit(f)/jvp(M)/M.decode/decoder/logits_dense/dot_general", "logits", "forward"),
    ("jit(f)/jvp(M)/decoder/logits_norm/mul", "logits", "forward"),
    ("jit(f)/jvp(M)/decoder/rml,rld->rmd/dot_general", "logits", "forward"),
    (f"{BACKWARD}layers_1/masked_tokens/bgmn,bgmd->bgnd/dot", "logits", "backward"),
    ("jit(f)/jvp(M)/token_embedder/token_embedder.attend/dot", "logits", "forward"),
    ("jit(f)/jvp(loss)/reduce_sum", "logits", "forward"),
    ("jit(f)/transpose(jvp(M))/token_embedder/scatter-add", "embedding", "backward"),
    ("jit(f)/jvp(M)/encode/pooling/bnx,bnd->bxd/dot_general", "pooling", "forward"),
    ("jit(f)/jvp(M)/pointer/query/dot_general", "pointer", "forward"),
    ("jit(f)/optimizer/vmap()/reduce_sum", "optimizer", "update"),
    ("jit(f)/jvp(jit(_uniform))/max", "other", "forward"),
    ("", "other", "forward"),
  ],
)
def test_parts_are_modules_the_innermost_and_passes_what_traced_them(
  source, part, phase
):
  assert roofline.part_of(source) == part
  assert not phase or roofline.phase_of(source) == phase


def product(cycles: int) -> str:
  """A norm fused into the product that it is the input of, and named after it."""
  return (
    "%f = bf16[256,64]{1,0} fusion(%x, %w), kind=kOutput, calls=%fused,"
    f" {named(FORWARD + 'layers/pre_mlp_layer_norm/mul', cycles)}"
  )


FUSED = f"""
%fused (p0: bf16[256,128], p1: bf16[128,64]) -> bf16[256,64] {{
  %p0 = bf16[256,128]{{1,0}} parameter(0)
  %p1 = bf16[128,64]{{1,0}} parameter(1)
  %m = bf16[256,128]{{1,0}} multiply(%p0, %p0)
  %d = bf16[256,64]{{1,0}} convolution(%m, %p1), dim_labels=bf_io->bf,\
 {named(FORWARD + "layers/mlp/wi_0/dot_general")}
  ROOT %r = bf16[256,64]{{1,0}} negate(%d)
}}"""
OPERANDS = """
%x = bf16[256,128]{1,0} parameter(0)
%w = bf16[128,64]{1,0:T(8,128)S(1)} parameter(1)
"""


def test_a_fusion_is_its_products_and_what_lies_on_the_chip_is_not_hbms():
  parsed = module(OPERANDS + product(1500), FUSED)
  (row,) = rows(parsed).values()
  assert (row.part, row.phase) == ("MLP", "forward")
  assert row.flops == 2 * 256 * 128 * 64
  assert row.bytes == 2 * (256 * 128 + 256 * 64)
  assert row.seconds == pytest.approx(1500 / 1500e6)
  assert row.products_seconds == pytest.approx(row.flops / 196.6e12, rel=1e-3)
  assert row.bytes_seconds == pytest.approx(row.bytes / 819e9)


@pytest.mark.parametrize(
  ("cycles", "bound"),
  # The bytes take 180 cycles, the products 32.
  [(300, "bytes"), (400, "elementwise")],
)
def test_what_takes_more_than_twice_its_bytes_is_bound_by_elementwise_work(
  cycles, bound
):
  (row,) = rows(module(OPERANDS + product(cycles), FUSED)).values()
  assert row.bound == bound


def test_what_the_compiler_adds_is_its_users_or_else_its_inputs():
  text = f"""
%z = f32[64]{{0}} broadcast(%c), dimensions={{}}, {named("broadcast.165", 10)}
%t = (f32[64]) tuple(%z)
%w = (f32[64]) while(%t), condition=%a, body=%b, {named(BACKWARD + "body")}
%q = f32[64]{{0}} multiply(%x, %x), {named("jit(f)/jvp(M)/pooling/mul", 20)}
%k = f32[64]{{0:S(1)}} copy(%q), {named("", 40)}
"""
  found = rows(module(text.replace('metadata={op_name=""}, ', "")))
  assert {key: round(1.5e9 * row.seconds) for key, row in found.items()} == {
    ("pooling", "forward"): 60,
    ("scanned layers", "backward"): 10,
  }


def test_copies_beside_other_operations_have_bytes_and_no_time():
  text = f"""
%x = f32[1000]{{0}} parameter(0)
%s = (f32[1000]{{0:S(1)}}, f32[1000]{{0}}, u32[]{{:S(2)}}) copy-start(%x)
%d = f32[1000]{{0:S(1)}} copy-done(%s)
%l = ((f32[1000]{{0}}), f32[250]{{0:S(1)}}, s32[]{{:S(2)}}) slice-start(%x)
%p = f32[250]{{0:S(1)}} slice-done(%l)
%m = f32[1000]{{0:S(1)}} add(%d, %p), {named("jit(f)/jvp(M)/pooling/add", 100)}
"""
  (row,) = rows(module(text)).values()
  assert (row.part, row.bytes) == ("pooling", 4000 + 1000)
  assert row.seconds == pytest.approx(100 / 1500e6)


SLICED = """
%sliced (p1: f32[2,64], p0: f32[12,2,64], i: s32[]) -> f32[12,2,64] {
  %i = s32[] parameter(2)
  %p1 = f32[2,64]{1,0} parameter(1)
  %p0 = f32[12,2,64]{2,1,0} parameter(0)
  %b = f32[1,2,64]{2,1,0} bitcast(%p1)
  ROOT %u = f32[12,2,64]{2,1,0} dynamic-update-slice(%p0, %b, %i, %i, %i)
}
%picked (p0: f32[12,2,64], i: s32[]) -> f32[2,64] {
  %p0 = f32[12,2,64]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %b = f32[24,64]{1,0} bitcast(%p0)
  ROOT %s = f32[2,64]{1,0} dynamic-slice(%b, %i, %i)
}"""


def test_of_stacked_layers_only_the_one_that_is_taken_or_changed_counts():
  text = """
%all = f32[12,2,64]{2,1,0} parameter(0)
%one = f32[2,64]{1,0} parameter(1)
%i = s32[]{:S(6)} parameter(2)
%f = f32[12,2,64]{2,1,0} fusion(%all, %one, %i), kind=kLoop, calls=%sliced
%g = f32[1,2,64]{2,1,0} dynamic-slice(%all, %i, %i, %i)
%h = f32[2,64]{1,0} fusion(%all, %i), kind=kLoop, calls=%picked
"""
  parsed = module(text, SLICED)
  one = 2 * 64 * 4
  for name in ("f", "g", "h"):
    instruction = parsed.computations["main"][name]
    assert hbm_traffic.traffic(parsed, "main", instruction) == 2 * one, name


def test_a_kernel_counts_at_most_and_what_has_no_estimate_at_least_and_is_told():
  source = f"{FORWARD}layers/self_attention/self_attention_kernel/pallas_call"
  stated = '"flops":"1000000","transcendentals":"8192000","bytes_accessed":"819000"'
  text = f"""
%q = f32[1000000]{{0}} parameter(0)
%k = f32[1000]{{0}} custom-call(%q), custom_call_target="tpu_custom_call",\
 metadata={{op_name="{source}"}}, backend_config={{{stated}}}
%l = f32[1000000]{{0:S(1)}} copy(%q), {named("jit(f)/jvp(M)/pointer/copy", 2**63 - 1)}
%m = f32[1000]{{0}} copy(%k), {named("jit(f)/jvp(M)/pointer/copy", 1500)}
"""
  kernel, least, copy = 1e-6 + 8000 * 11 / 1500e6, 4e6 / 819e9, 1e-6
  parsed = module(text)
  found = rows(parsed, kernel + least + copy)
  attention = found["self-attention", "forward"]
  assert attention.kernel_seconds == attention.seconds == pytest.approx(kernel)
  pointer = found["pointer", "forward"]
  assert pointer.unestimated == 1
  assert pointer.seconds == pytest.approx(least + copy)
  console = Console(width=200, record=True, file=io.StringIO())
  console.print(roofline.table(list(found.values())))
  assert "1 not estimated" in console.export_text()


def test_waiting_for_messages_is_a_row_so_that_rows_add_up_to_the_step():
  text = f"""
%x = f32[1000]{{0}} parameter(0)
%m = f32[1000]{{0}} add(%x, %x), {named("jit(f)/jvp(M)/pooling/add", 1500)}
%r = f32[1000]{{0}} all-reduce(%m), replica_groups=[1,8]<=[8], to_apply=%add,\
 {named("jit(f)/transpose(jvp(M))/layers/mlp/wi_0/dot_general", 300)}
"""
  found = rows(module(text), step=5e-6)
  assert set(found) == {("pooling", "forward"), ("collectives", "")}
  assert found["collectives", ""].seconds == pytest.approx(4e-6)
  assert found["collectives", ""].bound == "network"
  assert sum(row.seconds for row in found.values()) == pytest.approx(5e-6)
