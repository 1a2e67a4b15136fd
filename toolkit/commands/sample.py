"""`toolkit sample`: writes a small captioned data set of drawn scenes."""

from __future__ import annotations

from toolkit.data.drawing import draw_sample
from toolkit.options import SampleOptions
from toolkit.records import Summary
from toolkit.runtime.remote import local_only


def sample(options: SampleOptions) -> Summary:
    """Draws the data set; see `draw_sample`."""
    local_only(options, "directory")
    return draw_sample(options.directory, options.images, options.seed)
