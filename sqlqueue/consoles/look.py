"""How both consoles look: the theme, made of the palette, and the small pieces pages share."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from sqlqueue.palette import MUTED, STATES, TITLES
from sqlqueue.text import escaped

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["STYLE", "badge", "plain", "safe", "streamlit_theme"]

ACCENT: Final = "#2f6fb3"

# What Streamlit's theme cannot say. Its class names change, so that only its stable test ids and our
# own names stand here. Numbers keep their place as they change; nothing moves under the pointer.
STYLE: Final = f"""<style>
[data-testid="stMainBlockContainer"] {{ padding: 4.25rem 2rem 3rem; max-width: 1600px; }}
[data-testid="stMetricValue"] {{ font-variant-numeric: tabular-nums; }}
[data-testid="stMetric"] {{ height: 100%; }}
.sq-badge {{ display: inline-flex; align-items: center; gap: .4em; white-space: nowrap; }}
.sq-badge::before {{ content: ""; width: .6em; height: .6em; border-radius: 50%;
  background: var(--sq, {MUTED}); }}
.sq-muted {{ color: {MUTED}; font-size: .875rem; }}
@media (max-width: 640px) {{
  [data-testid="stMainBlockContainer"] {{ padding: 4rem 1rem 2rem; }}
}}
</style>"""


def streamlit_theme() -> Mapping[str, object]:
    """Return Streamlit's theme options (1.67): one look, on light and dark ground as the browser is set."""
    shared: dict[str, object] = {
        "primaryColor": ACCENT,
        "baseRadius": "0.5rem",
        "linkUnderline": False,
    }
    light = {
        **shared,
        "backgroundColor": "#ffffff",
        "secondaryBackgroundColor": "#f5f6f8",
        "textColor": "#1f2430",
        "borderColor": "#dfe3e8",
    }
    dark = {
        **shared,
        "primaryColor": "#5a9bdd",
        "backgroundColor": "#12151c",
        "secondaryBackgroundColor": "#1b2029",
        "textColor": "#e6e8ec",
        "borderColor": "#2e3541",
    }
    theme: dict[str, object] = {"theme.showWidgetBorder": True, "theme.baseFontSize": 15}
    for name, options in (("light", light), ("dark", dark)):
        theme |= {f"theme.{name}.{option}": value for option, value in options.items()}
    return theme


def badge(state: str) -> str:
    """Return the HTML of a state: its colour and, always beside it, its name."""
    colour = STATES.get(state, MUTED)
    return f'<span class="sq-badge" style="--sq:{colour}">{escape(TITLES.get(state, state))}</span>'


def plain(text: str) -> str:
    """Return strangers' text for a place that shows text as it is: cells, code, tooltips."""
    return escaped(text, keep_newlines=True)


def safe(text: str) -> str:
    """Return strangers' text for a place that renders Markdown: escaped, and no mark-up in it."""
    shown = escaped(text)
    return "".join(f"\\{one}" if one in _MARKUP else one for one in shown)


# What Streamlit's Markdown understands, its own :colour[…] and $…$ among it.
_MARKUP: Final = frozenset("\\`*_{}[]()<>#+-.!|~$:&@/=")
