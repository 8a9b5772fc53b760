"""Run by test_listening.py, in namespaces with a network: prints where an experiment's processes listen."""

import json
import subprocess
import sys

from rayfl import load_config, run

seen: list[str] = []


def look(record):
    listing = subprocess.run(["ss", "-ltnH"], capture_output=True, text=True, check=True).stdout
    seen.extend(line.split()[3].rpartition(":")[0] for line in listing.splitlines())


run(load_config(sys.argv[1]), on_record=look)
print(json.dumps(sorted(set(seen))))
