"""Where every parameter of a model lives: canonical names, owners, tied aliases, and what an adapter library added."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from subnetune.core.embeddings import pretrained_model
from subnetune.core.errors import LifeCycleError
from subnetune.core.types import canonical_name, unwrap


class Slot(NamedTuple):
    """The attribute of a module that holds a parameter. Reading it anew survives wrappers that swap parameters."""

    module: nn.Module
    attribute: str

    def read(self) -> Tensor:
        """Return the tensor that the module holds now."""
        tensor = getattr(self.module, self.attribute)
        if not isinstance(tensor, Tensor):
            raise LifeCycleError(f"{type(self.module).__name__}.{self.attribute} no longer holds a tensor")
        return tensor


class Structure:
    """A model's parameters by canonical name, in the model's order; tied tensors once, their other names as aliases."""

    def __init__(self, model: nn.Module) -> None:
        self.model = unwrap(model)
        self.slots: dict[str, Slot] = {}
        self.aliases: dict[str, str] = {}  # another name of a tied tensor -> its canonical name
        # By owner, not by tensor: sharding swaps the tensors, their owners stay.
        self._names: dict[tuple[int, str], str] = {}  # (id of the owning module, attribute) -> canonical name
        first: dict[int, str] = {}
        for module_name, module in _modules(self.model):
            for attribute, tensor in module.named_parameters(recurse=False):
                name = canonical_name(f"{module_name}.{attribute}" if module_name else attribute)
                known = first.get(id(tensor))
                if known is not None:
                    self._names[id(module), attribute] = known
                    if name != known:
                        self.aliases[name] = known
                    continue
                if name in self.slots:
                    raise LifeCycleError(f"two parameters have the canonical name {name!r}; unwrap the model first")
                first[id(tensor)] = self._names[id(module), attribute] = name
                self.slots[name] = Slot(module, attribute)

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical names in the model's order."""
        return tuple(self.slots)

    def read(self, name: str) -> Tensor:
        """Return the parameter that now has this canonical name or alias."""
        slot = self.slots.get(name)
        return (self.slots[self.aliases[name]] if slot is None else slot).read()

    def inside(self, *modules: nn.Module) -> set[str]:
        """Return the canonical names of all parameters that the modules hold, tied ones included."""
        return {name for module in modules for inner in module.modules() for _, name, _ in self.owned_by(inner)}

    def owned_by(self, module: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
        """Yield (attribute, canonical name, tensor) of the parameters that `module` holds itself."""
        for attribute, tensor in module.named_parameters(recurse=False):
            yield attribute, self._names[id(module), attribute], tensor

    def modules(self) -> Iterator[nn.Module]:
        """Yield every module once."""
        yield from self.model.modules()

    def pretrained(self) -> nn.Module:
        """Return the transformers model itself, inside an adapter library's wrapper where there is one."""
        return pretrained_model(self.model)

    def set_aside(self) -> set[str]:
        """Return the originals that an adapter library keeps beside a trainable copy: they never train."""
        originals = [getattr(m, "original_module", None) for m in self.modules() if hasattr(m, "modules_to_save")]
        kept = [module for module in originals if isinstance(module, nn.Module)]
        return self.inside(*kept)

    def adapters(self) -> set[str]:
        """Return what an adapter library (PEFT) added: the tensors under its layers' `adapter_layer_names`."""
        added: set[str] = set()
        for module in self.modules():
            if hasattr(module, "original_module"):
                continue  # a trainable copy of one of the model's own modules is no addition
            for attribute in getattr(module, "adapter_layer_names", ()):
                part = getattr(module, attribute, None)
                if isinstance(part, nn.Module):
                    added |= self.inside(part)
                elif isinstance(part, Tensor) and (id(module), attribute) in self._names:
                    added.add(self._names[id(module), attribute])
        return added

    def adapted(self) -> bool:
        """Whether an adapter library has put layers of its own into the model."""
        return any(hasattr(m, "adapter_layer_names") for m in self.modules())


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    # remove_duplicate=False: a module used twice must give its tensors' other names as aliases.
    yield from model.named_modules(remove_duplicate=False)
