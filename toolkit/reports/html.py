"""Shared by all pages: templates, thumbnails, writing a page as one file that needs no network."""

from __future__ import annotations

import base64
import hashlib
import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from toolkit import __version__
from toolkit.evaluation.shown import NAMES, duration, figure
from toolkit.runtime.files import finishing
from toolkit.runtime.overwrite import Output, page_mark
from toolkit.runtime.progress import printable

THUMBNAIL = 288  # longer side in pixels; about 10 KB per image


def thumbnail(image: Image.Image, side: int = THUMBNAIL) -> bytes:
    """An RGB image as a small JPEG, whose longer side has so many pixels at most."""
    small = image.copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def data_uri(image: Image.Image | np.ndarray) -> str:
    """An RGB image, or uint8 pixels (C, H, W), as a JPEG thumbnail within the page."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    return "data:image/jpeg;base64," + base64.b64encode(thumbnail(image)).decode()


# Characters that Markdown, or HTML and tables in it, interpret.
_MARKUP = {ord(character): f"\\{character}" for character in "\\`*_{}[]()<>#|~$!&+-:@=^"}


def markdown(value: Any) -> str:
    """A name or caption escaped for Markdown, on one line: it can't become a link, a heading, HTML or the end of a table
    cell.

    >>> markdown("a*b|<i>.jpg\\n# c")
    'a\\\\*b\\\\|\\\\<i\\\\>.jpg\\\\\\\\n\\\\# c'
    """
    return printable(str(value)).translate(_MARKUP)


@cache
def _templates() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    # Captions and file names are untrusted: everything is escaped in HTML.
    environment = Environment(
        loader=PackageLoader("toolkit.reports"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markdown"] = markdown
    environment.filters["metric"] = lambda name: NAMES.get(name, name)
    environment.filters["duration"] = duration
    environment.filters["figure"] = lambda value, name, digits=4: figure(name, value, digits)
    return environment


def template_source(name: str) -> str:
    """The text of a file in toolkit/reports/templates."""
    environment = _templates()
    return str(environment.loader.get_source(environment, name)[0])


def script_digest(script: str) -> str:
    """What a Content-Security-Policy knows a script by."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def chart_script() -> dict[str, Any]:
    """For a page with charts: the script that tells values at the pointer, and the policy that allows no other."""
    script = template_source("chart.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script_digest(script)}'"
    )
    return {"script": Markup(script), "chart_policy": Markup(policy)}


def page_text(kind: str, **values: Any) -> str:
    """templates/<kind>.html rendered, for a server."""
    return str(_templates().get_template(f"{kind}.html").render(version=__version__, mark="", **values))


def write_page(output: Output | Path, kind: str, **values: Any) -> None:
    """Renders templates/<kind>.html, with the mark that identifies it; iterators are written as they yield.

    Args:
        output: an `Output`, or a plain path inside a folder that the toolkit wrote.
    """
    page = _templates().get_template(f"{kind}.html")
    place = output.writing() if isinstance(output, Output) else finishing(output)
    with place as temporary, open(temporary, "w", encoding="utf-8") as file:
        page.stream(version=__version__, mark=Markup(page_mark(kind)), **values).dump(file)
