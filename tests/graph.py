"""Who talks to whom, declared by hand: held against rendered policies and a running cluster."""

GRAPH = {
    "gateway": ["user-service:3001", "order-service:3002"],
    "user-service": ["postgres:5432", "mongodb:27017"],
    "order-service": ["postgres:5432", "mongodb:27017"],
    "user-relay": ["postgres:5432", "rabbitmq:5672"],
    "order-relay": ["postgres:5432", "rabbitmq:5672"],
    "user-projector": ["rabbitmq:5672", "mongodb:27017", "user-service:3001"],
    "order-projector": ["rabbitmq:5672", "mongodb:27017", "order-service:3002"],
    "order-user-sync": ["rabbitmq:5672", "mongodb:27017", "user-service:3001"],
    "user-projector-job": ["mongodb:27017", "user-service:3001"],
    "order-projector-job": ["mongodb:27017", "order-service:3002"],
    "order-user-sync-job": ["mongodb:27017", "user-service:3001"],
    "setup": ["postgres:5432", "rabbitmq:15672", "mongodb:27017"],
    "test": ["gateway:3000"],
    "postgres": [],
    "rabbitmq": [],
    "mongodb": [],
}
"""Each component, and what it connects to, `component:port`: the whole of it."""

_PROCESSES = [name for name in GRAPH if name.endswith(("gateway", "service", "relay"))] + [
    "user-projector",
    "order-projector",
    "order-user-sync",
]

OBSERVED = {
    **GRAPH,
    **{name: [*GRAPH[name], "collector:4318"] for name in _PROCESSES},
    "collector": ["jaeger:4317"],
    "jaeger": [],
    "grafana": ["prometheus:9090", "jaeger:16686"],
    "prometheus": [
        *(f"{name}:9464" for name in _PROCESSES),
        "rabbitmq:15692",
        "postgres-exporter:9187",
        "mongodb-exporter:9216",
    ],
    "postgres-exporter": ["postgres:5432"],
    "mongodb-exporter": ["mongodb:27017"],
}
"""The same with the bundled stack that looks at it."""
