"""Markdown that strangers wrote: structure and emphasis are kept; links, pictures and HTML show as they were typed."""

from __future__ import annotations

from functools import lru_cache

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup

TAGS = {
    *("p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li"),
    *("h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
}
LONGEST = 20_000


@lru_cache
def _parser() -> MarkdownIt:
    made = MarkdownIt("commonmark", {"html": False, "maxNesting": 12}).enable(["table", "strikethrough"])
    return made.disable(["link", "image", "autolink", "reference", "html_block", "html_inline"])


@lru_cache(maxsize=512)
def markdown(text: str) -> Markup:
    """Safe HTML of a text; headings become smaller than the page's own. Two walls: the parser makes no tag that is
    not listed, and the cleaner drops any that is not."""
    tokens = _parser().parse(text[:LONGEST])
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 2)}"
    made = _parser().renderer.render(tokens, _parser().options, {})
    return Markup(nh3.clean(made, tags=TAGS, attributes={"ol": {"start"}}, link_rel=None))
