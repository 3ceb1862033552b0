"""Damaged files and odd calls for the trainer and its command line; see `benchmarks/fuzz.py`."""
