"""Random number streams of a rank as JSON, without pickle."""

import random
from typing import Any

import numpy as np
import torch

from dsv3.checkpoint.collective import Json
from dsv3.errors import CheckpointError


def capture_random_state(device: torch.device | str = "cpu") -> dict[str, Json]:
    """State of Python's, numpy's and torch's global generators; on CUDA also the device's."""
    version, words, gauss = random.getstate()
    state: dict[str, Json] = {
        "python": [version, list(words), gauss],
        "numpy": _encode_numpy(np.random.get_state(legacy=False)),
        "torch_cpu": torch.get_rng_state().numpy().tobytes().hex(),
    }
    if torch.device(device).type == "cuda":
        state["torch_cuda"] = torch.cuda.get_rng_state(device).numpy().tobytes().hex()
    return state


def seed_streams(seed: int, rank: int, *, step: int, device: torch.device | str = "cpu") -> None:
    """Give this rank streams of its own from `step` on, a function of the arguments alone.

    Streams of other ranks, steps and seeds are independent of them and of one another.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(rank, step))
    for_python, for_numpy, for_cpu, for_cuda = sequence.spawn(4)
    random.seed(for_python.generate_state(8).tobytes())
    np.random.seed(for_numpy.generate_state(8))
    torch.default_generator.manual_seed(_word(for_cpu))
    if torch.device(device).type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(_word(for_cuda))


def advance_streams(device: torch.device | str = "cpu") -> None:
    """Draw one number from every stream."""
    random.random()  # noqa: S311 - thrown away
    np.random.random_sample()
    torch.rand(())
    if torch.device(device).type == "cuda":
        torch.rand((), device=device)


def restore_random_state(state: dict[str, Json], device: torch.device | str = "cpu") -> None:
    """Put the streams back where `capture_random_state` found them.

    Raises CheckpointError, before any stream is touched, if one of them is missing or malformed.
    """
    on_cuda = torch.device(device).type == "cuda"
    before = capture_random_state(device)
    if missing := before.keys() - state.keys():
        raise CheckpointError(
            f"the checkpoint holds no random state of {', '.join(sorted(missing))}"
        )
    try:
        _restore(state, device if on_cuda else None)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        _restore(before, device if on_cuda else None)
        raise CheckpointError(f"the checkpoint's random state is malformed: {error}") from error


def _restore(state: dict[str, Json], cuda: torch.device | str | None) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(_decode_numpy(state["numpy"]))
    torch.set_rng_state(_bytes_tensor(state["torch_cpu"]))
    if cuda is not None:
        torch.cuda.set_rng_state(_bytes_tensor(state["torch_cuda"]), cuda)


def _word(sequence: np.random.SeedSequence) -> int:
    return int(sequence.generate_state(1, np.uint64)[0])


def _encode_numpy(state: Any) -> Json:
    inner = state["state"]
    return {
        "bit_generator": state["bit_generator"],
        "key": [int(word) for word in inner["key"]],
        "pos": int(inner["pos"]),
        "has_gauss": int(state["has_gauss"]),
        "gauss": float(state["gauss"]),
    }


def _decode_numpy(encoded: Json) -> dict[str, Any]:
    return {
        "bit_generator": encoded["bit_generator"],
        "state": {"key": np.array(encoded["key"], dtype=np.uint32), "pos": encoded["pos"]},
        "has_gauss": encoded["has_gauss"],
        "gauss": encoded["gauss"],
    }


def _bytes_tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
