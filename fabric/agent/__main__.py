"""``python3 -m fabric.agent``: the same entry as the pushed zip application."""

import sys

from fabric.agent.main import main

sys.exit(main())
