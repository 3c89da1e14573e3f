"""Compiles kernels with LLVM and runs them on the threads that torch itself uses.

A pool of our own would compete with torch's: its threads spin for a while after every operator. Torch for Linux uses
GNU OpenMP; its library is found where torch loaded it, never loaded a second time.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

LIBRARY = "libgomp.so.1"
_PROCESS = os.getpid()
_lock = threading.Lock()
_engines: list[Any] = []


@cache
def available() -> bool:
    """Tell whether kernels can be made here: llvmlite installed, torch on GNU OpenMP, a processor with half floats."""
    try:
        import llvmlite.binding as llvm  # noqa: F401
    except (ImportError, OSError):
        return False
    arm = platform.machine() in ("aarch64", "arm64")
    return _openmp() is not None and (arm or bool(features().get("f16c")))


@cache
def features() -> dict[str, bool]:
    """Return what this processor has, by LLVM's names."""
    import llvmlite.binding as llvm

    return dict(llvm.get_host_cpu_features())


@cache
def foresees() -> bool:
    """Tell whether this processor reads a long stream best when it is not asked ahead: Zen with AVX-512 does.

    Zen 4 then reads a third faster; Emerald Rapids, which stops at the end of a page, an eighth to a third slower.
    """
    import llvmlite.binding as llvm

    return llvm.get_host_cpu_name() in ("znver4", "znver5")


@cache
def _openmp() -> Any:
    """Return the OpenMP library that torch loaded, or None."""
    try:
        return ctypes.CDLL(LIBRARY, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except (OSError, AttributeError):
        return None


@cache
def _target() -> Any:
    """Return the machine that code is made for: this one."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    for name in ("omp_get_thread_num", "omp_get_num_threads", "GOMP_barrier"):
        llvm.add_symbol(name, ctypes.cast(getattr(_openmp(), name), ctypes.c_void_p).value)
    flags = llvm.get_host_cpu_features().flatten()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=flags, opt=3, codemodel="jitdefault")


def compiled(text: str, as_written: bool = False) -> int:
    """Return the address of the function `kernel` in LLVM assembly; it stays for the life of the process.

    Args:
        as_written: keep the order of lines, for tiles that are planned to fit the registers: sums are not put in
            another order and nothing is moved out of loops.
    """
    import llvmlite.binding as llvm

    with _lock:
        target = _target()
        module = llvm.parse_assembly(text)
        module.verify()
        builder = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=3))
        (_as_written() if as_written else builder.getModulePassManager()).run(module, builder)
        engine = llvm.create_mcjit_compiler(module, target)
        engine.finalize_object()
        _engines.append(engine)
        return int(engine.get_function_address("kernel"))


def _as_written() -> Any:
    """Return the passes that put variables into registers and drop what is written twice, and do no more."""
    import llvmlite.binding as llvm

    passes = llvm.create_new_module_pass_manager()
    passes.add_sroa_pass()
    passes.add_instruction_combine_pass()
    passes.add_simplify_cfg_pass()
    passes.add_new_gvn_pass()
    passes.add_dead_code_elimination_pass()
    return passes


def prepare() -> None:
    """Load the compiler now, some 75 MB, so that the first large lookup does not."""
    if available():
        compiled("define void @kernel(ptr %arguments) {\n  ret void\n}")


@cache
def _callable(address: int) -> Callable[[Any], None]:
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)


@cache
def _parallel() -> Any:
    function = _openmp().GOMP_parallel
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    function.restype = None
    return function


def threads_for(work: int) -> int:
    """Return how many of torch's threads are worth using for so many shares of work; one in a forked child.

    A fork has none of its parent's threads.
    """
    return 1 if os.getpid() != _PROCESS else max(1, min(torch.get_num_threads(), work))


def run(address: int, arguments: Any, threads: int) -> None:
    """Call a kernel with an array of int64, on so many of torch's threads; the interpreter is free meanwhile."""
    if threads == 1:
        _callable(address)(ctypes.addressof(arguments))
    else:
        _parallel()(address, ctypes.addressof(arguments), threads, 0)
