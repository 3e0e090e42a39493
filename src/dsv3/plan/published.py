"""What the plan makes of published runs, beside what was published: the gap is the point.

Sources: "V3" is arXiv 2412.19437, "ISCA" is "Insights into DeepSeek-V3", arXiv 2505.09343.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dsv3.config.hardware import Hardware
from dsv3.config.root import RunConfig
from dsv3.plan.cache import kv_cache_bytes_per_token
from dsv3.plan.chunk_time import PartTime, part_times
from dsv3.plan.flops import training_flops_per_token
from dsv3.plan.methods import ChunkTimes, bubble_s
from dsv3.plan.parameters import count_parameters
from dsv3.plan.stages import layer_ranges
from dsv3.plan.step_time import Clock
from dsv3.plan.timeline import run

RANKS, MICRO_BATCHES = 16, 120
"""V3's pipeline, and its micro batches a step: 15,360 sequences over 128 data ranks."""
GPUS = 2048


@dataclass(frozen=True)
class StepBreakdown:
    """ISCA, table 4: seconds of a step of V3 on 2,048 H800, by kind of work."""

    step: float = 19.926
    forward: float = 1.13
    bubble: float = 2.06
    backward: float = 1.99
    weights: float = 0.48
    pair: float = 13.95
    optimizer: float = 0.29
    utilisation: float = 0.3894  # causal, of the BF16 peak


BREAKDOWN = StepBreakdown()
CHUNKS = {"F": 23, "P": 97, "B": 8, "I": 15, "W": 15}
"""Pieces of work of the first rank in DualPipe with 16 ranks and 120 micro batches."""


@dataclass(frozen=True)
class Check:
    """A published figure and the plan's."""

    what: str
    source: str
    unit: str
    published: float
    planned: float

    @property
    def gap(self) -> float:
        """Relative: planned / published - 1."""
        return self.planned / self.published - 1


def chunk_times(breakdown: StepBreakdown = BREAKDOWN) -> ChunkTimes:
    """Seconds of single chunks: the breakdown's sums over how many of each the first rank does.

    Its "1B" are 8 whole backward passes and 15 of inputs alone.
    """
    weights = breakdown.weights / CHUNKS["W"]
    backwards = CHUNKS["B"] + CHUNKS["I"]
    return ChunkTimes(
        forward=breakdown.forward / CHUNKS["F"],
        backward=(breakdown.backward + CHUNKS["I"] * weights) / backwards,
        weights=weights,
        pair=breakdown.pair / CHUNKS["P"],
    )


def checks(compose: Callable[[list[str]], RunConfig], hardware: Hardware) -> Iterator[Check]:
    """All of them; `compose` makes a configuration, `hardware` is the H800's profile."""
    v3 = compose(["model=moe_671b"])
    v2 = compose(["model=moe_228b", "model.vocab_size=102400", "model.first_k_dense_replace=1"])
    yield from _sizes(v3, v2)
    yield from _step()
    yield from _hours("from ISCA's utilisation and the peak", _from_utilisation(v3, hardware))
    planned = _from_peaks(compose, hardware)
    efficiency = f"peaks x {hardware.efficiency:g}, overlapped"
    yield Check(f"step, {efficiency}", "ISCA table 4", "s", BREAKDOWN.step, planned)
    tokens = v3.schedule.peak_tokens_per_step
    yield from _hours(f"from {efficiency}", planned * GPUS / 3600 / tokens * 1e12)


def _sizes(v3: RunConfig, v2: RunConfig) -> Iterator[Check]:
    for name, config, published in (("V3", v3, 250), ("V2", v2, 155)):
        flops = training_flops_per_token(config.model, sequence_length=4096)
        yield Check(
            f"{name}: training FLOPs per token at 4096",
            "ISCA table 2",
            "GFLOP",
            published,
            flops / 1e9,
        )
    counts = count_parameters(v3.model)
    yield Check("V3: parameters", "V3 section 4.2", "B", 671, counts.total / 1e9)
    yield Check("V3: active parameters", "V3 section 4.2", "B", 37, counts.active / 1e9)
    cache = kv_cache_bytes_per_token(v3.model) / 1e3
    yield Check("V3: cache per token", "ISCA table 1", "KB", 70.272, cache)


def _step() -> Iterator[Check]:
    """Chunk times of the first rank in, the step of the whole pipeline out."""
    times = chunk_times()
    timeline = run("dualpipe", RANKS, MICRO_BATCHES, times)
    yield Check(
        "step, simulated from its chunk times",
        "ISCA table 4",
        "s",
        BREAKDOWN.step,
        timeline.makespan_s + BREAKDOWN.optimizer,
    )
    yield Check("bubble, simulated", "ISCA table 4", "s", BREAKDOWN.bubble, timeline.bubbles_s[0])
    yield Check(
        "bubble, by table 2 of V3",
        "ISCA table 4",
        "s",
        BREAKDOWN.bubble,
        bubble_s("dualpipe", RANKS, times),
    )


def _from_utilisation(v3: RunConfig, hardware: Hardware) -> float:
    flops = training_flops_per_token(v3.model, sequence_length=4096)
    per_second = BREAKDOWN.utilisation * hardware.bf16_flops / flops
    return 1e12 / per_second / 3600


def _hours(how: str, hours_per_trillion: float) -> Iterator[Check]:
    source, whole = "V3 table 1", 14.8 * hours_per_trillion
    yield Check(f"GPU-hours per trillion tokens, {how}", source, "k", 180, hours_per_trillion / 1e3)
    yield Check(f"GPU-hours of pre-training, {how}", source, "k", 2664, whole / 1e3)
    yield Check(f"cost of pre-training at $2, {how}", source, "M$", 5.328, 2 * whole / 1e6)


def _from_peaks(compose: Callable[[list[str]], RunConfig], hardware: Hardware) -> float:
    """A step as the report overlaps it: DualPipe, FP8, tokens once to each node."""
    words = ["model=moe_671b", "precision=fp8_block", "recompute=norm_and_up_projection"]
    config = compose([*words, "parallelism.pipeline_schedule=1f1b", "mtp=depth1"])
    parts = part_times(config, hardware, layer_ranges(config), tokens=4096, once_per_node=True)
    busiest = max(parts, key=lambda part: part.forward + part.backward)
    timeline = run("dualpipe", RANKS, MICRO_BATCHES, _overlapped(busiest))
    step = Clock(config, hardware).step(config.schedule.global_batch_size)
    return timeline.makespan_s + step.reduction + step.optimizer


def _overlapped(part: PartTime) -> ChunkTimes:
    computing = part.forward_compute + part.backward_compute
    travelling = part.forward_exchange + part.backward_exchange
    return ChunkTimes(part.forward, part.backward, part.weights, max(computing, travelling))
