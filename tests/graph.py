"""The connections of each component, held against rendered policies and a cluster."""

from eventcore.reactor import Reactor
from local.services import PROCESSES, SERVICES


def _graph() -> dict[str, list[str]]:
    urls = {name: f"{name}-service:{service.port}" for name, service in SERVICES.items()}
    graph = {
        "gateway": list(urls.values()),
        "setup": ["postgres:5432", "rabbitmq:15672", "mongodb:27017"],
        "test": ["gateway:3000"],
        "postgres": [],
        "rabbitmq": [],
        "mongodb": [],
    }
    for name, service in SERVICES.items():
        graph[f"{name}-service"] = ["postgres:5432", "mongodb:27017"]
        graph[f"{name}-relay"] = ["postgres:5432", "rabbitmq:5672"]
        for each in service.projectors:
            feeds = [urls[owner] for owner in each.projection.owners]
            own = ["postgres:5432"] if isinstance(each.projection, Reactor) else []
            graph[each.name] = ["rabbitmq:5672", "mongodb:27017", *feeds, *own]
            graph[f"{each.name}-job"] = ["mongodb:27017", *feeds]
    return graph


GRAPH = _graph()
"""Each component, and what it connects to, `component:port`: the whole of it."""

OBSERVED = {
    **GRAPH,
    **{name: [*GRAPH[name], "collector:4318"] for name in PROCESSES},
    "traffic": ["gateway:3000"],
    "collector": ["jaeger:4317"],
    "jaeger": [],
    "grafana": ["prometheus:9090", "jaeger:16686"],
    "prometheus": [
        *(f"{name}:9464" for name in PROCESSES),
        "rabbitmq:15692",
        "postgres-exporter:9187",
        "mongodb-exporter:9216",
    ],
    "postgres-exporter": ["postgres:5432"],
    "mongodb-exporter": ["mongodb:27017"],
}
"""The same with the bundled stack that looks at it, and with traffic."""
