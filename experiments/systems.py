"""The systems of the CryoTRANS paper as data: initial and target state, published settings and published results.

None stands for a value that the published facts behind this file do not state. `format_published` prints it as "not
published". Nothing here is guessed.
"""

from dataclasses import dataclass

from . import tables

UNKNOWN = "not published"
INITIAL_RESOLUTION = 3.0  # Å, of maps simulated from models of initial states
RATES = {"w2": 1e-3, "l2": 1e-4}  # Adam's learning rates, by loss
OTHERS = "EMReady 9.62, DeepEMhancer 9.34"  # on the spike's cryo-ET target, FSC = 0.5 in Å
REFINED = (
    "The published figure is against a model of the target state that was refined into the generated map (RMSD below "
    "3 Å); ours is against the model as it was deposited. To compare like with like, refine it by "
    "experiments.studies.rebuild, with Phenix."
)
SPEED = "64.8 ms a W2 step at 160³ on one NVIDIA GPU"
SPEED_BOX = 160


@dataclass(frozen=True)
class State:
    """One state of a molecule.

    Attributes:
        map: entry of the EMDB.
        model: entry of the PDB.
        resolution: resolution of the map, Å: by its half-maps, or that at which it is simulated. The fit uses it.
        source: the source of a state that is not an entry.
        model_fsc: where the map's FSC with its own model falls to 0.5, Å. The fit does not use it, because it says
            how well the model fits rather than how blurred the map is.
    """

    map: str | None = None
    model: str | None = None
    resolution: float | None = None
    source: str | None = None
    model_fsc: float | None = None


@dataclass(frozen=True)
class Recipe:
    """Published settings of a fit: stages of (loss, steps, learning rate), thresholds of both maps, network width."""

    stages: tuple[tuple[str, int, float], ...]
    thresholds: tuple[float, float]
    width: int = 100

    @property
    def flag(self) -> list[str]:
        """The stages in the form of --schedule."""
        return [f"{loss}:{steps}:{rate:g}" for loss, steps, rate in self.stages]


@dataclass(frozen=True)
class System:
    """A system of the paper.

    Attributes:
        name: short name.
        title: description.
        initial: initial state.
        target: target state.
        box: side of the maps, voxels.
        recipes: published settings by the target's resolution (Å), which is None if the target is not simulated.
        results: published FSC = 0.5 (Å) against a model of the target state, by the target's resolution.
        refined: whether that model was refined into the generated map before (RMSD below 3 Å).
        parts: number of parts into which the paper cuts the initial map by hand.
        check: another model of the target state, against which the published result is the same.
        one_chain: whether one chain of each model is morphed, and then copied by `symmetry`.
        symmetry: point group.
        figure: the paper's figure that shows the system.
        remark: printed below the table.
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
    refined: bool = False

    @property
    def slug(self) -> str:
        """The name, for use in file names."""
        return self.name.replace("/", "")

    @property
    def simulated(self) -> bool:
        """Whether the paper simulates the maps from models of entries."""
        return self.initial.map is None and self.initial.model is not None

    def recipe(self, resolution: float | None) -> Recipe | None:
        """Published settings for a target of a resolution (Å); None if there are none."""
        return dict(self.recipes).get(resolution)

    def result(self, resolution: float | None) -> str | None:
        """Published FSC = 0.5 (Å) for a target of a resolution (Å), and of what model; None if there is none."""
        known = dict(self.results).get(resolution)
        return f"{known} (refined model)" if known and self.refined else known

    @property
    def remarks(self) -> list[str]:
        """Sentences about the published figures."""
        own = [f"{self.remark[:1].upper()}{self.remark[1:]}."] if self.remark else []
        return own + [REFINED] * self.refined


def stages(transport: int, squared: int = 0) -> tuple[tuple[str, int, float], ...]:
    """Stages of `transport` steps of W2 and `squared` steps of L2, at the published learning rates."""
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
        State(map="EMD-32052", resolution=3.8, model_fsc=4.32),
        State(map="EMD-32051", model="7VON", resolution=5.3, model_fsc=8.02),
        box=270,
        results=((None, "4.84"),),
        parts=2,
        refined=True,
    ),
    System(
        "Arp2/3",
        "Arp2/3, a map of the authors' own and a deposited one, in which density is missing",
        State(source="the authors' own map, not in the archives", model_fsc=3.72),
        State(map="EMD-10960", model="6YW7", model_fsc=9.82),
        box=160,
        results=((None, "3.79"),),
        parts=2,
        refined=True,
    ),
    System("70S", "the 70S ribosome", State(), State(), box=256),
    System(
        "spike",
        "the SARS-CoV-2 spike, a cryo-ET target with a single-particle model as check",
        State(map="EMD-22001", model="6X2C", model_fsc=3.57),
        State(map="EMD-16697", model="6ZGG", model_fsc=13.2),
        box=300,
        results=((None, "3.78"),),
        parts=2,
        check="6X2A",
        remark=f"3.78 Å is published against 6ZGG and against 6X2A alike; others on the same target: {OTHERS}",
        refined=True,
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


def normalise(name: str) -> str:
    """Reduce a name to lower-case letters and digits."""
    return "".join(c for c in name.lower() if c.isalnum())


def find_system(name: str) -> System:
    """Find a system by name; case and punctuation do not matter.

    Raises:
        InputError: there is no such system.
    """
    from cryotrans_jax.io.files import InputError

    found = {normalise(system.name): system for system in SYSTEMS}
    if normalise(name) not in found:
        raise InputError(f"there is no system {name!r}: choose one of {', '.join(s.name for s in SYSTEMS)}")
    return found[normalise(name)]


def format_published(value: object, style: str = "{}") -> str:
    """Format a published value; None is "not published"."""
    return UNKNOWN if value is None else style.format(value)


def describe_schedule(recipe: Recipe | None) -> str:
    """Format a published schedule."""
    if recipe is None:
        return UNKNOWN
    return ", then ".join(f"{loss.upper()} {steps} at {rate:g}" for loss, steps, rate in recipe.stages)


def describe_states(system: System) -> str:
    """Format the initial and the target state of a system."""
    ends = [" ".join(filter(None, (s.map, s.model and f"({s.model})"))) for s in (system.initial, system.target)]
    if system.simulated:
        ends = [system.initial.model or "", system.target.model or ""]
    known = zip(ends, (system.initial, system.target), strict=True)
    text = " → ".join(entry or format_published(state.source) for entry, state in known)
    return text + (f", {system.check} as check" if system.check else "")


def describe_model_fsc(system: System) -> str:
    """Format where the FSC of both maps with their own models falls to 0.5."""
    known = [state.model_fsc for state in (system.initial, system.target)]
    return "{:g}, {:g}".format(*known) if all(known) else UNKNOWN


def table() -> str:
    """Markdown table of the published values of all systems."""
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
        "of the initial map, of the target map",
    )
    lines = []
    for system in SYSTEMS:
        for resolution in [r for r, _ in system.recipes] or [None]:
            recipe = system.recipe(resolution)
            cells = (
                system.name,
                describe_states(system),
                format_published(system.box, "{}³"),
                format_published(resolution or system.target.resolution, "{:g}"),
                describe_schedule(recipe),
                format_published(recipe and "{:g}, {:g}".format(*recipe.thresholds)),
                format_published(recipe and recipe.width),
                format_published(system.parts),
                format_published(system.result(resolution)),
                describe_model_fsc(system),
            )
            lines.append(cells)
    return tables.markdown(head, lines)
