"""A page that shows the pictures of a folder, opened from disk: nothing is loaded but these pictures."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path

from utils.files import CODE_ROOT, write_text

_TEMPLATE = CODE_ROOT / "patch_forensics" / "templates" / "lightbox.html"


def write_lightbox(path: Path, names: Sequence[str], title: str) -> Path:
    """Write the page for pictures beside it, with a filter by name and a large view."""
    # in a script element nothing may look like its end
    listed = json.dumps(list(names)).replace("<", "\\u003c")
    page = _TEMPLATE.read_text(encoding="utf-8")
    write_text(path, page.replace("{{title}}", html.escape(title)).replace("{{names}}", listed))
    return path
