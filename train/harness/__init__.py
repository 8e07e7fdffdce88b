"""Runs as models of EleutherAI's lm-evaluation-harness; needs ``ivon-jax[eval]``."""
