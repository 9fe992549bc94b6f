"""Cases of the validation on maps as deposited: their models, and the maps and files that every method is given."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import gemmi

from cryotrans_jax.density.deposition import Conditions, Deposition, deposit, random_pose, without_side
from cryotrans_jax.io import atoms
from cryotrans_jax.io.maps import write_map

from ..pairs import load_models
from ..settings import InputSettings

INITIAL = Conditions(3.2, b_factor=60.0, b_growth=60.0, sharpen=True)
TARGET = Conditions(6.0, b_factor=100.0, b_growth=150.0, sharpen=True, scale=0.03)
INITIAL_VOXEL, TARGET_VOXEL = 1.05, 1.3  # Å; a third of the resolution if that is less
TURN, SHIFT = 40.0, 15.0  # degrees, Å: pose of the target
PEER = "peer: "  # before the name of a method that is not ours
SUFFIXES = (".pdb", ".cif")  # of models that other programs read and write
FILES = ("initial", "target", "target_half1", "target_half2")  # maps of a case


@dataclass(frozen=True)
class Trial:
    """One case of the study, by which its row is known.

    Attributes:
        folder: of the pair.
        pair: its name.
        direction: "forward"; "back" from the target state to the initial one; or "still": both maps are of the initial
            state.
        resolution: of the target, Å.
        seed: of the noise, of the pose and of the fit.
        recipe: with its bin, such as paper/2; of another method PEER and its name.
        steps: factor on the number of steps of every stage.
        initial_resolution: of the initial map, Å.
        belt: whether both maps have a belt of detergent.
        half_maps: whether the fit is given the target's half-maps.
        extra: mass of a further protein in the target, relative to the molecule's.
        lacking: share of the residues, on one side, that the target lacks.
        written: folder of the models that another program wrote; "" for our fits and for `peers.PEERS`. The row is
            the same in another folder.
    """

    folder: str
    pair: str
    direction: str
    resolution: float
    seed: int
    recipe: str
    steps: float
    initial_resolution: float
    belt: bool
    half_maps: bool
    extra: float = 0.0
    lacking: float = 0.0
    written: str = field(default="", compare=False)

    @property
    def peer(self) -> str:
        """Name of the other method, "" for a recipe of ours."""
        return self.recipe.removeprefix(PEER) if self.recipe.startswith(PEER) else ""

    @property
    def case(self) -> str:
        """Name of what all methods are given: pair, direction, resolution and seed."""
        return f"{self.pair}_{self.direction}_{self.resolution:g}_{self.seed}"

    @property
    def states(self) -> tuple:
        """What the models of the case depend on."""
        return self.folder, self.direction, self.lacking, self.seed if self.lacking else 0

    def models(self) -> tuple[gemmi.Structure, gemmi.Structure]:
        """Read the model of the state to start from, and what the target shows of the one to arrive at."""
        start, end = load_models(Path(self.folder), self.direction == "back")
        end = start if self.direction == "still" else end
        return start, without_side(end, self.lacking, self.seed) if self.lacking else end


def in_pose(trial: Trial, end: gemmi.Structure) -> gemmi.Structure:
    """What the target shows of its state, in the pose that it has in the target map."""
    return random_pose(end, TURN, SHIFT, trial.seed).move(end)


def simulate_inputs(trial: Trial, start: gemmi.Structure, end: gemmi.Structure, folder: Path) -> InputSettings:
    """Write the maps of a trial and the model to carry into the folder, and name them as a user would."""
    conditions = replace(INITIAL, resolution=trial.initial_resolution, belt=trial.belt)
    initial = deposit_map(trial.seed, start, conditions, INITIAL_VOXEL, 0)
    target = deposit_target(trial, in_pose(trial, end))
    files = {name: str(folder / f"{name}.mrc") for name in FILES}
    for name, map_ in zip(FILES, (initial.map, target.map, *target.halves), strict=True):
        write_map(files[name], map_)
    atoms.write_model(folder / "model.cif", start)
    return InputSettings(
        initial=files["initial"],
        target=[files["target"]],
        model=str(folder / "model.cif"),
        target_half1=[files["target_half1"]] if trial.half_maps else [],
        target_half2=[files["target_half2"]] if trial.half_maps else [],
        initial_resolution=trial.initial_resolution,
        target_resolution=trial.resolution,
        resolutions_given=frozenset({"initial_resolution", "target_resolution"}),
    )


def write_inputs(trial: Trial, folder: Path) -> None:
    """Write the maps and models of a trial into a folder, for other programs.

    Besides the maps and the initial model (model.cif, in the initial map's frame) these are start.pdb: the initial
    model superposed on the true one in the target map, from which other methods begin; start.cif where PDB cannot
    hold it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    start, end = trial.models()
    simulate_inputs(trial, start, end, folder)
    begin = atoms.superpose(start, in_pose(trial, end))
    atoms.write_model(folder / f"start{SUFFIXES[atoms.pdb_obstacle(begin) is not None]}", begin)  # last: all is there


def deposit_target(trial: Trial, posed: gemmi.Structure) -> Deposition:
    """Simulate the target map of a trial from the model in its pose."""
    conditions = replace(TARGET, resolution=trial.resolution, belt=trial.belt, extra=trial.extra)
    return deposit_map(trial.seed, posed, conditions, TARGET_VOXEL, 1)


def deposit_map(seed: int, model: gemmi.Structure, conditions: Conditions, voxel: float, number: int) -> Deposition:
    """Simulate map `number` (0 or 1) of a pair, with noise of its own, on voxels that resolve its detail."""
    return deposit(model, conditions, min(voxel, conditions.resolution / 3), 2 * seed + number)
