"""The documents name files and classes that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("mlxd", "mlxctl", "tests")
FILES = [path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
DOCUMENTS = [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "mlxd").glob("*/DESIGN.md"))]
OF_OTHERS = {"LRUPromptCache", "StructTag"}  # of mlx-lm and llguidance


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_and_links_of_a_document_exist(document: Path) -> None:
    """A path in backticks is the end of one in the tree, and a relative link leads to a file."""
    text = document.read_text()
    named = set(re.findall(r"`([\w/]+\.py)`", text))
    missing = [path for path in named if not any(f"/{file}".endswith(f"/{path}") for file in FILES)]
    missing += [link for link in re.findall(r"\]\(([^):]+)\)", text) if not (document.parent / link).exists()]
    assert not missing


def test_classes_that_documents_name_exist() -> None:
    """`Name` and `Name.member` in backticks are in the source."""
    words = set(re.findall(r"\w+", "\n".join((ROOT / file).read_text() for file in FILES)))
    missing = [
        f"{document.relative_to(ROOT)}: {name}"
        for document in DOCUMENTS
        for name in set(re.findall(r"`([A-Z]\w+(?:\.\w+)?)`", document.read_text()))
        if name not in OF_OTHERS and not words.issuperset(name.split("."))
    ]
    assert not missing
