"""Options as checked values: fields with a meaning and an allowed range, from flags, from a file, and written back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from subnetune.core.errors import UsageError, nearest
from subnetune.experiment.piece_texts import piece_texts
from subnetune.experiment.strict_yaml import dump_yaml, read_yaml

OptionValue: TypeAlias = bool | int | float | str | tuple[bool | int | float | str, ...] | None


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _names(value: object) -> object:
    # One name may stand for a list of one, and commas separate as they do on the command line.
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else _tuple(value)


def _path(value: object) -> object:
    return Path(value).expanduser() if isinstance(value, str) and value else value


def _pieces(value: object) -> object:
    try:
        return piece_texts(value)
    except UsageError as error:
        raise ValueError(str(error)) from None


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
Trackers = Annotated[tuple[Literal["tensorboard", "trackio", "wandb", "mlflow"], ...], BeforeValidator(_names)]
Pieces = Annotated[tuple[str, ...], BeforeValidator(_pieces)]
File = Annotated[Path, BeforeValidator(_path)]
Value = Annotated[OptionValue, BeforeValidator(_tuple)]


def option(default: Any, meaning: str, allowed: str, **limits: Any) -> Any:
    """Return a field: `meaning` is its help text, `allowed` is what an error message says was wanted."""
    return Field(default, description=meaning, json_schema_extra={"allowed": allowed}, **limits)


class Options(BaseModel):
    """What a command does: the fields of its subclasses. Checked when made; see `from_values` for the errors."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,  # True is not 1, and "3" is not 3
        allow_inf_nan=False,
        validate_by_name=True,
        validate_by_alias=True,
        hide_input_in_errors=False,
    )

    @classmethod
    def field_names(cls) -> dict[str, str]:
        """Map each name that a file may use to its attribute (they differ for `with`)."""
        return {field.alias or name: name for name, field in cls.model_fields.items()}

    @classmethod
    def from_values(
        cls, values: Mapping[str, object], source: str = "", lines: Mapping[str, int] | None = None
    ) -> Self:
        """Check `values` (names as in a configuration file) and return the run.

        Raises:
            UsageError: for all problems at once; each names the field, what was got and what is allowed, and where
                `source` and `lines` are given the file and line that it came from.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            problems = dict.fromkeys(cls._problem(problem, source, lines or {}) for problem in error.errors())
            raise UsageError("\n".join(problems)) from None

    @classmethod
    def load(cls, file: Path | None, flags: Mapping[str, object]) -> Self:
        """Return what a configuration file and flags describe; flags win, `options` merge name by name.

        Raises:
            UsageError: the file or a value is not what it must be (see `read_yaml` and `from_values`).
        """
        if file is None:
            return cls.from_values(flags)
        document = read_yaml(file)
        values: dict[str, object] = {**document.values, **flags}
        of_file, of_flags = document.values.get("options"), flags.get("options")
        if isinstance(of_file, dict) and isinstance(of_flags, dict):
            values["options"] = {**of_file, **of_flags}
        lines = {name: line for name, line in document.lines.items() if name.partition(".")[0] not in flags}
        return cls.from_values(values, str(file), lines)

    def values(self) -> dict[str, object]:
        """Return what a configuration file would say: plain values by name, without what is unset."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def to_yaml(self) -> str:
        """Return the text of a configuration file; reading it back gives an equal value."""
        return dump_yaml(self.values())

    @classmethod
    def _problem(cls, problem: Any, source: str, lines: Mapping[str, int]) -> str:
        """One line of an error message: where, which field, what was got, what is allowed."""
        path = [str(part) for part in problem["loc"]]
        name, known = path[0] if path else "", cls.field_names()
        line = lines.get(".".join(path[:2]), lines.get(name))
        where = f"{source}, line {line}: " if line else ""
        if not name:
            return f"{where}{problem['msg'].removeprefix('Value error, ')}"
        if problem["type"] == "extra_forbidden":
            meant = "; what --set gives is `options: {NAME: VALUE}` here" if name == "set" else nearest(name, known)
            return f"{where}unknown option {name!r}{meant}"
        extra = cls.model_fields[known.get(name, name)].json_schema_extra
        allowed = extra["allowed"] if isinstance(extra, dict) else ""
        reason = f" ({problem['msg'].removeprefix('Value error, ')})" if problem["type"] == "value_error" else ""
        return f"{where}{name}: got {repr(problem['input'])[:200]}, allowed is {allowed}{reason}"
