"""The owner of residents, leases, the wait queue and the memory ledger. Must not import mlx, mlx_lm or aiohttp."""
