"""Reads dashboards with Grafana's own SDK and writes them again: what it does not know, or knows otherwise, would be lost.

Arguments: the files."""

import json
import sys

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard


def lost(given, kept, at=""):
    """Paths of what is in `given` and not the same in `kept`."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            yield from lost(value, kept.get(key), f"{at}.{key}")
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for i, value in enumerate(given):
            yield from lost(value, kept[i], f"{at}[{i}]")
    elif given != kept:
        yield f"{at}: {given!r} became {kept!r}"


def main():
    register_default_plugins()
    bad = 0
    for path in sys.argv[1:]:
        with open(path) as file:
            given = json.load(file)
        dashboard = Dashboard.from_json(json.loads(json.dumps(given)))
        kept = json.loads(JSONEncoder(sort_keys=True).encode(dashboard))
        for problem in lost(given, kept):
            bad += 1
            print(f"{path}{problem}")
        print(f"{path}: {len(given['panels'])} panels")
    sys.exit(1 if bad else 0)


main()
