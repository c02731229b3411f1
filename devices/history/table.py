"""The figures of a store as tables in DuckDB.

`metrics` has a row for each metric of each measurement and score, `changes` one for each change point.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices.errors import StoreError
from devices.history.figures import FileFigures
from devices.history.series import Changed, all_changes
from devices.measure.metrics import METRICS

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# Times are text, ISO 8601 in UTC: they sort, and DuckDB casts them where somebody wants to count with them.
COLUMNS = {
    "created_at": "VARCHAR",
    "artifact": "VARCHAR",
    "digest": "VARCHAR",
    "format": "VARCHAR",
    "target": "VARCHAR",
    "scheme": "VARCHAR",
    "source": "VARCHAR",
    "device": "VARCHAR",
    "prompt_tokens": "BIGINT",
    "generate_tokens": "BIGINT",
    "threads": "BIGINT",
    "metric": "VARCHAR",
    "unit": "VARCHAR",
    "value": "DOUBLE",
    "low": "DOUBLE",
    "high": "DOUBLE",
    "samples": "BIGINT",
    "valid": "BOOLEAN",
    "file": "VARCHAR",
}


CHANGES = {
    "created_at": "VARCHAR",
    "artifact": "VARCHAR",
    "digest": "VARCHAR",
    "device": "VARCHAR",
    "prompt_tokens": "BIGINT",
    "generate_tokens": "BIGINT",
    "threads": "BIGINT",
    "metric": "VARCHAR",
    "before": "DOUBLE",
    "after": "DOUBLE",
    "ratio": "DOUBLE",
    "p": "DOUBLE",
    "file": "VARCHAR",
}


class History:
    """A store's figures, to ask by SQL."""

    def __init__(self, files: Sequence[FileFigures]) -> None:
        import duckdb

        self._errors = duckdb.Error
        self._tables: DuckDBPyConnection = duckdb.connect()
        self._make("metrics", COLUMNS, (row for file in files for row in _rows(file)))
        self._make("changes", CHANGES, map(_change, all_changes(files)))

    def _make(self, name: str, columns: Mapping[str, str], rows: Iterable[Mapping[str, object]]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rows.ndjson"  # a row at a time through the API takes a millisecond each
            with file.open("w", encoding="utf-8") as out:
                out.writelines(json.dumps(row) + "\n" for row in rows)
            kinds = ", ".join(f"{column}: '{kind}'" for column, kind in columns.items())
            self._tables.execute(
                f"CREATE TABLE {name} AS SELECT * FROM read_json("
                f"$file, format = 'newline_delimited', columns = {{{kinds}}}) ORDER BY created_at, file",
                {"file": str(file)},
            )

    def ask(self, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """The names of the columns, and the rows. Raises StoreError."""
        try:
            answer = self._tables.execute(sql)
            return [column[0] for column in answer.description or ()], answer.fetchall()
        except self._errors as error:
            said = str(error).splitlines()[0]
            raise StoreError(f"DuckDB did not do it: {said}; the table metrics has {', '.join(COLUMNS)}") from error

    def write(self, out: Path, form: str) -> None:
        """The table as a file of `csv` or `parquet`. Raises StoreError."""
        option = {"csv": "FORMAT csv, HEADER", "parquet": "FORMAT parquet"}[form]
        quoted = str(out).replace("'", "''")
        try:
            self._tables.execute(f"COPY metrics TO '{quoted}' ({option})")
        except self._errors as error:
            said = str(error).splitlines()[0]
            raise StoreError(f"{out}: cannot be written ({said}); give another file") from error

    def close(self) -> None:
        """Free its memory."""
        self._tables.close()


def _rows(file: FileFigures) -> Iterator[dict[str, object]]:
    for name, (value, low, high, samples) in file.metrics.items():
        yield {
            "created_at": file.created_at,
            "artifact": file.artifact,
            "digest": file.digest,
            "format": file.format,
            "target": file.target,
            "scheme": file.scheme,
            "source": file.source,
            "device": file.device,
            "prompt_tokens": file.prompt_tokens,
            "generate_tokens": file.generate_tokens,
            "threads": file.threads,
            "metric": name,
            "unit": METRICS[name].unit,
            "value": value,
            "low": low,
            "high": high,
            "samples": samples,
            "valid": not file.problems,
            "file": file.file,
        }


def _change(changed: Changed) -> dict[str, object]:
    file, change = changed.file, changed.change
    return {
        "created_at": file.created_at,
        "artifact": file.artifact,
        "digest": file.digest,
        "device": file.device,
        "prompt_tokens": file.prompt_tokens,
        "generate_tokens": file.generate_tokens,
        "threads": file.threads,
        "metric": changed.metric,
        "before": change.before,
        "after": change.after,
        "ratio": change.ratio,
        "p": change.p,
        "file": file.file,
    }
