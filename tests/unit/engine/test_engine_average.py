"""The average of the masters in host memory: its values, its thread, and what must wait for it."""

import threading

import pytest
import torch

from dsv3.engine import ema
from dsv3.engine.health import NonFiniteError

RECIPES = [("fp32", 1), ("fp32", 2), ("bf16", 1), ("bf16", 2)]
DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16}
DECAY, STEPS = 0.9, 6


def of_kind(engine, kind):
    """Copies of the fragments of a kind, by name."""
    fragments = {f.key: f.data.clone() for f in engine.fragments()}
    prefix = f"{kind}/"
    return {k.removeprefix(prefix): t for k, t in fragments.items() if k.startswith(prefix)}


def averaged(averages, masters):
    """A step of the plain loop, in FP32."""
    step = torch.tensor(1 - DECAY)
    return {name: old + (masters[name] - old) * step for name, old in averages.items()}


def differing(left, right):
    assert left.keys() == right.keys()
    return [name for name, tensor in left.items() if not torch.equal(tensor, right[name])]


@pytest.mark.parametrize(("recipe", "zero_stage"), RECIPES)
def test_it_is_the_plain_loop_bit_for_bit(engine_of, batches, monkeypatch, recipe, zero_stage):
    monkeypatch.setattr(ema, "CHUNK_ELEMENTS", 50)  # several, and a rest
    engine = engine_of(recipe, zero_stage, decay=DECAY)
    wanted = of_kind(engine, "master")
    assert differing(of_kind(engine, "ema"), wanted) == []
    exact = {name: tensor.double() for name, tensor in wanted.items()}
    for step in range(STEPS):
        engine.train_step(batches(step, 2, DTYPE[recipe]), lr=1e-2)
        masters = of_kind(engine, "master")
        wanted = averaged(wanted, masters)
        exact = {n: DECAY * t + (1 - DECAY) * masters[n].double() for n, t in exact.items()}
    found = of_kind(engine, "ema")
    assert differing(found, wanted) == []
    for name, tensor in exact.items():  # of the definition: rounded three times a step
        torch.testing.assert_close(found[name].double(), tensor, rtol=0, atol=STEPS * 2**-23)
    assert engine.expected_tensors(STEPS)["ema/head.weight"] == ((5, 13), torch.float32)


def test_there_is_none_unless_asked_for(engine_of, batches):
    engine = engine_of()
    engine.train_step(batches(0, 1), lr=1e-2)
    assert of_kind(engine, "ema") == {}
    assert not any(key.startswith("ema/") for key in engine.expected_tensors(1))


def test_an_average_of_what_does_not_move_stays(engine_of):
    """Decay and 1 - decay rounded apart would swell it by 3e-8 / (1 - decay)."""
    average = ema.HostAverage([torch.full((7,), 1 / 3)], decay=0.9999)
    for _ in range(10_000):
        average.update()
    average.close()
    assert torch.equal(average.averages[0], torch.full((7,), 1 / 3))


@pytest.fixture
def gate(monkeypatch):
    """Averaging stands still until the event is set."""
    opened, real = threading.Event(), ema._step_towards

    def held(*arguments):
        assert opened.wait(30)
        real(*arguments)

    monkeypatch.setattr(ema, "_step_towards", held)
    return opened


def test_a_step_does_not_wait_for_it_but_the_next_update_does(engine_of, batches, gate):
    engine = engine_of(decay=DECAY)
    gate.set()
    before = of_kind(engine, "ema")
    gate.clear()
    engine.train_step(batches(0, 1), lr=1e-2)  # returns
    assert not engine._average._running.done()
    masters = {n: f.clone() for n, f in _masters(engine)}
    reached = []

    def before_update(_):
        reached.append(not engine._average._running.done())  # forward and backward did not wait
        threading.Timer(0.2, gate.set).start()

    engine.train_step(batches(1, 1), lr=1e-2, before_update=before_update)
    assert reached == [True]
    wanted = averaged(averaged(before, masters), of_kind(engine, "master"))
    assert differing(of_kind(engine, "ema"), wanted) == []


def test_whoever_reads_or_writes_it_waits(engine_of, batches, gate):
    engine = engine_of(decay=DECAY)
    gate.set()
    before = of_kind(engine, "ema")
    for act in (engine.fragments, lambda: engine.prepare_load(1)):
        gate.clear()
        engine.train_step(batches(0, 1), lr=1e-2)
        threading.Timer(0.2, gate.set).start()
        act()
        assert engine._average._running is None
    assert differing(of_kind(engine, "ema"), before) != []


def _masters(engine):
    """Without waiting for the average."""
    for fragment in engine._state.fragments():
        if fragment.key.startswith("master/"):
            yield fragment.key.removeprefix("master/"), fragment.data


def test_a_refused_step_leaves_it_alone(engine_of, batches):
    engine = engine_of(decay=DECAY)
    engine.train_step(batches(0, 1), lr=1e-2)
    before = of_kind(engine, "ema")
    bad = [(inputs * torch.nan, labels) for inputs, labels in batches(1, 1)]
    with pytest.raises(NonFiniteError):
        engine.train_step(bad, lr=1e-2)
    assert differing(of_kind(engine, "ema"), before) == []


@pytest.mark.parametrize("steps", [0, 3])
def test_a_loaded_one_goes_on_bit_for_bit(engine_of, batches, snapshot, steps):
    source = engine_of("bf16", decay=DECAY)
    for step in range(steps):
        source.train_step(batches(step, 1, torch.bfloat16), lr=1e-2)
    saved = snapshot(source)
    target = engine_of("bf16", seed=5, decay=DECAY)
    target.train_step(batches(9, 1, torch.bfloat16), lr=1e-2)
    target.prepare_load(steps)
    for fragment in target.fragments():
        fragment.data.copy_(saved[fragment.key])
    target.finish_load()
    for engine in (source, target):
        engine.train_step(batches(7, 1, torch.bfloat16), lr=1e-2)
    assert differing(of_kind(target, "ema"), of_kind(source, "ema")) == []
