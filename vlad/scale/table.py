"""The gathered lines as Parquet, for those who ask something of many of them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from vlad.records import Line

TABLE = "results.parquet"
ROWS = 10_000  # of a row group
TEXTS, NUMBERS = ("source", "verdict", "name", "overlay", "error"), ("score", "threshold", "p_value")


def write_table(folder: Path, lines: Iterable[Line]) -> Path:
    """Writes `results.parquet`, written beside and renamed; its path.

    Raises:
        ImportError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise ImportError("--parquet needs pyarrow: pip install 'vlad-ad[parquet]'") from None
    region = pa.struct([("box", pa.list_(pa.int32())), ("area", pa.int64()), ("peak", pa.float64())])
    columns = [(name, pa.string()) for name in TEXTS] + [(name, pa.float64()) for name in NUMBERS]
    schema = pa.schema([*columns, ("size", pa.list_(pa.int32())), ("regions", pa.list_(region))])
    beside, rest = folder / f".{TABLE}", iter(lines)
    with parquet.ParquetWriter(beside, schema, compression="zstd") as writer:
        while some := list(islice(rest, ROWS)):
            rows = [{**line, **{name: _valid(line.get(name)) for name in TEXTS}} for line in some]
            writer.write_table(pa.Table.from_pylist(rows, schema))
    os.replace(beside, folder / TABLE)
    return folder / TABLE


def _valid(text: str | None) -> str | None:
    """The text without what is no Unicode, as names of files may be."""
    return text and text.encode(errors="replace").decode()
