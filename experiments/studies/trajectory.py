"""Compare a finished run's pseudo-trajectory with a known trajectory: time and distance of each known frame.

python -m experiments.studies.trajectory --run_dir=DIR --dynamics=path.pdb       a PDB or mmCIF file of many models
python -m experiments.studies.trajectory --run_dir=DIR --dynamics=top.psf,run.dcd any format of MDAnalysis, if installed
python -m experiments.studies.trajectory --run_dir=DIR --dynamics=PAIRS/adk      a pair's folder with a path

The run must have carried a model (--model). Pseudo-time is matched to time in order, by dynamic programming, over the
CA atoms in common. For comparison, the same is done for the straight line between the known trajectory's own ends.
"""

from pathlib import Path

from absl import flags

from .. import flags as shared
from .. import paths, ranges
from ..main import command_of

FLAGS = flags.FLAGS
TIMES = ranges.Range(2, 10_001, "each is a structure to compare with")


def define_flags() -> None:
    """Define the flags of this command."""
    paths.define_path(
        "run_dir", None, "FOLDER: of the run; for several targets that of one. Must be given.", required=True
    )
    paths.define_paths("dynamics", None, "FILE,...: the known trajectory, see above. Must be given.", required=True)
    paths.define_path("model", None, "MODEL: of the initial state, if it is no longer where the run read it.")
    flags.DEFINE_bool("superpose", False, "Superpose the trajectory on the initial model first, by its nearer end.")
    ranges.whole_number("times", 101, "Number of times at which the run's trajectory is compared.", TIMES)
    shared.define_all_models()
    flags.DEFINE_bool("overwrite", False, "Replace the results that the run's folder holds.")


def main() -> None:
    """Print the distances of the known frames, and write them into the run's folder."""
    import numpy as np

    from cryotrans_jax.fit import trajectory
    from cryotrans_jax.io import atoms
    from cryotrans_jax.io.files import InputError

    from .. import finished, run_folder

    folder = Path(FLAGS.run_dir)
    if not FLAGS.overwrite and run_folder.result_files(folder, run_folder.KINDS["dynamics"]):
        raise InputError(f"{folder} holds such a comparison already: add --overwrite to replace it")
    model = carried_model(folder)
    path = load_path(model)
    times = trajectory.frame_times(FLAGS.times)
    start, *xyz = atoms.common_ca(model, *path)
    path, turned = orient(np.stack(xyz), start)
    if len(path) < 3:
        raise InputError(f"--dynamics has {len(path)} frames: give a trajectory of three at least")
    line = path[0] + times[:, None, None] * (path[-1] - path[0])
    frames = {"run": finished.load_fit(folder).carry(start, times), "straight": line}
    ways = {name: match(each, path, times) for name, each in frames.items()}
    about = {"atoms": len(start), "frames": len(path), "reversed": turned}
    with run_folder.claimed(folder, kinds=["dynamics"]), run_folder.replacing(folder, "dynamics"):
        found = write(ways, about, folder)
    print(f"{len(path)} frames{', which run backwards,' * turned} over {len(start)} CA atoms; RMSD in Å")
    print(f"{'':28s} {'mean':>6s} {'max':>6s} {'end':>6s}")
    for name, label in (("run", "the run"), ("straight", "straight line of its ends")):
        print(f"{label:28s} " + " ".join(f"{found[f'{name}_{key}']:6.2f}" for key in ("mean", "max", "end")))


def match(frames, path, times) -> tuple:
    """Time and distance (Å) of the frame that matches each of a known path, in order."""
    from cryotrans_jax.scores import metrics

    matched, error = metrics.match_path(frames, path)
    return times[matched], error


def write(ways: dict[str, tuple], about: dict, folder: Path) -> dict:
    """Write table, scores and figure of ways along the known trajectory; return the scores.

    Args:
        ways: of "run" and "straight" the times and distances (Å) for each known frame.
        about: the trajectory: numbers of its atoms and frames, and whether it is reversed.
    """
    import numpy as np

    from cryotrans_jax import plots

    from .. import exchange, run_folder

    count = about["frames"]
    rows = [{"frame": count - 1 - k if about["reversed"] else k} for k in range(count)]
    found = {}
    for name, (matched, error) in ways.items():
        for row, time, far in zip(rows, matched, error, strict=True):
            row |= {f"{name}_time": float(time), f"{name}_rmsd": float(far)}
        found |= {f"{name}_mean": float(error.mean()), f"{name}_max": float(error.max())}
        found[f"{name}_end"] = float(error[-1])
    along = np.linspace(0, 1, count)
    panels = {
        "RMSD of CA atoms to the frame matched [Å]": {name: (along, error) for name, (_, error) in ways.items()},
        "pseudo-time matched": {name: (along, matched) for name, (matched, _) in ways.items()},
    }
    run_folder.write_rows(folder / "dynamics.csv", rows)
    run_folder.write_json(folder / "dynamics.json", {"dynamics": FLAGS.dynamics} | found | about)
    drawing = plots.panels_drawing(panels, "time along the known trajectory", floor=0.0)
    exchange.write_drawing(folder, "dynamics", drawing)
    return found


def carried_model(folder: Path):
    """Read the model that the run carried."""
    from cryotrans_jax.io import atoms
    from cryotrans_jax.io.files import InputError

    from .. import finished

    saved = finished.read_config(folder)
    name = saved["settings"].get("model")
    if not (FLAGS.model or name):
        raise InputError(f"the run in {folder} carried no model: name the initial state's model with --model")
    whole = FLAGS.all_models or saved["settings"].get("all_models", False)
    return atoms.read_model(FLAGS.model or saved["inputs"][name]["file"], whole)


def load_path(model) -> list:
    """Read the models of the known trajectory; with --superpose, superpose them on the initial model."""
    from cryotrans_jax.io import atoms
    from cryotrans_jax.io.files import InputError

    from ..pairs import file_of_pair, known_path, read_description

    first = Path(FLAGS.dynamics[0])
    if (first / "pair.json").is_file():
        path, named = known_path(first, model), read_description(first)
        if "models" in named.get("path", {}):  # these are between the pair's own states
            end = atoms.read_model(file_of_pair(first, named.get("target")), FLAGS.all_models)
            path = [model, *path, atoms.superpose(end, model) if named.get("superpose") else end]
    elif first.is_dir():
        raise InputError(f"{first} is a folder without a pair.json: give a file of models, or a pair's folder")
    elif len(FLAGS.dynamics) > 1:
        path = with_mdanalysis(FLAGS.dynamics)
    else:
        path = atoms.read_models(first)
    if not path:
        raise InputError(f"{first} names no path: give a file of models, or the folder of a pair with a path")
    return superpose_path(path, model) if FLAGS.superpose else path


def with_mdanalysis(files: list[str]) -> list:
    """Read CA atoms, and C4' of nucleotides, at every frame of a topology's trajectories, by MDAnalysis."""
    import gemmi

    from cryotrans_jax.io.files import InputError

    try:
        import MDAnalysis
    except ImportError:
        raise InputError(
            "topology and trajectory are read by MDAnalysis, which is not installed: python -m pip install MDAnalysis"
        ) from None
    universe = MDAnalysis.Universe(*files)
    chosen = universe.select_atoms("(protein and name CA) or (nucleic and name C4')")
    if not len(chosen):
        raise InputError(
            f"{files[0]} has no CA atoms of a protein and no C4' of nucleotides: give the topology of a molecule"
        )
    models = []
    for _ in universe.trajectory:
        structure = gemmi.Structure()
        structure.add_model(gemmi.Model(1))
        chain = None
        for atom in chosen:
            name = str(getattr(atom, "chainID", "") or atom.segid)
            if chain is None or chain.name != name:
                chain = structure[0].add_chain(name)
            residue = gemmi.Residue()
            residue.name, residue.seqid = str(atom.resname), gemmi.SeqId(int(atom.resid), " ")
            carbon = gemmi.Atom()
            carbon.name, carbon.element = str(atom.name), gemmi.Element("C")
            carbon.pos = gemmi.Position(*map(float, atom.position))
            residue.add_atom(carbon)
            chain.add_residue(residue)
        models.append(structure)
    universe.trajectory.close()
    return models


def superpose_path(path: list, model) -> list:
    """Move all models by the rigid motion that superposes the end nearer to the initial model on it."""
    import numpy as np

    from cryotrans_jax.io import atoms
    from cryotrans_jax.motion import rigid_bodies
    from cryotrans_jax.scores import metrics

    def moved(end):
        return metrics.ca_displacement(atoms.superpose(end, model), model)["rmsd"]

    near = min((path[0], path[-1]), key=moved)
    over = atoms.superpose(near, model)
    here, there = atoms.positions(near), atoms.positions(over)
    turn, shift = rigid_bodies.fit_rigid_motion(here, there, np.ones(len(here)))
    return [atoms.with_positions(one, atoms.positions(one) @ turn + shift) for one in path]


def orient(path, start):
    """Order the path (frames, n, 3) from its end nearer to the start; also return whether it was reversed."""
    import numpy as np

    far = [float(np.square(end - start).sum()) for end in (path[0], path[-1])]
    return (path[::-1], True) if far[1] < far[0] else (path, False)


command = command_of(main, define_flags)

if __name__ == "__main__":
    command()
