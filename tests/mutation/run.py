#!/usr/bin/env python3
"""Mutation run: applies each patch of tests/mutation/patches to a private copy of the sources, rebuilds, and
shows that some test fails. See tests/mutation/README.md. Exit 1 if a mutation survived or a patch is broken.
"""
import argparse
import concurrent.futures
import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATCHES = ROOT / "tests/mutation/patches"
TEST_SECONDS = 120
BUILD_SECONDS = 1800


class Mutation:
    """One patch; its leading comment lines say what to build, what to run and what it breaks."""

    def __init__(self, path):
        self.path = path
        self.name = str(path.relative_to(PATCHES).with_suffix(""))
        head, mark, body = path.read_text().partition("\n--- ")
        fields = dict(re.findall(r"^# (\w+): (.+?)\s*$", head, re.M))
        unknown = set(fields) - {"target", "filter", "run", "what"}
        complete = "target" in fields and "what" in fields and ("filter" in fields) != ("run" in fields)
        if not mark or unknown or not complete:
            sys.exit(f"{path}: needs the lines '# target:', '# what:' and one of '# filter:' and '# run:', "
                     f"then a unified diff{'; unknown: ' + ', '.join(sorted(unknown)) if unknown else ''}")
        self.targets = tuple(re.split(r"[,\s]+", fields["target"]))
        self.what = fields["what"]
        if "run" in fields:
            self.commands = (fields["run"],)
        else:
            self.commands = tuple(f"./{target} --gtest_fail_fast --gtest_filter='{fields['filter']}'"
                                  for target in self.targets if target.startswith("test_"))
        self.where = ", ".join(dict.fromkeys(re.findall(r"^\+\+\+ b/(\S+)", body, re.M)))


def run(command, folder, seconds, **environment):
    """Runs a command in a process group of its own. Returns (status, or None where it hung; output)."""
    process = subprocess.Popen(command, cwd=folder, shell=isinstance(command, str), start_new_session=True,
                               env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    try:
        output, _ = process.communicate(timeout=seconds)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]


class Worker:
    """A private copy of the tracked sources and a build folder of its own."""

    def __init__(self, folder):
        self.source = folder / "src"
        self.build = folder / "build"
        self.source.mkdir(parents=True, exist_ok=True)

    def synchronize(self):
        """Makes the copy equal to the tracked files, leaving equal files alone so that little is rebuilt."""
        listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
        tracked = {name for name in listed.split("\0") if name and (ROOT / name).is_file()
                   and not name.startswith("tests/mutation/")}
        for path in [path for path in self.source.rglob("*") if path.is_file()]:
            if str(path.relative_to(self.source)) not in tracked:
                path.unlink()
        for name in tracked:
            copy = self.source / name
            if not copy.is_file() or copy.read_bytes() != (ROOT / name).read_bytes():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, copy)  # with the present time: ninja sees the change

    def make(self, targets, jobs=1):
        """Returns what went wrong, or nothing."""
        status, output = run(["ninja", f"-j{jobs}", *targets], self.build, BUILD_SECONDS,
                             CCACHE_BASEDIR=str(self.source), CCACHE_NOHASHDIR="1")
        if status == 0:
            return ""
        errors = [line for line in output.splitlines() if "error" in line] or output.splitlines()[-1:]
        return errors[0] if errors else "the build did not end in time"

    def prepare(self, targets, jobs):
        self.synchronize()
        if not (self.build / "build.ninja").exists():
            status, output = run(["cmake", "--preset", "cpu", "-B", str(self.build),
                                  "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG"], self.source, BUILD_SECONDS)
            if status != 0:
                sys.exit(f"cmake failed in {self.source}:\n{output}")
        error = self.make(targets, jobs)
        if error:
            sys.exit(f"{self.build}: the sources do not compile: {error}")

    def test(self, command):
        """Returns (name of the failing test or nothing, whether any test ran)."""
        status, output = run(command, self.build, TEST_SECONDS, SOURCE=str(self.source), OMP_NUM_THREADS="1",
                             TEST_WATCHDOG_SECONDS="60")
        ran = "[==========] 0 tests from" not in output
        if status == 0:
            return "", ran
        failed = re.search(r"^\[  FAILED  \] ([^\s,]+)", output, re.M)
        if failed:
            return failed[1], ran
        started = re.findall(r"^\[ RUN      \] (\S+)", output, re.M)
        how = "hung" if status is None else f"exit status {status}" if status > 0 else "crashed"
        return f"{started[-1]} ({how})" if started else how, ran

    def mutate(self, mutation):
        """Returns (result, detail)."""
        patch = ["patch", "-p1", "--force", "--silent", "--fuzz=0", "--no-backup-if-mismatch",
                 "--reject-file=-", "-i", str(mutation.path)]
        status, output = run([*patch, "--dry-run"], self.source, 60)
        if status != 0:
            return "broken", "does not apply: " + " ".join(output.split())
        run(patch, self.source, 60)
        try:
            error = self.make(mutation.targets)
            if error:
                return "broken", "does not compile: " + error
            for command in mutation.commands:
                failed, _ = self.test(command)
                if failed:
                    return "caught", failed
            return "SURVIVED", ""
        finally:
            run([*patch, "--reverse"], self.source, 60)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="workers, each with a copy of its own")
    parser.add_argument("--only", default="", metavar="REGEX", help="only those whose area/name matches")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build-mutation", metavar="DIR")
    parser.add_argument("--table", type=pathlib.Path, metavar="FILE", help="write the table here, too")
    parser.add_argument("--check", action="store_true", help="only whether each patch applies to the sources")
    args = parser.parse_args()

    mutations = [Mutation(path) for path in sorted(PATCHES.rglob("*.patch"))]
    mutations = [mutation for mutation in mutations if re.search(args.only, mutation.name)]
    if not mutations:
        sys.exit(f"no mutation matches '{args.only}'")
    if args.check:
        stale = [mutation.name for mutation in mutations
                 if run(["git", "apply", "--check", str(mutation.path)], ROOT, 60)[0] != 0]
        for name in stale:
            print(f"broken   {name}: the source has moved on, make the patch anew")
        print(f"{len(mutations)} mutations, {len(stale)} broken")
        return 1 if stale else 0
    targets = sorted({target for mutation in mutations for target in mutation.targets})
    commands = sorted({command for mutation in mutations for command in mutation.commands})

    idle = queue.Queue()
    for number in range(min(args.jobs, len(mutations))):
        worker = Worker(args.build.resolve() / f"worker-{number}")
        started = time.monotonic()
        worker.prepare(targets, args.jobs)  # one after the other: the next finds its objects in the cache
        print(f"worker {number}: built in {time.monotonic() - started:.0f} s", flush=True)
        idle.put(worker)

    def on_a_worker(function):
        def call(item):
            worker = idle.get()
            try:
                return function(worker, item)
            finally:
                idle.put(worker)
        return call

    def check(worker, mutation):
        started = time.monotonic()
        result, detail = worker.mutate(mutation)
        print(f"{result:8} {mutation.name} {time.monotonic() - started:.0f} s {detail}", flush=True)
        return result, detail

    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        clean = zip(commands, pool.map(on_a_worker(lambda worker, command: worker.test(command)), commands))
        wrong = [f"unmutated: {command}: {failed or 'no such test'}"
                 for command, (failed, ran) in clean if failed or not ran]
        if wrong:
            sys.exit("\n".join(wrong))
        results = list(pool.map(on_a_worker(check), mutations))

    rows = ["| mutation | where | what | caught by |", "|---|---|---|---|"]
    for mutation, (result, detail) in zip(mutations, results):
        caught = detail if result == "caught" else f"**{result}** {detail}".strip()
        rows.append(f"| {mutation.name} | {mutation.where} | {mutation.what} | {caught} |")
    count = {kind: sum(result == kind for result, _ in results) for kind in ("caught", "SURVIVED", "broken")}
    rows.append(f"\n{len(results)} mutations: {count['caught']} caught, {count['SURVIVED']} survived, "
                f"{count['broken']} broken.")
    table = "\n".join(rows) + "\n"
    print("\n" + table, end="")
    if args.table:
        args.table.write_text(table)
    return 0 if count["caught"] == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
