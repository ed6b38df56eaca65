#!/usr/bin/env python3
"""Both of TensorBoard's Python readers see a resumed run without duplicates, in order.

    tests/interop/tensorboard_files.py build/tensorboard_files_tool
"""
import math
import subprocess
import sys
import tempfile

try:
    from tensorboard.backend.event_processing import event_accumulator, plugin_event_accumulator
except ImportError:
    print("skipped: tensorboard is not installed")
    sys.exit(77)

with tempfile.TemporaryDirectory() as run:
    subprocess.run([sys.argv[1], run], check=True)
    old = event_accumulator.EventAccumulator(run, size_guidance={"scalars": 0})
    new = plugin_event_accumulator.EventAccumulator(
        run, size_guidance={"scalars": 0, "tensors": 0}, tensor_size_guidance={"scalars": 0})
    old.Reload()
    new.Reload()

    def number(tensor):
        return tensor.float_val[0]

    loss = {
        "event_accumulator": [(e.step, e.value) for e in old.Scalars("train/loss")],
        "plugin_event_accumulator": [(e.step, number(e.tensor_proto)) for e in new.Tensors("train/loss")],
    }
    for reader, points in loss.items():
        assert [step for step, _ in points] == list(range(1, 41)), f"{reader}: steps {points}"
        for step, value in points:
            wanted = math.nan if step == 7 else 4 if step <= 20 else 2
            assert value == wanted or math.isnan(value) and math.isnan(wanted), f"{reader}: step {step} is {value}"
    assert [(e.step, e.value) for e in old.Scalars("eval/bits_per_byte")] == [(10, 2), (20, 2), (30, 1), (40, 1)]
print("tensorboard: a resumed run reads without duplicates")
