"""A catalogue several times over, for benchmarks: other skus, the same photographs."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

DEMO = Path(__file__).resolve().parents[2] / "catalogs" / "demo.parquet"


def write_repeated(file: Path, times: int, source: Path = DEMO, num_variants: int | None = None) -> int:
    """Writes `source` `times` over, its images by absolute paths. num_variants: of each scene; None: the job's.

    Returns the number of rows. A run needs `file_roots(source)`.
    """
    table = pq.read_table(source)
    for name in ("image", "mask"):
        place = table.schema.get_field_index(name)
        if place >= 0:
            column = [None if value is None else str(source.parent / value) for value in table[name].to_pylist()]
            table = table.set_column(place, name, pa.array(column, pa.string()))
    copies = []
    for number in range(times):
        skus = pc.binary_join_element_wise(table["sku"].cast(pa.string()), f"{number:04}", "-")
        copies.append(table.set_column(table.schema.get_field_index("sku"), "sku", skus))
    whole = pa.concat_tables(copies)
    if num_variants is not None:
        whole = whole.append_column("num_variants", pa.array([num_variants] * len(whole)))
    pq.write_table(whole, file)
    return len(whole)


def file_roots(source: Path = DEMO) -> str:
    """The setting that allows a catalogue elsewhere to read the images of `source`."""
    return f"fetch.file_roots=[{source.parent}]"
