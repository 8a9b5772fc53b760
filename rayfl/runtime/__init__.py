"""Everything that needs Ray; and the settings that Ray reads when it is imported."""

import os
import sys

# Before Ray starts anything: its workers run at nice 15 by default, and lose to any other process.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Objects that nobody needs any more stay for a second, which is some rounds: hundreds of MB for ResNet-18.
os.environ.setdefault("RAY_free_objects_period_milliseconds", "100")
# An actor without a GPU must not see one.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
if "ray" not in sys.modules and os.path.exists(os.path.expanduser("~/.ray/auth_token")):
    # Once the file exists `ray start` asks for this token, but a driver that joins sends it only in this
    # mode, which Ray reads when it is imported. A cluster that asks for none does not mind.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
