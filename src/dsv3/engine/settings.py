"""DeepSpeed's own configuration, derived from ours; users never write it."""

from typing import Any

from dsv3.config.root import RunConfig

# Elements that ZeRO reduces at once. Its default of 5e8 reserves 2 GB on every rank.
BUCKET_ELEMENTS = 50_000_000


def deepspeed_settings(config: RunConfig) -> dict[str, Any]:
    """Settings for `deepspeed.initialize`.

    Accumulation is ours (`TrainingEngine.train_step` marks the last micro batch), hence 1 here:
    DeepSpeed would divide by a fixed number, and the batch size may follow a schedule.
    """
    bf16 = config.precision.weights == "bf16"
    micro_batch_size = config.schedule.micro_batch_size
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": 1,
        "train_batch_size": micro_batch_size * config.parallelism.data_parallel_size,
        "gradient_clipping": 0.0,  # TrainingEngine clips
        "zero_allow_untested_optimizer": config.optimizer.moment_dtype != "fp32",  # our own class
        # bf16 runs would reduce gradients in bf16 even when they accumulate in FP32.
        "communication_data_type": "fp32",
        "zero_optimization": {
            "stage": config.parallelism.zero_stage,
            "overlap_comm": False,
            # The norm is TrainingEngine's; BF16_Optimizer insists on computing one.
            "compute_grad_norm": bf16,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
        },
    }
    if bf16:
        settings["bf16"] = {
            "enabled": True,
            # Adds each gradient to its FP32 sum as soon as backward yields it, and frees it.
            "immediate_grad_update": True,
            "check_grad_overflow": False,  # TrainingEngine checks before every step
        }
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings
