"""The `rayfl` command on the head node: `ray submit cluster.yaml clusters/run.py sweep FILE KEY=VALUE...`

`ray submit` copies this file there and runs it with the arguments that follow.
"""

import os
import sys

rayfl = os.path.expanduser("~/rayfl")
os.chdir(rayfl)
# Beside the copy lies that directory, which Python would take for the package of the same name.
sys.path[0] = rayfl

from rayfl.cli.main import script  # noqa: E402

script()
