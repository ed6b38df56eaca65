#!/usr/bin/env python3
"""Deletes every barrier and every wait of kernels/cuda, one at a time, and says which test finds it missing.

Each mutant is compiled beside the tree, which is not touched, linked in place of the original, and run on the emulated
device by those tests that launch its kernels, under each schedule; where all pass, under the thread sanitizer.
Prints a Markdown table; exit status 1 where something was not caught.

    cmake --preset cpu && cmake --build build --target test_cuda test_kernels_emulated
    cmake --preset tsan && cmake --build build-tsan --target test_cuda test_kernels_emulated
    tests/cuda/barriers.py --build build --tsan build-tsan [--only REGEX]
"""
import argparse
import collections
import concurrent.futures
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

from coverage import kernels

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = ["test_kernels_emulated", "test_cuda"]
DEVICES = ["greedy_late", "greedy_reversed_early", "fifo_late_deferred", "fifo_early"]
STATEMENT = re.compile(r"^\s*(?:if \([^;]*\) )?((?:sync_block|sync_warp|sync_named|wait_copies<[^;]*>)\([^;]*\));")


def includes(path, seen=None):
    """Files of kernels/cuda that a source includes, itself among them."""
    seen = set() if seen is None else seen
    if path not in seen and path.exists():
        seen.add(path)
        for name in re.findall(r'#include "(kernels/cuda/[^"]+)"', path.read_text()):
            includes(ROOT / name, seen)
    return seen


class Build:
    """A build folder: how its objects are compiled and its programs linked, and which test launches which kernel."""

    def __init__(self, folder, environment, devices):
        self.folder = pathlib.Path(folder).resolve()
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self.devices = devices
        self.compile, self.link, self.tests = {}, {}, {}
        for program in PROGRAMS:
            listed = subprocess.run(["ninja", "-C", self.folder, "-t", "commands", program], check=True,
                                    capture_output=True, text=True).stdout
            for command in listed.splitlines():
                source = re.search(r" -c (\S+\.cu)$", command)
                if source:
                    self.compile[pathlib.Path(source[1])] = command
                if re.search(rf" -o {program} ", command):
                    self.link[program] = command.split(" && ")[1]
            self.tests[program] = self.launches(program)

    def launches(self, program):
        """Kernel -> tests that launch it and pass without a mutation."""
        with tempfile.NamedTemporaryFile() as note:
            environment = {**self.environment, "EMULATED_KERNELS": note.name}
            output = subprocess.run([self.folder / program, "--gtest_filter=-EmulatorFinds.*"], env=environment,
                                    capture_output=True, text=True, check=False).stdout
            failing = set(re.findall(r"^\[  FAILED  \] ([^\s,]+\.[^\s,]+)", output, re.M))
            result = collections.defaultdict(set)
            for line in pathlib.Path(note.name).read_text().splitlines():
                kernel, test = line.split()
                if test not in failing:
                    result[kernel].add(test)
        if failing:
            print(f"{program}: without the tests that fail as it is: {' '.join(sorted(failing))}", file=sys.stderr)
        return result

    def caught_by(self, mutated, text, work):
        """Compiles and runs the mutant; what caught it, or an empty string."""
        shadow = work / mutated.relative_to(ROOT)
        shadow.parent.mkdir(parents=True)
        shadow.write_text(text)
        objects, launched = {}, set()
        for source, command in self.compile.items():
            used = includes(source)
            if mutated not in used:
                continue
            for file in used:
                launched.update(kernels(file.read_text()))
            words = shlex.split(command)
            target = words[words.index("-o") + 1]
            objects[target] = str(work / f"{len(objects)}.o")
            words[words.index("-o") + 1] = objects[target]
            words[words.index("-c") + 1] = str(shadow if source == mutated else source)
            for option in ("-MT", "-MF"):
                if option in words:
                    del words[words.index(option):words.index(option) + 2]
            words = [word for word in words if word != "-MD"]
            words.insert(words.index("-c"), f"-I{work}")
            # The mutant's folder first: its copy of a header hides the tree's.
            first = next(i for i, word in enumerate(words) if word.startswith("-I"))
            words.insert(first, f"-I{work}")
            done = subprocess.run(words, cwd=self.folder, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                return "the compiler"
        for program in PROGRAMS:
            tests = set().union(*(self.tests[program].get(kernel, set()) for kernel in launched))
            if not tests:
                continue
            words = [objects.get(word, word) for word in shlex.split(self.link[program])]
            binary = str(work / program)
            words[words.index("-o") + 1] = binary
            subprocess.run(words, cwd=self.folder, check=True)
            for device in self.devices:
                environment = {**self.environment, "EMULATED_DEVICE": device, "GTEST_FAIL_FAST": "1"}
                try:
                    done = subprocess.run([binary, "--gtest_brief=1", f"--gtest_filter={':'.join(sorted(tests))}"],
                                          env=environment, capture_output=True, text=True, check=False, timeout=300)
                except subprocess.TimeoutExpired:
                    return f"{device}: no end"
                if "WARNING: ThreadSanitizer" in done.stdout + done.stderr:
                    return f"thread sanitizer ({device})"
                if done.returncode != 0:
                    test = re.search(r"^\[  FAILED  \] ([^\s,]+)", done.stdout, re.M)
                    return f"{device}: {test[1] if test else f'exit status {done.returncode}'}"
        return ""


def statements(only):
    for path in sorted((ROOT / "kernels/cuda").glob("*.cu")) + sorted((ROOT / "kernels/cuda").glob("*.h")):
        if only and not re.search(only, path.name):
            continue
        lines = path.read_text().splitlines(keepends=True)
        for number, line in enumerate(lines):
            found = STATEMENT.match(line)
            if found:
                text = "".join(lines[:number]) + line.replace(found[1] + ";", ";", 1) + "".join(lines[number + 1:])
                yield path, number + 1, found[1], text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", required=True, help="folder built with the preset cpu")
    parser.add_argument("--tsan", help="folder built with the preset tsan")
    parser.add_argument("--only", help="regular expression of file names")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    builds = [Build(args.build, {}, DEVICES)]
    if args.tsan:
        builds.append(Build(args.tsan, {"TSAN_OPTIONS": "halt_on_error=1"}, ["fifo_early", "greedy_late"]))

    def judge(mutant):
        path, number, statement, text = mutant
        caught = ""
        for build in builds:
            with tempfile.TemporaryDirectory() as work:
                caught = caught or build.caught_by(path, text, pathlib.Path(work))
        row = f"| {path.relative_to(ROOT)}:{number} | `{statement}` | {caught or '**nothing**'} |"
        print(row, file=sys.stderr)
        return row, bool(caught)

    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(judge, statements(args.only)))
    print("| Statement deleted at | | Caught by |\n|---|---|---|")
    for row, _ in results:
        print(row)
    caught = sum(found for _, found in results)
    print(f"\n{caught} of {len(results)} caught.")
    return 0 if caught == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
