"""Pieces of HTML that pages are put together from: text, links, bars, facts, tables. No Streamlit.

Whatever comes from outside goes through `text` or `link`, which escape it twice over: once for eyes
(control and bidirectional characters spelled out) and once for HTML. Only what these functions
return is an `Html`, so that mypy finds text that was not escaped.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Final, NewType
from urllib.parse import urlencode

from sqlqueue.palette import LEVELS, MUTED
from sqlqueue.text import escaped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "NOTHING",
    "STYLE",
    "Column",
    "Html",
    "bar",
    "dotted",
    "facts",
    "joined",
    "link",
    "muted",
    "strong",
    "table",
    "text",
    "warned",
]

Html = NewType("Html", str)
NOTHING: Final = Html("")

# Facts stand in equal cells, so that those of one row lie below those of the row before.
STYLE: Final = f"""<style>
.sq-facts {{ display: grid; gap: .35rem 1rem; align-items: start; margin: 0;
  grid-template-columns: minmax(12rem, 2.2fr) repeat(auto-fit, minmax(5.5rem, 1fr)); }}
.sq-facts.sq-even {{ grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); }}
.sq-facts > div {{ min-width: 0; }}
.sq-facts dt, .sq-table th {{ color: {MUTED}; font-size: .8rem; font-weight: 400; text-align: left; }}
.sq-facts dd {{ margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }}
.sq-wide {{ grid-column: 1 / -1; overflow-wrap: anywhere; }}
.sq-strong {{ font-weight: 600; overflow-wrap: anywhere; }}
.sq-scroll {{ overflow-x: auto; }}
.sq-table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
.sq-table th, .sq-table td {{ padding: .3rem .75rem .3rem 0; vertical-align: top; }}
.sq-table td {{ border-top: 1px solid color-mix(in srgb, {MUTED} 30%, transparent);
  overflow-wrap: anywhere; }}
.sq-table .sq-right {{ text-align: right; white-space: nowrap; }}
.sq-table .sq-tight {{ white-space: nowrap; }}
.sq-table code, .sq-facts code {{ font-size: .85em; }}
.sq-bar {{ display: inline-block; width: 5rem; height: .5rem; border-radius: .25rem;
  background: color-mix(in srgb, {MUTED} 30%, transparent); overflow: hidden;
  vertical-align: baseline; margin-right: .5em; }}
.sq-bar > span {{ display: block; height: 100%; background: var(--sq, {MUTED}); }}
@media (max-width: 640px) {{
  .sq-facts {{ grid-template-columns: repeat(3, minmax(0, 1fr)); }}
  .sq-facts > div:first-child {{ grid-column: 1 / -1; }}
  .sq-facts.sq-even {{ grid-template-columns: repeat(2, minmax(0, 1fr)); }}
  .sq-facts.sq-even > div:first-child {{ grid-column: auto; }}
  .sq-table {{ min-width: 38rem; }}
}}
</style>"""


@dataclass(frozen=True, slots=True)
class Column:
    """Be a column of a table; `right` for numbers, `tight` for what must not be broken."""

    title: str
    right: bool = False
    tight: bool = False

    @property
    def classes(self) -> str:
        """Return its cells' attribute, with the blank before it."""
        names = ["sq-right"] * self.right + ["sq-tight"] * self.tight
        return f' class="{" ".join(names)}"' if names else ""


def text(value: str) -> Html:
    """Return text of whoever it is as HTML that shows just that."""
    return Html(escape(escaped(value)))


def muted(value: str) -> Html:
    """Return text that steps back."""
    return Html(f'<span class="sq-muted">{text(value)}</span>') if value else NOTHING


def strong(value: str) -> Html:
    """Return text that leads its row."""
    return Html(f'<span class="sq-strong">{text(value)}</span>')


def warned(value: str, level: str = "warn") -> Html:
    """Return text with the dot of a level: ok, warn or fail; nothing for no text."""
    return dotted(value, LEVELS[level]) if value else NOTHING


def dotted(value: str, colour: str) -> Html:
    """Return text with a dot of a colour before it, as states have."""
    return Html(
        f'<span class="sq-badge" style="--sq:{escape(colour)}"><span>{text(value)}</span></span>'
    )


def link(label: str, page: str, query: Mapping[str, str], *, title: str = "") -> Html:
    """Return a link to another page of this console, such as ``job`` with its ``id``.

    Relative, so that it also works behind a proxy that serves the console below a path.
    """
    return _link(text(label), f"{page}?{urlencode(query)}" if query else page, title)


def _link(label: Html, address: str, title: str) -> Html:
    shown = f' title="{text(title)}"' if title else ""
    return Html(f'<a href="{escape(address)}" target="_self"{shown}>{label}</a>')


def joined(parts: Sequence[Html], separator: str = " ") -> Html:
    """Return those of the parts that are not empty, side by side."""
    return Html(escape(separator).join(part for part in parts if part))


def bar(used: int, total: int, colour: str) -> Html:
    """Return how much of something is used as a small bar; the numbers stand beside it."""
    part = min(max(used / total, 0.0), 1.0) if total else 0.0
    return Html(
        f'<span class="sq-bar" style="--sq:{escape(colour)}">'
        f'<span style="width:{part:.0%}"></span></span>'
    )


def facts(
    pairs: Sequence[tuple[str, Html]], *, below: Sequence[Html] = (), even: bool = False
) -> Html:
    """Return names above values, in cells of equal width; the first one leads and is wider.

    `below` are lines under it over its whole width; `even` makes all cells alike.
    """
    cells = "".join(f"<div><dt>{text(name)}</dt><dd>{value}</dd></div>" for name, value in pairs)
    lines = "".join(f'<dd class="sq-wide">{line}</dd>' for line in below if line)
    return Html(f'<dl class="sq-facts{" sq-even" if even else ""}">{cells}{lines}</dl>')


def table(columns: Sequence[Column], rows: Sequence[Sequence[Html]]) -> Html:
    """Return a table that scrolls sideways where it is too wide."""
    head = "".join(f"<th{one.classes}>{text(one.title)}</th>" for one in columns)
    body = "".join(
        "<tr>"
        + "".join(f"<td{one.classes}>{cell}</td>" for one, cell in zip(columns, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return Html(
        f'<div class="sq-scroll"><table class="sq-table"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
