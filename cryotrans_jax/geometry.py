"""Whether a carried model still has the geometry of a molecule, and how to give it that back.

The flow carries each atom by itself and knows of no bonds. What is bonded, and how far apart atoms are, is taken from
the initial model.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import gemmi
import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize
from scipy.spatial import cKDTree
from threadpoolctl import threadpool_limits

from cryotrans_jax import atoms

BOND = 0.4  # Å by which bonded atoms may be farther apart than the sum of their covalent radii
NEXT = 4.5  # Å: CA atoms of residues that follow one another in the chain are nearer
CA_CA, CA_SLACK = 3.8, 0.3  # Å between these across a trans peptide bond, and by how much that may be off
CLASH = 2.2  # Å: heavy atoms of residues that are not bonded to one another are farther apart
CONTACT = 3.0  # Å: such atoms are kept as far apart as this, or as they were
REACH = 6.0  # Å over which distances within a residue are kept: over its whole side chain
MARGIN = 1.0  # Å beyond that within which atoms may come into contact in one round
BOND_SIGMA, ANGLE_SIGMA, RESIDUE_SIGMA, PLACE_SIGMA = 0.05, 0.1, 0.2, 1.0  # Å by which each may be off
HAND = 1.0  # Å³: the neighbours of a centre that has a hand span more
VOLUME_SIGMA = 0.2  # Å³; a carbon's three neighbours span 2.5
ROUNDS, STEPS = 4, 60  # of the minimisation

Pairs = Int[np.ndarray, "_ 2"]


class Topology(NamedTuple):
    """What the initial model says of its geometry; atoms are numbered as in `atoms.positions`.

    `bonds` are pairs of atoms that are bonded, `angles` such that are two bonds apart, `chain` CA atoms that follow one
    another, `residue` further pairs in a residue, about a peptide bond or in the chain. `centres` are atoms with three
    of their neighbours, whose hand or plane is to be kept. `number` is each atom's residue; `joined` are pairs of
    residues that are bonded, as codes (`codes`). `first` are atoms of the first of alternative conformations, `heavy`
    those of them that are not hydrogen; what is judged is judged of these.
    """

    xyz: Float[np.ndarray, "atoms 3"]
    bonds: Pairs
    angles: Pairs
    residue: Pairs
    chain: Pairs
    centres: Int[np.ndarray, "_ 4"]
    number: Int[np.ndarray, "atoms"]
    joined: Int[np.ndarray, "joined"]
    first: Bool[np.ndarray, "atoms"]
    heavy: Int[np.ndarray, "heavy"]


def topology(structure: gemmi.Structure) -> Topology:
    """The topology of a model, from the distances and names of its atoms."""
    sites, xyz = list(structure[0].all()), atoms.positions(structure)
    places = [(site.chain.name, str(site.residue.seqid)) for site in sites]
    number = np.cumsum([k > 0 and place != places[k - 1] for k, place in enumerate(places)])
    name, altloc = (np.array([getattr(site.atom, key) for site in sites]) for key in ("name", "altloc"))
    hydrogen = np.array([site.atom.is_hydrogen() for site in sites])
    radius = np.array([site.atom.element.covalent_r for site in sites])
    first = is_first(number, altloc)

    close = cKDTree(xyz).query_pairs(REACH, output_type="ndarray").reshape(-1, 2).astype(np.int64)
    a, b = close.T
    bonds = close[(distances(xyz, close) < radius[a] + radius[b] + BOND) & ~(hydrogen[a] & hydrogen[b])]
    bonds = compatible(bonds, altloc)
    peptide = bonds[(name[bonds] == "C").any(1) & (name[bonds] == "N").any(1) & (np.diff(number[bonds])[:, 0] != 0)]
    graph, across = (adjacency(pairs, len(xyz)) for pairs in (bonds, peptide))
    angles = compatible(without(joints(graph @ graph), bonds), altloc)
    ca = np.flatnonzero((name == "CA") & ~hydrogen & first)
    chain = np.stack([ca[:-1], ca[1:]], 1)
    chain = chain[(np.diff(number[chain])[:, 0] == 1) & (distances(xyz, chain) < NEXT)]
    further = np.concatenate([close[number[a] == number[b]], joints(graph @ across @ graph), chain])
    residue = compatible(without(further, np.concatenate([bonds, angles])), altloc)
    centres = three_about(graph, np.flatnonzero(~hydrogen), ~hydrogen & first)
    joined = np.unique(codes(number[np.concatenate([bonds, chain])]))
    heavy = np.flatnonzero(~hydrogen & first)
    return Topology(xyz, bonds, angles, residue, chain, centres, number, joined, first, heavy)


def measure(top: Topology, xyz: Float[np.ndarray, "atoms 3"]) -> dict[str, float | int]:
    """How the geometry of a model has fared whose atoms are now at `xyz` [Å].

    `ca_bonds` is the share of CA atoms next in the chain that are CA_CA ± CA_SLACK apart (NaN without any),
    `bond_rms` the root mean square change [Å] of the bonds' lengths, `mirrored` the number of centres that have
    changed their hand, and `clashes` that of pairs of heavy atoms nearer than CLASH in residues that are not bonded.
    """
    bonds = top.bonds[top.first[top.bonds].all(1)]
    change = distances(xyz, bonds) - distances(top.xyz, bonds)
    off = np.abs(distances(xyz, top.chain) - CA_CA)
    before, after = (volumes(x, top.centres)[0] for x in (top.xyz, xyz))
    return {
        "ca_bonds": float(np.mean(off <= CA_SLACK)) if len(off) else float("nan"),
        "bond_rms": float(np.sqrt(np.mean(change**2))) if len(change) else 0.0,
        "mirrored": int(np.count_nonzero((np.abs(before) > HAND) & (before * after < 0))),
        "clashes": len(contacts(top, xyz, CLASH)),
    }


def idealised(top: Topology, xyz: Float[np.ndarray, "atoms 3"]) -> Float[np.ndarray, "atoms 3"]:
    """Positions [Å] near `xyz` at which the model has the initial one's geometry again.

    Minimises half the sum of squares of all that is off, each over its sigma: distances across bonds, angles and
    residues, and volumes at `centres`, from what they were in the initial model, atoms from `xyz`, and contacts that
    are nearer than CONTACT and than they were. Side chains thus keep their conformations, while the chain may turn
    about its bonds. Which atoms are in contact is looked up anew in each of ROUNDS.
    """
    kinds = ((top.bonds, BOND_SIGMA), (top.angles, ANGLE_SIGMA), (top.residue, RESIDUE_SIGMA))
    fixed = np.concatenate([pairs for pairs, _ in kinds])
    weight = np.concatenate([np.full(len(pairs), sigma**-2) for pairs, sigma in kinds])
    hands = volume_energy(top.centres, volumes(top.xyz, top.centres)[0])
    x = xyz
    for _ in range(ROUNDS):
        meeting = contacts(top, x, CONTACT + MARGIN)
        pairs = np.concatenate([fixed, meeting])
        wanted = distances(top.xyz, pairs)
        wanted[len(fixed) :] = np.minimum(wanted[len(fixed) :], CONTACT)
        each = np.concatenate([weight, np.full(len(meeting), RESIDUE_SIGMA**-2)])
        parts = (distance_energy(pairs, wanted, each, len(fixed), len(x)), hands, place_energy(xyz))
        with threadpool_limits(1, "blas"):  # its threads cost more than they bring on vectors this short
            found = minimize(summed(parts), x.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": STEPS})
        x = found.x.reshape(-1, 3)
    return x


Energy = Callable[[Float[np.ndarray, "atoms 3"]], tuple[float, Float[np.ndarray, "atoms 3"]]]  # value, gradient


def summed(parts: Sequence[Energy]) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """The sum of energies and of their gradients, both of flat positions."""

    def energy(flat):
        values, gradients = zip(*(part(flat.reshape(-1, 3)) for part in parts), strict=True)
        return sum(values), sum(gradients).ravel()

    return energy


def place_energy(place: Float[np.ndarray, "atoms 3"]) -> Energy:
    """Of atoms that are off their place."""

    def energy(x):
        pull = (x - place) / PLACE_SIGMA**2
        return 0.5 * float(np.sum(pull * (x - place))), pull

    return energy


def distance_energy(pairs: Pairs, wanted: np.ndarray, weight: np.ndarray, fixed: int, count: int) -> Energy:
    """Of pairs of `count` atoms that are not as far apart as wanted; from number `fixed` on, only if nearer."""
    rows, signs = np.tile(np.arange(len(pairs)), 2), np.repeat([1.0, -1.0], len(pairs))
    apart_of = scipy.sparse.csr_array((signs, (rows, pairs.T.ravel())), (len(pairs), count))
    place_of = apart_of.T.tocsr()

    def energy(x):
        apart = apart_of @ x
        length = np.maximum(np.linalg.norm(apart, axis=1), 1e-6)
        off = length - wanted
        off[fixed:] = np.minimum(off[fixed:], 0)
        return 0.5 * float(np.sum(weight * off**2)), place_of @ (apart * (weight * off / length)[:, None])

    return energy


def volume_energy(centres: Int[np.ndarray, "_ 4"], wanted: np.ndarray) -> Energy:
    """Of centres at which three neighbours do not span the volume wanted: distances do not tell a mirror image."""

    def energy(x):
        volume, slopes = volumes(x, centres)
        off = (volume - wanted) / VOLUME_SIGMA**2
        gradient = np.zeros_like(x)
        np.add.at(gradient, centres, off[:, None, None] * slopes)
        return 0.5 * float(np.sum(off * (volume - wanted))), gradient

    return energy


def volumes(x: Float[np.ndarray, "atoms 3"], centres: Int[np.ndarray, "_ 4"]):
    """The volume [Å³, signed] that three neighbours span at each centre, and how it changes with the four atoms."""
    a, b, c = (x[centres[:, k]] - x[centres[:, 0]] for k in (1, 2, 3))
    slopes = [np.cross(b, c), np.cross(c, a), np.cross(a, b)]
    return np.sum(a * slopes[0], 1), np.stack([-sum(slopes), *slopes], 1)


def three_about(graph: scipy.sparse.csr_array, atoms_: np.ndarray, allowed: np.ndarray) -> Int[np.ndarray, "_ 4"]:
    """Those of the atoms that have three allowed neighbours or more, each with the first three."""
    found = []
    for atom in atoms_:
        about = graph.indices[graph.indptr[atom] : graph.indptr[atom + 1]]
        about = np.sort(about[allowed[about]])[:3]
        if len(about) == 3:
            found.append([atom, *about])
    return np.array(found, np.int64).reshape(-1, 4)


def contacts(top: Topology, xyz: Float[np.ndarray, "atoms 3"], nearer: float) -> Pairs:
    """Pairs of heavy atoms nearer than so many Å whose residues are different and not bonded."""
    found = cKDTree(xyz[top.heavy]).query_pairs(nearer, output_type="ndarray").reshape(-1, 2)
    found = top.heavy[found]
    ends = top.number[found]
    return found[(ends[:, 0] != ends[:, 1]) & ~np.isin(codes(ends), top.joined)]


def distances(xyz: Float[np.ndarray, "atoms 3"], pairs: Pairs) -> Float[np.ndarray, "_"]:
    """The distance [Å] across each pair."""
    return np.linalg.norm(xyz[pairs[:, 0]] - xyz[pairs[:, 1]], axis=1)


def is_first(number: Int[np.ndarray, "atoms"], altloc: np.ndarray) -> Bool[np.ndarray, "atoms"]:
    """Which atoms are in no alternative conformation, or in the first that their residue has."""
    named = altloc != "\0"
    lowest: dict[int, str] = {}
    for residue, letter in zip(number[named].tolist(), altloc[named].tolist(), strict=True):
        lowest[residue] = min(letter, lowest.get(residue, letter))
    return np.array([not n or lowest[r] == a for n, r, a in zip(named, number.tolist(), altloc, strict=True)])


def compatible(pairs: Pairs, altloc: np.ndarray) -> Pairs:
    """Those of the pairs that are not in two alternative conformations."""
    a, b = altloc[pairs].T
    return pairs[(a == b) | (a == "\0") | (b == "\0")]


def adjacency(pairs: Pairs, count: int) -> scipy.sparse.csr_array:
    """The symmetric matrix (count, count) with a 1 for each pair."""
    half = scipy.sparse.csr_array((np.ones(len(pairs), np.int32), (pairs[:, 0], pairs[:, 1])), (count, count))
    return (half + half.T).tocsr()


def joints(matrix: scipy.sparse.csr_array) -> Pairs:
    """The pairs for which a symmetric matrix has entries, each once."""
    upper = scipy.sparse.triu(matrix, 1).tocoo()
    return np.stack([upper.row, upper.col], 1).astype(np.int64)


def without(pairs: Pairs, others: Pairs) -> Pairs:
    """Those of the pairs that are not among the others, each once."""
    _, index = np.unique(codes(pairs), return_index=True)
    pairs = pairs[index]
    return pairs[~np.isin(codes(pairs), codes(others))]


def codes(pairs: Pairs) -> Int[np.ndarray, "_"]:
    """A number for each pair, the same in whichever order it stands."""
    low, high = pairs.min(1), pairs.max(1)
    return low.astype(np.int64) << 32 | high.astype(np.int64)
