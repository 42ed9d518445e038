"""The page as one HTML file: templates filled with autoescape, style and script inside, and no network allowed."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from subnetune.experiment.report.page import Page

if TYPE_CHECKING:
    from jinja2 import Environment

_HERE = Path(__file__).parent


def html_text(page: Page) -> str:
    """Return `report.html`. Raises ImportError without jinja2."""
    from markupsafe import Markup

    style, script = (_asset(name) for name in ("report.css", "report.js"))
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            page=page,
            style=Markup(style),
            script=Markup(script),
            policy=policy(script),
            svg=Markup,
        )
    )


def policy(script: str) -> str:
    """Return the Content-Security-Policy: our script alone runs, and nothing is fetched from anywhere."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'"
    )


def _asset(name: str) -> str:
    return (_HERE / "assets" / name).read_text(encoding="utf-8")


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
