-- The table of one partition of decisions; {n} is its number. Made by policyd/store/partitions.py.
CREATE TABLE decision_{n} (
    id               INTEGER PRIMARY KEY,  -- rises over all partitions
    at               INTEGER NOT NULL,     -- ledger time of the decision, ms
    wall_at          INTEGER NOT NULL,     -- wall clock, ms since 1970, for display
    stage            TEXT    NOT NULL,     -- protocol_state
    direction        TEXT    NOT NULL,     -- submission or mx
    listener         TEXT    NOT NULL,     -- the label of the listener
    context          TEXT    NOT NULL,     -- policy_context
    instance         TEXT    NOT NULL,     -- Postfix's id of the mail transaction
    queue_id         TEXT    NOT NULL,     -- empty before the first accepted recipient
    user             TEXT    NOT NULL,     -- the account, when it is submission
    client           TEXT    NOT NULL,     -- client_address
    client_name      TEXT    NOT NULL,
    helo             TEXT    NOT NULL,
    sender           TEXT    NOT NULL,
    recipient        TEXT    NOT NULL,     -- empty at END-OF-MESSAGE with several recipients
    recipient_count  INTEGER NOT NULL,
    size             INTEGER NOT NULL,     -- octets
    action           TEXT    NOT NULL,     -- what Postfix was told: "DUNNO", "450 4.7.1 ..."
    verdict          TEXT    NOT NULL,     -- pass, hold, refuse
    by               TEXT    NOT NULL,     -- the check that decided
    reason           TEXT    NOT NULL,     -- why, in short fixed words
    ref              TEXT,                 -- the reference in the refusal
    would            TEXT    NOT NULL,     -- what checks in shadow would have answered
    detail           TEXT    NOT NULL,     -- JSON: each check's opinion and time, each limit's numbers
    charges          TEXT    NOT NULL,     -- JSON: what was counted, [[scope, value, unit, amount], ...]
    policy           TEXT    NOT NULL,     -- the version of the policy
    micros           INTEGER NOT NULL,     -- microseconds from the request's last octet to this row
    mark             TEXT    NOT NULL      -- "", or words: repeat, late, memory, deadline
) STRICT;
-- Identity of a request, and what Postfix repeats of it: the listener is compared in the row.
CREATE INDEX decision_{n}_instance ON decision_{n} (instance, stage, recipient) WHERE instance <> '';
CREATE INDEX decision_{n}_ref ON decision_{n} (ref) WHERE ref IS NOT NULL;
