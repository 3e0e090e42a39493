"""Everything `dsv3 plan` says about one run, as plain data: what `--json` prints."""

from typing import Any

from dsv3.config.root import RunConfig
from dsv3.plan.description import balance_record
from dsv3.plan.flops import mtp_flops_per_token, training_flops_per_token
from dsv3.plan.memory import state_bytes_of_all_ranks, state_bytes_per_rank
from dsv3.plan.parameters import count_mtp, count_parameters


def plan_record(config: RunConfig) -> dict[str, Any]:
    """Parameters, FLOPs, length, layout and memory of a run, from the configuration alone.

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
        "memory": _memory(config),
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


def _memory(config: RunConfig) -> dict[str, int]:
    """State only: activations are not in these numbers, as the names say."""
    state = state_bytes_per_rank(config)
    return {
        "weights_bytes_per_rank": state.weights,
        "gradients_bytes_per_rank": state.gradients,
        "optimizer_bytes_per_rank": state.optimizer,
        "state_bytes_per_rank": state.total,
        "state_bytes_of_all_ranks": state_bytes_of_all_ranks(config),
    }
