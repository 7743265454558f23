"""One self-contained HTML file: templates, escaping, content-security policy.

Names in a report (file, symbol, configuration, error text) are foreign text. They reach the page in two ways only:
through jinja2 with autoescape on, or packed (gzip in base64) in a block that no parser of HTML reads. The policy lets
nothing run or load that is not hashed here.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

TEMPLATES = Path(__file__).parent / "templates"
# plotly.js adds an empty style element and removes style attributes; both count as inline styles with this text.
_EMPTY = ""


def packed(text: str) -> str:
    """Text as gzip in base64: a quarter of plotly.js' 4.8 MB, and nothing in it can be read as HTML. See report.js."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def source_hash(text: str) -> str:
    """What a content-security policy calls this script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def policy(scripts: list[str], styles: list[str]) -> str:
    """The page may run these scripts and styles and nothing else; it can neither load nor send anything."""
    style_hashes = " ".join(map(source_hash, [*styles, _EMPTY]))
    return "; ".join(
        (
            "default-src 'none'",
            "script-src " + " ".join(map(source_hash, scripts)),
            "style-src-elem " + style_hashes,
            f"style-src-attr 'unsafe-hashes' {source_hash(_EMPTY)}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


@cache
def _plotly() -> tuple[str, str, tuple[str, ...]]:
    """plotly.js packed, as it is (for its hash), and the ids of the style elements that its map code would add.

    It leaves an element with such an id alone, so an empty one keeps the page inside its policy.
    """
    script = get_plotlyjs()
    return packed(script), script, tuple(re.findall(r'getElementById\("([0-9a-f]{64})"\)', script))


@cache
def _environment() -> jinja2.Environment:
    """Templates, compiled once for all pages of a process."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"number": number, "signed": signed, "tint": tint}
    return environment


def render(template: str, *, figures: dict[str, Any], **context: Any) -> str:
    """Fill a template of `templates/` and return the whole page.

    Args:
        template: file name.
        figures: charts by name, see `plotly_figures`; the page's script draws each into `#chart-NAME`.
        context: what else the template names.
    """
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    plotly, plotly_script, reserved_styles = _plotly() if figures else ("", "", ())  # nothing to draw: 2 MB less
    return (
        _environment()
        .get_template(template)
        .render(
            policy=policy([plotly_script, script], [style]),
            style=Markup(style),
            script=Markup(script),
            plotly=plotly,
            reserved_styles=reserved_styles,
            figures=figures,
            packed_figures=packed(json.dumps(figures, allow_nan=False, separators=(",", ":"), ensure_ascii=False)),
            **context,
        )
    )


def number(value: float | None, digits: int = 2) -> str:
    """A number for a table cell: thousands separated; a dash where there is none."""
    if value is None or value != value:
        return "–"
    if value in (float("inf"), float("-inf")) or abs(value) >= 1e9:
        return f"{value:.3g}"
    text = f"{value:,.{digits}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text.replace("-", "−")


def signed(value: float | None, digits: int = 2) -> str:
    """As `number`, with a plus sign in front of gains."""
    text = number(value, digits)
    return "+" + text if value is not None and value > 0 and text.strip("0.,") and text != "–" else text


def tint(value: float | None) -> str:
    """CSS class of a result."""
    if value is None or value != value or value == 0:
        return ""
    return "gain" if value > 0 else "loss"
