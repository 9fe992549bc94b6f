"""Generate at build time the description of every command's flags, and the list of the package's modules."""

import importlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
JOBS = ("run", "predict", "report", "fetch", "simulate")  # first; the others follow sorted by name


def flags() -> str:
    """Describe the flags of all commands in Markdown."""
    found = {path.stem for path in (ROOT / "experiments").glob("*.py") if "def define_flags" in path.read_text()}
    names = [*JOBS, *sorted(found - {*JOBS})]
    pages = [subprocess.Popen(command(name), cwd=ROOT, stdout=subprocess.PIPE, text=True) for name in names]
    texts = [page.communicate()[0] for page in pages]
    if any(page.returncode for page in pages):
        raise RuntimeError("experiments.usage failed, see above")
    return "\n".join(texts)


def command(name: str) -> list[str]:
    """Command that describes the flags of a command."""
    return [sys.executable, "-m", "experiments.usage", name]


def modules() -> str:
    """List all modules of the package in Markdown: a heading and an autodoc directive for each."""
    names = sorted(path.stem for path in (ROOT / "cryotrans_jax").glob("*.py") if path.stem != "__init__")
    parts = [f"## {name}\n\n```{{eval-rst}}\n.. automodule:: cryotrans_jax.{name}\n```\n" for name in names]
    return "\n".join([library(), *parts])


def library() -> str:
    """Describe the package and its public names, each with a link to its module."""
    whole = importlib.import_module("cryotrans_jax")
    names = [f"{getattr(getattr(whole, name), '__module__', 'cryotrans_jax')}.{name}" for name in whole.__all__]
    links = ", ".join(f"{{py:obj}}`~{name}`" for name in names)
    about = "```{eval-rst}\n.. automodule:: cryotrans_jax\n   :no-members:\n```"
    return f"## cryotrans_jax\n\n{about}\n\nPublic names: {links}.\n"


def write(app) -> None:
    """Write both texts into the folder from which the pages include them, unless they are unchanged."""
    folder = Path(app.srcdir) / "_made"
    folder.mkdir(exist_ok=True)
    for name, text in (("flags", flags()), ("api", modules())):
        page = folder / f"{name}.md"
        if not page.is_file() or page.read_text() != text:
            page.write_text(text)


def setup(app) -> dict:
    """Register the extension with Sphinx."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
