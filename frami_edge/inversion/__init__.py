"""From a trained teacher to a bank of synthetic log-mels: no audio goes in."""
