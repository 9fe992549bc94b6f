"""What --help prints, and the documentation's page of flags: a job's flags in groups, from one description.

python -m experiments.usage run     the same as Markdown

A flag's help may begin with what the flag takes, in one word before a colon ("MAP: the sharp map"; "Å: resolution"),
as absl lets that of an enumeration begin.
"""

import contextlib
import importlib
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

from absl import flags

FLAGS = flags.FLAGS
GROUPS: dict[str, list[str]] = {}  # names of flags by the title of their group
TAKES = re.compile(r"(?P<takes>\S+): (?P<text>.+)", re.DOTALL)
REPEATED = ";\n    repeat this option"  # absl's words on flags that may be repeated
OPTIONS = "Options"  # title of those that no group holds
WIDTH = 100
ASKING = {"-h", "-help", "--help", "--helpshort", "--helpfull"}


class Option(NamedTuple):
    """A flag as it is written, what it means, and what it is if not given (empty where there is no default)."""

    form: str
    text: str
    default: str


@contextlib.contextmanager
def group(title: str) -> Iterator[None]:
    """A context, or decorator, in which flags defined go to a group of that title, after the groups before it."""
    before = set(FLAGS)
    yield
    new = [name for name in FLAGS if name not in before]
    for names in GROUPS.values():
        names[:] = [name for name in names if name not in new]
    GROUPS[title] = GROUPS.pop(title, []) + new


def asked(arguments: list[str]) -> bool:
    """Whether the command line asks for help."""
    return not ASKING.isdisjoint(arguments)


def described() -> dict[str, list[Option]]:
    """The options of the job whose flags are defined, by the title of their group; those in no group come first."""
    grouped = {name for names in GROUPS.values() for name in names}
    own = {OPTIONS: [name for name in _own() if name not in grouped]} | GROUPS
    found = {title: [option(FLAGS[name]) for name in names if name in FLAGS] for title, names in own.items()}
    return {title: options for title, options in found.items() if options}


def option(flag: flags.Flag) -> Option:
    """A flag in plain words."""
    said = flag.help.split(REPEATED)[0]
    match = TAKES.fullmatch(said)
    takes, text = (match["takes"], match["text"]) if match else (_takes(flag), said)
    switch = flag.boolean and flag.default
    form = f"--[no]{flag.name}" if switch else f"--{flag.name}" if flag.boolean else f"--{flag.name}={takes}"
    nothing = flag.default is None or flag.default is False or flag.default == []
    default = "yes" if switch else "" if nothing else flag.default_as_str.strip("'")
    return Option(form, text[0].upper() + text[1:], default)


def shown(about: str) -> str:
    """The text of --help: what the job is about, then its options, as wide as the terminal but no wider than WIDTH."""
    width = min(WIDTH, shutil.get_terminal_size().columns)
    lines = [about.strip()]
    for title, options in described().items():
        lines += ["", f"{title}:"]
        for form, text, default in options:
            lines.append(f"  {form}")
            lines += textwrap.wrap(
                text + f" [{default}]" * bool(default), width, initial_indent=" " * 6, subsequent_indent=" " * 6
            )
    return "\n".join([*lines, "", "In brackets: what is taken if the flag is not given."])


def markdown(job: str) -> str:
    """A job's options as Markdown, below a heading with its name. Its flags are defined by this."""
    module = importlib.import_module(f"{__package__}.{job}")
    module.define_flags()
    about = module.__doc__.strip().splitlines()
    about = "\n".join("    " + line if line.startswith("python -m") else line for line in about)
    lines = [f"## {job}", "", about]
    for title, options in described().items():
        lines += ["", f"### {title}", "", "| flag | meaning | if not given |", "|---|---|---|"]
        for form, text, default in options:
            cells = (f"`{form}`", text.replace("<", "&lt;"), f"`{default}`" if default else "")
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _own() -> list[str]:
    """Names of the flags that jobs define, not libraries."""
    owned = FLAGS.flags_by_module_dict().items()
    return [
        flag.name for owner, own in owned if owner.startswith(f"{__package__}.") or owner == sys.argv[0] for flag in own
    ]


def _takes(flag: flags.Flag) -> str:
    """What a flag takes, by its type."""
    kinds = {flags.IntegerParser: "N", flags.FloatParser: "X", flags.ListParser: "A,B,..."}
    return next((text for kind, text in kinds.items() if isinstance(flag.parser, kind)), "...")


if __name__ == "__main__":
    from . import log, usage  # this module as jobs know it, with their groups

    log.info(usage.markdown(sys.argv[1]))
