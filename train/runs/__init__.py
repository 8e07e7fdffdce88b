"""Runs on disk: folders, checkpoints and progress."""
