"""Values to bytes and back, type for type."""

from __future__ import annotations

import importlib.util
import math
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from decimal import Decimal
from enum import Enum
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import orjson
import pytest

from taskbus.codec import MAX_DEPTH, decode, encode, encode_pickle, register_type
from taskbus.errors import ConfigError, DecodeError, EncodeError
from tests.unit.payload_values import ARRAYS, CONTAINERS, LIBRARY, NUMPY_SCALARS, REFUSED, REGISTERED, SCALARS
from tests.unit.payloads import Money, Point, join, round_trip, same, there_and_back

WITHOUT_TORCH = importlib.util.find_spec("torch") is None


def nested(depth: int, make: Callable[[Any], Any], inner: Any = 0) -> Any:
    """``depth`` containers around ``inner``."""
    value = inner
    for _ in range(depth):
        value = make(value)
    return value


def path_of(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(EncodeError) as caught:
        encode(args, kwargs)
    path: str = caught.value.path
    assert str(caught.value).startswith(f"{path}: ")
    return path


@pytest.mark.parametrize("value", [*SCALARS, *LIBRARY, *CONTAINERS, *REGISTERED, *ARRAYS, *NUMPY_SCALARS], ids=type)
def test_a_value_arrives_as_it_was(value: Any) -> None:
    assert same(there_and_back(value), value)


@pytest.mark.parametrize("value", [*SCALARS, *LIBRARY, *CONTAINERS, *REGISTERED, *ARRAYS, *NUMPY_SCALARS], ids=type)
def test_a_value_arrives_as_it_was_at_any_depth(value: Any) -> None:
    for wrap in (
        lambda v: [v],
        lambda v: {"k": v},
        lambda v: (v, v),
        lambda v: {1: [v]},
        lambda v: Point([v], {"": v}),
    ):
        assert same(there_and_back(wrap(value)), wrap(value))


@pytest.mark.parametrize("value", [*SCALARS, *LIBRARY, *CONTAINERS, *REGISTERED, *ARRAYS, *NUMPY_SCALARS], ids=type)
def test_a_value_arrives_as_it_was_among_many(value: Any) -> None:
    for many in (
        [*[0.5] * 20, value],
        {**{f"k{number}": None for number in range(20)}, "key": value},
        {"table": [*[{"id": 1, "name": "a"}] * 20, {"id": value}]},
        [*[[1, 2]] * 20, [{"a": [value] * 20}]],
    ):
        assert same(there_and_back(many), many)


def test_arguments_stay_what_they_are() -> None:
    assert round_trip() == ((), {})
    assert round_trip(1) == ((1,), {})
    assert round_trip(a=1) == ((), {"a": 1})
    assert round_trip("!t", 1) == (("!t", 1), {})
    assert round_trip(("!t",), 1, args=(), kwargs={"self": 1}) == ((("!t",), 1), {"args": (), "kwargs": {"self": 1}})


def test_plain_events_are_plain_json() -> None:
    args, kwargs = (1, "!t", [None, {"a": [1.5, True]}]), {"step": 1, "null": [2**64 - 1]}
    assert encode(args, kwargs) == (orjson.dumps([args, kwargs]), ())
    assert encode(args, {}) == (orjson.dumps([args]), ())
    assert encode((), kwargs) == (orjson.dumps(kwargs), ())
    assert encode((), {}) == (b"{}", ())


def test_events_of_a_frame_keep_their_buffers_apart() -> None:
    events: list[Any] = [
        ((b"a", b"b"), {}),
        ((1,), {"a": 2}),
        ((), {}),
        ((np.arange(3),), {"x": b""}),
        ((None, (1,)), {}),
    ]
    for (args, kwargs), found in zip(events, decode(*join(*(encode(*event) for event in events))), strict=True):
        assert same((args, kwargs), found)


def test_what_is_shared_arrives_as_copies() -> None:
    shared = [1]
    [one, two] = round_trip([shared, (shared,)])[0][0]
    assert one is not two[0]


@pytest.mark.parametrize("value", REFUSED, ids=type)
def test_what_cannot_travel_is_refused_at_its_path(value: Any) -> None:
    assert path_of(value) == "args[0]"
    assert path_of(0, [{"a": value}]) == "args[1][0]['a']"
    assert path_of([*[0.5] * 20, value]) == "args[0][20]"
    assert path_of(table=[*[{"id": 1}] * 20, {"id": [value]}]) == "kwargs['table'][20]['id'][0]"
    assert path_of(batch=[0, 1, 2, {"policy": value}]) == "kwargs['batch'][3]['policy']"


def test_the_error_says_what_to_do() -> None:
    with pytest.raises(EncodeError) as caught:
        encode((), {"batch": [0, 1, 2, {"policy": object()}]})
    assert str(caught.value) == (
        "kwargs['batch'][3]['policy']: object is not encodable; register it with taskbus.register_type"
    )
    functions: list[Any] = [lambda: None, print, [].append, partial(print)]
    for code in functions:
        with pytest.raises(EncodeError, match="functions do not travel; send data, or a name"):
            encode((code,), {})
    with pytest.raises(EncodeError, match="holds Python objects .* give it a dtype, or send a list"):
        encode((np.array([None]),), {})


def test_paths_go_through_every_container() -> None:
    assert path_of((1, (print,))) == "args[0][1][0]"
    assert path_of({(1, 2): print}) == "args[0][tuple]"
    assert path_of({1: {"a": print}}) == "args[0][1]['a']"
    assert path_of({2**70: print}) == f"args[0][{hex(2**70)}]"
    assert path_of({print: 1}) == "args[0].key(builtin_function_or_method)"
    assert path_of({(1, print): 1}) == "args[0].key(tuple)[1]"
    assert path_of({frozenset([print])}) == "args[0]{item 0}{item 0}"
    assert path_of(Point(1, [print])) == "args[0].y[0]"
    assert path_of(Money(1, print)) == "args[0][1]"  # type: ignore[arg-type]
    assert path_of(OrderedDict(a=print)) == "args[0]['a']"
    assert path_of("ok", k="\ud800") == "kwargs['k']"
    assert path_of(["ok", {"\ud800": 1}]) == "args[0][1]['\\ud800']"


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(EncodeError, match="str with a lone surrogate at 2 is not encodable"):
        encode(("ab\udcff",), {})


def test_names_of_arguments_are_texts() -> None:
    with pytest.raises(EncodeError):
        encode((), {1: 2})  # type: ignore[dict-item]


def test_a_cycle_is_an_error_that_names_it() -> None:
    items: list[Any] = [1]
    items.append(items)
    assert path_of(items) == "args[0][1]"
    table: dict[str, Any] = {}
    table["a"] = (table,)
    assert path_of(k=[table]) == "kwargs['k'][0]['a'][0]"
    with pytest.raises(EncodeError, match="dict contains itself"):
        encode((table,), {})


@pytest.mark.parametrize(
    "make",
    [lambda v: [v], lambda v: {"k": v}, lambda v: (v,), lambda v: {1: v}, Point],
    ids=["list", "dict", "tuple", "dict of ints", "registered"],
)
def test_depth_has_a_limit_and_all_up_to_it_travels(make: Callable[[Any], Any]) -> None:
    deep = nested(MAX_DEPTH, make)
    args, kwargs = decode(*join(encode((deep,), {"k": deep})))[0]
    for found in (args[0], kwargs["k"]):
        assert encode((found,), {}) == encode((deep,), {})
    with pytest.raises(EncodeError, match=f"nested more than {MAX_DEPTH} levels deep"):
        encode((make(deep),), {})


@pytest.mark.parametrize("make", [lambda v: [v], lambda v: (v,), lambda v: {None: v}], ids=["list", "tuple", "dict"])
def test_absurd_depth_is_no_recursion_error(make: Callable[[Any], Any]) -> None:
    with pytest.raises(EncodeError):
        encode((nested(100_000, make),), {})


def test_little_stack_is_no_recursion_error() -> None:
    deep = nested(MAX_DEPTH, lambda v: (v,))

    def use_up(frames: int) -> None:
        if frames:
            use_up(frames - 1)
        encode((deep,), {})

    with pytest.raises(EncodeError, match="what is left of the stack"):
        use_up(sys.getrecursionlimit() - 250)


@pytest.mark.parametrize("make", [lambda v: [v, v], lambda v: (v, v)], ids=["list", "tuple"])
def test_shared_references_cannot_fill_the_memory(make: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tree", "events"):
        monkeypatch.setattr(f"taskbus.codec.{module}.MAX_VALUES", 5_000)
    wide: Any = [0] * 4_000
    for value in (nested(60, make), [[wide] * 4_000] * 4_000):
        with pytest.raises(EncodeError, match="more than 5000 values in one event"):
            encode((value,), {})


def test_an_array_is_neither_copied_on_the_way_out_nor_on_the_way_in() -> None:
    for array in (np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6.0).reshape(2, 3))):
        text, buffers = encode((array,), {})
        assert np.shares_memory(np.asarray(buffers[0]), array)
        [(args, _)] = decode(*join((text, buffers)))
        assert np.shares_memory(args[0], array)
        assert not args[0].flags.writeable
        assert args[0].copy().flags.writeable


def test_bytes_are_neither_copied_on_the_way_out() -> None:
    for value in (b"abc", bytearray(b"abc"), memoryview(b"abc")):
        _, [buffer] = encode((value,), {})
        assert buffer.obj is (value.obj if isinstance(value, memoryview) else value)


def test_a_strided_array_arrives_with_its_values_in_c_order() -> None:
    grid = np.arange(24).reshape(4, 6)
    for array in (grid[::2, 1::2], grid[::-1], grid[:, ::-1].T, np.broadcast_to(np.arange(3), (2, 3))):
        found = there_and_back(array)
        assert np.array_equal(found, array)
        assert found.dtype == array.dtype
        assert found.flags.c_contiguous


def test_memoryviews_keep_format_and_shape() -> None:
    grid = np.arange(6, dtype="i4").reshape(2, 3).data
    for view in (grid, grid[0:1], np.array(5.0).data, memoryview(bytearray(b"abcdef"))[::2]):
        found = there_and_back(view)
        assert (found.format, found.shape, found.tolist()) == (view.format, view.shape, view.tolist())
        assert found.readonly


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_float_that_json_does_not_know_is_kept_whatever_looks_like_it(odd: float) -> None:
    for args in ((), (None,), ("null",), ([None, odd],)):
        for kwargs in (
            {"a": odd},
            {"a": odd, "b": None},
            {"null": None, "a": [odd]},
            {"a": None, "b": [None, {"c": odd}]},
        ):
            assert same(round_trip(*args, **kwargs), (args, kwargs))


def test_none_and_what_looks_like_it_stay_plain() -> None:
    for args, kwargs in (((), {"a": None, "n": 1.5}), ((None, "null"), {"null": [None, {"a": None}]})):
        assert encode(args, kwargs) == (orjson.dumps([args, kwargs] if args else kwargs), ())


def test_the_metadata_of_a_model_state_travels() -> None:
    state = OrderedDict([("layer.weight", np.ones((2, 2), "f4"))])
    state._metadata = OrderedDict([("", {"version": 1})])  # type: ignore[attr-defined]
    found = there_and_back(state)
    assert same(found, state)
    state.other = 1  # type: ignore[attr-defined]
    with pytest.raises(EncodeError, match="OrderedDict with an attribute 'other'"):
        encode((state,), {})


class Zone(tzinfo):
    """A zone of a library."""

    def utcoffset(self, at: datetime | None) -> timedelta:
        return timedelta(0)

    def dst(self, at: datetime | None) -> None:
        return None

    def tzname(self, at: datetime | None) -> str:
        return "here"


def test_a_zone_of_another_library_is_refused_by_name() -> None:
    with pytest.raises(EncodeError, match=r"args\[0\]: tests.unit.test_codec.Zone is not encodable"):
        encode((datetime(2024, 1, 1, tzinfo=Zone()),), {})


# Types of the user


def test_a_registered_type_needs_both_functions_or_none() -> None:
    class Other:
        pass

    with pytest.raises(ConfigError, match="together or not at all"):
        register_type(Other, encode=str)
    with pytest.raises(ConfigError, match="give encode and decode"):
        register_type(Other)
    with pytest.raises(ConfigError, match="takes a class"):
        register_type(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", [int, str, type(None), list, bytes, datetime, Decimal, np.ndarray, np.float32], ids=str)
def test_a_type_that_travels_anyway_cannot_be_registered(cls: type) -> None:
    with pytest.raises(ConfigError, match="travels as it is"):
        register_type(cls, str, cls)


def test_a_name_means_one_class() -> None:
    class Here(Enum):
        A = 1

    class There(Enum):
        A = 1

    register_type(Here, name="unit.Twice")
    with pytest.raises(ConfigError, match="name 'unit.Twice' is taken"):
        register_type(There, name="unit.Twice")
    register_type(There, name="unit.Other")
    assert there_and_back((Here.A, There.A)) == (Here.A, There.A)


def test_a_class_that_is_defined_again_takes_its_own_place() -> None:
    def define() -> type[Enum]:
        class Again(Enum):
            A = 1

        return register_type(Again)

    define()
    again = define()
    assert there_and_back(again["A"]) is again["A"]


def test_a_registered_class_does_not_take_its_subclasses_along() -> None:
    class More(Money):
        pass

    assert path_of(More(1, "a")) == "args[0]"


def test_what_encode_returns_is_encoded_too_and_its_errors_have_the_path() -> None:
    class Box:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

    register_type(Box, lambda box: {"inner": box.inner}, lambda told: Box(told["inner"]))
    assert there_and_back_inner(Box(Box((1, b"x", math.nan))))
    assert path_of([Box({1: print})]) == "args[0][0]['inner'][1]"
    looped = Box(None)
    looped.inner = looped
    with pytest.raises(EncodeError, match="Box contains itself"):
        encode((looped,), {})

    class Broken:
        pass

    register_type(Broken, lambda value: 1 // 0, lambda told: told)
    with pytest.raises(
        EncodeError, match=r"args\[0\]\[1\]: .*Broken could not be encoded .*ZeroDivisionError"
    ) as caught:
        encode(([0, Broken()],), {})
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def there_and_back_inner(box: Any) -> bool:
    [(args, _)] = decode(*join(encode((box,), {})))
    inner = args[0].inner.inner
    return inner[:2] == (1, b"x") and math.isnan(inner[2])


def test_a_decoder_that_fails_is_a_decode_error() -> None:
    class Picky:
        pass

    def refuse(told: Any) -> Picky:
        raise RuntimeError("no")

    register_type(Picky, lambda value: 1, refuse)
    with pytest.raises(DecodeError, match="RuntimeError in the function that decodes") as caught:
        decode(*join(encode((Picky(),), {})))
    assert caught.value.reason == "malformed"
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_dataclass_arrives_without_a_call_of_its_init() -> None:
    calls = []

    @register_type
    @dataclass
    class Counted:
        x: int
        y: list[int] = field(default_factory=list)
        z: int = field(default=0, init=False)

        def __post_init__(self) -> None:
            calls.append(self.x)

        @cached_property
        def double(self) -> int:
            return 2 * self.x

    value = Counted(1, [2])
    value.z = 3
    assert value.double == 2
    assert there_and_back(value) == value
    assert calls == [1]
    value.extra = 1  # type: ignore[attr-defined]
    with pytest.raises(EncodeError, match="has 'extra', which is no field"):
        encode((value,), {})
    del value.extra, value.z  # type: ignore[attr-defined]
    assert there_and_back(value).z == 0  # the class has the default
    del value.x
    with pytest.raises(EncodeError, match="without its field 'x'"):
        encode((value,), {})


@pytest.mark.parametrize("hidden", ["hidden", "_Base__private"])
def test_dataclasses_with_slots_travel_and_lose_nothing(hidden: str) -> None:
    @register_type
    @dataclass(slots=True, frozen=True)
    class Slotted:
        x: int

    assert there_and_back(Slotted(1)) == Slotted(1)

    class Base:
        __slots__ = ("__private", "hidden")

    @register_type
    @dataclass
    class Child(Base):
        x: int

    child = Child(1)
    assert there_and_back(child) == child
    vars(Base)[hidden].__set__(child, 1)
    with pytest.raises(EncodeError, match=f"has '{hidden}', which is no field"):
        encode((child,), {})


def test_a_dataclass_that_is_more_than_its_fields_needs_functions() -> None:
    @dataclass
    class Listed(list[int]):
        x: int = 1

    with pytest.raises(ConfigError, match="more than its fields"):
        register_type(Listed)


def test_a_dataclass_may_have_grown_a_field_with_a_default() -> None:
    @dataclass
    class Old:
        x: int

    @dataclass
    class New:
        x: int
        y: int = 5

    register_type(Old, name="unit.Grown")
    text, buffers = join(encode((Old(1),), {}))
    register_type(Old, name="unit.GrownOld")
    register_type(New, name="unit.Grown")
    assert decode(text, buffers) == [((New(1, 5),), {})]
    text = text.replace(b'"x"', b'"q"')
    with pytest.raises(DecodeError):
        decode(text, buffers)


def test_a_named_tuple_with_more_than_its_items_is_refused() -> None:
    class Base(NamedTuple):
        x: int

    @register_type
    class Wide(Base):
        pass

    wide = Wide(1)
    assert type(there_and_back(wide)) is Wide
    vars(wide)["extra"] = 1
    with pytest.raises(EncodeError, match="has 'extra'"):
        encode((wide,), {})


# Pickle, where both sides chose it


def test_pickled_events_arrive_where_they_are_allowed() -> None:
    array = np.arange(3.0)
    encoded = encode_pickle((len, {1}), {"a": array})
    [(args, kwargs)] = decode(*join(encoded), allow_pickle=True)
    assert args == (len, {1})
    assert np.shares_memory(kwargs["a"], array)
    with pytest.raises(DecodeError) as caught:
        decode(*join(encoded))
    assert caught.value.reason == "pickle"


def test_what_cannot_be_pickled_is_an_encode_error() -> None:
    with pytest.raises(EncodeError, match="cannot be pickled"):
        encode_pickle((lambda: None,), {})


def test_a_pickle_of_something_else_is_malformed() -> None:
    for data in (pickle.dumps([1]), pickle.dumps((1, 2)), b"", b"garbage"):
        with pytest.raises(DecodeError) as caught:
            decode(b'[[[],{},1,"pickle"]]', [memoryview(data)], allow_pickle=True)
        assert caught.value.reason == "malformed"


# Libraries that may be missing


def test_importing_the_codec_loads_neither_numpy_nor_torch() -> None:
    code = """
import sys
from taskbus.codec import decode, encode
[event] = decode(b"[" + encode((1, (2,), b"x"), {})[0] + b"]", [memoryview(b"x")])
assert "numpy" not in sys.modules and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_array_loads_numpy_where_it_arrives_and_is_unknown_where_it_is_missing() -> None:
    text, [buffer] = join(encode((np.arange(3),), {}))
    code = f"""
import sys
from taskbus.codec import decode
from taskbus.errors import DecodeError
text, buffers = {text!r}, [memoryview({bytes(buffer)!r})]
sys.modules["numpy"] = None
try:
    decode(text, buffers)
except DecodeError as error:
    assert (error.reason, error.type_name) == ("unknown type", "numpy.ndarray"), error
else:
    raise SystemExit("no error")
del sys.modules["numpy"]
[((array,), _)] = decode(text, buffers)
assert array.tolist() == [0, 1, 2]
"""
    subprocess.run([sys.executable, "-c", code], check=True)
