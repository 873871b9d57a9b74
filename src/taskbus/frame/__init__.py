"""The events of one producer as one entry of a stream: header, body, checksums, signature.

::

    header   magic · version · CRC of all that follows in the header
             flags · lengths · count · first · CRC of the body
             producer · blob id · label globs of only_to · zeros up to a multiple of 16
             SHA-256 of the body · HMAC-SHA256 of the header so far, but for its CRC    (signed frames)
    body     lengths of the buffers · text · the buffers, each at a multiple of 16

The body follows the header, or is a value of its own (a blob) that the header names. Integers are little-endian. What
is in the header can be trusted (as far as the frame can be) before the body is touched: readers drop repeats and other
nodes' events by it. An unsigned blob is checked by its lengths and the CRC of its text; only the signature covers its
buffers.
"""

from __future__ import annotations

from taskbus.frame.layout import PIECE, VERSION
from taskbus.frame.read import Frame, events, pieces, unpack
from taskbus.frame.write import body_size, pack, pack_blob

__all__ = ["PIECE", "VERSION", "Frame", "body_size", "events", "pack", "pack_blob", "pieces", "unpack"]
