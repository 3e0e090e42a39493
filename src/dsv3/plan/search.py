"""Layouts of a run on a cluster: those that fit, the fastest first."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dsv3.config import rules
from dsv3.config.parallelism import PARTS_PER_STAGE, ParallelismConfig, PipelineSchedule
from dsv3.config.recompute import RecomputePolicy
from dsv3.config.root import RunConfig
from dsv3.errors import CapacityError, Problem
from dsv3.plan.memory import state_bytes_per_rank
from dsv3.plan.peak import peak_memory
from dsv3.plan.quantities import size
from dsv3.plan.setting import Setting
from dsv3.plan.step_time import Clock, StepTime

POLICIES: tuple[RecomputePolicy, ...] = ("none", "norm_and_up_projection", "moe", "full")
LARGEST_MICRO_BATCH = 16


@dataclass(frozen=True)
class Found:
    """A layout that fits."""

    config: RunConfig
    step: StepTime
    peak_bytes: int
    hours: float  # of the whole run, as if every step had full size

    @property
    def override_line(self) -> str:
        """What to write behind the words that were given."""
        layout = self.config.parallelism
        words = [f"parallelism.{key}={value}" for key, value in layout.model_dump().items()]
        words.append(f"schedule.micro_batch_size={self.config.schedule.micro_batch_size}")
        words.append(f"recompute={self.config.recompute}")
        return " ".join([*words, f"precision={self.config.precision.recipe}"])


Progress = Callable[[float], None]


def search(
    configs: list[RunConfig],
    setting: Setting,
    *,
    most: int,
    progress: Progress = lambda _: None,
) -> list[Found]:
    """At most `most` layouts of `setting.gpus` GPUs for a run, in one of several precisions.

    `configs` are the run in each precision. Step times come first, because they cost little; then
    memory, from the fastest on, until enough of them fit. Raises CapacityError if none does, with
    the one that comes nearest.
    """
    assert setting.gpus is not None
    limit = setting.usable_bytes
    candidates = [each for config in configs for each in _candidates(config, setting.gpus)]
    timed = []
    for number, config in enumerate(candidates):
        step = Clock(config, setting.hardware).step(config.schedule.global_batch_size)
        timed.append((step.total / step.tokens, number, config, step))
        progress(0.5 * (number + 1) / len(candidates))
    found: list[Found] = []
    nearest: tuple[int, RunConfig] | None = None
    for turn, (seconds, _, config, step) in enumerate(sorted(timed)):
        progress(0.5 + 0.5 * (turn + 1) / len(timed))
        peak = state_bytes_per_rank(config).total
        if peak <= limit or nearest is None or peak < nearest[0]:
            peak = peak_memory(config, max_violation=setting.max_violation).bytes_per_rank
            if nearest is None or peak < nearest[0]:
                nearest = peak, config
        if peak <= limit and not any(rules.broken(config)):
            hours = seconds * config.schedule.total_tokens / 3600
            found.append(Found(config, step, peak, hours))
        if len(found) == most:
            break
    if not found:
        raise _nothing(nearest, setting)
    return found


def refuse_smaller_cluster(configs: list[RunConfig], setting: Setting) -> None:
    """Raise CapacityError if a run has more ranks than there are GPUs; it names what would fit."""
    gpus = setting.gpus
    too_large = [c for c in configs if gpus is not None and c.parallelism.world_size > gpus]
    if not too_large:
        return
    config = max(too_large, key=lambda each: each.parallelism.world_size)
    ranks = config.parallelism.world_size
    try:
        nearest = f"or on {gpus}: {search([config], setting, most=1)[0].override_line}"
    except CapacityError:
        nearest = f"no layout fits on {gpus} {setting.hardware.gpu}"
    rule = f"the layout of model={config.model.name} has {ranks:,} ranks, one GPU each"
    raise CapacityError(Problem(f"--gpus {gpus}", rule, f"use --gpus {ranks}, {nearest}"))


def _candidates(config: RunConfig, gpus: int) -> Iterator[RunConfig]:
    """Every combination of layout, micro batch and recomputation; some may break a rule."""
    for layout in _layouts(config, gpus):
        share = config.schedule.global_batch_size // layout.data_parallel_size
        for micro_batch in _powers_of_two(min(share, LARGEST_MICRO_BATCH)):
            schedule = config.schedule.model_copy(update={"micro_batch_size": micro_batch})
            fewest = layout.fewest_micro_batches
            if schedule.micro_batch_size_of(share, at_least=fewest) != micro_batch:
                continue  # the step is cut finer than that
            changed = {"parallelism": layout, "schedule": schedule}
            for policy in POLICIES:
                yield config.model_copy(update=changed | {"recompute": policy})


def _layouts(config: RunConfig, gpus: int) -> Iterator[ParallelismConfig]:
    """Pipelines of powers of two, every divisor of the experts, as many replicas as there is room.

    Replicas are as many as divide the batch's quantum, so that every step can be shared out.
    """
    experts, quantum = config.model.n_routed_experts, config.schedule.batch_size_quantum
    divisors = [n for n in range(1, experts + 1) if experts % n == 0]
    schedules: tuple[PipelineSchedule, ...] = ("1f1b", "dualpipev")
    for stages in _powers_of_two(gpus):
        for schedule in schedules if stages > 1 else schedules[:1]:
            if stages * PARTS_PER_STAGE[schedule] > config.model.num_hidden_layers:
                continue
            for ranks in divisors:
                room = gpus // (stages * ranks)
                replicas = next((n for n in range(room, 0, -1) if quantum % (n * ranks) == 0), 0)
                if replicas > 0:
                    yield ParallelismConfig(
                        pipeline_parallel_size=stages,
                        expert_parallel_size=ranks,
                        expert_data_parallel_size=replicas,
                        pipeline_schedule=schedule,
                        zero_stage=1,
                    )


def _powers_of_two(most: int) -> list[int]:
    return [2**power for power in range(most.bit_length())] if most > 0 else []


def _nothing(nearest: tuple[int, RunConfig] | None, setting: Setting) -> CapacityError:
    what = f"--gpus {setting.gpus} --hardware {setting.name}"
    if nearest is None:
        return CapacityError(Problem(what, "no layout of so few GPUs shares out this batch"))
    peak, config = nearest
    rule = f"no layout fits into {size(setting.usable_bytes)} of a GPU's memory"
    layout = config.parallelism
    remedy = (
        f"the nearest needs {size(peak)}: {layout.pipeline_parallel_size} pipeline x"
        f" {layout.expert_parallel_size} expert x {layout.expert_data_parallel_size} expert-data,"
        f" recompute={config.recompute}; give it more GPUs, or ones with more memory"
    )
    return CapacityError(Problem(what, rule, remedy))
