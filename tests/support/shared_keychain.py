"""A keychain for a daemon in a child process: `PYTHON_KEYRING_BACKEND=tests.support.shared_keychain.Keychain`.

Imported there only: `keyring` takes any backend of this priority that it knows.
"""

from tests.support.keychain import MemoryKeychain


class Keychain(MemoryKeychain):
    """See above."""

    priority = 1
