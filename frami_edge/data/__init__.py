"""Real audio: data sets with their official folds, decoding, and log-mel features."""
