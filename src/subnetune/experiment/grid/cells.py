"""The cells of a grid: one run each, named by what differs from the defaults."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from subnetune.core.errors import UsageError
from subnetune.experiment.config import RunConfig, resolve
from subnetune.experiment.grid.config import BUDGET, GridConfig, Search, problem_text
from subnetune.experiment.rundir import read_json

Stage = Literal["search", "run"]
# What changes where or how fast a cell runs, not what comes out (threads: the last digits, if anything).
OF_METHODS = frozenset(("keep", "cycle", "peft_config"))  # options that some methods have
_TOKENIZER = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "spiece", "sentencepiece", "bpe")
FILES = ("train_file", "dev_file", "peft_config")
NOT_IN_HASH = frozenset(("output", "resume", "data_dir", "threads", "save_steps", "eval_batch_size", "track"))


class Group(NamedTuple):
    """What one search chooses for: the cells that differ in their seed alone."""

    task: str
    method: str  # the label of the grid
    train_size: int | None


@dataclass(frozen=True)
class Cell:
    """One run of a grid. `values` are `RunConfig`'s, without where it is run; `setting` is what a search varies.

    `stage` "search" evaluates on held-out training data, "run" on the task's own evaluation splits.
    """

    group: Group
    seed: int
    stage: Stage
    values: Mapping[str, Any] = field(hash=False)
    setting: Mapping[str, Any] = field(hash=False)
    analyse: bool = False  # representations and loss surface too
    keep: bool = True  # deltas, masks and checkpoints stay when the cell is done

    @functools.cached_property
    def name(self) -> str:
        """The name of the cell's folder: readable parts, and the hash of all that differs from the defaults."""
        size = "" if self.group.train_size is None else f"-n{self.group.train_size}"
        stage = "search-" if self.stage == "search" else ""
        text = f"{stage}{self.group.task}-{self.group.method}{size}-seed{self.seed}"
        safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in text)[:80].lstrip(".-")
        return f"{safe}-{self.digest[:10]}"

    @functools.cached_property
    def digest(self) -> str:
        """Return the sha256 (hex) of what decides the result: equal runs have equal names, whatever the grid says."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        """Return the options that differ from their defaults; a folder or file counts by its content, not its place."""
        found = {k: v for k, v in self.values.items() if k not in NOT_IN_HASH}
        model = Path(str(found.get("model", "")))
        if model.is_dir():
            found["model"] = model_digest(str(model))
        elif model.is_absolute():
            found["model"] = model.name
        for name in FILES:
            if found.get(name):
                found[name] = file_digest(str(found[name]))
        return found

    @property
    def here(self) -> bool:
        """Whether what counts by its content is here. Where it is not, the name is another than it was with it."""
        files = [Path(str(self.values[name])) for name in FILES if self.values.get(name)]
        model = Path(str(self.values.get("model", "")))
        return (model.is_dir() or not model.is_absolute()) and all(file.is_file() for file in files)

    @property
    def description(self) -> str:
        """Return what the cell was told, files by their place: it tells cells apart where contents are not here."""
        told = {name: value for name, value in self.values.items() if name not in NOT_IN_HASH}
        return json.dumps([*self.group, self.seed, self.stage, told], sort_keys=True)

    def config(self, **more: Any) -> RunConfig:
        """Return the run, resolved. `more` says where and how it runs (output, threads, resume)."""
        return resolve(RunConfig.from_values({**self.values, **more}))


@functools.cache
def model_digest(folder: str) -> str:
    """Return the name and a sha256 of a model's folder: of its configuration, tokenizer and all of its weights.

    All of them, at a GB or two a second: a merged delta or a priming may move a few entries anywhere in a file.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        if path.name == "config.json":
            digest.update(path.read_bytes())
        elif path.suffix in (".safetensors", ".bin") or path.name.startswith(_TOKENIZER):
            with path.open("rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return f"{Path(folder).resolve().name}:{digest.hexdigest()[:16]}"


@functools.cache
def file_digest(path: str) -> str:
    """Return the start of a file's sha256, or its name where it is not here."""
    if not Path(path).is_file():
        return Path(path).name
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def budget_of(method: str) -> dict[str, Any]:
    """Return the options that all methods of a grid share, but for what the method's card says is its own.

    A preset that sets the model's dropout, as the code of DPS does, leaves it to the model unless the card says so.
    """
    from subnetune.methods import get

    found = get(method)
    shared = {name: value for name, value in BUDGET.items() if name not in found.card.own}
    if (
        "dropout" in found.options
        and "dropout" not in found.card.own
        and any(getattr(preparation, "dropout_rate", None) is not None for preparation in found.preset().prepare)
    ):
        shared["options"] = {"dropout": None}
    return shared


def values_of(grid: GridConfig, group: Group, seed: int, setting: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a run: budget, then `common`, the task's, the method's, and what a search chose."""
    task, method = grid.tasks[group.task], dict(grid.methods[group.method])
    method.pop("search", None)
    name = str(method.pop("method", group.method))
    values: dict[str, Any] = {"model": grid.model, "method": name, **budget_of(name), "seed": seed}
    if "train_file" not in task:
        values["task"] = group.task
    if grid.data_dir is not None:  # also beside own files: transfer sets and probes are read from it
        values["data_dir"] = str(grid.data_dir)
    options: dict[str, Any] = dict(values.get("options", {}))
    for part in (shared_by(grid.common, name), task, method, setting):
        options |= part.get("options", {})
        values |= part
    if options:
        values["options"] = options
    if group.train_size is not None:
        values |= {"max_train": group.train_size, "train_seed": grid.train_seed}
    return _plain(values)


def shared_by(common: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Return what of `common` a method takes: no options that it does not have, nothing that its card says is its own.

    `--keep 0.3` for all methods is meant for those that have one.
    """
    from subnetune.methods import get

    found = get(method)
    lacking = {*OF_METHODS.difference(found.options), *found.card.own}
    values = {name: value for name, value in common.items() if name not in lacking}
    if isinstance(options := values.get("options"), Mapping):
        values["options"] = {name: value for name, value in options.items() if name in found.options}
    return values


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checked values as a file would hold them, defaults left out (what was said or not hashes alike)."""
    run = RunConfig.from_values(values)
    return run.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True) | {
        name: values[name] for name in ("method", "seed", "model") if name in values
    }


def groups(grid: GridConfig) -> list[Group]:
    """Return every task x method x train size, tasks outermost."""
    return [Group(*key) for key in itertools.product(grid.tasks, grid.methods, grid.train_size)]


def run_cells(grid: GridConfig, group: Group, setting: Mapping[str, Any]) -> Iterator[Cell]:
    """Yield the cells of a group, one a seed, with what its search chose ({} where there is none)."""
    for number, seed in enumerate(grid.seeds_of(group.task)):
        keep = grid.artefacts == "all" or (grid.artefacts == "first" and number == 0)
        analyse = grid.analyse == "all" or (grid.analyse == "first" and number == 0)
        yield Cell(group, seed, "run", values_of(grid, group, seed, setting), setting, analyse, keep)


def search_of(grid: GridConfig, label: str) -> Search | None:
    """Return the search of a method: the grid's, with what the method's own entry says in its place."""
    own = grid.methods[label].get("search")
    if own is None:
        return grid.search
    below = grid.search.model_dump() if grid.search else {}
    try:
        return Search.model_validate({**below, **own})
    except ValidationError as error:
        found = [problem_text({**problem, "loc": ("search", *problem["loc"])}, "") for problem in error.errors()]
        raise UsageError("\n".join(dict.fromkeys(f"methods.{label}: {text}" for text in found))) from None


def searched_size(search: Search, train_size: int | None) -> int | None:
    """Return how many examples a search trains on for runs of `train_size`: never more than they do. None: all left."""
    return min((size for size in (search.train_size, train_size) if size is not None), default=None)


def settings_of(grid: GridConfig, label: str) -> list[dict[str, Any]]:
    """Return what the search of a method tries, in order; [{}] where there is nothing to search."""
    from subnetune.methods import get

    search = search_of(grid, label)
    if search is None:
        return [{}]
    entry = grid.methods[label]
    axes: dict[str, tuple[Any, ...]] = {}
    if search.lr and "lr" not in entry:
        axes["lr"] = search.lr
    if search.keep and "keep" not in entry and "keep" in get(str(entry.get("method", label))).options:
        axes["keep"] = search.keep
    found = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    every = get(str(entry.get("method", label))).options
    given = entry.get("options", {})
    for name, values in search.options.items():
        if name in given or (name not in every and name not in entry.get("search", {}).get("options", {})):
            continue  # said already, or of other methods: the whole grid's search names what any of them has
        found = [{**one, "options": {**one.get("options", {}), name: value}} for one in found for value in values]
    return found


def search_cells(grid: GridConfig, group: Group) -> list[Cell]:
    """Return the cells that choose a group's setting: none where there is nothing to choose between."""
    settings, search = settings_of(grid, group.method), search_of(grid, group.method)
    if len(settings) < 2 or search is None:
        return []
    cells = []
    for seed in search.seeds:
        for setting in settings:
            values = values_of(grid, group, seed, setting) | {"holdout": search.holdout, "train_seed": grid.train_seed}
            values.pop("dev_file", None)  # not to be looked at
            if search.max_eval is not None:
                values["max_eval"] = search.max_eval
            if (size := searched_size(search, group.train_size)) is not None:
                values["max_train"] = size
            cells.append(Cell(group, seed, "search", _plain(values), setting, keep=False))
    return cells


def read_cell(path: Path) -> Cell:
    """Return the cell that `write_cell` described in `path`."""
    found = read_json(path)
    group = Group(found["task"], found["method"], found["train_size"])
    return Cell(
        group, found["seed"], found["stage"], found["values"], found["setting"], found["analyse"], found["keep"]
    )


def describe_cell(cell: Cell) -> dict[str, Any]:
    """Return what `read_cell` reads."""
    return {
        **cell.group._asdict(),
        "seed": cell.seed,
        "stage": cell.stage,
        "setting": dict(cell.setting),
        "values": dict(cell.values),
        "analyse": cell.analyse,
        "keep": cell.keep,
    }
