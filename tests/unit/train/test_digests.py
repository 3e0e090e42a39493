"""Every digest is of what it says: it changes with it, and with nothing else."""

import random
from types import SimpleNamespace

import pytest
import torch

from dsv3.engine.fragments import Fragment
from dsv3.train.digests import KINDS, Digests, StepDigests
from dsv3.train.layers import ModelLayers
from dsv3.train.load import Load
from dsv3.train.position import Position
from dsv3.train.reporter import Reports

LAYER = "model.layers.1.mlp"
LINE = {"step": 3, "loss": 0.1, "mtp_loss": [0.2], "lr": 1e-3, "tokens_per_second": 7.0}


class Heard(Reports):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines = []

    def digests(self, record):
        self.lines.append(record)


def fragments(dtype=torch.float32) -> list[Fragment]:
    return [
        Fragment(f"{kind}/weight", (2, 3), 1, torch.arange(4.0).to(dtype), saved_here=True)
        for kind in KINDS
    ]


def run(*, ids=0, labels=0, count=0, bias=0.0, held=None, optimizer_step=3, state=None, data="d"):
    """The line of a step and the final one."""
    random.seed(0)
    router = SimpleNamespace(e_score_correction_bias=torch.tensor([bias, 1.0]))
    heard = Heard()
    digests = StepDigests(
        SimpleNamespace(all_gather=lambda value: [value], device=torch.device("cpu")),
        SimpleNamespace(fragments=lambda: held or fragments(), optimizer_step=optimizer_step),
        ModelLayers(
            {LAYER: SimpleNamespace(router=router)},
            names=[LAYER],
            experts=2,
            top_k=1,
            device=torch.device("cpu"),
        ),
        [SimpleNamespace(name="lr")],
        heard,
        data_fingerprint=data,
    )
    batch = (torch.tensor([[ids, 2]]), torch.tensor([[labels, 3]]), torch.tensor(0.3))
    nothing = torch.zeros(1, dtype=torch.int64)
    digests.take([batch], Load((LAYER,), 1, torch.tensor([[count, 5]]), nothing, nothing))
    position = Position(3, 24, 6)
    digests.step(LINE, position, lambda: state or {"alarms": {"steps": 1}})
    digests.final(position, lambda: state or {"alarms": {"steps": 1}})
    return heard.lines


def changed(left, right) -> set[str]:
    assert left.keys() == right.keys()
    return {key for key in left if left[key] != right[key] and key != "streams"}


def test_numbers_are_exact_and_the_clock_is_left_out() -> None:
    line, final = run()
    assert (line["step"], line["tokens"], line["samples"]) == (3, 24, 6)
    assert float.fromhex(line["loss"]) == 0.1
    assert [float.fromhex(each) for each in line["mtp_loss"]] == [0.2]
    assert "tokens_per_second" not in line
    assert (final["kind"], final["step"], final["optimizer_step"]) == ("final", 3, 3)
    assert final["position"] == {"step": 3, "tokens": 24, "samples": 6}


@pytest.mark.parametrize(
    ("change", "in_step", "in_final"),
    [
        ({}, set(), set()),
        ({"ids": 1}, {"batch"}, set()),
        ({"labels": 1}, {"batch"}, set()),
        ({"count": 1}, {"tokens_per_expert"}, set()),
        ({"bias": 1e-9}, {"biases"}, set()),
        ({"state": {"alarms": {"steps": 2}}}, {"state"}, {"state"}),
        ({"optimizer_step": 2}, set(), {"optimizer_step"}),
        ({"data": "other"}, set(), {"data_fingerprint"}),
    ],
)
def test_a_change_shows_where_it_belongs(change, in_step, in_final) -> None:
    before, after = run(), run(**change)
    assert changed(before[0], after[0]) == in_step
    assert changed(before[1], after[1]) == in_final


@pytest.mark.parametrize("number", range(len(KINDS)))
@pytest.mark.parametrize(
    "change",
    [
        {"data": torch.tensor([0.0, 1.0, 2.0, 3.0000002])},
        {"data": torch.tensor([-0.0, 1.0, 2.0, 3.0])},
        {"data": torch.arange(4.0).bfloat16()},
        {"offset": 2},
        {"shape": (3, 2)},
    ],
)
def test_every_bit_of_a_fragment_and_its_place_count(number, change) -> None:
    held = fragments()
    held[number] = held[number]._replace(**change)
    assert changed(run()[1], run(held=held)[1]) == {list(KINDS.values())[number]}


def test_streams_tell_how_many_steps_they_have_been_through() -> None:
    (line, _), (other, _) = run(), run()
    assert line["streams"][0]["python"] == other["streams"][0]["python"]  # seeded by `run`
    assert line["streams"][0]["numpy"] != other["streams"][0]["numpy"]
    assert line["streams"][0]["torch_cpu"] != other["streams"][0]["torch_cpu"]


def test_without_the_option_nothing_is_asked_for() -> None:
    def state():
        raise AssertionError("asked for")

    before = torch.get_rng_state()
    Digests().step(LINE, Position(), state)
    Digests().final(Position(), state)
    assert torch.equal(torch.get_rng_state(), before)
