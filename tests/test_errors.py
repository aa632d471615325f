"""The table of reasons is complete: the code raises no other, and each of them is raised somewhere."""

import ast
import dataclasses
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import refadgen
from refadgen.catalog.columns import DATASET_COLUMNS
from refadgen.config import DatasetConfig
from refadgen.errors import REASONS, RETRY_HINT, RowError, retried_reasons

PACKAGE = Path(refadgen.__file__).parent
FILES = [file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "errors.py"]
MAKERS = {"RowError", "DoubtfulMask", "Weakness", "error", "_error", "try_again"}
"""Functions and methods that take a reason, in any place."""
FIELDS = {column.name for column in DATASET_COLUMNS}


def _nodes() -> Iterator[tuple[Path, ast.AST]]:
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            yield file.relative_to(PACKAGE), node


def _codes(node: ast.expr) -> list[str]:
    """The reasons that an argument can be: itself, or those an f-string such as f"bad_{field}" can become."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        parts = [re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".+" for part in node.values]
        return [code for code in REASONS if re.fullmatch("".join(parts), code)]
    return []


def test_no_reason_is_unknown() -> None:
    unknown = []
    for file, node in _nodes():
        found: list[ast.expr] = []
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            found = node.args if name in MAKERS else []
        elif isinstance(node, ast.Dict):
            keyed = zip(node.keys, node.values, strict=True)
            found = [value for key, value in keyed if isinstance(key, ast.Constant) and key.value == "reason"]
        codes = {code for each in found for code in _codes(each) if re.fullmatch(r"[a-z]+(_[a-z]+)+", code)}
        unknown += [f"{file}:{node.lineno}: {code}" for code in codes - REASONS.keys() - FIELDS]
    assert not unknown


def test_no_reason_is_unused() -> None:
    used = {code for _, node in _nodes() if isinstance(node, ast.Constant | ast.JoinedStr) for code in _codes(node)}
    assert not REASONS.keys() - used


def test_reasons_name_fields_and_settings_that_exist() -> None:
    assert {reason.field for reason in REASONS.values()} <= FIELDS | {None}
    config = DatasetConfig()
    settings = {
        f"{section.name}.{field.name}"
        for section in dataclasses.fields(config)
        if dataclasses.is_dataclass(value := getattr(config, section.name))
        for field in dataclasses.fields(value)
    }
    for code, reason in REASONS.items():
        assert set(re.findall(r"\w+\.\w+", reason.lifted_by or "")) <= settings, code
        assert reason.status == "rejected" or not reason.lifted_by, f"{code}: what failed is retried anyway"
    assert {"image_too_small", "image_not_found", "not_an_image"} <= set(retried_reasons())
    assert not {"empty_sku", "prompt_too_long", "mask_in_pieces"} & set(retried_reasons())


def test_an_error_crosses_processes_with_its_field() -> None:
    error = pickle.loads(pickle.dumps(RowError("image_too_small", "mask: 3×3 px", field="mask")))
    assert (error.status, error.reason, error.field) == ("rejected", "image_too_small", "mask")
    assert error.problem == "mask: 3×3 px"
    assert error.detail == f"mask: 3×3 px, {RETRY_HINT}"


def test_a_file_that_is_missing_or_broken_says_how_it_is_retried() -> None:
    error = RowError("image_not_found", "image 'a.png': not found")
    assert error.detail == f"image 'a.png': not found; put another file there, {RETRY_HINT}"
    assert RowError("empty_sku", "sku is empty").detail == "sku is empty"
