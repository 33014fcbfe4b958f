"""The base of all TCP routes: the listening socket, the boundary, bodies, streams, and the way to a model or a cloud.

Knows no wire dialect but for the envelope of errors. The routes themselves are `mlxd.openai` and `mlxd.anthropic`.
"""
