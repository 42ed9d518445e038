"""A command's flags, made from a configuration's fields: one meaning, one allowed range, wherever an option is set."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias, get_args, get_type_hints

import typer

from subnetune.core.errors import UsageError
from subnetune.experiment.config import RunConfig
from subnetune.experiment.fields import Options
from subnetune.experiment.strict_yaml import parse_value

Panels: TypeAlias = Mapping[str, tuple[str, ...]]

# The flags of `train`, in the order and under the headings of its help. `options` is written --set NAME=VALUE.
PANELS: dict[str, tuple[str, ...]] = {
    "Model and examples": (
        *("model", "task", "data_dir", "train_file", "dev_file", "text", "label", "regression"),
        *("max_length", "max_train", "max_eval", "holdout", "train_seed"),
    ),
    "Method": ("method", "with_", "keep", "cycle", "peft_config", "options"),
    "Training": (
        *("lr", "epochs", "batch_size", "weight_decay", "schedule", "warmup", "accumulate", "clip", "bf16"),
        *("max_steps", "seed", "policy", "eval_at", "engine", "gradients"),
    ),
    "Run": ("output", "resume", "save_steps", "eval_batch_size", "threads", "track"),
}
TRAIN = tuple(name for names in PANELS.values() for name in names)
EXAMPLES = (
    "model",
    "delta",
    *PANELS["Model and examples"][1:8],
    "max_length",
    "max_eval",
    "eval_batch_size",
    "threads",
)


def takes(
    *names: str, of: type[Options] = RunConfig, panels: Panels = PANELS
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command `--config` and the flags of these fields of `of`; its parameter `config` becomes the checked run.

    The command's other parameters stay its own. A flag that is not given leaves its field to the file or the default.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(function, include_extras=True)
        own = [
            p.replace(annotation=hints[n]) for n, p in inspect.signature(function).parameters.items() if n != "config"
        ]
        flags = [option_flag(name, of=of, panels=panels) for name in names]

        def command(**given: Any) -> None:
            file = given.pop("config_file")
            values = given_values(((name, given.pop(name)) for name in names), of)
            function(config=of.load(file, values), **given)

        parameters = [*own, _config_file(), *flags]
        # What typer reads: the signature and the annotations of the function that it will call.
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        return command

    return decorate


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _config_file() -> inspect.Parameter:
    meaning = "A YAML file with any of these options, by their names; flags win over it."
    return _parameter("config_file", Annotated[Path | None, typer.Option("--config", help=meaning, metavar="FILE")])


def option_flag(
    name: str, usual: object = None, of: type[Options] = RunConfig, panels: Panels = PANELS
) -> inspect.Parameter:
    """Return the flag of one field. Values are read from text as from a file, so errors read alike.

    `usual` is the default that the help names, where the command has one of its own.
    """
    field = of.model_fields[name]
    panel = next((panel for panel, names in panels.items() if name in names), "Model and examples")
    spelled = "--set" if name == "options" else f"--{name.strip('_').replace('_', '-')}"
    shown = field.default if usual is None else usual
    shown = ",".join(map(str, shown)) if isinstance(shown, tuple) else shown
    default = "" if shown in (None, "", {}, False) else f" Default: {shown}."
    meaning = f"{field.description}{default}"
    if field.annotation is bool:
        both = f"{spelled}/--no-{spelled[2:]}"
        return _parameter(name, Annotated[bool | None, typer.Option(both, help=meaning, rich_help_panel=panel)])
    kind = list[str] if name in ("with_", "options") else str
    return _parameter(
        name,
        Annotated[kind | None, typer.Option(spelled, help=meaning, metavar=_metavar(name, of), rich_help_panel=panel)],
    )


def _kinds(name: str, of: type[Options]) -> set[Any]:
    annotation = of.model_fields[name].annotation
    return set(get_args(annotation) or (annotation,)) - {type(None)}


def _metavar(name: str, of: type[Options]) -> str:
    if name == "options":
        return "NAME=VALUE"
    if name == "text":
        return "A[,B]"
    if name in ("track", "tasks", "outer", "freeze"):
        return "NAME[,NAME]"
    if name == "with_":
        return "NAME[:OPTION=VALUE,...]"
    kinds = _kinds(name, of)
    if float in kinds:
        return "NUMBER"
    return "INTEGER" if int in kinds else "PATH" if Path in map(_bare, kinds) else "TEXT"


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_args(annotation) else annotation


def given_values(given: Iterable[tuple[str, Any]], of: type[Options] = RunConfig) -> dict[str, object]:
    """Return the flags that were given, as the values that a configuration file would hold."""
    values: dict[str, object] = {}
    for name, value in given:
        if value is None or value == []:
            continue
        key = of.model_fields[name].alias or name
        if name == "options":
            values[key] = settings(value)
        elif name == "text":
            values[key] = [column.strip() for column in value.split(",")]
        elif isinstance(value, str) and _kinds(name, of) & {int, float}:
            values[key] = parse_value(value, f"--{name.replace('_', '-')}")
        else:
            values[key] = value
    return values


def settings(given: Iterable[str]) -> Mapping[str, object]:
    """Read `NAME=VALUE` texts. Raises UsageError for one without `=`, or a name that is set twice."""
    values: dict[str, object] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"--set: got {text!r}, wanted NAME=VALUE, such as --set unit=row")
        if name in values:
            raise UsageError(f"--set: {name!r} is set twice")
        values[name] = parse_value(value, f"--set {name}")
    return values
