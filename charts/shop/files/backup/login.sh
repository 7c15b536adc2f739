# Sourced by the scripts beside it: makes libpq use the login that POSTGRES_... name, as the processes do.
set -euo pipefail
umask 077
export PGHOST=$POSTGRES_HOST PGPORT=$POSTGRES_PORT PGDATABASE=$POSTGRES_DATABASE PGUSER=$POSTGRES_USER
export PGPASSFILE=${TMPDIR:-/tmp}/pgpass PGCONNECT_TIMEOUT=10
printf '*:*:*:*:%s\n' "$(sed 's/[\\:]/\\&/g' "$POSTGRES_PASSWORD_FILE")" >"$PGPASSFILE"
if [ "${POSTGRES_TLS:-off}" = on ]; then
    export PGSSLMODE=verify-full PGSSLROOTCERT=${POSTGRES_CA_FILE:-system}
fi
