"""The TCP routes, in OpenAI's shapes.

Uses the pool, the catalog and the cloud; must not import mlx or the control plane.
"""
