"""Where a file of an installed package lies, and what Python's own JSON decoder finds in it."""

import importlib.util
import json
import pathlib
import sys

package, _, inside = sys.argv[1].partition("/")
path = pathlib.Path(importlib.util.find_spec(package).origin).parent / inside
languages = json.loads(path.read_bytes())["639-3"]
print(f"path={path}")
print(f"count={len(languages)}")
for index in sys.argv[2:]:
    print(f"name{index}={languages[int(index)]['name']}")
