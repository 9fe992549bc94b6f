"""Measure and restore the molecular geometry of a carried model.

The flow carries each atom independently and knows of no bonds. Bonds and reference distances are taken from the initial
model, of any molecule: nucleotides keep their sugars, flat bases and the bonds between O3' and P as amino acids keep
theirs. Only the distances of consecutive CA atoms, which hardly vary, are those of proteins; consecutive nucleotides
have no such distance.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import gemmi
import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int
from scipy.sparse.linalg import lsmr
from scipy.spatial import cKDTree
from threadpoolctl import threadpool_limits

from cryotrans_jax.io import atoms, cores

BOND = 0.4  # Å that a bond may be longer than the sum of covalent radii
NEXT = 4.5  # Å: largest distance of consecutive CA atoms
CA_CA, CA_SLACK = 3.8, 0.3  # Å: distance of CA atoms across a trans peptide bond, and its tolerance
CLASH = 2.2  # Å: nearer heavy atoms clash, unless their residues are bonded
REACH = 6.0  # Å: longest distance kept within a residue, across its whole side chain
HAND = 1.0  # Å³: least volume at a chiral centre

Pairs = Int[np.ndarray, "_ 2"]


@dataclass(frozen=True)
class Restraints:
    """Restraints by which `idealise` restores the geometry; a sigma is the standard deviation of one.

    Attributes:
        bond_sigma: of distances between bonded atoms, Å.
        angle_sigma: of distances between atoms two bonds apart, Å.
        residue_sigma: of further distances within a residue, Å.
        volume_sigma: of chiral volumes, Å³; a carbon's three neighbours span 2.5.
        place_sigma: of the distance to where the flow carries an atom, Å.
        contact: least distance of atoms of different residues, unless the initial model has less, Å.
        contact_sigma: of that distance, Å.
        margin: Å beyond `contact` from which atoms may come into contact in one round.
        rounds: of the minimisation at most; contacts are searched at the start of each.
        gain: smallest fraction by which the sum of squares falls in a round that is not the last.
        steps: at most, to solve the linear equations of a round.
        accuracy: to which they are solved.
    """

    bond_sigma: float = 0.05
    angle_sigma: float = 0.1
    residue_sigma: float = 0.2
    volume_sigma: float = 0.2
    place_sigma: float = 1.0
    contact: float = 3.0
    contact_sigma: float = 0.2
    margin: float = 1.0
    rounds: int = 20
    gain: float = 0.003
    steps: int = 60
    accuracy: float = 3e-4


class Topology(NamedTuple):
    """Geometry of the initial model; atoms are numbered as in `atoms.positions`.

    Attributes:
        xyz: positions in the initial model, Å.
        bonds: pairs of bonded atoms.
        angles: pairs of atoms two bonds apart.
        residue: further pairs within a residue, across a peptide bond or along the chain.
        chain: pairs of CA atoms that follow one another.
        centres: atoms with three of their neighbours, whose chirality or planarity is to be kept.
        number: residue of each atom.
        bonded_residues: pairs of bonded residues, as codes (`pair_codes`).
        first: whether each atom is in the first alternative conformation. Only these are measured.
        heavy: atoms of `first` that are not hydrogen.
    """

    xyz: Float[np.ndarray, "atoms 3"]
    bonds: Pairs
    angles: Pairs
    residue: Pairs
    chain: Pairs
    centres: Int[np.ndarray, "_ 4"]
    number: Int[np.ndarray, "atoms"]
    bonded_residues: Int[np.ndarray, "joined"]
    first: Bool[np.ndarray, "atoms"]
    heavy: Int[np.ndarray, "heavy"]


def topology(structure: gemmi.Structure) -> Topology:
    """Derive the topology of a model from the distances and names of its atoms."""
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
    angles = compatible(difference(nonzero_pairs(graph @ graph), bonds), altloc)
    ca = np.flatnonzero((name == "CA") & ~hydrogen & first)
    chain = np.stack([ca[:-1], ca[1:]], 1)
    chain = chain[(np.diff(number[chain])[:, 0] == 1) & (distances(xyz, chain) < NEXT)]
    further = np.concatenate([close[number[a] == number[b]], nonzero_pairs(graph @ across @ graph), chain])
    residue = compatible(difference(further, np.concatenate([bonds, angles])), altloc)
    centres = neighbour_triples(graph, np.flatnonzero(~hydrogen), ~hydrogen & first)
    joined = np.unique(pair_codes(number[np.concatenate([bonds, chain])]))
    heavy = np.flatnonzero(~hydrogen & first)
    return Topology(xyz, bonds, angles, residue, chain, centres, number, joined, first, heavy)


def measure(top: Topology, xyz: Float[np.ndarray, "atoms 3"]) -> dict[str, float | int]:
    """Measure the geometry of a carried model against its topology.

    Args:
        top: topology of the initial model.
        xyz: positions of the carried atoms, Å.

    Returns:
        `ca_bonds`, the share of consecutive CA atoms that are CA_CA ± CA_SLACK apart (NaN without any); `bond_rms`, the
        bond-length RMSD from the initial model [Å]; `mirrored`, the number of chirality outliers, centres that changed
        their hand; and `clashes`, the number of pairs of heavy atoms nearer than CLASH in residues that are not bonded.
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


def idealise(
    top: Topology, xyz: Float[np.ndarray, "atoms 3"], restraints: Restraints = Restraints()
) -> Float[np.ndarray, "atoms 3"]:
    """Restore the initial model's geometry near given positions.

    Minimises half the sum of squared deviations, each over its sigma: of distances (bonds, angles, residues) and
    volumes at `centres` from the initial model's, of atoms from `xyz`, and of contacts that are too near and nearer
    than in the initial model. Side chains thus keep their conformations, while the chain may rotate about its bonds.

    Args:
        top: topology of the initial model.
        xyz: positions of the carried atoms, Å.
        restraints: their sigmas, and the rounds of the minimisation.

    Returns:
        The new positions, Å.
    """
    return idealise_each(top, [xyz], restraints)[0]


def idealise_each(
    top: Topology, frames: Sequence[Float[np.ndarray, "atoms 3"]], restraints: Restraints = Restraints()
) -> list[Float[np.ndarray, "atoms 3"]]:
    """`idealise` for the positions (Å) of several frames, on all cores."""
    each = partial(minimised, top, restraints)
    # threads of BLAS cost more than they save on vectors this short
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(cores.usable()) as pool:
        return [*pool.map(each, frames)]


def minimised(top: Topology, by: Restraints, xyz: Float[np.ndarray, "atoms 3"]) -> Float[np.ndarray, "atoms 3"]:
    """Positions (Å) of the least sum of squares near these, by Gauss-Newton; see `idealise`."""
    kinds = ((top.bonds, by.bond_sigma), (top.angles, by.angle_sigma), (top.residue, by.residue_sigma))
    fixed = np.concatenate([pairs for pairs, _ in kinds])
    sigma = np.concatenate([np.full(len(pairs), sigma) for pairs, sigma in kinds])
    hands = ChiralVolumes(top.centres, volumes(top.xyz, top.centres)[0], by.volume_sigma)
    x = xyz
    for _ in range(by.rounds):
        meeting = contacts(top, x, by.contact + by.margin)
        pairs, ideal = np.concatenate([fixed, meeting]), distances(top.xyz, np.concatenate([fixed, meeting]))
        ideal[len(fixed) :] = np.minimum(ideal[len(fixed) :], by.contact)
        each = np.concatenate([sigma, np.full(len(meeting), by.contact_sigma)])
        terms = Distances(pairs, ideal, each, len(fixed)), hands, Places(xyz, by.place_sigma)
        x, gain = improved(terms, x, by)
        if gain < by.gain:
            break
    return x


class Distances(NamedTuple):
    """Restraints of distances.

    Attributes:
        pairs: pairs of atoms.
        ideal: distance of each, Å.
        sigma: its standard deviation, Å.
        fixed: number of the first pair that is restrained only when it is too near.
    """

    pairs: Pairs
    ideal: Float[np.ndarray, "pairs"]
    sigma: Float[np.ndarray, "pairs"]
    fixed: int

    def deviations(self, x: Float[np.ndarray, "atoms 3"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Deviations over their sigmas; and of each the atoms that it depends on, and its gradient by them, 1/Å."""
        apart = x[self.pairs[:, 0]] - x[self.pairs[:, 1]]
        length = np.maximum(np.linalg.norm(apart, axis=1), 1e-6)
        off = (length - self.ideal) / self.sigma
        held = (np.arange(len(off)) < self.fixed) | (off < 0)
        slope = apart * (held / (self.sigma * length))[:, None]
        return held * off, self.pairs, np.stack([slope, -slope], 1)


class ChiralVolumes(NamedTuple):
    """Restraints of chiral volumes, because distances do not distinguish mirror images.

    Attributes:
        centres: atoms with three of their neighbours.
        ideal: volume of each, Å³.
        sigma: standard deviation, Å³.
    """

    centres: Int[np.ndarray, "_ 4"]
    ideal: Float[np.ndarray, "_"]
    sigma: float

    def deviations(self, x: Float[np.ndarray, "atoms 3"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As those of `Distances`."""
        volume, slope = volumes(x, self.centres)
        return (volume - self.ideal) / self.sigma, self.centres, slope / self.sigma


class Places(NamedTuple):
    """Restraints of atoms to their places.

    Attributes:
        place: of each atom, Å.
        sigma: standard deviation, Å.
    """

    place: Float[np.ndarray, "atoms 3"]
    sigma: float

    def deviations(self, x: Float[np.ndarray, "atoms 3"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As those of `Distances`, one along each axis."""
        axes = np.tile(np.eye(3)[:, None] / self.sigma, (len(x), 1, 1))
        return ((x - self.place) / self.sigma).ravel(), np.arange(len(x)).repeat(3)[:, None], axes


Terms = Sequence[Distances | ChiralVolumes | Places]


def sum_of_squares(terms: Terms, x: Float[np.ndarray, "atoms 3"]) -> float:
    """Sum of squared deviations, each over its sigma."""
    return float(sum(np.sum(term.deviations(x)[0] ** 2) for term in terms))


def improved(
    terms: Terms, x: Float[np.ndarray, "atoms 3"], by: Restraints
) -> tuple[Float[np.ndarray, "atoms 3"], float]:
    """Positions (Å) after one step of Gauss-Newton, shortened until it is a gain, and the fraction that it gains."""
    found = [term.deviations(x) for term in terms]
    off = np.concatenate([each for each, _, _ in found])
    columns = np.concatenate([(3 * atoms_[..., None] + np.arange(3)).ravel() for _, atoms_, _ in found])
    slopes = np.concatenate([slope.ravel() for _, _, slope in found])
    counts = np.concatenate([np.full(len(slope), 3 * slope.shape[1]) for _, _, slope in found])
    scale = 1 / np.sqrt(np.bincount(columns, slopes**2, x.size))  # of the unknowns, for fewer steps of the solver
    rows = np.concatenate([[0], np.cumsum(counts)])
    matrix = scipy.sparse.csr_array((slopes * scale[columns], columns, rows), (len(off), x.size))
    change = (scale * lsmr(matrix, -off, atol=by.accuracy, btol=0, maxiter=by.steps)[0]).reshape(-1, 3)
    before = off @ off
    for factor in 0.5 ** np.arange(5):
        after = sum_of_squares(terms, x + factor * change)
        if after < before:
            return x + factor * change, float(1 - after / before)
    return x, 0.0


def volumes(x: Float[np.ndarray, "atoms 3"], centres: Int[np.ndarray, "_ 4"]):
    """Signed volume [Å³] that three neighbours span at each centre, and its gradient by the four atoms."""
    a, b, c = (x[centres[:, k]] - x[centres[:, 0]] for k in (1, 2, 3))
    slopes = [np.cross(b, c), np.cross(c, a), np.cross(a, b)]
    return np.sum(a * slopes[0], 1), np.stack([-sum(slopes), *slopes], 1)


def neighbour_triples(graph: scipy.sparse.csr_array, atoms_: np.ndarray, allowed: np.ndarray) -> Int[np.ndarray, "_ 4"]:
    """Atoms with at least three allowed neighbours, each with the first three."""
    found = []
    for atom in atoms_:
        about = graph.indices[graph.indptr[atom] : graph.indptr[atom + 1]]
        about = np.sort(about[allowed[about]])[:3]
        if len(about) == 3:
            found.append([atom, *about])
    return np.array(found, np.int64).reshape(-1, 4)


def contacts(top: Topology, xyz: Float[np.ndarray, "atoms 3"], nearer: float) -> Pairs:
    """Pairs of heavy atoms nearer than `nearer` Å in different residues that are not bonded."""
    found = cKDTree(xyz[top.heavy]).query_pairs(nearer, output_type="ndarray").reshape(-1, 2)
    found = top.heavy[found]
    ends = top.number[found]
    return found[(ends[:, 0] != ends[:, 1]) & ~np.isin(pair_codes(ends), top.bonded_residues)]


def distances(xyz: Float[np.ndarray, "atoms 3"], pairs: Pairs) -> Float[np.ndarray, "_"]:
    """Distance [Å] of each pair."""
    return np.linalg.norm(xyz[pairs[:, 0]] - xyz[pairs[:, 1]], axis=1)


def is_first(number: Int[np.ndarray, "atoms"], altloc: np.ndarray) -> Bool[np.ndarray, "atoms"]:
    """Whether each atom has no alternative conformation, or is in the first one of its residue."""
    named = altloc != "\0"
    lowest: dict[int, str] = {}
    for residue, letter in zip(number[named].tolist(), altloc[named].tolist(), strict=True):
        lowest[residue] = min(letter, lowest.get(residue, letter))
    return np.array([not n or lowest[r] == a for n, r, a in zip(named, number.tolist(), altloc, strict=True)])


def compatible(pairs: Pairs, altloc: np.ndarray) -> Pairs:
    """Pairs without those between two alternative conformations."""
    a, b = altloc[pairs].T
    return pairs[(a == b) | (a == "\0") | (b == "\0")]


def adjacency(pairs: Pairs, count: int) -> scipy.sparse.csr_array:
    """Symmetric adjacency matrix (count, count) of pairs."""
    half = scipy.sparse.csr_array((np.ones(len(pairs), np.int32), (pairs[:, 0], pairs[:, 1])), (count, count))
    return (half + half.T).tocsr()


def nonzero_pairs(matrix: scipy.sparse.csr_array) -> Pairs:
    """Pairs with an entry in a symmetric matrix, each once."""
    upper = scipy.sparse.triu(matrix, 1).tocoo()
    return np.stack([upper.row, upper.col], 1).astype(np.int64)


def difference(pairs: Pairs, others: Pairs) -> Pairs:
    """Pairs that are not among the others, each once."""
    _, index = np.unique(pair_codes(pairs), return_index=True)
    pairs = pairs[index]
    return pairs[~np.isin(pair_codes(pairs), pair_codes(others))]


def pair_codes(pairs: Pairs) -> Int[np.ndarray, "_"]:
    """A code for each pair, whatever its order."""
    low, high = pairs.min(1), pairs.max(1)
    return low.astype(np.int64) << 32 | high.astype(np.int64)
