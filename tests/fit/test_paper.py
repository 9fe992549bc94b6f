"""The published recipe has the constants of the paper's tables, and takes parts, rigidity, bins and several targets."""

import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drift

from cryotrans_jax.core import losses, transport
from cryotrans_jax.core.flow import Field
from cryotrans_jax.core.train import carry
from cryotrans_jax.core.velocity import Velocity
from cryotrans_jax.density.thresholds import carried_mass
from cryotrans_jax.fit import prepare
from cryotrans_jax.fit.levels import Sampling, make_levels
from cryotrans_jax.fit.morph import configure
from cryotrans_jax.fit.options import Options, Thresholds
from cryotrans_jax.fit.recipes import Paper, Schedule, paper
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.fit.schedule import Fitting, run
from cryotrans_jax.fit.stage import Config, Stage, Supervision, stage_inputs
from cryotrans_jax.fit.state import initial_state
from cryotrans_jax.fit.terms import L2, W2, PublishedRigidity
from cryotrans_jax.io.files import InputError
from cryotrans_jax.motion.partition import Partition
from experiments import systems

PUBLISHED = Path(__file__).parents[3] / "shared" / "design" / "method.md"  # the paper's tables, where they are at hand
TABLE = """
| TmrAB (6RAH → 6RAI) | 160 | 2000 + 15000; 0.24/0.24 | 4000; 0.24/0.24 | 2000; 0.24/0.3 |
| PCAT1 (7T55 → 7T57) | 140 | 2000 + 20000; 0.24/0.24 | 10000; 0.24/0.24 | 1000; 0.24/0.2 |
| prestin (7V73 → 7V75) | 140 | 2000 + 10000; 0.24/0.24 | 5000; 0.24/0.24 | 5000; 0.24/0.2 |
| Mm-cpn (3J03, 3IYF) | 96 | width 900, 5000 + 50000; 0.24/0.24 | width 900, 7000; 0.24/0.24 | width 900, 1000 then 2000 at 1e-4; 0.2/0.05 |
"""  # noqa: E501
CONSTANTS = {  # where the method's table has each, and its value
    r"hidden layers, width (\d+)": 100,
    r"MLP, (\d) hidden layers": 2,
    r"leaky ReLU slope ([\d.]+)": 0.01,
    r"weights N\(0, ([\d.]+)²\)": 0.01,
    r"M = (\d+) steps": 10,
    r"ε = ([\de-]+)": 1e-4,
    r"(\d) Sinkhorn iterations": 5,
    r"Adam, learning rate ([\de-]+)": 1e-3,
    r"voxel differences, learning rate ([\de-]+)": 1e-4,
    r"log of max\(a, ([\de-]+)\)": 1e-20,
}


def rows(text):
    """Box and settings of each system and resolution in a table such as `TABLE`."""
    found = {}
    for name, ids, box, *cells in re.findall(
        r"\| (\S+?),? [^|]*?\((.*?)\) \| (\d+) \| (.*?) \| (.*?) \| (.*?) \|\n", text
    ):
        for resolution, cell in zip((3.0, 5.0, 7.0), cells, strict=True):
            steps, levels = cell.split("; ")
            width = re.match(r"width (\d+), ", steps)
            first, then, squared = re.search(r"(\d+)(?: then (\d+) at 1e-4)?(?: \+ (\d+))?$", steps).groups()
            stages = [("w2", int(first), 1e-3)]
            stages += [(loss, int(n), 1e-4) for loss, n in (("w2", then), ("l2", squared)) if n]
            thresholds = tuple(map(float, levels.split("/")))
            models = tuple(re.findall(r"\w{4}", ids))
            settings = models, int(box), tuple(stages), thresholds, int(width[1]) if width else 100
            found[name, resolution] = settings
    return found


def test_the_copies_of_the_papers_tables_are_true():
    if not PUBLISHED.is_file():
        pytest.skip("needs the paper's tables in ../shared/design/method.md")
    text = PUBLISHED.read_text().split("## 2.")[0]
    assert rows(text) == rows(TABLE)
    for pattern, value in CONSTANTS.items():
        assert [float(found) for found in re.findall(pattern, text)] == [value], pattern


@pytest.mark.parametrize("name, resolution", rows(TABLE))
def test_a_published_fit_has_the_papers_settings(problem, name, resolution):
    models, box, stages, thresholds, width = rows(TABLE)[name, resolution]
    system = systems.find_system(name)
    recipe = system.recipe(resolution)
    assert (system.initial.model, system.target.model, system.box) == (*models, box)
    assert (recipe.stages, recipe.thresholds, recipe.width) == (stages, thresholds, width)
    config = paper(problem, schedule=Schedule(recipe.stages, recipe.width))
    made = [(s.label, s.steps, s.learning_rate, s.final_learning_rate) for s in config.stages]
    assert made == [(loss, steps, rate, rate) for loss, steps, rate in stages]
    used = next(term for term in config.stages[0].terms if isinstance(term, W2))
    assert len(rows(TABLE)) == 12 and all(len(stage.terms) == 1 for stage in config.stages)  # no rigidity
    network = config.field.network
    values = width, network.depth, network.slope, network.init_std, config.field.steps, used.epsilon, used.iterations
    assert (network.width, *values[1:]) == (width, *[*CONSTANTS.values()][1:7])
    assert (network.centre, network.waves, used.window) == (0, 0, None) and transport.TINY == 1e-20
    if name == "TmrAB":  # whose steps are those of all systems without their own
        blurs = np.full(1, 0.225**2 * (resolution**2 - 3.0**2))
        own = paper(replace(problem.select([0]), blurs=blurs), resolutions=[resolution])
        assert own == config


def test_masses_are_those_of_the_paper(maps):
    """Nothing below the threshold, the initial map divided by its maximum, the target scaled to its total."""
    levels = [0.2 * float(map_.density.max()) for map_ in maps[:2]]
    problem = prepare.prepare(
        maps[0], [maps[1]], thresholds=Thresholds(levels[0], levels[1]), rules=prepare.Preparation(whole_box=True)
    )
    for map_, level, mass in zip(maps, levels, (problem.initial, *problem.targets), strict=False):
        kept = carried_mass(map_.density, level)
        assert not kept[map_.density < level].any()
        here = mass[tuple(slice(0, n) for n in kept.shape)]
        np.testing.assert_allclose(here / here.max(), kept / kept.max(), rtol=1e-5)
    assert problem.initial.max() == 1
    assert problem.targets[0].sum(dtype=float) == pytest.approx(problem.initial.sum(dtype=float), rel=1e-5)


FIELD, CARRY = Field(Velocity(width=8, centre=0.5, init_std=0.3), 2), jax.jit(carry)
MAP, STRAIN = jax.jit(lambda term, carried: term.carried_map(carried)), jax.jit(losses.rigidity)


@pytest.fixture(scope="module")
def divided(problem, maps):
    """One target, the labels of the chain's two halves, and parameters of a field for each."""
    z = maps[0].origin[2] + np.arange(maps[0].density.shape[2]) * maps[0].voxel_size[2]
    labels = np.where(z > 66.0, 2, 1) * np.ones(maps[0].density.shape, int)
    params = [jax.tree.map(lambda p: np.asarray(p)[0], initial_state(FIELD, seed, 1).params) for seed in (1, 2)]
    return problem.select([0]), labels, params


def pieces(alone, labels, params, bin_):
    """Each part's carried points, and its tetrahedra, as if it were alone."""
    own = alone.divide([labels])
    for number, field in enumerate(params, 1):
        part = replace(alone, initial=np.where(own.labels[0] == number, alone.initial, 0))
        (level,) = make_levels(part, FIELD, Sampling(bin_, bin_, 0.0, True))
        yield CARRY(field, level.scene), level


@pytest.mark.parametrize("bin_, beside", [(1, W2(1e-4)), (2, L2())], ids=["w2", "l2"])
def test_parts_are_added_before_the_loss_and_each_is_rigid_by_its_own_weight(divided, bin_, beside):
    """Equations 8 to 15, with the published losses on maps that are divided by the initial map's maximum."""
    alone, labels, params = divided
    weights = 0.3, 2.0
    stage = Stage((beside, PublishedRigidity(1.0, beside)), 1, 1e-3, 1e-3, bin=bin_, sampling=bin_)
    scene, (data, rigid) = stage_inputs(alone.divide([labels], weights), FIELD, stage).of_target(0)
    carried = CARRY(jax.tree.map(lambda *p: np.stack(p), *params), scene)
    each = [*pieces(alone, labels, params, bin_)]
    added = sum(np.asarray(MAP(data, own)) for own, _ in each)
    np.testing.assert_allclose(MAP(data, carried), added, atol=1e-5 * added.max())
    strains = [STRAIN(own.nodes, *map(jnp.asarray, level.tetrahedra[:2])) for own, level in each]
    expected = sum(weight * float(strain) for weight, strain in zip(weights, strains, strict=True))
    target = np.asarray(data.target) / bin_**3  # averages
    scale = target.sum() if isinstance(beside, W2) else (target**2).sum()
    assert float(min(strains)) > 1e-3
    assert float(rigid(carried)) * scale == pytest.approx(expected, rel=1e-3)


def test_one_weight_without_parts_is_that_of_the_whole(divided, maps):
    alone, labels, params = divided
    beside = W2(1e-4)
    config = configure(alone, Options("paper", parts=None, part_rigidity=(0.7,)))
    assert {stage.terms for stage in config.stages} == {(term, PublishedRigidity(0.7, term)) for term in (beside, L2())}
    scene, (_, rigid) = stage_inputs(alone, FIELD, config.stages[0]).of_target(0)
    carried = CARRY(params[0], scene)
    expected = 0.7 * STRAIN(carried.nodes, rigid.tetrahedra, rigid.edges)
    assert float(rigid(carried)) * alone.targets[0].sum() == pytest.approx(float(expected), rel=1e-3)
    parts = Partition(labels, maps[0].voxel_size, maps[0].origin)
    of_parts = configure(alone, Options("paper", parts=parts, part_rigidity=(2.0, 3.0)))
    assert {term.weight for stage in of_parts.stages for term in stage.terms[1:]} == {1.0}  # times that of each part
    assert all(len(stage.terms) == 1 for stage in configure(alone, Options("paper", parts=parts)).stages)
    Options("paper", part_rigidity=(0.7,)).check(maps[0], False)
    Options(config, part_rigidity=(0.7,)).check(maps[0], False)  # a run that is repeated
    with pytest.raises(InputError, match="part_rigidity is only for given parts"):
        Options("paper", part_rigidity=(0.7, 1.0)).check(maps[0], False)


def test_stages_go_from_coarse_to_fine(problem):
    schedule = Schedule((("w2", 3, 1e-3, 4), ("w2", 3, 1e-3, 1), ("w2", 3, 1e-3)))
    assert [(s.bin, s.sampling) for s in paper(problem, bin=2, schedule=schedule).stages] == [(4, 4), (1, 1), (2, 2)]
    for stage, sentence in ((("w2", 3, 1e-3, 3), "cannot be binned by 3"), (("w3", 3, 1e-3), "no loss 'w3'")):
        with pytest.raises(InputError, match=sentence):
            paper(problem, schedule=Schedule((stage,)))


SQUARED = Stage((L2(),), 10, 3e-3, 3e-3, bin=2, sampling=2)
SECOND = replace(SQUARED, steps=5)
UNEQUAL = Config(
    (replace(SQUARED, target_steps=(6, 10)), replace(SECOND, target_steps=(5, 0))), FIELD, Supervision(chunk=4)
)


@pytest.mark.parametrize("target, own", [(0, (replace(SQUARED, steps=6), SECOND)), (1, (SQUARED,))])
def test_a_target_of_fewer_steps_ends_as_it_would_alone(two, unequal, target, own):
    """It stays as it is while the others go on, and through a stage in which it has no step."""
    config = replace(UNEQUAL, schedule=own)
    alone = run(Fitting.begin(two.select([target]), config))
    for a, b in zip(*(jax.tree.leaves(fit.state.params) for fit in (unequal, alone)), strict=True):
        np.testing.assert_allclose(a[target], b[0], atol=drift(config))
    for a, b in zip(unequal.history, alone.history, strict=False):
        np.testing.assert_allclose(a[: len(b), target], b[:, 0], rtol=1e-3)
        assert len(set(a[len(b) :, target].tolist())) <= 1


@pytest.fixture(scope="module")
def unequal(two):
    """The fit of two targets with different numbers of steps."""
    return run(Fitting.begin(two, UNEQUAL))


def test_steps_of_targets_are_scaled_selected_and_checked(problem):
    half = UNEQUAL.scaled(0.5).stages
    assert [(s.steps, s.target_steps) for s in half] == [(5, (3, 5)), (2, (2, 0))]
    assert [s.target_steps for s in UNEQUAL.select([1, 0, 0]).stages] == [(10, 6, 6), (0, 5, 5)]
    with pytest.raises(InputError, match="a stage has steps for 2 targets, and there are 1"):
        configure(problem.select([0]), Options(UNEQUAL))


def test_frames_are_made_as_the_recipe_has_them_or_as_the_user_asks(problem, maps):
    """By splatting in the paper's recipe, which keeps the mass; the other one keeps negative density about it too."""
    assert (
        configure(problem, Options(Paper(4))).render == "splat" and configure(problem, Options()).render == "pull_back"
    )
    params = jax.tree.map(np.zeros_like, initial_state(FIELD, 0, 1).params)  # nothing moves
    published = Fit(Config((), FIELD, render="splat"), FIELD, params, problem.frame, 0.01, initial=maps[0])
    ours = replace(published, config=replace(published.config, render="pull_back"))
    kept, pulled = published.generated().density, ours.generated().density
    carried = carried_mass(maps[0].density, 0.01)
    np.testing.assert_allclose(kept, carried, atol=1e-3 * carried.max())  # places in float32
    assert not kept[carried == 0].max() > 1e-3 * carried.max() and pulled[carried == 0].max() > 0
    np.testing.assert_array_equal(next(ours.frames([1.0], render="splat")).density, kept)
    np.testing.assert_array_equal(published.generated(render="pull_back").density, pulled)
