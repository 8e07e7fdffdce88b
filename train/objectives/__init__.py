"""Objectives: loss and scores of a task; one file each."""
