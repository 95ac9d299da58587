"""Curves for TensorBoard.

The file format is written here: TensorBoard's own writer takes over a second to import.
"""

import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.contract import run_files
from trainer.contract.json_files import read_lines
from trainer.training.save.records import MEASURED
from trainer.training.save.retrying import append

CURVES = ("loss", "eval_loss", "learning_rate", "grad_norm", "tokens", *sorted(MEASURED))
_SESSION_START = b"\x3a\x02\x08\x01"  # session_log { status: START }
_POLYNOMIAL = 0x82F63B78  # CRC-32C, reflected


class TensorBoard:
    """Writes the events of one run to a folder of its own, each time to a new file.

    The file begins by saying from which step on it replaces what the ones before it say:
    readers then show each step once, and going on costs the same after 10 and 10 million.
    Where there is none before it, it holds the lines of metrics.jsonl from the first on.
    """

    def __init__(self, folder: Path, metrics: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        goes_on = any(folder.glob("events.out.tfevents.*"))
        # Readers take the files in the order of their names.
        name = f"events.out.tfevents.{time.time():.6f}.finetune"
        self._file = open(folder / name, "xb", buffering=0)  # noqa: SIM115
        self._write(_double(1, time.time()) + _bytes(3, b"brain.Event:2"))
        if goes_on:
            self._write(_double(1, time.time()) + b"\x10" + _varint(step + 1) + _SESSION_START)
        else:
            lines = read_lines(metrics, run_files.Metric)
            self._append(b"".join(_record(event_of(line)) for line in lines))

    def add(self, line: Mapping[str, Any]) -> None:
        """Take in a line of metrics.jsonl."""
        self._write(event_of(line))

    def close(self) -> None:
        self._file.close()

    def _write(self, event: bytes) -> None:
        self._append(_record(event))

    def _append(self, records: bytes) -> None:
        append(self._file, records, "TensorBoard's file of curves")


def event_of(line: Mapping[str, Any]) -> bytes:
    """A line of metrics.jsonl as TensorBoard's Event message.

    Source: tensorboard/compat/proto/event.proto and summary.proto.
    """
    values = b"".join(
        _bytes(1, _bytes(1, f"train/{name}".encode()) + b"\x15" + struct.pack("<f", line[name]))
        for name in CURVES
        if line.get(name) is not None
    )
    return _double(1, time.time()) + b"\x10" + _varint(line["step"]) + _bytes(5, values)


def _record(data: bytes) -> bytes:
    """Framed as TFRecord: length, its checksum, data, its checksum."""
    length = struct.pack("<Q", len(data))
    return length + _masked_crc(length) + data + _masked_crc(data)


def _double(field: int, value: float) -> bytes:
    return bytes([field << 3 | 1]) + struct.pack("<d", value)


def _bytes(field: int, value: bytes) -> bytes:
    return bytes([field << 3 | 2]) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _crc_table()


def _masked_crc(data: bytes) -> bytes:
    """CRC-32C, masked as TFRecord wants it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
