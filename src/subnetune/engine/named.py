"""Parameter groups and optimizer states by name: what users give and files hold, checked before anything changes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from torch import Tensor

from subnetune.core.errors import CheckpointError, UsageError

MASTER = "master"  # where a state holds a float32 copy of the values
States: TypeAlias = Mapping[str, Mapping[str, Any]]


def named_groups(groups: Iterable[Mapping[str, Any]], trained: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Return the groups with `param_names`, the names in `trained` of their tensors.

    Raises UsageError for a tensor that does not train, one that no group holds, and for names of other tensors.
    """
    names = {id(tensor): name for name, tensor in trained.items()}
    named = []
    for group in groups:
        unknown = [tensor for tensor in group["params"] if id(tensor) not in names]
        if unknown:
            raise UsageError(f"the groups hold a tensor that does not train, of shape {tuple(unknown[0].shape)}")
        found = [names[id(tensor)] for tensor in group["params"]]
        if list(group.get("param_names", found)) != found:
            raise UsageError(f"a group's param_names are {group['param_names']!r}, but its tensors are {found!r}")
        named.append({**group, "param_names": found})
    missing = sorted(set(names.values()) - {name for group in named for name in group["param_names"]})
    if missing:
        raise UsageError(f"the groups do not hold {len(missing)} tensors that train, such as {missing[0]!r}")
    return named


def checked_state(
    saved: Mapping[str, Any],
    here: Mapping[str, Any],
    groups: list[list[str]],
    expected: Callable[[str], tuple[int, ...]],
) -> tuple[States, list[dict[str, Any]]]:
    """Return the states and groups of a saved state dict that fits.

    `here` says what must agree, `groups` are this optimizer's names, `expected` the shape of a state that has a number
    for each entry. Raises CheckpointError for what does not fit.
    """
    about, states, saved_groups = saved.get("about"), saved.get("state"), saved.get("param_groups")
    if not isinstance(about, Mapping) or not isinstance(states, Mapping) or not isinstance(saved_groups, list):
        raise CheckpointError(
            f"this is not the state of subnetune's {here['engine']} engine; a state that torch's {here['class']} "
            'saved continues with tuning.optimizer(..., engine="reference")'
        )
    for key, wanted in here.items():
        if about.get(key) != wanted:
            raise CheckpointError(
                f"the optimizer state was saved with {key} {about.get(key)!r}, this run has {wanted!r}: a run goes "
                "on with what it began with, tuning.optimizer(..., engine=...)"
            )
    if [list(group["params"]) for group in saved_groups] != groups:
        raise CheckpointError("the optimizer state groups other parameters than this recipe trains")
    unknown = sorted(set(states) - {name for names in groups for name in names})
    if unknown:
        raise CheckpointError(f"the optimizer state holds {unknown[0]!r}, which this recipe does not train")
    for names in groups:
        _check_states({name: states[name] for name in names if name in states}, expected)
    return states, saved_groups


def _check_states(states: States, expected: Callable[[str], tuple[int, ...]]) -> None:
    # One group has one set of options, so that all its states have the same keys.
    keys = {key for state in states.values() for key in state} - {MASTER}
    for name, state in states.items():
        lacking = sorted(keys - set(state))
        if lacking:
            raise CheckpointError(f"the optimizer state of {name!r} lacks {lacking[0]!r}: it is damaged")
        wanted = expected(name)
        for key, value in state.items():
            if isinstance(value, Tensor) and value.dim() and tuple(value.shape) != wanted:
                raise CheckpointError(
                    f"the state {key!r} of {name!r} has shape {tuple(value.shape)}, wanted {wanted}: it belongs to "
                    "another mask or model"
                )


class Elsewhere(defaultdict[Any, Any]):
    """What `state` is of an optimizer that keeps its states by name: empty. Whoever wants them there is told so.

    torch.distributed.checkpoint asks whether it is empty, to fill it by a made-up step; that step would count. Whoever
    empties it means to begin anew, and would go on with the old moments.
    """

    def __bool__(self) -> bool:
        raise CheckpointError(
            "the states of this optimizer are kept by name, and as large as what is selected: use its state_dict(); "
            'torch.distributed.checkpoint works with tuning.optimizer(..., engine="reference")'
        )

    def clear(self) -> None:
        """Raise UsageError."""
        raise UsageError(
            "the states of this optimizer are kept by name, not in `state`: to begin with fresh ones call "
            "optimizer.load_state_dict({**optimizer.state_dict(), 'state': {}})"
        )

    def __setitem__(self, key: Any, value: Any) -> None:
        """Raise UsageError."""
        self.clear()
