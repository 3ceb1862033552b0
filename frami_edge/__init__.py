"""Distil a trained sound classifier without its data, and take the student to a small device."""

__version__ = "0.2.0"
