"""Training of a teacher on real audio."""
