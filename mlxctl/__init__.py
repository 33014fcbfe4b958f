"""mlxctl: steers a running mlxd over its control socket. Importing this imports nothing else."""
