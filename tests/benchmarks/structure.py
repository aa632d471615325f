"""Figures about the code itself: rooms, imports, lengths, types, look-ups by string, comments.

    python tests/benchmarks/structure.py [--root DIR …] [--no-mypy]

Reads the sources of `refadgen/` and `jobs/` below each DIR (this checkout unless given) and prints one column per DIR,
so that two states of the code can be compared. Nothing of DIR is imported; only mypy runs over it, with the settings of
DIR's pyproject.toml. The last line is JSON: a list of one object per DIR. `tests/test_structure.py` holds the limits.
"""

import argparse
import ast
import io
import json
import re
import subprocess
import sys
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median, quantiles
from typing import Any

HERE = Path(__file__).resolve().parents[2]
LAYERS = (
    ("jobs",),
    ("evaluation", "mini", "mask_training"),
    ("serving",),
    ("generation", "dataset", "training", "studio"),
    ("provenance",),
    ("batch", "channels", "engine"),
    ("segmentation", "catalog", "triplets", "model"),
    ("config", "storage"),
    ("errors",),
)
"""From top to bottom. A module imports from its own room and from layers below, not from a neighbour of its layer."""
ALLOWED = frozenset({("config", "storage")})
"""Imports within one layer that the drawing shows: one resolver of paths serves every job's configuration."""
LOOSE_ROOM = {
    "actor_pools": "batch",
    "ledger": "batch",
    "ray_connection": "batch",
    "stage_rows": "batch",
    "storage": "storage",
    "whole_paths": "config",
    "model_folder": "model",
}
"""The room of each file that lay loose in `refadgen/` at commit 768d331: only there to measure that commit."""
MAY_BE_LOOSE = frozenset({"__init__", "errors"})
LONGEST_FILE, LONGEST_FUNCTION = 450, 66

ROW_ROOMS = frozenset({"batch", "generation", "dataset", "triplets", "training", "serving"})
# fmt: off
COLUMNS = frozenset(
    {
        "ad", "ad_id", "ad_image", "ad_mask", "attempts", "augment_s", "canvas", "captions", "category",
        "color_similarity", "describe_s", "detail", "duplicate_of", "error", "extract_s", "facts", "fetch_s",
        "file", "generate_s", "group", "height_px", "image", "image_bytes", "image_id", "image_states",
        "input_sha256", "key", "kind", "latents", "layout", "mask", "mask_area", "mask_bytes", "mask_iou",
        "mask_score", "mask_source", "model", "negative_prompt", "own_captions", "own_mask", "perceptual_hash",
        "photo", "product_id", "product_mask", "product_uri", "prompt", "publish_s", "reason", "recorded_at",
        "row", "row_id", "run_id", "scene", "screen_s", "seed", "segment_s", "skipped", "sku", "split", "status",
        "structure_similarity", "text_states", "thumbnail", "title", "token_ids", "uri", "variant", "variants",
        "views", "wanted", "width_px"
    }
)
# fmt: on
"""Every column of a schema in those rooms at commit 768d331. The measured tree's own columns are added."""
# fmt: off
_ARROW_METHODS = frozenset(
    {
        "append_column", "chunk", "chunks", "column", "combine_chunks", "dictionary_encode", "drop_columns",
        "filter", "group_by", "num_rows", "sort_by", "sort_indices", "take", "to_batches", "to_numpy",
        "to_pylist", "unique"
    }
)
# fmt: on

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, kw_only=True)
class Module:
    """One source file, parsed."""

    name: str
    """Dotted: `refadgen.catalog.rows`, `jobs.train`; a package goes by its folder's name."""
    file: str
    """Relative to the root, with slashes."""
    source: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @property
    def room(self) -> str:
        """The folder below `refadgen/`, `jobs`, or the file's own name where it lies loose."""
        parts = self.name.split(".")
        if parts[0] == "jobs":
            return "jobs"
        return "refadgen" if len(parts) == 1 else LOOSE_ROOM.get(parts[1], parts[1])

    @cached_property
    def functions(self) -> list[Function]:
        """All of them: methods and functions within functions too."""
        return [node for node in ast.walk(self.tree) if isinstance(node, Function)]


@dataclass(kw_only=True)
class Lengths:
    """Lines of each file or function: `names[i]` has `lines[i]`."""

    limit: int
    names: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)

    def add(self, name: str, lines: int) -> None:
        self.names.append(name)
        self.lines.append(lines)

    def over(self) -> list[str]:
        pairs = sorted(zip(self.lines, self.names, strict=True), reverse=True)
        return [f"{name} ({lines})" for lines, name in pairs if lines > self.limit]

    def figures(self) -> dict[str, Any]:
        longest = max(range(len(self.lines)), key=self.lines.__getitem__)
        return {
            "count": len(self.lines),
            "median": median(self.lines),
            "p90": round(quantiles(self.lines, n=10)[-1]),
            "longest": f"{self.lines[longest]} {self.names[longest]}",
            "over_limit": self.over(),
        }


def read_modules(root: Path) -> list[Module]:
    """The modules of `refadgen/` and `jobs/` below `root`, by name."""
    modules = []
    for path in sorted([*(root / "refadgen").rglob("*.py"), *(root / "jobs").glob("*.py")]):
        relative = path.relative_to(root)
        name = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        modules.append(Module(name=name, file=relative.as_posix(), source=path.read_text()))
    return modules


def imports(module: Module, names: frozenset[str]) -> Iterator[str]:
    """Modules among `names` that `module` imports anywhere: at the top, in a function, under TYPE_CHECKING."""
    package = module.name if module.file.endswith("__init__.py") else module.name.rpartition(".")[0]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [base])])
            for alias in node.names:
                # `from refadgen.config import paths` names a module, `from refadgen.config import GenerateConfig` does
                # not: the second depends on the package itself.
                full = f"{base}.{alias.name}"
                if full in names or base in names:
                    yield full if full in names else base


def imports_from(module: Module, name: str) -> bool:
    return any(isinstance(node, ast.ImportFrom) and node.module == name for node in ast.walk(module.tree))


def import_graph(modules: list[Module]) -> dict[str, set[str]]:
    names = frozenset(module.name for module in modules)
    return {module.name: set(imports(module, names)) - {module.name} for module in modules}


def broken_imports(modules: list[Module]) -> list[str]:
    """`importer -> name` for absolute imports of ours that name no module, such as one that was moved.

    An import within a function breaks nothing until it runs, perhaps only in a worker.
    """
    names = frozenset(module.name for module in modules)
    found = []
    for module in modules:
        for node in ast.walk(module.tree):
            given = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                given = [node.module]
            found += [
                f"{module.name} -> {name}" for name in given if name.split(".")[0] == "refadgen" and name not in names
            ]
    return found


def upward_imports(modules: list[Module], graph: dict[str, set[str]]) -> list[str]:
    """`importer -> imported`, where the drawing of LAYERS has no such arrow. A room that LAYERS lacks is one too."""
    level = {room: index for index, rooms in enumerate(LAYERS) for room in rooms}
    room_of = {module.name: module.room for module in modules}
    found = []
    for importer, imported in graph.items():
        upper = room_of[importer]
        for name in sorted(imported):
            lower = room_of[name]
            if upper == lower or lower == "refadgen" or (upper, lower) in ALLOWED:
                continue
            if upper not in level or lower not in level or level[lower] <= level[upper]:
                found.append(f"{importer} -> {name}")
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other by imports (strongly connected components of two or more)."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        ahead = [start]
        while ahead:
            for name in graph[ahead.pop()] - seen:
                seen.add(name)
                ahead.append(name)
        reached[start] = seen
    groups = {tuple(sorted(other for other in seen if name in reached[other])) for name, seen in reached.items()}
    return sorted(list(group) for group in groups if len(group) > 1)


def is_annotated(function: Function) -> bool:
    """Whether every parameter but self and cls has a type, and the result too."""
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    if positional and positional[0].arg in ("self", "cls"):
        del positional[0]
    rest = [arg for arg in (given.vararg, given.kwarg) if arg]
    typed = all(arg.annotation for arg in [*positional, *given.kwonlyargs, *rest])
    return typed and function.returns is not None


def own_columns(module: Module) -> set[str]:
    """Columns that the module declares, by Arrow schemas or by row types.

    Arrow: `pa.field("sku", …)`, `pa.schema([("sku", …)])`. Row types: the fields of every class in a `rows` or `ledger`
    module that imports `refadgen.batch.rows`, which makes schemas of them.
    """
    found: set[Any] = set()
    of_rows = module.name.rpartition(".")[2] in ("rows", "ledger", "ledgers")
    if of_rows and imports_from(module, "refadgen.batch.rows"):
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                fields = [each.target for each in node.body if isinstance(each, ast.AnnAssign)]
                found |= {target.id for target in fields if isinstance(target, ast.Name)}
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) not in ("pa.schema", "pa.field", "pa.struct"):
            continue
        if ast.unparse(node.func) == "pa.field":
            found |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
        for part in ast.walk(node):
            if isinstance(part, ast.Tuple) and len(part.elts) == 2 and isinstance(part.elts[0], ast.Constant):
                found.add(part.elts[0].value)
    return {name for name in found if isinstance(name, str)}


def row_lookups(module: Module, columns: frozenset[str]) -> Counter[str]:
    """How often a string names a column, which nothing checks before the line runs. By kind:

    * `rows`: `row["sku"]`, `row.get("sku")` (pop and setdefault too) and the key of a dict display, `{"sku": …}`;
    * `tables`: `table["sku"]` where `table` is an Arrow table, which has no other way to name a column.

    The first is the figure "string look-ups on rows". The rule knows names, not types: any mapping with such a key
    counts, an HTTP document's too. A value counts as an Arrow table where the function around it annotates it so, calls
    a method of Arrow tables on it, or hands the column straight to `pc.…` or one of those methods.
    """
    counts: Counter[str] = Counter()
    for scope, nodes in _scopes(module.tree):
        tables = _arrow_names(scope, nodes)
        at_once = _used_as_arrow(nodes)
        for node in nodes:
            if isinstance(node, ast.Dict):
                counts["rows"] += sum(_literal(key) in columns for key in node.keys)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                reads = node.func.attr in ("get", "pop", "setdefault")
                counts["rows"] += reads and _literal(node.args[0]) in columns
            elif isinstance(node, ast.Subscript) and _literal(node.slice) in columns:
                is_table = id(node) in at_once or ast.unparse(node.value) in tables
                counts["tables" if is_table else "rows"] += 1
    return counts


def _literal(node: ast.AST | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _scopes(tree: ast.Module) -> Iterator[tuple[ast.AST, list[ast.AST]]]:
    """The module and each function, with the nodes that lie in it and in no function below it (lambdas included)."""
    ahead: list[ast.AST] = [tree]
    while ahead:
        scope = ahead.pop()
        inside, nodes = list(ast.iter_child_nodes(scope)), []
        while inside:
            node = inside.pop()
            if isinstance(node, Function):
                ahead.append(node)
                continue
            nodes.append(node)
            inside.extend(ast.iter_child_nodes(node))
        yield scope, nodes


def _arrow_names(scope: ast.AST, nodes: list[ast.AST]) -> set[str]:
    names = set()
    if isinstance(scope, Function):
        for arg in [*scope.args.args, *scope.args.kwonlyargs]:
            if arg.annotation and ast.unparse(arg.annotation).strip("'\"") in ("pa.Table", "pa.RecordBatch"):
                names.add(arg.arg)
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr in _ARROW_METHODS and isinstance(node.value, ast.Name):
            names.add(node.value.id)
    return names


def _used_as_arrow(nodes: list[ast.AST]) -> set[int]:
    found = set()
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr in _ARROW_METHODS:
            found.add(id(node.value))
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("pc."):
            found |= {id(arg) for arg in node.args}
    return found


def prose(module: Module) -> tuple[list[str], list[str]]:
    """The module's docstrings, those under fields and constants too, and its comments, without those for tools."""
    docstrings = [
        node.value.value
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    tokens = tokenize.generate_tokens(io.StringIO(module.source).readline)
    comments = [token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT]
    for_tools = re.compile(r"(noqa|type: ?ignore|fmt:|pragma|!)")
    return docstrings, [text for text in comments if not for_tools.match(text)]


def lines_of_code(module: Module) -> int:
    """Lines that hold something other than blanks, comments and docstrings."""
    lines: set[int] = set()
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(module.source).readline):
        if token.type not in layout:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def mypy_errors(root: Path) -> dict[str, Any]:
    """Errors of `mypy --strict` over all of refadgen/ and jobs/, and which rooms the project's own run leaves out."""
    checked = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["mypy"]["files"]
    rooms = sorted(path.parent.name for path in (root / "refadgen").glob("*/__init__.py"))
    left_out = [room for room in rooms if not {"refadgen", f"refadgen/{room}"} & set(checked)]
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "refadgen", "jobs"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if "No module named mypy" in done.stderr:
        return {"mypy_errors": None, "mypy_left_out": left_out}
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    if done.returncode > 1 or done.stderr:
        raise RuntimeError(f"mypy in {root} ended with {done.returncode}: {done.stderr[-1000:]}{done.stdout[-1000:]}")
    rooms_of = Counter(line.split(":")[0].removeprefix("refadgen/").split("/")[0] for line in errors)
    return {"mypy_errors": len(errors), "mypy_errors_by_room": dict(rooms_of), "mypy_left_out": left_out}


def measure(root: Path, *, with_mypy: bool = False) -> dict[str, Any]:
    """All figures of the checkout at `root`. With mypy it takes a minute or two, else a few seconds."""
    modules = read_modules(root)
    graph = import_graph(modules)
    files, functions = Lengths(limit=LONGEST_FILE), Lengths(limit=LONGEST_FUNCTION)
    columns = COLUMNS.union(*(own_columns(module) for module in modules if module.room in ROW_ROOMS))
    lookups: Counter[str] = Counter()
    lookups_of: dict[str, int] = {}
    docstrings, comments, unannotated = [], [], []
    code = 0
    for module in modules:
        files.add(module.file, len(module.source.splitlines()))
        for function in module.functions:
            functions.add(f"{module.name}.{function.name}", (function.end_lineno or 0) - function.lineno + 1)
        unannotated += [f"{module.name}.{each.name}" for each in module.functions if not is_annotated(each)]
        if module.room in ROW_ROOMS:
            found = row_lookups(module, columns)
            lookups += found
            if found["rows"]:
                lookups_of[module.file] = found["rows"]
        own_docstrings, own_comments = prose(module)
        docstrings += own_docstrings
        comments += own_comments
        code += lines_of_code(module)
    loose = [path.stem for path in sorted((root / "refadgen").glob("*.py")) if path.stem not in MAY_BE_LOOSE]
    text = [*docstrings, *comments]
    figures = {
        "root": str(root),
        "rooms": sorted(path.parent.name for path in (root / "refadgen").glob("*/__init__.py")),
        "loose_files": loose,
        "upward_imports": upward_imports(modules, graph),
        "circles": circles(graph),
        "broken_imports": broken_imports(modules),
        "files": files.figures(),
        "functions": functions.figures(),
        "unannotated": unannotated,
        "annotated_percent": round(100 * (1 - len(unannotated) / len(functions.lines)), 2),
        "row_lookups": lookups["rows"],
        "row_lookups_by_file": lookups_of,
        "table_lookups": lookups["tables"],
        "lines_of_code": code,
        "comments": len(comments),
        "comments_per_100": round(100 * len(comments) / sum(files.lines), 2),
        "comments_per_100_of_code": round(100 * len(comments) / code, 2),
        "docstrings": len(docstrings),
        "turn_on_what": sum(bool(re.search(r"\bwhat\b", each, re.IGNORECASE)) for each in text),
        "begin_with_of": sum(each.lstrip().startswith("Of ") for each in text),
    }
    return figures | (mypy_errors(root) if with_mypy else {})


def table(all_figures: list[dict[str, Any]]) -> str:
    """The figures as aligned text, one column per checkout."""

    def cells(figures: dict[str, Any]) -> dict[str, str]:
        left_out = figures.get("mypy_left_out", [])
        return {
            "": Path(figures["root"]).name,
            "rooms": f"{len(figures['rooms'])}",
            "loose files in refadgen/": f"{len(figures['loose_files'])}",
            "upward imports": f"{len(figures['upward_imports'])}",
            "circles of modules": f"{len(figures['circles'])}",
            "imports of modules that do not exist": f"{len(figures['broken_imports'])}",
            "files": f"{figures['files']['count']}",
            "lines per file, median": f"{figures['files']['median']:g}",
            "lines per file, p90": f"{figures['files']['p90']}",
            "longest file": figures["files"]["longest"],
            f"files over {LONGEST_FILE} lines": f"{len(figures['files']['over_limit'])}",
            "functions": f"{figures['functions']['count']}",
            "lines per function, median": f"{figures['functions']['median']:g}",
            "lines per function, p90": f"{figures['functions']['p90']}",
            "longest function": figures["functions"]["longest"].replace("refadgen.", ""),
            f"functions over {LONGEST_FUNCTION} lines": f"{len(figures['functions']['over_limit'])}",
            "annotated functions, %": f"{figures['annotated_percent']:g}",
            "mypy --strict errors": f"{figures.get('mypy_errors', 'not run')}",
            "rooms that `make lint` leaves out": f"{len(left_out)}" if "mypy_left_out" in figures else "not run",
            "string look-ups on rows": f"{figures['row_lookups']}",
            "string look-ups on Arrow tables": f"{figures['table_lookups']}",
            "lines of code": f"{figures['lines_of_code']}",
            "comments per 100 lines": f"{figures['comments_per_100']:g}",
            "comments per 100 lines of code": f"{figures['comments_per_100_of_code']:g}",
            "docstrings and comments": f"{figures['docstrings'] + figures['comments']}",
            "… that say `what`": f"{figures['turn_on_what']}",
            "… that begin with `Of`": f"{figures['begin_with_of']}",
        }

    columns = [cells(figures) for figures in all_figures]
    widths = [max(map(len, column.values())) for column in columns]
    lines = []
    for name in columns[0]:
        values = "  ".join(f"{column[name]:<{width}}" for column, width in zip(columns, widths, strict=True))
        lines.append(f"{name:<40}{values}".rstrip())
    return "\n".join(lines)


def details(figures: dict[str, Any]) -> str:
    """The names behind the counts of one checkout."""
    lists = {
        "loose files": figures["loose_files"],
        "upward imports": figures["upward_imports"],
        "circles": [" <-> ".join(each) for each in figures["circles"]],
        "imports of modules that do not exist": figures["broken_imports"],
        "files over the limit": figures["files"]["over_limit"],
        "functions over the limit": figures["functions"]["over_limit"],
        "functions without annotations": figures["unannotated"],
        "string look-ups on rows": [f"{name}: {count}" for name, count in figures["row_lookups_by_file"].items()],
        "mypy errors": [f"{name}: {count}" for name, count in figures.get("mypy_errors_by_room", {}).items()],
        "rooms that `make lint` leaves out": figures.get("mypy_left_out", []),
    }
    lines = []
    for title, entries in lists.items():
        if entries:
            lines += ["", f"{Path(figures['root']).name}, {title}:", *(f"  {entry}" for entry in entries)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, action="append", metavar="DIR", help="a checkout; may be given repeatedly")
    parser.add_argument("--no-mypy", action="store_true", help="leave out mypy, which takes a minute or two")
    arguments = parser.parse_args()
    found = [measure(root.resolve(), with_mypy=not arguments.no_mypy) for root in arguments.root or [HERE]]
    print(table(found))
    for figures in found:
        print(details(figures))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
