"""Hooks of mkdocs: notebooks are pages of the site, and so are the project's files that pages link to.

A link that leaves docs/ works on GitHub; here its target is kept below project/: Markdown as a page, other
text as a page that shows it, a folder as a page that shows its files, and anything else as it is.
"""

import os
import re
from pathlib import Path

import nbconvert
import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<=\]\()[^)\s#:]+(?=[#)])")
LANGUAGES = {".yaml": "yaml", ".py": "python", ".sh": "sh", ".toml": "toml"}  # files that are shown as text
SOURCES: dict[str, Path] = {}  # a page of the site whose links are to be read -> the file behind it


def uri(path: Path) -> str:
    """Where the site keeps a file or folder of the project."""
    inside = path.is_relative_to(DOCS)
    found = path.relative_to(DOCS).as_posix() if inside else f"project/{path.relative_to(ROOT).as_posix()}"
    if path.suffix == ".ipynb":
        return f"{found.removesuffix('.ipynb')}.md"
    return f"{found}.md" if path.suffix in LANGUAGES or path.is_dir() else found


def targets(page: Path, text: str) -> dict[str, Path]:
    """The relative links of a page, and the files or folders that they lead to."""
    found = {link: Path(os.path.normpath(page.parent / link)) for link in LINK.findall(text)}
    return {link: path for link, path in found.items() if path.is_relative_to(ROOT) and path.exists()}


def text_of(path: Path) -> str:
    """The Markdown of a page that is made of a file or folder."""
    if path.suffix == ".ipynb":
        return nbconvert.MarkdownExporter().from_notebook_node(nbformat.read(path, as_version=4))[0]
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    title = f"---\nsearch: {{exclude: true}}\n---\n\n# {path.relative_to(ROOT).as_posix()}\n"  # not found
    if path.is_dir():
        parts = [
            f"## {one.name}\n\n{_shown(one)}" for one in sorted(path.iterdir()) if one.suffix in LANGUAGES
        ]
        return "\n".join([title, *parts])
    return f"{title}\n{_shown(path)}"


def _shown(path: Path) -> str:
    return f"````{LANGUAGES[path.suffix]}\n{path.read_text(encoding='utf-8')}````\n"


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add a page for each notebook, and what pages outside of docs and their links need."""
    SOURCES.clear()
    SOURCES.update({file.src_uri: DOCS / file.src_uri for file in files.documentation_pages()})
    for path in sorted(DOCS.glob("notebooks/*.ipynb")):
        files.append(File.generated(config, uri(path), content=text_of(path)))
        SOURCES[uri(path)] = path
    todo = [*SOURCES.values()]
    while todo:
        page = todo.pop()
        for path in targets(page, text_of(page)).values():
            if path.is_relative_to(DOCS) or files.get_file_from_path(uri(path)):
                continue
            if uri(path).endswith(".md"):
                files.append(File.generated(config, uri(path), content=text_of(path)))
            else:
                files.append(File.generated(config, uri(path), abs_src_path=str(path)))
            if path.suffix == ".md":
                SOURCES[uri(path)] = path
                todo.append(path)
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to where the site keeps their targets."""
    source = SOURCES.get(page.file.src_uri)
    if source is None:
        return markdown
    found, here = targets(source, markdown), os.path.dirname(page.file.src_uri)
    return LINK.sub(
        lambda link: os.path.relpath(uri(found[link[0]]), here or ".") if link[0] in found else link[0],
        markdown,
    )
