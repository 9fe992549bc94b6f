"""What the page shows besides maps: bodies with their axes, the model in every frame, codes of colours, and words."""

import zlib
from base64 import b64decode
from types import SimpleNamespace

import numpy as np
import pytest

from cryotrans_jax.density.transform import Transform
from cryotrans_jax.io import atoms
from cryotrans_jax.io.maps import Map
from experiments import run_folder
from experiments.pages import places, scene, words
from tests.conftest import bent_chain

POINTS = np.array([[0.0, 0, 0], [0, 0, 10], [0, 0, 20], [30, 0, 0]])
BODY = np.array([1, 1, 1, 2], np.uint8)
PARTS = [
    {"turn": 30.0, "shift": 9.0, "share_of_mass": 0.4, "axis": [0.0, 0, 1], "axis_point": [5.0, 0, 0]},
    {"turn": 0.1, "shift": 0.2, "share_of_mass": 0.6, "residues": ["A:1-40", "B:3"]},
]


def given(error=(0, 0, 0, 0)):
    return places.Places(POINTS, BODY, np.array(error, np.uint8))


def test_an_axis_stands_beside_its_body_and_extends_beyond_it():
    first, second = scene.bodies(PARTS, given())
    assert first["axis_point"] == [5, 0, 10] and first["half"] == 10 + scene.BEYOND  # the middle of 0 to 20 Å
    assert first["name"] == "body 1" and second["name"] == "A:1-40, B:3" and "axis" not in second
    assert first["colour"] != second["colour"] and scene.bodies([], given())[0]["name"] == "the molecule"


def test_copies_of_a_body_have_its_name_and_colour_and_one_axis():
    found = scene.bodies([PARTS[0] | {"copies": 2}], given())
    assert [each["name"] for each in found] == ["body 1", "body 1"] and "axis" not in found[1]


def test_places_are_those_the_run_wrote(tmp_path):
    """Errors are bytes up to TOP_ERROR; what the target does not show has a code of its own."""
    error = np.array([0.0, places.TOP_ERROR / 2, 99.0, 1.0])
    supported = np.array([True, True, True, False])
    arrays = {"points": POINTS, "body": BODY.astype(int), "error": error, "supported": supported}
    np.savez(tmp_path / "displacement.npz", **arrays)
    run_folder.sign(tmp_path)
    found = places.read_places(tmp_path, POINTS[::-1] + 0.1)
    np.testing.assert_array_equal(found.body, BODY[::-1])
    np.testing.assert_allclose(found.error, [places.UNSUPPORTED, 254, 1 + 253 / 2, 1], atol=0.6)
    assert found.known and not places.read_places(tmp_path / "older", POINTS).known


def test_codes_on_a_grid_are_those_of_the_nearest_mass():
    like = Map(np.zeros((8, 2, 5), np.float32), np.full(3, 5.0), np.zeros(3))
    body, error = given((9, 8, 7, 6)).on_grid(POINTS, like)
    assert body.shape == like.density.shape and body[0, 0, 0] == 1 and body[6, 0, 0] == 2 and body[3, 0, 0] == 0
    assert [error[0, 0, k] for k in (0, 2, 4)] == [9, 8, 7]


def test_the_model_is_where_the_flow_carries_it():
    model, top, centre = bent_chain(0.0), 8.0, np.array([1.0, 2.0, 3.0])

    def carry(xyz, times):
        return np.stack([xyz + np.array([4.0, 0, 0]) * t for t in times])

    x = atoms.positions(model)
    own = places.Places(x, np.repeat([1, 2], 8).astype(np.uint8), np.full(16, 20, np.uint8))
    found = scene.model(model, SimpleNamespace(carry=carry), [0.0, 0.5], centre, own, top)
    for time, text in zip((0, 0.5), found["frames"], strict=True):
        xyz = np.frombuffer(zlib.decompress(b64decode(text)), "<i2").reshape(-1, 3) * found["unit"] + centre
        np.testing.assert_allclose(xyz, x + np.array([4 * time, 0, 0]), atol=0.6 * found["unit"])
    assert found["chains"] == [[0, 16]] and len(found["kinds"]) == 16 and found["hinges"] == [7, 8]
    assert set(b64decode(found["displacement"])) == {round(255 * 4 / top)}
    assert b64decode(found["body"]) == own.body.tobytes()


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({"parts": PARTS, "verdict": "found"}, "Body 1 rotates by 30° and shifts by 9 Å; motion found"),
        ({"parts": PARTS[1:]}, "No rigid body moves by itself"),
        ({"correlation_matched_before": 0.651, "correlation_matched_after": 0.99},
         "Correlation with the target 0.65 → 0.99"),
        ({}, "The morph"),
    ],
)  # fmt: skip
def test_the_headline_says_what_moves_and_whether_it_was_found(scores, said):
    assert words.headline(scores) == said


def test_the_alignment_is_told_by_angle_shift_and_matrix():
    matrix = np.eye(4)
    matrix[:3, 3] = 3.0, 0.0, 4.0
    text = words.alignment({"alignment": {"transform": Transform.from_matrix(matrix).matrix.tolist()}})
    assert "rotated by 0.0° and translated by 5.0 Å" in text and text.count("<tr>") == 3
    assert words.alignment({}) == ""
