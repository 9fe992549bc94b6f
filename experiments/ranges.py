"""Flags that are numbers, each with a range and the reason for it."""

from typing import Any, NamedTuple

from absl import flags

flags.disclaim_key_flags()  # a flag belongs to the module that defines it by one of the functions here


class Range(NamedTuple):
    """A closed range of a number, and the reason for it."""

    least: float
    most: float
    why: str

    def number(self, given: Any, kind: type = float) -> Any:
        """Read a number in this range.

        Raises:
            ValueError: it is not a number, or out of range; the message is to follow the value.
        """
        a_number = "a whole number " if kind is int else "a number "
        try:
            value, a_number = kind(given), ""
        except (ValueError, OverflowError):
            value = float("nan")
        if not self.least <= value <= self.most:
            raise ValueError(
                f"is not {a_number}from {format_bound(self.least)} to {format_bound(self.most)}: {self.why}"
            )
        return value


SEED = Range(0, 2**31 - 1, "the generators of random numbers take no others")
SEEDS = Range(1, 1000, "each seed is a fit of its own")
RESOLUTION = Range(0.5, 1000, "it is in Å, and 1 nm is 10 Å")
VOXEL_SIZE = Range(0.01, 1000, "it is in Å, and 1 nm is 10 Å")
B = Range(0, 1e5, "it is in Å², and atoms of blurred maps have some hundreds")
ANGLE = Range(-360, 360, "it is in degrees")
SHIFT = Range(0, 1e4, "it is in Å")
SCALE = Range(1e-6, 1e6, "densities of maps are of this order")
DISTANCE = Range(0.1, 1e6, "it is in Å, and 1 nm is 10 Å")
COORDINATE = Range(-1e6, 1e6, "it is in Å, and nothing lies further from the origin")
DIRECTION = Range(-1e6, 1e6, "only the direction counts, such as 0,0,1")
LEVEL = Range(-1e14, 1e14, "no map that can be read holds other densities")
MASS = Range(0.01, 1e6, "it is in kDa; a ribosome has 2500")
STEPS = Range(1e-4, 100, "it multiplies the recommended number of steps, and 1 stands for that")
STAGE_STEPS = Range(1, 10_000_000, "the published stages have 2000 to 15000 steps")
LEARNING_RATE = Range(1e-8, 1, "the published learning rates are 1e-3 and 1e-4")
WIDTH = Range(1, 4096, "the published networks have 100 units in a layer, and memory grows with the square")
BIN = Range(1, 8, "it is 1, 2, 4 or 8")
WEIGHT = Range(0, 1e9, "it multiplies the weight of the rigidity, and is not negative")
SHARE = Range(0, 1, "it is a share of the model's mass")
TIME = Range(0.001, 0.999, "the initial map is at time 0, the target at 1, and a waypoint between them")
FRAMES = Range(1, 1000, "each frame is a map of its own on the disk")
PROCESSES = Range(1, 1_000_000, "it counts the processes of this run")
PROCESS = Range(0, 999_999, "processes are counted from 0")
MINUTES = Range(0, 1440, "1440 minutes are a day, and what was not kept is lost when a run is killed")
GIGABYTES = Range(0, 1e5, "it is in GB, and the largest entries have some hundred")
COUNT = Range(1, 1_000_000, "more would not end in a reasonable time")
SIDE = Range(8, 2048, "it is the side of a cube in voxels, and larger cubes fit into no memory")


def format_bound(value: float) -> str:
    """Format a bound as one types it: 2147483647, 0.01, 1e+14."""
    return str(int(value)) if abs(value) < 1e10 and value == int(value) else f"{value:g}"


class Number(flags.ArgumentParser):
    """Parser of a number, `float` or `int`, within a range."""

    def __init__(self, allowed: Range, kind: type):
        """Take the numbers of this range."""
        self.allowed, self.kind = allowed, kind

    def parse(self, argument: Any) -> Any:
        """Read the flag's value; raise ValueError where it is out of range."""
        return self.allowed.number(argument, self.kind)

    def flag_type(self) -> str:
        """Name of the kind of number, by which the help names the value."""
        return self.kind.__name__


class Numbers(flags.ListParser):
    """Parser of numbers within a range, separated by commas."""

    def __init__(self, allowed: Range, kind: type):
        """Take lists of this range's numbers."""
        super().__init__()
        self.allowed, self.kind = allowed, kind

    def parse(self, argument: Any) -> list:
        """Read the flag's value; raise ValueError where it is empty or a number is out of range."""
        values = []
        for item in super().parse(argument) or [""]:
            try:
                values.append(self.allowed.number(item, self.kind))
            except ValueError as error:
                raise ValueError(f"{item!r} {error}") from None
        return values


class NumbersSerializer(flags.ListSerializer):
    """Serializer of numbers as one types them: 3,5,7."""

    def serialize(self, value: list) -> str:
        """Write the numbers, separated by commas."""
        return ",".join(str(each) if isinstance(each, int) else f"{each:g}" for each in value)


def number(name: str, default: float | None, text: str, allowed: Range, **more: Any) -> None:
    """Define a flag that is a number within a range."""
    flags.DEFINE(Number(allowed, float), name, default, text, serializer=flags.ArgumentSerializer(), **more)


def whole_number(name: str, default: int | None, text: str, allowed: Range) -> None:
    """Define a flag that is a whole number within a range."""
    flags.DEFINE(Number(allowed, int), name, default, text, serializer=flags.ArgumentSerializer())


def numbers(name: str, default: list[float] | None, text: str, allowed: Range) -> None:
    """Define a flag that lists numbers within a range."""
    flags.DEFINE(Numbers(allowed, float), name, default, text, serializer=NumbersSerializer(","))


def whole_numbers(name: str, default: list[int] | None, text: str, allowed: Range) -> None:
    """Define a flag that lists whole numbers within a range."""
    flags.DEFINE(Numbers(allowed, int), name, default, text, serializer=NumbersSerializer(","))
