#!/usr/bin/env python3
"""Deletes every barrier, commit and wait of kernels/cuda, one at a time, and says which test finds it missing.

The kernels are compiled once more beside the tree, which is not touched, with each statement S written as
`keep_statement(n) ? S : void()` (barriers.cc), and linked in place of the originals. A first run notes which tests
reach which statement in which kernel. Then each statement is left out of each kernel that reaches it, the other
kernels keeping it, and those tests run on the emulated device, the quickest first, until one fails: under each
schedule, and where all pass, with the kernels under the thread sanitizer. Writes BARRIERS.md; exit status 1 where
something was not caught.

    cmake --preset cpu && cmake --build build --target test_cuda test_kernels_emulated
    tests/cuda/barriers.py --build build [--only REGEX]
    tests/cuda/barriers.py --check      whether BARRIERS.md lists the statements as they are; builds nothing
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
TABLE = ROOT / "tests/cuda/BARRIERS.md"
PROGRAMS = ["test_kernels_emulated", "test_cuda"]
DEVICES = ["greedy_late", "greedy_reversed_early", "fifo_late_deferred", "fifo_early"]
STATEMENT = re.compile(r"^\s*(?:if \([^;]*\) )?((?:sync_block|sync_warp|sync_named|commit_copies|wait_copies<[^;]*>)"
                       r"\([^;]*\));")

NOTHING = "**nothing**"

Statement = collections.namedtuple("Statement", "number path line code after")


def statements():
    """All of kernels/cuda, numbered from 1."""
    found = []
    for path in sorted((ROOT / "kernels/cuda").glob("*.cu")) + sorted((ROOT / "kernels/cuda").glob("*.h")):
        after = ""
        for line, text in enumerate(path.read_text().splitlines()):
            match = STATEMENT.match(text)
            if match:
                found.append(Statement(len(found) + 1, path, line, match[1], after))
            elif re.search(r"\w", text) and not re.match(r"\s*//|#", text):
                after = re.sub(r"\s*//.*", "", text).strip()
    return found


def includes(path, seen=None):
    """Files of kernels/cuda that a source includes, itself among them."""
    seen = set() if seen is None else seen
    if path not in seen and path.exists():
        seen.add(path)
        for name in re.findall(r'#include "(kernels/cuda/[^"]+)"', path.read_text()):
            includes(ROOT / name, seen)
    return seen


def without_dependencies(command):
    words = shlex.split(command)
    for option in ("-MT", "-MF"):
        if option in words:
            del words[words.index(option):words.index(option) + 2]
    return [word for word in words if word != "-MD"]


class Build:
    """The test programs of a build folder, linked again so that the chosen statements can be left out of them. The
    thread sanitizer, where asked for, sees the sources that have these statements and no others."""

    def __init__(self, folder, work, chosen, devices, jobs, sanitized):
        self.folder, self.work, self.devices = pathlib.Path(folder).resolve(), work, devices
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "TSAN_OPTIONS": "halt_on_error=1"}
        sanitize = ["-fsanitize=thread", "-g"] if sanitized else []
        self.controls = set()
        self.work.mkdir()
        changed = self.write_sources(chosen)
        compile_lines, links = {}, {}
        for program in PROGRAMS:
            if not (self.folder / program).exists():
                continue
            listed = subprocess.run(["ninja", "-C", self.folder, "-t", "commands", program], check=True,
                                    capture_output=True, text=True).stdout
            for command in listed.splitlines():
                source = re.search(r" -c (\S+)$", command)
                if source:
                    compile_lines[pathlib.Path(source[1])] = command
                if re.search(rf" -o {program} ", command):
                    links[program] = command.split(" && ")[1]
        objects, tasks = {}, []
        for source, command in compile_lines.items():
            if source.suffix == ".cu" and includes(source) & changed:
                words = without_dependencies(command)
                at = words.index("-o") + 1
                objects[words[at]] = words[at] = str(self.work / f"{len(objects)}.o")
                if source in changed:
                    words[words.index("-c") + 1] = str(self.work / source.relative_to(ROOT))
                # First the folder of the changed files: its copy of a header hides the tree's.
                first = next(i for i, word in enumerate(words) if word.startswith("-I"))
                words[first:first] = [f"-I{self.work}", "-include", str(self.work / "keep_statement.h"), *sanitize]
                tasks.append(words)
        added = []
        for source in ["tests/cuda/barriers.cc"] + ["tests/support/cuda/sanitizer_thread.cc"] * sanitized:
            words = without_dependencies(compile_lines[ROOT / "tests/support/cuda/block.cc"])
            added.append(str(self.work / source.replace("/", "_")) + ".o")
            words[words.index("-o") + 1], words[words.index("-c") + 1] = added[-1], str(ROOT / source)
            tasks.append(words)
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            for _ in pool.map(lambda task: subprocess.run(task, cwd=self.folder, check=True), tasks):
                pass
        for program, link in links.items():
            words = [objects.get(word, word) for word in shlex.split(link)]
            at = words.index("-o") + 1
            words[at] = str(self.work / program)
            # Before the libraries: the emulator's own choice of a sanitizer is then not taken from its archive.
            words[at + 1:at + 1] = added + sanitize
            subprocess.run(words, cwd=self.folder, check=True)
        self.programs = sorted(links)

    def write_sources(self, chosen):
        (self.work / "keep_statement.h").write_text("bool keep_statement(int statement);\n")
        texts = {}
        for statement in chosen:
            lines = texts.setdefault(statement.path, statement.path.read_text().splitlines())
            call = statement.code + ";"
            lines[statement.line] = lines[statement.line].replace(
                call, f"keep_statement({statement.number}) ? {statement.code} : void();", 1)
        for path, lines in texts.items():
            copy = self.work / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text("\n".join(lines) + "\n")
        return set(texts)

    def run(self, program, tests, environment, timeout):
        return subprocess.run([self.work / program, f"--gtest_filter={tests}"], capture_output=True, text=True,
                              env={**self.environment, **environment}, check=False, timeout=timeout)

    def reached(self):
        """(statement's number, kernel) -> [(seconds, program, test)], without the tests that fail as it is."""
        result = collections.defaultdict(list)
        ours = {name for path in (ROOT / "kernels/cuda").iterdir() if path.suffix in (".cu", ".h")
                for name in kernels(path.read_text())}
        for program in self.programs:
            note = self.work / f"{program}.txt"
            note.touch()
            output = self.run(program, "-EmulatorFinds.*", {"NOTE_STATEMENTS": str(note)}, None).stdout
            seconds = {test: int(ms) / 1000 for test, ms in re.findall(r"^\[ +OK \] (\S+) \((\d+) ms\)", output, re.M)}
            failing = set(re.findall(r"^\[  FAILED  \] ([^\s,]+\.[^\s,]+)", output, re.M))
            if failing:
                print(f"{program}: without the tests that fail as it is: {' '.join(sorted(failing))}", file=sys.stderr)
            for line in note.read_text().splitlines():
                number, kernel, test = line.split()
                if kernel in ours and test in seconds:
                    result[int(number), kernel].append((seconds[test], program, test))
        return result

    def outcome(self, program, tests, device, deletion):
        """What failed, or an empty string."""
        environment = {**deletion, "EMULATED_DEVICE": device, "GTEST_FAIL_FAST": "1"}
        try:
            done = self.run(program, tests, environment, 300)
        except subprocess.TimeoutExpired:
            return f"{device}: no end"
        begun = ["the start", *re.findall(r"^\[ RUN      \] (\S+)", done.stdout, re.M)]
        if "WARNING: ThreadSanitizer" in done.stdout + done.stderr:
            return f"thread sanitizer, {device}: {begun[-1]}"
        return f"{device}: {begun[-1]}" if done.returncode != 0 else ""

    def caught_by(self, number, kernel, tests):
        """What caught the statement's absence from the kernel, or an empty string."""
        tests, deletion = sorted(tests), {"DELETED_STATEMENT": str(number), "DELETED_IN_KERNEL": kernel}
        for some in (tests[:3], tests[3:]):
            for program in self.programs:
                names = [name for _, of, name in some if of == program]
                for device in self.devices if names else []:
                    caught = self.outcome(program, ":".join(names), device, deletion)
                    if caught:
                        self.controls.add((program, caught.split()[-1] if "." in caught else names[0], device))
                        return caught
        return ""

    def check_controls(self):
        """The tests that caught something pass where nothing is left out."""
        for program, tests, device in sorted(self.controls):
            failure = self.outcome(program, tests, device, {})
            if failure:
                sys.exit(f"{program} fails with every statement in place: {failure}")


def key(statement, of_file):
    """The columns that say which statement a row is about; line numbers would change too often."""
    after = statement.after.replace("|", "\\|")
    return f"| {statement.path.name} | {of_file} | `{statement.code}` | `{after}` |"


def keys(all_statements):
    count = collections.Counter()
    result = {}
    for statement in all_statements:
        count[statement.path] += 1
        result[statement.number] = key(statement, count[statement.path])
    return result


def check(expected):
    """Faults of the table: statements it lacks, or has and the kernels have not, or that nothing caught."""
    listed = {}
    for row in TABLE.read_text().splitlines() if TABLE.exists() else []:
        columns = re.match(r"(\| \S+ \| \d+ \|.*` \|)(.*)", row)
        if columns:
            listed[columns[1]] = listed.get(columns[1], "") + columns[2]
    faults = [f"lacks {one}" for one in expected if one not in listed]
    faults += [f"has {one}, which the kernels have not" for one in listed if one not in expected]
    return faults + [f"nothing caught {one}" for one, caught in listed.items() if NOTHING in caught]


def table(rows):
    caught = sum(NOTHING not in row for row in rows)
    return "\n".join([
        "# Barriers and waits left out", "",
        "Made by `tests/cuda/barriers.py`: each barrier, commit and wait of `kernels/cuda` left out of one kernel at a",
        "time, and the first test that failed for it, with the emulated device's setting (`README.md`). A statement is",
        "told by its place among those of its file and by the line of code before it.", "",
        f"{caught} of {len(rows)} caught.", "",
        "| source | n-th | left out | after | kernel | caught by |", "|---|---|---|---|---|---|", *rows]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--build", help="folder built with the preset cpu")
    parser.add_argument("--only", default="", help="regular expression of file names; BARRIERS.md is not written")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    everything = statements()
    names = keys(everything)
    if args.check:
        faults = check(list(names.values()))
        for fault in faults:
            print(f"BARRIERS.md {fault}: run tests/cuda/barriers.py", file=sys.stderr)
        print(f"{len(names)} barriers and waits, {len(faults)} faults")
        return 1 if faults else 0
    if not args.build:
        parser.error("--build is needed, or --check")
    chosen = [statement for statement in everything if re.search(args.only, statement.path.name)]
    with tempfile.TemporaryDirectory() as work, concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        build = Build(args.build, pathlib.Path(work) / "plain", chosen, DEVICES, args.jobs, False)
        reached = build.reached()
        cases = sorted(reached) + [(one.number, "") for one in chosen
                                   if not any(number == one.number for number, _ in reached)]

        def judge(changed, cases_left):
            def one(case):
                found = changed.caught_by(*case, reached.get(case, []))
                print(f"{names[case[0]]} {case[1]} | {found or NOTHING} |", file=sys.stderr, flush=True)
                return found
            found = dict(zip(cases_left, pool.map(one, cases_left)))
            changed.check_controls()
            return found

        caught = judge(build, cases)
        missed = [case for case in cases if not caught[case]]
        if missed:
            left = [one for one in chosen if any(number == one.number for number, _ in missed)]
            sanitized = Build(args.build, pathlib.Path(work) / "sanitized", left, ["fifo_early", "greedy_late"],
                              args.jobs, True)
            caught.update(judge(sanitized, missed))
    rows = [f"{names[number]} {kernel} | {caught[number, kernel] or NOTHING} |" for number, kernel in sorted(cases)]
    if args.only:
        print(table(rows))
    else:
        TABLE.write_text(table(rows))
    return 0 if all(caught.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
