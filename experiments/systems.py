"""The systems of the CryoTRANS paper as data: what is morphed into what, how it was published, and what came out.

None is what the facts that this file is made from do not state. `shown` calls that "not published", which is to say:
not published as far as these facts go. Nothing here is guessed.
"""

from dataclasses import dataclass

from . import tables

UNKNOWN = "not published"
INITIAL_RESOLUTION = 3.0  # Å, of maps simulated from models of initial states
RATES = {"w2": 1e-3, "l2": 1e-4}  # Adam's, of a stage that has none of its own
OTHERS = "EMReady 9.62, DeepEMhancer 9.34"  # on the spike's cryo-ET target, FSC = 0.5 in Å
SPEED = "64.8 ms a W2 step at 160³ on one NVIDIA GPU"
SPEED_BOX = 160


@dataclass(frozen=True)
class State:
    """One state of a molecule: entries of its map (EMDB) and its model (PDB), and the map's resolution in Å.

    `source` tells where it is from if it is no entry.
    """

    map: str | None = None
    model: str | None = None
    resolution: float | None = None
    source: str | None = None


@dataclass(frozen=True)
class Recipe:
    """How a fit was published: stages of (loss, steps, learning rate), and the thresholds of both maps."""

    stages: tuple[tuple[str, int, float], ...]
    thresholds: tuple[float, float]
    width: int = 100

    @property
    def flag(self) -> list[str]:
        """The stages as --schedule takes them."""
        return [f"{loss}:{steps}:{rate:g}" for loss, steps, rate in self.stages]


@dataclass(frozen=True)
class System:
    """A system of the paper.

    `box` is the side of the maps in voxels. `recipes` and `results` are by the target's resolution in Å, which is None
    where the target is a map and not simulated; results are FSC = 0.5 in Å against a model of the target state, as
    published. `parts` are those into which the paper cuts the initial map, by hand. `check` is another model of the
    target state. With `one_chain` a chain of each model is morphed, and then copied by `symmetry`. `figure` is the
    paper's that shows it.
    """

    name: str
    title: str
    initial: State
    target: State
    box: int | None = None
    recipes: tuple[tuple[float | None, Recipe], ...] = ()
    results: tuple[tuple[float | None, str], ...] = ()
    parts: int | None = None
    check: str | None = None
    one_chain: bool = False
    symmetry: str | None = None
    figure: str | None = None
    remark: str = ""

    @property
    def slug(self) -> str:
        """The name as a part of files' names."""
        return self.name.replace("/", "")

    @property
    def simulated(self) -> bool:
        """Whether the paper's maps are simulated from entries' models."""
        return self.initial.map is None and self.initial.model is not None

    def recipe(self, resolution: float | None) -> Recipe | None:
        """The published recipe for a target of a resolution [Å]; None where there is none."""
        return dict(self.recipes).get(resolution)

    def result(self, resolution: float | None) -> str | None:
        """The published FSC = 0.5 [Å] for a target of a resolution [Å]; None where there is none."""
        return dict(self.results).get(resolution)


def stages(transport: int, squared: int = 0) -> tuple[tuple[str, int, float], ...]:
    """So many steps of W2, and then of L2, at the published learning rates."""
    return tuple((loss, n, RATES[loss]) for loss, n in (("w2", transport), ("l2", squared)) if n)


SIMULATED = ((3.0, "better than 3.2"), (5.0, "about 4"), (7.0, "about 4"))  # all four systems together
SYSTEMS = (
    System(
        "TmrAB",
        "TmrAB, from a model of each state",
        State(model="6RAH", resolution=INITIAL_RESOLUTION),
        State(model="6RAI"),
        box=160,
        recipes=(
            (3.0, Recipe(stages(2000, 15000), (0.24, 0.24))),
            (5.0, Recipe(stages(4000), (0.24, 0.24))),
            (7.0, Recipe(stages(2000), (0.24, 0.3))),
        ),
        results=SIMULATED,
    ),
    System(
        "PCAT1",
        "PCAT1, from a model of each state",
        State(model="7T55", resolution=INITIAL_RESOLUTION),
        State(model="7T57"),
        box=140,
        recipes=(
            (3.0, Recipe(stages(2000, 20000), (0.24, 0.24))),
            (5.0, Recipe(stages(10000), (0.24, 0.24))),
            (7.0, Recipe(stages(1000), (0.24, 0.2))),
        ),
        results=SIMULATED,
    ),
    System(
        "prestin",
        "prestin, from a model of each state",
        State(model="7V73", resolution=INITIAL_RESOLUTION),
        State(model="7V75"),
        box=140,
        recipes=(
            (3.0, Recipe(stages(2000, 10000), (0.24, 0.24))),
            (5.0, Recipe(stages(5000), (0.24, 0.24))),
            (7.0, Recipe(stages(5000), (0.24, 0.2))),
        ),
        results=SIMULATED,
    ),
    System(
        "Mm-cpn",
        "the chaperonin Mm-cpn, one chain, then symmetrised",
        State(model="3J03", resolution=INITIAL_RESOLUTION),
        State(model="3IYF"),
        box=96,
        recipes=(
            (3.0, Recipe(stages(5000, 50000), (0.24, 0.24), width=900)),
            (5.0, Recipe(stages(7000), (0.24, 0.24), width=900)),
            (7.0, Recipe((("w2", 1000, 1e-3), ("w2", 2000, 1e-4)), (0.2, 0.05), width=900)),
        ),
        results=SIMULATED,
        one_chain=True,
        symmetry="D8",
        remark="which chain, and which of the two is the initial state, are not published: the first chain, in this "
        "order; the 2000 steps at 1e-4 for 7 Å are read as steps of W2",
    ),
    System(
        "A2M",
        "A2M, two deposited maps",
        State(map="EMD-32052", resolution=4.32),
        State(map="EMD-32051", resolution=8.02),
        box=270,
        results=((None, "4.84"),),
        parts=2,
    ),
    System(
        "Arp2/3",
        "Arp2/3, a map of the authors' own and a deposited one, in which density is missing",
        State(resolution=3.72, source="the authors' own map, not in the archives"),
        State(map="EMD-10960", resolution=9.82),
        box=160,
        results=((None, "3.79"),),
        parts=2,
    ),
    System("70S", "the 70S ribosome", State(), State(), box=256),
    System(
        "spike",
        "the SARS-CoV-2 spike, a cryo-ET target with a single-particle model as check",
        State(map="EMD-22001", model="6X2C", resolution=3.57),
        State(map="EMD-16697", model="6ZGG", resolution=13.2),
        box=300,
        results=((None, "3.78"),),
        parts=2,
        check="6X2A",
        remark=f"others on the same target: {OTHERS}",
    ),
    System(
        "spliceosome",
        "the pre-catalytic spliceosome",
        State(source="a cryoDRGN map made of EMPIAR-10180"),
        State(source="another cryoDRGN map made of EMPIAR-10180"),
        box=320,
    ),
    System(
        "spike-RBD",
        "the spike's receptor-binding domain, molecular dynamics",
        State(source="the first frame of a simulation"),
        State(source="its last frame"),
    ),
)


def plain(name: str) -> str:
    """A name by which a system is found: small letters and digits only."""
    return "".join(c for c in name.lower() if c.isalnum())


def named(name: str) -> System:
    """The system of that name, however it is spelt. Raises InputError where there is none."""
    from cryotrans_jax.io.files import InputError

    found = {plain(system.name): system for system in SYSTEMS}
    if plain(name) not in found:
        raise InputError(f"there is no system {name!r}: choose one of {', '.join(s.name for s in SYSTEMS)}")
    return found[plain(name)]


def shown(value: object, style: str = "{}") -> str:
    """A published value as text."""
    return UNKNOWN if value is None else style.format(value)


def scheduled(recipe: Recipe | None) -> str:
    """A published schedule as text."""
    if recipe is None:
        return UNKNOWN
    return ", then ".join(f"{loss.upper()} {steps} at {rate:g}" for loss, steps, rate in recipe.stages)


def states(system: System) -> str:
    """What is morphed into what, as text."""
    ends = [" ".join(filter(None, (s.map, s.model and f"({s.model})"))) for s in (system.initial, system.target)]
    if system.simulated:
        ends = [system.initial.model or "", system.target.model or ""]
    known = zip(ends, (system.initial, system.target), strict=True)
    text = " → ".join(entry or shown(state.source) for entry, state in known)
    return text + (f", {system.check} as check" if system.check else "")


def table() -> str:
    """What is published of all systems, as a Markdown table."""
    head = (
        "system",
        "from → to",
        "box",
        "target [Å]",
        "schedule",
        "thresholds",
        "width",
        "parts",
        "FSC = 0.5 [Å]",
    )
    lines = []
    for system in SYSTEMS:
        for resolution in [r for r, _ in system.recipes] or [None]:
            recipe = system.recipe(resolution)
            cells = (
                system.name,
                states(system),
                shown(system.box, "{}³"),
                shown(resolution or system.target.resolution, "{:g}"),
                scheduled(recipe),
                shown(recipe and "{:g}, {:g}".format(*recipe.thresholds)),
                shown(recipe and recipe.width),
                shown(system.parts),
                shown(system.result(resolution)),
            )
            lines.append(cells)
    return tables.markdown(head, lines)
