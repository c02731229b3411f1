"""A contract of import-linter: all that a room may import of our own code, listed. Read by `lint-imports`."""

from __future__ import annotations

from typing import Any

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class AllowList(Contract):
    """The modules of `room` import of our packages only what is in `allowed`, a module or a package each, and each
    other. What is not listed is forbidden, so that a new way between two rooms is a line in pyproject.toml."""

    type_name = "allow_list"

    room = fields.StringField()
    allowed = fields.SetField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Every import of the room that is not on the list."""
        room: Any = self.room
        allowed: Any = self.allowed
        inside = {room, *graph.find_descendants(room)}
        strangers = [
            (importer, imported)
            for importer in sorted(inside)
            for imported in sorted(graph.find_modules_directly_imported_by(importer) - inside)
            if not any(imported == each or imported.startswith(f"{each}.") for each in allowed)
        ]
        return ContractCheck(kept=not strangers, metadata={"strangers": strangers})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Each import that is not on the list, in one line."""
        for importer, imported in check.metadata["strangers"]:
            output.print_error(f"{importer} imports {imported}, which is not on the list of {self.room}")
