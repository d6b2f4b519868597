-- 0001: the ledger, the steering tables and the first partition catalogue.
--
-- Times are ledger time in integer milliseconds unless a column says wall; ledger time never goes back and does not
-- follow steps of the wall clock (policyd/store/clock.py). expires_at = 0 means "until taken back".

-- One row: where ledger time and the reference sequence stood at the last commit of the daemon.
CREATE TABLE ledger_state (
    id          INTEGER PRIMARY KEY CHECK (id = 1),
    boot_id     TEXT    NOT NULL,  -- the kernel's boot id when the row was written
    boottime    INTEGER NOT NULL,  -- CLOCK_BOOTTIME then, ms
    ledger      INTEGER NOT NULL,  -- ledger time then, ms
    wall        INTEGER NOT NULL,  -- wall clock then, ms since 1970
    ref_seq     INTEGER NOT NULL,  -- how many references (ref 7F3K2) have been given out
    decision_id INTEGER NOT NULL   -- the id of the newest decision
) STRICT;

-- What mail that policyd let pass amounts to. One row per thing counted, however many limits look at it.
CREATE TABLE counter (
    scope       TEXT    NOT NULL,  -- user, user-domain, sender, sender-domain, client, client:mx, client:submission, server
    value       TEXT    NOT NULL,  -- whose: the account, address, domain, network
    unit        TEXT    NOT NULL,  -- messages, recipients, bytes; with /external without mail among the own domains
    cells       BLOB    NOT NULL,  -- amounts per slot of each width in use (policyd/window.py)
    expires_at  INTEGER NOT NULL,  -- from then on nothing in cells can be asked for
    PRIMARY KEY (scope, value, unit)
) STRICT, WITHOUT ROWID;

-- Who may not send, or not deliver to us.
CREATE TABLE ban (
    kind        TEXT    NOT NULL CHECK (kind IN ('user', 'sender', 'domain', 'client')),
    value       TEXT    NOT NULL,  -- folded login, address, domain, client network or host name
    reason      TEXT    NOT NULL,
    author      TEXT    NOT NULL,  -- who set it: SUDO_USER or the login name
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL,
    PRIMARY KEY (kind, value)
) STRICT;

-- Who passes without further checks.
CREATE TABLE allow (
    kind        TEXT    NOT NULL CHECK (kind IN ('client', 'sender', 'domain', 'recipient')),
    value       TEXT    NOT NULL,
    reason      TEXT    NOT NULL,
    author      TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL,
    PRIMARY KEY (kind, value)
) STRICT;

-- An account's own limits, over those of its tier.
CREATE TABLE user_limit (
    user        TEXT    NOT NULL,  -- canonical login
    unit        TEXT    NOT NULL CHECK (unit IN ('messages', 'recipients', 'bytes')),
    window      INTEGER NOT NULL,  -- ms
    amount      INTEGER NOT NULL,  -- -1: the tier's limit of this unit and window does not hold
    reason      TEXT    NOT NULL,
    author      TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL,
    PRIMARY KEY (user, unit, window)
) STRICT;

-- One-off widenings of every window of one unit.
CREATE TABLE user_grant (
    id          INTEGER PRIMARY KEY,
    user        TEXT    NOT NULL,
    unit        TEXT    NOT NULL CHECK (unit IN ('messages', 'recipients', 'bytes')),
    amount      INTEGER NOT NULL CHECK (amount > 0),
    reason      TEXT    NOT NULL,
    author      TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL
) STRICT;

-- Modes of checks set by hand over the configured ones; name '*' is "policyctl pause".
CREATE TABLE check_mode (
    name        TEXT    NOT NULL PRIMARY KEY,
    mode        TEXT    NOT NULL CHECK (mode IN ('enforce', 'shadow', 'off')),
    reason      TEXT    NOT NULL,
    author      TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL
) STRICT;

-- Who changed what by hand, and why.
CREATE TABLE history (
    id          INTEGER PRIMARY KEY,
    at          INTEGER NOT NULL,
    wall_at     INTEGER NOT NULL,  -- wall clock, ms since 1970
    author      TEXT    NOT NULL,
    action      TEXT    NOT NULL,  -- the command: "ban", "quota set", ...
    subject     TEXT    NOT NULL,  -- whom or what it was about
    detail      TEXT    NOT NULL,  -- what changed, for people
    reason      TEXT    NOT NULL
) STRICT;

-- What changed in the steering tables, for whoever mirrors them in memory. key is a JSON array of the key columns.
CREATE TABLE change (
    generation  INTEGER PRIMARY KEY AUTOINCREMENT,
    tbl         TEXT    NOT NULL,
    key         TEXT    NOT NULL
) STRICT;

CREATE TRIGGER ban_insert AFTER INSERT ON ban BEGIN
    INSERT INTO change (tbl, key) VALUES ('ban', json_array(new.kind, new.value)); END;
CREATE TRIGGER ban_update AFTER UPDATE ON ban BEGIN
    INSERT INTO change (tbl, key) VALUES ('ban', json_array(old.kind, old.value)), ('ban', json_array(new.kind, new.value)); END;
CREATE TRIGGER ban_delete AFTER DELETE ON ban BEGIN
    INSERT INTO change (tbl, key) VALUES ('ban', json_array(old.kind, old.value)); END;

CREATE TRIGGER allow_insert AFTER INSERT ON allow BEGIN
    INSERT INTO change (tbl, key) VALUES ('allow', json_array(new.kind, new.value)); END;
CREATE TRIGGER allow_update AFTER UPDATE ON allow BEGIN
    INSERT INTO change (tbl, key) VALUES ('allow', json_array(old.kind, old.value)), ('allow', json_array(new.kind, new.value)); END;
CREATE TRIGGER allow_delete AFTER DELETE ON allow BEGIN
    INSERT INTO change (tbl, key) VALUES ('allow', json_array(old.kind, old.value)); END;

CREATE TRIGGER user_limit_insert AFTER INSERT ON user_limit BEGIN
    INSERT INTO change (tbl, key) VALUES ('user_limit', json_array(new.user, new.unit, new.window)); END;
CREATE TRIGGER user_limit_update AFTER UPDATE ON user_limit BEGIN
    INSERT INTO change (tbl, key) VALUES ('user_limit', json_array(old.user, old.unit, old.window)),
                                         ('user_limit', json_array(new.user, new.unit, new.window)); END;
CREATE TRIGGER user_limit_delete AFTER DELETE ON user_limit BEGIN
    INSERT INTO change (tbl, key) VALUES ('user_limit', json_array(old.user, old.unit, old.window)); END;

CREATE TRIGGER user_grant_insert AFTER INSERT ON user_grant BEGIN
    INSERT INTO change (tbl, key) VALUES ('user_grant', json_array(new.id)); END;
CREATE TRIGGER user_grant_update AFTER UPDATE ON user_grant BEGIN
    INSERT INTO change (tbl, key) VALUES ('user_grant', json_array(old.id)), ('user_grant', json_array(new.id)); END;
CREATE TRIGGER user_grant_delete AFTER DELETE ON user_grant BEGIN
    INSERT INTO change (tbl, key) VALUES ('user_grant', json_array(old.id)); END;

CREATE TRIGGER check_mode_insert AFTER INSERT ON check_mode BEGIN
    INSERT INTO change (tbl, key) VALUES ('check_mode', json_array(new.name)); END;
CREATE TRIGGER check_mode_update AFTER UPDATE ON check_mode BEGIN
    INSERT INTO change (tbl, key) VALUES ('check_mode', json_array(old.name)), ('check_mode', json_array(new.name)); END;
CREATE TRIGGER check_mode_delete AFTER DELETE ON check_mode BEGIN
    INSERT INTO change (tbl, key) VALUES ('check_mode', json_array(old.name)); END;

-- The tables that hold the decisions, each for a span of time; the newest one is open. The view "decision" shows all.
CREATE TABLE decision_partition (
    number      INTEGER PRIMARY KEY,   -- the table is decision_<number>
    opened_at   INTEGER NOT NULL,      -- ledger time of its first row
    closed_at   INTEGER NOT NULL,      -- ledger time of its last row; 0: it is the open one
    first_id    INTEGER NOT NULL,      -- id of its first decision
    rows        INTEGER NOT NULL,      -- how many rows it holds, as of its closing
    indexed     INTEGER NOT NULL       -- 1: it has all its indexes
) STRICT;
