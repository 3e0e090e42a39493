"""`schedule`: how long, how much at once, and the curves over tokens seen."""

from dsv3.config.curves import Curve
from dsv3.config.section import Section, field


class ScheduleConfig(Section):
    """Curves are written on `reference_tokens` and stretched to `total_tokens` (the axis only).

    A step that brings the run from t0 to t1 tokens takes every curve at t1.
    """

    total_tokens: int = field("Tokens of the run; the last step is the one that reaches it.", gt=0)
    reference_tokens: int = field("Length of the axis the curves are written on.", gt=0)
    sequence_length: int = field("Tokens per sample.", gt=1)
    global_batch_size: int = field("Sequences per optimizer step, over all ranks (peak).", gt=0)
    batch_size_quantum: int = field(
        "The batch follows its curve in multiples of so many sequences.", gt=0
    )
    micro_batch_size: int = field("Sequences per rank in one forward pass.", gt=0)
    lr: float = field("Peak learning rate; the curve's values are fractions of it.", gt=0)
    lr_curve: Curve = field("Learning rate over tokens, as a fraction of `lr`.")
    bias_update_speed_curve: Curve = field(
        "Speed of the router bias over tokens, as a fraction of `balance.bias_update_speed`."
    )
    batch_size_curve: Curve = field(
        "Sequences per step over tokens, as a fraction of `global_batch_size`; read where the step"
        " begins."
    )
    mtp_loss_coeff_curve: Curve = field(
        "Weight of the MTP loss over tokens, as a fraction of `mtp.loss_coeff`."
    )

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step."""
        return self.global_batch_size * self.sequence_length

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run."""
        return -(-self.total_tokens // self.tokens_per_step)

    def lr_at(self, tokens_after: int) -> float:
        """Learning rate of the step that brings the run to `tokens_after` tokens.

        Taken at the end of the step: the first step of a warm-up from zero has a learning rate.
        """
        return self.lr * self.lr_curve.at(self.on_reference_axis(tokens_after))

    def bias_update_speed_at(self, tokens_after: int) -> float:
        """Fraction of the router's bias speed (gamma), for the same step as `lr_at`."""
        return self.bias_update_speed_curve.at(self.on_reference_axis(tokens_after))

    def mtp_loss_coeff_at(self, tokens_after: int) -> float:
        """Fraction of the weight of the MTP loss (lambda), for the same step as `lr_at`."""
        return self.mtp_loss_coeff_curve.at(self.on_reference_axis(tokens_after))

    def on_reference_axis(self, tokens: int) -> float:
        """Place `tokens` of this run on the axis the curves are written on.

        One division of integers: where the two axes meet exactly, the result is exact, and a phase
        does not end a step early by rounding.
        """
        return tokens * self.reference_tokens / self.total_tokens
