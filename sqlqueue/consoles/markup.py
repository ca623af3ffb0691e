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

from sqlqueue.consoles.look import ACCENT
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
    "example",
    "facts",
    "heading",
    "joined",
    "lines",
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
[data-testid="stHtml"] dl.sq-facts {{ margin: 0; padding: 0; }}
.sq-facts {{ display: grid; gap: .35rem 1rem; align-items: start;
  grid-template-columns: minmax(12rem, 2.2fr) repeat(auto-fit, minmax(5.5rem, 1fr)); }}
.sq-facts.sq-even {{ grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); }}
.sq-facts > div {{ min-width: 0; }}
.sq-facts dt, .sq-table th {{ color: {MUTED}; font-size: .8rem; font-weight: 400; text-align: left; }}
[data-testid="stHtml"] .sq-facts dd {{ margin: 0; padding: 0; }}
.sq-facts dd {{ font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }}
.sq-note {{ display: flex; align-items: baseline; gap: .4em; }}
.sq-note::before {{ content: ""; flex: none; width: .6em; height: .6em; border-radius: 50%;
  background: var(--sq, {MUTED}); }}
.sq-title {{ display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 1rem; margin: 0; }}
.sq-title h2, .sq-title h3 {{ font-size: 1.35rem; font-weight: 600; margin: 0; padding: 0; }}
.sq-title h3 {{ font-size: 1.05rem; }}
.sq-below {{ margin-top: .35rem; overflow-wrap: anywhere; }}
.sq-strong {{ font-weight: 600; overflow-wrap: anywhere; }}
.sq-scroll {{ overflow-x: auto; }}
.sq-facts ~ .sq-scroll {{ margin-top: .75rem; }}
.sq-table {{ border-collapse: collapse; width: 100%; table-layout: fixed;
  font-variant-numeric: tabular-nums; }}
.sq-table th, .sq-table td {{ padding: .3rem .75rem; vertical-align: top; }}
.sq-table tr > :first-child {{ padding-left: 0; }}
.sq-table tr > :last-child {{ padding-right: 0; }}
.sq-table a, .sq-facts a {{ color: color-mix(in srgb, {ACCENT} 75%, currentColor); }}
.sq-table td {{ border-top: 1px solid color-mix(in srgb, {MUTED} 30%, transparent);
  overflow-wrap: anywhere; }}
.sq-table .sq-right {{ text-align: right; white-space: nowrap; }}
.sq-table a {{ white-space: nowrap; }}
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
  .sq-table {{ min-width: 46rem; }}
  .sq-bar {{ width: 2.5rem; }}
}}
</style>"""


@dataclass(frozen=True, slots=True)
class Column:
    """Be a column of a table: `right` for numbers, `share` of the width next to the other columns.

    Widths are fixed, so that nothing moves when what stands in a cell gets longer.
    """

    title: str
    share: int = 1
    right: bool = False


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
        f'<span class="sq-note" style="--sq:{escape(colour)}"><span>{text(value)}</span></span>'
    )


def heading(title: str, *said: str, small: bool = False) -> Html:
    """Return a heading with a line about what is below it; `small` for a part of a page."""
    shown, level = "".join(muted(one) for one in said), "h3" if small else "h2"
    return Html(f'<div class="sq-title"><{level}>{text(title)}</{level}>{shown}</div>')


def link(label: str, page: str, query: Mapping[str, str], *, title: str = "") -> Html:
    """Return a link to another page of this console, such as ``job`` with its ``id``.

    Relative, so that it also works behind a proxy that serves the console below a path.
    """
    return _link(text(label), f"{page}?{urlencode(query)}" if query else page, title)


def _link(label: Html, address: str, title: str) -> Html:
    shown = f' title="{text(title)}"' if title else ""
    return Html(f'<a href="{escape(address)}" target="_self"{shown}>{label}</a>')


def example(name: str, target: str = "") -> Html:
    """Return a link to a job with its id cut short, whole where the pointer rests on it.

    `target` is what the Job page is asked for, when it is not the id.
    """
    # A whole id is 36 characters: its end tells the jobs of one hour apart, its beginning does not.
    shown = name if len(name) <= 13 else f"…{name[-12:]}"
    return link(shown, "job", {"id": target or name}, title=name)


def lines(parts: Sequence[Html]) -> Html:
    """Return the parts below one another."""
    return Html("".join(f"<div>{part}</div>" for part in parts if part))


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
    # Below the grid and not in it: what spans its columns would keep the empty ones open.
    lines = "".join(f'<div class="sq-below">{line}</div>' for line in below if line)
    return Html(f'<dl class="sq-facts{" sq-even" if even else ""}">{cells}</dl>{lines}')


def table(columns: Sequence[Column], rows: Sequence[Sequence[Html]]) -> Html:
    """Return a table that scrolls sideways where it is too wide."""
    whole = sum(one.share for one in columns)
    widths = "".join(f'<col style="width:{one.share / whole:.2%}">' for one in columns)
    head = "".join(f"<th{_side(one)}>{text(one.title)}</th>" for one in columns)
    body = "".join(
        "<tr>"
        + "".join(f"<td{_side(one)}>{cell}</td>" for one, cell in zip(columns, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return Html(
        f'<div class="sq-scroll"><table class="sq-table"><colgroup>{widths}</colgroup>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _side(column: Column) -> str:
    return ' class="sq-right"' if column.right else ""
