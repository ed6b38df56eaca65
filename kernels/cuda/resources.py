#!/usr/bin/env python3
"""What each CUDA kernel takes of a multiprocessor, from the compiler's own report: writes kernels/cuda/RESOURCES.md.

Usage: kernels/cuda/resources.py [--check] [--launches FILE] [--jobs N]
  --check          writes nothing; fails where a kernel spills registers or RESOURCES.md lacks a kernel
  --launches FILE  lines "kernel threads shared_bytes", which the emulated tests write to $EMULATED_LAUNCHES;
                   without it the shared memory of RESOURCES.md is kept
Needs nvcc in PATH, CUDACXX or /usr/local/cuda/bin; a GPU is not needed.
"""
import argparse
import concurrent.futures
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
TABLE = ROOT / "kernels/cuda/RESOURCES.md"
# Of one multiprocessor: registers, threads, blocks, bytes of shared memory, which each block takes 1 KiB more of.
LIMITS = {"sm_80": (65536, 2048, 32, 164 << 10), "sm_90a": (65536, 2048, 32, 228 << 10)}
REPORT = re.compile(
    r"Compiling entry function '(\w+)' for '(\w+)'.*?"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers", re.S)


def nvcc():
    for name in (os.environ.get("CUDACXX"), shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"):
        if name and pathlib.Path(name).exists():
            return name
    sys.exit("resources.py: there is no nvcc: put it in PATH or set CUDACXX")


def max_threads(cubin):
    """Threads of a block by __launch_bounds__, of each kernel in a cubin: the attribute 0x05 of .nv.info.<kernel>."""
    data = cubin.read_bytes()
    offset, = struct.unpack_from("<Q", data, 40)
    size, count, names = struct.unpack_from("<HHH", data, 58)
    sections = [struct.unpack_from("<IIQQQQ", data, offset + i * size) for i in range(count)]
    strings = sections[names][4]
    threads = {}
    for name, _, _, _, begin, length in sections:
        text = data[strings + name:data.index(b"\0", strings + name)].decode()
        if not text.startswith(".nv.info."):
            continue
        at = begin
        while at < begin + length:
            form, attribute, value = struct.unpack_from("<BBH", data, at)
            if form == 4 and attribute == 5:
                x, y, z = struct.unpack_from("<III", data, at + 4)
                threads[text[len(".nv.info."):]] = x * y * z
            at += 4 + (value if form == 4 else 0)
    return threads


def compile_one(compiler, source, architecture):
    """(kernel, architecture, registers, stack bytes, spilled bytes, threads) of every kernel of a source."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = pathlib.Path(folder) / "kernels.cubin"
        command = [compiler, "-cubin", f"-arch={architecture}", "-std=c++20", "-O3", "-DNDEBUG", "-DFMT_USE_CONSTEXPR=1",
                   "-Xptxas=-v", "-Xcompiler=-fopenmp", f"-I{ROOT}", f"-I{ROOT}/kernels/cuda/ptx", str(source),
                   "-o", str(cubin)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode != 0:
            sys.exit(f"resources.py: {' '.join(command)}\n{run.stderr}")
        threads = max_threads(cubin)
    rows = []
    for symbol, _, stack, stores, loads, registers in REPORT.findall(run.stderr):
        name = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout
        name = re.sub(r"\(anonymous namespace\)::|transxssm::|cuda::", "", name)
        name = re.match(r"(?:void )?(?:\w+::)*(\w+)", name).group(1)
        rows.append((name, architecture, int(registers), int(stack), int(stores) + int(loads), threads.get(symbol, 1024)))
    return source.name, rows


def blocks(architecture, registers, threads, shared):
    file, most_threads, most_blocks, memory = LIMITS[architecture]
    warps = -(-threads // 32)
    by_registers = file // (-(-registers * 32 // 256) * 256 * warps)
    return min(by_registers, most_threads // (warps * 32), most_blocks, memory // (shared + 1024))


def read_shared(launches):
    """Bytes of shared memory and threads of a block, the most seen, by kernel."""
    seen = {}
    if launches:
        for line in pathlib.Path(launches).read_text().splitlines():
            name, threads, shared = line.split()
            before = seen.get(name, (0, 0))
            seen[name] = (max(before[0], int(threads)), max(before[1], int(shared)))
    elif TABLE.exists():
        for row in re.findall(r"^\| (\w+) \| \S+ \| \d+ \| (\d+) \| (\d+) \|", TABLE.read_text(), re.M):
            seen[row[0]] = (int(row[1]), int(row[2]))
    return seen


def table(found, seen):
    lines = [
        "# What the kernels take of a multiprocessor", "",
        "Made by `kernels/cuda/resources.py` from the compiler's report (`-Xptxas -v`). A kernel's instances (for types and",
        "sizes) are one row, with the most that any of them takes; shared memory and threads are the most that the tests of",
        "operations launch. Blocks: how many fit on a multiprocessor at once, at least; sm_80 is an A100, sm_90a an H100 or",
        "H200.", "",
        "| kernel | source | instances | threads | shared bytes | registers sm_80 | sm_90a | stack | spilled | blocks sm_80 | sm_90a |",
        "|---|---|---|---|---|---|---|---|---|---|---|"]
    for (source, name), rows in sorted(found.items()):
        of = {a: [r for r in rows if r[1] == a] for a in LIMITS}
        threads, shared = seen.get(name, (max(r[5] for r in rows), 0))
        registers = {a: max(r[2] for r in of[a]) for a in LIMITS}
        fit = {a: blocks(a, registers[a], threads, shared) for a in LIMITS}
        stack, spilled = max(r[3] for r in rows), max(r[4] for r in rows)
        lines.append(f"| {name} | {source} | {len(of['sm_90a'])} | {threads} | {shared} | {registers['sm_80']} | "
                     f"{registers['sm_90a']} | {stack} | {spilled} | {fit['sm_80']} | {fit['sm_90a']} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--launches")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    compiler = nvcc()
    found = {}
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        sources = sorted((ROOT / "kernels/cuda").glob("*.cu"))
        tasks = [pool.submit(compile_one, compiler, s, a) for s in sources if "TRANSXSSM_LAUNCH" in s.read_text()
                 for a in LIMITS]
        for task in tasks:
            source, rows = task.result()
            for row in rows:
                found.setdefault((source, row[0]), []).append(row)
    faults = [f"{name} ({source}) spills {max(r[4] for r in rows)} bytes of registers"
              for (source, name), rows in sorted(found.items()) if any(r[4] for r in rows)]
    if arguments.check:
        listed = TABLE.read_text() if TABLE.exists() else ""
        faults += [f"RESOURCES.md lacks {name}: run kernels/cuda/resources.py" for _, name in sorted(found)
                   if f"| {name} |" not in listed]
    else:
        TABLE.write_text(table(found, read_shared(arguments.launches)))
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(found)} kernels, {sum(len(r) for r in found.values())} instances, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
