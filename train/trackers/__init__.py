"""Programs that keep and show the numbers of runs."""
