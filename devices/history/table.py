"""The figures of a store as a table `metrics` in DuckDB: one row for each metric of each measurement and score."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices.errors import MeasurementError, StoreError
from devices.measure.measurement import load_measurement
from devices.measure.metrics import METRICS
from devices.measure.result import Result
from devices.measure.score import is_score, load_score
from export.strict import read_json

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


class History:
    """A store's figures, to ask by SQL."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Read them. Raises MeasurementError."""
        import duckdb

        self._errors = duckdb.Error
        self._tables: DuckDBPyConnection = duckdb.connect()
        with tempfile.TemporaryDirectory() as folder:
            rows = Path(folder) / "rows.ndjson"  # a row at a time through the API takes a millisecond each
            with rows.open("w", encoding="utf-8") as out:
                for file in files:
                    out.writelines(json.dumps(row) + "\n" for row in _rows(file))
            columns = ", ".join(f"{name}: '{kind}'" for name, kind in COLUMNS.items())
            self._tables.execute(
                "CREATE TABLE metrics AS SELECT * FROM read_json("
                f"$rows, format = 'newline_delimited', columns = {{{columns}}}) ORDER BY created_at, file",
                {"rows": str(rows)},
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


def _rows(path: Path) -> Iterator[dict[str, object]]:
    content = read_json(path, MeasurementError, "it was damaged after it was added; move it away")
    if is_score(content):
        result = Result(None, load_score(content, path))
        workload = threads = None
    else:
        result = Result(measurement := load_measurement(content, path), None)
        workload, threads = measurement.workload, measurement.workload.threads
    made = result.measurement or result.score
    assert made is not None
    facts, valid = result.artifact, not result.problems
    for name, summary in result.summaries().items():
        if summary is not None:
            yield {
                "created_at": made.created_at,
                "artifact": facts.name,
                "digest": facts.digest,
                "format": facts.format,
                "target": facts.target,
                "scheme": facts.scheme,
                "source": facts.source,
                "device": result.device.name,
                "prompt_tokens": workload.prompt_tokens if workload else None,
                "generate_tokens": workload.generate_tokens if workload else None,
                "threads": threads,
                "metric": name,
                "unit": METRICS[name].unit,
                "value": summary.value,
                "low": summary.low,
                "high": summary.high,
                "samples": len(summary.samples),
                "valid": valid,
                "file": f"{path.parent.name}/{path.name}",
            }
