"""Torch tensors, in as much as torch is there: the first test runs everywhere."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

from taskbus.codec import decode, encode
from taskbus.errors import DecodeError, EncodeError
from tests.unit.payloads import join

HERE = importlib.util.find_spec("torch") is not None
torch: Any = importlib.import_module("torch") if HERE else None

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf", "ignore:The PyTorch API of nested")


def arrived(value: Any) -> Any:
    [(args, _)] = decode(*join(encode((value,), {})))
    return args[0]


def test_a_tensor_is_of_an_unknown_type_where_torch_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(DecodeError, match="torch is not imported in this process") as caught:
        decode(b'[[[["!T","float32",[1],false]],{},1]]', [memoryview(bytes(4))])
    assert (caught.value.reason, caught.value.type_name) == ("unknown type", "torch.Tensor")
    assert arrived(np.arange(3)).tolist() == [0, 1, 2]


if HERE:
    NAMES = ["bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "bfloat16"]
    NAMES += ["float32", "float64", "complex32", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2"]

    def raw(tensor: Any) -> bytes:
        dense = tensor.detach().contiguous().reshape(-1)
        return bytes(dense.view(torch.uint8).numpy()) if dense.numel() else b""

    @pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3)], ids=str)
    @pytest.mark.parametrize("name", NAMES)
    def test_a_tensor_arrives_as_it_was(name: str, shape: tuple[int, ...]) -> None:
        tensor = torch.randint(0, 2, shape).to(getattr(torch, name))
        found = arrived(tensor)
        assert type(found) is torch.Tensor
        assert (found.dtype, found.shape, raw(found)) == (tensor.dtype, tensor.shape, raw(tensor))
        assert not found.requires_grad

    def test_a_tensor_is_written_from_its_own_memory_and_arrives_in_memory_of_its_own() -> None:
        tensor = torch.zeros(4)
        encoded = encode((tensor,), {})
        tensor[0] = 1
        [(args, _)] = decode(*join(encoded))
        assert args[0].tolist() == [1, 0, 0, 0]
        args[0][1] = 2
        assert tensor.tolist() == [1, 0, 0, 0]

    def test_the_state_of_a_model_arrives() -> None:
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
        state = model.state_dict()
        found = arrived(state)
        assert type(found) is OrderedDict
        assert vars(found) == vars(state)
        assert list(found) == list(state)
        assert all(torch.equal(found[name], state[name]) for name in state)
        model.load_state_dict(found)

    def test_views_arrive_with_their_values() -> None:
        grid = torch.arange(24.0).reshape(4, 6)
        for tensor in (grid[:, ::2].t(), grid[1], grid.expand(2, 4, 6), torch.tensor([1 + 2j]).conj(), grid.T):
            assert torch.equal(arrived(tensor), tensor)

    def test_requires_grad_is_kept() -> None:
        assert arrived(torch.ones(2, requires_grad=True)).requires_grad

    def test_what_is_no_plain_tensor_is_refused() -> None:
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
        for value in (
            torch.nn.Parameter(torch.ones(1)),
            torch.ones(2).to_sparse(),
            torch.ones(2, device="meta"),
            nested,
        ):
            with pytest.raises(EncodeError, match=r"args\[0\]: .*not encodable"):
                encode((value,), {})

    @pytest.mark.parametrize(
        "tree",
        ['"float32",[2],false', '"float32",[-1],0', '"float32",1,0', '"float32",[1]', '"int32",[1],true', "1,[1],0"],
    )
    def test_a_tensor_that_lies_is_an_error(tree: str) -> None:
        with pytest.raises(DecodeError):
            decode(b'[[[["!T",%b]],{},1]]' % tree.encode(), [memoryview(bytes(4))])
