"""The text of --help, and the documentation's page of flags: the flags of a command in groups.

python -m experiments.usage run     the same as Markdown

The help of a flag may begin with the name of its value, in one word before a colon ("MAP: the sharp map"; "Å:
resolution"), as absl has it for enumerations.
"""

import contextlib
import importlib
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import NamedTuple

from absl import flags

FLAGS = flags.FLAGS
GROUPS: dict[str, list[str]] = {}  # names of flags by the title of their group
VALUE = re.compile(r"(?P<value>\S+): (?P<text>.+)", re.DOTALL)
REPEATED = ";\n    repeat this option"  # absl's words on flags that may be repeated
COMMON = "Most used"  # title of those that come first
OPTIONS = "Options"  # title of the flags that are in no group
WIDTH = 100
ASKING = {"-h", "-help", "--help", "--helpshort", "--helpfull"}


class Option(NamedTuple):
    """A flag: how it is written, its meaning, and its default (empty without one)."""

    form: str
    text: str
    default: str


@contextlib.contextmanager
def group(title: str) -> Iterator[None]:
    """Put the flags that are defined in this context, or decorated function, into a group of that title."""
    before = set(FLAGS)
    yield
    new = [name for name in FLAGS if name not in before]
    for names in GROUPS.values():
        names[:] = [name for name in names if name not in new]
    GROUPS[title] = GROUPS.pop(title, []) + new


def options_by_group(common: Sequence[str] = ()) -> dict[str, list[Option]]:
    """Describe the options of the command whose flags are defined, by the title of their group.

    Args:
        common: names of the flags that nearly every user needs; they come first, in this order. Those in no group
            follow, and then the groups.
    """
    grouped = {name for names in GROUPS.values() for name in names}
    own = {COMMON: [*common], OPTIONS: [name for name in _own_flags() if name not in grouped]}
    titles = own | {title: [name for name in names if name not in common] for title, names in GROUPS.items()}
    found = {title: [option(FLAGS[name]) for name in names if name in FLAGS] for title, names in titles.items()}
    return {title: options for title, options in found.items() if options}


def option(flag: flags.Flag) -> Option:
    """Describe a flag."""
    help = flag.help.split(REPEATED)[0]
    match = VALUE.fullmatch(help)
    value, text = (match["value"], match["text"]) if match else (_value_name(flag), help)
    switch = flag.boolean and flag.default
    form = f"--[no]{flag.name}" if switch else f"--{flag.name}" if flag.boolean else f"--{flag.name}={value}"
    nothing = flag.default is None or flag.default is False or flag.default == []
    default = "yes" if switch else "" if nothing else flag.default_as_str.strip("'")
    return Option(form, text[0].upper() + text[1:], default)


def help_text(module: ModuleType) -> str:
    """Write the text of --help, as wide as the terminal, at most WIDTH.

    Args:
        module: a command; its docstring says what it does, and its COMMON, if there is one, which options come first.
    """
    width = min(WIDTH, shutil.get_terminal_size().columns)
    lines = [(module.__doc__ or "").strip()]
    for title, options in options_by_group(getattr(module, "COMMON", ())).items():
        lines += ["", f"{title}:"]
        for form, text, default in options:
            lines.append(f"  {form}")
            lines += textwrap.wrap(
                text + f" [{default}]" * bool(default), width, initial_indent=" " * 6, subsequent_indent=" " * 6
            )
    return "\n".join([*lines, "", "Values in brackets are defaults."])


def markdown(job: str) -> str:
    """Define the flags of a command, and describe them as Markdown below a heading with its name."""
    module = importlib.import_module(f"{__package__}.{job}")
    module.define_flags()
    about = module.__doc__.strip().splitlines()
    about = "\n".join("    " + line if line.startswith("python -m") else line for line in about)
    lines = [f"## {job}", "", about]
    for title, options in options_by_group(getattr(module, "COMMON", ())).items():
        lines += ["", f"### {title}", "", "| flag | meaning | if not given |", "|---|---|---|"]
        for form, text, default in options:
            cells = (f"`{form}`", text.replace("<", "&lt;"), f"`{default}`" if default else "")
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _own_flags() -> list[str]:
    """Names of the flags that commands define, not libraries."""
    owned = FLAGS.flags_by_module_dict().items()
    return [
        flag.name for owner, own in owned if owner.startswith(f"{__package__}.") or owner == sys.argv[0] for flag in own
    ]


def _value_name(flag: flags.Flag) -> str:
    """Name of a flag's value, by its type."""
    names = {"int": "N", "float": "X", flags.ListParser().flag_type(): "A,B,..."}
    return names.get(flag.parser.flag_type(), "...")


if __name__ == "__main__":
    from . import log, usage

    log.info(usage.markdown(sys.argv[1]))
