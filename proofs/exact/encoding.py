"""The canonical bytes of a program, whose Merkle root is its name on chain.

    "AVPR" u16 version
    u16 inputs       each: u8 kind, name, type
    u32 constants    each: type, elements (little-endian, `width` bytes each)
    u32 operations   each: u8 opcode, u8 operands, u32 each, u8 attributes, i64 each
    u32 outputs      each: u32 value
    name = u8 length, UTF-8        type = u8 rank, u32 sides, u8 bits, i16 frac        numbers are big-endian

One program has one encoding and one encoding is one program: every field has a fixed width and nothing may follow the
last. `decode_program` is safe on bytes from a stranger: sizes are bounded before memory is taken, and the Program that
it builds checks every rule again.
"""

from __future__ import annotations

from proofs.exact.opcodes import Opcode
from proofs.exact.program import (
    MAX_CONSTANT_BYTES,
    MAX_CONSTANTS,
    MAX_OPS,
    Constant,
    Input,
    InputKind,
    Op,
    Program,
    ProgramError,
)
from proofs.exact.tensor_type import TensorError
from proofs.exact.wire import FormatError, Reader, Writer
from proofs.hashing import leaf_hashes
from proofs.merkle import MerkleTree

MAGIC = b"AVPR"
VERSION = 2
"""1 had no axis in GATHER, no axes in TRANSPOSE, and 18 operations."""
LEAF_BYTES = 1024
MAX_PROGRAM_BYTES = 2**26


def program_root(program: Program) -> bytes:
    """Merkle root over 1 KiB leaves of the canonical encoding."""
    return root_of_encoding(encode_program(program))


def root_of_encoding(encoded: bytes) -> bytes:
    """Program root of bytes that are, or claim to be, a program's encoding: to be compared before they are decoded."""
    return MerkleTree(leaf_hashes(encoded, LEAF_BYTES)).root


def encode_program(program: Program) -> bytes:
    """The canonical bytes. Raises ProgramError if they exceed 64 MiB."""
    out = Writer()
    out.raw(MAGIC)
    out.unsigned(2, VERSION)
    out.unsigned(2, len(program.inputs))
    for given in program.inputs:
        out.unsigned(1, given.kind)
        out.name(given.name)
        out.type(given.type)
    out.unsigned(4, len(program.constants))
    for constant in program.constants:
        out.type(constant.type)
        out.raw(constant.data)
    out.unsigned(4, len(program.ops))
    for op in program.ops:
        out.unsigned(1, op.opcode)
        out.unsigned(1, len(op.operands))
        for number in op.operands:
            out.unsigned(4, number)
        out.unsigned(1, len(op.attributes))
        for attribute in op.attributes:
            out.signed(8, attribute)
    out.unsigned(4, len(program.outputs))
    for number in program.outputs:
        out.unsigned(4, number)
    encoded = out.finish()
    if len(encoded) > MAX_PROGRAM_BYTES:
        raise ProgramError(f"a program of {len(encoded)} bytes: at most {MAX_PROGRAM_BYTES}")
    return encoded


def decode_program(data: bytes) -> Program:
    """The program that these bytes encode. Raises FormatError or ProgramError (both ValueError) for anything else."""
    if len(data) > MAX_PROGRAM_BYTES:
        raise FormatError(f"a program of {len(data)} bytes: at most {MAX_PROGRAM_BYTES}")
    reader = Reader(data)
    reader.expect(MAGIC, "a tensor program")
    version = reader.unsigned(2)
    if version != VERSION:
        raise FormatError(f"program encoding version {version}: this build reads {VERSION}")
    try:
        inputs = tuple(_input(reader) for _ in range(reader.count(2, 6, "inputs")))
        constants = _constants(reader)
        count = reader.count(4, 3, "operations")
        if count > MAX_OPS:
            raise FormatError(f"{count} operations: at most {MAX_OPS}")
        ops = tuple(_op(reader) for _ in range(count))
    except TensorError as error:
        raise FormatError(str(error)) from error
    outputs = tuple(reader.unsigned(4) for _ in range(reader.count(4, 4, "outputs")))
    reader.finish()
    return Program(inputs, constants, ops, outputs)


def _input(reader: Reader) -> Input:
    kind = reader.unsigned(1)
    if kind not in list(InputKind):
        raise FormatError(f"input kind {kind}")
    return Input(reader.name(), InputKind(kind), reader.type())


def _constants(reader: Reader) -> tuple[Constant, ...]:
    constants, size = [], 0
    count = reader.count(4, 5, "constants")
    if count > MAX_CONSTANTS:
        raise FormatError(f"{count} constants: at most {MAX_CONSTANTS}")
    for _ in range(count):
        type_ = reader.type()
        size += type_.nbytes
        if size > MAX_CONSTANT_BYTES:
            raise FormatError(f"more than {MAX_CONSTANT_BYTES} bytes of constants")
        constants.append(Constant(type_, bytes(reader.raw(type_.nbytes))))
    return tuple(constants)


_OPCODES = {int(opcode): opcode for opcode in Opcode}


def _op(reader: Reader) -> Op:
    number = reader.unsigned(1)
    opcode = _OPCODES.get(number)
    if opcode is None:
        raise FormatError(f"unknown opcode {number}")
    operands = tuple(reader.unsigned(4) for _ in range(reader.unsigned(1)))
    attributes = tuple(reader.signed(8) for _ in range(reader.unsigned(1)))
    return Op(opcode, operands, attributes)
