-- The event store's schema: psql -d user_event_db -f init.sql   (the same for order_event_db)
--
-- Apply it as the database's owner, and again at any time: a run changes only what the
-- recorded schema version lacks, and does nothing where the database is newer than this file.
-- Functions are the API: callers append and read through them, and match on SQLSTATE:
--     ES001  conflict: the stream is not at the expected version
--     ES002  the idempotency key stands for another request
--     ES003  events are immutable
-- Three roles that cannot log in hold every right; logins are members of one of them:
--     event_append  services: append and read      event_relay  relays: read, move a checkpoint,
--     event_read    tools: read                                 delete expired idempotency keys

begin;
set local lock_timeout = '2s';
set local client_min_messages = warning;

do $init$
declare
    this_version constant int := 3;
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
    comment on column public.checkpoints.name is 'Whose checkpoint.';
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
    comment on table public.store_epochs is 'One row for each life of this log: it begins anew when the log is restored, so that who has read further than it now goes can know. The greatest number is the current one.';
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

    -- ── functions: replaced by every run, which locks no table ───────────────────────────

    create or replace function public.append_events(
        p_aggregate_type text, p_aggregate_id uuid, p_expected_version bigint,
        p_event_ids uuid[], p_event_types text[], p_schema_versions int[], p_data text[],
        p_metadata jsonb,
        p_key text default null, p_request_hash text default null, p_answer jsonb default null,
        out replayed boolean, out answer text, out version bigint, out recorded_at timestamptz)
    language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $append$
    #variable_conflict use_column
    declare
        known public.idempotency_keys;
        added constant int := cardinality(p_event_ids);
    begin
        replayed := false;
        version := p_expected_version;

        -- A key that another transaction is just writing makes this INSERT wait for it.
        if p_key is not null then
            delete from idempotency_keys
             where key = p_key and recorded_at < clock_timestamp() - interval '24 hours';
            insert into idempotency_keys (key, request_hash, answer)
            values (p_key, p_request_hash, p_answer) on conflict do nothing;
            if not found then
                select * into known from idempotency_keys where key = p_key;
                if known.request_hash is distinct from p_request_hash then
                    raise exception 'this idempotency key stands for another request'
                        using errcode = 'ES002';
                end if;
                replayed := true;
                answer := known.answer::text;
                return;
            end if;
        end if;
        if added = 0 then
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

    drop function if exists public.begin_streams;

    create or replace function public.settle(out head bigint, out holders text[])
    language plpgsql volatile set search_path = pg_catalog, public, pg_temp as $settle$
    begin
        -- The order of these two statements is what makes it sound: an INSERT takes the
        -- table's lock before it draws a position, and a commit is visible before its locks go.
        select case when s.is_called then s.last_value else 0 end into head from events_position_seq s;
        select coalesce(array_agg(l.virtualtransaction), '{}') into holders
          from pg_locks l
         where l.locktype = 'relation' and l.mode = 'RowExclusiveLock' and l.granted
           and l.relation = 'public.events'::regclass
           and l.database = (select oid from pg_database where datname = current_database());
    end $settle$;
    comment on function public.settle is
        'The last position drawn, then the virtual transactions that may still write to events. Everything up to head is settled once none of these is left (at once if there are none).';

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

    create or replace function public.move_checkpoint(p_name text, p_position bigint)
    returns void language sql volatile as $move$
        insert into public.checkpoints as c (name, position) values (p_name, p_position)
        on conflict (name) do update set position = excluded.position, updated_at = clock_timestamp()
         where c.position < excluded.position;
    $move$;
    comment on function public.move_checkpoint is 'Moves a checkpoint forwards; a lower position changes nothing.';

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
end
$init$;
commit;
