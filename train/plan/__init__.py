"""What a run will need on chips that are not here."""
