"""From rows of a file to batches of token ids."""
