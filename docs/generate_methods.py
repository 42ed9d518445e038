"""Write the pages of docs/methods/ and the README's table of methods from the methods' cards.

`python docs/generate_methods.py` writes what differs and removes pages of methods that are gone; with `--check` it
writes nothing and ends with 1 where something differs.
"""

import argparse
import inspect
import re
from collections.abc import Mapping
from pathlib import Path

from subnetune.experiment.recipes import PIECES
from subnetune.methods import METHODS
from subnetune.methods.card import Card, Method

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "methods"
BEGIN, END = "<!-- begin: written by docs/generate_methods.py -->", "<!-- end -->"
LABELS = {
    "published": "published settings and figures",
    "differs": "differs from the release",
    "found": "in our runs",
    "compared": "in a comparison",
}


def pages() -> dict[Path, str]:
    """Return every file that is written, with its text."""
    made = {FOLDER / f"{name}.md": page(method) for name, method in METHODS.items()}
    return {**made, FOLDER / "index.md": index(), ROOT / "README.md": readme((ROOT / "README.md").read_text("utf-8"))}


def page(method: Method) -> str:
    """Return the page of one method: its card, its options, its recipe."""
    card = method.card
    lines = [f"# `{card.name}`", "", f"*{card.title}.* {card.one_line}", ""]
    for label, texts in grouped(card).items():
        if len(texts) == 1:
            lines += [f"**{LABELS.get(label, label)}**: {escaped(texts[0])}", ""]
        else:
            lines += [f"**{LABELS.get(label, label)}**:", "", *(f"- {escaped(text)}" for text in texts), ""]
    lines += ["## Options", "", "```text", signature(method), "", inspect.getdoc(method.preset) or "", "```", ""]
    lines += ["## As a value", "", "With its defaults this preset returns", "", "```python", recipe(method), "```", ""]
    return "\n".join(lines)


def grouped(card: Card) -> dict[str, list[str]]:
    """Return the card's facts by label, in order."""
    found: dict[str, list[str]] = {}
    for label, text in card.facts():
        found.setdefault(label, []).append(linked(text, card) if label == "source" else text)
    return found


def linked(text: str, card: Card) -> str:
    return text if card.arxiv is None else text.replace(f"arXiv {card.arxiv}", f"[arXiv {card.arxiv}]({link(card)})")


def link(card: Card) -> str:
    return f"https://arxiv.org/abs/{card.arxiv}"


def escaped(text: str) -> str:
    """Take from `*`, `_`, `<` and `|` what they mean in Markdown; a formula reads as it is written."""
    return re.sub(r"([*_<|])", r"\\\1", text)


def signature(method: Method) -> str:
    """Return the preset as it is called, an option a line."""
    options = inspect.signature(method.preset).parameters.values()
    shown = [f"    {option.name}: {option.annotation} = {option.default!r}," for option in options]
    return "\n".join([f"{method.preset.__name__}(", *shown, ")"]) if shown else f"{method.preset.__name__}()"


def recipe(method: Method) -> str:
    """Return the preset's recipe, a line for each field that is not empty."""
    made = method.preset()
    fields = {name: getattr(made, name) for name in made.__dataclass_fields__}
    shown = [f"    {name}={value!r}," for name, value in fields.items() if value not in ((), None)]
    return "\n".join(["Recipe(", *shown, ")"])


def table(folder: str) -> str:
    """Return the table of all methods, with links to their pages in `folder`."""
    rows = ["| name | in one line | source |", "|---|---|---|"]
    for name, method in METHODS.items():
        source = "" if method.card.arxiv is None else f"[{method.card.arxiv}]({link(method.card)})"
        rows.append(f"| [`{name}`]({folder}{name}.md) | {escaped(method.card.one_line)} | {source} |")
    return "\n".join(rows)


def index() -> str:
    pieces = "\n".join(f"| `{name}` | `{field}` | `{kind}` |" for name, (field, _, kind) in PIECES.items())
    return f"""# Methods

One page a method, made from the cards that `subnetune methods NAME` prints.

{table("")}

## Pieces that go with any method

`--with NAME` or `--with NAME:OPTION=VALUE,OPTION=VALUE` on the command line, `with:` in a configuration file. Rules
nest in the order of this table whatever the order in which they are asked for, the first of a field outermost. A
combination that makes no sense is refused with the reason.

| name | field of the recipe | class |
|---|---|---|
{pieces}

```{{toctree}}
:hidden:

{chr(10).join(METHODS)}
```
"""


def readme(text: str) -> str:
    """Return the README with its table of methods made anew."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"README.md has no place for the table of methods: {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{table('docs/methods/')}\n{END}{after}"


def stale(made: Mapping[Path, str]) -> list[Path]:
    """Return the files that are not what they should be, and pages of methods that are gone."""
    differ = [path for path, text in made.items() if not path.exists() or path.read_text("utf-8") != text]
    return [*differ, *(path for path in sorted(FOLDER.glob("*.md")) if path not in made)]


def main() -> int:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 where a page differs")
    check = parser.parse_args().check
    made = pages()
    found = stale(made)
    for path in found:
        print(f"{'differs' if check else 'writes'}: {path.relative_to(ROOT)}")
        if not check and path in made:
            path.parent.mkdir(exist_ok=True)
            path.write_text(made[path], "utf-8")
        elif not check:
            path.unlink()
    return int(check and bool(found))


if __name__ == "__main__":
    raise SystemExit(main())
