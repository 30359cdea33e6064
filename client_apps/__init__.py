"""What a device does, by message type."""

import os
import sys
from pathlib import Path

# Ray puts its driver's working directory first on its actors' path, so files of the same name
# there would be run instead of the app's. The directory of the app itself shadows nothing, and this
# package is imported in the driver before Ray starts.
if os.path.basename(sys.argv[0]) == "flwr-simulation":
    os.chdir(Path(__file__).resolve().parents[1])

# Message type -> "module:function". By name, because the modules import torch, which takes seconds:
# a node that only answers must not pay for it.
HANDLERS = {
    "query.engine": "client_apps.engine_query:choose",
    "query.hello": "client_apps.hello:hello",
    "query.meet": "client_apps.consensus_node:meet",
    "query.prepare": "client_apps.local_training:prepare",
    "query.secure_keys": "client_apps.secure_sum:keys",
    "query.secure_masked": "client_apps.secure_sum:masked",
    "query.secure_shares": "client_apps.secure_sum:shares",
    "query.secure_unmask": "client_apps.secure_sum:unmask",
    "train.consensus": "client_apps.consensus_node:run_window",
    "train.local": "client_apps.local_training:train",
    "train.session": "client_apps.session:serve",
}
