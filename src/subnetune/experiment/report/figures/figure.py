"""A plot of the report as one value: its SVG for the page, and a table that says the same in text."""

from __future__ import annotations

import hashlib
import io
import itertools
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from subnetune.experiment.report.figures.canvas import literal, settings
from subnetune.experiment.report.figures.palette import VARIABLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

_NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
_LONG = 400  # characters: a path of many points, where a tenth of a unit is finer than a screen
_FONT = {
    "font-style": re.compile(r"^(italic|oblique)\b"),
    "font-weight": re.compile(r"(?:^| )(\d{3}) "),
    "font-size": re.compile(r"(\d+(?:\.\d+)?px)"),
}


class Figure(NamedTuple):
    """A plot. `key` is fit for an id of a page; `svg` is an <svg> element without prolog; all other text is plain.

    `table` is the text alternative, the header row first.
    """

    key: str
    title: str
    svg: str
    caption: str
    table: tuple[tuple[str, ...], ...]


def finish(
    drawing: Drawing, *, name: Sequence[str], title: str, caption: str, table: Sequence[Sequence[str]]
) -> Figure:
    """Return the drawing as a Figure. `name` are the parts of its key: different parts give different keys."""
    key, title, caption = key_of(*name), literal(title), literal(caption)
    rows = tuple(tuple(literal(cell) for cell in row) for row in table)
    return Figure(key, title, svg_text(drawing, key=key, title=title, description=caption), caption, rows)


def key_of(*parts: str) -> str:
    """Return `a-b-c`, with a hash behind it where a part holds anything but small letters and digits."""
    text = "-".join(parts)
    safe = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60]
    if all(re.fullmatch(r"[a-z0-9]+", part) for part in parts) and len(text) <= 60:
        return safe
    return f"{safe}-{hashlib.sha256(repr(parts).encode(errors='replace')).hexdigest()[:6]}"


def svg_text(drawing: Drawing, *, key: str, title: str, description: str) -> str:
    """Return the drawing as an <svg> element that lives inside a page.

    It is as wide as its place (the viewBox keeps its shape), has no id that another plot has (`key` is in front of
    each), no style that reaches beyond it, text as text in the page's font, and colours as CSS variables. The same
    drawing gives the same bytes.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    with settings(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the page's fonts draw the text, not ours
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        canvas: Any = FigureCanvasSVG(drawing)
        canvas.print_svg(buffer, metadata=nothing)
    root = ET.fromstring(buffer.getvalue())
    used = dict.fromkeys(found for element in root.iter() for found in _references(element))
    _rewrite(root, {name: f"{key}-{number}" for number, name in enumerate(used)})
    _flatten(root)
    box = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib |= {
        "xmlns": "http://www.w3.org/2000/svg",
        "class": "plot",
        "viewBox": box,
        "width": "100%",
        "role": "img",
        "aria-labelledby": f"{key}-title",
        "aria-describedby": f"{key}-desc",
        "style": "stroke-linejoin: round; stroke-linecap: butt",
    }
    for name, text in (("desc", description), ("title", title)):
        element = ET.Element(name, {"id": f"{key}-{name}"})
        element.text = text
        root.insert(0, element)
    return ET.tostring(root, encoding="unicode", short_empty_elements=True)


def _references(element: ET.Element) -> list[str]:
    values = " ".join(element.attrib.values())
    link = next((value for name, value in element.attrib.items() if name.endswith("href")), "")
    return re.findall(r"url\(#([^)]+)\)", values) + ([link[1:]] if link.startswith("#") else [])


def _rewrite(element: ET.Element, ids: Mapping[str, str]) -> None:
    """Take names out of their namespaces, give ids that are used their new names, shorten, put variables."""
    element.tag = element.tag.rpartition("}")[2]
    element.tail = None
    if element.tag != "text":
        element.text = None
    for child in list(element):
        if child.tag.rpartition("}")[2] in ("metadata", "style"):
            element.remove(child)  # matplotlib's style has the selector *: it would reach the whole page
        else:
            _rewrite(child, ids)
    for name, value in list(element.attrib.items()):
        del element.attrib[name]
        name = name.rpartition("}")[2]
        if name == "id" and value not in ids:
            continue
        if name == "id":
            value = ids[value]
        elif name == "href" and value.startswith("#"):
            value = f"#{ids[value[1:]]}"
        elif name == "d":
            value = _short_path(value)
        elif name in ("x", "y", "width", "height"):
            value = _short_numbers(value, 2)
        elif name == "style":
            value = _style(value)
        elif name == "transform" and re.match(r"rotate\(-?0(\.0*)?[ ,)]", value):
            continue
        value = re.sub(r"url\(#([^)]+)\)", lambda found: f"url(#{ids[found[1]]})", value)
        if value:
            element.attrib[name] = value


def _flatten(element: ET.Element) -> None:
    """Put the children of groups that say nothing in the groups' place, remove what is empty, and say what several
    neighbours have in common (style, what clips them) once, in a group around them."""
    children: list[ET.Element] = []
    for child in list(element):
        _flatten(child)
        if child.tag in ("g", "defs") and not len(child):
            continue
        children += list(child) if child.tag == "g" and not child.attrib else [child]
    element[:] = [found for _, run in itertools.groupby(children, key=_common) for found in _grouped(list(run))]


def _common(element: ET.Element) -> dict[str, str]:
    """Return the attributes that may stand in a group. A style with opacity may not: it would be the whole group's."""
    if element.tag in ("g", "defs") or re.search(r"(^|; )opacity:", element.attrib.get("style", "")):
        return {}
    return {name: element.attrib[name] for name in ("style", "clip-path") if name in element.attrib}


def _grouped(run: list[ET.Element]) -> list[ET.Element]:
    common = _common(run[0])
    if not common or len(run) < 3:
        return run
    group = ET.Element("g", common)
    for element in run:
        for name in common:
            del element.attrib[name]
    group[:] = run
    return [group]


def _short_path(path: str) -> str:
    text = " ".join(_short_numbers(path, 1 if len(path) > _LONG else 2).split())
    return re.sub(r" ?([MLQCz]) ?", r"\1", text)


def _short_numbers(text: str, digits: int) -> str:
    return _NUMBER.sub(lambda found: f"{float(found[0]):.{digits}f}".rstrip("0").rstrip("."), text)


def _style(text: str) -> str:
    """Return the declarations with variables for colours, and without fonts: the page's are used."""
    parts: list[str] = []
    for declaration in text.split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name == "font":  # matplotlib before 3.10 writes `font: italic 700 12px 'DejaVu Sans', ...`
            for feature, pattern in _FONT.items():
                found = pattern.search(value)
                parts += [f"{feature}: {found[1]}"] if found else []
        elif name and name != "font-family":
            parts.append(f"{name}: {VARIABLES.get(value.lower(), value)}")
    return "; ".join(parts)
