"""Generate at build time the descriptions of the flags of every command, and of the modules of the package."""

import importlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("core", "io", "density", "motion", "scores", "fit")  # from the method of the paper outwards
JOBS = ("run", "predict", "report", "fetch", "simulate")  # first; the others follow sorted by name


def flags() -> str:
    """Describe the flags of all commands in Markdown."""
    folder = ROOT / "experiments"
    found = [path.relative_to(folder) for path in folder.rglob("*.py") if "def define_flags" in path.read_text()]
    names = [*JOBS, *sorted({".".join(path.with_suffix("").parts) for path in found} - {*JOBS})]
    pages = [subprocess.Popen(command(name), cwd=ROOT, stdout=subprocess.PIPE, text=True) for name in names]
    texts = [page.communicate()[0] for page in pages]
    if any(page.returncode for page in pages):
        raise RuntimeError("experiments.usage failed, see above")
    return "\n".join(texts)


def command(name: str) -> list[str]:
    """Command that describes the flags of a command."""
    return [sys.executable, "-m", "experiments.usage", name]


def modules(folder: str) -> str:
    """Describe the modules of a folder of the package in Markdown: a heading and an autodoc directive for each."""
    names = sorted(path.stem for path in (ROOT / "cryotrans_jax" / folder).glob("*.py") if path.stem != "__init__")
    directive = f"```{{eval-rst}}\n.. automodule:: cryotrans_jax.{folder}."
    return "\n".join(f"## {name}\n\n{directive}{name}\n```\n" for name in names)


def public() -> str:
    """List the public names in Markdown, each with a link to its module and the first line of its docstring."""
    package = importlib.import_module("cryotrans_jax")
    rows = ["| name | what it is |", "|---|---|"]
    for name in package.__all__:
        value = getattr(package, name)
        home = getattr(value, "__module__", None)
        first = (value.__doc__ or "").strip().partition("\n")[0]
        rows.append(f"| {{py:obj}}`{name} <{home}.{name}>` | {first} |" if home else f"| `{name}` | {first} |")
    return "\n".join(rows) + "\n"


def write(app) -> None:
    """Write the texts into the folder from which the pages include them, unless they are unchanged."""
    folder = Path(app.srcdir) / "_made"
    folder.mkdir(exist_ok=True)
    texts = {"flags": flags(), "public": public()} | {name: modules(name) for name in FOLDERS}
    for name, text in texts.items():
        page = folder / f"{name}.md"
        if not page.is_file() or page.read_text() != text:
            page.write_text(text)


def setup(app) -> dict:
    """Register the extension with Sphinx."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
