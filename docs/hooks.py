"""What the site's build adds to MkDocs.

README, CONTRIBUTING, CHANGELOG and the examples are pages where they lie, notebooks are
executed and become pages with their outputs, and equations become MathML, which
browsers show without a script.
"""

import ast
import html
import os
import posixpath
import re
from pathlib import Path
from typing import Any

import latex2mathml.converter
import nbformat
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parent.parent
TOP = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
EQUATION = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL
)
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are made of files which are no Markdown in docs/."""

    def add(uri: str, content: str | bytes) -> None:
        files.append(File.generated(config, uri, content=content))

    for source, page in TOP.items():
        add(page, (ROOT / source).read_text())
    for path in sorted((ROOT / "examples").glob("*.py")):
        add(f"examples/{path.stem}.md", script(path))
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        page, images = executed(path)
        add(f"notebooks/{path.stem}.md", page)
        for name, image in images.items():
            add(f"notebooks/{name}", image)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Leads links between files of the repository to their pages."""
    pages = {source_of(file.src_uri): file.src_uri for file in files}
    here = source_of(page.file.src_uri)

    def lead(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), link[2]))
        if target not in pages:
            return link[0]  # which a strict build reports
        folder = posixpath.dirname(page.file.src_uri)
        return link[1] + posixpath.relpath(pages[target], folder or ".") + link[3]

    return LINK.sub(lead, markdown)


def on_page_content(content: str, page: Any, config: Any, files: Files) -> str:
    """Turns LaTeX into MathML."""

    def convert(equation: re.Match[str]) -> str:
        display = "block" if equation[1] == "div" else "inline"
        latex = html.unescape(equation[2])
        return latex2mathml.converter.convert(latex, display=display)

    return EQUATION.sub(convert, content)


def source_of(uri: str) -> str:
    """Returns the file of the repository that a page is made of."""
    for source, page in TOP.items():
        if uri == page:
            return source
    if uri.startswith("examples/"):
        return uri.removesuffix(".md") + ".py"
    if uri.startswith("notebooks/"):
        return f"docs/{uri.removesuffix('.md')}.ipynb"
    return f"docs/{uri}"


def script(path: Path) -> str:
    """Makes a page of an example: what its docstring says, then its code."""
    code = path.read_text()
    title, _, text = (ast.get_docstring(ast.parse(code)) or path.stem).partition("\n\n")
    rest = code.split('"""', 2)[2].strip()
    return f"# {title.rstrip('.')}\n\n{text}\n\n```python\n{rest}\n```\n"


def executed(path: Path) -> tuple[str, dict[str, bytes]]:
    """Runs a notebook; returns its page and its figures by name.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails, which ends the build.
    """
    notebook = nbformat.read(path, as_version=4)
    # A kernel imports the package of this checkout.
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute(env=env)
    resources = {"unique_key": path.stem, "output_files_dir": "."}
    page, resources = MarkdownExporter().from_notebook_node(notebook, resources)
    figures = resources["outputs"]
    page = page.replace("![png](", "![Figure of the code above](")
    return page, {posixpath.normpath(name): figures[name] for name in figures}
