"""Tests of review: the pair, its picture to scale, and the ratings."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from medqdm import io
from medqdm.errors import MedQDMError
from medqdm.metrics import reduce_by_area
from medqdm.picture import upsample_bicubic
from medqdm.review import (
    PRESETS,
    Rating,
    Review,
    View,
    load_review,
    orientation_letters,
    read_ratings,
    render,
    render_swipe,
    save_rating,
    scale_bar_mm,
    to_png,
)
from medqdm.review.marks import SYNTHETIC
from medqdm.volume import Volume
from medqdm.window import Window

UPSCALE = 2
MODEL_WINDOW = Window(0, 2000)


def make_volumes(shape=(3, 12, 20), spacing_mm=(3.0, 1.5, 0.75)):
    random = np.random.default_rng(0)
    fine = (shape[0], shape[1] * UPSCALE, shape[2] * UPSCALE)
    enhanced_hu = np.rint(random.uniform(-900, 900, fine)).astype(np.float32)
    source = Volume.from_spacing(np.rint(reduce_by_area(enhanced_hu, UPSCALE)), spacing_mm)
    return source, source.with_pixels(enhanced_hu)


def make_refined(source):
    z, height, width = source.shape
    refined = np.zeros((z, -(-height // 2), -(-width // 2)), dtype=bool)
    refined[:, 1:3, 2:5] = True
    return refined


@pytest.fixture
def review():
    source, enhanced = make_volumes()
    return Review(source, enhanced, make_refined(source), MODEL_WINDOW, "case 1", UPSCALE)


def make_rating(**changes):
    scores = {"sharpness": 4, "noise": 3, "artefacts": 5, "confidence": 2}
    return Rating(**{"series": "case 1", "slice_number": 2, **scores, **changes})


def write_output(folder, source, enhanced, window=MODEL_WINDOW):
    folder.mkdir(exist_ok=True)
    io.write(source, enhanced, folder / "enhanced.mha")
    np.savez_compressed(folder / "refined.npz", refined=make_refined(source))
    section = {"center_hu": window.center_hu, "width_hu": window.width_hu}
    task = {"window": section, "quadtree": {}, "upscale": UPSCALE}
    (folder / "run.json").write_text(json.dumps({"task": task}))
    return folder


class TestLoad:
    def test_reads_what_enhance_wrote(self, tmp_path):
        source, enhanced = make_volumes()
        io.write(source, source, tmp_path / "source.mha")
        out = write_output(tmp_path / "out", source, enhanced, Window(40, 350))
        review = load_review(out, tmp_path / "source.mha", slice_axis=2)
        np.testing.assert_array_equal(review.enhanced.hu, enhanced.hu)
        np.testing.assert_array_equal(review.source.hu, source.hu)
        np.testing.assert_array_equal(review.refined, make_refined(source))
        assert review.model_window == Window(40, 350)
        assert review.upscale == UPSCALE
        assert review.size_mm == (18, 15)

    def test_reads_dicom_beside_the_other_files(self, tmp_path):
        source, enhanced = make_volumes()
        io.write(source, source, tmp_path / "source.mha")
        out = write_output(tmp_path / "other", source, enhanced)
        report = io.write_series(
            source, iter(enhanced.hu), tmp_path / "out", upscale=UPSCALE, description="test",
            software_version="0", weights_id="0", uid_entropy=["0"],
        )  # fmt: skip
        for name in ("refined.npz", "run.json"):
            (tmp_path / "out" / name).write_bytes((out / name).read_bytes())
        review = load_review(tmp_path / "out", tmp_path / "source.mha", slice_axis=2)
        np.testing.assert_array_equal(review.enhanced.hu, enhanced.hu)
        assert report.series_instance_uid not in review.label
        assert len(review.label) == 12

    def test_label_tells_series_apart_and_can_be_given(self, tmp_path):
        source, enhanced = make_volumes()
        io.write(source, source, tmp_path / "source.mha")
        labels = []
        for name, hu in (("a", enhanced.hu), ("b", enhanced.hu), ("c", enhanced.hu + 1)):
            out = write_output(tmp_path / name, source, source.with_pixels(hu))
            labels.append(load_review(out, tmp_path / "source.mha", slice_axis=2).label)
        assert labels[0] == labels[1] != labels[2]
        assert (
            load_review(tmp_path / "c", tmp_path / "source.mha", slice_axis=2, label="x").label
            == "x"
        )

    @pytest.mark.parametrize("name", ["refined.npz", "run.json"])
    @pytest.mark.parametrize("content", [None, b"not what it should be"])
    def test_refuses_a_folder_of_something_else(self, tmp_path, name, content):
        source, enhanced = make_volumes()
        out = write_output(tmp_path / "out", source, enhanced)
        (out / name).unlink()
        if content is not None:
            (out / name).write_bytes(content)
        with pytest.raises(MedQDMError, match=rf"written by medqdm enhance.*{name}"):
            load_review(out, tmp_path)

    def test_refuses_another_number_of_slices(self, review):
        fewer = Volume.from_spacing(review.source.hu[:2], (3.0, 1.5, 0.75))
        with pytest.raises(MedQDMError, match="as many slices as its source, got 3 and 2"):
            replace(review, source=fewer)

    def test_refuses_a_matrix_that_is_no_multiple(self, review):
        with pytest.raises(MedQDMError, match="2 times its source's 20 x 12, got 40 x 23"):
            replace(review, enhanced=review.source.with_pixels(review.enhanced.hu[:, :23]))

    def test_refuses_moved_edges(self, review):
        moved = replace(
            review.enhanced, origins_mm=review.enhanced.origins_mm + np.array([0.5, 0, 0])
        )
        with pytest.raises(MedQDMError, match=r"outer edges .* got 0\.500 mm"):
            replace(review, enhanced=moved)

    def test_refuses_other_cells(self, review):
        with pytest.raises(MedQDMError, match=r"\(3, 6, 10\) cells, got \(3, 6, 9\)"):
            replace(review, refined=review.refined[:, :, :9])

    def test_refuses_a_slice_that_is_not_there(self, review):
        with pytest.raises(MedQDMError, match="slice index must be 0 to 2, got 3"):
            review.at(3)

    def test_odd_matrix_has_cut_cells(self):
        source, enhanced = make_volumes(shape=(1, 11, 19))
        refined = np.ones((1, 6, 10), dtype=bool)
        review = Review(source, enhanced, refined, MODEL_WINDOW, "odd", UPSCALE)
        assert to_png(render(review, 0)).startswith(b"\x89PNG")


def test_difference_is_enhanced_minus_bicubic_in_hu(review):
    content = review.at(1)
    expected = review.enhanced.hu[1] - upsample_bicubic(review.source.hu[1], UPSCALE)
    np.testing.assert_array_equal(content.difference_hu, expected)
    drawn = render(review, 1).axes[2].images[0].get_array()
    np.testing.assert_array_equal(drawn, expected)


def test_lr_consistency_of_a_shift_is_the_shift(review):
    source = replace(review.source, hu=reduce_by_area(review.enhanced.hu, UPSCALE) - 7)
    assert replace(review, source=source).at(0).lr_consistency_hu == pytest.approx(7, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "center_hu", "width_hu"),
    [
        ("lung", -600, 1500),
        ("soft tissue", 40, 400),
        ("bone", 400, 1800),
        ("brain", 40, 80),
        ("subdural", 75, 215),
    ],
)
def test_presets(review, name, center_hu, width_hu):
    assert PRESETS[name] == Window(center_hu, width_hu)
    panel = render(review, 0, window=PRESETS[name]).axes[1].images[0]
    assert panel.get_clim() == (center_hu - width_hu / 2, center_hu + width_hu / 2)


def test_window_is_the_models_unless_given(review):
    assert render(review, 0).axes[0].images[0].get_clim() == (-1000, 1000)


@pytest.mark.parametrize(
    ("step_mm", "letters"),
    [
        ((0.7, 0, 0), ("R", "L")),
        ((-0.7, 0, 0), ("L", "R")),
        ((0, 0.7, 0), ("A", "P")),
        ((0, 0, -0.7), ("H", "F")),
        ((0.69, 0.05, 0), ("R", "L")),
        ((0, -0.5, 0.6), ("FP", "HA")),
        ((0.5, 0.4, 0.3), ("RAF", "LPH")),
    ],
)
def test_orientation_letters(step_mm, letters):
    assert orientation_letters(np.array(step_mm)) == letters


def texts(axes):
    return {text.get_text(): text.get_position() for text in axes.texts}


def test_letters_stand_on_their_sides(review):
    # rows run to the patient's right, columns to the head: the head is below
    turned = {"x_step_mm": np.array([-0.75, 0, 0]), "y_step_mm": np.array([0, 0, 1.5])}
    source = replace(review.source, **turned)
    turned_review = replace(review, source=source, enhanced=source.with_pixels(review.enhanced.hu))
    for axes in render(turned_review, 0).axes[:3]:
        place = texts(axes)
        assert place["R"][0] - place["L"][0] > 0.9
        assert place["F"][1] - place["H"][1] > 0.9  # axes count upward


def displayed(axes, x_mm, y_mm):
    return axes.transData.transform((x_mm, y_mm))


def test_non_square_pixels_keep_their_aspect(review):
    figure = render(review, 0)
    figure.canvas.draw()
    y_mm, x_mm = review.enhanced.spacing_mm
    for axes in figure.axes[:3]:
        step = np.abs(displayed(axes, x_mm, y_mm) - displayed(axes, 0, 0))
        assert step[1] / step[0] == pytest.approx(2.0)  # 0.75 mm high, 0.375 mm wide
        left, right, bottom, top = axes.images[0].get_extent()
        assert (left, right, bottom, top) == (0, 15, 18, 0)
        box = axes.get_window_extent()
        assert box.height / box.width == pytest.approx(18 / 15)


@pytest.mark.parametrize("zoom", [1.0, 3.0])
def test_scale_bar_covers_mm_over_spacing_pixels(review, zoom):
    axes = render(review, 0, view=View(zoom)).axes[0]
    (bar,) = [patch for patch in axes.patches if patch.get_label() == "scale bar"]
    length_mm = scale_bar_mm(15 / zoom)
    assert f"{length_mm:g} mm" in texts(axes)
    image = axes.images[0]
    left, right, _, _ = image.get_extent()
    drawn_px_per_mm = image.get_array().shape[1] / (right - left)
    assert bar.get_width() * drawn_px_per_mm == pytest.approx(length_mm / 0.375)


@pytest.mark.parametrize(
    ("width_mm", "bar_mm"), [(390, 50), (400, 100), (79, 10), (80, 20), (7, 1), (1, 0.2)]
)
def test_scale_bar_is_round_and_at_most_a_quarter(width_mm, bar_mm):
    assert scale_bar_mm(width_mm) == pytest.approx(bar_mm)


class TestView:
    def test_zooms_around_its_centre(self):
        assert View(2, x=0.5, y=0.5).limits_mm((100, 200)) == (50, 150, 25, 75)

    def test_never_leaves_the_slice(self):
        assert View(4, x=1, y=0).limits_mm((100, 200)) == (150, 200, 0, 25)

    def test_shows_the_pixels_of_its_place(self, review):
        axes = render(review, 0, view=View(4, x=0.5, y=0.25)).axes[1]
        left, right, bottom, top = axes.images[0].get_extent()
        y_mm, x_mm = review.enhanced.spacing_mm
        rows, columns = (
            slice(round(top / y_mm), round(bottom / y_mm)),
            slice(round(left / x_mm), round(right / x_mm)),
        )
        expected = review.enhanced.hu[0, rows, columns]
        assert expected.size < review.enhanced.hu[0].size / 8
        np.testing.assert_array_equal(axes.images[0].get_array(), expected)
        assert axes.get_xlim() == (5.625, 9.375)
        assert axes.get_ylim() == (6.75, 2.25)

    @pytest.mark.parametrize(
        ("view", "message"),
        [
            ({"zoom": 0.5}, "zoom must be 1 or more, got 0.5"),
            ({"x": 1.5}, "shares from 0 to 1, got 1.5 and 0.5"),
        ],
    )
    def test_refusals(self, view, message):
        with pytest.raises(MedQDMError, match=message):
            View(**view)


def test_overlay_tints_the_refined_cells_alone(review):
    tinted, plain = render(review, 0), render(review, 0, overlay=False)
    assert [len(axes.images) for axes in plain.axes[:3]] == [1, 1, 1]
    assert [len(axes.images) for axes in tinted.axes[:3]] == [1, 2, 1]
    layer = tinted.axes[1].images[1]
    np.testing.assert_array_equal(layer.get_array()[..., 3] > 0, review.refined[0])
    assert list(layer.get_extent()) == [0, 15, 18, 0]  # 10 x 6 cells of 1.5 x 3 mm
    outline = tinted.axes[2].collections[0].get_segments()
    corners = np.concatenate(outline)
    assert (corners.min(axis=0).tolist(), corners.max(axis=0).tolist()) == ([3, 3], [7.5, 9])
    assert len(outline) == 2 * (2 + 3)  # the border of 2 x 3 cells


@pytest.mark.parametrize("overlay", [True, False])
@pytest.mark.parametrize("view", [View(), View(5, 0.1, 0.9)])
def test_never_hides_that_detail_is_synthetic(review, overlay, view):
    figure = render(review, 0, view=view, overlay=overlay)
    assert SYNTHETIC in texts(figure.axes[1])
    swipe = render_swipe(review, 0, view=view, overlay=overlay)
    assert SYNTHETIC in texts(swipe.axes[0])
    for picture in (figure, swipe):
        assert "not for diagnosis" in " ".join(text.get_text() for text in picture.texts)


def test_difference_bar_is_symmetric_and_in_hu(review):
    figure = render(review, 0, difference_hu=250)
    assert figure.axes[2].images[0].get_clim() == (-250, 250)
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[3].get_xticklabels()]
    assert labels == ["-250 HU", "-125 HU", "0 HU", "+125 HU", "+250 HU"]


def test_swipe_shows_both_on_their_sides(review):
    bicubic = render_swipe(review, 0, split=1)
    assert len(bicubic.axes[0].images) == 1
    assert SYNTHETIC not in texts(bicubic.axes[0])
    half = render_swipe(review, 0, split=0.5)
    _, enhanced = half.axes[0].images
    assert enhanced.get_clip_box().x0 == pytest.approx(displayed(half.axes[0], 7.5, 0)[0])
    with pytest.raises(MedQDMError, match="split must be a share"):
        render_swipe(review, 0, split=2)


class TestRating:
    def test_round_trip_with_one_header(self, tmp_path):
        path = tmp_path / "study" / "ratings.csv"
        first = make_rating(comment='a "ring", and\nnoise; ärger', reader="reader 1")
        second = make_rating(slice_number=3, sharpness=1, window="lung")
        save_rating(path, first)
        save_rating(path, second)
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) == 3
        assert lines[0].startswith("series,slice_number,sharpness,noise,artefacts,confidence")
        assert read_ratings(path) == [first, second]
        assert first.comment == 'a "ring", and noise; ärger'
        assert first.saved_at.endswith("+00:00")

    @pytest.mark.parametrize("comment", ["=1+1", "-5 HU?", "@me", "'=1", "'quoted'", "ring=1"])
    def test_no_spreadsheet_runs_a_comment(self, tmp_path, comment):
        path = tmp_path / "ratings.csv"
        save_rating(path, make_rating(comment=comment))
        (row,) = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
        assert row["comment"][0] not in "=+-@"
        assert row["comment"].endswith(comment)
        assert [rating.comment for rating in read_ratings(path)] == [comment]

    def test_appends_to_a_file_without_a_last_line_break(self, tmp_path):
        path = tmp_path / "ratings.csv"
        save_rating(path, make_rating())
        path.write_text(path.read_text().rstrip())
        save_rating(path, make_rating(slice_number=9))
        assert [rating.slice_number for rating in read_ratings(path)] == [2, 9]

    @pytest.mark.parametrize("content", ["name,age\n", ""])
    def test_another_file_is_left_alone(self, tmp_path, content):
        path = tmp_path / "other.csv"
        path.write_text(content)
        with pytest.raises(MedQDMError, match="got another file"):
            save_rating(path, make_rating())
        assert path.read_text() == content

    @pytest.mark.parametrize("score", [0, 6, 2.5, None, "4"])
    def test_refuses_a_score_off_the_scale(self, score):
        with pytest.raises(MedQDMError, match="noise must be 1 to 5, got"):
            make_rating(noise=score)

    def test_refuses_a_damaged_line(self, tmp_path):
        path = tmp_path / "ratings.csv"
        save_rating(path, make_rating())
        path.write_text(path.read_text() + "half,a,line\n")
        with pytest.raises(MedQDMError, match="line 3 must hold"):
            read_ratings(path)

    def test_refuses_a_missing_file(self, tmp_path):
        with pytest.raises(MedQDMError, match="got FileNotFoundError"):
            read_ratings(tmp_path / "none.csv")
