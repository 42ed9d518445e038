"""Episodes: which tasks an outer step takes, and their support and query batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch

from subnetune.core.errors import DataError, LifeCycleError, UsageError
from subnetune.core.hashing import draw_seed
from subnetune.core.types import Batch
from subnetune.prepare.priming.chance import seeded

if TYPE_CHECKING:
    from subnetune.prepare.prime import Prime


class Episode(NamedTuple):
    """One task's part of an outer step: `support` for the inner loop, `query` for the outer loss."""

    task: str
    support: tuple[Batch, ...]
    query: tuple[Batch, ...]


class Episodes:
    """Endless episodes of the named tasks: all tasks once, in a seeded order, then again in another.

    Each task goes through its batches pass after pass, and takes the next ones whenever it is its turn. Random states
    are seeded for every batch, so that the episodes are a function of the seed, however the batches are drawn: a pass
    that is begun anew should give them in another order.
    """

    def __init__(self, prime: Prime, tasks: Mapping[str, Callable[[], Iterable[Batch]]], seed: int) -> None:
        names, support = prime.tasks, prime.inner_steps if prime.support is None else prime.support
        missing = [name for name in names if name not in tasks]
        if missing:
            raise UsageError(
                f"Prime: no batches for task {missing[0]!r}; the Tuning's tasks are {', '.join(map(repr, tasks))}"
            )
        self._names, self._sizes, self._seed = names, (support, prime.query), seed
        self._streams = {name: _endless(name, tasks[name]) for name in names}
        self.count, self._taken = 0, dict.fromkeys(names, 0)

    def next(self) -> Episode:
        """Return the next episode. Raises DataError where a pass over a task's batches is empty."""
        name = self._turn()
        support, query = (tuple(self._batch(name) for _ in range(size)) for size in self._sizes)
        return Episode(name, support, query)

    def skip(self, count: int) -> None:
        """Leave out the first `count` episodes, which a resumed run has had. LifeCycleError: some were drawn."""
        if self.count:
            raise LifeCycleError("a priming that has taken steps cannot go on from a saved state: build it anew")
        for _ in range(count):
            self.next()

    def _batch(self, name: str) -> Batch:
        with seeded(self._seed, self._taken[name], f"batches of {name}"):
            self._taken[name] += 1
            return next(self._streams[name])

    def _turn(self) -> str:
        lap, place = divmod(self.count, len(self._names))
        self.count += 1
        generator = torch.Generator().manual_seed(draw_seed(self._seed, lap, "priming: order of tasks"))
        return self._names[int(torch.randperm(len(self._names), generator=generator)[place])]


def _endless(name: str, batches: Callable[[], Iterable[Batch]]) -> Iterator[Batch]:
    while True:
        empty = True
        for batch in batches():
            empty = False
            yield batch
        if empty:
            raise DataError(f"Prime: task {name!r} has no batches")
