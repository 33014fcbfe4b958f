"""DESIGN.md names a proof for each promise; the proofs are there."""

from __future__ import annotations

import re
from pathlib import Path

import mlxd.pool

TESTS = Path(__file__).parent


def test_every_proof_that_the_design_names_exists() -> None:
    """Each test and file in the section on proofs is one of this tree, and no row is without a test."""
    design = (Path(mlxd.pool.__path__[0]) / "DESIGN.md").read_text(encoding="utf-8")
    proofs = design.partition("## Proofs")[2].partition("Rejected:")[0]
    defined = set(
        re.findall(r"^(?:async )?def (test_\w+)", "".join(map(_read, sorted(TESTS.glob("test_*.py")))), re.MULTILINE)
    )
    rows = [line for line in proofs.splitlines() if line.startswith("| ")][1:]

    assert len(rows) >= 20
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        assert not set(named) - defined, row
    for path in re.findall(r"`(?:tests/)?(\w+(?:/\w+)?\.py)`", proofs):
        assert (TESTS / path).exists() or (TESTS.parent / path).exists(), path


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
