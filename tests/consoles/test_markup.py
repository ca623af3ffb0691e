"""The HTML of pages: what comes from outside is shown, and never does anything."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from sqlqueue.consoles import markup
from sqlqueue.consoles.markup import Column
from tests.cli.filling import HOSTILE, RAW

NASTY = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "a & b < c",
    "javascript:alert(1)",
    HOSTILE,
]


class Seen(HTMLParser):
    """Collect the tags with their attributes, and the text, as a browser reads them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag in {"td", "th", "dt", "dd", "div"}:
            self.text += " "

    def handle_data(self, data) -> None:
        self.text += data

    @property
    def handlers(self) -> list[str]:
        return [name for name, _ in self.attributes if name.startswith("on")]


@pytest.mark.parametrize("nasty", NASTY)
def test_strangers_text_is_text_wherever_it_stands(nasty) -> None:
    shown = [
        markup.text(nasty),
        markup.muted(nasty),
        markup.strong(nasty),
        markup.warned(nasty),
        markup.dotted(nasty, "#123456"),
        markup.heading(nasty, nasty),
        markup.link(nasty, "job", {"id": nasty}, title=nasty),
        markup.example(nasty, nasty),
        markup.facts([(nasty, markup.text(nasty))], below=[markup.text(nasty)]),
        markup.table([Column(nasty)], [[markup.text(nasty)]]),
    ]
    for html in shown:
        seen = Seen(html)
        assert not {"script", "img"} & set(seen.tags)
        assert not seen.handlers
        assert not any(one in html for one in RAW)
    assert nasty in Seen(markup.text(nasty)).text or nasty == HOSTILE


@pytest.mark.parametrize("nasty", NASTY)
def test_a_link_leads_to_its_page_whatever_the_id_is(nasty) -> None:
    address = dict(Seen(markup.link("x", "job", {"id": nasty})).attributes)["href"]
    assert address is not None
    assert address.startswith("job?id=")
    assert not set(address) & set(" <>\"'\n\x1b")


def test_an_example_shows_the_end_of_a_long_id_and_all_of_it_under_the_pointer() -> None:
    seen = Seen(markup.example("01a22104-88bc-7bb3-947a-04ec785b2fd3"))
    assert seen.text == "…04ec785b2fd3"
    assert ("title", "01a22104-88bc-7bb3-947a-04ec785b2fd3") in seen.attributes
    assert Seen(markup.example("#12")).text == "#12"


@pytest.mark.parametrize(
    ("used", "total", "width"), [(0, 4, "0%"), (1, 4, "25%"), (9, 4, "100%"), (1, 0, "0%")]
)
def test_a_bar_is_between_empty_and_full(used, total, width) -> None:
    assert f"width:{width}" in markup.bar(used, total, "#123456")


def test_what_is_empty_takes_no_room() -> None:
    assert markup.muted("") == markup.warned("") == markup.NOTHING
    assert markup.joined([markup.NOTHING, markup.text("a"), markup.NOTHING]) == "a"
    assert "sq-below" not in markup.facts([("a", markup.text("b"))], below=[markup.NOTHING])


def test_columns_have_fixed_shares_of_the_width() -> None:
    html = markup.table([Column("a"), Column("b", 3, right=True)], [[markup.text("1")] * 2])
    assert "width:25.00%" in html
    assert "width:75.00%" in html
    assert html.count('class="sq-right"') == 2
