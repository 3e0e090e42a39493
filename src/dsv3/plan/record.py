"""Everything `dsv3 plan` says about one run, as plain data: what `--json` prints."""

from dataclasses import asdict
from typing import Any

from dsv3.config.root import RunConfig
from dsv3.plan.cache import kv_cache_bytes_per_token
from dsv3.plan.description import balance_record
from dsv3.plan.disk import disk_bytes
from dsv3.plan.flops import flops_by_part, mtp_flops_per_token, training_flops_per_token
from dsv3.plan.memory import state_bytes_of_all_ranks, state_bytes_per_rank
from dsv3.plan.parameters import count_mtp, count_parameters
from dsv3.plan.peak import peak_memory
from dsv3.plan.pipeline import pipeline_record
from dsv3.plan.setting import Setting
from dsv3.plan.step_time import Clock, RunTime

_COUNTS = ("micro_batches", "tokens")


def plan_record(config: RunConfig, setting: Setting) -> dict[str, Any]:
    """Parameters, FLOPs, length, layout, memory, time and price of a run, before it starts.

    `parameters` and `flops_per_token` are those of the main model, attention is causal; the MTP
    module's own stand under `mtp`, and `total_flops` has both.
    """
    schedule, layout = config.schedule, config.parallelism
    flops = training_flops_per_token(config.model, sequence_length=schedule.sequence_length)
    mtp = _mtp(config)
    return {
        "model": config.model.name,
        "parameters": _parameters(config),
        "flops_per_token": flops,
        "flops_per_token_by_part": flops_by_part(
            config.model, sequence_length=schedule.sequence_length
        ),
        "kv_cache_bytes_per_token": kv_cache_bytes_per_token(config.model),
        "balance": balance_record(config.balance),
        "mtp": mtp,
        "total_flops": (flops + mtp["flops_per_token"]) * schedule.total_tokens,
        "tokens": schedule.total_tokens,
        "tokens_per_step": schedule.peak_tokens_per_step,
        "batch_size": {"first": schedule.batch_size_at(0), "peak": schedule.global_batch_size},
        "steps": schedule.num_steps,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "world_size": layout.world_size,
        "parallelism": layout.model_dump(),
        "precision": config.precision.recipe,
        "recompute": config.recompute,
        **setting.once(config, lambda: _needs(config, setting)),
        "disk": asdict(disk_bytes(config)) | {"total": disk_bytes(config).total},
    }


def _needs(config: RunConfig, setting: Setting) -> dict[str, Any]:
    """Memory, time and price; the same for every seed."""
    clock = Clock(config, setting.hardware)
    run = clock.run()
    return {
        "memory": _memory(config, setting),
        "time": _time(run),
        "gpu_hours": run.gpu_hours,
        "cost_usd": None if setting.price is None else run.gpu_hours * setting.price,
        "pipeline": pipeline_record(config, clock),
        "hardware": _hardware(setting),
    }


def _hardware(setting: Setting) -> dict[str, Any]:
    return {
        "name": setting.name,
        "gpu": setting.hardware.gpu,
        "memory_bytes": setting.hardware.memory_bytes,
        "usable_bytes": setting.usable_bytes,
        "efficiency": setting.hardware.efficiency,
        "usd_per_gpu_hour": setting.price,
    }


def _time(run: RunTime) -> dict[str, Any]:
    step = run.step
    return {
        "step_seconds": step.total,
        "step": {key: value for key, value in asdict(step).items() if key not in _COUNTS},
        "micro_batches": step.micro_batches,
        "seconds": run.seconds,
        "tokens_per_second": run.tokens / run.seconds,
        "tokens_per_second_per_gpu": run.tokens_per_second_per_gpu,
        "utilisation": run.utilisation,
    }


def _parameters(config: RunConfig) -> dict[str, int]:
    counts = count_parameters(config.model)
    return {
        "total": counts.total,
        "active": counts.active,
        "active_with_embedding": counts.active_with_embedding,
        "body": counts.body,
        "body_active": counts.body_active,
        "embedding": counts.embedding,
        "head": counts.head,
        "attention_per_layer": counts.attention,
        "dense_layer": counts.dense_layer,
        "moe_layer": counts.moe_layer,
        "expert": counts.expert,
    }


def _mtp(config: RunConfig) -> dict[str, Any]:
    depth = config.mtp.num_nextn_predict_layers
    counts = count_mtp(config.model, depth=depth)
    return {
        "num_nextn_predict_layers": depth,
        "loss_coeff": config.mtp.loss_coeff,
        "parameters": {"total": counts.total, "active": counts.active},
        "flops_per_token": mtp_flops_per_token(
            config.model, sequence_length=config.schedule.sequence_length, depth=depth
        ),
    }


def _memory(config: RunConfig, setting: Setting) -> dict[str, Any]:
    """State, which has no activations in it, and the peak, which has everything."""
    state = state_bytes_per_rank(config)
    peak = peak_memory(config, max_violation=setting.max_violation)
    largest = peak.largest
    return {
        "weights_bytes_per_rank": state.weights,
        "gradients_bytes_per_rank": state.gradients,
        "optimizer_bytes_per_rank": state.optimizer,
        "state_bytes_per_rank": state.total,
        "state_bytes_of_all_ranks": state_bytes_of_all_ranks(config),
        "peak_bytes_per_rank": largest.peak_bytes,
        "peak_stage": largest.stage,
        "host_bytes_per_rank": largest.host_bytes,
        "max_violation": setting.max_violation,
        "device": peak.device,
        "stages": [
            {
                "stage": stage.stage,
                "peak_bytes": stage.peak_bytes,
                "moment": stage.moment,
                "micro_batches": list(stage.in_flight),
                "parts": {name: size for name, size in stage.parts.items() if size > 0},
            }
            for stage in peak.stages
        ],
    }
