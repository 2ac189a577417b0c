"""commentree: pretrain and fine-tune language models on trees of comments."""

__version__ = "0.1.0"
