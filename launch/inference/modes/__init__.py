"""The kinds of answers, each in a file of its own."""
