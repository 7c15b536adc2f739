# postgres:17 for a cluster that builds its images itself, with the official image's script for init containers: it
# does what the entrypoint does on an empty folder, and ends instead of starting the server. Without data it fails
# where the official one does: a server that does not stay cannot be asked.
FROM postgres:17-trixie
RUN sed -e 's/^    exec "\$@"$/    exit 0/' -e 's/^main "\$@"$/[ "${1:-}" = postgres ] || set -- postgres "$@"; main "$@"/' \
        /usr/local/bin/docker-entrypoint.sh >/usr/local/bin/docker-ensure-initdb.sh \
 && chmod 755 /usr/local/bin/docker-ensure-initdb.sh \
 && grep -q '^    exit 0$' /usr/local/bin/docker-ensure-initdb.sh
LABEL stand-in="postgres:17"
