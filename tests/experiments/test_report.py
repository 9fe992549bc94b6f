"""A run's folder explains itself: the page in a browser, what it says, the files for others, and making it again."""

import csv
import io
import json
import re
import shutil
import tempfile
import time
import zlib
from base64 import b64decode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote
from xml.etree import ElementTree

import cxc
import gemmi
import jax
import mrcfile
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cryotrans_jax.core.flow import Field
from cryotrans_jax.core.grid import Frame
from cryotrans_jax.core.velocity import Velocity
from cryotrans_jax.density.transform import IDENTITY, Transform
from cryotrans_jax.fit import trajectory
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.fit.stage import Config, Stage
from cryotrans_jax.fit.terms import Matched
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import checksum
from cryotrans_jax.io.maps import Map, read_map, same_grid, write_map
from experiments import exchange, record, results, run_folder, score
from experiments.case import Case
from experiments.pages import cautions, contents, film, packing, page, pictures, reading, story
from experiments.settings import OutputSettings

EVIL = "a<script>alert(1)</script>\"'&{{data}}<!--"  # a file's name by a stranger
TOLD = {
    "displacement.mrc",
    "displacement.cif",
    "fsc.csv",
    "fsc.xml",
    "fsc_reference.xml",
    "view.cxc",
    "movie.cxc",
    "README.txt",
}
PICTURES = {f"{name}.{kind}" for name in ("fsc", "loss", "slices") for kind in ("svg", "png")}
PICTURES |= {"report.html", "morph.gif", "morph.mp4"}
STAGES = tuple(Stage((Matched(),), steps, 1e-3, 1e-4) for steps in (4, 3))
CONFIG = Config(STAGES, Field(Velocity(width=32, centre=0.5), 5))


class Settings(SimpleNamespace):
    """Flags and their values, as absl has them."""

    def flags_by_module_dict(self):
        """The flags under the name of a job."""
        return {"experiments.run": [SimpleNamespace(name=name, value=value) for name, value in vars(self).items()]}


@pytest.fixture(scope="module")
def fit(maps):
    """A flow that turns and shifts by some 6 Å, as if it had been fitted."""
    params = jax.jit(CONFIG.field.init)(jax.random.key(4))
    params = jax.tree.map(lambda p: 20 * p, params)
    params["params"]["Dense_0"]["bias"] = jax.random.uniform(jax.random.key(1), (32,), minval=-0.3, maxval=0.3)
    level, volume = float(0.15 * maps[0].density.max()), 5000.0
    used = {"threshold": level, "threshold_chosen": "by rule", "share_of_mass": 0.98, "volume": volume}
    used |= {"clear": None, "specks": 0.0}
    report = {"initial": used, "targets": [used], "blur_variance": [1.5], "quieting_variance": [0.0]}
    return Fit(
        config=CONFIG,
        field=CONFIG.field,
        params=jax.tree.map(lambda p: np.asarray(p)[None], params),
        frame=Frame(np.array([-14.0, 20.0, 50.0]), 33.0),
        threshold=level,
        history=(np.array([[3.0], [2.0], [1.5], [1.2]]), np.array([[0.5], [0.4], [0.3]])),
        report=report | {"start": ["correspondences"]},
        initial=maps[0],
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory, fit, maps, models):
    """The folder of a run with model and reference, whose target has a stranger's name."""
    folder = tmp_path_factory.mktemp("report")
    files = {}
    for name, map_ in zip(("initial.mrc", f"{EVIL.replace('/', '')}.mrc"), maps, strict=False):
        files[name] = folder / ("target.mrc" if EVIL[:3] in name else name)
        write_map(files[name], map_)
    files["target.cif"] = folder / "target.cif"
    atoms.write_model(files["target.cif"], models[1])
    look = {"contour_chosen": "by histogram", "contour_volume": 4000.0, "body_volume": 4100.0}
    seen = [look | {"contour": 1.2 * fit.threshold}, look | {"contour": 0.7 * fit.threshold}]
    marked = models[0].clone()  # a stranger's as well
    marked.name, marked.info["_struct.title"], marked[0][0].name = EVIL, EVIL, "<b>"
    case = Case(maps[0], [maps[1]], files, [EVIL], 8.0, [9.0], marked, [models[1]], seen)
    settings = Settings(
        idealise=False, frame="initial", recipe="default", seed=0, steps=1.0, frames=3, render="pull_back",
        report=True, seeds=1, target=[list(files)[1]], reference=["target.cif"],
    )  # fmt: skip
    about = record.describe(fit, case, settings)
    results.write(fit, case, OutputSettings(frames=3), about, folder / "out", [0])
    return folder / "out"


@pytest.fixture(scope="module")
def text(run):
    return (run / "report.html").read_text()


@pytest.fixture(scope="module")
def data(text):
    """The numbers in the page, as its script reads them."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def test_a_run_of_maps_without_voxel_sizes_is_read_again_by_the_sizes_it_was_given(tmp_path, run, maps, job):
    """Its record has them: predict and report need no flag."""
    out, size = tmp_path / "out", [float(d) for d in maps[0].voxel_size]
    shutil.copytree(run, out)
    config = json.loads((out / "config.json").read_text())
    for number, entry in enumerate(config["inputs"].values()):
        if entry["file"].endswith(".mrc"):
            path = tmp_path / f"{number}.mrc"
            shutil.copy(entry["file"], path)
            with mrcfile.open(path, "r+") as file:
                file.header.cella = (0, 0, 0)
            entry |= {"file": str(path), "sha256": checksum(path)}
    for sizes, expected in (({}, 2), ({"voxel_size": size, "target_voxel_size": size}, 0)):
        config["settings"] |= sizes
        (out / "config.json").write_text(json.dumps(config))
        run_folder.sign(out)
        status, _, error = job("predict", f"--run_dir={out}", "--frames=2")
        assert status == expected and ("no voxel size" in error) == bool(expected), error
    assert same_grid(read_map(out / "predict_2" / "frame_00.mrc"), maps[0]) is None
    for path in out.glob("frame_*.mrc"):
        path.unlink()
    told = reading.read_story(out)
    assert told.target is not None and same_grid(told.initial, maps[0]) is None


class Elements(HTMLParser):
    """Tags with their attributes, and texts, in a page."""

    def __init__(self, text):
        """Reads it."""
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)


# ------------------------------------------------------------------------------------- the surface that is shown


def read_at(map_, xyz):
    """The map's density at positions in Å, linear between voxels, zero outside."""
    return ndimage.map_coordinates(map_.density, ((xyz - map_.origin) / map_.voxel_size).T, order=1, mode="constant")


LEVEL, WAY = 0.5, 12.0  # of the two balls' surfaces, and how far (Å) each of them goes
BALLS = {f"frame_{k:02d}.mrc": k / 4 for k in range(5)}  # names and times


def two_balls(time):
    """Two balls that overlap by 2 Å at first and then part along x; they have LEVEL at 8 Å from their middles."""
    size, origin = np.array([2.0, 2.2, 2.1]), np.array([-40.0, -15.0, -16.0])
    xyz = origin + size * np.stack(np.meshgrid(*map(np.arange, (41, 15, 16)), indexing="ij"), -1)
    middles = [np.array([side * (7 + WAY * time), 0, 0]) for side in (-1, 1)]
    nearest = np.min([np.linalg.norm(xyz - middle, axis=-1) for middle in middles], axis=0)
    return Map(np.clip(LEVEL + (8 - nearest) / 8, 0, 1).astype(np.float32), size, origin)


def parting(xyz, times):
    """Where the balls' matter has come to at the times."""
    return np.stack([xyz + np.sign(xyz[:, :1]) * [WAY * time, 0, 0] for time in times])


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    """The balls' frames as a report has them, and their motion."""
    folder = tmp_path_factory.mktemp("balls")
    for name, t in BALLS.items():
        write_map(folder / name, two_balls(t))
    fit = SimpleNamespace(carry=parting, threshold=LEVEL)
    run_folder.sign(folder)
    moved = story.motion_of(reading.Story(folder, {}, {}, fit, two_balls(0), two_balls(1), None))
    return film.read_frames(folder, len(BALLS), two_balls(0), two_balls(1), moved), moved


def test_every_surface_lies_where_its_frame_has_the_level_and_is_coloured_by_the_way_of_its_density(balls):
    """A surface that is carried along would bridge the gap between the balls, where the frames have nothing."""
    frames, _ = balls
    assert {frame.name: frame.time for frame in frames} == BALLS
    for frame in frames:
        vertices, _, far = film.coloured_surface(frame, LEVEL)
        exact = two_balls(frame.time)
        np.testing.assert_allclose(read_at(exact, vertices), LEVEL, atol=1e-5)  # vertices lie on edges of the grid
        assert np.abs(vertices[:, 0]).min() > WAY * frame.time - 2.0  # an Å of overlap, half a voxel
        outer = np.abs(vertices[:, 0]) > 7 + WAY * frame.time  # away from the seam, over which the motion is sampled
        np.testing.assert_allclose(far[outer], WAY, rtol=1e-3)


def parted(picture):
    """Whether a row of white parts what a picture shows, from above to below."""
    rows = np.flatnonzero((np.asarray(picture.convert("RGB")) < 250).any((1, 2)))
    return np.diff(rows).max() > 1


def test_pictures_show_the_gap_that_opens(balls):
    frames, moved = balls
    drawn = film.draw_pictures(frames, LEVEL, moved)  # the longest side, along which the balls part, is up
    shown = [p.crop((0, pictures.TOP, p.width, p.height - pictures.BOTTOM)) for p in drawn]
    assert [parted(picture) for picture in shown] == [False, True, True, True, True]


def test_the_frames_in_the_page_are_the_runs_to_half_a_code(balls):
    frames, moved = balls
    packed = json.loads(json.dumps(packing.pack_frames(frames, LEVEL, moved.top)))
    shape, low, high = packed["grid"]["shape"], packed["low"], packed["high"]
    for frame, (name, t), found in zip(frames, BALLS.items(), packed["frames"], strict=True):
        assert (found["name"], found["time"]) == (name, t)
        codes = np.frombuffer(zlib.decompress(b64decode(found["data"])), np.uint8).reshape(shape)
        first = np.rint((packed["grid"]["origin"] - two_balls(t).origin) / two_balls(t).voxel_size).astype(int)
        exact = two_balls(t).density[tuple(slice(a, a + n) for a, n in zip(first, shape, strict=True))]
        step = (high - low) * (codes / 255.0 + 1 / 510) / 255  # half a code's width
        shown = low + (high - low) * (codes / 255.0) ** 2
        assert (np.abs(shown - np.clip(exact, low, high)) <= step + 1e-6).all()
        share = np.frombuffer(zlib.decompress(b64decode(found["displacement"])), np.uint8) / 255
        far = frame.displacement.density.ravel().clip(0, moved.top)
        np.testing.assert_allclose(share * moved.top, far, atol=0.51 * moved.top / 255)


def test_the_page_of_the_largest_and_noisiest_maps_is_below_20_mb():
    """A byte a voxel that cannot be compressed, four bytes for three in base64; four volumes are sliced."""
    bytes_ = 4 * story.SHOWN + film.FRAMES * film.COLOURS
    assert bytes_ * 4 / 3 + packing.ROOM + (page.ASSETS / "three.js").stat().st_size < 20e6


def test_frames_that_cannot_be_compressed_are_resampled(balls, monkeypatch):
    """Their place and their size in Å stay."""
    frames, moved = balls
    whole = packing.pack_frames(frames, LEVEL, moved.top)
    monkeypatch.setattr(packing, "ROOM", sum(len(frame["data"]) for frame in whole["frames"]) // 2)
    less = packing.pack_frames(frames, LEVEL, moved.top)
    assert sum(len(frame["data"]) for frame in less["frames"]) <= packing.ROOM
    sides = [np.array(each["grid"]["shape"]) * each["grid"]["voxel"] for each in (whole, less)]
    np.testing.assert_allclose(*sides)


def test_a_run_with_one_frame_shows_both_ends_and_one_with_many_some_of_them(balls, tmp_path):
    _, moved = balls
    write_map(tmp_path / "frame_00.mrc", two_balls(1))
    run_folder.sign(tmp_path)
    ends = film.read_frames(tmp_path, 1, two_balls(0), two_balls(1), moved)
    assert [(frame.name, frame.time) for frame in ends] == [("the initial map", 0.0), ("frame_00.mrc", 1.0)]
    for k in range(31):
        write_map(tmp_path / f"frame_{k:02d}.mrc", two_balls(k / 30))
    run_folder.sign(tmp_path)
    several = film.read_frames(tmp_path, 31, two_balls(0), two_balls(1), moved)
    assert len(several) == film.FRAMES and (several[0].time, several[-1].time) == (0, 1)
    for frame in several:
        assert frame.name == f"frame_{round(30 * frame.time):02d}.mrc"


def test_the_volumes_in_the_page_are_the_maps(run, data, maps):
    shape, voxel, origin = (np.array(data["grid"][key]) for key in ("shape", "voxel", "origin"))
    start = np.rint((origin - maps[0].origin) / voxel).astype(int)
    cut = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
    np.testing.assert_allclose(maps[0].origin + start * voxel, origin)
    shown = {"initial": run / "frame_00.mrc", "generated": run / "generated.mrc", "target": run.parent / "target.mrc"}
    assert set(data["volumes"]) == {*shown, "difference"}
    for name, path in shown.items():
        volume, exact = data["volumes"][name], read_map(path).density[cut]
        codes = np.frombuffer(zlib.decompress(b64decode(volume["data"])), np.uint8).reshape(shape)
        found = volume["low"] + (volume["high"] - volume["low"]) * (codes / 255.0) ** 2
        # half a code's width, which grows with the root of the density
        step = (volume["high"] - volume["low"]) * (codes / 255.0 + 1 / 510) / 255
        assert (np.abs(found - np.maximum(exact, volume["low"])) <= step + 1e-9).all()
        assert volume["low"] <= max(0, np.percentile(exact, 0.2)) and volume["high"] >= exact.max()


def test_the_difference_vanishes_where_the_generated_map_blurred_is_the_target(fit, maps, tmp_path):
    initial = maps[0]
    blurred = ndimage.gaussian_filter(initial.density, np.sqrt(1.5) / initial.voxel_size, mode="constant")
    target = type(initial)(3 * blurred, initial.voxel_size, initial.origin)
    config = {"target": "b", "targets": ["b"], "chosen": fit.report}
    told = reading.Story(tmp_path, config, {}, fit, initial, initial, target)
    views = story.make_views(told, story.motion_of(told))
    assert np.abs(views.volumes["difference"]).max() < 0.01 * views.volumes["target"].max()  # of the cut edges
    np.testing.assert_allclose(views.matched, 1, atol=1e-4)


def test_a_volume_too_large_for_the_page_keeps_its_place_and_mass(maps):
    exact = maps[0]
    for most in (exact.density.size, 1500):
        found = film.resampled(exact, most)
        assert found.density.size <= most
        np.testing.assert_allclose(found.voxel_size * found.density.shape, exact.voxel_size * exact.density.shape)
        np.testing.assert_allclose(found.origin - found.voxel_size / 2, exact.origin - exact.voxel_size / 2)  # same box
        mass, kept = (map_.density.sum(dtype=float) * np.prod(map_.voxel_size) for map_ in (exact, found))
        assert kept == pytest.approx(mass, rel=0.03)  # read linearly
        a, b = (map_.origin + map_.voxel_size * ndimage.center_of_mass(map_.density) for map_ in (exact, found))
        np.testing.assert_allclose(a, b, atol=0.1)


# ------------------------------------------------------------------------------------- files for other programs


def test_a_run_has_all_files_for_others(run):
    assert TOLD | PICTURES <= {path.name for path in run.iterdir()}
    made = {path.name for path in run.iterdir()} - {"checkpoint"}
    assert {path.name for path in run_folder.result_files(run)} == made  # and --overwrite knows them all


def test_the_folder_says_what_its_files_are(run):
    text = (run / "README.txt").read_text()
    shown = [path.name for path in run.iterdir()]
    assert [name for name in shown if not any(re.fullmatch(pattern, name) for pattern, _ in contents.FILES)] == []
    for name in ("generated.mrc", "unexplained.mrc", "morph.mp4", "view.cxc", "checkpoint"):
        assert re.search(rf"^{re.escape(name)}|\s{re.escape(name)}", text, re.M), name
    assert "Verdict: motion" in " ".join(text.split()) and max(map(len, text.splitlines())) <= 120


def test_displacement_is_that_of_the_flow(run, fit, models):
    start, end = atoms.positions(models[0]), atoms.positions(atoms.read_model(run / "displacement.cif"))
    far = np.array([site.atom.b_iso for site in gemmi.read_structure(str(run / "displacement.cif"))[0].all()])
    np.testing.assert_allclose(far, np.linalg.norm(end - start, axis=1), atol=0.02)  # mmCIF rounds B-factors to 0.01
    np.testing.assert_allclose(end, fit.carry(start, [1.0])[0], atol=1e-3)
    map_ = read_map(run / "displacement.mrc")
    assert same_grid(map_, read_map(run / "generated.mrc")) is None
    near = ndimage.map_coordinates(map_.density, ((end - map_.origin) / map_.voxel_size).T, order=1)
    np.testing.assert_allclose(near, far, atol=1.0)  # averaged over some 3 Å, in which it changes by so much


def test_curves_are_exchanged_as_they_are(run):
    frame, generated = (read_map(run / f"{name}.mrc") for name in ("frame_00", "generated"))
    target = read_map(run.parent / "target.mrc")
    reference = score.reference_map(atoms.read_model(run.parent / "target.cif"), frame, 8.0)
    exact = score.fsc_curves(frame, generated, target, reference)
    found = exchange.read_fsc(run / "fsc.csv")
    assert list(found) == list(exact) == ["target_before", "target_after", "reference_before", "reference_after"]
    for name, curve in exact.items():
        np.testing.assert_allclose(found[name], curve, atol=1e-5)
    with (run / "fsc.csv").open(newline="") as file:
        head, first, second, *_ = csv.reader(file)
    assert head[:2] == ["frequency", "resolution"] and first[1] == ""
    assert float(second[1]) == pytest.approx(1 / float(second[0]), rel=1e-5)
    for name, key in (("fsc.xml", "target_after"), ("fsc_reference.xml", "reference_after")):
        root = ElementTree.parse(run / name).getroot()
        assert root.tag == "fsc" and set(root.attrib) == {"title", "xaxis", "yaxis"}
        points = [(float(node.find("x").text), float(node.find("y").text)) for node in root.findall("coordinate")]
        np.testing.assert_allclose(np.transpose(points), exact[key], atol=1e-5)


def test_the_chimerax_script_opens_what_is_there(run, fit):
    models = cxc.run(run / "view.cxc")
    names = [[file.name for file in model.files] for model in models.values()]
    frames = [f"frame_{k:02d}.mrc" for k in range(3)]
    maps = [[f"{name}.mrc"] for name in ("generated", "displacement", "unexplained")]
    # the target file's own name is harmless, whatever the run called it
    with_errors = [["error.mrc"], ["generated.cif"]]
    assert names == [frames, *maps, ["displacement.cif"], ["trajectory.cif"], *with_errors, ["target.mrc"]]
    assert [number for number, model in models.items() if model.shown] == [2, exchange.target_number(True, True)]
    levels = {"initial": 1.2 * fit.threshold, "target": 0.7 * fit.threshold}
    for number, own in {1: [levels["initial"]], 2: [levels["initial"]], 9: [levels["target"]]}.items():
        np.testing.assert_allclose(models[number].levels, own, rtol=1e-5)
    np.testing.assert_allclose(models[4].levels, [levels["target"], -levels["target"]], rtol=1e-5)
    assert len(set(models[4].colours)) == 2
    np.testing.assert_array_equal(models[9].pose, np.eye(4)[:3])


@pytest.fixture
def viewed(tmp_path, maps):
    """Writes the script of a folder with a generated map and a target of some name, and gives it."""
    (tmp_path / "out").mkdir()
    write_map(tmp_path / "out" / "generated.mrc", maps[0])
    write_map(tmp_path / "out" / "frame_00.mrc", maps[0])

    def written(name, pose=IDENTITY, there=True, **read):
        target = tmp_path / name
        target.parent.mkdir(exist_ok=True)
        target.unlink(missing_ok=True)
        if there:
            write_map(target, maps[1])
        script = tmp_path / "out" / "view.cxc"
        levels = {"initial": 0.1, "target": 0.2}
        shown = exchange.Target(target, pose, **read)
        script.write_text(exchange.chimerax_script(tmp_path / "out", levels, 5.0, shown))
        return script

    return written


def test_the_chimerax_script_can_colour_models_by_bodies(run, fit):
    """As comments; a selection that ChimeraX could read otherwise is left out."""
    bodies = [exchange.Body("#c2571a", ["A:1-59", "B:3"]), exchange.Body("#7b8793", ["<b>:1-2", "A:-3-4"])]
    text = exchange.chimerax_script(run, {"initial": 1.0, "target": 1.0}, 8.0, None, bodies)
    said = [line for line in text.splitlines() if line.startswith("# color #5")]
    assert said == ["# color #5,6,8/A:1-59 #c2571a", "# color #5,6,8/B:3 #c2571a"]


def test_the_recording_plays_the_series_and_the_model_there_and_back(run):
    count = len([*run.glob("frame_*.mrc")])
    models, shown, sets = cxc.record(run / "movie.cxc")
    turn = [*range(count), *range(count - 2, 0, -1)]
    assert shown == turn and sets == [number + 1 for number in turn]
    assert models[1].shown and not models[2].shown


def test_a_target_is_found_from_the_folder_and_stands_where_it_was_aligned(viewed):
    pose = Transform(Rotation.from_rotvec([0.4, -0.7, 1.1]).as_matrix(), np.array([184.0, -3.0, 0.25]))
    *_, target = cxc.run(viewed("in puts/b.mrc", pose)).values()
    assert target.files[0].resolve().name == "b.mrc" and target.files[0].is_file()
    xyz = np.array([[1.0, 20.0, -300.0]])
    np.testing.assert_allclose(xyz @ target.pose[:, :3].T + target.pose[:, 3], pose(xyz), atol=1e-3)  # six decimals
    *_, inside = cxc.run(viewed("out/inputs/b.mrc")).values()
    assert inside.files == [viewed("out/inputs/b.mrc").parent / "inputs" / "b.mrc"]


def test_a_target_is_opened_as_the_run_read_it_or_left_out(viewed):
    script = viewed("b.mrc", voxel_size=[1.06, 1.06, 1.2])
    number = max(cxc.run(script))
    assert f"volume #{number} voxelSize 1.06,1.06,1.2\n" in script.read_text()
    dark = viewed("b.mrc", negated=True)
    assert "contrast is inverted" in dark.read_text() and len(cxc.run(dark)) == number - 1


def test_a_name_that_is_a_command_or_a_file_that_is_gone_stays_out_of_the_chimerax_script(viewed):
    for name in ("a.mrc; exit.mrc", 'a".mrc', "a\nexit.mrc", "a*.mrc", "out/~a.mrc"):
        script = viewed(name)
        assert "left out" in script.read_text() and "exit" not in script.read_text()
        assert len(cxc.run(script)) == 2
    script = viewed("b.mrc", there=False)
    assert "left out" in script.read_text() and len(cxc.run(script)) == 2


# ------------------------------------------------------------------------------------- what the page says


def test_names_by_strangers_are_texts(text):
    found = Elements(text)
    assert [tag for tag, _ in found.tags].count("script") == 3
    assert EVIL in "".join(found.texts) and "{{" not in text.replace(EVIL, "").replace("{{data}}", "")
    assert "<script>alert" not in text and "<b>" not in text
    programs = re.findall(r"<script>(.*?)</script>", text, re.S)
    policy = next(attributes["content"] for tag, attributes in found.tags if "http-equiv" in attributes)
    allowed = [b64decode(each) for each in re.findall(r"'sha256-([^']+)'", policy)]
    assert allowed == [sha256(each.encode()).digest() for each in programs] and "default-src 'none'" in policy


def test_the_page_needs_nothing_else(text):
    for tag, attributes in Elements(text).tags:
        for name in ("src", "data", "action", "poster", "srcset"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    library = (page.ASSETS / "three.js").read_text()  # can fetch, and the page's policy does not let it
    own = text.replace(library, "")
    assert not re.search(r"@import|url\((?!data:|#)|fetch\(|XMLHttpRequest|import\(", own)
    assert len(own) < 1_000_000


def test_files_are_linked_and_are_there(run, text):
    links = [attributes["href"] for tag, attributes in Elements(text).tags if tag == "a"]
    frames = {f"frame_{k:02d}.mrc" for k in range(3)}
    assert {"generated.mrc", "view.cxc", "metrics.json"} | frames <= set(links)
    assert all((run / unquote(link)).exists() for link in links)


def test_the_page_has_the_scores_settings_and_cautions(run, text):
    shown = " ".join(" ".join(Elements(text).texts).split())
    scores, config = (json.loads((run / f"{name}.json").read_text()) for name in ("metrics", "config"))
    assert f"{scores['correlation_with_target_after']:.3f}" in shown and f"{scores['rmsd_before']:.2f}" in shown
    for name, version in config["versions"].items():
        assert name in shown and version in shown
    assert config["inputs"]["initial.mrc"]["sha256"] in shown
    assert "All detail finer than 9 Å" in shown and "One seed was fitted" in shown


GOOD = {
    "correlation_with_target_before": 0.5, "correlation_with_target_after": 0.8, "mass_kept": 1.01,
    "consistency": 0.002, "fsc_with_target_before": 20.0, "fsc_with_target_after": 4.0,
    "seed_spread_median": 0.2, "seed_spread_95": 0.5,
}  # fmt: skip
CALM = cautions.Measured(matched=(0.6, 0.98), stretched=0.01, at_edge=0.0, farthest=12.0)
USED = {"threshold_chosen": "given", "clear": 5.0, "specks": 0.0, "volume": 9e3}
SEEN = {"body_volume": 1e4}
SET = {
    "target": "b", "targets": ["a", "b"], "processes": 1,
    "initial": "i.mrc", "inputs": {"i.mrc": {}, "a.mrc": {}, "b.mrc": {}},
    "chosen": {"quieting_variance": [0.0, 0.0], "noisy": [False, False], "blur_variance": [2.0, 2.0],
               "start": ["transport", "correspondences"],
               "initial": USED, "targets": [USED, USED]},
    "contours": [SEEN, SEEN, SEEN],
    "resolutions": {"initial": 3.0, "targets": [5.0, 7.0]},
    "settings": {"recipe": "default", "steps": 1.0, "seeds": 3, "target": ["a.mrc", "b.mrc"]},
}  # fmt: skip


def test_good_numbers_alarm_nobody():
    found = cautions.cautions(SET, GOOD, CALM)
    assert not any(caution.serious for caution in found)
    assert "finer than 7 Å" in " ".join(caution.what for caution in found)


@pytest.mark.parametrize(
    "scores, chosen, settings, measured, said",
    [
        (dict(correlation_with_target_after=0.49), {}, {}, {}, "correlation with the target did not rise (0.500"),
        (dict(fsc_with_target_after=21.0), {}, {}, {}, "got worse, from 20.0 to 21.0 Å"),
        (dict(mass_kept=0.85), {}, {}, {}, "15 % of the mass that was carried is missing"),
        (dict(mass_kept=1.2), {}, {}, {}, "gained 20 %"),
        (dict(consistency=0.25), {}, {}, {}, "misses its start by 0.25 Å (RMS)"),
        (dict(target_lacks=0.08), {}, {}, {}, "For 8 % of the generated map's mass the target has no density"),
        (dict(seed_spread_95=4.0), {}, {}, {}, "3 seeds differ by 0.20 Å (median; 4.0 Å"),
        ({}, dict(start=["correspondences", "transport"]), {}, {}, "started from mass transport"),
        ({}, dict(noisy=[False, True]), {}, {}, "target map is noisy"),
        ({}, dict(targets=[USED, USED | {"clear": 1.1}]), {}, {}, "In the target map solvent is carried along"),
        (
            {},
            dict(initial=USED | {"specks": 0.5}),
            {},
            {},
            "In the initial map 50 % of the voxels",
        ),
        ({}, {}, dict(steps=0.1), {}, "took 10 % of the recipe's steps"),
        ({}, {}, {}, dict(matched=(0.4, 0.6)), "is only 0.60 (0.40 before)"),
        ({}, {}, {}, dict(stretched=0.2), "20 % of the mass is stretched or compressed"),
        ({}, {}, {}, dict(folded=0.02), "The flow folds at 2 % of the mass"),
        ({}, {}, {}, dict(outside=0.03), "3.0 % of the mass is carried out of the box"),
        ({}, dict(setbacks=[0, 2]), {}, {}, "diverged 2 times"),
        ({}, {}, {}, dict(at_edge=0.05), "5.0 % of the generated map's mass lies at the sides"),
    ],
)
def test_bad_numbers_are_told_first(scores, chosen, settings, measured, said):
    config = SET | {"chosen": SET["chosen"] | chosen, "settings": SET["settings"] | settings}
    first, *rest = cautions.cautions(config, GOOD | scores, CALM._replace(**measured))
    assert first.serious and said in first.what and not any(caution.serious for caution in rest)


@pytest.mark.parametrize("verdict, serious", [("found", False), ("partly found", True), ("not found", True)])
def test_signs_that_right_results_have_too_alarm_nobody_once_the_motion_is_found(verdict, serious):
    """On real maps the correlation is low, and some mass stretched, whether a result is right or wrong."""
    measured = CALM._replace(matched=(0.4, 0.7), stretched=0.2)
    config = SET | {"chosen": SET["chosen"] | {"noisy": [False, True]}}
    found = cautions.cautions(config, GOOD | {"target_lacks": 0.08, "verdict": verdict}, measured)
    assert sum(caution.serious for caution in found) == (4 if serious else 0)


@pytest.mark.parametrize(
    "masked, said",
    [("b", "the target map."), ("i", "the initial map."), ("ib", "the initial and target maps."), ("a", "")],
)
def test_a_micelle_that_was_left_out_is_told(masked, said):
    """Of the folder's own target, which is b."""
    masks = {f"protein in {name}.mrc": {} for name in masked}
    found = [caution.what for caution in cautions.cautions(SET | {"inputs": SET["inputs"] | masks}, GOOD, CALM)]
    about = [what for what in found if what.startswith("Density without detail")]
    assert about == ([f"Density without detail was removed from {said}"] if said else [])


@pytest.mark.parametrize("source, told", [("surface", True), ("solvent", False)])
def test_a_target_that_was_masked_is_told(source, told):
    config = SET | {"chosen": SET["chosen"] | {"noise": ["solvent", source]}}
    found = [caution for caution in cautions.cautions(config, GOOD, CALM) if "to have been masked" in caution.what]
    assert len(found) == told and not any(caution.serious for caution in found)


@pytest.mark.parametrize("used", [{"volume": 1e3}, {"specks": 0.5, "threshold_chosen": "by rule"}])
def test_where_a_model_shows_the_molecule_its_threshold_alarms_nobody(used):
    """Nor does dust above a threshold that was chosen by rule."""
    config = SET | {"chosen": SET["chosen"] | {"initial": USED | used}}
    settings = SET["settings"] | {"model": "model.pdb"}
    assert not any(caution.serious for caution in cautions.cautions(config | {"settings": settings}, GOOD, CALM))


def test_the_start_of_a_target_is_found_among_those_of_its_process():
    """Process 1 of 2 fits targets 1 and 3 of four, and knows their starts alone."""
    config = SET | {"targets": list("abcd"), "processes": 2, "chosen": {"start": ["correspondences", "transport"]}}
    assert [cautions.chosen(config | {"target": t}, "start") for t in "bd"] == ["correspondences", "transport"]


# ------------------------------------------------------------------------------------- made again


@pytest.fixture
def old(run, tmp_path):
    """The run's folder as an older version left it: without anything that tells of it."""
    shutil.copytree(run, tmp_path / "old")
    for name in TOLD | PICTURES:
        (tmp_path / "old" / name).unlink()
    run_folder.sign(tmp_path / "old")
    return tmp_path / "old"


def test_the_report_of_an_older_run_is_the_same(run, old, job):
    status, out, error = job("report", f"--run_dir={old}")
    assert status == 0, error
    assert str(old / "report.html") in out
    assert {path.name for path in old.iterdir()} == {path.name for path in run.iterdir()}
    *_, opened, seen = (cxc.run(folder / "view.cxc").popitem()[1] for folder in (run, old))
    assert opened.files[0].resolve() == seen.files[0].resolve()  # the target, found from either folder
    for name in ("loss.svg", "loss.png", "slices.svg", "slices.png"):
        assert (run / name).read_bytes() == (old / name).read_bytes(), name
    a, b = (read_map(folder / "displacement.mrc").density for folder in (run, old))
    np.testing.assert_allclose(a, b, atol=2e-3)  # mmCIF and MRC round what memory did not
    for name, curve in exchange.read_fsc(run / "fsc.csv").items():
        np.testing.assert_allclose(exchange.read_fsc(old / "fsc.csv")[name], curve, atol=1e-5)


def test_what_is_gone_is_done_without_or_asked_for(old, job, tmp_path):
    config = json.loads((old / "config.json").read_text())
    for entry in config["inputs"].values():
        entry["file"] = str(tmp_path / "gone" / Path(entry["file"]).name)
    (old / "config.json").write_text(json.dumps(config))
    run_folder.sign(old)
    assert job("report", f"--run_dir={old}")[0] == 0
    shown = " ".join(Elements((old / "report.html").read_text()).texts)
    assert "target map is gone" in shown and not (old / "fsc.csv").exists()
    (old / "frame_01.mrc").unlink()
    (old / "frame_02.mrc").unlink()
    status, _, error = job("report", f"--run_dir={old}")
    assert status == 2 and "initial.mrc is gone: say where it is now with --initial" in error
    status, _, error = job("report", f"--run_dir={old}", f"--initial={old / 'generated.mrc'}")
    assert status == 2 and "is not the run's initial.mrc" in error and error.count("\n") == 1


def test_a_target_that_is_not_what_was_fitted_is_left_out(old, job, maps, tmp_path):
    """As a map that was masked or aligned before the fit: the file is the same, the map fitted was another."""
    write_map(tmp_path / "other.mrc", maps[2])
    config = json.loads((old / "config.json").read_text())
    name = config["settings"]["target"][0]
    config["inputs"][name] = {"file": str(tmp_path / "other.mrc"), "sha256": checksum(tmp_path / "other.mrc")}
    (old / "config.json").write_text(json.dumps(config))
    run_folder.sign(old)
    assert job("report", f"--run_dir={old}")[0] == 0
    assert "target map is gone" in (old / "report.html").read_text()


def test_a_folder_without_a_run_is_told(job, tmp_path):
    status, _, error = job("report", f"--run_dir={tmp_path}")
    assert status == 2 and f"{tmp_path} holds no run" in error


# ------------------------------------------------------------------------------------- in a browser


def started(*more):
    """A headless Chromium with a fresh profile, which must not reach any network."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("there is no Chromium with its chromedriver: the page is not tried in a browser")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "disable-dev-shm-usage", "window-size=1000,900",
        f"user-data-dir={tempfile.mkdtemp()}", *more,
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(driver))


@pytest.fixture(scope="module")
def browser():
    """Chromium with WebGL drawn by the processor."""
    made = started("use-gl=angle", "use-angle=swiftshader", "enable-unsafe-swiftshader")
    yield made
    made.quit()


def opened(browser, path):
    """The page is open from its file and has shown what it can."""
    browser.get(path.resolve().as_uri())
    ready = (
        "return document.querySelectorAll('#panels canvas').length &&"
        "(document.getElementById('frame').textContent || !document.getElementById('problem').hidden)"
    )
    waited(lambda: browser.execute_script(ready))


def waited(condition):
    """What the condition gives once it holds."""
    for _ in range(300):
        if found := condition():
            return found
        time.sleep(0.1)
    raise TimeoutError("the page did not become ready")


def errors(browser):
    """What the console has that is no remark of the graphics driver on its speed."""
    return [entry for entry in browser.get_log("browser") if "GPU stall" not in entry["message"]]


def scene(browser):
    """The canvas's pixels, once drawn, as a PNG."""
    code = (
        "const done = arguments[0], frame = requestAnimationFrame;"
        "frame(() => frame(() => done(document.getElementById('scene').toDataURL())))"
    )
    return b64decode(browser.execute_async_script(code).split(",")[1])


def label(browser):
    """What the page says which time and frame it shows."""
    return browser.execute_script("return document.getElementById('frame').textContent")


def moved(browser, name, value, event="input"):
    """The control of that name has the value, as if by hand."""
    browser.execute_script(
        "const [name, value, event] = arguments, e = document.getElementById(name);"
        "if (e.type === 'checkbox') e.checked = value; else e.value = value; e.dispatchEvent(new Event(event));",
        name,
        value,
        event,
    )


def test_the_page_shows_the_morph_in_a_browser(run, browser, tmp_path):
    opened(browser, run / "report.html")
    assert browser.execute_script("return document.getElementById('problem').hidden")
    pictures, labels = [], []
    for k in range(3):
        moved(browser, "time", k)
        pictures.append(scene(browser))
        labels.append(label(browser))
    assert len(set(pictures)) == 3 and [f"frame_{k:02d}.mrc" in text for k, text in enumerate(labels)] == [True] * 3
    assert all(coloured(picture) > 0.01 for picture in pictures)
    before = pictures[-1]
    moved(browser, "level", 1.5)
    assert waited(lambda: (now := scene(browser)) != before and now)  # another contour
    seen = [scene(browser)]
    for name, value in (
        ("target", "off"), ("target", "solid"), ("initial", "mesh"), ("layout", "three"), ("layout", "one"),
        ("look", "solid"), ("look", "mesh"), ("look", "off"), ("model", False), ("unexplained", True), ("front", 0.6),
    ):  # fmt: skip
        moved(browser, name, value, "input" if name == "front" else "change")
        seen.append(scene(browser))
        assert seen[-1] != seen[-2], name
    hidden = "return [...document.querySelectorAll('.of_target, .of_model')].filter(row => row.hidden).length"
    assert browser.execute_script(hidden) == 0
    browser.execute_script("document.getElementById('play').click()")
    now = label(browser)
    waited(lambda: label(browser) != now)
    browser.execute_script("document.getElementById('play').click()")
    cuts = "return [...document.querySelectorAll('#panels canvas')].map(c => c.toDataURL())"
    first = browser.execute_script(cuts)
    moved(browser, "axis", "0", "change")
    second = browser.execute_script(cuts)
    moved(browser, "place", 3)
    third = browser.execute_script(cuts)
    assert len(first) == 4 and all(len({a, b, c}) > 1 for a, b, c in zip(first, second, third, strict=True))
    assert errors(browser) == []
    browser.save_screenshot(str(tmp_path / "page.png"))
    assert (tmp_path / "page.png").stat().st_size > 10_000


@pytest.fixture
def page_of_balls(balls, run, tmp_path):
    """A page of the two balls."""
    frames, moved = balls
    ends = {"initial": two_balls(0), "generated": two_balls(1)}
    volumes = {name: map_.density for name, map_ in ends.items()}
    views = story.Views(volumes, ends["initial"].voxel_size, ends["initial"].origin, None)
    config, scores = (json.loads((run / f"{name}.json").read_text()) for name in ("config", "metrics"))
    config["contours"][0]["contour"] = LEVEL
    level = float(two_balls(0).density.std())
    ends_of = SimpleNamespace(carry=parting, threshold=LEVEL)
    told = reading.Story(tmp_path, config, scores, ends_of, two_balls(0), two_balls(1), None)
    data = story.page_data(told, frames, moved, views)
    assert data["sigmas"]["morph"] == pytest.approx(level, rel=0.1)
    path = tmp_path / "report.html"
    path.write_text(page.build(config, scores, [], {"slices": ""}, [], data, []))
    return path


def test_the_viewer_shows_the_gap_that_opens_and_what_another_contour_leaves(page_of_balls, browser):
    opened(browser, page_of_balls)
    shown = []
    for k in range(len(BALLS)):
        moved(browser, "time", k)
        shown.append(parted(Image.open(io.BytesIO(scene(browser)))))
    assert shown == [False, True, True, True, True]
    moved(browser, "time", 0)
    moved(browser, "level", 0.7)  # 1.6 times the density, which each ball has on 5.5 Å
    assert waited(lambda: parted(Image.open(io.BytesIO(scene(browser)))))
    assert errors(browser) == []


def coloured(picture):
    """The share of a picture's pixels that are neither white nor grey."""
    rgb = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    return (np.ptp(rgb, axis=-1) > 40).mean()


def test_the_page_turns_by_hand(run, browser):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    opened(browser, run / "report.html")
    before, canvas = scene(browser), browser.find_element(By.ID, "scene")
    ActionChains(browser).drag_and_drop_by_offset(canvas, 80, 30).perform()
    turned = scene(browser)
    assert turned != before
    wheel = "new WheelEvent('wheel', {deltaY: -300, cancelable: true})"
    browser.execute_script(f"document.getElementById('scene').dispatchEvent({wheel})")
    assert scene(browser) != turned
    browser.execute_script("document.getElementById('reset').click()")
    assert scene(browser) == before and errors(browser) == []


def test_the_cursor_reads_the_curves(run, browser, data):
    opened(browser, run / "report.html")
    read = (
        "const d = document.querySelector('#fsc svg'), r = d.getBoundingClientRect(), [left, , wide] = arguments[0];"
        "d.dispatchEvent(new PointerEvent('pointermove', {clientX: r.left + (left + 0.5 * wide) * r.width}));"
        "return document.getElementById('fsc_at').textContent"
    )
    text = browser.execute_script(read, data["fsc"]["box"])
    frequency = np.array(data["fsc"]["frequency"])
    at = np.searchsorted(frequency, frequency[-1] / 2)
    assert f"{1 / frequency[at]:.1f} Å" in text or f"{1 / frequency[at + 1]:.1f} Å" in text
    assert "target after" in text and "reference before" in text


def test_a_contour_is_a_density_a_multiple_of_sigma_or_a_volume(page_of_balls, balls, browser):
    """Each ball has LEVEL at 8 Å from its middle; the volume of both is read from the map, and put back in."""
    opened(browser, page_of_balls)
    moved(browser, "time", 4)  # apart
    number = "return Number(document.getElementById('level_number').value)"
    assert browser.execute_script(number) == pytest.approx(LEVEL, rel=0.01)
    moved(browser, "level_unit", "sigma", "change")
    assert browser.execute_script(number) == pytest.approx(LEVEL / two_balls(1).density.std(), rel=0.01)
    moved(browser, "level_unit", "volume", "change")
    enclosed = (two_balls(1).density > LEVEL).sum() * np.prod(two_balls(1).voxel_size)
    assert browser.execute_script(number) == pytest.approx(enclosed, rel=0.05)
    before = scene(browser)
    moved(browser, "level_number", enclosed / 4, "change")
    moved(browser, "level_unit", "density", "change")
    level = browser.execute_script(number)
    left = (two_balls(1).density > level).sum() * np.prod(two_balls(1).voxel_size)
    assert left == pytest.approx(enclosed / 4, rel=0.25) and waited(lambda: scene(browser) != before)  # few voxels
    moved(browser, "level_number", -1, "change")  # no contour: the one before stays
    assert browser.execute_script(number) == level and errors(browser) == []


def test_the_wheel_scrolls_the_page_until_the_viewer_is_clicked(run, browser):
    opened(browser, run / "report.html")
    still = scene(browser)
    wheel = (
        "const c = document.getElementById('scene'), e = new WheelEvent('wheel', {deltaY: -300, cancelable: true});"
        "c.dispatchEvent(e); return e.defaultPrevented"
    )
    assert not browser.execute_script(wheel) and scene(browser) == still
    browser.execute_script("document.getElementById('scene').focus()")
    assert browser.execute_script(wheel) and scene(browser) != still


def test_keys_turn_zoom_and_play(run, browser):
    opened(browser, run / "report.html")
    seen = [scene(browser)]
    press = "document.getElementById('scene').dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0]}))"
    for key in ("ArrowLeft", "ArrowUp", "+", "-", "ArrowRight"):
        browser.execute_script(press, key)
        seen.append(scene(browser))
        assert seen[-1] != seen[-2]
    now = label(browser)
    browser.execute_script(press, " ")
    waited(lambda: label(browser) != now)
    browser.execute_script(press, " ")


def test_surfaces_and_model_are_coloured_by_what_is_chosen(run, browser):
    opened(browser, run / "report.html")
    seen = {}
    for colour in ("displacement", "error", "unexplained", "plain"):
        moved(browser, "colour", colour, "change")
        seen[colour] = scene(browser)
    assert len(set(seen.values())) == 4
    key = "return document.getElementById('bar_what').textContent"
    moved(browser, "colour", "error", "change")
    assert "predicted error" in browser.execute_script(key) and errors(browser) == []


def test_a_narrow_window_has_no_need_to_scroll_sideways(run, browser):
    browser.set_window_size(500, 900)
    try:
        opened(browser, run / "report.html")
        wide = browser.execute_script(
            "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert wide[0] <= wide[1]
    finally:
        browser.set_window_size(1000, 900)


def test_without_webgl_there_are_a_message_and_the_pictures(run):
    browser = started("disable-3d-apis")
    try:
        opened(browser, run / "report.html")
        text, hidden, shown = browser.execute_script(
            "return [document.getElementById('problem').textContent, document.getElementById('viewer').hidden,"
            "[...document.querySelectorAll('.stills img')].filter(i => i.naturalWidth > 0).length]"
        )
        assert "WebGL" in text and hidden and shown == 3  # as many as there are frames
        assert errors(browser) == []
    finally:
        browser.quit()


def test_volumes_are_packed_to_half_a_code():
    rng = np.random.default_rng(0)
    volumes = {"target": rng.normal(size=(5, 6, 7)), "difference": rng.normal(size=(5, 6, 7))}
    packed = packing.pack_volumes(volumes)
    codes = np.frombuffer(zlib.decompress(b64decode(packed["difference"]["data"])), np.uint8).reshape(5, 6, 7)
    found = (codes.astype(float) - 128) / 127 * packed["difference"]["high"]
    np.testing.assert_allclose(found, volumes["difference"], atol=packed["difference"]["high"] / 254 + 1e-9)
    assert packed["difference"]["black"] == pytest.approx(np.percentile(np.abs(volumes["difference"]), 99.9))


def test_a_frame_at_time_zero_is_what_is_carried(run, fit, maps):
    np.testing.assert_allclose(
        read_map(run / "frame_00.mrc").density,
        trajectory.carried_density(maps[0], fit.threshold).density,
        atol=1e-5 * maps[0].density.max(),
    )


def test_the_table_of_bodies_has_errors_and_the_first_hinges():
    part = {"share_of_mass": 0.4, "turn": 30.0, "shift": 9.0, "from_rigid": 0.5}
    known = part | {"error": 0.84, "turn_error": 2.3, "hinges": [f"A:{k}" for k in range(1, 8)]}
    text = page.body_table({"parts": [known, known | {"hinges": []}]})
    assert "30.0 ± 2.3" in text and ">0.8<" in text and "A:1, A:2, A:3, A:4 and 3 more" in text
    plain = page.body_table({"parts": [part]})
    assert "±" not in plain and "hinges" not in plain and "predicted error" not in plain


@pytest.mark.parametrize("kind", ["found", "partly found", "not found"])
def test_the_verdict_stands_on_the_page_as_a_sentence(kind):
    text = page.verdict({"verdict": kind, "verdict_text": "motion <found>"})
    assert "Motion &lt;found&gt;." in text and f'class="verdict {kind.replace(" ", "-")}"' in text
    assert page.verdict({}) == ""
