"""The guide names files and rooms that are there, and links lead somewhere."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").glob("*.md"))),
    "examples/README.md",
    "catalogs/README.md",
    "cluster/README.md",
)


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_to_files(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text()):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/architecture.md"])
def test_files_that_are_named_are_there(page: str) -> None:
    """Names such as `catalog/rows.py` are below refadgen/, others below the repository's folder."""
    text = (ROOT / page).read_text()
    named = re.findall(r"(?<![\w/.:$*-])([\w.-]+(?:/[\w.-]+)+\.(?:py|yaml|html|js|md))(?![\w/])", text)
    assert named or page == "README.md"
    for name in named:
        if not name.startswith("out/"):
            assert (ROOT / name).exists() or (ROOT / "refadgen" / name).exists(), name


def test_names_in_parentheses_are_in_the_file_before_them() -> None:
    """`serving/access.py` (`Access`): what the guide points to within a file exists there."""
    text = (ROOT / "docs/architecture.md").read_text()
    found = re.findall(r"`([\w/]+\.py)` \((`\w+`(?:, `\w+`)*)", text)
    assert len(found) >= 3
    for file, names in found:
        source = (ROOT / "refadgen" / file).read_text()
        for name in re.findall(r"\w+", names):
            assert re.search(rf"\b{name}\b", source), f"{name} in {file}"


def test_the_guide_lists_every_room_on_its_layer() -> None:
    spec = importlib.util.spec_from_file_location("structure", ROOT / "tests/benchmarks/structure.py")
    assert spec is not None
    assert spec.loader is not None
    structure = importlib.util.module_from_spec(spec)
    sys.modules["structure"] = structure
    spec.loader.exec_module(structure)
    text = (ROOT / "docs/architecture.md").read_text()
    listed = {(int(layer), room) for layer, room in re.findall(r"^\| (\d) \| `(\w+)(?:/|\.py)` \|", text, re.MULTILINE)}
    assert listed == {(number, room) for number, rooms in enumerate(structure.LAYERS, 1) for room in rooms}
    rooms = {path.parent.name for path in (ROOT / "refadgen").glob("*/__init__.py")}
    assert rooms <= {room for _, room in listed}
