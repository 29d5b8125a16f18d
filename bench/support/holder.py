"""A worker that attaches a region and keeps it. It will not live to give it back."""

import port
import snakepit_shm

kept = []


def hold(handle):
    kept.append(snakepit_shm.attach(handle))
    return {}


if __name__ == "__main__":
    port.serve({"hold": hold})
