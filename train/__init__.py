"""Training and evaluation: tasks, data, methods, reports and the command line."""
