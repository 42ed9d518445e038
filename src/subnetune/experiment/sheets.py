"""Names in CSV files, for programs that calculate with what they read."""

from __future__ import annotations


def as_text(name: str) -> str:
    """Return a name that a spreadsheet does not take for a formula: an apostrophe stands before one that looks so."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name
