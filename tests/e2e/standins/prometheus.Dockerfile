# The chart's prom/prometheus for a cluster that builds its images itself: an older Prometheus, which takes the same
# flags, configuration and rules.
FROM prom/prometheus:v2
LABEL stand-in="prom/prometheus"
