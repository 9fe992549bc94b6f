"""Built-in pair of models: seven ideal helices in two domains, closed and opened about a hinge."""

import gemmi
import numpy as np
from scipy.spatial.transform import Rotation

RISE, TWIST = 1.5, np.deg2rad(100)  # of an alpha helix, Å and radians per residue
BACKBONE = {  # radius [Å], phase [degrees], height [Å]: ideal bonds, angles and planar peptides
    "N": (1.541, -26.605, -0.904),
    "CA": (2.279, 0.0, 0.0),
    "C": (1.689, 27.807, 1.032),
    "O": (1.992, 22.944, 2.215),
    "CB": (3.344, 15.992, -0.774),
}
SIDE_CHAINS = {  # atoms beyond CB, and their radial distances from it [Å]
    "ALA": {},
    "SER": {"OG": 1.4},
    "LEU": {"CG": 1.5},
    "MET": {"CG": 1.5, "SD": 2.8},
    "GLU": {"CG": 1.5, "CD": 2.6},
    "LYS": {"CG": 1.5, "CD": 2.6},
    "PHE": {"CG": 1.5, "CZ": 2.9},
}
HELICES = (  # first residue number, number of residues, centre [Å], direction, rotation about it [degrees]
    (1, 22, (0.0, 0.0, 0.0), (0.10, 0.05, 1.0), 130),
    (26, 18, (10.5, 1.0, 1.5), (0.05, -0.12, -1.0), 200),
    (47, 24, (9.5, 11.6, -1.0), (-0.10, 0.10, 1.0), 210),
    (74, 16, (-1.0, 10.5, 3.0), (0.15, 0.05, -1.0), 200),
    (101, 20, (1.0, 1.0, 37.0), (0.20, 0.10, 1.0), 70),
    (124, 17, (11.6, 3.2, 36.0), (0.15, 0.20, -1.0), 160),
    (144, 23, (5.2, 12.1, 39.0), (0.10, -0.10, 1.0), 290),
)
MOVING = 101  # first residue number of the domain that moves
HINGE = np.array([-6.0, 5.0, 19.0])  # a point on the hinge axis, Å, between the domains
HINGE_AXIS = np.array([0.10, -1.0, 0.0]) / np.hypot(0.10, 1.0)
HINGE_ANGLE = np.deg2rad(30)


def hinge_pair() -> tuple[gemmi.Structure, gemmi.Structure]:
    """The closed and the open model: chain A, seven helices without loops, 140 residues, in one frame [Å].

    Between them the residues from MOVING on rotate by HINGE_ANGLE about HINGE_AXIS through HINGE.
    """
    initial = gemmi.Structure()
    initial.name = "hinge"
    initial.add_model(gemmi.Model(1))
    chain = initial[0].add_chain("A")
    for helix in HELICES:
        for residue in _helix(*helix):
            chain.add_residue(residue)
    initial.setup_entities()
    target, turn = initial.clone(), Rotation.from_rotvec(HINGE_ANGLE * HINGE_AXIS).as_matrix()
    for site in target[0].all():
        if (site.residue.seqid.num or 0) >= MOVING:
            site.atom.pos = gemmi.Position(*(HINGE + turn @ (np.array(site.atom.pos.tolist()) - HINGE)))
    return initial, target


def _helix(first, length, centre, direction, turn):
    """Generate the residues of an ideal helix."""
    axis = np.array(direction) / np.linalg.norm(direction)
    across = np.cross(axis, (0.0, 1.0, 0.0))
    across /= np.linalg.norm(across)
    frame = np.stack([across, np.cross(axis, across), axis], axis=1)  # right-handed
    for i in range(length):
        residue = gemmi.Residue()
        # steps of 3 and 5 through the seven types: no two helices have the same sequence
        residue.name = list(SIDE_CHAINS)[(3 * i + 5 * first + i * i // 4) % len(SIDE_CHAINS)]
        residue.seqid = gemmi.SeqId(first + i, " ")
        residue.entity_type = gemmi.EntityType.Polymer
        for name, (radius, phase, height) in _places(residue.name).items():
            place = _cylinder(radius, phase, height, i - (length - 1) / 2, turn)
            residue.add_atom(_atom(name, np.array(centre) + frame @ place))
        yield residue


def _places(name):
    """Radius, phase and height of each atom of a residue; side chains extend radially from CB."""
    radius, phase, height = BACKBONE["CB"]
    beyond = {atom: (radius + reach, phase, height) for atom, reach in SIDE_CHAINS[name].items()}
    return BACKBONE | beyond


def _cylinder(radius, phase, height, step, turn):
    """Position from cylindrical coordinates, `step` residues along a helix turned by `turn` degrees."""
    angle = np.deg2rad(phase + turn) + TWIST * step
    return np.array([radius * np.cos(angle), radius * np.sin(angle), height + RISE * step])


def _atom(name, position):
    """Make a gemmi atom; its element is the first letter of its name."""
    atom = gemmi.Atom()
    atom.name, atom.element, atom.b_iso = name, gemmi.Element(name[0]), 30.0
    atom.pos = gemmi.Position(*position)
    return atom
