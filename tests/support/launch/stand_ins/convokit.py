"""ConvoKit's classes of data, as far as `launch/convokit.py` asks them.

`tests/launch/parity/test_convokit.py` runs the same tests with ConvoKit itself.
"""

import dataclasses

import numpy as np


class Transformer:
  """What a Transformer inherits from."""


@dataclasses.dataclass
class Speaker:
  id: str


@dataclasses.dataclass
class Utterance:
  id: str
  speaker: Speaker
  conversation_id: str
  reply_to: str | None = None
  timestamp: int | None = None
  text: str = ""
  meta: dict = dataclasses.field(default_factory=dict)
  vectors: list = dataclasses.field(default_factory=list)
  owner: "Corpus | None" = dataclasses.field(default=None, repr=False)

  def add_meta(self, key, value):
    self.meta[key] = value

  def add_vector(self, name):
    self.vectors.append(name)

  def get_conversation(self):
    return self.owner.get_conversation(self.conversation_id)


@dataclasses.dataclass
class Conversation:
  id: str
  utterances: list
  meta: dict = dataclasses.field(default_factory=dict)

  def iter_utterances(self):
    return iter(self.utterances)

  def add_meta(self, key, value):
    self.meta[key] = value


class Corpus:
  def __init__(self, utterances):
    self._utterances = {each.id: each for each in utterances}
    self._conversations = {}
    self._vectors = {}
    for each in utterances:
      each.owner = self
      made = self._conversations.setdefault(
        each.conversation_id, Conversation(each.conversation_id, [])
      )
      made.utterances.append(each)

  def iter_utterances(self):
    return iter(self._utterances.values())

  def iter_conversations(self):
    return iter(self._conversations.values())

  def get_utterance(self, ident):
    return self._utterances[ident]

  def get_conversation(self, ident):
    return self._conversations[ident]

  def set_vector_matrix(self, name, matrix, ids):
    self._vectors[name] = dict(zip(ids, matrix, strict=True))

  def get_vectors(self, name, ids):
    return np.stack([self._vectors[name][ident] for ident in ids])
