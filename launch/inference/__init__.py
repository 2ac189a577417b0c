"""What a trained model is used for: fill, embed, score, generate, tag, classify.

`trees` and `chunks` read input, `modes/` say what each kind of answer takes, `forests`
lays comments out, `devices` computes, `parts` keeps what is done, `run` goes through it
all for the command and `model` for Python. No TensorFlow: a run's own trees are not
looked at, nor need they be there.
"""
