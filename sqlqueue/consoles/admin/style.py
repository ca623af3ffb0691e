"""What the admin console's pages need of CSS, beyond what both consoles share.

Hangs on the class that Streamlit (1.67) makes of a widget's key, `st-key-…`, and on its test ids.
"""

from __future__ import annotations

from typing import Final

from sqlqueue.consoles.look import streamlit_theme
from sqlqueue.palette import MUTED, STATES

__all__ = ["STYLE"]

_THEME: Final = streamlit_theme()


def _either(option: str) -> str:
    """Return a colour of the theme as CSS that goes by the ground it is on."""
    return f"light-dark({_THEME[f'theme.light.{option}']}, {_THEME[f'theme.dark.{option}']})"


_GROUND: Final = _either("backgroundColor")
_RAISED: Final = _either("secondaryBackgroundColor")
_BORDER: Final = _either("borderColor")
_TILES: Final = "\n".join(
    f".st-key-state-{state} button {{ --sq: {colour}; }}" for state, colour in STATES.items()
)

STYLE: Final = f"""<style>
/* Tiles of states: equal, whatever their numbers say, and in rows as many as fit. */
.st-key-state-pills {{ display: grid; gap: .5rem;
  grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); }}
.st-key-state-pills > div, .st-key-state-pills button {{ width: 100% !important; }}
.st-key-state-pills button {{ justify-content: flex-start; text-align: left; padding: .3rem .75rem;
  border-left: 4px solid var(--sq, {MUTED}); }}
.st-key-state-pills button p {{ font-size: .875rem; line-height: 1.35; white-space: nowrap; }}
.st-key-state-pills button p strong {{ display: block; font-size: 1.25rem;
  font-variant-numeric: tabular-nums; }}
.st-key-state-pills button > div {{ justify-content: flex-start; }}
.st-key-state-pills button[kind="primary"] {{ color: inherit; border-color: var(--sq);
  background: color-mix(in srgb, var(--sq) 22%, transparent); }}
{_TILES}
/* What the toolbar of a table offers is here by other ways, and it would write formulas of strangers to a CSV. */
[data-testid="stElementToolbar"] {{ display: none; }}
/* What can be done stands at the foot of the window, where it is not moved by the table. */
div:has(> .st-key-action-bar) {{ position: sticky; bottom: 0; z-index: 50; }}
.st-key-action-bar {{ background: {_GROUND};
  border-top: 1px solid {_BORDER}; padding: .6rem 0 .7rem; min-height: 3.6rem; }}
.st-key-action-bar p {{ font-variant-numeric: tabular-nums; }}
div:has(> .st-key-bar-text) {{ flex: 1 1 12rem !important; width: auto !important; }}
.st-key-list-head p, .st-key-action-bar p {{ font-size: .9rem; }}
/* Also a short list leaves the foot of the window to the actions. */
.st-key-nothing, .st-key-jobs-table {{ min-height: max(12rem, calc(100vh - 23.5rem)); }}
.st-key-list-head p {{ font-variant-numeric: tabular-nums; }}
.st-key-report > :first-child {{ flex: 1 1 auto !important; width: auto !important; }}
/* The report lies above the page: it comes and goes without moving anything. */
div:has(> .st-key-report) {{ position: fixed; right: 1.5rem; bottom: 5.5rem; z-index: 60;
  width: min(34rem, calc(100vw - 3rem)) !important; }}
.st-key-report {{ background: {_RAISED};
  border: 1px solid {_BORDER}; border-left: 4px solid {STATES["done"]};
  border-radius: .5rem; padding: .75rem 1rem; box-shadow: 0 6px 24px rgb(0 0 0 / .18); }}
/* The page of a job. */
.st-key-job-head {{ gap: .75rem 1rem; }}
/* Streamlit gives lists an indent of its own. */
.sq-facts, .sq-facts dd, .sq-timeline, .sq-timeline li {{ margin: 0 !important; padding-left: 0 !important; }}
.sq-facts {{ display: grid; gap: .75rem 1.5rem; padding: .25rem 0 .5rem;
  grid-template-columns: repeat(auto-fill, minmax(13.5rem, 1fr)); }}
.sq-facts dt {{ color: {MUTED}; font-size: .8rem; font-weight: 400; }}
.sq-facts dd {{ font-size: .9rem; overflow-wrap: anywhere;
  font-variant-numeric: tabular-nums; }}
.sq-timeline {{ list-style: none; font-size: .875rem;
  font-variant-numeric: tabular-nums; }}
.sq-timeline li {{ display: grid; gap: .25rem .9rem; align-items: center; padding: .35rem 0;
  border-bottom: 1px solid {_BORDER};
  grid-template-columns: 2.2rem 8rem minmax(6rem, 1fr) 9.5rem 4.5rem minmax(0, 9rem) minmax(0, 2fr); }}
.sq-track {{ position: relative; height: .6rem; border-radius: .3rem; background: {_RAISED}; }}
.sq-track i {{ position: absolute; top: 0; bottom: 0; border-radius: .3rem; min-width: 3px;
  background: var(--sq); }}
.sq-right {{ text-align: right; }}
.sq-timeline .sq-muted, .sq-error {{ overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }}
@media (max-width: 900px) {{
  .sq-timeline li {{ grid-template-columns: 2.2rem 1fr auto auto; }}
  .sq-track, .sq-error {{ grid-column: 1 / -1; order: 1; }}
  .sq-timeline .sq-muted {{ display: none; }}
}}
@media (max-width: 640px) {{
  .st-key-filters {{ display: grid; grid-template-columns: 1fr 1fr; }}
  .st-key-filters > div, .st-key-filters > div > div {{ width: 100% !important; min-width: 0; }}
  .st-key-filters > :first-child {{ grid-column: 1 / -1; }}
  .st-key-state-pills {{ grid-template-columns: repeat(auto-fit, minmax(6.75rem, 1fr)); }}
  .st-key-state-pills button {{ padding: .25rem .5rem; }}
  .st-key-state-pills button p {{ font-size: .8rem; }}
  .sq-facts {{ grid-template-columns: 1fr 1fr; }}
  div:has(> .st-key-action-bar) {{ position: static; }}
}}
</style>"""
