"""Bodies by docking: pieces of the initial map are fitted into the target as rigid bodies, in any pose.

A domain that turns by a large angle, or passes behind another one, leaves the neighbourhoods by which `correspond`
recognises points. As a rigid body it can still be found anywhere in the target, by a search over all rotations and
shifts. Blocks of the initial map then choose among the poses that were found, by how well each explains the target
there and how little it tears the density. Where there is a model, its chain is not torn either, and bodies are also
turned about the residues by which they hang on their neighbours.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float

from cryotrans_jax.core.grid import binned
from cryotrans_jax.density.boxes import power_of_two
from cryotrans_jax.density.problem import Problem
from cryotrans_jax.density.simulation import SIGMA
from cryotrans_jax.density.transform import Transform
from cryotrans_jax.io.chain import Chain
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion.hinges import Density, HingeSearch, TurnedSide, turned_sides
from cryotrans_jax.motion.labelling import Blocks
from cryotrans_jax.motion.offers import BodyRules, Docked, DockedBody, Offers
from cryotrans_jax.motion.pieces import Pieces, PoseSearch


def never() -> bool:
    """False: a search that is not stopped."""
    return False


@dataclass(frozen=True)
class Balls:
    """Balls of density that are docked besides the whole.

    Attributes:
        number: number of them.
        mass: fraction of the mass in each.
    """

    number: int
    mass: float


@dataclass(frozen=True)
class DockingSearch:
    """How pieces of the initial map are docked into the target.

    Attributes:
        resolution: at which densities are compared, Å, or the target's if that is coarser.
        voxel: about the voxel size of the comparison, Å.
        balls: of each search, which are done until two agree.
        same: rms distance of the blocks in two results that agree, Å.
        close: fraction by which a result may cost more than the best to be kept beside it.
        poses: how the poses of a piece are searched for.
        whole_poses: poses of the whole that are kept.
        piece_poses: poses of each piece that are kept.
        block: side of the blocks that choose among the poses, Å.
        max_blocks: about as many at most; the sides are longer where there would be more.
        rounds: of choosing and refining.
        searching: of these, rounds in which further poses are searched for.
        gain: smallest fraction by which the cost falls in a round that counts as a gain.
        patience: rounds in a row without a gain, after which no more follow.
        redocked: best bodies in whose rest of the target further poses are searched for.
        reach: Å by which the refinement of a body moves it at most.
        hinges: how bodies are turned about residues, where there is a model.
        bodies: what bodies cost.
    """

    resolution: float = 8.0
    voxel: float = 2.0
    balls: tuple[Balls, ...] = (Balls(8, 0.35), Balls(8, 0.5))
    same: float = 1.0
    close: float = 0.1
    poses: PoseSearch = PoseSearch()
    whole_poses: int = 8
    piece_poses: int = 3
    block: float = 4.0
    max_blocks: int = 6000
    rounds: int = 5
    searching: int = 3
    gain: float = 0.001
    patience: int = 2
    redocked: int = 3
    reach: float = 6.0
    hinges: HingeSearch = HingeSearch()
    bodies: BodyRules = BodyRules()

    def __post_init__(self) -> None:
        """Raise InputError where there is no search."""
        if not self.balls:
            raise InputError("DockingSearch has no balls: give those of one search at least")


def searched(
    problem: Problem, target: int, search: DockingSearch = DockingSearch(), stopped: Callable[[], bool] = never
) -> "Docking":
    """The search of a problem's initial map in one of its targets, after its first part.

    Densities are compared with all their detail and noise, within the target's mask.

    Args:
        problem: the prepared maps.
        target: number of the target.
        search: how pieces are docked.
        stopped: whether to stop.

    Raises:
        CancelledError: it was stopped.
    """
    factor = power_of_two(search.voxel / problem.voxel_size.min())
    size = factor * problem.voxel_size
    origin = problem.frame.to_angstrom(problem.corner) + 0.5 * size
    shown = np.maximum(problem.densities[target], 0) * (problem.targets[target] > 0)
    both = problem.initial, shown
    start, end = (Map(binned(mass, factor).astype(np.float32), size, origin) for mass in both)
    resolution = float(np.sqrt(max(problem.residual_blurs[target], 0.0))) / SIGMA
    detail = max(resolution, search.resolution)
    pieces = Pieces(start, end, detail, search.block, search.max_blocks, search.poses)
    docking = Docking(pieces, search, problem.chain, stopped)
    docking.first  # noqa: B018 -- is kept
    return docking


@dataclass(frozen=True)
class Docking:
    """The search in one pair of maps: pieces of the initial map are docked, and blocks choose among their poses.

    Attributes:
        pieces: the maps.
        search: how pieces are docked.
        chain: of a model of the initial map; None: no model.
        stopped: whether to stop.
    """

    pieces: Pieces
    search: DockingSearch
    chain: Chain | None = None
    stopped: Callable[[], bool] = never

    @cached_property
    def first(self) -> Docked:
        """What the first search finds."""
        return self.found(self.search.balls[0])

    def found(self, balls: Balls) -> Docked:
        """What a search with these balls finds."""
        return self.settle(self.candidates(balls), self.search.searching)

    def results(self, known: Sequence[Transform] = ()) -> list[Docked]:
        """Results that differ, the one of least cost first. Those that cost much more than it are left out.

        No search finds the best bodies for certain. Therefore several are done, with other pieces, until two agree.
        Motions that are known are where one more begins, which searches no further.

        Args:
            known: motions that may be right, such as those of bodies in a flow, Å.
        """
        search = self.search
        results = [self.settle(known, searching=0)] if known else []
        for number, balls in enumerate(search.balls):
            found = self.found(balls) if number else self.first
            agreeing = [n for n, other in enumerate(results) if rms_distance(found.moved, other.moved) <= search.same]
            if agreeing:
                results[agreeing[0]] = min(found, results[agreeing[0]], key=lambda result: result.cost)
                break
            results.append(found)
        results.sort(key=lambda result: result.cost)
        return [each for each in results if each.cost <= (1 + search.close) * results[0].cost]

    @property
    def blocks(self) -> Blocks:
        """Blocks of the initial map."""
        return self.pieces.blocks

    @cached_property
    def whole_poses(self) -> list[Transform]:
        """Poses of the whole."""
        pieces = self.pieces
        return pieces.poses(pieces.initial.density > 0, pieces.whole_target, self.search.whole_poses)

    def candidates(self, balls: Balls) -> list[Transform]:
        """Poses of the whole, and of balls of density all over the initial map."""
        pieces, found = self.pieces, [*self.whole_poses]
        for centre in spread_points(self.blocks.x, balls.number):
            self.check()
            found += pieces.poses(pieces.ball(centre, balls.mass), pieces.whole_target, self.search.piece_poses)
        return found

    def settle(self, motions: Sequence[Transform], searching: int) -> Docked:
        """Let blocks choose among some motions, and improve the bodies that these make.

        After each choice the bodies of equal motion are refined, and the best of them claim their places in the target,
        so that no two explain the same density.

        Args:
            motions: the motions.
            searching: rounds in which further motions are searched for, in what the bodies leave of the target.
        """
        found, best, without_gain = self.offers([], motions).best(), None, 0
        for round_ in range(self.search.rounds):
            self.check()
            bodies = self.refined(found)
            here = self.offers(bodies).docked(np.argmax([body.own for body in bodies], axis=0))
            gains = best is None or here.cost < (1 - self.search.gain) * best.cost
            best, without_gain = (here, 0) if gains else (best, without_gain + 1)
            if without_gain >= self.search.patience:
                break
            found = self.offers(bodies, self.further(found, bodies) if round_ < searching else []).best()
        assert best is not None
        return best

    def check(self) -> None:
        """Raise CancelledError if the search is to stop."""
        if self.stopped():
            raise CancelledError

    def offers(self, bodies: Sequence[DockedBody], motions: Sequence[Transform] = ()) -> Offers:
        """The motions of bodies, and others, among which the blocks choose."""
        return Offers.of(self.pieces, self.chain, self.search.bodies, bodies, motions)

    def refined(self, found: Docked) -> list[DockedBody]:
        """The bodies of equal motion, best first, each refined near its pose in what those before it leave."""
        kept = [found.owner == number for number in np.unique(found.owner)]
        match = [float(np.average(found.match[own], weights=found.blocks.density[own])) for own in kept]
        worth = [-each * found.blocks.density[own].sum() ** 0.5 for each, own in zip(match, kept, strict=True)]
        left, bodies = self.pieces.target.density, list[DockedBody]()
        for number in np.argsort(worth, kind="stable"):
            own = kept[number]
            given = found.motions[found.owner[own][0]]
            (motion,) = self.pieces.refine([(own, given)], self.pieces.filtered(left), 1e-6, self.search.reach)
            moved = self.pieces.moved(own, motion)
            bodies.append(DockedBody(own, motion, moved, self.pieces.sharp(moved)))
            left = self.pieces.without(left, moved)
        total = np.sum([body.claim for body in bodies], axis=0)
        scale = float(np.vdot(total, self.pieces.sharp_target) / max(np.vdot(total, total), 1e-30))
        return [body._replace(claim=scale * body.claim) for body in bodies]

    def further(self, found: Docked, bodies: Sequence[DockedBody]) -> list[Transform]:
        """Further motions: poses of the bodies in what better ones leave of the target, and turned sides of a chain."""
        left, poses = self.pieces.target.density, list[Transform]()
        for number, body in enumerate(bodies[: self.search.redocked]):
            left = self.pieces.without(left, body.moved)
            rest, filtered = [each.own for each in bodies[number + 1 :]], self.pieces.filtered(left)
            for own in [*rest[:1], *([np.any(rest, axis=0)] if len(rest) > 1 else [])]:
                poses += self.pieces.poses(self.pieces.voxels(own), filtered, self.search.piece_poses)
        return poses + ([] if self.chain is None else self.turned(self.chain, found, bodies))

    def turned(self, chain: Chain, found: Docked, bodies: Sequence[DockedBody]) -> list[Transform]:
        """Motions of sides of the chain turned about residues of the best bodies, refined; best first."""
        pieces, blocks, search = self.pieces, self.blocks, self.search.hinges
        present, residue = found.moved, chain.residues_at(blocks.x, self.search.bodies.reach(blocks))
        sides = list[TurnedSide]()
        for body in bodies[: search.anchors]:
            left = pieces.sharp_target - body.claim
            here = pieces.interpolate(pieces.sharp_target, body.motion(blocks.x))
            explained = pieces.block_density * np.where(body.own, here, pieces.interpolate(left, present))
            given = Density(blocks.x, pieces.block_density, residue, explained, body.own)
            sides += turned_sides(chain, given, body.motion, replace(pieces.initial, density=left), search)
        best, motions = sorted(sides, key=lambda side: -side.gain)[: search.refined], list[Transform]()
        begun = [(np.isin(np.arange(len(blocks.x)), side.points), side.motion) for side in best]
        refined = pieces.refine(begun, pieces.whole_target, 1e-4, search.settle)
        for side, motion in zip(best, refined, strict=True):
            x = blocks.x[side.points]
            if all(rms_distance(motion(x), each(x)) > search.apart for each in motions):
                motions.append(motion)
        return motions[: search.kept]


def rms_distance(x: Float[np.ndarray, "points 3"], y: Float[np.ndarray, "points 3"]) -> float:
    """Rms distance of points from others."""
    return float(np.sqrt(((x - y) ** 2).sum(1).mean()))


def spread_points(x: Float[np.ndarray, "points 3"], count: int) -> Float[np.ndarray, "some 3"]:
    """Some of the points, each as far as possible from those before; the first is farthest from the middle."""
    away, chosen = ((x - x.mean(0)) ** 2).sum(1), list[int]()
    while len(chosen) < min(count, len(x)):
        chosen.append(int(away.argmax()))
        squared = ((x - x[chosen[-1]]) ** 2).sum(1)
        away = squared if len(chosen) == 1 else np.minimum(away, squared)
    return x[chosen]
