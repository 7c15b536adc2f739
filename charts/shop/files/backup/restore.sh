# restore.sh FOLDER STORE NAME SCHEMA: put the dump NAME of STORE, or its `latest`, in place of what the event store
# holds, bring its schema to this release (the file SCHEMA), and begin an epoch. It refuses while others use the database.
. "$(dirname "$0")/login.sh"
folder=$1 store=$2 name=$3 schema=$4
if [ "$name" = latest ]; then
    name=$(find "$folder" -maxdepth 1 -name "$store-*.dump" -printf '%f\n' | sort | tail --lines=1)
fi
if [ ! -f "$folder/$name" ]; then
    echo "There is no dump ${name:-of $store}. There are:" >&2
    find "$folder" -maxdepth 1 -name '*.dump' -printf '%f\n' | sort >&2
    exit 1
fi
query() { psql --no-psqlrc --quiet --tuples-only --no-align --set=ON_ERROR_STOP=1 "$@"; }
others=$(query --command="select string_agg(distinct usename, ', ') from pg_stat_activity
                          where datname = current_database() and usename <> current_user")
if [ -n "$others" ]; then
    echo "Nothing is restored while $others use $PGDATABASE: scale the service and its relay to zero." >&2
    exit 1
fi
pg_restore --clean --if-exists --no-owner --single-transaction --dbname="$PGDATABASE" "$folder/$name"
query --file="$schema" >/dev/null
query --set=reason="restored from $name" <<<"select begin_epoch(:'reason')"
echo "$PGDATABASE holds $(query --command='select count(*) from events') events of $name, in a new epoch."
