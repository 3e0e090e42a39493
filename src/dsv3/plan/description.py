"""What a run is, in the few numbers one wants to see before anything starts."""

from dataclasses import dataclass
from typing import Any

from dsv3.config.balance import BalanceConfig
from dsv3.config.mtp import MtpConfig
from dsv3.config.parallelism import ParallelismConfig
from dsv3.config.root import RunConfig
from dsv3.plan.parameters import count_parameters
from dsv3.plan.quantities import count, plural


@dataclass(frozen=True)
class Description:
    """Size, length, arm and layout of a run; `active` is body + head, MTP not included."""

    name: str
    total: int
    active: int
    tokens: int
    steps: int
    balance: str
    mtp: str
    world_size: int
    layout: str

    def __str__(self) -> str:
        return (
            f"{self.name}: {count(self.total)} parameters, {count(self.active)} active per token;"
            f" {count(self.tokens)} token{'' if self.tokens == 1 else 's'}"
            f" in {plural(self.steps, 'step')};"
            f" balance {self.balance};{f' mtp {self.mtp};' if self.mtp else ''}"
            f" {plural(self.world_size, 'rank')}"
            + (f" ({self.layout})" if self.world_size > 1 else "")
        )


def describe(config: RunConfig) -> Description:
    """Describe the run of `config`, from the configuration alone."""
    counts = count_parameters(config.model)
    return Description(
        name=config.model.name,
        total=counts.total,
        active=counts.active,
        tokens=config.schedule.total_tokens,
        steps=config.schedule.num_steps,
        balance=describe_balance(config.balance),
        mtp=describe_mtp(config.mtp),
        world_size=config.parallelism.world_size,
        layout=describe_layout(config.parallelism),
    )


def describe_balance(balance: BalanceConfig) -> str:
    """`aux_loss_v2 (alpha_1 0.003, alpha_2 0.05, alpha_3 0.02)`: the arm with its strengths."""
    strengths = [f"gamma {balance.bias_update_speed:g}"] if balance.has_expert_bias else []
    if balance.has_expert_bias and balance.bias_update_rule != "sign":
        strengths.append(balance.bias_update_rule)
    many = len(balance.coeffs) > 1
    strengths += [
        f"alpha{f'_{number}' if many else ''} {coeff:g}"
        for number, coeff in enumerate(balance.coeffs.values(), start=1)
    ]
    return balance.strategy + (f" ({', '.join(strengths)})" if strengths else "")


def describe_mtp(mtp: MtpConfig) -> str:
    """`depth 1 (lambda 0.3)`; empty where there is none."""
    depth = mtp.num_nextn_predict_layers
    return f"depth {depth} (lambda {mtp.loss_coeff:g})" if depth > 0 else ""


def balance_record(balance: BalanceConfig) -> dict[str, Any]:
    """The arm with its strengths as plain data, coefficients by key."""
    return {
        "strategy": balance.strategy,
        "coeffs": balance.coeffs,
        "bias_update_speed": balance.bias_update_speed,
    }


def describe_layout(layout: ParallelismConfig) -> str:
    """`16 pipeline x 8 expert x 1 expert-data`: the factors of the world size."""
    return (
        f"{layout.pipeline_parallel_size} pipeline x {layout.expert_parallel_size} expert"
        f" x {layout.expert_data_parallel_size} expert-data"
    )
