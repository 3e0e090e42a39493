"""A run that a CPU trains in seconds, on text of its own, and what is compared between two."""

import json
import random
from pathlib import Path

from safetensors import safe_open

from dsv3.config.root import RunConfig
from dsv3.runs.directory import RunDirectory
from dsv3.runs.rank import RankArguments
from dsv3.train import worker

CHECKPOINT_EVERY = 20
OVERRIDES = [
    "model=moe_nano",
    "model.vocab_size=320",
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.intermediate_size=64",
    "model.moe_intermediate_size=16",
    "model.n_routed_experts=8",
    "schedule.sequence_length=32",
    "schedule.global_batch_size=4",
    "schedule.batch_size_quantum=4",  # no ramp: every step has the same tokens
    "schedule.micro_batch_size=2",
    "evaluation.sequences=8",
    "evaluation.every_steps=25",
    f"checkpoint.every_steps={CHECKPOINT_EVERY}",
    # Several tests run at once: threads of OpenMP would spin for cores that others need.
    "launcher.threads_per_rank=1",
    "data=jsonl",
]
CLOCKED = ("tokens_per_second", "checkpoint_stall_s")
TOKENS_PER_STEP = 32 * 4
WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota")


def write_text(path: Path, *, documents: int = 200, seed: int = 0) -> Path:
    """Write a jsonl file of two domains."""
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(documents):
            text = " ".join(draw.choices(WORDS, k=60)) + f" {number}.\n"
            file.write(json.dumps({"text": text, "domain": "ab"[number % 2]}) + "\n")
    return path


def overrides(text: Path, *, steps: int, **values: object) -> list[str]:
    """The overrides of a small run on `text`."""
    more = [f"{key.replace('__', '.')}={value}" for key, value in values.items()]
    tokens = f"schedule.total_tokens={steps * TOKENS_PER_STEP}"
    return [*OVERRIDES, f"data.path={text}", tokens, *more]


def metrics(run: Path) -> list[dict[str, object]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCKED} for line in lines]


def tensors(checkpoint: Path) -> dict[str, bytes]:
    """Every tensor of a checkpoint, as bytes."""
    found = {}
    for part in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(part, framework="np") as file:
            for key in file.keys():  # noqa: SIM118 - not a dictionary
                found[f"{part.name}/{key}"] = file.get_tensor(key).tobytes()
    assert found, f"{checkpoint} holds no tensors"
    return found


def launch_here(run_dir: Path, config: RunConfig, *, quiet: bool = False) -> int:
    """The rank in this process: one of its own costs seconds, and adds nothing here."""
    arguments = RankArguments(run_dir, RunDirectory(run_dir).config_file(config), quiet)
    return worker.main(arguments.to_argv())
