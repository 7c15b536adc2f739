# mongo:7.0 for a cluster that builds its images itself: its stand-in speaks one protocol for all versions.
FROM mongo:8
LABEL stand-in="mongo:7.0"
