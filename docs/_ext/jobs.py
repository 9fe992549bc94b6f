"""Generate at build time the description of every command's flags, and the list of the package's modules."""

import importlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("core", "io", "density", "motion", "fit", "scores")  # from the paper's method outwards
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
    """List all modules of the package by folder, in Markdown: a heading and an autodoc directive for each."""
    package, parts = ROOT / "cryotrans_jax", [library()]
    for folder in FOLDERS:
        parts.append(described("##", folder))
        parts += [described("###", f"{folder}.{path.stem}") for path in modules_in(package / folder)]
    return "\n".join(parts + [described("##", path.stem) for path in modules_in(package)])


def modules_in(folder: Path) -> list[Path]:
    """The files of a folder that are modules, by name."""
    return sorted(path for path in folder.glob("*.py") if path.stem != "__init__")


def described(level: str, name: str) -> str:
    """A heading for a module of the package, and its docstrings."""
    return f"{level} {name.rpartition('.')[2]}\n\n```{{eval-rst}}\n.. automodule:: cryotrans_jax.{name}\n```\n"


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
