"""The only package of the daemon that imports mlx or mlx_lm (download/ may, in its own process)."""
