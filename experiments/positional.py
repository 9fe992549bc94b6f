"""Names that a command line has without a flag, such as those of the two maps in `run A.mrc B.mrc`."""

from collections.abc import Sequence

from absl import flags

from . import paths


def take(names: Sequence[str], takers: Sequence[str], values: flags.FlagValues) -> None:
    """Set the flags for which these names stand.

    Args:
        names: what the command line has besides flags.
        takers: the flags that take them: none, one list that takes all, or the initial map and the list of targets.
        values: the flags of the command, after the command line was parsed.

    Raises:
        flags.Error: the command takes no names, or these are too few, empty, or given by flags as well.
    """
    if not names:
        return
    if not takers:
        raise flags.Error(f"unexpected argument {names[0]!r}: every option has the form --name=value")
    if len(takers) == 1:
        values[takers[0]].value = [*values[takers[0]].value, *names]
        return
    first, rest = takers
    check_maps(names, [f"--{name}" for name in takers if values[name].present])
    values[first].parse(names[0])
    try:
        values[rest].parse([path for name in names[1:] for path in paths.split(name)])
    except ValueError as error:  # a quote without its end
        raise flags.Error(str(error)) from None


def check_maps(names: Sequence[str], given: Sequence[str]) -> None:
    """Raise flags.Error unless the names can stand for an initial map and its targets.

    Args:
        names: what the command line has besides flags.
        given: flags of the command line that name maps as well.
    """
    if given:
        named = f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'}"
        raise flags.Error(
            f"{named} named without a flag, and {' and '.join(given)} {'is' if len(given) == 1 else 'are'} given as "
            "well: name the maps either all by their order (A.mrc B.mrc) or all by flags"
        )
    if len(names) == 1:
        raise flags.Error(
            f"only one map is named, {names[0]!r}: name two, the initial map first and then the target (A.mrc B.mrc)"
        )
    if empty := [number for number, name in enumerate(names, 1) if not name.strip()]:
        raise flags.Error(
            f"name {empty[0]} of {len(names)} is empty: name two maps, the initial one first and then the target "
            "(A.mrc B.mrc)"
        )
