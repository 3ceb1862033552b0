"""Streaming log-mel features and variable-length sound classification without torch."""

__version__ = "0.1.0"
