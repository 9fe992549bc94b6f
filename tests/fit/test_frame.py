"""The frame of a result: one body stays still at every time, and all else is as it was, seen from there."""

from dataclasses import dataclass, replace

import gemmi
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import identical
from scipy.spatial.transform import Rotation

from cryotrans_jax.core.flow import FieldMotion
from cryotrans_jax.core.grid import Frame
from cryotrans_jax.density.align import Alignment
from cryotrans_jax.density.transform import Transform, resampled
from cryotrans_jax.fit.frame import express
from cryotrans_jax.fit.options import Options
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.fit.stage import Config
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map
from cryotrans_jax.io.selections import only
from cryotrans_jax.motion.partition import Partition
from cryotrans_jax.motion.still import StillBody
from cryotrans_jax.scores.metrics import ca_displacement

STEPS, SIDE, VOXEL = 10, 24, 3.0
ORIGIN = np.array([100.0, -50.0, 20.0])
FRAME = Frame(ORIGIN - VOXEL / 2, SIDE * VOXEL)
TIMES = [0.25, 0.5, 0.75, 1.0]
SAGITTA = 36 * np.radians(3) ** 2 / 8  # Å: by which chords of 3°, the Euler steps, miss an arc at 36 Å at most


@jax.tree_util.register_static
@dataclass(frozen=True)
class Affine(FieldMotion):
    """Velocity field x A + b; one Euler step of it can be any rigid-body motion."""

    steps: int = STEPS

    @property
    def euler_steps(self):
        return self.steps

    def velocity(self, params):
        return lambda x: jnp.matmul(x, params["a"], precision="highest") + params["b"]


def turned(degrees, axis, about, shift):
    """Parameters of a field whose flow turns by so much about a point (unit box), and shifts by `shift` (Å)."""
    step = Rotation.from_rotvec(np.radians(degrees) / STEPS * np.asarray(axis)).as_matrix()
    a = STEPS * (step.T - np.eye(3))
    return {"a": a, "b": np.asarray(shift) / FRAME.edge - np.asarray(about) @ a}


def blob(centre, width):
    """Density of a body with a shape that has no symmetry, on the grid of the initial map."""
    at = ORIGIN + VOXEL * np.stack(np.meshgrid(*3 * [np.arange(SIDE)], indexing="ij"), -1)
    places = [((0, 0, 0), 1.0), ((width, 0, 0), 0.7), ((0, -0.8 * width, 0.5 * width), 0.8)]
    return sum(h * np.exp(-((at - ORIGIN - centre - np.array(p)) ** 2).sum(-1) / 2 / width**2) for p, h in places)


def chain(name, centre, width, count=40):
    """A chain of CA atoms at random in a body."""
    found = gemmi.Chain(name)
    for number, xyz in enumerate(ORIGIN + centre + np.random.default_rng(7).normal(0, width, (count, 3))):
        residue, atom = gemmi.Residue(), gemmi.Atom()
        residue.name, residue.seqid = "ALA", gemmi.SeqId(number + 1, " ")
        atom.name, atom.element, atom.pos = "CA", gemmi.Element("C"), gemmi.Position(*xyz)
        residue.add_atom(atom)
        found.add_residue(residue)
    return found


LARGE, SMALL = (np.array([24.0, 36, 36]), 5.0), (np.array([54.0, 34, 38]), 3.5)


@pytest.fixture(scope="module")
def model():
    found = gemmi.Structure()
    found.add_model(gemmi.Model(1))
    for name, body in (("A", LARGE), ("B", SMALL)):
        found[0].add_chain(chain(name, *body))
    return found


@pytest.fixture(scope="module")
def fit():
    """The larger body turns by 30° and shifts; the smaller one turns otherwise. In the frame of the alignment."""
    density = (blob(*LARGE) + blob(*SMALL)).astype(np.float32)
    initial = Map(density, np.full(3, VOXEL), ORIGIN)
    labels = np.where(np.arange(SIDE)[:, None, None] < 14, 1, 2) * np.ones(density.shape, np.int16)
    parts = Partition(labels.astype(np.int16), initial.voxel_size, initial.origin)
    fields_ = (
        turned(30, [0, 0, 1], [0.5, 0.5, 0.5], [0.3, 0.2, -0.2]),
        turned(25, [0, 0.6, 0.8], [0.5] * 3, [0, -0.2, 0.3]),
    )
    params = jax.tree.map(lambda *p: np.stack(p)[None].astype(np.float32), *fields_)
    pose = Transform(Rotation.from_euler("xyz", [20, 5, 7], degrees=True).as_matrix(), np.array([3.0, -1, 4]))
    return Fit(Config((), Affine()), Affine(), params, FRAME, 0.15, partitions=(parts,), initial=initial,
               report={}, alignments=(Alignment(pose, "aligned", 1.0),))  # fmt: skip


def displacement(fit, model, chosen, times=TIMES):
    part = only(model, chosen)
    start = atoms.positions(part)
    return [np.abs(atoms.positions(moved) - start).max() for moved in fit.move(part, times)]


def test_the_larger_body_stands_still_at_every_time_and_the_other_moves(fit, model):
    assert min(displacement(fit, model, "A")) > 2
    found = express(fit, "auto")
    assert max(displacement(found, model, "A")) < SAGITTA + 0.05
    assert displacement(found, model, "B")[-1] > 5
    assert found.still[0].text.startswith("part 1 (") and found.still[0].text in repr(found)


def test_chosen_atoms_stand_still_instead(fit, model):
    found = express(fit, only(model, "B:5-40"))
    assert max(displacement(found, model, "B:5-40")) < SAGITTA + 0.05 < 2 < displacement(found, model, "A")[-1]


def test_only_the_frame_changes(fit, model):
    """Distances within the carried model are the same, and so is its RMSD to any other after superposition."""
    found = express(fit, "auto")
    for ours, theirs in zip(found.move(model, TIMES), fit.move(model, TIMES), strict=True):
        assert ca_displacement(atoms.superpose(ours, theirs), theirs)["max"] < 1e-4
    x = atoms.positions(model)
    np.testing.assert_allclose(found.volume_change(x), fit.volume_change(x), atol=2e-3)
    np.testing.assert_allclose(found.consistency(), fit.consistency(), atol=1e-6)
    start = found.move(model, [0.0])[0]
    np.testing.assert_allclose(atoms.positions(start), x, atol=1e-9)


def test_a_target_is_placed_where_the_carried_model_is(fit):
    """What the flow carries onto the target in its file, before and after."""
    found, x = express(fit, "auto"), fit.initial.origin + np.random.default_rng(1).uniform(0, 60, (20, 3))
    in_file = fit.alignments[0].transform.inverse(fit.carry(x, [1.0])[0])
    np.testing.assert_allclose(found.alignments[0].transform(in_file), found.carry(x, [1.0])[0], atol=1e-6)
    assert "stays still: rotated by" in found.alignments[0].summary


@pytest.mark.parametrize("render, least", [("pull_back", 0.999), ("splat", 0.97)])
def test_frames_show_what_the_model_shows(fit, render, least):
    """A frame is that of the alignment, moved; as near as two interpolations on voxels of 3 Å allow."""
    found = express(fit, "auto")
    both = (each.frames(TIMES, render=render) for each in (found, fit))
    for t, ours, theirs in zip(TIMES, *both, strict=True):
        there = resampled(theirs, fit.initial, found.flow().still.poses([t])[0].transform.inverse)
        assert np.corrcoef(ours.density.ravel(), there.density.ravel())[0, 1] > least
    own = blob(*LARGE) > 0.4
    moved = np.abs(ours.density - fit.initial.density)[own].max()
    assert moved < (0.05 if render == "pull_back" else 1)


def test_functions_for_jax_are_those_of_the_frame(fit):
    found = express(fit, "auto")
    x = ORIGIN + np.random.default_rng(2).uniform(5, 60, (30, 3))
    place = jax.jit(found)
    for t in TIMES:
        np.testing.assert_allclose(place(x, t), found.carry(x, [t])[0], atol=2e-3)  # Å: float32, of a hundred
    for t in (0.0, 0.5):  # at a step's beginning, for points that are still in the part in which they began
        same = fit.partition().part_at(fit.carry(x, [t])[0]) == fit.partition().part_at(x)
        where, slope = jax.jvp(lambda t: place(x, t), (jnp.float32(t),), (jnp.float32(1),))
        velocity = found.velocity(where, t)
        np.testing.assert_allclose(velocity[same], slope[same], atol=0.02)  # Å per unit time, of some twenty
        assert np.abs(slope[same]).max() > 5


def test_a_flat_body_has_one_pose():
    """Its covariance is singular, and neither NumPy nor JAX mirrors it."""
    flat = np.random.default_rng(3).normal(0, 10, (20, 3)) * [1, 1, 0]
    turn = Transform(Rotation.from_euler("xyz", [70, -40, 100], degrees=True).as_matrix(), np.array([5.0, 2, -3]))
    body = StillBody("flat", np.stack([flat, turn(flat)]), np.ones(20))
    np.testing.assert_allclose(body.poses([1.0])[0].transform.matrix, turn.matrix, atol=1e-9)
    np.testing.assert_allclose(body.pose(1.0).rotation, turn.rotation.T, atol=1e-5)
    rate = jax.jvp(body.pose, (jnp.float32(0.5),), (jnp.float32(1),))[1]
    slope = (body.poses([0.501])[0].rotation - body.poses([0.499])[0].rotation) / 0.002
    np.testing.assert_allclose(rate.rotation, slope, atol=1e-3)


@pytest.mark.parametrize(
    "change, still, why",
    [
        (dict(report={"symmetry": {"copies": 2}}), "auto", "symmetric"),
        (dict(failed=("diverged",)), "auto", "failed"),
        ({}, "none", "as asked"),
    ],
)
def test_the_alignments_frame_is_kept_and_why(fit, change, still, why):
    before = replace(fit, **change)
    found = express(before, still)
    assert not found.still[0].present and why in found.still[0].text
    assert found.alignments == before.alignments
    x = fit.initial.origin + np.random.default_rng(1).uniform(0, 60, (20, 3))
    np.testing.assert_array_equal(found.carry(x, TIMES), before.carry(x, TIMES))
    np.testing.assert_array_equal(found.generated().density, before.generated().density)


def test_maps_given_in_one_frame_keep_it_unless_asked(fit):
    assert (
        not express(fit, "auto", shared=True).still[0].present and express(fit, "largest", shared=True).still[0].present
    )


def test_without_a_core_the_whole_is_superposed(fit, model):
    """The least squares of the whole molecule's displacement, by mass."""
    initial, labels = fit.initial, np.random.default_rng(0).integers(1, 13, fit.initial.density.shape, np.int16)
    parts = Partition(labels, initial.voxel_size, initial.origin)
    one = jax.tree.map(lambda p: np.repeat(p[:, :1], 12, 1), fit.params)
    found = express(replace(fit, partitions=(parts,), params=one), "auto")
    assert "as no part has 20 % of the mass" in found.still[0].text
    assert max(displacement(found, model, "A,B")) < SAGITTA + 0.05


def test_bodies_are_searched_for_in_a_flow_without_parts(fit, model):
    """Here the whole molecule turns."""
    one = jax.tree.map(lambda p: p[:, 0], fit.params)
    found = express(replace(fit, partitions=(), params=one), "auto")
    assert "the whole molecule" in found.still[0].text
    assert max(displacement(found, model, "A,B")) < SAGITTA + 0.05


def test_density_is_not_lost_for_the_sake_of_the_frame(fit):
    """The bodies move apart, and both remain in the box only where the target was aligned."""
    fields_ = turned(0, [0, 0, 1], [0.5] * 3, [-12.0, 0, 0]), turned(0, [0, 0, 1], [0.5] * 3, [2.0, 0, 0])
    params = jax.tree.map(lambda *p: np.stack(p)[None].astype(np.float32), *fields_)
    found = express(replace(fit, params=params), "auto")
    assert not found.still[0].present and "would leave the box" in found.still[0].text


def test_a_saved_fit_keeps_its_frame(tmp_path, fit, model):
    found = express(fit, "auto")
    found.save(tmp_path / "fit")
    loaded = Fit.load(tmp_path / "fit", fit.initial)
    assert identical(loaded.still[0].path, found.still[0].path) and identical(loaded.still[0].mass, found.still[0].mass)
    assert loaded.still[0].text == found.still[0].text and loaded.alignments[0].status == found.alignments[0].status
    np.testing.assert_array_equal(loaded.generated().density, found.generated().density)
    for a, b in zip(loaded.move(model, TIMES), found.select([0]).move(model, TIMES), strict=True):
        np.testing.assert_array_equal(atoms.positions(a), atoms.positions(b))


def test_seeds_are_compared_in_one_frame(fit):
    """A fit that differs by a rigid motion of all, and is in a frame of its own, does not differ."""
    found = express(fit, "auto")
    _, apart = found.spread([express(fit, "largest"), fit])
    assert apart.max() < 1e-4


def test_what_cannot_stay_still_is_refused(fit, model):
    line = only(model, "A:1-2")
    far = model.clone()
    far[0][0][0][0].pos = gemmi.Position(0, 0, 0)
    for still, symmetry, said in (
        ("some", None, "nothing can stay still as 'some'"),
        ("largest", "C2", "a symmetric assembly keeps its axes"),
        (line, None, "define no frame"),
        (far, None, "1 of 80 atoms that stay still lie outside"),
    ):
        with pytest.raises(InputError, match=said):
            Options(still=still, symmetry=symmetry).check(fit.initial, False)
