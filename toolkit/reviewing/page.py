"""The page itself: one HTML text, which asks its own server for the rest and no other for anything."""

from __future__ import annotations

from functools import cache

from markupsafe import Markup

from toolkit.reports.html import page_text, script_digest, template_source


@cache
def _script() -> str:
    return template_source("parts.js") + template_source("review.js")


@cache
def page_policy() -> str:
    """The Content-Security-Policy of every answer: the page's own script, images and data of this server alone."""
    digest = script_digest(_script())
    return (
        f"default-src 'none'; img-src 'self' data:; connect-src 'self'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def page_html(title: str) -> str:
    return page_text(
        "review", title=title, policy=page_policy().partition("; frame-ancestors")[0], script=Markup(_script())
    )
