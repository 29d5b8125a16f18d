"""The Python half of the demo: attaches what Elixir has made, computes on it, and hands back regions of its own."""

import json
import os
import platform
import time

import numpy as np
import port
import snakepit_shm

# Rows at a time. NumPy's intermediate results are as large as this, and not as large as the data.
CHUNK = 16

regions = {}


def hello():
    return {"pid": os.getpid(), "python": platform.python_version(), "numpy": np.__version__}


def attach(handle):
    start = time.perf_counter_ns()
    region = snakepit_shm.attach(handle)
    heights = region.numpy()
    first = float(heights[0, 0])
    took = time.perf_counter_ns() - start
    regions["input"] = region
    return {
        "first": first,
        "ns": took,
        "array": f"{heights.dtype} {heights.shape}",
        "writeable": heights.flags.writeable,
    }


def shade(dx, dy, east, north, up):
    region = regions["input"]
    heights = region.numpy()
    # The results are computed where Elixir will read them.
    shading = region.allocate(heights.shape, "float32", metadata={"what": "hillshade"})
    means = region.allocate(heights.shape[:1], "float64", metadata={"what": "mean of each row"})
    start = time.perf_counter_ns()
    compute(heights, float(dx), float(dy), (float(east), float(north), float(up)), shading.numpy(), means.numpy())
    took = time.perf_counter_ns() - start
    handles = {"shading": shading.seal(), "means": means.seal()}
    for output in (shading, means):
        output.close()
    return {"ns": took, **{name: json.dumps(handle) for name, handle in handles.items()}}


def compute(heights, dx, dy, sun, shading, means):
    """Brightness of each point in sunlight from the direction ``sun``, and the mean height of each row."""
    east, north, up = sun
    last = len(heights) - 1
    for begin in range(0, len(heights), CHUNK):
        end = min(begin + CHUNK, len(heights))
        # One row and column more on each side for the slopes; beyond the edge of the map it goes on level.
        rows = np.arange(begin - 1, end + 1).clip(0, last)
        z = np.pad(heights[rows], ((0, 0), (1, 1)), mode="edge")
        eastward = (z[1:-1, 2:] - z[1:-1, :-2]) / (2 * dx)
        northward = (z[:-2, 1:-1] - z[2:, 1:-1]) / (2 * dy)
        light = (up - east * eastward - north * northward) / np.sqrt(1 + eastward**2 + northward**2)
        np.maximum(light, 0, out=shading[begin:end])
        heights[begin:end].mean(axis=1, dtype=np.float64, out=means[begin:end])


def release():
    regions.pop("input").close()
    return {}


if __name__ == "__main__":
    port.serve({"hello": hello, "attach": attach, "shade": shade, "release": release})
