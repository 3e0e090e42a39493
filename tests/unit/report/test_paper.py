"""Published numbers against sums of their own table, and reasons that follow the run."""

import math

import pytest

from dsv3.config.compose import compose
from dsv3.report.comparable import (
    chosen_layers,
    column_for,
    not_comparable_because,
    scale_for,
)
from dsv3.report.metrics import METRICS
from dsv3.report.paper import ALF_UPDATE_RATE, FIGURE_9, REFERENCES, SECTION_4_5_3, TABLE_4, TABLE_5


def config(*words):
    return compose(words).config


@pytest.mark.parametrize("reference", REFERENCES.values(), ids=lambda reference: reference.name)
def test_every_row_has_a_value_for_each_column_and_a_metric_of_ours_or_none(reference):
    for scale in reference.scales:
        for row in scale.rows:
            assert len(row.values) == len(reference.columns)
            assert row.metric is None or row.metric in METRICS
    assert reference.claims


def test_the_names_are_those_that_recipes_use():
    assert set(REFERENCES) == {
        "table4",
        "table5",
        "section453",
        "figure9",
        "appendixB1",
        "appendixB2",
        "alf_update_rate",
    }


# Sums down the columns, taken from the report's tables by hand: a slip of one digit shows.
@pytest.mark.parametrize(
    ("reference", "scale", "sums"),
    [
        (TABLE_4, 0, (301.129, 324.329)),
        (TABLE_4, 1, (517.858, 534.057)),
        (TABLE_5, 0, (305.227, 311.824)),
        (TABLE_5, 1, (503.856, 520.252)),
    ],
)
def test_columns_add_up(reference, scale, sums):
    columns = zip(*(row.values for row in reference.scales[scale].rows), strict=True)
    assert [math.fsum(column) for column in columns] == pytest.approx(sums, abs=1e-9)


def test_losses_of_section_453_are_alfs_perplexities_at_1b():
    """exp(2.258) = 9.56 and exp(2.253) = 9.52: the report's baseline is ALF's."""
    ours = SECTION_4_5_3.scales[0].rows[0].values
    perplexities, losses = (row.values for row in ALF_UPDATE_RATE.scales[0].rows[:2])
    assert losses[:2] == pytest.approx([math.log(p) for p in perplexities[:2]], abs=5e-4)
    assert ours[0] == losses[0]
    assert ours[1] == pytest.approx(losses[1], abs=0.003)


@pytest.mark.parametrize(
    ("reference", "words", "label"),
    [
        (TABLE_4, ["mtp=off"], "baseline"),
        (TABLE_4, ["mtp=depth1"], "with MTP"),
        (TABLE_5, ["balance=aux_loss_v2"], "aux-loss-based"),
        (TABLE_5, ["balance=aux_free"], "aux-loss-free"),
        (TABLE_5, ["balance=none"], None),
        (SECTION_4_5_3, ["balance=aux_batch"], "batch-wise loss"),
        (ALF_UPDATE_RATE, ["balance.bias_update_speed=0.001"], "u sign(e), u = 0.001"),
        (ALF_UPDATE_RATE, ["balance.bias_update_speed=0.002"], None),
    ],
)
def test_a_run_stands_beside_its_counterpart(reference, words, label):
    found = column_for(reference, config("model=moe_nano", *words))
    assert (None if found is None else reference.columns[found].label) == label


def test_the_scale_is_that_of_the_model_else_the_smallest():
    assert scale_for(TABLE_5, config("model=moe_228b")).name == "large MoE"
    assert scale_for(TABLE_5, config("model=moe_16b")).name == "small MoE"
    assert scale_for(TABLE_5, config("model=moe_nano")).name == "small MoE"


def reasons(row, *words):
    run = config(*words)
    return " | ".join(not_comparable_because(TABLE_5, scale_for(TABLE_5, run), row, run))


def test_a_small_run_says_how_small():
    said = reasons(TABLE_5.scales[0].rows[0], "model=moe_nano")
    assert "1.52M parameters here, 15.7B there" in said
    assert "524k tokens here, 1.33T there" in said
    assert "installed text here" in said
    assert "Pile-test there" in said


def test_the_papers_own_scale_leaves_its_data_and_what_it_does_not_say():
    said = reasons(TABLE_5.scales[0].rows[0], "model=moe_16b")
    assert "parameters" not in said
    assert "tokens here" not in said
    assert "trained on installed text" in said
    assert "not published: gamma" in said
    said = reasons(TABLE_5.scales[0].rows[0], "model=moe_16b", "schedule.total_tokens=1e9")
    assert "1B tokens here, 1.33T there" in said


def test_a_benchmark_that_was_not_run_says_just_that():
    assert reasons(TABLE_5.scales[0].rows[1], "model=moe_16b") == "not measured here"


@pytest.mark.parametrize(
    ("words", "layers"),
    [
        (["model=moe_16b"], (9, 18)),
        (["model=moe_nano"], (1, 3)),  # of 4, the first one dense: 1.33 and 2.67
        (["model=moe_nano", "model.num_hidden_layers=2"], (1,)),
        (["model=moe_nano", "model.first_k_dense_replace=4", "balance=none"], ()),
    ],
)
def test_figure_9_has_the_layers_at_the_same_depth(words, layers):
    assert chosen_layers(FIGURE_9.heat_map, config(*words)) == layers
