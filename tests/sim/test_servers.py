"""The simulated servers keep the promises of the real ones that the flow uses: the same tests.

Fixtures of these names stand for the real server's; nothing is running, so nothing interrupts.
"""

from datetime import datetime

import pytest

from eventcore.model.event import Event
from eventcore.store.port import Store
from tests.contract.test_readmodel import (  # noqa: F401
    test_a_checkpoint_begins_at_0_and_only_grows,
    test_a_checkpoint_keeps_the_epoch_of_its_log_and_the_reason_of_a_halt,
    test_a_dropped_generation_leaves_nothing_and_the_others_stay,
    test_a_generation_has_its_own_number_and_serves_after_the_switch,
    test_a_lease_has_one_holder_until_it_runs_out_or_is_released,
    test_a_page_is_newest_first_below_a_document_and_filtered,
    test_a_parked_stream_is_released_once_its_document_has_all_events,
    test_a_parked_stream_keeps_the_highest_version_and_the_first_moment,
    test_a_scan_reads_each_document_once_and_a_page_omits_removed_ones,
    test_a_skip_is_kept_with_who_said_so_first,
    test_a_write_takes_effect_only_on_the_version_it_replaces,
    test_documents_come_back_exactly,
    test_one_that_was_too_late_does_not_hold_the_others_up,
    test_what_cannot_be_stored_is_said,
    test_what_the_last_verification_found_is_kept,
    test_who_lost_the_lease_cannot_move_the_checkpoint,
)
from tests.contract.test_store import (  # noqa: F401
    kind,
    stream,
    test_a_deadline_is_replaced_removed_or_left_with_the_events_of_a_stream,
    test_a_deadline_is_taken_once_within_its_hold_and_longest_due_first,
    test_a_key_is_recorded_for_a_command_without_events_too,
    test_a_key_of_a_command_that_lost_a_race_is_not_recorded,
    test_a_key_stands_for_one_request,
    test_a_known_key_appends_nothing_and_brings_its_answer,
    test_a_refused_transaction_leaves_deadlines_alone,
    test_a_snapshot_of_a_stream_is_replaced_and_read,
    test_a_stream_is_read_in_pages,
    test_a_stream_without_events_is_compared_and_left_alone,
    test_all_conflicts_of_several_streams_are_named_and_nothing_is_written,
    test_an_append_to_another_version_is_a_conflict_and_writes_nothing,
    test_events_come_back_as_they_were_appended,
    test_heads_name_each_stream_that_changed_with_its_last_version_there,
    test_how_long_the_oldest_deadline_is_overdue_is_known_by_type,
    test_one_key_stands_for_all_streams_of_a_transaction,
    test_progress_says_how_far_the_log_goes_and_how_far_of_it_is_relayed,
    test_several_events_get_consecutive_versions_and_positions,
    test_several_streams_are_appended_to_in_one_transaction,
    test_streams_of_two_types_with_one_id_are_two_streams,
    test_the_feed_has_every_stream_in_the_order_of_positions,
)
from tests.sim.judge import Judge
from tests.sim.mongo import FakeMongo, SimMongo
from tests.sim.people import DECIDER, FIXED
from tests.sim.postgres import FakePostgres, SimStore
from tests.sim.world import World


class Ticking(World):
    """A world whose time goes on, though nothing happens in it."""

    def utc(self) -> datetime:
        """A little later each time."""
        self.now += 0.02
        return super().utc()


class Unconcerned(Judge):
    """Does not mind events that no projection knows."""

    def appended(self, event: Event) -> None: ...


@pytest.fixture
def world() -> World:
    return Ticking(0)


@pytest.fixture
def store(world: World) -> Store:
    return SimStore(FakePostgres(world, Unconcerned(world, FIXED, DECIDER)), world)


@pytest.fixture
def readmodel(world: World) -> SimMongo:
    return SimMongo(FakeMongo(world, Unconcerned(world, FIXED, DECIDER), "users"))
