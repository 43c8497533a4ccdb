"""The CUDA kernels run on the host under sanitizers; planted bugs show that these would be caught.

Every program compares its kernels with plain loops. AddressSanitizer sees steps out of bounds and UBSan misaligned
accesses; ThreadSanitizer sees races, also between threads whose order only a shuffle or an atomic happens to give.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernels import cuda_tools, sass

PROGRAMS = ("apply_mask", "compact_channels", "pack_sparse", "compress_nm")
Precompiled = Callable[[str], Path]


@pytest.fixture(scope="module")
def precompiled(tmp_path_factory: pytest.TempPathFactory) -> Precompiled:
    folder, made = tmp_path_factory.mktemp("precompiled"), dict[str, Path]()

    def get(sanitizer: str) -> Path:
        if sanitizer not in made:
            made[sanitizer] = cuda_tools.precompile(folder, sanitizer)
        return made[sanitizer]

    return get


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("sanitizer", cuda_tools.SANITIZERS)
def test_the_kernels_are_right_and_clean(
    tmp_path: Path, precompiled: Precompiled, sanitizer: str, program: str
) -> None:
    built = cuda_tools.build_on_host(program, tmp_path, sanitizer, precompiled(sanitizer))
    done = cuda_tools.run_on_host(built)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", cuda_tools.SANITIZERS)
def test_many_tiles_at_every_density(tmp_path: Path, precompiled: Precompiled, sanitizer: str) -> None:
    built = cuda_tools.build_on_host("pack_sparse", tmp_path, sanitizer, precompiled(sanitizer))
    done = cuda_tools.run_on_host(built, "thorough")
    assert done.returncode == 0, done.stdout + done.stderr


SLOW = pytest.mark.slow
RACE, OVERFLOW, WRONG = "data race", "heap-buffer-overflow", "wrong: "
# what: (header, sanitizer, right, wrong, finding). Where a thread may read a word that nobody has written yet, the bug
# keeps it in range: a wild address would end the program before ThreadSanitizer has spoken of the race.
PLANTED = {
    "apply_mask: one pack too many": (
        *("device.cuh", "address", "(size - head) / Pack<T>::LANES;", "(size - head) / Pack<T>::LANES + 1;", OVERFLOW),
    ),
    "apply_mask: every thread starts at the first pack": (
        *("apply_mask.cuh", "thread", "for (int64_t p = thread; p <", "for (int64_t p = 0; p <", RACE),
    ),
    "apply_mask: a 128-bit access at an odd address": (
        *("device.cuh", "address", "= to_boundary < size ? to_boundary : size;", "= 0 * to_boundary;"),
        "misaligned address",
    ),
    "apply_mask: the neighbour's bit": (
        *("apply_mask.cuh", "address", "flags_at(mask, bit, 1)", "flags_at(mask, bit > 0 ? bit - 1 : bit, 1)", WRONG),
    ),
    "compact_channels: a whole pack over the end": (
        *("compact_channels.cuh", "address", "store_pack(target, unit, task.units, pack);"),
        *("store_pack(target, unit, task.units + LANES, pack);", OVERFLOW),
    ),
    "compact_channels: every block takes every tile": (
        *("compact_channels.cuh", "thread", "tile = blockIdx.x; tile < tiles; tile += gridDim.x"),
        *("tile = 0; tile < tiles; tile += 1", RACE),
    ),
    "compact_channels: the first row's channel in every row": (
        *(
            "compact_channels.cuh",
            "address",
            "            ++index;\n            enter_row();",
            "            ++index;",
            WRONG,
        ),
    ),
    "pack_sparse: no barrier between staging and copying": (
        *("pack_sparse.cuh", "thread", "if (threadIdx.x == 0) shared.base = base;\n    }\n    __syncthreads();"),
        "if (threadIdx.x == 0) shared.base = base;\n    }\n    if (shared.base > Word(tile) * Tile::SIZE) return 0;",
        RACE,
    ),
    "pack_sparse: no barrier behind the ticket": (
        *(
            "look_back.cuh",
            "thread",
            "atomicAdd(tickets, Word(1)));\n    __syncthreads();",
            "atomicAdd(tickets, Word(1)));\n    if (*shared_tile < 0) return int64_t(1) << 40;",
        ),
        RACE,
    ),
    "pack_sparse: a status published by a plain store": (
        *("look_back.cuh", "thread", "__atomic_store_n(word, value, __ATOMIC_RELAXED);", "*word = value;", RACE),
    ),
    "pack_sparse: one value too many": (
        *(
            "pack_sparse.cuh",
            "address",
            "i < count; i += BLOCK) values[i]",
            "i <= count; i += BLOCK) values[i]",
            OVERFLOW,
        ),
    ),
    "pack_sparse: the look-back stops one tile early": (
        *("look_back.cuh", "address", "lane <= nearest ? word", "lane < nearest ? word", WRONG),
    ),
    "unpack_sparse: no barrier behind the staging": (
        *("pack_sparse.cuh", "thread", "rest < ranks.count ? rest : ranks.count);\n        __syncthreads();"),
        *("rest < ranks.count ? rest : ranks.count);", RACE),
    ),
    "unpack_sparse: as many values as the mask promises": (
        *("pack_sparse.cuh", "address", "rest < ranks.count ? rest : ranks.count)", "ranks.count)", OVERFLOW),
    ),
    "compress_nm: metadata one place on": (
        *("compress_nm.cuh", "address", "+ 64 * g + 8 * i, as_bits", "+ 64 * g + 8 * (i + 1), as_bits", OVERFLOW),
    ),
    "compress_nm: all threads write the first row's metadata": (
        *("compress_nm.cuh", "thread", "+ 64 * g + 8 * i, as_bits", "+ 64 * g, as_bits", RACE),
    ),
    "compress_nm: neighbouring rows swapped": (
        *(
            "compress_nm.cuh",
            "address",
            "words.lane[j / 2 * 4 + j % 2] =",
            "words.lane[j / 2 * 4 + 1 - j % 2] =",
            WRONG,
        ),
    ),
}
QUICK = (
    *("apply_mask: one pack too many", "compact_channels: every block takes every tile"),
    *("pack_sparse: no barrier between staging and copying", "pack_sparse: a status published by a plain store"),
    "compress_nm: metadata one place on",
)


def plant(folder: Path, header: str, right: str, wrong: str) -> Path:
    """A copy of the headers with one bug."""
    shutil.copytree(cuda_tools.INCLUDE, folder / "include")
    path = folder / "include" / "fastalter" / header
    text = path.read_text()
    assert text.count(right) == 1, f"{header} has changed: plant the bug anew"
    path.write_text(text.replace(right, wrong))
    return folder / "include"


@pytest.mark.parametrize("bug", [bug if bug in QUICK else pytest.param(bug, marks=SLOW) for bug in PLANTED])
def test_planted_bugs_are_caught(tmp_path: Path, precompiled: Precompiled, bug: str) -> None:
    header, sanitizer, right, wrong, finding = PLANTED[bug]
    program = bug.split(":")[0].replace("unpack", "pack")
    include = plant(tmp_path, header, right, wrong)
    built = cuda_tools.build_on_host(program, tmp_path, sanitizer, precompiled(sanitizer), include)
    done = cuda_tools.run_on_host(built)
    assert done.returncode != 0
    assert finding in done.stdout + done.stderr


SHIM = {
    "a shuffle orders no memory": (
        "thread",
        "int shared = 0; launch(1, 2, [&] { if (threadIdx.x == 0) shared = 1; __shfl_sync(~0u, 1, 0); "
        'CHECK(threadIdx.x == 0 || shared >= 0, "never"); });',
        RACE,
    ),
    "__syncwarp does": (
        "thread",
        "int shared = 0; launch(1, 2, [&] { if (threadIdx.x == 0) shared = 1; __syncwarp(); "
        'CHECK(shared == 1, "not seen"); });',
        None,
    ),
    "lanes that go different ways are reported": (
        "address",
        "launch(1, 2, [&] { threadIdx.x ? __ballot_sync(~0u, true) : __shfl_sync(~0u, 1u, 0); });",
        "lanes meet in different intrinsics",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SHIM)
def test_the_shim_is_as_strict_as_a_gpu(tmp_path: Path, precompiled: Precompiled, case: str) -> None:
    sanitizer, body, finding = SHIM[case]
    source, program = tmp_path / "shim.cpp", tmp_path / "shim"
    source.write_text(f'#include "on_host.h"\nint main() {{ {body} }}\n')
    flags = (*cuda_tools.FLAGS, *cuda_tools.SANITIZERS[sanitizer], f"-I{cuda_tools.HERE}")
    sass.run(cuda_tools.find_gxx(), *flags, source, "-o", program)
    done = cuda_tools.run_on_host(program)
    assert (done.returncode != 0) == (finding is not None), done.stdout + done.stderr
    assert (finding or "") in done.stdout + done.stderr
