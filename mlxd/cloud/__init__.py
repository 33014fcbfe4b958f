"""Requests that leave the machine: the rules that say which, and the providers that carry them. Off by default.

Uses the protocol and aiohttp's client; must not import the pool, the catalog, the routes or mlx.
"""
