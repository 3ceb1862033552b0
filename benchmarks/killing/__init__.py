"""Processes that die at chosen moments; see `benchmarks/kill_and_resume.py`."""
