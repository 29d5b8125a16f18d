"""The Python side of bench/run.exs. Times what happens here itself, in nanoseconds."""

from time import perf_counter_ns as now

import port
import snakepit_shm

kept = {}


def keep(handle):
    """Holds a region from here on: what comes later finds a connection."""
    kept["anchor"] = snakepit_shm.attach(handle)
    return {}


def first(handle, count):
    """From the handle to the first element of an array; giving back is not timed."""
    times = []
    for _ in range(int(count)):
        start = now()
        region = snakepit_shm.attach(handle)
        array = region.numpy()
        value = array[0]
        times.append(now() - start)
        del array
        region.close()
    return {"ns": numbers(times), "first": value}


def attach(handle, count):
    times = []
    for _ in range(int(count)):
        start = now()
        region = snakepit_shm.attach(handle)
        times.append(now() - start)
        region.close()
    return {"ns": numbers(times)}


def open_region(handle):
    region = snakepit_shm.attach(handle)
    kept["region"] = region
    return {"first": region.numpy()[0]}


def close_region():
    kept.pop("region").close()
    return {}


def bytes_through_port(length):
    """The next frame is the data."""
    import numpy as np

    array = np.empty(int(length), np.uint8)
    port.receive_into(array)
    return {"first": array[0]}


def from_file(path):
    import numpy as np

    return {"first": np.fromfile(path, np.uint8)[0]}


def standard(what, size, count):
    """multiprocessing.shared_memory. Giving back is not timed."""
    from multiprocessing.shared_memory import SharedMemory

    size, count = int(size), int(count)
    times = []
    if what == "create":
        for _ in range(count):
            start = now()
            memory = SharedMemory(create=True, size=size)
            times.append(now() - start)
            memory.close()
            memory.unlink()
        return {"ns": numbers(times)}
    owner = SharedMemory(create=True, size=size)
    for _ in range(count):
        start = now()
        memory = SharedMemory(owner.name)
        times.append(now() - start)
        memory.close()
    owner.close()
    owner.unlink()
    return {"ns": numbers(times)}


def numbers(times):
    return " ".join(map(str, times))


if __name__ == "__main__":
    port.serve(
        {
            "keep": keep,
            "first": first,
            "attach": attach,
            "open": open_region,
            "close": close_region,
            "bytes": bytes_through_port,
            "file": from_file,
            "standard": standard,
        }
    )
