"""A model as a folder that `transformers` loads: its encoder, or the whole of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from commentree.errors import StorageError, UserError
from commentree.launch.exporting import hugging_face_whole
from commentree.launch.inference import run_context
from commentree.launch.reports import comparison
from commentree.launch.settings import run_folder
from commentree.launch.settings.configurables import RunConfig
from commentree.tasks.vocabulary import vocabulary_files
from commentree.tasks.vocabulary.vocabularies import Tokenizer
from commentree.training.checkpointing import storage
from commentree.training.config import TrainConfig
from commentree.training.reports import evaluation_report
from commentree.training.warm_starts import (
  hugging_face_writing,
  safetensors_writing,
  sources,
  writing,
)
from commentree.training.warm_starts.formats.array_source import ArraySource

# `transformers` asks for this of safetensors.
_METADATA = {"format": "pt"}
_POOLING_MODES = {"mean": "mean", "max": "max", "first": "cls"}
_POOLING_FOLDER = "1_Pooling"
_CHECKPOINT = re.compile(r"checkpoint_[0-9]{1,18}")
_TABLE = "token_embedder.embedding"


def convert(
  checkpoint: epath.Path,
  target: epath.Path,
  *,
  whole: bool,
  dry_run: bool,
  say: Callable[[str], None],
) -> None:
  """Writes a run's encoder or whole model, its vocabulary and a model card.

  Args:
    checkpoint: of a run; its folder's settings and vocabulary are read as well.
    target: the folder, not there yet.
    whole: whether to write the whole model, with a modeling file of its own, or the
      encoder, which libraries know.
    dry_run: whether to say what would be written, and write nothing.
    say: receives what is written, and what is not.

  Raises:
    UserError: if the run's model cannot be written so, or the folder is there.
    StorageError: if it cannot be written.
  """
  safetensors_writing.refuse_existing(target)
  if not _CHECKPOINT.fullmatch(checkpoint.name):
    raise UserError(
      f"{checkpoint}: is no checkpoint of a run: give MODEL_DIR/checkpoint_<step>"
    )
  run = run_folder.load(str(checkpoint.parent), say=say)
  tokenizer = run_context.of_run(run).tokenizer
  parameters = safetensors_writing.parameters_of(sources.open_source(str(checkpoint)))
  for line in parameters.check():
    say(line)
  if _TABLE not in parameters.arrays:
    raise UserError(f"{checkpoint}: has no {_TABLE}: it is no checkpoint of this run")
  vocab_size = parameters.arrays[_TABLE].shape[0]
  arrays: ArraySource
  if whole:
    hugging_face_whole.check(run)
    arrays, left_out = hugging_face_whole.arrays_of(parameters)
    config = hugging_face_whole.config_json(run, vocab_size, tokenizer)
    texts = {hugging_face_whole.MODELING_FILE: hugging_face_whole.modeling_source()}
  else:
    arrays = hugging_face_writing.EncoderArrays(parameters, run.model)
    left_out = arrays.left_out
    config = hugging_face_writing.config_json(
      run.model, vocab_size, tokenizer.pad_id, tokenizer.eos_id
    )
    texts = {}
  texts[hugging_face_writing.CONFIG_FILE] = _json(config)
  tokenizer_files = dict(_tokenizer_files(run, tokenizer, say))
  texts |= tokenizer_files
  if tokenizer_files and not whole:
    texts |= _sentence_transformer(run, say)
  texts["README.md"] = card(run, checkpoint, whole=whole)
  for name in left_out:
    say(f"left out, since such a model has no place for it: {name}")
  size = sum(spec.num_bytes for spec in arrays.arrays.values())
  what = f"{len(arrays.arrays)} arrays, {size / 1e6:,.1f} MB"
  if dry_run:
    say(f"would write {target} ({what}, {', '.join(sorted(texts))})")
    return
  try:
    with writing.drafted(target) as draft:
      for name, text in texts.items():
        (draft / name).parent.mkdir(parents=True, exist_ok=True)
        storage.write_text(draft / name, text)
      safetensors_writing.write(arrays, draft, _METADATA)
  except Exception as error:
    if isinstance(error, UserError) or not storage.refused(error):
      raise
    raise StorageError(f"{target} cannot be written ({storage.reason(error)})") from (
      error
    )
  say(f"wrote {target}: {what}, {', '.join(sorted(texts))}")


def _tokenizer_files(
  run: RunConfig, tokenizer: Tokenizer, say: Callable[[str], None]
) -> Iterator[tuple[str, str]]:
  """Yields a tokenizer's files by their names; none of SentencePiece's."""
  content = tokenizer.content
  if vocabulary_files.file_name(content) != vocabulary_files.JSON_FILE:
    say(
      "no tokenizer is written: the vocabulary is SentencePiece's, whose ids"
      " `transformers` would not give; give the model the ids of"
      f" {vocabulary_files.SENTENCEPIECE_FILE} in the run's folder"
    )
    return
  ends = run.data.preprocessing.subtrees.sequence_ends
  document = json.loads(content)
  names = _names_by_id(content, tokenizer)
  document.update(truncation=None, padding=None)
  document["post_processor"] = _template(names, tokenizer) if ends else None
  yield vocabulary_files.JSON_FILE, json.dumps(document, ensure_ascii=False)
  length = run.data.preprocessing.subtrees.max_comment_tokens
  special = {
    f"{role}_token": names[ident]
    for role, ident in (
      ("pad", tokenizer.pad_id),
      ("mask", tokenizer.mask_id),
      ("bos", tokenizer.bos_id),
      ("eos", tokenizer.eos_id),
    )
    if ident in names
  }
  yield (
    "tokenizer_config.json",
    _json(
      {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": length,
        "model_input_names": ["input_ids", "attention_mask"],
        **special,
      }
    ),
  )


def _names_by_id(content: bytes, tokenizer: Tokenizer) -> dict[int | None, str]:
  import tokenizers

  read = tokenizers.Tokenizer.from_str(content.decode())
  ids = (tokenizer.pad_id, tokenizer.mask_id, tokenizer.bos_id, tokenizer.eos_id)
  named = {ident: read.id_to_token(ident) for ident in ids if ident is not None}
  return {ident: name for ident, name in named.items() if name is not None}


def _template(names: Mapping[int | None, str], tokenizer: Tokenizer) -> dict[str, Any]:
  """What puts the ends of a sequence around a text, as the run did."""
  begin, end = names[tokenizer.bos_id], names[tokenizer.eos_id]

  def special(name: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": name, "type_id": 0}}

  one = [special(begin), {"Sequence": {"id": "A", "type_id": 0}}, special(end)]
  return {
    "type": "TemplateProcessing",
    "single": one,
    "pair": [*one, {"Sequence": {"id": "B", "type_id": 0}}, special(end)],
    "special_tokens": {
      name: {"id": name, "ids": [ident], "tokens": [name]}
      for name, ident in ((begin, tokenizer.bos_id), (end, tokenizer.eos_id))
    },
  }


def _sentence_transformer(
  run: RunConfig, say: Callable[[str], None]
) -> Iterator[tuple[str, str]]:
  """Yields what `sentence-transformers` needs to pool as the run did."""
  length = run.data.preprocessing.subtrees.max_comment_tokens
  model = run.model
  mode = _POOLING_MODES.get(model.pooling)
  if mode is None or model.vectors_per_comment > 1:
    say(
      "no files for sentence-transformers: it has no pooling of the kind"
      f" {model.pooling!r} to {model.vectors_per_comment} vectors"
    )
    return
  parts = [
    {
      "idx": 0,
      "name": "0",
      "path": "",
      "type": "sentence_transformers.models.Transformer",
    },
    {
      "idx": 1,
      "name": "1",
      "path": _POOLING_FOLDER,
      "type": "sentence_transformers.models.Pooling",
    },
  ]
  yield "modules.json", _json(parts)
  yield "sentence_bert_config.json", _json({"max_seq_length": length})
  pooling = {
    "word_embedding_dimension": model.emb_dim,
    **{
      f"pooling_mode_{name}": name.startswith(mode)
      for name in ("cls_token", "mean_tokens", "max_tokens")
    },
  }
  yield f"{_POOLING_FOLDER}/config.json", _json(pooling)


_OF_ENCODER = [
  "tags: [commentree, feature-extraction, sentence-similarity]",
  "---",
  "# The encoder of a model of comment trees",
  "",
  "Written by `commentree convert --to=hugging_face`. It encodes one comment (or any"
  " short text); mean, max or first token of its states is the vector by which the"
  " model knows a comment's ancestors. The decoder, which reads those vectors, is not"
  " part of this folder.",
]
_OF_WHOLE = [
  "tags: [commentree, fill-mask]",
  "---",
  "# A model of comment trees",
  "",
  "Written by `commentree convert --to=hugging_face --whole_model`. It predicts masked"
  " tokens of comments given the comments above them:"
  " `AutoModelForMaskedLM.from_pretrained(FOLDER, trust_remote_code=True)`. What it"
  f" takes is in `{hugging_face_whole.MODELING_FILE}`.",
]


def card(run: RunConfig, checkpoint: epath.Path, *, whole: bool) -> str:
  """Returns a model card: what the model is of, and whether ancestors help."""
  data, model = run.data, run.model
  files = data.files if isinstance(data.files, str) else ", ".join(data.files or ())
  lines = [
    "---",
    "library_name: transformers",
    *(_OF_WHOLE if whole else _OF_ENCODER),
    "",
    "| | |",
    "| --- | --- |",
    f"| run | `{checkpoint.parent.name}`, {checkpoint.name} |",
    f"| task | `{data.mixture_or_task_name}` |",
    f"| data | {f'`{files}`' if files else 'of the task'} |",
    f"| encoder | {model.family}, {model.num_encoder_layers} layers of width"
    f" {model.emb_dim} |",
    *([f"| decoder | {model.num_decoder_layers} layers |"] if whole else []),
    f"| pooling | {model.pooling}, {model.vectors_per_comment} vectors a comment |",
    f"| trained for | step {checkpoint.name.rpartition('_')[2]} of {_asked(run.train)},"
    f" {run.train.batch_size} forests a step |",
    "",
    *_evaluation(checkpoint),
    "## Licence and limits",
    "",
    "Nothing is said here about the licence of the data or of files the run started"
    " from: state it before you publish. Comments of forums hold what people wrote,"
    " with all its biases; see to consent and deletion.",
    "",
  ]
  return "\n".join(lines)


def _asked(config: TrainConfig) -> str:
  """How long the run was to train."""
  if config.train_steps is None:
    return f"{config.train_epochs:g} epochs"
  return f"{config.train_steps:,}"


def _evaluation(checkpoint: epath.Path) -> Iterator[str]:
  """Yields the last evaluation up to the checkpoint, if there is one."""
  step = int(checkpoint.name.rpartition("_")[2])
  try:
    _, rows = comparison.metric_rows(str(checkpoint.parent))
  except UserError:
    return
  found = [row for row in rows if row["kind"] == "eval" and row["step"] <= step]
  if not found:
    return
  last = found[-1]
  results = evaluation_report.with_numbers(last["results"])
  yield f"## Do ancestors help? (held-out data, step {last['step']:,})"
  yield ""
  for line in evaluation_report.lines(results):
    yield f"- {line}"
  yield ""
  yield "| ancestors shown | loss | minus true |"
  yield "| --- | ---: | ---: |"
  for name, result in results.items():
    if "loss" in result:
      difference = evaluation_report.difference(result)
      yield f"| {name} | {result['loss']:.3f} | {difference} |"
  yield ""


def _json(value: Any) -> str:
  return json.dumps(value, indent=2) + "\n"
