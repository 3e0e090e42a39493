"""Fragments of any layout into any other, bit for bit; failures are shared by all ranks."""

from typing import NamedTuple

import pytest
import torch

from dsv3.checkpoint.store import CheckpointStore
from dsv3.errors import CapacityError, CheckpointError

TENSORS = {
    "master/model.embed_tokens.weight": torch.randn(37, 5),
    "master/model.layers.1.mlp.experts.gate_up_proj": torch.randn(8, 6, 5),
    "exp_avg/model.norm.weight": torch.randn(5).double(),
    "buffer/half": torch.randn(3, 4).bfloat16(),
    "buffer/count": torch.arange(9) - 4,
    "buffer/flags": torch.tensor([True, False, True]),
    "buffer/scalar": torch.tensor(3.5),
}


class Piece(NamedTuple):
    key: str
    shape: tuple[int, ...]
    offset: int
    data: torch.Tensor
    saved_here: bool


def cut(tensors, rank, size, shift=0):
    """This rank's piece of every tensor: uneven, and empty for some; buffers whole on each rank."""
    for key, tensor in tensors.items():
        flat, count = tensor.reshape(-1), tensor.numel()
        if key.startswith("buffer"):
            yield Piece(key, tuple(tensor.shape), 0, flat.clone(), rank == 0)
            continue
        bounds = [0, *(min(count, i * (count // size + shift)) for i in range(1, size)), count]
        low, high = bounds[rank], bounds[rank + 1]
        if low < high:
            yield Piece(key, tuple(tensor.shape), low, flat[low:high].clone(), True)


def blank(pieces):
    return [piece._replace(data=torch.zeros_like(piece.data)) for piece in pieces]


def save(directory, identity, collective, tensors=TENSORS, **changes):
    arguments = {"step": 3, "optimizer_step": 3, "attempt": 1, "layout": {}, "state": {"seen": 9}}
    arguments |= {"rank_state": {"rank": collective.rank}} | changes
    pieces = list(cut(tensors, collective.rank, collective.size))
    return CheckpointStore(directory, identity, collective=collective).save(pieces, **arguments)


def expected(tensors=TENSORS):
    return {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in tensors.items()}


def load(directory, identity, collective, tensors=TENSORS):
    store = CheckpointStore(directory, identity, collective=collective)
    checkpoint = store.find_newest().checkpoint
    store.require(checkpoint, expected(tensors))
    pieces = blank(cut(tensors, collective.rank, collective.size, shift=1))
    store.load(checkpoint, pieces)
    return pieces, checkpoint


@pytest.mark.parametrize("writers", [1, 2, 3, 4])
@pytest.mark.parametrize("readers", [1, 2, 4])
def test_a_checkpoint_moves_between_layouts(tmp_path, identity, ranks, writers, readers):
    paths = ranks(writers, lambda collective: save(tmp_path, identity, collective))
    assert paths == [tmp_path / "step-3"] * writers
    for rank, (pieces, checkpoint) in enumerate(
        ranks(readers, lambda collective: load(tmp_path, identity, collective))
    ):
        wanted = cut(TENSORS, rank, readers, shift=1)
        for piece, original in zip(pieces, wanted, strict=True):
            assert piece.data.dtype == original.data.dtype
            assert torch.equal(piece.data, original.data), piece.key
        assert checkpoint.state == {"seen": 9}
        states = [checkpoint.rank_state(n) for n in range(5)]
        assert states == [{"rank": n} if n < writers else None for n in range(5)]


def test_one_rank_that_cannot_write_stops_all(tmp_path, identity, ranks):
    def body(collective):
        state = {"rank": {1: 2}} if collective.rank == 2 else {"rank": 0}
        return save(tmp_path, identity, collective, rank_state=state)

    errors = ranks(3, body)
    assert all(isinstance(error, CheckpointError) for error in errors)
    assert "rank 2" in str(errors[0])
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_made_stops_all(tmp_path, identity, ranks):
    (tmp_path / "file").write_text("")
    errors = ranks(2, lambda collective: save(tmp_path / "file", identity, collective))
    assert all(isinstance(error, CapacityError) for error in errors)


def test_damage_in_one_ranks_file_is_every_ranks_verdict(tmp_path, identity, ranks):
    ranks(4, lambda collective: save(tmp_path, identity, collective))
    path = tmp_path / "step-3" / "rank-00003.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 16
    path.write_bytes(content)

    def body(collective):
        return CheckpointStore(tmp_path, identity, collective=collective).find_newest()

    for search in ranks(2, body):
        assert search.checkpoint is None
        assert "rank-00003.safetensors" in search.skipped[0].reason


@pytest.mark.parametrize("fault", ["gap", "overlap"])
def test_fragments_that_do_not_tile_are_not_saved(tmp_path, identity, ranks, fault):
    def body(collective):
        pieces = list(cut(TENSORS, collective.rank, collective.size))
        if collective.rank == 1:
            first = pieces[0]
            pieces[0] = (
                first._replace(offset=first.offset + 1, data=first.data[1:])
                if fault == "gap"
                else first._replace(offset=first.offset - 1)
            )
        return CheckpointStore(tmp_path, identity, collective=collective).save(
            pieces, step=1, optimizer_step=1, attempt=1, layout={}, state={}, rank_state={}
        )

    message = {"gap": "missing", "overlap": "twice"}[fault]
    for error in ranks(2, body):
        assert isinstance(error, CheckpointError)
        assert message in str(error)
    assert list(tmp_path.iterdir()) == []


def test_another_model_is_refused_with_a_table(tmp_path, identity, ranks):
    [path] = ranks(1, lambda collective: save(tmp_path, identity, collective))
    store = CheckpointStore(tmp_path, identity)
    checkpoint = store.find_newest().checkpoint
    other = expected() | {"master/new": ((3,), torch.float32)}
    other["buffer/half"] = ((3, 4), torch.float32)
    other["master/model.embed_tokens.weight"] = ((38, 5), torch.float32)
    del other["buffer/scalar"]
    with pytest.raises(CheckpointError) as refused:
        store.require(checkpoint, other)
    lines = str(refused.value).splitlines()
    assert lines[0] == f"{path}: is of another model"
    assert lines[1:] == [
        "buffer/half: expected [3, 4] F32, found [3, 4] BF16",
        "buffer/scalar: expected nothing, found [] F32",
        "master/model.embed_tokens.weight: expected [38, 5] F32, found [37, 5] F32",
        "master/new: expected [3] F32, found nothing",
    ]


def test_a_long_table_is_cut(tmp_path, identity, ranks):
    ranks(1, lambda collective: save(tmp_path, identity, collective))
    store = CheckpointStore(tmp_path, identity)
    other = expected() | {f"master/{n}": ((1,), torch.float32) for n in range(100)}
    with pytest.raises(CheckpointError, match="and 88 more"):
        store.require(store.find_newest().checkpoint, other)


def test_ranks_of_a_pipeline_expect_their_own_layers_only(tmp_path, identity, ranks):
    ranks(1, lambda collective: save(tmp_path, identity, collective))

    def body(collective):
        store = CheckpointStore(tmp_path, identity, collective=collective)
        own = dict(list(expected().items())[collective.rank :: 2])
        store.require(store.find_newest().checkpoint, own)
        return "fine"

    assert ranks(2, body) == ["fine", "fine"]


def test_a_fragment_of_another_dtype_is_never_cast(tmp_path, identity, ranks):
    ranks(1, lambda collective: save(tmp_path, identity, collective))
    store = CheckpointStore(tmp_path, identity)
    pieces = [p._replace(data=p.data.float()) for p in cut(TENSORS, 0, 1)]
    with pytest.raises(CheckpointError, match=r"expected \[5\] F32, found \[5\] F64"):
        store.load(store.find_newest().checkpoint, pieces)


def test_content_is_verified_before_the_first_tensor_is_applied(tmp_path, identity, ranks):
    ranks(2, lambda collective: save(tmp_path, identity, collective))
    store = CheckpointStore(tmp_path, identity)
    [checkpoint] = store.scan()
    path = tmp_path / "step-3" / "rank-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    pieces = blank(cut(TENSORS, 0, 1))
    with pytest.raises(CheckpointError, match="hash"):
        store.load(checkpoint, pieces)
    assert not any(piece.data.any() for piece in pieces)


def test_the_file_is_one_that_safetensors_reads(tmp_path, identity, ranks):
    from safetensors.torch import load_file

    [path] = ranks(1, lambda collective: save(tmp_path, identity, collective))
    read = load_file(path / "rank-00000.safetensors")
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[key], TENSORS[key].reshape(-1)) for key in TENSORS)
