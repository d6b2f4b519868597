-- 0004: what is known of each account: tier, detectors' marks, whom it wrote to; suspensions; what the admin is told of.

-- One row per SASL login that has sent, or that the admin has named. The daemon writes all columns but note. What policyctl
-- changes here it tells with a row of the change table, ('account', [user]).
CREATE TABLE account (
    user            TEXT    NOT NULL PRIMARY KEY,  -- canonical login
    tier            TEXT    NOT NULL,  -- the tier it was put into; '': the configuration says it
    tier_by         TEXT    NOT NULL,  -- who put it there: hand, learned, promoted; '' with no tier
    tier_since      INTEGER NOT NULL,  -- since when it is in its present tier
    probation_until INTEGER NOT NULL,  -- after a suspension it is in the default tier until then; 0: it is not
    first_at        INTEGER NOT NULL,  -- its first mail that passed; 0: none yet
    last_at         INTEGER NOT NULL,  -- its last one
    messages        INTEGER NOT NULL,  -- those that passed since tier_since
    incident_at     INTEGER NOT NULL,  -- when a detector last found something, in force; 0: never
    strikes         TEXT    NOT NULL,  -- JSON: when it was suspended, ledger times, those not forgiven
    note            TEXT    NOT NULL,  -- the admin's
    marks           TEXT    NOT NULL,  -- JSON: what each detector has seen (policyd/accounts.py)
    past            TEXT    NOT NULL   -- JSON: its busiest windows of past days (policyd/accounts.py)
) STRICT, WITHOUT ROWID;

-- Whom an account has written to, from mail that passed.
CREATE TABLE correspondent (
    user        TEXT    NOT NULL,
    recipient   INTEGER NOT NULL,  -- a digest of the folded address (policyd/accounts.py)
    last_day    INTEGER NOT NULL,  -- the day of the last mail, days of ledger time
    PRIMARY KEY (user, recipient)
) STRICT, WITHOUT ROWID;

-- Logins that may not send for now, each the present step of its ladder. What was before stands in the history.
CREATE TABLE suspension (
    user        TEXT    NOT NULL PRIMARY KEY,  -- canonical login
    detector    TEXT    NOT NULL,  -- the [[detect]] that found it; '' by hand
    reason      TEXT    NOT NULL,  -- what was found, with its numbers
    evidence    TEXT    NOT NULL,  -- JSON: {"values": [...], "decisions": [ids]}
    step        INTEGER NOT NULL,  -- of [suspend] ladder, from 1
    ref         TEXT    NOT NULL,  -- the reference of the refusal that began it
    author      TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL   -- 0: until it is released
) STRICT, WITHOUT ROWID;

-- When something happened once that matters from then on: memory (recipients are remembered since), learned.
CREATE TABLE milestone (
    name        TEXT    NOT NULL PRIMARY KEY,
    reason      TEXT    NOT NULL,
    author      TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What happened that the admin may want to be told of; written in the same transaction as what it tells of. Whoever tells
-- (policyd/alerts) remembers the last id that it has taken.
CREATE TABLE event (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    at          INTEGER NOT NULL,
    wall_at     INTEGER NOT NULL,  -- wall clock, ms since 1970
    kind        TEXT    NOT NULL,  -- suspend, detect, quota-80%, quota-100%, dnsbl-sick, store-sick, clock, not-asked, ...
    subject     TEXT    NOT NULL,  -- whom or what it is about: the account, the list, the check
    resolved    INTEGER NOT NULL,  -- 0: it began, 1: it is over
    facts       TEXT    NOT NULL   -- JSON: what is known of it; keys are the kind's
) STRICT;

CREATE TRIGGER suspension_insert AFTER INSERT ON suspension BEGIN
    INSERT INTO change (tbl, key) VALUES ('suspension', json_array(new.user)); END;
CREATE TRIGGER suspension_update AFTER UPDATE ON suspension BEGIN
    INSERT INTO change (tbl, key) VALUES ('suspension', json_array(old.user)), ('suspension', json_array(new.user)); END;
CREATE TRIGGER suspension_delete AFTER DELETE ON suspension BEGIN
    INSERT INTO change (tbl, key) VALUES ('suspension', json_array(old.user)); END;

CREATE TRIGGER milestone_insert AFTER INSERT ON milestone BEGIN
    INSERT INTO change (tbl, key) VALUES ('milestone', json_array(new.name)); END;
CREATE TRIGGER milestone_update AFTER UPDATE ON milestone BEGIN
    INSERT INTO change (tbl, key) VALUES ('milestone', json_array(old.name)), ('milestone', json_array(new.name)); END;
CREATE TRIGGER milestone_delete AFTER DELETE ON milestone BEGIN
    INSERT INTO change (tbl, key) VALUES ('milestone', json_array(old.name)); END;
