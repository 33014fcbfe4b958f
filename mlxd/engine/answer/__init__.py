"""How families of models write their answers, where mlx-lm does not know: one file per format, and their table."""
