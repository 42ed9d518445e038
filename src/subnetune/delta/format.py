"""The delta file, format 1: one safetensors file with one metadata key of canonical JSON; see docs/design.md.

Payload: `values:NAME` and `whole:NAME`, `new:NAME`, `buffer:NAME`, and one `index` of all coded positions, in the order
of their names. Every payload tensor and the metadata itself carry a sha256: a flipped bit is found before use.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from subnetune.core.container import canonical_json, check_name, read_file, strict_json, write_file
from subnetune.core.errors import CheckpointError, NumericError, UsageError
from subnetune.core.fingerprint import raw_bytes
from subnetune.core.parallel import each
from subnetune.delta.codec import Index
from subnetune.delta.delta import FORMAT_VERSION, Delta, DeltaInfo, Entries, Whole

FILE_NAME = "delta.safetensors"  # in a run directory
_KEY = "subnetune"
_HEX = frozenset("0123456789abcdef")
_SMALL = 1 << 20  # bytes that are hashed sooner than threads are started
_PIECE = 1 << 14  # values at a time: they fit into the cache, and torch starts no threads for so few


def save(delta: Delta, path: Path, *, allow_nonfinite: bool = False) -> None:
    """Write `delta` to `path`: whole or not at all, the same bytes for the same delta.

    Raises NumericError where values are NaN or infinite and that is not allowed, UsageError where the folder is not
    there; other OSErrors as the system gives them.
    """
    if not path.parent.is_dir():
        raise UsageError(f"not saved: {path.parent} is no folder; make it, then save {path.name} again")
    if not allow_nonfinite and (bad := nonfinite(delta)):
        raise NumericError(
            f"not saved: {bad}. The run diverged; lower the learning rate, "
            "or save with allow_nonfinite=True to look at it"
        )
    payload = _payload(delta)
    digests = _digests(payload)
    described: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "info": _info_to_json(delta.info),
        "entries": {},
        "whole": {name: {"base": w.base, "sha256": digests[f"whole:{name}"]} for name, w in delta.whole.items()},
        "new": {name: digests[f"new:{name}"] for name in delta.new},
        "buffers": {name: digests[f"buffer:{name}"] for name in delta.buffers},
        "index": digests["index"],
    }
    position = 0
    for name, entries in sorted(delta.entries.items()):
        start, position = position, position + entries.index.data.numel()
        described["entries"][name] = {
            "base": entries.base,
            "coding": [entries.index.coding, entries.index.low],
            "index": [start, position],
            "sha256": digests[f"values:{name}"],
            "shape": list(entries.shape),
        }
    described["sha256"] = _digest(described)
    write_file(path, payload, {_KEY: canonical_json(described)})


def load(path: Path, *, allow_nonfinite: bool = False) -> Delta:
    """Read a delta from a file or a run directory. Nothing is returned unless all of it is valid.

    Raises CheckpointError with the file's name and every fault that can be named; warns where the delta is empty.
    """
    path = delta_file(path)
    payload, metadata = read_file(path)
    try:
        described = _metadata(metadata)
        delta = _delta(described, payload)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: the delta's metadata is damaged: {type(error).__name__}: {error}") from error
    if not allow_nonfinite and (bad := nonfinite(delta)):
        raise CheckpointError(f"{path}: {bad}; load it with allow_nonfinite=True only to look at it")
    if not delta.stored:
        warnings.warn(f"{path}: the delta is empty; applying it changes nothing", UserWarning, stacklevel=3)
    return delta


def delta_file(path: Path) -> Path:
    """Return the delta file that a run directory or a file means."""
    return path / FILE_NAME if path.is_dir() else path


def nonfinite(delta: Delta) -> str:
    """Return which tensors hold NaN or infinite values, as a sentence; "" where all are finite."""
    counts = {name: _nonfinite(tensor) for name, tensor in _values(delta).items() if tensor.is_floating_point()}
    found = [f"{name.split(':', 1)[1]!r} ({count})" for name, count in counts.items() if count]
    return f"NaN or infinite values in {', '.join(found)}" if found else ""


def _nonfinite(tensor: Tensor) -> int:
    """Return how many values are NaN or infinite, a cache-sized piece at a time."""
    count = 0
    for part in torch.split(tensor.reshape(-1), _PIECE):
        wide = part.float() if part.element_size() == 1 else part
        # One such value makes the sum one, and a sum is one fast read; a sum that overflows only costs a closer look.
        if not math.isfinite(float(wide.sum())):
            count += wide.numel() - int(torch.isfinite(wide).sum())
    return count


def _values(delta: Delta) -> dict[str, Tensor]:
    return {
        **{f"values:{name}": entries.values for name, entries in delta.entries.items()},
        **{f"whole:{name}": whole.values for name, whole in delta.whole.items()},
        **{f"new:{name}": tensor for name, tensor in delta.new.items()},
        **{f"buffer:{name}": tensor for name, tensor in delta.buffers.items()},
    }


def _payload(delta: Delta) -> dict[str, Tensor]:
    parts = [entries.index.data.numpy() for _, entries in sorted(delta.entries.items())]
    index = np.concatenate([*parts, np.empty(0, dtype=np.uint8)])
    return {**_values(delta), "index": torch.from_numpy(index)}


def _digests(payload: Mapping[str, Tensor]) -> dict[str, str]:
    small = sum(tensor.numel() * tensor.element_size() for tensor in payload.values()) < _SMALL
    return dict(zip(payload, (map if small else each)(_sha256, payload.values()), strict=True))


def _sha256(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype}{list(tensor.shape)}".encode())
    if tensor.numel():
        digest.update(raw_bytes(tensor).numpy().data)
    return digest.hexdigest()


def _digest(described: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in described.items() if key != "sha256"}
    return hashlib.sha256(canonical_json(rest).encode()).hexdigest()


def _metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    if _KEY not in metadata:
        raise CheckpointError(f"a safetensors file, but no delta: its metadata has no key {_KEY!r}")
    described = strict_json(metadata[_KEY])
    if not isinstance(described, dict) or type(described.get("format_version")) is not int:
        raise CheckpointError("the delta's metadata names no format version")
    if (version := described["format_version"]) > FORMAT_VERSION:
        raise CheckpointError(
            f"written in format {version}, this version reads up to {FORMAT_VERSION}; install a newer subnetune"
        )
    if version < FORMAT_VERSION:  # format 1 is the first: from 2 on, older ones are migrated here
        raise CheckpointError(f"format {version} never existed; the file is damaged")
    if list(metadata) != [_KEY]:
        raise CheckpointError(f"unknown metadata beside the delta's: {', '.join(sorted(set(metadata) - {_KEY}))}")
    wanted = {"format_version", "info", "entries", "whole", "new", "buffers", "index", "sha256"}
    if set(described) != wanted:
        raise CheckpointError(f"the delta's metadata has the keys {sorted(described)}, wanted {sorted(wanted)}")
    if described["sha256"] != _digest(described):
        raise CheckpointError("the metadata does not have its sha256: the file is damaged")
    return described


def _delta(described: Mapping[str, Any], payload: Mapping[str, Tensor]) -> Delta:
    sections = {"entries": "values", "whole": "whole", "new": "new", "buffers": "buffer"}
    wanted: dict[str, str] = {"index": described["index"]}
    names: list[str] = []
    for section, prefix in sections.items():
        for name, entry in described[section].items():
            check_name(name, section)
            wanted[f"{prefix}:{name}"] = entry if section in ("new", "buffers") else entry["sha256"]
            names += [name] if section != "buffers" else []
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise CheckpointError(f"{', '.join(map(repr, twice))} is in more than one part of the delta")
    if odd := sorted(set(wanted) ^ set(payload)):
        raise CheckpointError(f"tensors and metadata do not agree about {', '.join(map(repr, odd[:5]))}")
    digests = _digests(payload)
    if bad := [name for name, sha256 in wanted.items() if sha256 != digests[name]]:
        raise CheckpointError(f"sha256 mismatch in {', '.join(map(repr, sorted(bad)))}: the file is damaged")
    return Delta(
        _info_from_json(described["info"]),
        _entries(described["entries"], payload),
        {n: Whole(payload[f"whole:{n}"], _hex(entry["base"])) for n, entry in described["whole"].items()},
        {name: payload[f"new:{name}"] for name in described["new"]},
        {name: payload[f"buffer:{name}"] for name in described["buffers"]},
    )


def _entries(described: Mapping[str, Any], payload: Mapping[str, Tensor]) -> dict[str, Entries]:
    found: dict[str, Entries] = {}
    problems: list[str] = []
    position = 0
    for name, entry in sorted(described.items()):
        if set(entry) != {"base", "coding", "index", "sha256", "shape"}:
            raise CheckpointError(f"{name!r} is described by {sorted(entry)}")
        (coding, low), (start, stop), shape = entry["coding"], entry["index"], entry["shape"]
        values = payload[f"values:{name}"]
        if not all(type(n) is int and n >= 0 for n in (low, start, stop, *shape)) or start != position or stop < start:
            raise CheckpointError(f"{name!r} has no valid shape or place in the index")
        position = stop
        if values.dim() != 1:
            problems.append(f"{name!r}: the new values must be a row, got the shape {tuple(values.shape)}")
            continue
        index = Index(coding, low, prod(shape), values.numel(), payload["index"][start:stop])
        try:
            index.check()
        except CheckpointError as error:
            problems.append(f"{name!r}: {error}")
        found[name] = Entries(tuple(shape), index, values, _hex(entry["base"]))
    if position != payload["index"].numel():
        problems.append(f"the index has {payload['index'].numel()} bytes, the tensors use {position}")
    if problems:
        raise CheckpointError("; ".join(problems))
    return found


def _hex(text: Any) -> str:
    if not isinstance(text, str) or len(text) != 64 or not set(text) <= _HEX:
        raise CheckpointError(f"{text!r} is no sha256")
    return text


def _info_to_json(info: DeltaInfo) -> dict[str, Any]:
    values = {field.name: getattr(info, field.name) for field in fields(info) if field.name != "format_version"}
    values["labels"] = None if info.labels is None else {str(key): text for key, text in info.labels.items()}
    values["versions"] = dict(info.versions)
    values["tokenizer"] = dict(info.tokenizer) if isinstance(info.tokenizer, Mapping) else info.tokenizer
    values["preparations"] = [[name, dict(arguments)] for name, arguments in info.preparations]
    return values


def _is_text_map(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())


def _is_preparations(value: Any) -> bool:
    pairs = isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
    return pairs and all(isinstance(name, str) and isinstance(arguments, dict) for name, arguments in value)


_KINDS: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("tuned", "dtype", "recipe", "task_class", "base_name"), lambda v: isinstance(v, str)),
    **dict.fromkeys(("trained", "total"), lambda v: type(v) is int and v >= 0),
    **dict.fromkeys(("problem_type", "mask"), lambda v: v is None or isinstance(v, str)),
    "base": lambda v: _hex(v) == v,
    "tied": lambda v: isinstance(v, bool),
    "labels": lambda v: v is None or (_is_text_map(v) and all(str(int(key)) == key for key in v)),
    "tokenizer": lambda v: v is None or isinstance(v, str | dict),
    "versions": _is_text_map,
    "preparations": _is_preparations,
}


def _info_from_json(values: Any) -> DeltaInfo:
    if not isinstance(values, dict) or set(values) != set(_KINDS):
        raise CheckpointError("the delta's description lacks fields or has unknown ones")
    if wrong := [name for name, fits in _KINDS.items() if not fits(values[name])]:
        raise CheckpointError(f"the delta's description has no valid {', '.join(wrong)}")
    labels = values["labels"]
    read = {
        **values,
        "labels": None if labels is None else {int(key): text for key, text in sorted(labels.items())},
        "preparations": tuple((name, arguments) for name, arguments in values["preparations"]),
    }
    return DeltaInfo(**read)
