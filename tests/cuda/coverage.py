#!/usr/bin/env python3
"""Fails where a kernel of kernels/cuda was not launched by the tests of operations on the emulated device.

Usage: coverage.py SOURCE_TREE LAUNCHED
LAUNCHED: the file to which the test program wrote the kernels that ran: lines "kernel test".
"""
import pathlib
import re
import sys


def kernels(text):
    """Names of the __global__ functions of a source text."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S)
    bounds = r"__launch_bounds__\s*\((?:[^()]|\([^()]*\))*\)"
    return re.findall(rf"__global__\s+(?:{bounds}\s*|void\s+|static\s+)*(\w+)\s*\(", text)


def main():
    tree, launched = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    sources = sorted((tree / "kernels/cuda").rglob("*.cu")) + sorted((tree / "kernels/cuda").rglob("*.h"))
    defined = {name: str(source.relative_to(tree)) for source in sources for name in kernels(source.read_text())}
    ran = {line.split()[0] for line in launched.read_text().splitlines()} if launched.exists() else set()
    for name in sorted(defined.keys() - ran):
        print(f"{defined[name]}: {name} is launched by no test of operations")
    print(f"{len(defined.keys() & ran)} of {len(defined)} kernels launched")
    return 1 if defined.keys() - ran else 0


if __name__ == "__main__":
    sys.exit(main())
