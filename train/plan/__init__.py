"""Memory and time of a run on chips that this machine lacks."""
