"""The dashboards and the alerts, as data.

`make docs` writes them as Grafana and Prometheus read them, into charts/shop/files.
"""
