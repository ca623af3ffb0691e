"""Pieces of the ops page as HTML: the one place where their texts are escaped.

Tables are HTML and no data frames: nobody ticks or sorts here, a refresh that changes a number
changes that number only, and a bar, a colour and a cut-off text look the same in all of them.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from sqlqueue.palette import LEVELS, MUTED
from sqlqueue.text import escaped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlqueue.consoles.ops.pieces import Card, Cell, Column, Status, Table

__all__ = ["ROW_HEIGHT", "STYLE", "cards", "facts", "heading", "nothing", "status", "table"]

CHART_HEIGHT: Final = 220
ROW_HEIGHT: Final = 31  # pixels, of a row of a table
# Lines take their colour from the text's, which the theme sets: one rule for light and dark. Every
# height is fixed, so that nothing moves when a value comes, goes or grows.
STYLE: Final = f"""<style>
.ops {{ --line: color-mix(in srgb, currentColor 14%, transparent);
  --soft: color-mix(in srgb, currentColor 4%, transparent);
  --bar: color-mix(in srgb, currentColor 45%, transparent); font-variant-numeric: tabular-nums; }}
.ops-warn {{ --level: {LEVELS["warn"]}; }}
.ops-fail {{ --level: {LEVELS["fail"]}; }}
.ops-ok {{ --level: {LEVELS["ok"]}; }}
.ops-cards {{ display: grid; gap: .75rem; grid-template-columns: repeat(8, minmax(0, 1fr)); }}
.ops-card {{ border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem .65rem;
  background: var(--soft); height: 6.6rem; box-sizing: border-box; overflow: hidden;
  box-shadow: inset 3px 0 0 var(--level, transparent); }}
.ops-card > * {{ white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }}
.ops-card .name {{ font-size: .8125rem; opacity: .75; line-height: 1.3; }}
.ops-card .value {{ font-size: 1.75rem; font-weight: 600; line-height: 1.35;
  color: var(--level, inherit); }}
.ops-card .note {{ font-size: .8125rem; line-height: 1.4; opacity: .75; height: 1.4em; }}
.ops-card.ops-warn .note, .ops-card.ops-fail .note {{ opacity: 1; }}
.ops-status {{ display: flex; align-items: center; gap: .75rem; height: 2.75rem;
  box-sizing: border-box; padding: 0 .9rem; border: 1px solid var(--line); border-radius: .5rem;
  background: color-mix(in srgb, var(--level, currentColor) 9%, transparent);
  box-shadow: inset 3px 0 0 var(--level, transparent); }}
.ops-status .say {{ flex: 1; min-width: 0; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }}
.ops-status .say b {{ font-weight: 600; }}
.ops-asof {{ white-space: nowrap; font-size: .875rem; }}
.ops-asof::after {{ content: " old"; color: {LEVELS["warn"]}; font-weight: 600; opacity: 0; }}
.ops-asof[class*=" in-"]::after {{ animation: ops-late 1ms linear forwards; }}
.ops-asof.in-5::after {{ animation-delay: 20s; }}
.ops-asof.in-10::after {{ animation-delay: 35s; }}
.ops-asof.in-30::after {{ animation-delay: 95s; }}
@keyframes ops-late {{ to {{ opacity: 1; }} }}
.ops-heading {{ display: flex; align-items: baseline; gap: .6rem; height: 1.75rem;
  margin: .25rem 0 0; white-space: nowrap; overflow: hidden; }}
.ops-heading h2 {{ font-size: 1.0625rem; font-weight: 600; margin: 0; padding: 0; line-height: 1.75rem; }}
.ops-heading span {{ font-size: .8125rem; opacity: .7; overflow: hidden; text-overflow: ellipsis; }}
.ops-key {{ display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .35em; }}
.ops-nothing {{ display: grid; place-items: center; text-align: center; padding: 0 1rem;
  box-sizing: border-box; color: {MUTED}; font-size: .875rem; }}
.ops-sheet {{ container-type: inline-size; }}
.ops-sheet table {{ width: 100%; table-layout: fixed; border-collapse: separate; border-spacing: 0;
  font-size: .8438rem; line-height: 1.25rem; margin: 0; }}
.ops-sheet th, .ops-sheet td {{ padding: .3rem .6rem; border: 0; border-bottom: 1px solid var(--line);
  text-align: left; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; height: 1.25rem; }}
.ops-sheet th {{ font-weight: 500; font-size: .7813rem; opacity: .7; }}
.ops-sheet .right {{ text-align: right; }}
.ops-sheet td.muted {{ color: {MUTED}; }}
.ops-sheet td.ops-warn, .ops-sheet td.ops-fail {{ color: var(--level); font-weight: 600; }}
.ops-sheet tr:last-child td {{ border-bottom-color: transparent; }}
.ops-bar {{ display: block; border-radius: .25rem; padding: 0 .35rem; margin: 0 -.1rem;
  background: linear-gradient(var(--bar), var(--bar)) no-repeat left bottom / var(--part) 3px,
    linear-gradient(var(--line), var(--line)) no-repeat left bottom / 100% 3px;
  overflow: hidden; text-overflow: ellipsis; }}
@container (max-width: 640px) {{ .ops-sheet .rank2 {{ display: none; }} }}
@container (max-width: 430px) {{ .ops-sheet .rank1 {{ display: none; }} }}
.ops-facts {{ display: flex; flex-wrap: wrap; gap: .25rem 1.75rem; font-size: .8438rem;
  padding: .7rem 0 0; border-top: 1px solid var(--line); overflow-wrap: anywhere; }}
.ops-facts .name {{ opacity: .7; margin-right: .25rem; }}
.ops-facts .ops-warn, .ops-facts .ops-fail {{ color: var(--level); font-weight: 600; }}
[data-stale="true"] {{ opacity: 1 !important; }}
.st-key-chart-throughput, .st-key-chart-durations {{ min-height: {CHART_HEIGHT + 32}px; }}
@media (max-width: 1280px) {{ .ops-cards {{ grid-template-columns: repeat(4, minmax(0, 1fr)); }} }}
@media (max-width: 640px) {{
  .ops-cards {{ grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .5rem; }}
  .ops-status {{ height: 4.75rem; align-items: start; padding-top: .55rem; }}
  .ops-status .say {{ white-space: normal; max-height: 3.6rem; overflow-y: auto; font-size: .875rem; }}
}}
</style>"""


def cards(found: Sequence[Card]) -> str:
    """Return a row of cards of one size."""
    return f'<div class="ops ops-cards">{"".join(map(_card, found))}</div>'


def status(found: Status, as_of: str, *, refresh_s: int | None) -> str:
    """Return the status line, and at its end when this was true.

    The word "old" comes up behind the time by itself, in the browser, when the next refreshes do not
    arrive: the connection is lost, or the console has ended.
    """
    first, *others = found.problems or (found.summary,)
    said = f"<b>{_text(first)}</b>" if found.problems else _text(first)
    said += "".join(f" · {_text(one)}" for one in others)
    whole = _text(" · ".join((first, *others)))
    late = f" in-{refresh_s}" if refresh_s else ""
    return (
        f'<div class="ops ops-status {_class(found.level)} st-key-status" role="status">'
        f'<span class="say" title="{whole}">{said}</span>'
        f'<span class="ops-asof{late} st-key-as-of">as of <time>{_text(as_of)}</time></span></div>'
    )


def heading(title: str, beside: str = "", *, keys: Sequence[tuple[str, str]] = ()) -> str:
    """Return the heading of a panel; `keys` are names and colours of what a chart shows."""
    shown = "".join(
        f'<span><i class="ops-key" style="background:{colour}"></i>{_text(name)}</span>'
        for name, colour in keys
    )
    return (
        f'<div class="ops ops-heading"><h2>{_text(title)}</h2>{shown}'
        f'<span title="{_text(beside)}">{_text(beside)}</span></div>'
    )


def nothing(said: str, *, height: int) -> str:
    """Return what stands in the place of something, `height` pixels high, that is not there."""
    return f'<div class="ops ops-nothing" style="height:{height}px">{_text(said)}</div>'


def table(found: Table) -> str:
    """Return a table without its heading, for a container that scrolls."""
    total = sum(column.width for column in found.columns)
    head = "".join(
        f'<th class="{_classes(column)}" style="width:{column.width / total:.1%}">'
        f"{_text(column.title)}</th>"
        for column in found.columns
    )
    body = "".join(f"<tr>{''.join(map(_cell, found.columns, row))}</tr>" for row in found.rows)
    return (
        f'<div class="ops ops-sheet"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def facts(found: Sequence[tuple[str, Cell]]) -> str:
    """Return names and values in a line."""
    shown = "".join(
        f'<span><span class="name">{_text(name)}</span> <span class="{_class(cell.level)}">'
        f"{_text(cell.text)}</span></span>"
        for name, cell in found
    )
    return f'<div class="ops ops-facts st-key-file">{shown}</div>'


def _card(card: Card) -> str:
    # A browser test and a style sheet find it as they would a container of Streamlit's.
    return (
        f'<div class="ops-card {_class(card.level)} st-key-kpi-{_text(card.name)}" role="group"'
        f' title="{_text(card.help)}"><div class="name">{_text(card.title)}</div>'
        f'<div class="value">{_text(card.value)}</div><div class="note">{_text(card.note)}</div></div>'
    )


def _cell(column: Column, cell: Cell) -> str:
    classes = f"{_classes(column)} {_class(cell.level)}{' muted' if cell.muted else ''}"
    shown = _text(cell.text)
    if cell.part is not None:
        share = min(max(cell.part, 0.0), 1.0)
        shown = f'<span class="ops-bar" style="--part:{share:.0%}">{shown}</span>'
    return f'<td class="{classes}" title="{_text(cell.whole or cell.text)}">{shown}</td>'


def _classes(column: Column) -> str:
    return f"rank{column.rank}{' right' if column.right else ''}"


def _class(level: str) -> str:
    return f"ops-{level}" if level else ""


def _text(text: str) -> str:
    return escape(escaped(text))
