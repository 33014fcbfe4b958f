"""The download program: `python -m mlxd.download`. Fetches models and needs no daemon; never imported by one."""
