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
/* What the toolbar offers is here by other ways, and it would write formulas of strangers to a CSV. */
.st-key-jobs-table [data-testid="stElementToolbar"] {{ display: none; }}
/* What can be done stands at the foot of the window, where it is not moved by the table. */
div:has(> .st-key-action-bar) {{ position: sticky; bottom: 0; z-index: 50; }}
.st-key-action-bar {{ background: {_GROUND};
  border-top: 1px solid {_BORDER}; padding: .6rem 0 .7rem; min-height: 3.6rem; }}
.st-key-action-bar p {{ font-variant-numeric: tabular-nums; }}
div:has(> .st-key-bar-text) {{ flex: 1 1 12rem !important; width: auto !important; }}
.st-key-list-head p, .st-key-action-bar p {{ font-size: .9rem; }}
.st-key-list-head p {{ font-variant-numeric: tabular-nums; }}
div:has(> .st-key-report) p {{ margin: 0; }}
.st-key-report > :first-child {{ flex: 1 1 auto !important; width: auto !important; }}
/* The report lies above the page: it comes and goes without moving anything. */
div:has(> .st-key-report) {{ position: fixed; right: 1.5rem; bottom: 5.5rem; z-index: 60;
  width: min(34rem, calc(100vw - 3rem)) !important; }}
.st-key-report {{ background: {_RAISED};
  border: 1px solid {_BORDER}; border-left: 4px solid {STATES["done"]};
  border-radius: .5rem; padding: .75rem 1rem; box-shadow: 0 6px 24px rgb(0 0 0 / .18); }}
@media (max-width: 640px) {{
  .st-key-state-pills {{ grid-template-columns: repeat(auto-fit, minmax(6.75rem, 1fr)); }}
  .st-key-state-pills button {{ padding: .25rem .5rem; }}
  .st-key-state-pills button p {{ font-size: .8rem; }}
  div:has(> .st-key-action-bar) {{ position: static; }}
}}
</style>"""
