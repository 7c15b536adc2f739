# dump.sh FOLDER STORE KEEP: dump the event store into FOLDER, as STORE-TIME.dump, and keep the newest KEEP of its dumps.
# A dump has its name only when it is whole.
. "$(dirname "$0")/login.sh"
folder=$1 store=$2 keep=$3
part=$folder/.$store.part
name=$store-$(date --utc +%Y%m%dT%H%M%SZ).dump
pg_dump --format=custom --file="$part"
pg_restore --list "$part" | grep ' TABLE DATA public events ' >/dev/null
sync "$part"
mv "$part" "$folder/$name"
echo "$name has $(stat --format=%s "$folder/$name") bytes."
find "$folder" -maxdepth 1 -name "$store-*.dump" | sort --reverse | tail --lines=+$((keep + 1)) | xargs --no-run-if-empty rm --verbose
