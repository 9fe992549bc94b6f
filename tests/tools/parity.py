"""Check that runs give the same results before and after a change of structure: run, store and compare.

python -m tests.tools.parity --write=before.json       before the change
python -m tests.tools.parity --compare=before.json     after it, on the same machine

Each case is a run of the command line on small maps of the built-in pair: one target, two targets, a waypoint,
half-maps, given parts, a symmetry, the published recipe, and a run that was stopped and resumed. Losses, parameters,
maps and carried atoms are compared. If only code was moved, all bytes are the same. If a compiled program changed, the
largest differences are printed and must be within the stated rounding.
"""

import argparse
import hashlib
import importlib.metadata
import json
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

VOXEL, RESOLUTION = 3.0, 8.0  # Å
RUN = ["--align=none", "--steps=0.1", "--frames=3", "--noreport", "--model=a.cif", "--checkpoint_minutes=0"]
PAIR = ["--initial=a.mrc", "--target=b.mrc", "--initial_resolution=8", "--target_resolution=8"]
PAPER = ["--recipe=paper", "--schedule=w2:20:1e-3,l2:20:1e-4"]
CASES = {
    "pair": PAIR,
    "two targets": ["--initial=a.mrc", "--target=b.mrc,mid.mrc"],
    "waypoint": [*PAIR, "--waypoint=mid.mrc@0.5"],
    "half-maps": [*PAIR, "--target_half1=b_half1.mrc"],
    "parts": [*PAIR, "--parts=A:1-100;A:101-170"],
    "symmetry": ["--initial=a2.mrc", "--target=b2.mrc", "--symmetry=C2"],
    "paper": [*PAIR, *PAPER],
    "resumed": PAIR,
}
# A program that rounds differently gives other numbers. The first steps agree closely; later ones do not, as small
# differences grow: initial weights changed by 1e-7 of their values change these short fits by up to 1 (loss), 0.03
# (map) and 0.4 Å (atoms).
ROUNDING = {
    "first losses": 1e-5,  # relative, over FIRST steps
    "loss": 1.0,  # relative
    "map": 3e-2,  # of the largest density
    "atoms": 0.4,  # Å
}
FIRST = 10
PACKAGES = ("cryotrans-jax", "jax", "jaxlib", "flax", "optax", "ott-jax", "numpy")


def main() -> None:
    """Run the cases, and store or compare their results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="file that stores the results")
    parser.add_argument("--compare", type=Path, help="stored results to compare with")
    parser.add_argument("--cases", default=",".join(CASES), help="which cases, separated by commas")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        make_inputs(Path(home))
        cases = {name: results(run(Path(home), name)) for name in given.cases.split(",")}
    made = {"versions": versions(), "cases": cases}
    if given.write:
        given.write.write_text(json.dumps(made) + "\n")
    if given.compare and not same(json.loads(given.compare.read_text()), made):
        sys.exit("the results are not those that were stored")


def make_inputs(folder: Path) -> None:
    """Write the maps and the model of the cases."""
    import cryotrans_jax as ct

    start, end = ct.hinge_pair()
    middle = between(start, end)
    for name, model in {"a": start, "b": end, "mid": middle}.items():
        map_ = ct.simulate(model, RESOLUTION, voxel_size=VOXEL, cover=[start, end])
        ct.write_map(folder / f"{name}.mrc", map_)
        noise = np.random.default_rng(len(name)).normal(0, 0.02 * map_.density.max(), (2, *map_.density.shape))
        for number, own in enumerate(noise, 1):
            noisy = ct.Map((map_.density + own).astype(np.float32), map_.voxel_size, map_.origin)
            ct.write_map(folder / f"{name}_half{number}.mrc", noisy)
    ct.write_model(folder / "a.cif", start)
    pair = [dimer(model) for model in (start, end)]
    for name, model in zip(("a2", "b2"), pair, strict=True):
        ct.write_map(folder / f"{name}.mrc", ct.simulate(model, RESOLUTION, voxel_size=VOXEL, cover=pair))


def between(start, end):
    """Make the model half way between two, each atom on the straight line."""
    middle = start.clone()
    for own, other in zip(middle[0].all(), end[0].all(), strict=True):
        own.atom.pos = (own.atom.pos + other.atom.pos) / 2
    return middle


def dimer(model):
    """Make a dimer of the model and its copy about a twofold axis along z, as chains A and B."""
    import gemmi

    both, copy = model.clone(), model[0]["A"].clone()
    copy.name = "B"
    for chain, turn in ((both[0]["A"], 1), (copy, -1)):
        for residue in chain:
            for atom in residue:
                x, y, z = atom.pos.tolist()
                atom.pos = gemmi.Position(turn * (x + 22.0), turn * y, z)
    both[0].add_chain(copy)
    return both


def run(folder: Path, name: str) -> list[Path]:
    """Run a case, and return the folders of its targets."""
    out = folder / name.replace(" ", "_")
    words = [*CASES[name], *(w for w in RUN if name != "symmetry" or not w.startswith("--model")), f"--out_dir={out}"]
    command = [sys.executable, "-m", "experiments.run", *words]
    environment = {"cwd": folder, "stdout": subprocess.DEVNULL, "env": with_path()}
    print(f"{name} ...", flush=True)
    if name == "resumed":
        process = subprocess.Popen(command, **environment)
        while process.poll() is None and len(list(out.glob("unfinished/*/seed_0/0*"))) < 1:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.wait()
    subprocess.run(command, check=True, **environment)
    return [out] if (out / "config.json").is_file() else sorted(p for p in out.iterdir() if p.is_dir())


def with_path() -> dict:
    """Environment in which the code of this checkout runs from any folder."""
    import os

    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def results(folders: list[Path]) -> dict:
    """Results of a run: numbers to compare within rounding, and checksums to compare exactly."""
    import cryotrans_jax as ct
    from cryotrans_jax.io import checkpoints

    found = {}
    for folder in folders:
        rows = [line.split(",") for line in (folder / "loss.csv").read_text().splitlines()[1:]]
        arrays, _ = checkpoints.restore(folder / "checkpoint")
        maps = {path.name: ct.read_map(path).density for path in sorted(folder.glob("frame_*.mrc"))}
        found[folder.name] = {
            "losses": [float(row[3]) for row in rows],
            "parameters": checksum(*arrays_of_flow(arrays)),
            "maps": {name: checksum(density) for name, density in maps.items()},
            "blocks": {name: blocks(density) for name, density in maps.items()},
            "atoms": atoms_of(folder / "generated.cif"),
        }
    return found


def arrays_of_flow(arrays: dict) -> list[np.ndarray]:
    """Arrays that decide the flow: the labels of the parts of all targets, and the parameters of the fields."""
    labels = leaves(arrays["labels"])
    return ([np.stack(labels)] if labels else []) + leaves(arrays["params"])


def leaves(tree) -> list[np.ndarray]:
    """Arrays of nested dicts, sorted by name."""
    return [a for key in sorted(tree) for a in leaves(tree[key])] if isinstance(tree, dict) else [np.asarray(tree)]


def checksum(*arrays: np.ndarray) -> str:
    """SHA-256 of the arrays' shapes and bytes."""
    text = hashlib.sha256()
    for array in arrays:
        text.update(f"{array.shape} {array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
    return text.hexdigest()


def blocks(density: np.ndarray) -> list[float]:
    """Means over blocks of 8 voxels a side, to represent the map by few numbers."""
    sides = [range(0, n, 8) for n in density.shape]
    means = [density[x : x + 8, y : y + 8, z : z + 8].mean() for x in sides[0] for y in sides[1] for z in sides[2]]
    return [round(float(value), 7) for value in means]


def atoms_of(path: Path) -> list[float]:
    """Coordinates (Å) of the CA atoms of a model, one after the other; empty if there is no model."""
    import cryotrans_jax as ct

    if not path.is_file():
        return []
    model = ct.read_model(path)
    found = [site.atom.pos.tolist() for site in model[0].all() if site.atom.name == "CA"]
    return [round(value, 4) for xyz in found for value in xyz]


def versions() -> dict:
    """Versions and processor, on which the results depend in addition to the code."""
    return {name: importlib.metadata.version(name) for name in PACKAGES} | {"machine": processor()}


def processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def same(before: dict, now: dict) -> bool:
    """Print the comparison of each case; return whether all agree within rounding."""
    good = True
    for case, targets in now["cases"].items():
        for target, own in targets.items():
            was = before["cases"][case][target]
            if all(own[key] == was[key] for key in ("losses", "parameters", "maps", "atoms")):
                print(f"{case}, {target}: the same bytes")
                continue
            off = differences(was, own)
            within = all(off[key] <= most for key, most in ROUNDING.items())
            good &= within
            text = ", ".join(f"{key} {value:.2g} (at most {ROUNDING[key]:g})" for key, value in off.items())
            print(f"{case}, {target}: {'within rounding' if within else 'DIFFERS'}: {text}")
    return good


def differences(was: dict, own: dict) -> dict[str, float]:
    """The largest differences of the first losses and of all (relative), of the maps' blocks, and of atoms (Å)."""
    if any(np.shape(was[key]) != np.shape(own[key]) for key in ("losses", "atoms")):
        return dict.fromkeys(ROUNDING, float("inf"))
    a, b = np.array(was["losses"]), np.array(own["losses"])
    maps = [np.array([side["blocks"][name] for name in sorted(side["blocks"])]) for side in (was, own)]
    atoms = np.abs(np.array(was["atoms"]) - np.array(own["atoms"])).max(initial=0.0)
    relative = np.abs(a - b) / np.maximum(np.abs(a), 1e-3)
    return {
        "first losses": float(relative[:FIRST].max()),
        "loss": float(relative.max()),
        "map": float(np.abs(maps[0] - maps[1]).max() / np.abs(maps[0]).max()),
        "atoms": float(atoms),
    }


if __name__ == "__main__":
    main()
