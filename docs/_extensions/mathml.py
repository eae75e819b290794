"""Formulas as MathML, which browsers draw by themselves: no script, and nothing to fetch.

It is the converter of docutils, which knows the LaTeX that the documentation uses. What it does not
know is a warning that names the formula, and so an error where warnings are.
"""

from __future__ import annotations

import re

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.locale import _
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

LOGGER = logging.getLogger(__name__)

# docutils has \Bigl and \Bigr alone; LaTeX's \Big is either, by what follows it.
SIDELESS = re.compile(r"\\([Bb]igg?)(?![A-Za-z])(\s*(?:[])]|\\r))?")

# Bars without \left or \big are as high as letters; browsers would fit the second to its index.
BARE_BAR = re.compile(r'<mo( class="mathopen")?>‖')


def mathml(translator: HTML5Translator, node: nodes.Node, *, as_block: bool) -> str:
    """Return a formula as MathML, or as it is written where it cannot be read."""
    tex = node.astext()
    sided = SIDELESS.sub(lambda big: rf"\{big[1]}r{big[2]}" if big[2] else rf"\{big[1]}l", tex)
    try:
        made = tex2mathml(sided, as_block=as_block)
    except MathError as error:
        LOGGER.warning("The formula %r cannot be made MathML: %s", tex, error, location=node)
        return translator.encode(tex)
    return BARE_BAR.sub(r'<mo\1 stretchy="false">‖', made)


def visit_math(translator: HTML5Translator, node: nodes.math) -> None:
    """Write a formula within a line."""
    translator.body.append(translator.starttag(node, "span", "", CLASS="math notranslate"))
    translator.body.append(mathml(translator, node, as_block=False) + "</span>")
    raise nodes.SkipNode


def visit_math_block(translator: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula on lines of its own, with its number if it has one."""
    translator.body.append(translator.starttag(node, "div", CLASS="math notranslate"))
    if node["number"]:
        number = get_node_equation_number(translator, node)
        translator.body.append(f'<span class="eqno">({number})')
        translator.add_permalink_ref(node, _("Link to this equation"))
        translator.body.append("</span>")
    formula = mathml(translator, node, as_block=True)
    translator.body.append(f'<div class="formula">{formula}</div></div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Make it the way that `html_math_renderer = "mathml"` names."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
