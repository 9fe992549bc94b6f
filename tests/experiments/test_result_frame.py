"""What stays still in a run's results, and the target expressed in that frame, from its file and once."""

from dataclasses import replace

import gemmi
import jax
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryotrans_jax.core.flow import Field
from cryotrans_jax.core.grid import Frame
from cryotrans_jax.core.velocity import Velocity
from cryotrans_jax.density.align import Alignment
from cryotrans_jax.density.symmetry import Symmetry
from cryotrans_jax.density.transform import Transform, resampled
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.fit.stage import Config
from cryotrans_jax.fit.state import initial_state
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion.still import StillBody
from experiments.case import Case, Original
from experiments.pages.page import body_table
from experiments.record import alignment_record
from experiments.result_frame import add_still, frame_record, frame_scores, in_result_frame
from experiments.settings import InputSettings

FIELD = Field(Velocity(width=8, centre=0.5), 4)


def transform(angles, shift):
    return Transform(Rotation.from_euler("xyz", angles, degrees=True).as_matrix(), np.array(shift, float))


POSE, MOTION = transform([20, 40, -10], [3, 4, -2]), transform([0, 10, 25], [1, -3, 2])


@pytest.fixture
def fit(maps):
    """A fit that moves nothing, and a body that moved by MOTION in the frame of the alignment."""
    params = jax.tree.map(np.zeros_like, jax.device_get(initial_state(FIELD, 0, 1).params))
    middle = maps[0].origin + maps[0].voxel_size * np.array(maps[0].density.shape) / 2
    x = middle + np.random.default_rng(0).normal(0, 8, (50, 3))
    still = StillBody("rigid body 2 (60 % of the mass) stays still", np.linspace(x, MOTION(x), 5), np.ones(50))
    frame, level = Frame(maps[0].origin, 100.0), float(maps[0].density.max() / 4)
    return Fit(Config((), FIELD), FIELD, params, frame, level, initial=maps[0], still=(still,))


@pytest.fixture
def case(maps, models):
    finer = Map(maps[1].density, maps[1].voxel_size * 0.9, maps[1].origin + 5)
    return Case(
        maps[0], [resampled(finer, maps[0], POSE)], {}, ["b"], None, [None], models[0], [POSE.move(models[1])],
        alignments=[Alignment(POSE, "aligned", 4.0)], originals=[Original(finer, maps[1])],
    )  # fmt: skip


def test_the_target_is_resampled_once_by_both_motions(case, fit, models):
    found = in_result_frame(case, 0, fit)
    back, both = MOTION.inverse, MOTION.inverse.after(POSE)
    assert np.allclose(found.alignments[0].transform.matrix, both.matrix, atol=1e-9)
    once = resampled(case.originals[0].map, case.initial, both).density
    twice = resampled(case.targets[0], case.initial, back).density
    np.testing.assert_allclose(found.targets[0].density, once, atol=1e-6 * once.max())
    assert np.abs(found.targets[0].density - twice).max() > 1e-3 * once.max()
    expected = atoms.positions(both.move(models[1]))
    np.testing.assert_allclose(atoms.positions(found.references[0]), expected, atol=1e-9)
    record = alignment_record(found, 0, False)["alignment"]
    assert np.allclose(record["transform"], both.matrix, atol=1e-9) and "rigid body 2" in record["status"]
    mapped = in_result_frame(replace(case, references=[case.targets[0]]), 0, fit).references[0]
    np.testing.assert_allclose(mapped.density, resampled(case.originals[0].reference, case.initial, both).density)
    assert case.alignments[0].transform is POSE  # other targets of the case have frames of their own


def test_the_frame_is_recorded_and_shown(fit):
    record, scores = frame_record(fit)["result_frame"], frame_scores(fit)
    assert scores["still_rotation"] == pytest.approx(MOTION.angle) and scores["result_frame"] == record["is"]
    np.testing.assert_allclose(record["transform"], MOTION.inverse.matrix, atol=1e-9)
    part = {"share_of_mass": 0.6, "turn": 12.34, "shift": 5.67, "from_rigid": 0.891}
    text = body_table(scores | {"parts": [part, part | {"copies": 3}]})
    assert "rigid body 2 (60 % of the mass) stays still" in text and "2 (3 copies)" in text
    for cell in ("60", "12.3", "5.7", "0.89"):
        assert f">{cell}<" in text
    assert body_table({"mass_kept": 1.0}) == ""


def test_in_the_frame_of_the_alignment_nothing_changes(case, fit):
    aligned = replace(fit, still=())
    assert in_result_frame(case, 0, aligned) is case
    assert frame_scores(aligned) == {"result_frame": "that of the alignment"}
    assert np.array_equal(frame_record(aligned)["result_frame"]["transform"], np.eye(4))


def test_what_stays_still_follows_from_the_settings(case):
    def still(changes=(), **settings):
        given = replace(case, **dict(changes))
        add_still(given, InputSettings(**settings))
        return given.still

    group = Symmetry.named("C2", [0.0, 0.0, 0.0])
    assert still() == "largest" and still(still="none") == "none"
    assert still(align="none") == "auto" and still(dict(alignments=[])) == "auto"  # the maps share a frame
    assert still(dict(symmetry=group)) == "auto" and still(dict(repeated=group)) == "auto"
    chosen = still(still="A:2-4", align="none")
    assert isinstance(chosen, gemmi.Structure) and [r.seqid.num for r in chosen[0]["A"]] == [2, 3, 4]
    for changes, text, said in (
        (dict(model=None), "A:2-4", "--still=A:2-4 selects residues: give the model with --model"),
        (dict(symmetry=group), "A:2-4", "given with --symmetry"),
        ({}, "Z", "Z in --still selects no residue"),
    ):
        with pytest.raises(InputError, match=said):
            still(changes, still=text)
