"""What can run a model: one protocol, several backends behind it."""
