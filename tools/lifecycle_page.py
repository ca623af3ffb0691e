"""Write docs/lifecycle.svg, and the tables of docs/lifecycle.md, from the table of steps: `make docs`.

Which steps there are is said once, in sqlqueue_transport/lifecycle.py. Here stands only where the
drawing puts a state and how an arrow gets there; a step that has no place yet is an error. A test
fails when the drawing or the page is not what this script would write.
"""

from __future__ import annotations

from pathlib import Path

from sqlqueue_transport.lifecycle import (
    FINISHED,
    MEANINGS,
    OPERATORS,
    TRANSITIONS,
    WAITING,
    Event,
    State,
)

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "lifecycle.md"
DRAWING = ROOT / "docs" / "lifecycle.svg"
BEGIN = "<!-- Written by `make docs` from sqlqueue_transport/lifecycle.py. -->\n"
END = "<!-- End of what `make docs` writes. -->\n"

WIDTH, HEIGHT = 940, 500
BOX = (168, 46)
# The centre of each state's box.
PLACES = {
    State.SCHEDULED: (150, 90),
    State.PENDING: (150, 230),
    State.FAILED: (470, 90),
    State.PROCESSING: (470, 230),
    State.DONE: (820, 90),
    State.CANCELLED: (820, 190),
    State.PERMANENTLY_FAILED: (820, 290),
    State.EXPIRED: (820, 440),
}
# The way of each arrow as an SVG path, and where its words stand: x, y, anchor.
Way = tuple[str, tuple[int, int, str]]
WAYS: dict[tuple[State, State], Way] = {
    (State.SCHEDULED, State.PENDING): ("M150 113 V207", (160, 165, "start")),
    (State.FAILED, State.PENDING): ("M386 113 L238 212", (300, 150, "end")),
    (State.PENDING, State.PROCESSING): ("M234 222 H386", (310, 214, "middle")),
    (State.PROCESSING, State.PENDING): ("M386 240 H234", (310, 258, "middle")),
    (State.PROCESSING, State.FAILED): ("M470 207 V113", (480, 165, "start")),
    (State.PROCESSING, State.DONE): ("M554 216 L736 98", (634, 148, "end")),
    (State.PROCESSING, State.CANCELLED): ("M554 226 L736 194", (680, 192, "end")),
    (State.PROCESSING, State.PERMANENTLY_FAILED): ("M554 238 L736 280", (672, 254, "start")),
    (State.PENDING, State.PERMANENTLY_FAILED): (
        "M206 253 C260 320 420 304 736 290",
        (470, 292, "middle"),
    ),
    (State.PERMANENTLY_FAILED, State.PENDING): (
        "M736 304 C560 366 270 400 176 253",
        (530, 374, "middle"),
    ),
    (State.PENDING, State.EXPIRED): ("M146 253 C170 460 480 440 736 440", (470, 430, "middle")),
    (State.PENDING, State.PENDING): ("M66 222 C20 214 20 254 66 246", (24, 274, "start")),
}
STYLE = """
  text { font: 15px system-ui, sans-serif; fill: #1f2933; }
  .step { font-size: 13px; fill: #52606d; }
  .state { font: 600 14px ui-monospace, monospace; text-anchor: middle; }
  .waiting rect { fill: #e6f0fb; stroke: #4a7fb5; }
  .running rect { fill: #fdf3d7; stroke: #b98a1d; }
  .finished rect { fill: #e9ecef; stroke: #7b8794; }
  .good rect { fill: #e3f4e6; stroke: #3f9350; }
  .arrow { fill: none; stroke: #52606d; stroke-width: 1.6; marker-end: url(#tip); }
"""


def drawing() -> str:
    """Return the drawing of what happens by itself: every step that no operator does."""
    steps: dict[tuple[State, State], list[str]] = {}
    for (before, event), after in TRANSITIONS.items():
        if event not in OPERATORS:
            steps.setdefault((before, after), []).append(event.value.replace("_", " "))
    return "\n".join(
        [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
                f' width="{WIDTH}" height="{HEIGHT}" role="img">'
            ),
            "<title>The states of a job and the steps between them</title>",
            f"<style>{STYLE}</style>",
            (
                '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7"'
                ' markerHeight="7" orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="#52606d"/>'
                "</marker></defs>"
            ),
            f'<rect width="{WIDTH}" height="{HEIGHT}" rx="12" fill="#ffffff"/>',
            # Where they come from: no step of the table, because there was no state before.
            *_arrow(("M28 30 H110 V67", (36, 22, "start")), "published, due later"),
            *_arrow(("M28 180 H110 V207", (20, 172, "start")), "published"),
            *(
                line
                for pair, events in steps.items()
                for line in _arrow(WAYS[pair], ", ".join(events))
            ),
            *(line for state in State for line in _box(state)),
            "</svg>\n",
        ]
    )


def _arrow(way: Way, words: str) -> list[str]:
    path, (x, y, anchor) = way
    return [
        f'<path class="arrow" d="{path}"/>',
        f'<text class="step" x="{x}" y="{y}" text-anchor="{anchor}">{words}</text>',
    ]


def _box(state: State) -> list[str]:
    (x, y), (width, height) = PLACES[state], BOX
    kind = "waiting" if state in WAITING else "finished" if state in FINISHED else "running"
    if state is State.DONE:
        kind = "good"
    return [
        (
            f'<g class="{kind}"><rect x="{x - width // 2}" y="{y - height // 2}" width="{width}"'
            f' height="{height}" rx="9" stroke-width="1.6"/>'
        ),
        f'<text class="state" x="{x}" y="{y + 5}">{state.value}</text></g>',
    ]


def tables() -> str:
    """Return what the page says of each step: where it leads, and what happens."""
    lines = [
        "![The states of a job and the steps between them](lifecycle.svg)\n",
        "The drawing leaves out what operators do. All steps, those of operators at the end, with the",
        "state each leads to; where nothing stands, the transport refuses:\n",
        f"| from | {' | '.join(f'`{state.value}`' for state in State)} |",
        f"|---|{'---|' * len(State)}",
    ]
    events = sorted(Event, key=lambda event: event in OPERATORS)
    for event in events:
        cells = [TRANSITIONS.get((state, event)) for state in State]
        shown = (f"→ `{after.value}`" if after else "" for after in cells)
        lines.append(f"| **{_words(event)}** | {' | '.join(shown)} |")
    lines += ["", "| step | what happens |", "|---|---|"]
    lines += [f"| {_words(event)} | {MEANINGS[event]} |" for event in events]
    return "\n".join(lines) + "\n"


def _words(event: Event) -> str:
    return event.value.replace("_", " ")


def page() -> str:
    """Return the page with the tables as they should be; the rest of it as it is."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page())
    DRAWING.write_text(drawing())
    print(f"written: {PAGE.relative_to(ROOT)}, {DRAWING.relative_to(ROOT)}")
