"""Check settings against each other, beyond the bounds of each. Pure: it holds for a file at boot, too."""

from __future__ import annotations

from mlxd.alias import check_aliases
from mlxd.cloud.rules import compile_rules
from mlxd.protocol.settings import Settings


def cross_check(settings: Settings) -> None:
    """Check rules and names.

    Raises:
        InvalidValue: a rule that leads nowhere, or a name that means two things; `param` is the setting.
    """
    compile_rules(settings.cloud)
    check_aliases(settings)
