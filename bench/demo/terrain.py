"""Takes the elevation grid out of matplotlib's sample data: raw float32, row after row from the north, into a file."""

import sys

import numpy as np
from matplotlib import cbook

METRES_PER_DEGREE = 111_200

with np.load(cbook.get_sample_data("jacksboro_fault_dem.npz", asfileobj=False)) as data:
    elevation = data["elevation"]
    north, south = sorted((float(data["ymin"]), float(data["ymax"])), reverse=True)
    dx, dy = float(data["dx"]), float(data["dy"])

elevation.astype("<f4").tofile(sys.argv[1])

# As in matplotlib's own example with this grid: a degree of longitude is shorter the further north it lies.
print(f"rows={elevation.shape[0]}")
print(f"columns={elevation.shape[1]}")
print(f"dx={METRES_PER_DEGREE * dx * np.cos(np.radians(north))}")
print(f"dy={METRES_PER_DEGREE * dy}")
print(f"lowest={elevation.min()}")
print(f"highest={elevation.max()}")
