"""From a bank of synthetic log-mels to a compact student."""
