"""Verdicts: what the tables of a comparison allow to say, in sentences that claim no more than the numbers carry.

A method "beats" the baseline where its p, corrected after Holm, is below 5 % and the 95 % interval, if the differences
varied at all, leaves out 0. Else
no difference could be shown; and where so few seeds could not have shown any, that is what is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from subnetune.experiment.comparison_types import Block, Entry
from subnetune.experiment.statistics import Difference, holm, smallest_p

LEVEL = 0.05
# beats, beaten: shown. equal: the same score with every seed. open: not shown. powerless: so few seeds can show
# nothing. single: one seed. none: no seed that both have. unlearned: neither is better than always saying the same.
Standing = Literal["beats", "beaten", "equal", "open", "powerless", "single", "none", "unlearned"]


def verdicts(
    baseline: str, blocks: Sequence[Block], cells: Mapping[str, int], uneven: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return the sentences: what is missing, what is `uneven`, the means over tasks, then table by table.

    Points are 100 x a fraction.
    """
    found = [*_completeness(cells), *uneven]
    if not cells.get("done", 0):
        return tuple(found)
    if all(entry.method == baseline for block in blocks for entry in block.entries):
        found.append(f"Only {baseline} was run: there is nothing to compare it with.")
    sizes = {block.train_size for block in blocks}
    for block in blocks:
        if block.kind == "mean":
            tasks = [other for other in blocks if other.kind == "task" and other.train_size == block.train_size]
            found += _over_tasks(baseline, block, tasks, _examples(block, sizes))
    found += [*_by_chance(blocks), *_one_seed(blocks, sizes)]
    for block in blocks:
        if block.kind != "mean":
            found += _on(baseline, block, block.task + _examples(block, sizes))
    return tuple(found)


def learned(block: Block) -> bool:
    """Return whether any method did better here, in the mean, than always saying the same (unknown: it did)."""
    means = [entry for entry in block.entries if entry.summary.n]
    return not means or not all(_at_level(entry, block) for entry in means)


def standing(entry: Entry, block: Block) -> Standing:
    """Return how a method stands to the baseline in a block."""
    found = entry.difference
    if found is None or found.n == 0 or found.mean is None:
        return "none"
    if all(_at_level(one, block) for one in block.entries if one is entry or one.difference is None):
        return "unlearned"
    if found.p_holm is None:
        return "single"
    if found.ties == found.n:
        return "equal"
    sure = found.low is None or found.high is None or found.low > 0 or found.high < 0
    if found.p_holm < LEVEL and sure:
        return "beats" if found.mean > 0 else "beaten"
    return "powerless" if best_p(entry, block) >= LEVEL else "open"


def best_p(entry: Entry, block: Block) -> float:
    """Return the least p after Holm that so many seeds could have given, the other methods' being what they are."""
    others = [one.difference for one in block.entries if one.difference is not None and one is not entry]
    if entry.difference is None:
        return 1.0
    first = holm([entry.difference._replace(p=smallest_p(entry.difference.n)), *others])[0]
    return 1.0 if first.p_holm is None else first.p_holm


def _at_level(entry: Entry, block: Block) -> bool:
    """Whether a method learned nothing here: its mean is at the level of always saying the same, and so are half of
    its runs by every metric."""
    found = entry.summary
    low = block.majority is not None and found.mean is not None and found.mean <= block.majority + 1e-9
    return low and 2 * (found.at_majority or 0) >= found.n


# -- sentences --------------------------------------------------------------------------------------------------------


def _completeness(cells: Mapping[str, int]) -> Iterator[str]:
    done, failed, missing = (cells.get(state, 0) for state in ("done", "failed", "missing"))
    total = f"{done + failed + missing} cells"
    if not done:
        yield f"Nothing can be said: of {total} {missing} {_are(missing)} missing and {failed} failed."
    elif missing:
        also = f", {failed} failed" if failed else ""
        yield f"{missing} of {total} {_are(missing)} missing{also}: what follows is incomplete."
    elif failed:
        yield f"{failed} of {total} failed: what follows is without {'it' if failed == 1 else 'them'}."


def _over_tasks(baseline: str, block: Block, tasks: Sequence[Block], examples: str) -> Iterator[str]:
    """Yield what methods do over the tasks of a train size: on how many they differ, and on the mean."""
    if not any(learned(task) for task in tasks):
        yield f"No task was learned{examples}: nothing can be said about the methods."
        return
    single = []
    for entry in block.entries:
        stands = [standing(one, task) for task in tasks for one in task.entries if one.method == entry.method]
        wins, losses = stands.count("beats"), stands.count("beaten")
        if not wins and not losses:
            single.append(entry)
            continue
        where = [f"beats {baseline} on {wins}"] if wins else []
        where += [f"is beaten by {baseline} on {losses}"] if losses else []
        yield (
            f"{entry.method} {' and '.join(where)} of {len(tasks)} tasks{examples}; {_of_mean(baseline, entry, block)}."
        )
    yield from _sentences(baseline, block, single, f"the {block.task}{examples}")


def _by_chance(blocks: Sequence[Block]) -> Iterator[str]:
    """Yield how many tables something was shown in, and in how many it could have been: each is tested by itself."""
    stands = [{standing(entry, block) for entry in block.entries} for block in blocks]
    shown = sum(not found.isdisjoint(("beats", "beaten")) for found in stands)
    tested = sum(not found.isdisjoint(("beats", "beaten", "open")) for found in stands)
    if shown and tested > 1:
        yield (
            f"{shown} of {tested} tables that were tested show a difference; each is tested at 5 % by itself, so where "
            "no method differed, one in twenty would still show one."
        )


def _one_seed(blocks: Sequence[Block], sizes: set[int | None]) -> Iterator[str]:
    """Yield about whom nothing can be said, for all tables at once in which they are the same methods."""
    places: dict[tuple[str, str], list[str]] = {}
    for block in blocks:
        single = [entry.method for entry in block.entries if standing(entry, block) == "single"]
        if single and block.kind != "mean" and learned(block):
            places.setdefault((_listed(single), _examples(block, sizes)), []).append(block.task)
    for (who, examples), tasks in places.items():
        yield f"Too few seeds (n = 1) for any statement about {who} on {_listed(tasks)}{examples}."


def _of_mean(baseline: str, entry: Entry, block: Block) -> str:
    here = standing(entry, block)
    if entry.difference is None or here in ("none", "single"):
        return "too few seeds have all tasks for any statement about the mean"
    if here in ("beats", "beaten"):
        return _numbers(entry.difference)
    if here == "powerless":
        seen = _mean_and_interval(entry.difference)
        return f"on the mean n = {entry.difference.n} seeds cannot show a difference ({seen})"
    return f"no difference to {baseline} can be shown on the mean ({_numbers(entry.difference)})"


def _on(baseline: str, block: Block, place: str) -> Iterator[str]:
    """Yield what there is to say about one table."""
    level = "" if block.majority is None else f"at or below the majority level of {block.majority:.4f}"
    runs = sum(entry.summary.n for entry in block.entries)
    low = sum(entry.summary.at_majority or 0 for entry in block.entries)
    own = block.kind == "task"
    if not learned(block):
        what = f"{low} of {runs} runs are {level}, and so is the mean of every method"
        if low == runs:
            who = {1: "the only run is", 2: "both runs are"}.get(runs, f"all {runs} runs are")
            what = f"{who} {level}"
        which = f"{place} was not learned" if own else f"On {place} no method does better than always the same answer"
        yield f"{which}: nothing can be said about the methods ({what})."
    else:
        yield from _sentences(baseline, block, block.entries, place)
        at_level = [(one.method, one.summary.at_majority or 0, one.summary.n) for one in block.entries]
        if low:
            what = "learned nothing" if own else f"{_are(low)} no better than always the same answer"
            yield f"{_shares(at_level)} on {place} {what}{f' ({level})' if level else ''}."
    failed = [(one.method, one.summary.failed, one.expected) for one in block.entries]
    if own and (count := sum(number for _, number, _ in failed)):
        yield f"{_shares(failed)} on {place} failed and {'has' if count == 1 else 'have'} no score."


def _sentences(baseline: str, block: Block, entries: Sequence[Entry], place: str) -> Iterator[str]:
    """Yield how methods stand to the baseline: what is shown first, what nothing can be said about last."""
    sorted_out: dict[Standing, list[tuple[str, Difference]]] = {}
    weak: dict[tuple[int, float], list[tuple[str, Difference]]] = {}
    for entry in entries:
        if entry.difference is not None:
            pair = (entry.method, entry.difference)
            sorted_out.setdefault(standing(entry, block), []).append(pair)
            if standing(entry, block) == "powerless":
                weak.setdefault((entry.difference.n, best_p(entry, block)), []).append(pair)
    for method, found in sorted_out.get("beats", []):
        yield f"{method} beats {baseline} on {place}: {_numbers(found)}."
    for method, found in sorted_out.get("beaten", []):
        yield f"{method} is beaten by {baseline} on {place}: {_numbers(found)}."
    for method, found in sorted_out.get("open", []):
        yield f"{method}: no difference to {baseline} can be shown on {place} ({_numbers(found)})."
    for method, found in sorted_out.get("equal", []):
        yield f"{method} has exactly the scores of {baseline} on {place} (n = {found.n} seeds)."
    for (n, best), group in weak.items():
        least = smallest_p(n)
        after = f", {_p(best)} after Holm" if best > least else ""
        seen = "; ".join(f"{method} {_mean_and_interval(found)}" for method, found in group)
        yield (
            f"n = {n} seeds cannot show a difference to {baseline} at 5 % by this test on {place}: its smallest p is"
            f" {_p(least)}{after}."
        )
        narrow = " (with so few seeds the intervals are too narrow)" if " CI " in seen else ""
        yield f"Seen on {place}{narrow}: {seen}."
    if group := sorted_out.get("unlearned", []):
        neither = f"Neither {baseline} nor {_names(group, 'nor')}"
        what = f"learned {place}" if block.kind == "task" else f"does better than always the same answer on {place}"
        yield f"{neither} {what}: nothing can be said about their difference."
    if block.kind == "mean" and (group := sorted_out.get("single", [])):  # `_one_seed` says the others
        yield f"Too few seeds (n = 1) for any statement about {_names(group)} on {place}."
    if group := sorted_out.get("none", []):
        yield f"No seed is finished on {place} that {baseline} has as well: nothing can be said about {_names(group)}."


# -- words ------------------------------------------------------------------------------------------------------------


def _examples(block: Block, sizes: set[int | None]) -> str:
    if block.train_size is None:
        return " with all examples" if len(sizes) > 1 else ""
    return f" at {block.train_size} examples"


def _numbers(found: Difference) -> str:
    p = "" if found.p_holm is None else f", p {'' if found.p_holm < 0.001 else '= '}{_p(found.p_holm)} after Holm"
    return f"mean {_mean_and_interval(found)}, n = {found.n} seeds{p}"


def _mean_and_interval(found: Difference) -> str:
    ends = " with every seed" if found.n > 1 else ""
    if found.low is not None and found.high is not None:
        ends = f", 95 % CI {_points(found.low)} to {_points(found.high)}"
    mean = _points(found.mean or 0.0)
    return f"{'+' if float(mean) > 0 else ''}{mean} points{ends}"


def _points(fraction: float) -> str:
    """Return points with one decimal, or as many as it takes to tell from 0 (three at most)."""
    for digits in (1, 2, 3):
        text = f"{100 * fraction:.{digits}f}"
        if float(text):
            return text
    return "0.0"


def _p(value: float) -> str:
    if value < 0.001:
        return "< 0.001"
    text = f"{value:.3f}"
    return f"{value:.4f}" if float(text) == LEVEL else text  # on which side of it must be seen


def _names(group: Sequence[tuple[str, Difference]], word: str = "and") -> str:
    return _listed([method for method, _ in group], word)


def _listed(names: Sequence[str], word: str = "and") -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"


def _shares(counts: Sequence[tuple[str, int, int]]) -> str:
    """Return `3 of 5 runs of full, 1 of 5 of lora`; the counts are methods, how many, and of how many."""
    found = [(method, number, total) for method, number, total in counts if number]
    first = f"{found[0][1]} of {found[0][2]} run{'' if found[0][2] == 1 else 's'} of {found[0][0]}"
    return ", ".join([first, *(f"{number} of {total} of {method}" for method, number, total in found[1:])])


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
