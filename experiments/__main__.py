"""Morph one cryo-EM density map into another, and look at the result.

cryotrans run A.mrc B.mrc    from the initial map A to the target B
cryotrans run --help         the options of a command
cryotrans --version
"""

import ast
import importlib
import sys
from pathlib import Path

from . import log
from .main import FAILED

COMMANDS = ("run", "predict", "report", "simulate", "fetch", "compare", "reproduce")


def command() -> None:
    """Run the command that the first argument names, with the arguments that follow it."""
    program = Path(sys.argv[0]).stem.replace("__main__", f"python -m {__package__}")
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        log.info(overview(program))
    elif name == "--version":
        log.version()
    elif name in COMMANDS:
        sys.argv = [f"{program} {name}", *arguments]
        importlib.import_module(f"{__package__}.{name}").command()
    else:
        log.error(f"no command {name!r}: choose one of {', '.join(COMMANDS)}")
        sys.exit(FAILED)


def overview(program: str) -> str:
    """Describe the commands, each by the first line of its file."""
    lines = [(__doc__ or "").strip().replace("\ncryotrans ", f"\n{program} "), "", "Commands:"]
    for name in COMMANDS:
        text = ast.get_docstring(ast.parse(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")))
        lines.append(f"  {name:10s} {text.splitlines()[0] if text else ''}")
    return "\n".join(lines)


if __name__ == "__main__":
    command()
