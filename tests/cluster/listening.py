"""Run by test_listening.py, in namespaces with a network: prints where the processes of a run listen."""

import json
import subprocess
import sys
import time
from pathlib import Path

command = [str(Path(sys.executable).with_name("rayfl")), "run", *sys.argv[1:]]
seen: list[str] = []
with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
    while process.poll() is None:
        listing = subprocess.run(["ss", "-ltnH"], capture_output=True, text=True, check=True).stdout
        seen.extend(line.split()[3].rpartition(":")[0] for line in listing.splitlines())
        time.sleep(0.5)
assert process.returncode == 0
print(json.dumps(sorted(set(seen))))
