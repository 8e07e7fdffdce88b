"""A run on the disk: its folder, its checkpoints, its progress."""
