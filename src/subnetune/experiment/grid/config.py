"""A grid as a frozen value: which tasks, methods, seeds and train sizes, and what all of its runs share.

The fields are the names of a grid file and, with dashes, the flags of `subnetune compare`. What a run needs besides
(learning rate, epochs, batch size, ...) stands under `common`, or under a task or a method, by `RunConfig`'s names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, field_validator, model_validator

from subnetune.core.errors import UsageError, nearest
from subnetune.experiment.config import field_names
from subnetune.experiment.fields import File, option
from subnetune.experiment.strict_yaml import dump_yaml, read_yaml

# What the authors of Child-Tuning name in their repository (METHODS A.3): the first N of them are `seeds: N`.
PUBLISHED_SEEDS = (42, 52, 57, 63, 78, 96, 127, 140, 298, 375)
# The published protocol of the small GLUE tasks. Every method gets it, but for what its card says is its own.
BUDGET: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 16,
    "schedule": "linear",
    "warmup": 0.1,
    "weight_decay": 0.01,
    "clip": 1.0,
    "eval_at": "end",
}
# A cell says these itself; given in `common` they would be overruled, so they are refused there.
OF_CELLS = frozenset(
    ("seed", "method", "task", "max_train", "train_seed", "output", "resume", "delta", "holdout", "model", "data_dir")
)
# What a task says of its own files, and what a method may be besides a run's options.
OF_TASKS = frozenset(("train_file", "dev_file", "text", "label", "regression"))
LONGEST_NAME = 200  # characters; YAML reads no key of more than 1024
Options: TypeAlias = dict[str, Any]
Table: TypeAlias = dict[str, Options]


def _seeds(value: object) -> object:
    """Read `3` as the first three published seeds; check a list. `3,` and `3,4` are lists too."""
    if isinstance(value, str):
        parts = [part.strip() for part in value.removesuffix(",").split(",")]
        numbers = [int(part) if part.isdecimal() else part for part in parts]
        value = numbers if "," in value else numbers[0]
    if isinstance(value, Mapping):
        return {task: _seeds(seeds) for task, seeds in value.items()}
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value <= len(PUBLISHED_SEEDS):
            raise ValueError(f"a number of seeds is 1 to {len(PUBLISHED_SEEDS)}; for other seeds write a list of them")
        return PUBLISHED_SEEDS[:value]
    seeds = tuple(value) if isinstance(value, list | tuple) else value
    if isinstance(seeds, tuple):
        if not seeds:
            raise ValueError("an empty list of seeds")
        if len(set(map(repr, seeds))) < len(seeds):
            raise ValueError("a seed stands there twice; each is one run")
        if any(isinstance(seed, int) and not 0 <= seed < 2**32 for seed in seeds):
            raise ValueError("a seed is an integer from 0 to 2**32 - 1")
    return seeds


def _table(value: object) -> object:
    """Read `a,b`, a list of names, or a mapping from names to options (None: no options)."""
    names = _several(value)
    if isinstance(names, tuple):
        if not all(isinstance(name, str) for name in names):
            raise ValueError("a list holds names alone; options stand in a mapping, such as `full: {lr: 1.0e-4}`")
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]!r} stands there twice")
        return {name: {} for name in names}
    if isinstance(value, Mapping):
        return {
            name: dict(entry) if isinstance(entry, Mapping) else {} if entry is None else entry
            for name, entry in value.items()
        }
    return value


def _sizes(value: object) -> object:
    """Read a train size, or a list of them; `all` (None) is the whole file."""
    values = value if isinstance(value, list | tuple) else [value]
    if isinstance(value, str):
        values = [int(part) if part.strip().isdecimal() else part.strip() for part in value.split(",")]
    if any(size is None for size in values):
        raise ValueError("write `all` for the whole file")
    return tuple(None if size == "all" else size for size in values)


def _several(value: object) -> object:
    """Read `a,b` as a list; an empty text is an empty one."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",")) if value.strip() else ()
    return tuple(value) if isinstance(value, list) else value


def _numbers(value: object) -> object:
    """Check a list of numbers, each once."""
    values = tuple(value) if isinstance(value, list) else value
    if isinstance(values, tuple) and len(set(map(repr, values))) < len(values):
        raise ValueError("a value stands there twice")
    return values


Seeds = tuple[int, ...]
Names = Annotated[tuple[str, ...], BeforeValidator(_several)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(_numbers)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Search(_Strict):
    """A small search per task, method and train size, on a part of train that is held out; dev is not looked at.

    Every combination of the values of `lr`, `keep` (where the method has it) and `options` (named lists of options of
    the method) is run with each seed; the best mean of the headline metric is taken, the first listed of equals.
    """

    holdout: float = option(0.3, "The share of train that is held out.", "a number in (0, 1)", gt=0, lt=1)
    max_eval: int | None = option(None, "Evaluate on so many drawn of it.", "an integer of at least 1", ge=1)
    train_size: int | None = option(None, "Train on so many at most; default: as the runs.", "at least 1", ge=1)
    seeds: Annotated[Seeds, BeforeValidator(_seeds)] = option((42,), "Seeds of the search.", "a number or a list")
    lr: Numbers = option((), "Learning rates.", "a list of numbers")
    keep: Numbers = option((), "Fractions that train.", "a list of numbers")
    options: dict[str, Annotated[tuple[Any, ...], BeforeValidator(_several)]] = option(
        {}, "Lists of values of the method's options.", "names and lists"
    )


class GridConfig(_Strict):
    """What a grid runs. See `from_values` for the errors."""

    preset: str | None = option(None, "A protocol to start from; see docs/compare.md.", "a protocol's name")
    model: str = option("minilm", "`minilm`, a folder, or a Hub name.", "a name or folder", min_length=1)
    data_dir: File | None = option(None, "The folder that holds the tasks' official downloads.", "a folder")
    tasks: Annotated[Table, BeforeValidator(_table)] = option(
        {}, "Tasks by name, separated by commas; in a file also with options of their runs.", "names of tasks"
    )
    methods: Annotated[Table, BeforeValidator(_table)] = option(
        {}, "Methods by name; in a file labels with options (`method` names it where the label does not).", "methods"
    )
    seeds: Annotated[Seeds | dict[str, Seeds], BeforeValidator(_seeds)] = option(
        PUBLISHED_SEEDS[:3],
        "The first N published seeds, or a list; in a file also one of these per task.",
        f"a number from 1 to {len(PUBLISHED_SEEDS)}, or a list of integers",
    )
    train_size: Annotated[tuple[int | None, ...], BeforeValidator(_sizes)] = option(
        (None,),
        "Numbers of training examples, drawn apart from the seeds, stratified; `all` is the whole file.",
        "integers of at least 1, or all",
    )
    train_seed: int = option(0, "Draws the training examples, the same for all methods and seeds.", "an integer", ge=0)
    baseline: str | None = option(None, "The method that others are compared with. Default: full.", "a method")
    common: Options = option({}, "Options of every run, by the names of `train`'s flags.", "names and values")
    search: Search | None = option(None, "A search on held-out train before the seeds are run.", "a mapping")
    transfer: Names = option((), "Tasks that every tuned model is evaluated on, unchanged.", "names of tasks")
    probes: Names = option((), "Tasks for which a linear head is fitted on the frozen tuned encoder.", "names of tasks")
    max_transfer: int | None = option(None, "Examples of each of these at most.", "an integer", ge=1)
    analyse: Literal["none", "first", "all"] = option(
        "first", "Analyse representations and loss surface of no run, the first seed's, or all.", "none, first or all"
    )
    artefacts: Literal["all", "first", "none"] = option(
        "all", "Keep deltas and checkpoints of all runs, the first seed's, or none; masks stay.", "all, first or none"
    )

    @field_validator("train_size")
    @classmethod
    def _sizes_are_counts(cls, value: tuple[int | None, ...]) -> tuple[int | None, ...]:
        if not value or any(size is not None and size < 1 for size in value) or len(set(value)) < len(value):
            raise ValueError("train sizes are different integers of at least 1, or all")
        return value

    @model_validator(mode="after")
    def _names_are_known(self) -> GridConfig:
        from subnetune.experiment.grid.own_words import check_other_tasks, needed_of_own
        from subnetune.methods import get
        from subnetune.tasks import find_task

        for name in (*self.tasks, *self.methods):
            if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
                raise ValueError(f"a name has 1 to {LONGEST_NAME} printable characters, not {repr(name)[:80]}")
        known: dict[str, str] = {}
        for name, entry in self.tasks.items():
            if "train_file" not in entry and "dev_file" not in entry:
                if (other := known.setdefault(find_task(name).name, name)) != name:
                    raise ValueError(f"tasks: {name!r} is the task {other!r} again")
            elif missing := [part for part in needed_of_own(entry) if part not in entry]:
                raise ValueError(f"tasks.{name}: own files need {', '.join(missing)} too")
        for label, entry in self.methods.items():
            get(str(entry.get("method", label)))
        check_other_tasks(self.transfer, self.probes, self.tasks)
        if self.baseline is not None and self.baseline not in self.methods:
            raise ValueError(f"baseline {self.baseline!r} is none of the methods {', '.join(self.methods)}")
        if isinstance(self.seeds, dict) and (missing := [name for name in self.tasks if name not in self.seeds]):
            raise ValueError(f"seeds per task name every task; there are none for {', '.join(missing)}")
        _check_options("common", self.common, OF_CELLS | OF_TASKS)
        for name, entry in self.tasks.items():
            _check_options(f"tasks.{name}", entry, OF_CELLS - {"data_dir"})
        for label, entry in self.methods.items():
            _check_options(f"methods.{label}", entry, (OF_CELLS | OF_TASKS) - {"method"}, more=("search",))
        return self

    @property
    def reference(self) -> str | None:
        """The label of the baseline: the one that is named, else `full`, else the first method."""
        return self.baseline or ("full" if "full" in self.methods else next(iter(self.methods), None))

    def seeds_of(self, task: str) -> Seeds:
        """Return the seeds of a task."""
        return self.seeds[task] if isinstance(self.seeds, dict) else self.seeds

    def values(self) -> dict[str, Any]:
        """Return what a grid file would say: plain values by name, all of them, whatever a preset says by now."""
        values = self.model_dump(mode="json")
        values["train_size"] = ["all" if size is None else size for size in self.train_size]
        return values

    def to_yaml(self) -> str:
        """Return the text of `grid.yaml`; reading it back gives an equal grid."""
        return dump_yaml(self.values())

    @classmethod
    def from_values(cls, values: Mapping[str, object], source: str = "") -> GridConfig:
        """Check `values`, the preset's underneath, and return the grid.

        Raises UsageError for all problems at once, each with what was got and what is allowed.
        """
        from subnetune.experiment.grid.protocols import with_protocol

        try:
            grid = cls.model_validate(with_protocol(values))
        except ValidationError as error:
            problems = dict.fromkeys(problem_text(problem, source) for problem in error.errors())
            raise UsageError("\n".join(problems)) from None
        missing = [name for name in ("tasks", "methods") if not getattr(grid, name)]
        if missing:
            raise UsageError(f"a grid needs {' and '.join(missing)}: give --{missing[0]}, or a --preset or --config")
        return grid


def over(below: Mapping[str, object], values: Mapping[str, object]) -> dict[str, object]:
    """Return `values` over `below`: `common` and `search` are merged name by name, and of `tasks` and `methods` that
    are given as bare names the entries of `below` are kept."""
    merged = {**below, **values}
    for name in ("common", "search"):
        first, second = below.get(name), values.get(name)
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            merged[name] = {**first, **second}
            if isinstance(first.get("options"), Mapping) and isinstance(second.get("options"), Mapping):
                merged[name]["options"] = {**first["options"], **second["options"]}  # type: ignore[index]
    for name in ("tasks", "methods"):
        first, second = below.get(name), _several(values.get(name))
        if not isinstance(first, Mapping) or not isinstance(second, tuple):
            continue
        if all(isinstance(label, str) for label in second) and len(set(second)) == len(second):
            merged[name] = {label: first.get(label) for label in second}
    return merged


def load_grid(file: Path | None, flags: Mapping[str, object]) -> GridConfig:
    """Return the grid that a file and flags describe; flags win as `over` says. Raises UsageError."""
    values: Mapping[str, object] = read_yaml(file).values if file is not None else {}
    return GridConfig.from_values(over(values, flags), "" if file is None else str(file))


def _check_options(where: str, given: Options, of_grid: frozenset[str], more: tuple[str, ...] = ()) -> None:
    """Raise ValueError for an option that no run has, or that the grid itself decides (`of_grid`)."""
    for name in given:
        if name in of_grid:
            raise ValueError(f"{where}: {name!r} is said by the grid itself, not among the options there")
        if name not in field_names() and name not in more:
            raise ValueError(f"{where}: unknown option {name!r}{nearest(name, field_names())}")
        value = given[name]
        if not isinstance(value, Mapping) and (name == "options" or (name == "search" and value is not None)):
            raise ValueError(f"{where}.{name}: got {repr(value)[:80]}, allowed is a mapping from names to values")


def problem_text(problem: Any, source: str) -> str:
    """Return one of pydantic's errors about a grid as a line: where, what was got, what is allowed."""
    named = problem["loc"][:1] in (("tasks",), ("methods",), ("search",))
    path = ".".join(str(part) for part in problem["loc"][: 2 if named else 1])
    message = str(problem["msg"]).removeprefix("Value error, ")
    where = f"{source}: " if source else ""
    kind: type[BaseModel] = Search if problem["loc"][:1] == ("search",) and "." in path else GridConfig
    field = kind.model_fields.get(path.removeprefix("search.") if kind is Search else path.partition(".")[0])
    if problem["type"] == "extra_forbidden":
        near = nearest(path.removeprefix("search."), kind.model_fields)
        hint = "; options of runs stand under `common`" if path in field_names() else near
        return f"{where}unknown option {path!r}{hint}"
    if problem["type"] == "value_error" or field is None:
        return f"{where}{path}: {message}" if path else f"{where}{message}"
    extra = field.json_schema_extra
    allowed = extra["allowed"] if isinstance(extra, dict) else ""
    return f"{where}{path}: got {repr(problem['input'])[:200]}, allowed is {allowed}"
