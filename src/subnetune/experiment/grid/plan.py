"""What a grid still has to run, known afresh whenever a cell ends: a finished search makes its group's runs known."""

from __future__ import annotations

from collections.abc import Iterator

from subnetune.experiment.grid.cells import Cell, Group, groups, run_cells, search_cells, settings_of
from subnetune.experiment.grid.config import GridConfig
from subnetune.experiment.grid.folder import CellResult, GridFolder, best_setting


class Plan:
    """The cells of a grid in the order in which they are run, and what they came to. Results are read once each."""

    def __init__(self, folder: GridFolder, grid: GridConfig) -> None:
        self.folder, self.grid = folder, grid
        self.results: dict[str, CellResult] = {}
        self._searches = {group: search_cells(grid, group) for group in groups(grid)}
        self._runs: dict[Group, list[Cell]] = {}
        self.refresh()

    @property
    def total(self) -> int:
        """How many cells the grid has, also those whose search is not finished."""
        return sum(map(len, self._searches.values())) + sum(len(self.grid.seeds_of(g.task)) for g in self._searches)

    @property
    def waiting(self) -> list[Group]:
        """The groups whose search is not finished: their runs are not known yet."""
        return [group for group in self._searches if group not in self._runs]

    def refresh(self) -> list[Cell]:
        """Look for new results; return the cells that have one now and had none before, in order."""
        ended = []
        for cell in self._known():
            if cell.name not in self.results and (result := self.folder.result(cell)) is not None:
                self.results[cell.name] = result
                ended.append(cell)
        return ended

    def _known(self) -> Iterator[Cell]:
        """Yield the cells in order, searches first, and find out about runs when their searches have been yielded."""
        for cells in self._searches.values():
            yield from cells
        for group in self.waiting:
            cells = self._searches[group]
            found = [self.results.get(cell.name) for cell in cells]
            setting = best_setting(cells, found) if cells else settings_of(self.grid, group.method)[0]
            if setting is not None:
                self._runs[group] = list(run_cells(self.grid, group, setting))
        yield from self.runs()

    def runs(self) -> list[Cell]:
        """Return the runs that are known by now, seed by seed: a grid that is cut short lacks a seed, not a method."""
        known = [pair for group in self._searches for pair in enumerate(self._runs.get(group, []))]
        return [cell for _, cell in sorted(known, key=lambda pair: pair[0])]

    def cells(self) -> list[Cell]:
        """Return every cell that is known by now: the searches', then the runs."""
        return [cell for cells in self._searches.values() for cell in cells] + self.runs()

    def open(self) -> list[Cell]:
        """Return the known cells without a result, in the order in which they are to be run."""
        return [cell for cell in self.cells() if cell.name not in self.results]

    def failed(self) -> list[Cell]:
        """Return the cells that failed."""
        return [cell for cell in self.cells() if self._state(cell) == "failed"]

    def done(self) -> list[Cell]:
        """Return the cells that ended well."""
        return [cell for cell in self.cells() if self._state(cell) == "done"]

    def _state(self, cell: Cell) -> str:
        result = self.results.get(cell.name)
        return "open" if result is None else result.state

    def strangers(self) -> int:
        """Return how many finished cells in the folder do not belong to the grid, as it is defined now.

        0 while a search is not finished: which runs will belong is not known.
        """
        if self.waiting:
            return 0
        mine = {self.folder.name_of(cell) for cell in self.cells()}
        found = (path.parent.name for path in (self.folder.path / "cells").glob("[!.]*/result.json"))
        return sum(name not in mine for name in found)

    def forget(self, cell: Cell) -> None:
        """Count a cell as open again, and with it the runs that its search chose."""
        self.results.pop(cell.name, None)
        if cell.stage == "search":
            self._runs.pop(cell.group, None)
