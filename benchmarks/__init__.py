"""Measurements: ratios against a real peer, interleaved in one run, written as JSON."""
