"""What is drawn is what the runs did: lines, bands, labels, names, heat maps."""

import base64
import io
import itertools
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

import fabricated
from dsv3 import picture
from dsv3.report import curves, figures, heatmaps
from dsv3.report.figures import Plot, short_names, spread
from dsv3.report.metrics import smoothed
from dsv3.report.study import ExpertLoad

PLOT = Plot("loss", "Training loss", "", "nats per token", 3)


def test_a_line_is_the_mean_over_seeds_with_their_deviation() -> None:
    study = fabricated.study(arms=("none", "aux_free"), seeds=(1, 2, 3))
    line = curves.lines(study, "loss")[1]
    ends = [smoothed(run.curves["loss"].values)[-1] for run in study.of_arm("aux_free")]
    assert line.seeds == 3
    # The last bin has one step or two, and the smoothed loss moves by less than 0.01 a step.
    assert line.mean[-1] == pytest.approx(np.mean(ends), abs=0.01)
    assert line.low is not None and line.high is not None
    assert (line.high - line.mean)[-1] == pytest.approx(np.std(ends, ddof=1), abs=0.01)
    assert line.tokens[-1] == fabricated.STEPS * fabricated.TOKENS_PER_STEP


def test_differences_are_of_pairs_and_cancel_what_a_seed_does() -> None:
    study = fabricated.study(arms=("none", "aux_free"), seeds=(1, 2), missing=[("none", 2)])
    (line,) = curves.differences(study, "loss")
    assert (line.arm, line.seeds, line.low) == ("aux_free", 1, None)
    ours, theirs = (study.of_arm(arm)[0].curves["loss"] for arm in ("aux_free", "none"))
    exact = smoothed(ours.values) - smoothed(theirs.values)
    assert np.interp(0, [0], line.mean[-1:])[()] == pytest.approx(exact[-1], abs=0.003)
    assert np.abs(line.mean).max() <= np.abs(exact).max()
    (error,) = curves.relative_errors(study)
    assert (error.mean >= 0).all()


def test_a_run_that_stopped_early_does_not_bend_the_mean() -> None:
    whole = fabricated.study(arms=("none",), seeds=(1,))
    study = fabricated.study(arms=("none",), seeds=(1, 2), failed=[("none", 2)])
    (alone,), (beside) = curves.lines(whole, "loss"), curves.lines(study, "loss")
    assert np.array_equal(alone.mean, beside[0].mean) and beside[0].seeds == 1
    running = fabricated.study(arms=("none",), seeds=(1, 2), running=[("none", 1), ("none", 2)])
    (line,) = curves.lines(running, "loss")
    assert line.seeds == 2 and line.tokens[-1] < alone.tokens[-1]


def test_labels_do_not_overlap_and_keep_their_order() -> None:
    placed = spread([1.0, 1.01, 0.99, 3.0], 0.2, 0.0, 4.0)
    ordered = sorted(placed)
    assert all(b - a >= 0.2 - 1e-12 for a, b in itertools.pairwise(ordered))
    assert placed[2] < placed[0] < placed[1] < placed[3] == 3.0
    assert np.mean(placed[:3]) == pytest.approx(1.0)
    assert spread([5.0, 5.0], 0.5, 0.0, 4.0) == pytest.approx([3.5, 4.0])
    assert spread([-1.0], 0.5, 0.0, 4.0) == [0.0]


@pytest.mark.parametrize(
    "names",
    [
        ["none", "aux_free"],
        [f"balance.bias_update_speed={n}e-4, batch" for n in range(40)],
        ["b" * 90 + f"{n}" + "c" * 90 for n in range(3)] + ["x" * 90],
        ["a" * 90],
        ["a" * 30, "a" * 40],
    ],
)
def test_short_names_tell_arms_apart(names: list[str]) -> None:
    short = short_names(names, 24)
    assert list(short) == names
    assert len(set(short.values())) == len(names)
    assert max(map(len, short.values())) <= 24


@pytest.mark.parametrize("count", [2, 8, 9])
def test_every_arm_is_labelled_and_has_a_mark_beside_its_colour(count: int) -> None:
    arms = [f"arm{number}" for number in range(count)]
    study = fabricated.study(arms=arms, seeds=(1, 2))
    figure = figures.curves(PLOT, curves.lines(study, "loss"), arms[0])
    assert figure is not None
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", figure.svg)
    assert set(arms) <= set(texts)
    dotted = figure.svg.count("stroke-dasharray:1,1.65")
    assert dotted == (count if count > figures.MOST_IN_ONE_PLOT else 0)  # the baseline in each
    if count <= figures.MOST_IN_ONE_PLOT:
        marks = figures._marks(arms, arms[0])
        assert len({(mark.dashes, mark.marker) for mark in marks.values()}) == count
        assert len({mark.colour for mark in marks.values()}) == count


def test_nothing_to_draw_is_no_figure() -> None:
    assert figures.curves(PLOT, [], "none") is None


def test_a_cell_is_as_opaque_as_its_load() -> None:
    import matplotlib.image

    load = ExpertLoad(
        ("a", "b"), ("1",), np.array([[[0.0, 1.0, 5.0, 10.0]], [[25.0, 2.5, 0.0, 0.5]]])
    )
    figure = heatmaps.strips("map", "none", 1, load)
    data = re.search(r'data:image/png;base64,([^"]+)"', figure.svg)
    assert data is not None
    image = matplotlib.image.imread(io.BytesIO(base64.b64decode(data.group(1))))
    alpha = np.sort(np.round(image[..., 3] * 255).astype(int))
    expected = np.sort(np.round(np.clip(load.relative_DLE[:, 0] / 10, 0, 1) * 255).astype(int))
    assert sorted(map(tuple, alpha)) == sorted(map(tuple, expected))
    assert "layer 1: at most 25.0, expert 0 in b" in figure.description
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", figure.svg)
    assert {"largest 25.0, expert 0", "largest 10.0, expert 3", "25.0", "2.5", "5.0"} <= set(texts)


def test_first_middle_and_last_layer_are_chosen() -> None:
    def of(layers: int) -> ExpertLoad:
        return ExpertLoad(("a",), tuple(map(str, range(layers))), np.ones((1, layers, 4)))

    assert heatmaps.chosen_layers(of(26)) == (0, 12, 25)
    assert heatmaps.chosen_layers(of(2)) == (0, 1)
    assert heatmaps.chosen_layers(of(1)) == (0,)
    deep = heatmaps.all_layers("all", "none", 1, of(5))
    assert [f">layer {n}<" in deep.svg for n in range(5)] == [True] * 5


def test_a_drawing_stands_in_a_page_and_alone() -> None:
    with picture.drawing():
        from matplotlib.figure import Figure

        canvas = Figure(figsize=(2, 2))
        canvas.subplots().plot([1, 2], label="a", color=picture.SERIES[0], marker="o")
        text = picture.svg(canvas, "name", "A <title> & more", "what\x07 it shows")
        again = picture.svg(canvas, "name", "A <title> & more", "what\x07 it shows")
    assert text == again
    root = ET.fromstring(text)
    assert root.get("aria-labelledby") == "name-title name-desc"
    assert root[0].text == "A <title> & more"
    assert root[1].text == "what\\x07 it shows"
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert ids and all(str(each).startswith("name-") for each in ids)
    assert "var(--series-0)" in text and "<style" not in text and "font-family:" not in text
    assert "prefers-color-scheme" in picture.standalone(text)
    assert ET.fromstring(picture.standalone(text).encode()).tag == root.tag


def _luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_of_lines_and_text_stand_out(scheme: str) -> None:
    """WCAG 2: contrast (L1 + 0.05) / (L2 + 0.05), at least 4.5 for text."""
    paper, shade = (
        _luminance(getattr(picture.PALETTE[name], scheme)) for name in ("paper", "shade")
    )
    for name, colour in picture.PALETTE.items():
        if name in ("ink", "quiet") or name.startswith("series-"):
            for ground in (paper, shade) if name in ("ink", "quiet") else (paper,):
                light, dark = sorted((_luminance(getattr(colour, scheme)), ground), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5, name
