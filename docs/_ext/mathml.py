"""Render equations as MathML by docutils: current browsers show them without a script or a network."""

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml


def inline(writer, node: nodes.math) -> None:
    """Write an equation within a line."""
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def display(writer, node: nodes.math_block) -> None:
    """Write a displayed equation, with its number if it has one."""
    number = f'<span class="eqno">({node["number"]})</span>' if node.get("number") else ""
    writer.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}{number}</div>')
    raise nodes.SkipNode


def setup(app) -> dict:
    """Register the extension with Sphinx."""
    app.add_html_math_renderer("mathml", (inline, None), (display, None))
    return {"parallel_read_safe": True}
