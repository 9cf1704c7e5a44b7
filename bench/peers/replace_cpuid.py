#!/usr/bin/env python3
"""Makes libraries ask cpuid_without_avx512.so, not the processor, what there is: for peers that cannot be told to do without AVX-512.

    python bench/peers/replace_cpuid.py LIBRARY.so ...

Changes the files: work on a copy. Each `cpuid` becomes `ud2`, which is as long; the other file answers for it. Needs objdump.
"""

import re
import subprocess
import sys
from pathlib import Path

CPUID, UD2 = b"\x0f\xa2", b"\x0f\x0b"


def objdump(*arguments: str) -> str:
    return subprocess.run(["objdump", *arguments], capture_output=True, text=True, check=True).stdout


def code_sections(library: str) -> list[tuple[int, int, int]]:
    """(address, size, place in the file) of what holds instructions."""
    row = re.compile(r"\s*\d+\s+\.(?:text|init)\S*\s+(\w+)\s+(\w+)\s+\w+\s+(\w+)")
    found = (row.match(line) for line in objdump("-h", library).splitlines())
    return [(int(m[2], 16), int(m[1], 16), int(m[3], 16)) for m in found if m]


def is_instruction(library: str, address: int) -> bool:
    """Whether disassembly from some places before finds it there: the two bytes may as well be part of something else."""
    line = re.compile(rf"^\s*{address:x}:\s+0f a2\s+cpuid", re.MULTILINE)
    starts = (address - before for before in (37, 48, 64, 80))
    listings = (objdump("-d", f"--start-address={start}", f"--stop-address={address + 16}", library) for start in starts)
    return sum(bool(line.search(listing)) for listing in listings) >= 2


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for library in sys.argv[1:]:
        data, replaced = bytearray(Path(library).read_bytes()), 0
        for address, size, offset in code_sections(library):
            at = data.find(CPUID, offset, offset + size)
            while at >= 0:
                if is_instruction(library, address + at - offset):
                    data[at : at + 2] = UD2
                    replaced += 1
                at = data.find(CPUID, at + 1, offset + size)
        Path(library).write_bytes(data)
        print(f"{library}: {replaced} replaced", flush=True)


main()
