-- The event store's schema: psql -d user_event_db -f init.sql   (the same for order_event_db)
--
-- Apply it as the database's owner, and again at any time: a run changes only what the
-- recorded schema version lacks, and does nothing where the database is newer than this file.
-- Functions are the API for every change: callers append and move checkpoints through them. Reads call
-- functions or select from the tables. Callers match on SQLSTATE:
--     ES001  conflict: the stream is not at the expected version
--     ES002  the idempotency key stands for another request
--     ES003  events are immutable
--     ES004  the sequence of positions is behind the log
--     ES005  the log does not have the event that a checkpoint stands on
-- Three roles that cannot log in hold every right; logins are members of one of them:
--     event_append  services: append and read      event_relay  relays: read, move a checkpoint,
--     event_read    tools: read                                 delete expired idempotency keys

begin;
set local lock_timeout = '2s';
set local client_min_messages = warning;

do $init$
declare
    this_version constant int := 7;
    recorded int := 0;
    role_name text;
begin
    perform pg_advisory_xact_lock(hashtext('event store schema'));
    if to_regclass('public.schema_versions') is not null then
        select coalesce(max(version), 0) into recorded from public.schema_versions;
    end if;
    if recorded > this_version then
        raise warning 'schema version % is newer than this file (%): nothing done', recorded, this_version;
        return;
    end if;

    foreach role_name in array array['event_append', 'event_relay', 'event_read'] loop
        if not exists (select from pg_roles where rolname = role_name) then
            begin
                execute format('create role %I nologin', role_name);
            exception when insufficient_privilege then
                raise exception 'role % is missing', role_name
                    using hint = 'Run the provisioning step first: python -m eventcore provision';
            end;
        end if;
    end loop;

    -- ── version 1 ────────────────────────────────────────────────────────────────────────
    if recorded < 1 then

    create table public.schema_versions (
        version     int primary key,
        applied_at  timestamptz not null default clock_timestamp()
    );
    comment on table public.schema_versions is 'Which versions of init.sql have been applied; the greatest is the current one.';
    comment on column public.schema_versions.version is 'The version of init.sql.';
    comment on column public.schema_versions.applied_at is 'When it was applied.';

    create table public.streams (
        aggregate_type  text not null check (aggregate_type ~ '^[a-z][a-z0-9_]{0,62}$'),
        aggregate_id    uuid not null,
        version         bigint not null check (version > 0),
        recorded_at     timestamptz not null,
        primary key (aggregate_type, aggregate_id)
    ) with (fillfactor = 80);
    comment on table public.streams is 'One row an aggregate: its current version. An append locks this row before it draws a position.';
    comment on column public.streams.aggregate_type is 'What the stream is about: user, order.';
    comment on column public.streams.aggregate_id is 'Which one.';
    comment on column public.streams.version is 'The version of the last event of the stream.';
    comment on column public.streams.recorded_at is 'When that event was recorded; the next one is not recorded earlier.';

    create table public.events (
        position        bigint generated always as identity (cache 1) primary key,
        event_id        uuid not null,
        aggregate_type  text not null,
        aggregate_id    uuid not null,
        version         bigint not null check (version > 0),
        event_type      text not null check (event_type ~ '^[A-Z][A-Z0-9_]{0,126}$'),
        schema_version  int not null check (schema_version > 0),
        data            jsonb not null check (jsonb_typeof(data) = 'object'),
        metadata        jsonb not null check (jsonb_typeof(metadata) = 'object'),
        recorded_at     timestamptz not null,
        constraint events_event_id unique (event_id),
        constraint events_stream unique (aggregate_type, aggregate_id, version)
    );
    comment on sequence public.events_position_seq is 'Draws the positions, one at a time.';
    comment on table public.events is 'The log: every event, never changed and never deleted. It is the outbox as well: the relay reads it by position.';
    comment on column public.events.position is 'The place in the whole log; grows, may have gaps, becomes visible out of order (see settle).';
    comment on column public.events.event_id is 'The identity of the event, made by its writer (UUIDv7).';
    comment on column public.events.aggregate_type is 'The stream: what it is about.';
    comment on column public.events.aggregate_id is 'The stream: which one.';
    comment on column public.events.version is 'The place in the stream: 1, 2, 3, with no gap.';
    comment on column public.events.event_type is 'What happened: USER_CREATED.';
    comment on column public.events.schema_version is 'The version of the shape of data, for upcasters.';
    comment on column public.events.data is 'What happened, in full.';
    comment on column public.events.metadata is 'correlationId, causationId, and where given traceparent and actor.';
    comment on column public.events.recorded_at is 'When it was appended; never goes back within a stream.';

    create table public.idempotency_keys (
        key           text primary key check (length(key) between 1 and 255),
        request_hash  text not null,
        answer        jsonb not null,
        recorded_at   timestamptz not null default clock_timestamp()
    );
    create index idempotency_keys_recorded_at on public.idempotency_keys (recorded_at);
    comment on table public.idempotency_keys is 'The answers of commands that came with an Idempotency-Key, written in the transaction of their append; good for 24 hours.';
    comment on column public.idempotency_keys.key is 'The key, as the caller sent it.';
    comment on column public.idempotency_keys.request_hash is 'SHA-256 of method, path, caller and body.';
    comment on column public.idempotency_keys.answer is 'Status, headers and body that were answered.';
    comment on column public.idempotency_keys.recorded_at is 'When; 24 hours later the key is forgotten.';
    comment on index public.idempotency_keys_recorded_at is 'Finds what has expired.';

    create table public.checkpoints (
        name        text primary key,
        position    bigint not null check (position >= 0),
        updated_at  timestamptz not null default clock_timestamp()
    );
    comment on table public.checkpoints is 'How far the relay has come: every event up to here is confirmed by the broker.';
    comment on column public.checkpoints.name is 'The relay that the checkpoint belongs to.';
    comment on column public.checkpoints.position is 'The position; moves only forwards.';
    comment on column public.checkpoints.updated_at is 'When it moved last.';

    create function public.refuse_change() returns trigger language plpgsql as $refuse$
    begin
        raise exception 'events are immutable: % is refused', tg_op
            using errcode = 'ES003', hint = 'Append a new event that corrects the old one.';
    end $refuse$;
    comment on function public.refuse_change is 'Refuses whatever fired it, with SQLSTATE ES003.';

    create trigger events_are_immutable before update or delete on public.events
        for each row execute function public.refuse_change();
    create trigger events_are_not_truncated before truncate on public.events
        for each statement execute function public.refuse_change();
    comment on trigger events_are_immutable on public.events is 'No event is changed or deleted, by anybody.';
    comment on trigger events_are_not_truncated on public.events is 'The log is not emptied, by anybody.';

    revoke all on all tables in schema public from public;
    grant usage on schema public to event_append, event_relay, event_read;
    grant select on public.events, public.streams, public.schema_versions, public.events_position_seq
        to event_append, event_relay, event_read;
    grant select on public.idempotency_keys to event_append;
    grant select on public.checkpoints to event_append, event_relay, event_read;
    grant insert, update on public.checkpoints to event_relay;
    grant select, delete on public.idempotency_keys to event_relay;

    insert into public.schema_versions (version) values (1);
    end if;

    -- ── version 2 ────────────────────────────────────────────────────────────────────────
    if recorded < 2 then

    create table public.store_epochs (
        number    bigint generated always as identity primary key,
        epoch     uuid not null unique default gen_random_uuid(),
        began_at  timestamptz not null default clock_timestamp(),
        reason    text not null
    );
    comment on table public.store_epochs is 'One row for each epoch of this log: a restore begins a new one, so that readers ahead of the restored log can detect it. The greatest number is the current one.';
    comment on sequence public.store_epochs_number_seq is 'Draws the numbers of epochs.';
    comment on column public.store_epochs.number is 'Their order.';
    comment on column public.store_epochs.epoch is 'The name of the life, which checkpoints elsewhere remember.';
    comment on column public.store_epochs.began_at is 'When it began.';
    comment on column public.store_epochs.reason is 'Why: created, or restored from what.';
    insert into public.store_epochs (reason) values ('created');
    grant select on public.store_epochs to event_append, event_relay, event_read;

    insert into public.schema_versions (version) values (2);
    end if;

    -- ── version 3: nothing but functions ─────────────────────────────────────────────────
    if recorded < 3 then
    insert into public.schema_versions (version) values (3);
    end if;

    -- ── version 4: a checkpoint names the event it stands on ──────────────────────────────
    if recorded < 4 then

    alter table public.checkpoints add column event_id uuid;
    update public.checkpoints c
       set (position, event_id) = (
           select coalesce(max(e.position), 0), (array_agg(e.event_id))[1]
             from (select position, event_id from public.events
                    where position <= c.position order by position desc limit 1) e);
    alter table public.checkpoints add constraint checkpoints_event
        check ((position > 0) = (event_id is not null));
    comment on column public.checkpoints.event_id is 'The event at that position; null at position 0.';
    drop function if exists public.settle();
    drop function if exists public.move_checkpoint(text, bigint);

    insert into public.schema_versions (version) values (4);
    end if;

    -- ── version 5: nothing but functions ─────────────────────────────────────────────────
    if recorded < 5 then
    insert into public.schema_versions (version) values (5);
    end if;

    -- ── version 6: deadlines and snapshots of streams ─────────────────────────────────────
    if recorded < 6 then

    -- They are there if an older dump was restored into this database; they are of another log then.
    drop table if exists public.deadlines, public.snapshots;

    create table public.deadlines (
        aggregate_type  text not null,
        aggregate_id    uuid not null,
        version         bigint not null check (version > 0),
        due_at          timestamptz not null,
        primary key (aggregate_type, aggregate_id)
    ) with (fillfactor = 80);
    create index deadlines_due on public.deadlines (aggregate_type, due_at);
    comment on table public.deadlines is 'At most one row a stream: when its next step is due. Written in the transaction of the events that set it (append_many).';
    comment on column public.deadlines.aggregate_type is 'The stream: what it is about.';
    comment on column public.deadlines.aggregate_id is 'The stream: which one.';
    comment on column public.deadlines.version is 'The version of the stream at which the deadline was set.';
    comment on column public.deadlines.due_at is 'When it is due, by the clock of this server; take_due moves it. infinity: never, the stream waits for an operator.';
    comment on index public.deadlines_due is 'Finds what is due.';
    grant select on public.deadlines to event_append, event_read;

    create table public.snapshots (
        aggregate_type  text not null,
        aggregate_id    uuid not null,
        version         bigint not null check (version > 0),
        event_id        uuid not null,
        digest          text not null,
        checksum        text not null,
        state           text not null,
        primary key (aggregate_type, aggregate_id)
    );
    comment on table public.snapshots is 'At most one row a stream: its state at a version, so that a command reads the events after it only. A cache: any row may be deleted.';
    comment on column public.snapshots.aggregate_type is 'The stream: what it is about.';
    comment on column public.snapshots.aggregate_id is 'The stream: which one.';
    comment on column public.snapshots.version is 'The version of the last event that is in the state.';
    comment on column public.snapshots.event_id is 'That event.';
    comment on column public.snapshots.digest is 'SHA-256 of the code that folded it; other code does not use it.';
    comment on column public.snapshots.checksum is 'SHA-256 of the other columns; a damaged row is not used.';
    comment on column public.snapshots.state is 'The state, as JSON text.';
    grant select on public.snapshots to event_append, event_read;

    drop function if exists public.append_many(
        text[], uuid[], bigint[], int[], uuid[], text[], int[], text[], jsonb, text, text, jsonb);

    insert into public.schema_versions (version) values (6);
    end if;

    -- ── version 7: take_due says how late a deadline is; snapshots are not compressed ─────────
    if recorded < 7 then
    drop function if exists public.take_due;  -- its columns change
    alter table public.snapshots alter column state set storage external;  -- read often: not compressed
    insert into public.schema_versions (version) values (7);
    end if;

    -- ── functions: replaced by every run, which locks no table ───────────────────────────

    create or replace function public.record_answer(p_key text, p_request_hash text, p_answer jsonb)
    returns text language plpgsql volatile set search_path = pg_catalog, public, pg_temp as $record$
    declare
        known public.idempotency_keys;
    begin
        delete from idempotency_keys
         where key = p_key and recorded_at < clock_timestamp() - interval '24 hours';
        -- A key that another transaction is just writing makes this INSERT wait for it.
        insert into idempotency_keys (key, request_hash, answer)
        values (p_key, p_request_hash, p_answer) on conflict do nothing;
        if found then
            return null;
        end if;
        select * into known from idempotency_keys where key = p_key;
        if known.request_hash is distinct from p_request_hash then
            raise exception 'this idempotency key stands for another request' using errcode = 'ES002';
        end if;
        return known.answer::text;
    end $record$;
    comment on function public.record_answer is
        'Records the answer under an idempotency key, and returns null; a known key: returns the answer that was recorded. ES002: the key stands for another request.';
    revoke all on function public.record_answer from public;

    create or replace function public.append_events(
        p_aggregate_type text, p_aggregate_id uuid, p_expected_version bigint,
        p_event_ids uuid[], p_event_types text[], p_schema_versions int[], p_data text[],
        p_metadata jsonb,
        p_key text default null, p_request_hash text default null, p_answer jsonb default null,
        out replayed boolean, out answer text, out version bigint, out recorded_at timestamptz)
    language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $append$
    #variable_conflict use_column
    declare
        added constant int := cardinality(p_event_ids);
    begin
        replayed := false;
        version := p_expected_version;

        if p_key is not null then
            answer := record_answer(p_key, p_request_hash, p_answer);
            replayed := answer is not null;
        end if;
        if replayed or added = 0 then
            return;
        end if;

        -- The stream's row is locked, by compare-and-set, before any position is drawn.
        version := p_expected_version + added;
        if p_expected_version = 0 then
            insert into streams as s (aggregate_type, aggregate_id, version, recorded_at)
            values (p_aggregate_type, p_aggregate_id, p_expected_version + added, clock_timestamp())
            on conflict do nothing
            returning s.recorded_at into recorded_at;
        else
            update streams s
               set version = p_expected_version + added,
                   recorded_at = greatest(clock_timestamp(), s.recorded_at)
             where aggregate_type = p_aggregate_type and aggregate_id = p_aggregate_id
               and s.version = p_expected_version
            returning s.recorded_at into recorded_at;
        end if;
        if not found then
            raise exception 'conflict: stream % % is not at version %',
                    p_aggregate_type, p_aggregate_id, p_expected_version
                using errcode = 'ES001';
        end if;

        insert into events (event_id, aggregate_type, aggregate_id, version, event_type,
                            schema_version, data, metadata, recorded_at)
        select e.event_id, p_aggregate_type, p_aggregate_id, p_expected_version + e.place,
               e.event_type, e.schema_version, e.data::jsonb, p_metadata, append_events.recorded_at
          from unnest(p_event_ids, p_event_types, p_schema_versions, p_data)
               with ordinality as e (event_id, event_type, schema_version, data, place);
    end $append$;
    comment on function public.append_events is
        'Appends events to one stream that is at the expected version (0: it does not exist), and records the answer under an idempotency key, in one transaction. A known key: nothing is appended, its answer comes back. ES001: conflict; ES002: the key stands for another request.';
    revoke all on function public.append_events from public;
    grant execute on function public.append_events to event_append;

    create or replace function public.append_many(
        p_aggregate_types text[], p_aggregate_ids uuid[], p_expected_versions bigint[],
        p_streams int[], p_event_ids uuid[], p_event_types text[], p_schema_versions int[], p_data text[],
        p_metadata jsonb,
        p_key text default null, p_request_hash text default null, p_answer jsonb default null,
        p_due_in float8[] default null,  -- a process of schema version 5 gives none
        out replayed boolean, out answer text)
    language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $append$
    declare
        counts constant bigint[] := array(
            select count(e) from generate_subscripts(p_aggregate_ids, 1) as place
              left join unnest(p_streams) as e on e = place group by place order by place);
        begun bigint[];
        conflicts jsonb;
    begin
        replayed := false;
        if p_key is not null then
            answer := record_answer(p_key, p_request_hash, p_answer);
            replayed := answer is not null;
            if replayed then
                return;
            end if;
        end if;

        -- All rows of streams are locked before any position is drawn, in one order, so that no two
        -- callers wait for each other in a circle: new streams first, then the others, each by type
        -- and id. (A caller that expects a stream to exist does not see one that is just beginning,
        -- and does not wait for it.)
        with begun as (
            insert into streams as s (aggregate_type, aggregate_id, version, recorded_at)
            select w.type, w.id, w.added, clock_timestamp()
              from unnest(p_aggregate_types, p_aggregate_ids, p_expected_versions, counts)
                   as w (type, id, expected, added)
             where w.expected = 0 order by w.type, w.id
            on conflict do nothing
            returning s.aggregate_type, s.aggregate_id)
        select array_agg(w.place) into begun
          from unnest(p_aggregate_types, p_aggregate_ids) with ordinality as w (type, id, place)
          join begun b on b.aggregate_type = w.type and b.aggregate_id = w.id;
        perform from unnest(p_aggregate_types, p_aggregate_ids, p_expected_versions) as w (type, id, expected)
           join streams s on s.aggregate_type = w.type and s.aggregate_id = w.id
          where w.expected > 0 order by w.type, w.id
            for no key update of s;

        select jsonb_object_agg(w.place - 1, coalesce(s.version, 0)) into conflicts
          from unnest(p_aggregate_types, p_aggregate_ids, p_expected_versions)
               with ordinality as w (type, id, expected, place)
          left join streams s on s.aggregate_type = w.type and s.aggregate_id = w.id
         where case when w.expected = 0 then w.place <> all (coalesce(begun, '{}'))
                    else s.version is distinct from w.expected end;
        if conflicts is not null then
            raise exception 'conflict: streams are not at the expected versions'
                using errcode = 'ES001', detail = conflicts;
        end if;

        update streams s
           set version = w.expected + w.added, recorded_at = greatest(clock_timestamp(), s.recorded_at)
          from unnest(p_aggregate_types, p_aggregate_ids, p_expected_versions, counts)
               as w (type, id, expected, added)
         where w.expected > 0 and w.added > 0 and s.aggregate_type = w.type and s.aggregate_id = w.id;

        if p_due_in is not null then
            delete from deadlines d
             using unnest(p_aggregate_types, p_aggregate_ids, p_due_in) as w (type, id, due_in)
             where w.due_in = '-infinity' and d.aggregate_type = w.type and d.aggregate_id = w.id;
            insert into deadlines as d (aggregate_type, aggregate_id, version, due_at)
            select w.type, w.id, w.expected + w.added,
                   case when w.due_in = 'infinity' then 'infinity'
                        else clock_timestamp() + make_interval(secs => w.due_in) end
              from unnest(p_aggregate_types, p_aggregate_ids, p_expected_versions, counts, p_due_in)
                   as w (type, id, expected, added, due_in)
             where w.due_in <> '-infinity'
            on conflict (aggregate_type, aggregate_id) do update
               set version = excluded.version, due_at = excluded.due_at;
        end if;

        insert into events (event_id, aggregate_type, aggregate_id, version, event_type,
                            schema_version, data, metadata, recorded_at)
        select e.event_id, w.type, w.id,
               w.expected + row_number() over (partition by e.stream order by e.place),
               e.event_type, e.schema_version, e.data::jsonb, p_metadata, s.recorded_at
          from unnest(p_streams, p_event_ids, p_event_types, p_schema_versions, p_data)
               with ordinality as e (stream, event_id, event_type, schema_version, data, place)
          join unnest(p_aggregate_types, p_aggregate_ids, p_expected_versions)
               with ordinality as w (type, id, expected, place) on w.place = e.stream
          join streams s on s.aggregate_type = w.type and s.aggregate_id = w.id
         order by e.place;
    end $append$;
    comment on function public.append_many is
        'Appends events to several streams, all or none, in one transaction. The first three arrays have an entry for each stream, which is given once; the next five have one for each event, and p_streams says to which of the streams (from 1) it belongs. A stream without events must exist: its version is compared, and does not change before the commit. p_due_in has the seconds from now after which each stream is due; infinity: it waits and is never due; -infinity: it has no deadline any more; null: its deadline is left as it is. ES001: conflicts; the detail is a JSON object of their places (from 0) and versions. Else as append_events.';
    revoke all on function public.append_many from public;
    grant execute on function public.append_many to event_append;

    drop function if exists public.begin_streams;

    create or replace function public.take_due(p_aggregate_type text, p_limit int, p_hold float8)
    returns table (aggregate_id uuid, version bigint, late float8)
    language sql volatile security definer set search_path = pg_catalog, public, pg_temp as $due$
        -- A row that another caller holds is skipped. One that it has moved meanwhile is compared again
        -- after it is locked, and is not due any more.
        with due as (
            select d.aggregate_id, d.due_at from public.deadlines d
             where d.aggregate_type = p_aggregate_type and d.due_at <= statement_timestamp()
             order by d.due_at limit p_limit for no key update skip locked),
        taken as (
            update public.deadlines d set due_at = clock_timestamp() + make_interval(secs => p_hold)
              from due where d.aggregate_type = p_aggregate_type and d.aggregate_id = due.aggregate_id
            returning d.aggregate_id, d.version, due.due_at)
        select t.aggregate_id, t.version, extract(epoch from clock_timestamp() - t.due_at)::float8
          from taken t order by t.due_at;
    $due$;
    comment on function public.take_due is
        'Takes up to p_limit streams of a type that are due, longest due first, each with the version at which its deadline was set and the seconds since it passed. Each is due again p_hold seconds later, unless an append sets another deadline or removes it: so a caller that dies gives it back. Two callers never get the same stream within that time.';
    revoke all on function public.take_due from public;
    grant execute on function public.take_due to event_append;

    create or replace function public.write_snapshot(
        p_aggregate_type text, p_aggregate_id uuid, p_version bigint, p_event_id uuid,
        p_digest text, p_checksum text, p_state text)
    returns void language sql volatile security definer set search_path = pg_catalog, public, pg_temp as $snapshot$
        insert into public.snapshots (aggregate_type, aggregate_id, version, event_id, digest, checksum, state)
        values (p_aggregate_type, p_aggregate_id, p_version, p_event_id, p_digest, p_checksum, p_state)
        on conflict (aggregate_type, aggregate_id) do update
           set version = excluded.version, event_id = excluded.event_id, digest = excluded.digest,
               checksum = excluded.checksum, state = excluded.state;
    $snapshot$;
    comment on function public.write_snapshot is
        'Replaces the snapshot of a stream. Readers check it against the event that it names.';
    revoke all on function public.write_snapshot from public;
    grant execute on function public.write_snapshot to event_append;

    create or replace function public.require_sequence()
    returns void language plpgsql volatile set search_path = pg_catalog, public, pg_temp as $sequence$
    declare
        head bigint;
        drawn bigint;
    begin
        select coalesce(max(e.position), 0) into head from events e;
        select case when s.is_called then s.last_value else 0 end into drawn from events_position_seq s;
        if drawn < head then
            raise exception 'the sequence of positions is at %, behind the log, which goes to %: run as the owner: select setval(''public.events_position_seq'', %)',
                    drawn, head, head
                using errcode = 'ES004';
        end if;
    end $sequence$;
    comment on function public.require_sequence is
        'Raises ES004 where the sequence would draw positions that the log has already: an event there would lie below every checkpoint. The message holds the statement that mends it.';

    create or replace function public.log_has(p_positions bigint[], p_event_ids uuid[])
    returns boolean language sql stable as $has$
        select not exists (
            select from unnest(p_positions, p_event_ids) as mark (position, event_id)
             where mark.position > 0 and not exists (
                   select from public.events e
                    where e.position = mark.position and e.event_id = mark.event_id));
    $has$;
    comment on function public.log_has is
        'Whether each of these events is in the log, at its position; position 0 is the beginning of every log.';

    create or replace function public.settle(
        p_positions bigint[] default '{}', p_event_ids uuid[] default '{}',
        out head bigint, out event_id uuid, out holders text[], out same boolean)
    language plpgsql volatile set search_path = pg_catalog, public, pg_temp as $settle$
    #variable_conflict use_column
    begin
        perform require_sequence();
        -- The order of the next two statements makes it sound. The head is a committed event, so
        -- its position was drawn before the first of them. A transaction that will still commit a
        -- lower position drew it earlier, and took the table's lock before that (an INSERT locks
        -- the table, then draws). It holds the lock until its commit is visible. So the second
        -- statement lists it, or the next statement sees its events.
        -- The sequence is not the head: after a failover it may be up to 32 ahead of the log, and
        -- later be lower again, so that positions below it are still to come.
        select e.position, e.event_id into head, event_id
          from events e order by e.position desc limit 1;
        head := coalesce(head, 0);
        select coalesce(array_agg(l.virtualtransaction), '{}') into holders
          from pg_locks l
         where l.locktype = 'relation' and l.mode = 'RowExclusiveLock' and l.granted
           and l.relation = 'public.events'::regclass
           and l.database = (select oid from pg_database where datname = current_database());
        same := log_has(p_positions, p_event_ids);
    end $settle$;
    comment on function public.settle is
        'The last event (position and id; 0 and null: there is none), then the virtual transactions that may still write to events. Everything up to head is settled once none of these is left (at once if there are none). same: whether the log has the events that are given.';

    create or replace function public.page_end(
        p_after bigint, p_until bigint, p_range int, out ends_at bigint, out event_id uuid)
    language sql stable as $end$
        select e.position, e.event_id from (
            (select 1 as choice, position, event_id from public.events
              where position > p_after and position <= least(p_until, p_after + p_range)
              order by position desc limit 1)
            union all
            (select 2, position, event_id from public.events
              where position > p_after and position <= p_until order by position limit 1)
            union all
            (select 3, position, event_id from public.events
              where position <= p_after order by position desc limit 1)) as e
         order by e.choice limit 1;
    $end$;
    comment on function public.page_end is
        'The event at which a page of p_range positions ends: the last one of the page; else, across a larger gap, the next one; else, at the end of the log, the last one up to p_after. Null: the log is empty.';

    create or replace function public.read_feed(p_after bigint, p_until bigint, p_limit int)
    returns setof public.events language sql stable as $feed$
        select * from public.events
         where position > p_after and position <= p_until order by position limit p_limit;
    $feed$;
    comment on function public.read_feed is
        'A page of the feed, in order; p_until must be settled, or events are skipped.';

    create or replace function public.read_stream(p_aggregate_type text, p_aggregate_id uuid, p_after bigint, p_limit int)
    returns setof public.events language sql stable as $stream$
        select * from public.events
         where aggregate_type = p_aggregate_type and aggregate_id = p_aggregate_id and version > p_after
         order by version limit p_limit;
    $stream$;
    comment on function public.read_stream is 'A page of one stream, in order.';

    create or replace function public.read_heads(p_aggregate_type text, p_after bigint, p_until bigint)
    returns table (aggregate_id uuid, version bigint) language sql stable as $heads$
        select aggregate_id, max(version) from public.events
         where position > p_after and position <= p_until and aggregate_type = p_aggregate_type
         group by aggregate_id;
    $heads$;
    comment on function public.read_heads is
        'The streams that changed within a settled range of positions, each with its last version there.';

    create or replace function public.move_checkpoint(
        p_name text, p_position bigint, p_event_id uuid default null)
    returns void language plpgsql volatile set search_path = pg_catalog, public, pg_temp as $move$
    begin
        if p_event_id is null then  -- a relay of schema version 3 names no event
            select e.position, e.event_id into p_position, p_event_id
              from events e where e.position <= p_position order by e.position desc limit 1;
        end if;
        if coalesce(p_position, 0) = 0 then
            return;
        end if;
        if not log_has(array[p_position], array[p_event_id])
           or exists (select from checkpoints c where c.name = p_name
                         and not log_has(array[c.position], array[c.event_id])) then
            raise exception 'the log does not have the event of the checkpoint %', p_name
                using errcode = 'ES005';
        end if;
        insert into checkpoints as c (name, position, event_id) values (p_name, p_position, p_event_id)
        on conflict (name) do update
           set position = excluded.position, event_id = excluded.event_id, updated_at = clock_timestamp()
         where c.position < excluded.position;
    end $move$;
    comment on function public.move_checkpoint is
        'Moves a checkpoint forwards, onto an event; a lower position changes nothing. ES005: the log does not have that event, or not the one that the checkpoint stands on.';

    create or replace function public.begin_epoch(p_reason text)
    returns uuid language plpgsql volatile set search_path = pg_catalog, public, pg_temp as $epoch$
    declare
        begun uuid;
        head bigint;
    begin
        insert into store_epochs (reason) values (p_reason) returning epoch into begun;
        update checkpoints c set position = 0, event_id = null, updated_at = clock_timestamp()
         where not log_has(array[c.position], array[c.event_id]);
        delete from deadlines d where not exists (
            select from events e where e.aggregate_type = d.aggregate_type
               and e.aggregate_id = d.aggregate_id and e.version = d.version);
        delete from snapshots s where not exists (
            select from events e where e.aggregate_type = s.aggregate_type
               and e.aggregate_id = s.aggregate_id and e.version = s.version and e.event_id = s.event_id);
        select max(e.position) into head from events e;
        perform setval('public.events_position_seq', head)
          from events_position_seq s where s.last_value < head or (s.last_value = head and not s.is_called);
        return begun;
    end $epoch$;
    comment on function public.begin_epoch is
        'Declares that the log was restored to an earlier state, by a restore or a failover that lost commits: every projection halts until it is rebuilt. A relay whose checkpoint stands on an event that is gone publishes the whole log again; a sequence that is behind the log is set to its end; deadlines and snapshots that stand on an event that is gone are deleted. For the owner alone.';
    revoke all on function public.begin_epoch from public;

    create or replace function public.expire_idempotency_keys(p_limit int)
    returns bigint language sql volatile as $expire$
        with gone as (
            delete from public.idempotency_keys where key in (
                select key from public.idempotency_keys
                 where recorded_at < clock_timestamp() - interval '24 hours'
                 order by recorded_at limit p_limit)
            returning 1)
        select count(*) from gone;
    $expire$;
    comment on function public.expire_idempotency_keys is 'Deletes up to p_limit keys older than 24 hours and counts them.';
    revoke all on function public.expire_idempotency_keys, public.move_checkpoint from public;
    grant execute on function public.expire_idempotency_keys, public.move_checkpoint to event_relay;

    perform public.require_sequence();
end
$init$;
commit;
