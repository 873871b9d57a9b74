"""A time-boxed, coverage-guided fuzz of the decoder; see scripts/fuzz.

The first byte of an input says how it is read: as a frame as it is, as a frame whose checksums are made right first, or
as the text and the buffers of a frame (the parts are separated by ``SEPARATOR``), which is past all checksums.
"""

from __future__ import annotations

import contextlib
import importlib.util
import random
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from decimal import DecimalException
from pathlib import Path
from types import FrameType
from typing import Any
from zlib import crc32

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

SEPARATOR = b"\x00\xfe\xff"
FINDING = Path("fuzz-finding.bin")
SLOW = 2.0
LARGEST = 1 << 24
# What the libraries below raise for nonsense. Anything else behind a DecodeError is a mistake of ours that it hides.
EXPECTED = (ValueError, TypeError, LookupError, OverflowError, DecimalException, RecursionError, struct.error)

with contextlib.ExitStack() as stack:
    if importlib.util.find_spec("atheris"):
        import atheris

        stack.enter_context(atheris.instrument_imports(include=["taskbus.codec", "taskbus.frame"]))
    from taskbus import frame
    from taskbus.codec import decode, encode
    from taskbus.errors import DecodeError, EncodeError
    from tests.unit import payload_values as values
    from tests.unit.payloads import join


class Finding(Exception):
    """What no input may cause."""


def try_one(data: bytes) -> None:
    """Decode ``data``; raises for what must not happen, and for nothing else."""
    how, data = data[:1], data[1:]
    start = time.perf_counter()
    try:
        if how == b"\x02":
            text, *buffers = data.split(SEPARATOR)
            found = decode(text, [memoryview(buffer) for buffer in buffers])
        else:
            found = frame.events(frame.unpack(sealed(data) if how == b"\x01" else data, max_size=LARGEST))
        for event in found:
            with contextlib.suppress(EncodeError):
                encode(*event)
    except DecodeError as error:
        cause = error.__cause__
        if cause is not None and not isinstance(cause, EXPECTED):
            raise Finding(f"{type(cause).__name__} behind a DecodeError") from cause
    took = time.perf_counter() - start
    if took > SLOW:
        raise Finding(f"took {took:.1f} s for {len(data)} bytes")


def sealed(data: bytes) -> bytes:
    """``data`` with the checksums of header and body made right, as far as there is a header."""
    if len(data) < 64:
        return data
    start = 50 + data[10] + data[11] + int.from_bytes(data[12:14], "little")
    start += -start % 16 + (64 if data[9] & 1 else 0)
    data = data[:46] + struct.pack("<I", crc32(data[start:])) + data[50:]
    return data[:5] + struct.pack("<I", crc32(data[9:start])) + data[9:]


def seeds() -> Iterator[bytes]:
    """Inputs that decode, one of every kind of value."""
    kinds = (values.SCALARS, values.LIBRARY, values.CONTAINERS, values.REGISTERED, values.ARRAYS, values.NUMPY_SCALARS)
    for kind in kinds:
        for value in kind:
            if type(value) is not int or abs(value) < 1 << 100:
                text, buffers = join(encode((value,), {"k": [value]}))
                yield b"\x02" + SEPARATOR.join([text, *map(bytes, buffers)])
                data = frame.pack("producer", 1, 1, text, buffers, only_to=["a*"])
                yield b"\x00" + data
                yield b"\x01" + data


def mutated(data: bytes, pool: list[bytes], chance: random.Random) -> bytes:
    """``data`` with a few changes, some of them pieces of other inputs."""
    made = bytearray(data)
    for _ in range(1 << chance.randrange(4)):
        at = chance.randrange(1, len(made) + 1)
        size = 1 << chance.randrange(6)
        match chance.randrange(7):
            case 0:
                made[at:at] = chance.choice(TOKENS)
            case 1:
                made[at : at + size] = chance.choice(TOKENS)
            case 2:
                del made[at : at + size]
            case 3:
                made[at : at + 1] = chance.randbytes(1)
            case 4:
                made[at : at + 8] = struct.pack("<q", chance.choice((0, 1, -1, 7, 1 << 31, 1 << 62)))
            case 5:
                made[at:at] = made[at : at + size]
            case _:
                other = chance.choice(pool)
                start = chance.randrange(len(other))
                made[at : at + size] = other[start : start + size]
    return bytes(made[: 1 << 12])


def tokens() -> list[bytes]:
    from taskbus.codec.tree import readers

    tags = [f'["{tag}",'.encode() for tag in readers]
    rest = (
        b'[ ] { } , : " 0 -1 1e9 null true "" [] {} 18446744073709551615 "<f8" "|V0" "|O" "C" "F" "names" "!" "\\ud800"'
    )
    return [*tags, *rest.split(), SEPARATOR, b"\x00", b"\xff", b'"2024-01-01"', b'"Europe/Berlin"', b"]]],{},1]]"]


TOKENS = tokens()


def steps_of(run: Callable[[bytes], None], data: bytes) -> set[tuple[str, int, int]]:
    """The steps from line to line in our modules that ``run(data)`` takes."""
    seen: set[tuple[str, int, int]] = set()
    ours = ("taskbus/codec", "taskbus/frame")

    def enter(at: FrameType, event: str, arg: Any) -> Any:
        name = at.f_code.co_filename
        if not any(each in name for each in ours):
            return None
        last = 0

        def step(at: FrameType, event: str, arg: Any) -> Any:
            nonlocal last
            seen.add((name, last, at.f_lineno))
            last = at.f_lineno
            return step

        return step

    sys.settrace(enter)
    try:
        run(data)
    finally:
        sys.settrace(None)
    return seen


def fuzz_alone(seconds: float, seed: int) -> None:
    """Keep what reaches new steps, and mutate what was kept."""
    chance = random.Random(seed)
    pool = list(seeds())
    covered: set[tuple[str, int, int]] = set()
    for data in pool:
        covered |= steps_of(try_or_keep, data)
    end, runs, known = time.monotonic() + seconds, 0, len(pool)
    while time.monotonic() < end:
        data = mutated(chance.choice(pool[-200:] if chance.random() < 0.5 else pool), pool, chance)
        runs += 1
        steps = steps_of(try_or_keep, data)
        if not steps <= covered:
            covered |= steps
            pool.append(data)
    print(
        f"{runs} inputs in {seconds:g} s, {len(pool) - known} reached something new; {len(covered)} steps; no finding"
    )


def try_or_keep(data: bytes) -> None:
    try:
        try_one(data)
    except BaseException:
        FINDING.write_bytes(data)
        print(f"a finding: {FINDING}", file=sys.stderr)
        raise


def fuzz_with_atheris(seconds: float, seed: int) -> None:
    with tempfile.TemporaryDirectory() as corpus:
        for number, data in enumerate(seeds()):
            (Path(corpus) / str(number)).write_bytes(data)
        words = Path(corpus) / "words.dict"
        words.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in token) + '"\n' for token in TOKENS))
        options = [
            f"-max_total_time={int(seconds)}",
            f"-seed={seed}",
            "-max_len=4096",
            f"-dict={words}",
            "-print_final_stats=1",
        ]
        atheris.Setup([sys.argv[0], *options, corpus], try_or_keep)
        atheris.Fuzz()


def main() -> None:
    """``SECONDS [SEED]``, or a file to try again."""
    if len(sys.argv) < 2:
        raise SystemExit("usage: scripts/fuzz SECONDS [SEED] | FILE")
    if Path(sys.argv[1]).is_file():
        try_one(Path(sys.argv[1]).read_bytes())
        print("no finding")
        return
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    print(f"seed {seed}")
    (fuzz_with_atheris if "atheris" in sys.modules else fuzz_alone)(float(sys.argv[1]), seed)


if __name__ == "__main__":
    main()
