"""The house keeps its shape: imports point downwards, nothing lies loose, files and functions stay short."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


def load_script() -> ModuleType:
    path = ROOT / "tests" / "benchmarks" / "structure.py"
    spec = importlib.util.spec_from_file_location("structure", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["structure"] = module  # its dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


structure = load_script()


@pytest.fixture(scope="module")
def figures() -> dict:
    return structure.measure(ROOT)


def test_imports_point_downwards(figures: dict) -> None:
    assert figures["upward_imports"] == []


def test_no_modules_import_each_other(figures: dict) -> None:
    assert figures["circles"] == []


def test_every_import_of_ours_names_a_module(figures: dict) -> None:
    assert figures["broken_imports"] == []


def test_every_file_lies_in_a_room_of_the_drawing(figures: dict) -> None:
    drawn = {room for rooms in structure.LAYERS for room in rooms}
    assert figures["loose_files"] == []
    assert set(figures["rooms"]) <= drawn


def test_files_and_functions_are_short(figures: dict) -> None:
    assert figures["files"]["over_limit"] == []
    assert figures["functions"]["over_limit"] == []


def test_every_function_is_annotated(figures: dict) -> None:
    assert figures["unannotated"] == []


def write(root: Path, files: dict[str, str]) -> list:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return structure.read_modules(root)


def test_an_import_in_a_function_or_for_types_only_counts(tmp_path: Path) -> None:
    modules = write(
        tmp_path,
        {
            "refadgen/__init__.py": "",
            "refadgen/errors.py": "",
            "refadgen/storage/__init__.py": "",
            "refadgen/storage/store.py": "from refadgen.errors import RowError",
            "refadgen/config/__init__.py": "from refadgen.storage import store",
            "refadgen/catalog/__init__.py": "def f():\n    from refadgen.model import net",
            "refadgen/catalog/rows.py": "from . import scan",
            "refadgen/catalog/scan.py": "def f():\n    from refadgen.catalog.rows import Row",
            "refadgen/model/__init__.py": "",
            "refadgen/model/net.py": "if TYPE_CHECKING:\n    import refadgen.batch.pools",
            "refadgen/batch/__init__.py": "",
            "refadgen/batch/pools.py": "import refadgen.model.net",
            "jobs/train.py": "import refadgen.batch.pools",
        },
    )
    graph = structure.import_graph(modules)
    assert structure.upward_imports(modules, graph) == [
        "refadgen.catalog -> refadgen.model.net",
        "refadgen.model.net -> refadgen.batch.pools",
    ]
    assert structure.circles(graph) == [
        ["refadgen.batch.pools", "refadgen.model.net"],
        ["refadgen.catalog.rows", "refadgen.catalog.scan"],
    ]


def test_look_ups_on_rows_are_told_from_those_on_arrow_tables(tmp_path: Path) -> None:
    source = """
def stage(row: dict, table: pa.Table) -> dict:
    names = table["sku"]
    done = pc.equal(latest["status"], "done")
    row["mask"] = row.get("image", b"")
    config["unrelated"] = os.environ["HOME"]
    return {"status": "done", "unrelated": 1, **row}
"""
    (module,) = write(tmp_path, {"refadgen/batch/stage.py": source})
    assert structure.row_lookups(module, structure.COLUMNS) == {"rows": 3, "tables": 2}
    assert structure.own_columns(module) == set()
    (module,) = write(tmp_path, {"refadgen/batch/stage.py": 'S = pa.schema([("a", pa.string()), pa.field("b", x)])'})
    assert structure.own_columns(module) == {"a", "b"}


def test_fields_of_row_types_are_columns(tmp_path: Path) -> None:
    source = "from refadgen.batch.rows import Int32\n\nclass Row:\n    sku: str\n    num_views: Int32 = 0\n"
    (module,) = write(tmp_path, {"refadgen/batch/rows.py": source})
    assert structure.own_columns(module) == {"sku", "num_views"}


def test_comments_for_tools_do_not_count(tmp_path: Path) -> None:
    source = '"""What is here."""\nX = 1  # noqa: E501\n"""Of X."""\n# Of a trap.\nY = 2  # type: ignore[misc]\n'
    (module,) = write(tmp_path, {"refadgen/errors.py": source})
    assert structure.prose(module) == (["What is here.", "Of X."], ["Of a trap."])
    assert structure.lines_of_code(module) == 2
