"""Commands for operators, beside the processes: `python -m eventcore lag`, `trace ID`, ...

A command prints tables, or with --json one JSON object a line. One that deletes asks first, or
takes --yes.
"""

from eventcore.operate.dead_letters import dead_letters
from eventcore.operate.inspect import lag, metrics, trace, verify
from eventcore.operate.parked import parked
from eventcore.operate.rebuild import rebuild
from eventcore.operate.sagas import saga

TOOLS = (metrics, trace, lag, parked, saga, dead_letters, rebuild, verify)
"""All of them."""
