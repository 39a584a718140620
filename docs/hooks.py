"""Formulas as MathML: written as LaTeX, drawn by the browser itself, so that the built site needs no network."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">(?:\\\((.*?)\\\)|\\\[(.*?)\\\])</\1>', re.DOTALL)


def on_page_content(text: str, **_: Any) -> str:
    """Replace each formula that arithmatex marked by MathML."""
    return _FORMULA.sub(_to_mathml, text)


def _to_mathml(match: re.Match[str]) -> str:
    inline, block = match.group(2), match.group(3)
    latex = html.unescape(inline if inline is not None else block)
    mathml = convert(latex, display="inline" if inline is not None else "block")
    tag = "span" if inline is not None else "div"
    return f'<{tag} class="formula">{mathml}</{tag}>'
