"""Settings of the terms of a stage, as a schedule holds them; each makes its term for one target of a prepared problem.

A further term is a class like these: a frozen dataclass of plain values (text, numbers, tuples) with a method `make`.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from cryotrans_jax.core import losses
from cryotrans_jax.core.grid import binned
from cryotrans_jax.density.problem import Problem
from cryotrans_jax.fit.levels import Level
from cryotrans_jax.fit.targets import (
    Balance,
    at_matched_resolution,
    level_blur,
    matched_widths,
    rigidity_parts,
    signal_power,
)
from cryotrans_jax.motion import correspond


class TermSettings:
    """Settings of a term.

    Attributes:
        label: name of the term, for people.
        matches: whether it compares with the target's density.
        rigid: whether it needs the tetrahedra of the nodes.
        floor: below which only a fit of noise takes it.
    """

    label: ClassVar[str]
    matches: ClassVar[bool] = False
    rigid: ClassVar[bool] = False
    floor: ClassVar[float] = -math.inf

    def make(self, problem: Problem, level: Level, bin_: int, target: int) -> losses.Term:
        """Make the term; called for each stage and target.

        Arrays that are the same object for all targets are kept once, others are stacked.

        Args:
            problem: the prepared maps.
            level: the points of mass that it will be called with; `corner` and `voxel` are those of the binned grid.
            bin_: voxel size of the comparison grid, in voxels of the map.
            target: number of the target.
        """
        raise NotImplementedError

    def refined(self) -> "TermSettings":
        """More exact settings, for when the term's error is too large."""
        return self


@dataclass(frozen=True)
class W2(TermSettings):
    """Squared entropic Wasserstein distance to the thresholded target (paper, eq. 3).

    Attributes:
        epsilon: entropic regularisation, in unit boxes squared.
        iterations: Sinkhorn iterations.
        window: of the transport's kernel, in voxels of the comparison grid; None: the whole grid.
    """

    epsilon: float
    iterations: int = 5
    window: int | None = None
    label = "w2"

    def make(self, problem: Problem, level: Level, bin_: int, target: int) -> losses.W2:
        """Make the term."""
        volume = binned(problem.targets[target], bin_)
        whole = self.window is None or self.window >= max(volume.shape) - 1
        window = None if whole else self.window
        return losses.W2(volume, level.corner, level.voxel, self.epsilon, self.iterations, window)

    def published_scale(self, problem: Problem, bin_: int, target: int) -> float:
        """The published distance, of maps that are not divided by their mass, relative to this term."""
        return float(problem.targets[target].sum()) / bin_**3  # binning averages in the paper, and adds here

    def refined(self) -> "W2":
        """The same with twice the window."""
        return self if self.window is None else replace(self, window=2 * self.window)


@dataclass(frozen=True)
class L2(TermSettings):
    """Squared differences from the thresholded target (the paper's L2 stage)."""

    label = "l2"

    def make(self, problem: Problem, level: Level, bin_: int, target: int) -> losses.L2:
        """Make the term."""
        return losses.L2(binned(problem.targets[target], bin_), level.corner, level.voxel)

    def published_scale(self, problem: Problem, bin_: int, target: int) -> float:
        """The published sum of squared differences relative to this term, which is divided by the target's squares."""
        return float((binned(problem.targets[target], bin_) ** 2).sum()) / bin_**6


@dataclass(frozen=True)
class Matched(TermSettings):
    """Squared differences from the target at matched resolution, independent of the maps' scale.

    Attributes:
        blur: Å; blurs carried map and target alike, so that they attract each other from further away.
        lighten: power by which mass that the target does not have is downweighted at the start; see
            `losses.Matched.weigh`.
        final_lighten: the power at the end, reached along half a cosine; where both are 0 all mass counts.
        nearby: Å: blur within which the target is searched for carried mass.
    """

    blur: float = 0.0
    lighten: float = 0.0
    final_lighten: float = 0.0
    nearby: float = 3.0
    label = "matched"
    matches = True
    floor = 0.0  # all of the signal is explained; the power that it is relative to is without that of the noise

    def make(self, problem: Problem, level: Level, bin_: int, target: int) -> losses.Matched:
        """Make the term."""
        density, solvent = problem.densities[target], problem.densities[target] * (problem.targets[target] == 0)
        volume, noise = (at_matched_resolution(problem, d, bin_, target, self.blur) for d in (density, solvent))
        power = signal_power(volume, noise, binned(problem.targets[target], bin_) > 0)
        lightens = max(self.lighten, self.final_lighten) > 0
        return losses.Matched(
            volume,
            level.corner,
            level.voxel,
            power,
            level_blur(problem, bin_, matched_widths(problem, self.blur), target),
            level_blur(problem, bin_, [self.nearby] * len(problem.targets), target) if lightens else None,
            np.array([self.lighten, self.final_lighten], np.float32),
        )


@dataclass(frozen=True)
class Correspondences(TermSettings):
    """Huber loss of the distances of points from where they belong by their neighbourhoods' shapes.

    Attributes:
        reach: Å; distances above this count linearly.
        search: how correspondences are searched for.
    """

    reach: float = 2.0
    search: correspond.CorrespondenceSearch = correspond.DEFAULT
    label = "points"

    def make(self, problem: Problem, level: Level, bin_: int, target: int) -> correspond.Correspondences:
        """Find the correspondences of the level's points, and make the term."""
        ends, confidence = correspond.ends(problem, target, level.points, self.search)
        weight = jnp.asarray(confidence, jnp.float32) * level.scene.rho
        return correspond.Correspondences(ends.astype(np.float32), weight, np.float32(self.reach / problem.frame.edge))


@dataclass(frozen=True)
class Rigidity(TermSettings):
    """Rigidity of the motion (paper, eq. 13).

    Attributes:
        weight: factor of the term.
        slip: strain beyond which it hardly grows; 0: the published term.
        balanced: whether the weight is multiplied by `targets.rigidity_factor`, and the slip is the nearer to
            `Balance.noisy_slip` the more of that factor is the noise's.
        balance: for that factor.
    """

    weight: float
    slip: float = 0.0
    balanced: bool = False
    balance: Balance = Balance()
    label = "rigidity"
    rigid = True
    floor = 0.0

    def make(self, problem: Problem, level: Level, bin_: int, target: int) -> losses.Rigidity:
        """Make the term."""
        detail, noise = rigidity_parts(problem, target, self.balance) if self.balanced else (1.0, 0.0)
        weight = np.float32(self.weight * (detail + noise))
        slip = np.float32(self.slip + noise / (detail + noise) * (self.balance.noisy_slip - self.slip))
        cells = level.tetrahedra
        return losses.Rigidity(weight, cells.nodes, cells.edges, cells.share, slip if self.slip else None)


@dataclass(frozen=True)
class PublishedRigidity(TermSettings):
    """Rigidity as published (paper, eq. 13): λ times the mean over the tetrahedra of the whole, or of each part.

    All tetrahedra count alike, and no strain is let off. The published losses are not divided by the maps' mass or
    squares, as our W2 and L2 are. Therefore this term is divided by the same number as the one that it stands beside,
    so that `weight` is the λ of the published loss.

    Attributes:
        weight: λ of the whole; 1 where `Problem.stiffness` has the λ of each part (paper, eq. 15).
        beside: the stage's term that compares with the target.
    """

    weight: float
    beside: W2 | L2
    label = "rigidity"
    rigid = True
    floor = 0.0

    def make(self, problem: Problem, level: Level, bin_: int, target: int) -> losses.Rigidity:
        """Make the term."""
        weight = np.float32(self.weight / self.beside.published_scale(problem, bin_, target))
        tetrahedra = level.tetrahedra
        counted = tetrahedra.share.reshape(max(problem.parts, 1), -1) > 0  # the others fill up the smaller parts
        even = counted / np.maximum(counted.sum(1, keepdims=True), 1)
        even *= np.array(problem.stiffness or [1.0])[:, None]
        return losses.Rigidity(weight, tetrahedra.nodes, tetrahedra.edges, even.ravel().astype(np.float32))
