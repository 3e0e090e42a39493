"""`RunConfig`: the whole configuration of one run."""

from dsv3.config.balance import BalanceConfig
from dsv3.config.checkpoint import CheckpointConfig
from dsv3.config.data import DataConfig
from dsv3.config.ema import EmaConfig
from dsv3.config.evaluation import EvaluationConfig
from dsv3.config.health import HealthConfig
from dsv3.config.launcher import LauncherConfig
from dsv3.config.model import ModelConfig
from dsv3.config.mtp import MtpConfig
from dsv3.config.optimizer import OptimizerConfig
from dsv3.config.parallelism import ParallelismConfig
from dsv3.config.precision import PrecisionConfig
from dsv3.config.recompute import RecomputePolicy
from dsv3.config.schedule import ScheduleConfig
from dsv3.config.section import Section, field
from dsv3.config.tracking import TrackingConfig


class RunSection(Section):
    """Keys of the run itself."""

    tag: str | None = field(
        "Part of the run's identity: set it to start the same run afresh.", min_length=1
    )
    heartbeat_timeout: float = field(
        "Seconds one of several ranks may be silent while it trains or evaluates; then the group"
        " ends. A rank gives a sign after every micro batch.",
        gt=0,
    )
    startup_timeout: float = field(
        "Seconds one of several ranks may take from its start to the first micro batch, and for its"
        " end.",
        gt=0,
    )
    storage_timeout: float = field(
        "Seconds one of several ranks may take to load or save a checkpoint.", gt=0
    )
    digests: bool = field(
        "Write digests.jsonl: hashes of the batch, loads, biases and random streams of every step,"
        " and of the final state. Two runs are equal bit for bit if these files are."
    )
    timeline_step: int | None = field(
        "Record what every rank does in this step: timeline/step-N.json, a trace for Perfetto, and"
        " step-N.svg in the run's directory. null: none.",
        gt=0,
    )


class RunConfig(Section):
    """One run, completely: what the ranks read from config.yaml."""

    seed: int = field("Seed of initial weights and of the order of samples.", ge=0, lt=2**63)
    run_root: str = field("Directory the run directories are made in.", min_length=1)
    sweep_root: str = field("Directory of the records of sweeps.", min_length=1)
    run: RunSection = field("The run itself.")
    model: ModelConfig = field("The architecture.")
    parallelism: ParallelismConfig = field("How the run is spread over ranks.")
    precision: PrecisionConfig = field("The arithmetic.")
    recompute: RecomputePolicy = field(
        "What the backward pass makes again instead of keeping it, bit for bit the same."
        " `norm_and_up_projection`: norms, and queries, keys and values from their latents; `moe`:"
        " the FFN of MoE layers, its exchange of tokens too; `full`: all but a layer's input."
    )
    schedule: ScheduleConfig = field("Length, batch and curves.")
    balance: BalanceConfig = field("Expert load balancing.")
    mtp: MtpConfig = field("Multi-token prediction.")
    data: DataConfig = field("The text.")
    optimizer: OptimizerConfig = field("AdamW and clipping.")
    ema: EmaConfig = field("Average of the parameters.")
    evaluation: EvaluationConfig = field("Loss on held-out text.")
    health: HealthConfig = field("What follows a bad step, and what is watched.")
    checkpoint: CheckpointConfig = field("What is kept and how a run goes on.")
    tracking: TrackingConfig = field("Mirrors of the metrics.")
    launcher: LauncherConfig = field("Where ranks are started.")

    @property
    def gradient_accumulation_steps(self) -> int:
        """Micro batches per rank in a step of full size; the batch divides over the ranks."""
        share = self.schedule.global_batch_size // self.parallelism.data_parallel_size
        fewest = self.parallelism.fewest_micro_batches
        return share // self.schedule.micro_batch_size_of(share, at_least=fewest)
