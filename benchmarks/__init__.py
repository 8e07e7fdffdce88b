"""Benchmarks, written as JSON; contestants are interleaved in one run."""
