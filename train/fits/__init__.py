"""Ways to make a run of finished ones: one file and one registration each."""
