"""Answers that many models write, and votes on them."""
