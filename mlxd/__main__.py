"""`python -m mlxd` is `mlxd`."""

import sys

from mlxd.daemon import main

if __name__ == "__main__":
    sys.exit(main())
