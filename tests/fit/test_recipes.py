"""The paper's recipe has the paper's constants; the default one fits any voxel size."""

from dataclasses import replace

import numpy as np
import pytest

from cryotrans_jax.fit import prepare
from cryotrans_jax.fit.backbone import Backbone
from cryotrans_jax.fit.better_end import KeepStart
from cryotrans_jax.fit.better_start import KeepBetterStart
from cryotrans_jax.fit.bodies import DockBodies, FindRigidBodies, RedrawBorders
from cryotrans_jax.fit.optimisers import Adam
from cryotrans_jax.fit.recipes import Schedule, default, paper, power_of_two
from cryotrans_jax.fit.stage import Action, Stage, stage_inputs
from cryotrans_jax.fit.targets import Balance
from cryotrans_jax.fit.terms import L2, W2, Correspondences, Matched, Rigidity
from cryotrans_jax.io.maps import Map


@pytest.mark.parametrize(
    "resolutions, steps",
    [
        ((3.0, 3.0), (2000, 15000)),
        ((3.0, 5.0), (4000,)),
        ((3.0, 7.0), (2000,)),
        ((3.0, 12.0), (2000,)),
        ((7.0, 7.0), (2000, 15000)),
        ((7.0, 3.0), (2000,)),
        ((3.0, 4.6), (4000,)),
        ((7.0, 4.1), (4000,)),
        ((7.0, 5.9), (4000,)),
        ((7.0, 3.9), (2000,)),
        ((3.0, None), (2000,)),
    ],
)
def test_the_papers_recipe_has_its_constants(problem, resolutions, steps):
    initial, target = resolutions
    problem = replace(problem, blurs=0.225**2 * ((target or 7.0) ** 2 - initial**2) * np.ones(2))
    config = paper(problem.select([0]), seed=7, resolutions=[target])
    assert tuple(s.steps for s in config.stages) == steps
    assert [s.terms for s in config.stages] == [(W2(1e-4, 5, None),), (L2(),)][: len(steps)]
    assert [(s.learning_rate, s.final_learning_rate) for s in config.stages] == [(1e-3,) * 2, (1e-4,) * 2][: len(steps)]
    network = config.field.network
    assert (network.width, network.depth, config.field.steps, network.centre, config.seed) == (100, 2, 10, 0.0, 7)
    # no lattice, at every voxel, all steps, and nothing between the stages
    assert all((s.bin, s.sampling, s.spacing, s.patience) == (1, 1, 0, 0) for s in config.stages)
    assert config.schedule == config.stages


@pytest.mark.parametrize("factor", [2, 4])
def test_the_papers_recipe_bins_points_and_grid_alike(problem, factor):
    problem = replace(problem, blurs=np.zeros(2))
    config = paper(problem, bin=factor, resolutions=(3.0, 3.0))
    assert len(config.stages) == 2 and all(s.bin == s.sampling == factor for s in config.stages)


@pytest.mark.parametrize(
    "wanted, factor", [(0.3, 1), (1.3, 1), (1.5, 2), (2.7, 2), (3.0, 4), (5.0, 4), (7.0, 8), (50.0, 8)]
)
def test_whole_factor_is_the_nearest_power_of_two_that_divides_the_crop(wanted, factor):
    assert power_of_two(wanted) == factor and prepare.CROP_MULTIPLE % factor == 0


@pytest.mark.parametrize("size", [0.5, 1.07, 2.0, 4.3])
def test_the_default_recipe_fits_the_crop_at_any_voxel_size(maps, size):
    """Its grids are whole numbers of voxels, go from coarse to fine, and carry all mass."""
    stretched = [Map(m.density, m.voxel_size * size / 2, m.origin) for m in maps[:2]]
    problem = prepare.prepare(*stretched[:1], stretched[1:])
    config = default(problem, seed=4)
    first, *matched = config.stages
    assert config.seed == 4 and first.label == "points" and {s.label for s in matched} == {"matched"}
    edge, network = problem.frame.edge, config.field.net
    assert network.wave_number * 20.0 == pytest.approx(edge)  # a radian in 20 Å, whatever the box
    assert np.all(np.diff([s.bin for s in config.stages]) <= 0)
    (other,) = (item.other for item in config.schedule if isinstance(item, KeepBetterStart))
    assert (other.bin, other.sampling) == (first.bin, first.sampling)
    # the entropy blurs by a little less than a voxel
    assert other.terms[0].epsilon * edge**2 == pytest.approx(0.45 * (first.bin * size) ** 2)
    if 0.5 <= size <= 4:  # as near to 4 Å as powers of two allow
        assert 4 / np.sqrt(2) <= first.bin * size <= 4 * np.sqrt(2) * (1 + 1e-9)
    for stage in config.stages:
        assert not (np.array(problem.initial.shape) % stage.bin).any() and stage.bin == stage.sampling
        scene, (term, *_) = stage_inputs(problem, config.field, stage).of_target(0)
        assert scene.rho.sum() == pytest.approx(problem.initial.sum(dtype=float), rel=1e-5)  # float32
        shape, voxel = np.array(problem.initial.shape) // stage.bin, stage.bin * problem.voxel_size / edge
        if stage is first:
            assert term.ends.shape == scene.x.shape
        else:
            assert term.target.shape == tuple(shape)
            np.testing.assert_allclose(term.voxel, voxel, rtol=1e-5)
            np.testing.assert_allclose(term.corner, problem.corner, rtol=1e-5)
        inside = (np.asarray(scene.x) - problem.corner) / voxel
        assert (inside > 0).all() and (inside < shape).all()


def test_the_default_recipe_is_the_one_that_results_were_measured_with(problem):
    """On 1 Å voxels: correspondences, then L2 on voxels of 2 and 1 Å, each of which ends where the next one begins."""
    one = replace(problem, voxel_size=np.ones(3))
    config = default(one, seed=3)
    table = [(s.label, s.steps, s.learning_rate, s.final_learning_rate, s.bin) for s in config.stages]
    assert table == [
        ("points", 175, 3e-3, 1e-5, 4),
        ("matched", 125, 4e-3, 5e-4, 2),
        ("matched", 50, 5e-4, 1e-4, 2),
        ("matched", 125, 5e-4, 1e-4, 2),
        ("matched", 75, 1e-3, 5e-4, 1),
        ("matched", 150, 1e-3, 2e-5, 1),
    ]
    assert config.optimiser == Adam(b2=0.9)
    first, *matched = config.stages
    assert first.terms == (Correspondences(reach=2.0), Rigidity(10.0, slip=0.03)) and first.spacing == 0.0
    # what the target lacks is downweighted gradually in the first stage
    assert [s.terms for s in matched] == [
        (Matched(2.0, 0.0, 1.0), Rigidity(1.0, 0.03)),
        (Matched(4.0, 1.0, 1.0), Rigidity(1.0, 0.03, balanced=True), Backbone()),
        (Matched(2.0, 1.0, 1.0), Rigidity(1.0, 0.03, balanced=True), Backbone()),
        (Matched(1.0, 1.0, 1.0), Rigidity(1.0, 0.03, balanced=True), Backbone()),
        (Matched(0.0, 1.0, 1.0), Rigidity(1.0, 0.03, balanced=True), Backbone()),
    ]
    assert {s.patience for s in matched} == {2}
    places = [(k, item) for k, item in enumerate(config.schedule) if isinstance(item, Action)]
    (_, start), _, (_, docked), *_ = places
    kinds = [(1, KeepBetterStart), (3, FindRigidBodies), (4, DockBodies), (7, RedrawBorders), (10, KeepStart)]
    assert [(k, type(item)) for k, item in places] == kinds
    other = start.other
    assert (other.steps, other.learning_rate, other.final_learning_rate) == (90, 2e-3, 2e-4)
    assert other.terms[0].window == 7 and (start.distance, start.mass, start.trial_steps) == (3.0, 0.02, 50)
    soft = Rigidity(1.0, 0.03, balanced=True, balance=Balance(noisy_slip=0.03))
    unblurred = Matched(0.0, 1.0, 1.0), soft, Backbone()  # details tell bodies apart
    assert docked.trial == replace(matched[2], terms=unblurred, steps=25, learning_rate=1e-3, patience=0)
    assert (config.field.net.waves, config.field.net.centre, config.field.euler_steps) == (32, 0.5, 5)


@pytest.mark.parametrize("size, wide, narrow", [(1.0, 5.0, 4.0), (0.5, 5.0, 2.5), (2.0, 5.0, 4.0), (4.0, 6.0, 6.0)])
def test_nodes_of_the_lattice_are_five_and_four_angstroms_apart_or_some_voxels(problem, size, wide, narrow):
    """No further than 2.5 of a stage's voxels (nor in the last stages 4 of the map's), and on wide voxels 1.5 of them
    at least."""
    config = default(replace(problem, voxel_size=np.full(3, size)))
    assert [s.spacing for s in config.stages[1:]] == [wide] * 3 + [narrow] * 2


def of_mass(inside):
    """What a problem of this mass, in the initial map and in the target, holds."""
    noise = np.zeros((1, 1))
    return dict(initial=inside, molecule=inside > 0, targets=inside[None], densities=inside[None], noise=noise)


def test_large_molecules_on_wide_voxels_have_no_more_nodes_than_can_be_paid_for(problem):
    """60³ voxels of 4 Å: at 20 000 nodes these are 9 Å apart."""
    inside = np.zeros((72, 72, 72), np.float32)
    inside[:60, :60, :60] = 1
    large = replace(problem, **of_mass(inside), voxel_size=np.full(3, 4.0))
    for stage in default(large).stages[1:]:
        assert (60 * 4.0 / stage.spacing) ** 3 == pytest.approx(20_000)


@pytest.mark.parametrize("blur", [2.0, -2.0])
def test_each_target_of_the_papers_recipe_has_the_steps_of_its_resolution(problem, blur):
    """Squared differences are for a target of the initial map's resolution alone."""
    mixed = paper(replace(problem, blurs=np.array([0.0, blur])), resolutions=[3.0, 5.0])
    assert [(s.label, s.steps, s.target_steps) for s in mixed.stages] == [
        ("w2", 4000, (2000, 4000)),
        ("l2", 15000, (15000, 0)),
    ]
    for target, (resolution, own) in enumerate(((3.0, 0.0), (5.0, blur))):
        alone = paper(replace(problem.select([target]), blurs=np.array([own])), resolutions=[resolution])
        own_steps = [stage.target_steps[0] for stage in mixed.select([target]).stages]
        assert [n for n in own_steps if n] == [stage.steps for stage in alone.stages]
    passed = replace(problem, waypoints=(0.5,), blurs=np.array([0.0, blur]))
    assert [s.label for s in paper(passed, resolutions=[3.0]).stages] == ["w2"]
    same = paper(replace(problem, blurs=np.zeros(2)), resolutions=[3.0, 3.0])
    assert [(s.label, s.target_steps) for s in same.stages] == [("w2", ()), ("l2", ())]


def test_a_schedule_replaces_the_papers_steps(problem):
    config = paper(problem, bin=2, schedule=Schedule((("w2", 70, 3e-3), ("l2", 80, 2e-4)), width=30))
    assert config.schedule == (
        Stage((W2(1e-4),), 70, 3e-3, 3e-3, bin=2, sampling=2),
        Stage((L2(),), 80, 2e-4, 2e-4, bin=2, sampling=2),
    )
    assert config.field.network.width == 30
    assert paper(problem, schedule=Schedule(width=7)).field.network.width == 7


@pytest.mark.parametrize("passed, steps", [((), 5), ((0.5,), 10), ((0.2, 0.4, 0.6, 0.8, 0.9), 12)])
def test_a_path_by_waypoints_has_two_steps_or_more_between_them(problem, passed, steps):
    assert default(replace(problem, waypoints=passed)).field.euler_steps == steps
    assert not passed or steps >= 2 * (len(passed) + 1)


@pytest.mark.parametrize("filled, factor", [(20, 4), (56, 4), (60, 8)])
def test_large_molecules_have_no_more_points_that_follow_the_correspondences(problem, filled, factor):
    """At 1 Å a voxel: 60³ / 4³ = 3375 points would be too many, so that these are 8 Å apart."""
    inside = np.zeros((72, 72, 72), np.float32)
    inside[:filled, :filled, :filled] = 1
    large = replace(problem, **of_mass(inside), voxel_size=np.ones(3))
    first = default(large).stages[0]
    assert first.bin == first.sampling == factor
