"""The page of a study, made and taken apart."""

import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

from portability.analysis.context import StudyContext, gather
from portability.analysis.figures.charts import headline
from portability.analysis.report.findings import sections
from portability.analysis.report.html import page
from portability.analysis.report.run_details import Details, details
from portability.store import Store
from support.synthetic import Axes

SMALL = Axes(methods=("lora",), pairs=(("base", "large"), ("large", "base")), relations=("same",),
             seeds=(0, 1))
HOSTILE = "</script><script>alert(1)</script>\"' onload=x <img src=http://evil.test/x> \u2028 é &amp; ${1}"


@dataclass
class Made:
    """A page, and what it was made of."""

    html: str
    found: StudyContext
    details: Details


def made(store: Store, **changes: Any) -> Made:
    """The page of a study; `parts` and `details` where others than its own are wanted."""
    found = gather(store, "eval_accuracy")
    drilled = changes.get("details") or details(store, found)
    parts = sections(found) if changes.get("parts") is None else changes["parts"]
    return Made(page(found, parts, headline(found), drilled), found, drilled)


def payload(html: str) -> dict[str, Any]:
    """What a page's scripts read."""
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1]
    assert not set("<>&") & set(text)
    return json.loads(text)


class Tags(HTMLParser):
    """Every start tag with its attributes, and the text of every script and style."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] in ("script", "style") and data.strip():
            self.raw.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]
