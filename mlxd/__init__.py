"""mlxd: a local model server for Macs, steered live. Importing this imports nothing else."""

__version__ = "0.1.0"
