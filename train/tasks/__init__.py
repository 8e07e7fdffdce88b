"""The tasks: how a row becomes a question and its answer."""
