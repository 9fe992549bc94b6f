"""Point groups are groups; a flow fitted to one unit commutes with them, and so do its frames and models."""

import itertools
from dataclasses import replace

import cxc
import gemmi
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import bent_chain, rounding
from scipy import ndimage
from scipy.spatial.transform import Rotation

import cryotrans_jax as ct
from cryotrans_jax.core.flow import Field
from cryotrans_jax.density import similarity, simulation, symmetry, thresholds
from cryotrans_jax.density.symmetry import Symmetry
from cryotrans_jax.density.transform import Transform, resampled
from cryotrans_jax.fit import levels, prepare, recipes
from cryotrans_jax.fit.options import Resolutions
from cryotrans_jax.io import atoms, structures
from cryotrans_jax.scores import metrics

ORDERS = {"C1": 1, "C2": 2, "C5": 5, "D2": 4, "d7": 14, "T": 12, "O": 24, "I": 60}
CENTRE, AXIS = np.array([3.0, -2.0, 5.0]), np.array([1.0, 2.0, -0.5])
VOXEL = np.full(3, 2.2)


def moved_by(operator, model):
    return operator(atoms.positions(model))


def from_each_to_nearest(a, b):
    """The largest distance from a position of one set to the nearest of another."""
    return max(np.linalg.norm(b - x, axis=1).min() for x in a)


# ------------------------------------------------------------------------------------------------------------ groups


@pytest.mark.parametrize("name", ORDERS)
def test_named_groups_are_groups_of_rotations_about_the_centre(name):
    group = Symmetry.named(name, CENTRE, AXIS)
    assert len(group.operators) == ORDERS[name] and group.is_group
    np.testing.assert_allclose(group.operators[0].matrix, np.eye(4), atol=1e-12)
    for operator in group.operators:
        np.testing.assert_allclose(operator.rotation @ operator.rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(operator.rotation) > 0
        np.testing.assert_allclose(operator(CENTRE[None])[0], CENTRE, atol=1e-12)
        np.testing.assert_allclose(operator(group.centre[None])[0], group.centre, atol=1e-12)
    regained = symmetry.closure([one.rotation for one in group.generators])
    assert len(regained) == ORDERS[name] and len(group.generators) <= 2  # enough for any rotations about a point


GOLDEN = (1 + 5**0.5) / 2


@pytest.mark.parametrize(
    "name, axis, fold",
    [("C5", AXIS, 5), ("d7", AXIS, 7), ("T", (0, 0, 1), 2), ("O", (1, 0, 0), 4), ("I", (0, 1, 0), 2)]
    + [("T", (1, 1, 1), 3), ("O", (1, 1, 1), 3), ("I", (1, 1, 1), 3), ("I", (0, 1, GOLDEN), 5)],
)
def test_the_groups_have_the_axes_that_are_documented(name, axis, fold):
    turn = Rotation.from_rotvec(2 * np.pi / fold * np.array(axis) / np.linalg.norm(axis)).as_matrix()
    found = Symmetry.named(name, CENTRE, AXIS).operators
    assert min(np.abs(operator.rotation - turn).max() for operator in found) < 1e-12


def test_the_axis_is_left_alone_and_across_it_are_the_twofold_ones():
    along = AXIS / np.linalg.norm(AXIS)
    group = Symmetry.named("D3", CENTRE, AXIS)
    kept = [operator.rotation @ along @ along for operator in group.operators]
    np.testing.assert_allclose(np.sort(kept), [-1, -1, -1, 1, 1, 1], atol=1e-12)


def test_there_are_only_these_groups():
    for name in ("C0", "E3", "", "D", "T2"):
        with pytest.raises(ct.InputError, match="there is no symmetry"):
            Symmetry.named(name)
    with pytest.raises(ct.InputError, match="has no direction"):
        Symmetry.named("C3", axis=(0, 0, 0))


def test_a_files_assembly_is_read_and_one_that_is_no_point_group_told(tmp_path, maps):
    wanted = Symmetry.named("C3", CENTRE, AXIS)
    for operators, is_group in ((wanted.operators, True), (wanted.operators[:2], False)):
        model, assembly = bent_chain(0.0), gemmi.Assembly("1")
        generator = gemmi.Assembly.Gen()
        for operator in operators:
            one = gemmi.Assembly.Operator()
            one.transform = gemmi.Transform(gemmi.Mat33(operator.rotation.tolist()), gemmi.Vec3(*operator.shift))
            generator.operators.append(one)
        generator.chains = ["A"]
        assembly.generators.append(generator)
        model.assemblies.append(assembly)
        model.make_mmcif_document().write_file(str(tmp_path / "model.cif"))
        found = Symmetry.of(str(tmp_path / "model.cif"), maps[0])
        for a, b in zip(found.operators, operators, strict=True):
            np.testing.assert_allclose(a.matrix, b.matrix, atol=1e-3)  # as the file rounds them
        assert found.is_group == is_group
    with pytest.raises(ct.InputError, match="2 operators of model.cif are not a point group"):
        found.check(maps[0], "initial map")
    atoms.write_model(tmp_path / "none.cif", bent_chain(0.0))
    with pytest.raises(ct.InputError, match="has no biological assembly"):
        Symmetry.from_file(tmp_path / "none.cif")


ATOM = "ATOM      1  CA  ALA A   1      48.000  48.000  48.000  1.00  0.00           C\n"
NAMED = "REMARK 350 BIOMOLECULE: {}\nREMARK 350 APPLY THE FOLLOWING TO CHAINS: A\n"


def biomt(number, matrix):
    """The lines of REMARK 350 for an operator (3, 4)."""
    return "".join(
        f"REMARK 350   BIOMT{k}{number:4d}{row[0]:10.6f}{row[1]:10.6f}{row[2]:10.6f}{row[3]:15.5f}\n"
        for k, row in enumerate(matrix, 1)
    )


TURNED = np.array([[-1.0, 0, 0, 5], [0, -1, 0, 7], [0, 0, 1, 0]])  # about an axis along z
IDENTITY = np.eye(3, 4)


@pytest.mark.parametrize(
    "header, message",
    [
        ("REMARK 350 BIOMOLECULE: 1\n", "has an assembly without operators"),
        (NAMED.format(1), "has an assembly without operators"),
        (NAMED.format(1) + biomt(1, IDENTITY)[:60] + "\n", "without operators"),
        (NAMED.format(1) + biomt(1, IDENTITY) + biomt(2, 2 * TURNED), "is not a rotation"),
        (NAMED.format(1) + biomt(1, IDENTITY) + biomt(2, -TURNED), "is not a rotation"),  # a mirror
        ("REMARK 350\n", "has no biological assembly"),
        ("", "has no biological assembly"),
    ],
)
def test_a_header_with_a_part_of_an_assembly_is_explained(tmp_path, header, message):
    (tmp_path / "a.pdb").write_text(header + ATOM + "END\n")
    with pytest.raises(ct.InputError, match=rf"a\.pdb .*{message}"):
        Symmetry.from_file(tmp_path / "a.pdb")


def test_the_first_assembly_with_operators_counts(tmp_path):
    header = NAMED.format(1) + NAMED.format(2) + biomt(1, IDENTITY) + biomt(2, TURNED)
    (tmp_path / "a.pdb").write_text(header + ATOM + "END\n")
    found = Symmetry.from_file(tmp_path / "a.pdb")
    assert found.is_group and len(found.operators) == 2
    np.testing.assert_allclose(found.centre, [2.5, 3.5, 0])


@pytest.mark.parametrize("left_out", ["_pdbx_struct_assembly", "_pdbx_struct_assembly_gen", "_pdbx_struct_oper_list"])
def test_an_mmcif_file_with_a_part_of_an_assembly_is_explained(tmp_path, left_out):
    text = NAMED.format(1) + biomt(1, IDENTITY) + biomt(2, TURNED) + ATOM + "END\n"
    document = gemmi.read_pdb_string(text).make_mmcif_document()
    block = document.sole_block()
    block.find_mmcif_category(f"{left_out}.").erase()
    document.write_file(str(tmp_path / "a.cif"))
    with pytest.raises(ct.InputError, match="no biological assembly|without operators"):
        Symmetry.from_file(tmp_path / "a.cif")


@pytest.mark.parametrize("name", ["C2", "C5", "D3", "O"])
def test_the_units_shares_add_up_to_one_over_its_copies(name):
    group, x = Symmetry.named(name, CENTRE, AXIS), np.random.default_rng(0).normal(CENTRE, 20, (2000, 3))
    total = sum(group.unit_weights(operator(x), 1.0) for operator in group.operators)
    np.testing.assert_allclose(total, 1, atol=1e-9)
    far = group.unit_weights(x, 1e-3)  # a sharp border: each position belongs to one copy
    assert far.mean() == pytest.approx(1 / len(group.operators), rel=0.2)
    np.testing.assert_allclose(group.unit_weights(CENTRE[None], 1.0), 1 / len(group.operators))


@pytest.mark.parametrize("width", [0.5, 1.0, 3.0])
def test_a_units_border_is_a_plane_over_which_its_share_fades_within_the_width(width):
    """For a half turn the share is 1 / (1 + exp(-d / width)) at the distance d from a plane through the axis."""
    group = Symmetry.named("C2", CENTRE, AXIS)
    x = np.random.default_rng(1).normal(CENTRE, 3 * width, (500, 3))
    share = group.unit_weights(x, width)
    kept = (share > 0.02) & (share < 0.98)  # a share of a hundredth is left out
    slope, _, rank, _ = np.linalg.lstsq(x[kept] - CENTRE, np.log(share[kept] / (1 - share[kept])), rcond=None)
    assert rank == 3 and np.linalg.norm(slope) == pytest.approx(1 / width) and abs(slope @ AXIS) < 1e-6
    np.testing.assert_allclose(share[kept], 1 / (1 + np.exp(-(x[kept] - CENTRE) @ slope)), atol=1e-9)


@pytest.mark.parametrize("turn, shift, same", [(5e-3, 0.05, True), (2e-2, 0.0, False), (0.0, 0.2, False)])
def test_operators_that_differ_by_what_files_round_are_one(turn, shift, same):
    """By a hundredth in the rotation, and by a tenth of an Å in the shift."""
    one = Symmetry.named("C3", CENTRE, AXIS).operators[1].matrix
    off = np.zeros((4, 4))
    off[1, 0], off[2, 3] = turn, shift
    assert symmetry.contains(one + off, [np.eye(4), one]) == symmetry.contains(one - off, [one]) == same
    assert symmetry.contains((one + off)[:3, :3], [np.eye(3), one[:3, :3]]) == (turn < 1e-2)


def test_chains_of_an_assembly_have_names_of_one_letter_and_then_of_two():
    names = list(itertools.islice(structures.chain_names(), 62 + 62**2 + 1))
    assert len(set(names)) == len(names)
    assert [len(name) for name in names] == [1] * 62 + [2] * 62**2 + [3]
    assert (names[:2], names[61], names[62:64]) == (["A", "B"], "9", ["AA", "AB"])


# ----------------------------------------------------------------------------------------------- maps, models and fits


def unit(turn):
    """A unit beside the axis along z through the origin."""
    model = bent_chain(turn)
    middle = atoms.positions(bent_chain(0.0)).mean(0)
    return Transform(np.eye(3), np.array([14.0, 1.0, 6.0]) - middle).move(model)


@pytest.fixture(scope="module")
def pair():
    """C2 assemblies of two states, their maps on one grid whose middle is not on the axis, and the group."""
    group = Symmetry.named("C2")
    models = [group.copy_model(unit(turn)) for turn in (0.0, 0.5)]
    return group, models, [simulation.simulate_map(m, (28, 24, 22), VOXEL, VOXEL * (-14, -12, -8), 8.0) for m in models]


def test_operators_only_exchange_the_copies_of_an_assembled_model():
    group = Symmetry.named("D3")
    whole, one = group.copy_model(unit(0.0)), unit(0.0)
    names = [chain.name for chain in whole[0]]
    assert len(names) == len(set(names)) == 6 and names[0] == "A"
    xyz = atoms.positions(whole)
    np.testing.assert_allclose(xyz[:16], atoms.positions(one))
    for operator in group.operators:
        assert from_each_to_nearest(operator(xyz), xyz) < 1e-9


def test_a_repeated_map_is_that_of_the_assembled_model(pair):
    group, models, maps = pair
    one = ct.simulate(unit(0.0), 8.0, like=maps[0])
    np.testing.assert_allclose(group.copy_map(one).density, maps[0].density, atol=0.02 * maps[0].density.max())


def test_a_repeated_map_has_room_for_copies_outside_of_the_units_box(pair):
    group, _, maps = pair
    one = ct.simulate(unit(0.0), 8.0, voxel_size=float(maps[0].voxel_size[0]))  # in a box of its own
    whole = group.copy_map(one)
    assert whole.density.shape > one.density.shape and (whole.origin <= one.origin).all()
    np.testing.assert_allclose(whole.density.sum(), 2 * one.density.sum(), rtol=0.01)
    centre = whole.origin + whole.voxel_size * ndimage.center_of_mass(whole.density)
    np.testing.assert_allclose(centre[:2], group.centre[:2], atol=0.05)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_a_map_on_wider_voxels_keeps_its_total_and_its_centre(factor):
    density = np.zeros((16, 12, 20), np.float32)
    density[4:8, 4:8, 8:12] = np.random.default_rng(0).uniform(size=(4, 4, 4))  # off the middle
    map_ = ct.Map(density, np.array([1.0, 1.5, 0.5]), CENTRE)
    wide = symmetry.bin_map(map_, factor)

    def centre(one):
        return one.origin + one.voxel_size * ndimage.center_of_mass(one.density)

    np.testing.assert_allclose(wide.voxel_size, factor * map_.voxel_size)
    np.testing.assert_allclose(centre(wide), centre(map_), rtol=1e-5)
    np.testing.assert_allclose(wide.density.sum(), density.sum(), rtol=1e-5)


@pytest.mark.parametrize("name", ["C2", "D3"])
def test_all_copies_of_a_maps_density_lie_in_the_room_which_continues_its_grid(name):
    group = Symmetry.named(name, (20.0, 3.0, -1.0), AXIS)
    density = np.zeros((10, 12, 9), np.float32)
    density[2:6, 3:8, 4:7] = 1
    map_ = ct.Map(density, np.array([1.0, 1.5, 0.5]), np.array([2.0, -4.0, 7.0]))
    room = group.enclosing_grid([map_])
    steps = (map_.origin - room.origin) / map_.voxel_size
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-9)
    assert (steps >= 0).all() and (steps + density.shape <= np.array(room.density.shape) + 1e-9).all()
    xyz = map_.origin + np.argwhere(density) * map_.voxel_size
    for operator in group.operators:
        index = (operator(xyz) - room.origin) / room.voxel_size
        assert (index >= 0.99).all() and (index <= np.array(room.density.shape) - 1.99).all()  # a voxel to spare


def test_the_axis_is_found_and_a_map_without_the_symmetry_refused(pair):
    group, _, maps = pair
    density = maps[0].density
    mass = replace(maps[0], density=thresholds.carried_mass(density, thresholds.choose_threshold(density)))
    found = Symmetry.of("C2", maps[0], mass)
    np.testing.assert_allclose(found.centre[:2], 0, atol=0.1)
    found.check(mass, "initial map")
    with pytest.raises(
        ct.InputError, match="the initial map does not have the symmetry C3: its correlation with itself rotated about"
    ):
        Symmetry.of("C3", maps[0], mass).check(mass, "initial map")
    lopsided = replace(mass, density=mass.density * (mass.origin[0] + np.arange(28) * 2.2 < 15)[:, None, None])
    with pytest.raises(ct.InputError, match="target map 1 does not have the symmetry C2"):
        group.check(lopsided, "target map 1")


@pytest.mark.parametrize("across", [0.0, 23.0])
def test_axes_across_that_of_dn_are_found_where_they_are(across):
    """Along x where they are usual; a map has no more than one such set."""
    group = Symmetry.named("D3", across=across)
    map_ = ct.simulate(group.copy_model(unit(0.0)), 8.0, voxel_size=3.0)
    found = Symmetry.of("D3", map_, map_)
    turn = group.generators[-1].rotation.T @ found.generators[-1].rotation
    np.testing.assert_allclose(turn, np.eye(3), atol=0.06 if across else 1e-12)  # 1.7°
    assert found.self_correlation(map_) > 0.98
    assert Symmetry.named("D3", found.centre).self_correlation(map_) > 0.98 or across


@pytest.fixture(scope="module")
def fits(pair):
    """Fits with the symmetry and without, by some steps of one stage of the default recipe."""
    _, _, maps = pair
    with pytest.MonkeyPatch.context() as patch:
        default = recipes.default
        patch.setattr(recipes, "default", lambda *a: replace(c := default(*a), schedule=c.stages[1:2]))
        options = ct.Options(align="none", parts=None, steps=0.2, resolutions=ct.Resolutions(8.0, 8.0))
        return [ct.morph(*maps, replace(options, symmetry=given)) for given in ("C2", None)]


def test_with_the_symmetry_the_fit_is_at_least_as_good(pair, fits):
    _, (start, end), _ = pair
    with_, without = (metrics.ca_displacement(fit.move(start), end)["rmsd"] for fit in fits)
    assert with_ < 1.1 * without and with_ < 0.5 * metrics.ca_displacement(start, end)["rmsd"]


def test_half_the_points_are_carried_and_their_copies_are_the_map(pair):
    """But for the border of the unit, which both sides have a share of."""
    group, _, maps = pair
    problem = prepare.prepare(maps[0], maps[1:], Resolutions(8.0, [8.0]))
    from cryotrans_jax.fit.morph import impose_symmetry

    half, _ = impose_symmetry(problem, group, maps[0])
    whole, level = (levels.make_levels(p, Field(), levels.Sampling())[0] for p in (problem, half))
    assert len(level.scene.x) < 0.6 * len(whole.scene.x)
    assert len(level.scene.rho) == len(level.points) == 2 * len(level.scene.x)
    assert float(level.scene.rho.sum()) == pytest.approx(float(whole.scene.rho.sum()), rel=0.01)
    np.testing.assert_allclose(
        np.average(level.points, 0, level.scene.rho)[:2], half.frame.to_unit(np.zeros(3))[:2], atol=1e-4
    )


def test_frames_and_moved_models_have_the_symmetry(pair, fits, tmp_path):
    """A model up to rounding; a frame up to interpolation, which is as much off for the initial map's part itself."""
    group, (start, _), maps = pair
    fit, turn = fits[0], group.operators[1]
    fit.save(tmp_path / "fit")
    for one in (fit, ct.Fit.load(tmp_path / "fit", maps[0])):
        for moved in one.move(start, [0.4, 1.0]):
            xyz = atoms.positions(moved)
            assert from_each_to_nearest(turn(xyz), xyz) < 2e-3
    assert np.abs(atoms.positions(moved) - atoms.positions(start)).max() > 3
    for frame in fit.frames([0.5, 1.0]):
        turned = resampled(frame, frame, turn).density
        assert np.abs(turned - frame.density).max() < 0.02 * frame.density.max()
    other = fits[1].generated()
    assert np.abs(resampled(other, other, turn).density - other.density).max() > 0.02 * other.density.max()


@pytest.mark.slow  # test_partition.py has the copies of bodies, and test_velocity.py the fields that are turned to them
@pytest.mark.parametrize("stages", [3, 6])
def test_bodies_of_a_symmetric_flow_and_their_copies_have_free_fields(pair, stages, monkeypatch):
    """A part for each copy of a body, labels that the symmetry takes to its next copy, and frames and models as
    symmetric as with one field. A fit that stopped goes on to the same end. The first three stages do for that."""
    group, (start, end), maps = pair
    options = ct.Options(align="none", steps=0.1, resolutions=ct.Resolutions(8.0, 8.0), symmetry="C2")
    default = recipes.default
    items = {3: 6, 6: None}[stages]
    monkeypatch.setattr(recipes, "default", lambda *a: replace(c := default(*a), schedule=c.schedule[:items]))
    kept = []
    fit = ct.morph(*maps, options, running=ct.Running(on_snapshot=kept.append))
    late = next(snapshot for snapshot in kept if snapshot.state.stage == (2 if stages == 3 else 4))
    again = ct.morph(*maps, options, running=ct.Running(resume_from=late))
    jax.tree.map(np.testing.assert_array_equal, again.params, fit.params)
    parts = fit.partition()
    assert parts.count > 2 and parts.count % 2 == 0 and fit.field.evaluations == 1 and fit.report["symmetry"]
    x = atoms.positions(start)
    assert np.mean(parts.part_at(x) == parts.part_at(group.operators[1](x)) ^ 1) > 0.97
    one, other = (jax.tree.map(lambda p, k=k: p[k], fit.target_params(0)) for k in (0, 1))
    velocity = fit.field.net.apply
    turn = group.operators[1].rotation
    at, there = (jnp.asarray(fit.frame.to_unit(xyz), jnp.float32) for xyz in (x, group.operators[1](x)))
    one, other = ({"params": each["params"]} for each in (one, other))
    np.testing.assert_allclose(velocity(other, there), velocity(one, at) @ turn.T, atol=rounding(1.0, 400))
    moved = atoms.positions(fit.move(start))
    assert from_each_to_nearest(group.operators[1](moved), moved) < 2e-3
    left = 0.6 if stages == 3 else 0.3
    assert metrics.ca_displacement(fit.move(start), end)["rmsd"] < left * metrics.ca_displacement(start, end)["rmsd"]
    frame = fit.generated()
    turned = resampled(frame, frame, group.operators[1]).density
    assert similarity.correlation(turned, frame.density) > 0.99


def test_parts_that_are_given_and_a_symmetry_do_not_go_together(pair):
    _, _, maps = pair
    from cryotrans_jax.motion.partition import Partition

    parts = Partition(np.ones(maps[0].density.shape, np.int16), VOXEL, maps[0].origin)
    with pytest.raises(ct.InputError, match="parts and a symmetry do not go together"):
        ct.morph(*maps, ct.Options(symmetry="C2", parts=parts, align="none"))


# --------------------------------------------------------------------------------------------------------------- jobs


def case_for(maps, alignments=()):
    from experiments.case import Case

    return Case(maps[0], [maps[1]], {}, ["b"], None, [None], alignments=list(alignments))


def test_flags_name_the_symmetry_of_the_maps_or_of_what_a_unit_is_repeated_by(pair):
    from experiments.load import add_symmetry
    from experiments.settings import InputSettings, SymmetrySettings

    _, _, maps = pair

    def found(alignments=(), **flags):
        case = case_for(maps, alignments)
        add_symmetry(case, SymmetrySettings(**flags), InputSettings())
        return case

    assert found().symmetry is None
    np.testing.assert_allclose(found(symmetry="C2").symmetry.centre[:2], 0, atol=0.1)
    case = found(symmetry="C3", symmetry_axis=[1.0, 0.0, 0.0], symmetry_centre=[1.0, 2.0, 3.0], one_unit=True)
    assert case.symmetry is None and case.repeated.name == "C3"
    for operator in case.repeated.operators:
        np.testing.assert_allclose(operator(np.array([[9.0, 2.0, 3.0]])), [[9, 2, 3]], atol=1e-9)  # on the axis
    voxel = maps[0].origin + np.array([14, 12, 11]) * VOXEL  # the one after the middle of 28, 24, 22
    np.testing.assert_allclose(found(symmetry="D2", one_unit=True).repeated.centre, voxel, atol=1e-9)
    for sentence, flags in {
        "describe a --symmetry": dict(one_unit=True),
        "add --align=none to --one_unit": dict(symmetry="C2", one_unit=True, alignments=[None]),
        "--symmetry_axis=0,1 is not three numbers": dict(symmetry="C2", symmetry_axis=[0.0, 1.0]),
    }.items():
        with pytest.raises(ct.InputError, match=sentence):
            found(**flags)


def test_the_folder_assembly_has_the_units_frames_and_models_repeated(pair, tmp_path):
    from experiments import frames

    group, _, maps = pair
    one = ct.simulate(unit(0.0), 8.0, like=maps[0])
    for name in ("frame_00", "generated", "parts"):
        ct.write_map(tmp_path / f"{name}.mrc", one)
    place = frames.assembly(group, tmp_path)
    frames.write_assembly_maps(group, tmp_path)
    frames.write_model_files([place.model(unit(0.0))] * 2, place.folder)
    names = sorted(path.name for path in (tmp_path / "assembly").iterdir())
    assert names == ["frame_00.mrc", "generated.cif", "generated.mrc", "model_00.cif", "model_01.cif", "trajectory.pdb"]
    whole = ct.read_map(tmp_path / "assembly/frame_00.mrc").density
    np.testing.assert_allclose(whole, maps[0].density, atol=0.02 * maps[0].density.max())
    xyz = atoms.positions(ct.read_model(tmp_path / "assembly/generated.cif"))
    assert len(xyz) == 32 and from_each_to_nearest(group.operators[1](xyz), xyz) < 2e-3  # as the file rounds them
    show_in_chimerax(tmp_path, target=tmp_path / "parts.mrc")


def show_in_chimerax(folder, target):
    """Both scripts run: the folder's own opens the target, the assembly's what is repeated alone."""
    from experiments.pages.story import write_scripts

    config = {"settings": {"target": ["b"]}, "targets": ["b"], "target": "b", "inputs": {"b": {"file": str(target)}}}
    write_scripts(folder, config | {"chosen": {"initial": {"threshold": 0.1}, "targets": [{"threshold": 0.2}]}}, 5.0)
    *_, last = cxc.run(folder / "view.cxc").values()
    assert last.files[0].resolve() == target
    names = [model.files[0].name for model in cxc.run(folder / "assembly" / "view.cxc").values()]
    assert names == ["frame_00.mrc", "generated.mrc", "trajectory.pdb"]


# ------------------------------------------------------------------------------------------------ the built-in pair


def hinges(name):
    """Assemblies of both states of the built-in pair, beside the axis, and above the plane of the others in D2."""
    models = ct.hinge_pair()
    every = np.concatenate([atoms.positions(model) for model in models])
    up = 3.0 - every[:, 2].min() if name[0] == "D" else 0.0
    to = Transform(np.eye(3), np.array([{"C": 3.0, "D": 3.0}[name[0]] + 3 * int(name[1]) - every[:, 0].min(), 0.0, up]))
    return [Symmetry.named(name).copy_model(to.move(model)) for model in models]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["C2", "C3", "D2"])
def test_symmetric_hinges_are_fitted_at_least_as_well_with_their_symmetry(name):
    start, end = hinges(name)
    maps = [ct.simulate(start, 5.0, voxel_size=2.5, cover=[end]), ct.simulate(end, 7.0, voxel_size=2.5, cover=[start])]
    maps[1] = ct.simulate(end, 7.0, like=maps[0])
    options = ct.Options(align="none", parts=None, steps=0.1, resolutions=ct.Resolutions(5.0, 7.0))
    fits = [ct.morph(*maps, replace(options, symmetry=given)) for given in (Symmetry.named(name), None)]
    with_, without = (metrics.ca_displacement(fit.move(start), end)["rmsd"] for fit in fits)
    assert with_ < 1.02 * without and with_ < 1.5
