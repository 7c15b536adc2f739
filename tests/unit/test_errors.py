"""The public codes of errors, which callers match."""

from eventcore import errors


def test_each_error_has_the_code_that_callers_know() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {each.__name__: each.code for each in kinds if issubclass(each, errors.Error)}
    assert codes == {
        "Error": "error",
        "Refused": "refused",
        "NotFound": "not-found",
        "Invalid": "invalid",
        "Conflict": "conflict",
        "StaleVersion": "stale-version",
        "InvalidToken": "invalid-token",
        "OtherLog": "other-log",
        "KeyReused": "key-reused",
        "Unavailable": "away",
        "StoreUnavailable": "store-away",
        "StoreSlow": "store-away",
        "OutcomeUnknown": "outcome-unknown",
        "SequenceBehind": "store-away",
        "ReadModelUnavailable": "read-model-away",
        "BrokerUnavailable": "broker-away",
        "FeedUnavailable": "feed-away",
        "StoreRestored": "store-restored",
        "NotYet": "not-yet",
        "Overloaded": "busy",
        "NotAnEvent": "not-an-event",
        "CannotApply": "cannot-apply",
        "Misconfigured": "misconfigured",
    }
