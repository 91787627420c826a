"""From LLVM assembly to a function in memory, through a cache on disk.

Machine code is kept under $XDG_CACHE_HOME/avenue/kernels (~/.cache by default), one file per kernel, named by the hash
of its text, the CPU's name and features, and the version of LLVM: a file is never right for another machine. A file
carries the hash of its content; one that is damaged, of somebody else, or writable by others is compiled again, and so
is everything if others may put files into the directory. Writing is atomic, and a directory that cannot be written, or
a user without a home, costs only time.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import stat
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm

from proofs.exact.backend.cache_home import cache_home

log = logging.getLogger(__name__)

Function = Callable[[int, int, int], None]
"""Address of the array of pointers, begin, end. Releases the GIL while it runs."""

_PROTOTYPE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
_HASH_BYTES = 32

MOST_FILES = 10_000
"""Of the cache: 50 to 100 MB."""
PRUNE_EVERY = 500
"""Kernels compiled in a process between two looks at how many files there are; the first has one as well, because most
processes compile fewer."""


class Compiler:
    """Compiles each text once in a process. Raises RuntimeError for text that LLVM refuses."""

    def __init__(self, directory: Path | None) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self._directory = directory
        self._cpu = llvm.get_host_cpu_name()
        self._features = llvm.get_host_cpu_features().flatten()
        target = llvm.Target.from_default_triple()
        self._machine = target.create_target_machine(cpu=self._cpu, features=self._features, opt=3, jit=True)
        empty = llvm.parse_assembly("")
        empty.triple = self._machine.triple
        self._engine = llvm.create_mcjit_compiler(empty, self._machine)
        self._functions: dict[str, Function] = {}
        self._lock = threading.Lock()
        self.compiled = 0
        """How many texts were not in the cache."""

    def function(self, symbol: str, text: str) -> Function:
        """The function `symbol` that `text` defines. Equal symbols are equal texts."""
        with self._lock:  # an engine takes each symbol once, whichever thread brings it
            found = self._functions.get(symbol)
            if found is None:
                name = self._name(text)
                code = self._read(name)
                if code is None:
                    code = self._compile(text)
                    self._write(name, code)
                self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
                self._engine.finalize_object()
                found = self._functions[symbol] = _PROTOTYPE(self._engine.get_function_address(symbol))
            return found

    def assembly(self, text: str) -> str:
        """The machine code as text, for people."""
        return str(self._machine.emit_assembly(self._optimised(text)))

    def _compile(self, text: str) -> bytes:
        self.compiled += 1
        return bytes(self._machine.emit_object(self._optimised(text)))

    def _optimised(self, text: str) -> llvm.ModuleRef:
        module = llvm.parse_assembly(text)
        module.triple = self._machine.triple
        module.data_layout = str(self._machine.target_data)
        module.verify()
        options = llvm.create_pipeline_tuning_options(speed_level=3)
        options.loop_vectorization = True
        options.slp_vectorization = True
        options.loop_interleaving = True
        options.loop_unrolling = True
        builder = llvm.create_pass_builder(self._machine, options)
        builder.getModulePassManager().run(module, builder)
        return module

    def _name(self, text: str) -> str:
        versions = f"{llvmlite.__version__}\n{llvm.llvm_version_info}\n{self._cpu}\n{self._features}\n"
        return hashlib.sha256((versions + text).encode()).hexdigest()

    def _read(self, name: str) -> bytes | None:
        if self._directory is None:
            return None
        path = self._directory / name
        try:
            with path.open("rb") as file:
                ours = _ours(os.fstat(file.fileno())) and _ours(self._directory.stat())
                content = file.read() if ours else b""
        except OSError:
            return None
        code = content[_HASH_BYTES:]
        return code if code and content[:_HASH_BYTES] == _digest(name, code) else None

    def _write(self, name: str, code: bytes) -> None:
        if self._directory is None:
            return
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _ours(self._directory.stat()):
                return
            descriptor, temporary = tempfile.mkstemp(dir=self._directory)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(_digest(name, code) + code)
                Path(temporary).replace(self._directory / name)
            except OSError:
                Path(temporary).unlink(missing_ok=True)
                raise
            if self.compiled % PRUNE_EVERY == 1 % PRUNE_EVERY:
                self._prune(self._directory)
        except OSError as error:
            log.debug("compiled kernel not kept: %s", error)

    def _prune(self, directory: Path) -> None:
        """Leaves the newest files: programs come and go, and each brings some hundred kernels."""
        found = sorted((entry.stat().st_mtime, entry.path) for entry in os.scandir(directory))
        for _, path in found[: -MOST_FILES or None]:
            Path(path).unlink(missing_ok=True)


def _digest(name: str, code: bytes) -> bytes:
    return hashlib.sha256(name.encode() + code).digest()


def _ours(status: os.stat_result) -> bool:
    """Whether nobody else may write it."""
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def cache_directory() -> Path | None:
    """Where compiled kernels are kept."""
    home = cache_home()
    return None if home is None else home / "kernels"


@cache
def compiler() -> Compiler:
    """The process's compiler. Raises RuntimeError or OSError where LLVM has no support for this machine."""
    return Compiler(cache_directory())
