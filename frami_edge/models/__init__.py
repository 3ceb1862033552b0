"""Teachers, students, and the statistics pooling that they share."""
