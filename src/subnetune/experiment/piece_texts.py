"""Pieces as texts, `l2-sp:weight=0.01`: what `--with` and a configuration file say, in one way of writing each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from subnetune.core.errors import UsageError
from subnetune.experiment.strict_yaml import parse_value


def read_piece(text: str) -> tuple[str, dict[str, Any]]:
    """Read `NAME` or `NAME:OPTION=VALUE[,OPTION=VALUE]`. Raises UsageError for anything else."""
    name, colon, rest = text.partition(":")
    wanted = f"{text!r}: wanted NAME or NAME:OPTION=VALUE,OPTION=VALUE, such as l2-sp:weight=0.01"
    if not name.strip() or (colon and not rest.strip()):
        raise UsageError(wanted)
    options: dict[str, Any] = {}
    for part in _split(rest) if colon else ():
        option, equals, value = part.partition("=")
        if not equals or not option.strip():
            raise UsageError(wanted)
        if option.strip() in options:
            raise UsageError(f"{text!r}: {option.strip()!r} is set twice")
        options[option.strip()] = parse_value(value.strip(), f"{name.strip()}:{option.strip()}")
    return name.strip(), options


def write_piece(name: str, options: Mapping[str, object]) -> str:
    """Return the one text that means this piece with these options, sorted by name."""
    shown = ",".join(f"{option}={_value(options[option])}" for option in sorted(options))
    return f"{name}:{shown}" if shown else name


def piece_texts(value: object) -> object:
    """Return what a configuration says of pieces as a tuple of texts, one for each; anything else comes back as it is.

    It may be one text with commas, a list of texts and of mappings `{l2-sp: {weight: 0.01}}`, or one such mapping.
    Raises UsageError for a text that is no piece.
    """
    if isinstance(value, str):
        value = list(_pieces(value))
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        return value
    texts: list[Any] = []
    for item in value:
        if isinstance(item, str):
            texts.append(write_piece(*read_piece(item)))
        elif isinstance(item, Mapping):
            texts += [_of_mapping(name, options) for name, options in item.items()]
        else:
            texts.append(item)
    return tuple(texts)


def _of_mapping(name: str, options: object) -> str:
    if options is not None and not isinstance(options, Mapping):
        raise UsageError(f"{name!r}: got {options!r}, wanted its options, such as {{l2-sp: {{weight: 0.01}}}}")
    return write_piece(name, options or {})


def _value(value: object) -> str:
    plain = value if isinstance(value, str) else json.dumps(value)
    unquoted = not set(plain) & set(",[]{}\"'") and plain.strip() == plain
    if isinstance(value, str) and not (unquoted and _means(plain) == value):
        return json.dumps(value)
    return plain


def _means(text: str) -> object:
    try:
        return parse_value(text, "")
    except UsageError:
        return None


def _pieces(text: str) -> Iterator[str]:
    """Split at commas before the name of a piece; `l2-sp:weight=0.01,power=2, r-drop` is two."""
    current = ""
    for part in _split(text):
        goes_on = current and "=" in part.partition(":")[0]
        if current and not goes_on:
            yield current
        current = f"{current},{part}" if goes_on else part
    yield current


def _split(text: str) -> list[str]:
    """Split at commas that stand in no brackets and no quotes."""
    parts, depth, quote, escaped = [""], 0, "", False
    for sign in text:
        if escaped:
            escaped = False
        elif quote:
            escaped = quote == '"' and sign == "\\"
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        depth += (sign in "[{") - (sign in "]}") if not quote else 0
        if sign == "," and not quote and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]
