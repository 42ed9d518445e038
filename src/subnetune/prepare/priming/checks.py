"""What a `Prime` cannot mean, said when it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from subnetune.core.errors import UsageError
from subnetune.core.recipe import Recipe, Scope, Selector
from subnetune.prepare.add_adapter import AddAdapter
from subnetune.prepare.set_dropout import SetDropout

if TYPE_CHECKING:
    from subnetune.prepare.prime import Prime

DIFFERENTIATES_TWICE = ("maml", "imaml")
# With plain gradient steps all of these mean the same: unselected entries stay where they are. (What MaskGradient
# divides by, Adam makes cancel; plain steps have inner_lr.)
_HOLDING = ("MaskGradient", "HoldUnselected", "SkipUnselected")


def check_prime(prime: Prime) -> None:
    """Raise UsageError, naming the field, for values that cannot be meant together."""
    names = prime.tasks
    if not isinstance(names, tuple) or not names or not all(isinstance(name, str) and name for name in names):
        raise UsageError(f"Prime: tasks must be a tuple of names, got {names!r}")
    if len(set(names)) != len(names):
        raise UsageError(f"Prime: a task is named twice in tasks={names!r}")
    if not isinstance(prime.outer, Scope):
        raise UsageError(f"Prime: outer must be a Scope, got {prime.outer!r}")
    if prime.support is not None and (type(prime.support) is not int or prime.support < 1):
        raise UsageError(f"Prime: support must be a number of batches >= 1, or None, got {prime.support!r}")
    if prime.clip is not None and (type(prime.clip) not in (int, float) or not prime.clip > 0):
        raise UsageError(f"Prime: clip must be a norm > 0, or None, got {prime.clip!r}")
    if not isinstance(prime.dropout, bool):
        raise UsageError(f"Prime: dropout must be True or False, got {prime.dropout!r}")
    if prime.inner_steps < 1 and prime.algorithm != "fomaml":
        raise UsageError(f"Prime: {prime.algorithm} needs inner_steps; without any, fomaml is joint training")
    if prime.algorithm == "imaml" and not prime.pull:
        raise UsageError("Prime: imaml needs pull > 0; without it the adapted weights forget where they began")
    if prime.inner_rates == "learned" and prime.algorithm not in ("fomaml", "maml"):
        raise UsageError(f"Prime: {prime.algorithm} has no gradient for inner_rates; learn them by fomaml or maml")
    _check_classes(prime)
    _check_inner(prime)


def _check_classes(prime: Prime) -> None:
    classes: object = prime.classes
    if prime.head != "matched":
        if classes:
            raise UsageError(f"Prime: classes belong to head='matched', and head is {prime.head!r}")
    elif not isinstance(classes, tuple) or len(classes) != len(prime.tasks) or not all(map(_are_ids, classes)):
        raise UsageError(
            f"Prime: head='matched' needs as classes for each of {len(prime.tasks)} tasks a tuple of the ids of its "
            f"classes, each id once, got {classes!r}"
        )


def _are_ids(ids: object) -> bool:
    return isinstance(ids, tuple) and 0 < len(ids) == len(set(ids)) and all(type(i) is int and i >= 0 for i in ids)


def _check_inner(prime: Prime) -> None:
    inner = prime.inner
    if not isinstance(inner, Recipe):
        raise UsageError(f"Prime: inner must be a Recipe, such as methods.bitfit(), got {inner!r}")
    if inner.selector is not None and type(inner.selector).observe is not Selector.observe:
        raise UsageError(f"Prime: inner: {inner.selector!r} chooses by the gradients of a whole run, which is not here")
    if inner.selector is not None and not inner.selector.static and prime.algorithm == "imaml":
        raise UsageError(f"Prime: imaml needs a mask that stays, and the inner recipe's {inner.selector!r} changes it")
    for rule in inner.update:
        if type(rule).__name__ not in _HOLDING:
            raise UsageError(f"Prime: plain inner steps cannot simulate {rule!r}; leave it out of the inner recipe")
    for piece in inner.prepare:
        if not isinstance(piece, AddAdapter | SetDropout):
            raise UsageError(f"Prime: the inner recipe cannot prepare the model by {piece!r}; prepare it before")
    if inner.forward and prime.algorithm in DIFFERENTIATES_TWICE:
        raise UsageError(
            f"Prime: {prime.algorithm} differentiates the inner steps, which {inner.forward[0]!r} does not allow: use "
            "fomaml or reptile, or leave the rule out of the inner recipe"
        )
