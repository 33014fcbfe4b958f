"""Formats of answers that mlx-lm does not know: one file per format, and their table."""
