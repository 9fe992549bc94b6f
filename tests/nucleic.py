"""A pair of models of RNA whose answer is known: four A-form double helices in two domains, bent about a hinge.

python -m tests.nucleic PAIRS/rna writes it as a folder that experiments.studies.validate takes.

Base pairs have the geometry of Olson et al., J. Mol. Biol. 313 (2001), in the frame of the pair; the sugar and the
phosphate have bonds, angles and torsions of A-form RNA in that frame, and join to the next ones by the helix's step.
"""

import json
import sys
from pathlib import Path

import gemmi
import numpy as np
from scipy.spatial.transform import Rotation

from cryotrans_jax.io import atoms

RISE, TWIST = 2.81, np.deg2rad(32.7)  # Å and radians a base pair
TILT = Rotation.from_euler("xy", [16.44, 0.25], degrees=True).as_matrix()  # of base pairs to the helix axis
DISPLACEMENT = np.array([-4.40, 0, 0])  # of base pairs from that axis, Å
BACKBONE = {
    "P": (1.16, 9.21, 0.89), "OP1": (2.35, 8.43, 1.31), "OP2": (0.79, 10.44, 1.64), "O5'": (-0.09, 8.24, 0.89),
    "C5'": (-1.41, 8.73, 0.59), "C4'": (-2.43, 7.61, 0.61), "O4'": (-2.11, 6.64, -0.43), "C3'": (-2.50, 6.78, 1.88),
    "O3'": (-3.27, 7.40, 2.91), "C2'": (-3.11, 5.48, 1.39), "O2'": (-2.68, 4.38, 2.17), "C1'": (-2.48, 5.35, 0.0),
}  # fmt: skip
BASES = {
    "A": {
        "N9": (-1.29, 4.50), "C8": (0.02, 4.90), "N7": (0.88, 3.90), "C5": (0.07, 2.77), "C6": (0.37, 1.40),
        "N6": (1.61, 0.91), "N1": (-0.67, 0.53), "C2": (-1.91, 1.02), "N3": (-2.32, 2.29), "C4": (-1.27, 3.12),
    },
    "G": {
        "N9": (-1.29, 4.55), "C8": (0.02, 4.96), "N7": (0.87, 3.97), "C5": (0.07, 2.83), "C6": (0.42, 1.46),
        "O6": (1.55, 0.96), "N1": (-0.70, 0.64), "C2": (-2.00, 1.09), "N2": (-2.95, 0.14), "N3": (-2.34, 2.36),
        "C4": (-1.27, 3.18),
    },
    "U": {
        "N1": (-1.28, 4.50), "C2": (-1.46, 3.13), "O2": (-2.56, 2.61), "N3": (-0.30, 2.40), "C4": (0.99, 2.88),
        "O4": (1.94, 2.09), "C5": (1.09, 4.31), "C6": (-0.02, 5.05),
    },
    "C": {
        "N1": (-1.29, 4.54), "C2": (-1.47, 3.16), "O2": (-2.63, 2.71), "N3": (-0.39, 2.34), "C4": (0.84, 2.87),
        "N4": (1.88, 2.03), "C5": (1.06, 4.28), "C6": (-0.02, 5.07),
    },
}  # fmt: skip
PAIRED = {"A": "U", "U": "A", "G": "C", "C": "G"}
FLIP = np.array([1.0, -1.0, -1.0])  # the paired nucleotide lies as if turned about the pair's x
HELICES = (  # first residue number, base pairs, centre [Å], direction, rotation about it [degrees]
    (1, 14, (0.0, 0.0, 0.0), (0.0, 0.0, 1.0), 0),
    (21, 9, (26.0, 0.0, -8.0), (1.0, 0.1, 0.0), 60),
    (41, 12, (2.0, 0.0, 40.0), (0.1, 0.0, 1.0), 200),
    (61, 8, (3.0, 26.0, 45.0), (0.0, 1.0, 0.1), 110),
)
STRANDS = ("A", "B")
MOVING = 41  # first residue number of the domain that moves
HINGE = np.array([-8.0, 0.0, 20.0])  # a point on the hinge axis, Å
HINGE_TURN = Rotation.from_rotvec(np.deg2rad(40) * np.array([0.3, -1.0, 0.2]) / np.linalg.norm([0.3, -1.0, 0.2]))


def bent_rna() -> tuple[gemmi.Structure, gemmi.Structure]:
    """The straight and the bent model: chains A and B, which pair, in one frame [Å]."""
    initial = gemmi.Structure()
    initial.name = "rna"
    initial.add_model(gemmi.Model(1))
    for strand in STRANDS:
        initial[0].add_chain(strand)
    for first, count, centre, direction, turn in HELICES:
        for strand, residues in zip(
            STRANDS, double_helix(first, count, np.array(centre), direction, turn), strict=True
        ):
            for residue in residues:
                initial[0][strand].add_residue(residue)
    initial.setup_entities()
    target = initial.clone()
    for site in target[0].all():
        if (site.residue.seqid.num or 0) >= MOVING:
            site.atom.pos = gemmi.Position(*(HINGE + HINGE_TURN.apply(np.array(site.atom.pos.tolist()) - HINGE)))
    return initial, target


def double_helix(first, count, centre, direction, turn):
    """Make the residues of both strands, each from its 5' end; the strands run in opposite directions."""
    axis = np.array(direction) / np.linalg.norm(direction)
    across = np.cross(axis, (0.3, 1.0, 0.0))
    across /= np.linalg.norm(across)
    frame = np.stack([across, np.cross(axis, across), axis], axis=1)  # right-handed
    strands = [], []
    for k in range(count):
        name = "AGUC"[(3 * k + 5 * first + k * k // 4) % 4]
        angle = np.deg2rad(turn) + k * TWIST
        step = Rotation.from_rotvec([0, 0, angle]).as_matrix()
        at = np.array([0, 0, RISE * (k - (count - 1) / 2)])
        for strand, letter, flip in zip(strands, (name, PAIRED[name]), (1.0, FLIP), strict=True):
            places = {
                atom: centre + frame @ (step @ (TILT @ (flip * xyz) + DISPLACEMENT) + at)
                for atom, xyz in nucleotide(letter).items()
            }
            number = first + (k if strand is strands[0] else count - 1 - k)
            strand.append(residue_of(letter, number, places, k == (0 if strand is strands[0] else count - 1)))
    return strands[0], strands[1][::-1]


def nucleotide(letter):
    """Positions of a nucleotide's atoms in the frame of its base pair, Å."""
    return {name: np.array(xyz) for name, xyz in BACKBONE.items()} | {
        name: np.array([*xy, 0.0]) for name, xy in BASES[letter].items()
    }


def residue_of(letter, number, places, is_end):
    """Make a residue; the one at the 5' end has no phosphate."""
    residue = gemmi.Residue()
    residue.name, residue.seqid = letter, gemmi.SeqId(number, " ")
    residue.entity_type = gemmi.EntityType.Polymer
    for name, position in places.items():
        if is_end and name in ("P", "OP1", "OP2"):
            continue
        atom = gemmi.Atom()
        atom.name, atom.element, atom.b_iso = name, gemmi.Element(name[0]), 30.0
        atom.pos = gemmi.Position(*position)
        residue.add_atom(atom)
    return residue


def write_pair(folder: Path) -> None:
    """Write the pair into a folder, with its pair.json."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {"initial": "initial.cif", "target": "target.cif"}
    for name, model in zip(names.values(), bent_rna(), strict=True):
        atoms.write_model(folder / name, model)
    (folder / "pair.json").write_text(json.dumps(names))


if __name__ == "__main__":
    write_pair(Path(sys.argv[1]))
