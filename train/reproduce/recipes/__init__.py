"""A file for each table and figure."""
