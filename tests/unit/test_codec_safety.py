"""Nothing that arrives runs code, takes a node down or takes its memory."""

from __future__ import annotations

import pickle
import time
import tracemalloc
from collections import Counter, OrderedDict
from typing import Any

import numpy as np
import orjson
import pytest

from taskbus.codec import decode, encode
from taskbus.errors import DecodeError, EncodeError
from tests.unit.payloads import Bomb, join, ran


def reason(text: bytes, *buffers: bytes) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(text, [memoryview(buffer) for buffer in buffers])
    found: str = caught.value.reason
    return found


def tagged(*tree: Any, buffers: int = 0) -> bytes:
    """The text of one event with one tagged argument."""
    return orjson.dumps([[[list(tree)], {}, buffers]])


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[",
        b"{}",
        b"null",
        b"1",
        b'"ab"',
        b"[1]",
        b"[null]",
        b'["ab"]',
        b'{"a":{},"b":{}}',
        b'[{"a":1,"b":2},1]',
        b"[[]]",
        b"[[{}]]",
        b"[[[],[]]]",
        b"[[[],{},{}]]",
        b"[[[],null]]",
        b"[[[],{},null]]",
        b"[[[],{},-1]]",
        b"[[[],{},1]]",
        b"[[[],{},true]]",
        b"[[[],{},0,0]]",
        b'[[[],{},0,"pickle"]]',
        b'[[[],{},0,"dill"]]',
        b'[[[],{},0,"",0]]',
        b"[[[],{},0.0]]",
        b"[NaN]",
        b"[[[]]]x",
        b"\xff\xfe",
        b"[" * 5000,
        b"[" * 1100 + b"]" * 1100,
        b'[[["\\ud800"]]]',
    ],
    ids=lambda text: text[:20].decode("latin-1"),
)
def test_what_is_no_list_of_events_is_malformed(text: bytes) -> None:
    assert reason(text) == "malformed"


@pytest.mark.parametrize(
    "tree",
    [
        ["!nonsense"],
        ["!"],
        ["!t\x00"],
        ["!f"],
        ["!f", "zz"],
        ["!f", "00"],
        ["!f", 1],
        ["!i", "xyz"],
        ["!i", ""],
        ["!i", 5],
        ["!d", 1],
        ["!d", [], 1],
        ["!d", 1, 2, True, 3],
        ["!s", []],
        ["!s", {}],
        ["!s", 1, 1],
        ["!fs", 0.0, 0],
        ["!o"],
        ["!o", None, 1],
        ["!dd"],
        ["!dd", "os.system"],
        ["!dd", []],
        ["!dd", "list", 1],
        ["!q"],
        ["!q", -1],
        ["!q", 1, 1, 2],
        ["!q", "a"],
        ["!dt"],
        ["!dt", 5],
        ["!dt", "yesterday"],
        ["!dt", "2024-01-01", 2, None],
        ["!dt", "2024-01-01", 0, 5],
        ["!dt", "2024-01-01", 0, ["!t"]],
        ["!da", "2024-13-01"],
        ["!da", None],
        ["!ti", "25:00", 0, None],
        ["!td", 1, 2],
        ["!td", 10**18, 0, 0],
        ["!td", 1.5, 0, 0],
        ["!tz", 5, 0, 0],
        ["!tz", 0, 0, 0, 5],
        ["!tz", 0, 0, 0, "a", "b"],
        ["!zi", None],
        ["!u", "not a uuid"],
        ["!u", 5],
        ["!de", "one"],
        ["!de", 1.5],
        ["!de", [0, [1], 0]],
        ["!cx", "00"],
        ["!cx", 1, 2],
        ["!cx", "1", "2"],
        ["!p", 5],
        ["!p", ["a"]],
        ["!b"],
        ["!mv", "P", 8, 1],
        ["!n"],
        ["!n1", "<f4", "00"],
        ["!n1", "<U1", "00000000"],
        ["!n1", ["<f4", [2]], "0000000000000000"],
        ["!ns", 5],
        ["!nb", 5],
        ["!x", "Color", "BLUE"],
        ["!x", "Color", "__class__"],
        ["!x", "Color", ["!t"]],
        ["!x", "Rights", 64],
        ["!x", "Rights", "READ"],
        ["!x", "Pair", 1],
        ["!x", "Point", "x"],
        ["!x", "Point", "__class__", 1],
        ["!x", "Point", "x", 1, "x", 1],
        ["!x", "Money"],
        ["!x", "Money", 5],
    ],
    ids=str,
)
def test_a_tag_with_nonsense_is_an_error(tree: list[Any]) -> None:
    assert reason(tagged(*tree)) in ("malformed", "unknown type")


@pytest.mark.parametrize(
    ("tree", "name"),
    [
        (["!x", "Nobody", 1], "Nobody"),
        (["!x", "os.system", "true"], "os.system"),
        (["!x", "builtins.eval", "1"], "builtins.eval"),
        (["!x", None], "NoneType"),
        (["!x", [["Color"]]], "list"),
        (["!zi", "Mars/Crater"], "ZoneInfo"),
        (["!zi", "../../etc/passwd"], "ZoneInfo"),
        (["!new"], "!new"),
        (["!T", "float32", [0], False], "torch.Tensor"),
    ],
)
def test_a_type_that_is_not_known_is_named(tree: list[Any], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(DecodeError) as caught:
        decode(tagged(*tree, buffers=0), [])
    assert (caught.value.reason, caught.value.type_name) == ("unknown type", name)


@pytest.mark.parametrize(
    "array",
    [
        ["<f4", [3], "C"],
        ["<f4", [2, 2], "C"],
        ["<f4", [], "C"],
        ["<f4", [-2], "C"],
        ["<f4", [2.0], "C"],
        ["<f4", [True, 2], "C"],
        ["<f4", 2, "C"],
        ["<f4", [2], "K"],
        ["<f4", [2]],
        ["<f4", [2] + [1] * 64, "C"],
        ["<f4", [10**18], "C"],
        ["<f4", [2**32, 2**32], "C"],
        ["<f4", [2**63, 2**63, 0], "C"],
        ["|V0", [5], "C"],
        ["|S0", [10**9], "C"],
        ["|O", [1], "C"],
        ["|O8", [1], "C"],
        ["object", [1], "C"],
        ["f4,f4", [1], "C"],
        ["<f8, <f8", [1], "C"],
        ["(2,)f4", [1], "C"],
        ["<f3", [1], "C"],
        ["<M8[x]", [1], "C"],
        ["<M8[0s]", [1], "C"],
        ["<M8[00s]", [1], "C"],
        ["<m8[-1s]", [1], "C"],
        ["<m8[9999999999s]", [1], "C"],
        ["<f4\n", [2], "C"],
        ["<U9999999999", [0], "C"],
        [None, [1], "C"],
        [["<f4", [2]], [1, 1], "C"],
        [["<f4", [-1]], [1], "C"],
        [["<f4", [10**9, 10**9]], [0], "C"],
        [{"names": ["a"], "formats": ["|O"], "offsets": [0], "itemsize": 8}, [1], "C"],
        [{"names": ["a"], "formats": ["<f8"], "offsets": [4], "itemsize": 8}, [1], "C"],
        [{"names": ["a"], "formats": ["<f8"], "offsets": [-4], "itemsize": 8}, [1], "C"],
        [{"names": ["a"], "formats": ["<f8"], "offsets": [0], "itemsize": 10**12}, [0], "C"],
        [{"names": ["a", "a"], "formats": ["<f4", "<f4"], "offsets": [0, 4], "itemsize": 8}, [1], "C"],
        [{"names": ["a"], "formats": ["<f4", "<f4"], "offsets": [0, 4], "itemsize": 8}, [1], "C"],
        [{"names": [5], "formats": ["<f8"], "offsets": [0], "itemsize": 8}, [1], "C"],
        [{"names": "a", "formats": "<f8"}, [1], "C"],
        [{"names": [], "formats": [], "offsets": [], "itemsize": 0}, [10**9], "C"],
        [{"a": ["<f8", 0]}, [1], "C"],
        [{}, [1], "C"],
    ],
    ids=str,
)
def test_an_array_that_lies_is_an_error(array: list[Any]) -> None:
    assert reason(tagged("!n", *array, buffers=1), bytes(8)) in ("malformed", "unknown type")


def test_a_dtype_nested_without_end_is_an_error() -> None:
    told: Any = "<f8"
    for _ in range(50):
        told = [told, [1]]
    assert reason(tagged("!n", told, [1], "C", buffers=1), bytes(8)) == "malformed"


def test_buffers_are_used_once_and_all() -> None:
    for text in (tagged("!b", buffers=2), tagged("!t", ["!b"], ["!b"], ["!b"], buffers=2), b"[[[]]]"):
        assert reason(text, b"a", b"b") == "malformed"
    assert decode(tagged("!t", ["!b"], ["!b"], buffers=2), [memoryview(b"a"), memoryview(b"b")])[0][0] == (
        (b"a", b"b"),
    )


def test_a_tree_deeper_than_the_limit_is_an_error() -> None:
    text = b'["!t",' * 240 + b"1" + b"]" * 240
    assert reason(b"[[[" + text + b"],{},0]]") == "malformed"


@pytest.mark.parametrize("tag", ["!s", "!fs", "!d", "!c", "!o", "!dd"])
def test_a_flood_of_equal_hashes_is_refused_at_once(tag: str) -> None:
    keys: list[Any] = [["!i", format(k * (2**61 - 1), "x")] for k in range(1, 20_001)]
    before: dict[str, list[Any]] = {"!o": [None], "!dd": ["list"]}
    tree = [tag, *before.get(tag, [])]
    for key in keys:
        tree.extend([key] if tag in ("!s", "!fs") else [key, 1])
    text = tagged(*tree)
    start = time.perf_counter()
    assert reason(text) == "malformed"
    assert time.perf_counter() - start < 5


def test_a_crowd_of_equal_hashes_is_refused_where_it_is_emitted_too() -> None:
    keys = [k * (2**61 - 1) for k in range(1, 1100)]
    for value in (set(keys), frozenset(keys), dict.fromkeys(keys), OrderedDict.fromkeys(keys), Counter(keys)):
        with pytest.raises(EncodeError, match=r"args\[0\]\[0\]: .*keys with the same hash"):
            encode(([value],), {})


def test_many_keys_with_usual_hashes_arrive() -> None:
    grid = {(x, y) for x in range(-50, 50) for y in range(-50, 50)}
    [(args, _)] = decode(*join(encode((grid,), {})))
    assert args[0] == grid


def test_foreign_plain_values_may_be_as_deep_as_the_parser_allows() -> None:
    # Nothing walks over plain values: the parser's own limit is the one that counts.
    [((value,), _)] = decode(b"[" * 1000 + b"]" * 1000, [])
    depth = 0
    while value:
        [value] = value
        depth += 1
    assert depth == 996


def peak_of(text: bytes, *buffers: bytes) -> int:
    views = [memoryview(buffer) for buffer in buffers]
    tracemalloc.start()
    try:
        decode(text, views)
    except DecodeError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak


def test_memory_stays_within_a_small_multiple_of_the_frame() -> None:
    big = bytes(1 << 22)
    assert peak_of(tagged("!n", "|u1", [1 << 22], "C", buffers=1), big) < 1 << 20
    assert peak_of(tagged("!b", buffers=1), big) < 5 << 20
    assert peak_of(tagged("!n", "<f8", [10**15], "C", buffers=1), big) < 1 << 20
    assert peak_of(tagged("!q", 10**15)) < 1 << 20
    assert peak_of(tagged("!n1", "|V999999999", "00")) < 1 << 20
    for item in (b"[],", b'["!t"],', b'["!s"],', b'["!q",1],', b'["!da","2024-01-01"],', b'["!i","0"],'):
        text = b"[[[" + item * 20_000 + b"0],{},0]]"
        assert peak_of(text) < 150 * len(text)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_in_any_place_of_a_payload_never_runs(protocol: int) -> None:
    data = pickle.dumps(Bomb(), protocol)
    text = data.decode("latin-1")
    tags = ["!t", "!f", "!i", "!d", "!s", "!o", "!dd", "!q", "!dt", "!da", "!tz", "!zi", "!u", "!de", "!cx", "!p"]
    tags += ["!mv", "!n", "!n1", "!ns", "!nb", "!T", "!x", text, "pickle", "!pickle"]
    for tag in tags:
        for rest in ([text], [data.hex()], ["Point", text], ["Money", text], [text, [len(data)], "C"], [None, text]):
            for buffers in ([], [data]):
                try:
                    decode(tagged(tag, *rest, buffers=len(buffers)), [memoryview(each) for each in buffers])
                except DecodeError:
                    pass
    for whole in (
        data,
        b"[" + data + b"]",
        orjson.dumps(text),
        orjson.dumps([text]),
        orjson.dumps([[text], {text: text}]),
    ):
        try:
            decode(whole, [memoryview(data)])
        except DecodeError:
            pass
    for codec in ("pickle", "Pickle", "cloudpickle"):
        assert reason(orjson.dumps([[[], {}, 1, codec]]), data) in ("pickle", "malformed")
    assert ran == []


def test_the_bomb_would_have_run() -> None:
    pickle.loads(pickle.dumps(Bomb()))
    assert ran == ["boom"]
    ran.clear()


def test_arrays_of_texts_arrive_as_they_are() -> None:
    [(args, _)] = decode(*join(encode((np.array(["a", "\U0010ffff"]),), {})))
    assert args[0].tolist() == ["a", "\U0010ffff"]
