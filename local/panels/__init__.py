"""What an operator looks at, and what wakes one: dashboards and alerts, as data.

`make docs` writes them as Grafana and Prometheus read them, into charts/shop/files.
"""
