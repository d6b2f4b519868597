-- 0005: what the admin is told: alerts on their way to each channel, and what was told before.

-- One row per alert and channel. Waiting ones are sent again and again until they arrive; sent ones stay for a time to be looked at.
CREATE TABLE alert (
    uid         TEXT    NOT NULL PRIMARY KEY,  -- stands in Message-ID and webhook-id; the same at each attempt
    channel     TEXT    NOT NULL,  -- name of the [[alert]] section
    kind        TEXT    NOT NULL,  -- as in event
    subject     TEXT    NOT NULL,  -- as in event; '' for several events in one alert
    resolved    INTEGER NOT NULL,  -- as in event
    facts       TEXT    NOT NULL,  -- JSON: the event's; for several {"events": [...], "left_out": n}
    count       INTEGER NOT NULL,  -- how many events it tells of
    at          INTEGER NOT NULL,  -- when it was made
    wall_at     INTEGER NOT NULL,  -- wall clock of its first event, ms since 1970
    tries       INTEGER NOT NULL,  -- attempts that failed
    next_try    INTEGER NOT NULL,  -- not before then
    error       TEXT    NOT NULL,  -- of the last attempt; '' when none failed
    state       TEXT    NOT NULL,  -- waits, sent, given-up
    done_at     INTEGER NOT NULL   -- when it was sent or given up; 0: it waits
) STRICT, WITHOUT ROWID;

CREATE INDEX alert_waiting ON alert (state, at);

-- What each channel was told last of each thing, so that it is not told again too soon.
CREATE TABLE alert_told (
    channel     TEXT    NOT NULL,
    kind        TEXT    NOT NULL,
    thing       TEXT    NOT NULL,  -- subject and, where one subject has several, the check or detector
    at          INTEGER NOT NULL,  -- when it was told last
    open        INTEGER NOT NULL,  -- 1: told that it began, not yet that it is over
    times       INTEGER NOT NULL,  -- how often it was told without a pause of repeat_after
    held        INTEGER NOT NULL,  -- how often it happened since then without being told
    PRIMARY KEY (channel, kind, thing)
) STRICT, WITHOUT ROWID;

-- Channels that want nothing any more (HTTP 410 Gone), until 'policyctl alert retry'.
CREATE TABLE alert_stopped (
    channel     TEXT    NOT NULL PRIMARY KEY,
    at          INTEGER NOT NULL,  -- when it said so
    error       TEXT    NOT NULL
) STRICT, WITHOUT ROWID;

-- One row: the last event that alerts were made of.
CREATE TABLE alert_cursor (
    id          INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    event       INTEGER NOT NULL  -- its id; 0: none yet
) STRICT;

INSERT INTO alert_cursor VALUES (1, 0);
