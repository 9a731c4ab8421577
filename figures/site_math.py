"""Hook of the documentation site: formulas become MathML when the site is built; no script, nothing from the network.

Pages mark a formula with an `arithmatex` element; pages from notebooks leave it between dollar signs in their text. A
formula that cannot be converted fails the build.
"""

import html
import re
from typing import Any

from latex2mathml.converter import convert

MARKED = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
APART = re.compile(r"(<pre\b.*?</pre>|<code\b.*?</code>|<script\b.*?</script>|<style\b.*?</style>)", re.DOTALL)
DISPLAY = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
INLINE = re.compile(r"(?<![\\$\w])\$([^$\n]+(?:\n[^$\n]+)?)\$(?!\w)")


def mathml(formula: str, display: str) -> str:
    """One formula. `display` is "inline" or "block".

    Raises:
        ValueError: a formula that cannot be read.
    """
    source = html.unescape(formula).strip()
    try:
        made = convert(source, display=display)
    except Exception as error:
        raise ValueError(f"this formula cannot be converted to MathML: {source!r} ({error!r})") from error
    if "\\" in made:  # the converter writes out what it does not know
        raise ValueError(f"this formula cannot be converted to MathML, it has an unknown command: {source!r}")
    return made


def with_mathml(content: str, *, notebook: bool = False) -> str:
    """HTML with its formulas converted; what is code stays."""
    content = MARKED.sub(lambda m: mathml(m[2], "block" if m[1] == "div" else "inline"), content)
    if not notebook:
        return content
    parts = APART.split(content)
    for place in range(0, len(parts), 2):
        text = DISPLAY.sub(lambda m: mathml(m[1], "block"), parts[place])
        parts[place] = INLINE.sub(lambda m: mathml(m[1], "inline"), text)
    return "".join(parts)


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Called by mkdocs with the HTML of every page."""
    return with_mathml(content, notebook=page.file.src_path.endswith((".py", ".ipynb")))
