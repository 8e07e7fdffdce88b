"""Ways to predict from a posterior: one file and one registration each."""
