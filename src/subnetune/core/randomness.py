"""Do something random and leave no trace: every random state is put back, data loaders' included."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


def _owners(sources: Iterable[object]) -> list[object]:
    """Return data loaders and the samplers and loaders inside them: what decides the order of the data."""
    found: dict[int, object] = {}
    left = [*sources]
    while left:
        owner = left.pop()
        if owner is not None and id(owner) not in found:
            found[id(owner)] = owner
            left += [getattr(owner, name, None) for name in ("sampler", "batch_sampler", "base_dataloader")]
    return list(found.values())


def _generators(owners: list[object]) -> list[torch.Generator]:
    """Return the generators that the order is drawn from, so that a pass over the data can be undone."""
    found = [getattr(owner, name, None) for owner in owners for name in ("generator", "synchronized_generator")]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


def _counters(owners: list[object]) -> list[tuple[object, str, int]]:
    """Return the pass counters (accelerate's and torch's distributed samplers seed each pass with one)."""
    own = [(owner, getattr(owner, "__dict__", {})) for owner in owners]
    return [(o, name, d[name]) for o, d in own for name in ("epoch", "iteration") if isinstance(d.get(name), int)]


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of Python's, numpy's and torch's generators, of `device` too, as tensors and plain values."""
    numpy = sys.modules.get("numpy")
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if numpy is not None:
        kind, words, position, has_gauss, gauss = numpy.random.get_state(legacy=True)
        plain = torch.from_numpy(words.astype("int64"))
        state["numpy"] = (kind, plain, int(position), int(has_gauss), float(gauss))
    if device.type == "cuda":
        state["device"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Put back what `random_state` returned, on this device or another of its kind."""
    version, words, gauss_next = state["python"]
    random.setstate((version, tuple(words), gauss_next))
    torch.set_rng_state(state["torch"])
    numpy = sys.modules.get("numpy")
    if numpy is not None and "numpy" in state:
        kind, plain, *rest = state["numpy"]
        numpy.random.set_state((kind, plain.numpy().astype("uint32"), *rest))
    if device.type == "cuda" and "device" in state:
        torch.cuda.set_rng_state(state["device"], device)


@contextmanager
def forked_randomness(*sources: object) -> Iterator[None]:
    """Put back the states of Python's, numpy's and torch's generators (every device), and those of data loaders.

    Of a loader also the counters that its samplers keep of passes. A callable is not looked into: where it iterates
    over a loader with a generator of its own, pass the loader itself.
    """
    owners = _owners(sources)
    python = random.getstate()
    numpy = sys.modules.get("numpy")  # torch runs without numpy; where it was never imported it has no state to keep
    numpy_state = numpy.random.get_state() if numpy is not None else None
    cpu = torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    own = [(generator, generator.get_state()) for generator in _generators(owners)]
    counters = _counters(owners)
    try:
        yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(numpy_state)
        torch.set_rng_state(cpu)
        if devices:
            torch.cuda.set_rng_state_all(devices)
        for generator, state in own:
            generator.set_state(state)
        for owner, name, count in counters:
            setattr(owner, name, count)
