-- 0002: remembered facts (greylisting), who may send as whom, who is not greylisted.

-- Facts that checks remember until they expire. Each kind is bounded on its own: what expires first goes first. There is no
-- index by time: policyd/store/memory.py goes round the table.
CREATE TABLE memory (
    kind        TEXT    NOT NULL,  -- greylist, greylist-passed, greylist-client (policyd/greylisting.py)
    key         TEXT    NOT NULL,  -- what it is about, as the check writes it
    first_at    INTEGER NOT NULL,  -- when it was first seen
    last_at     INTEGER NOT NULL,  -- when it last held
    hits        INTEGER NOT NULL,  -- how often it held; what it counts is the kind's to say
    expires_at  INTEGER NOT NULL,  -- from then on it is forgotten
    PRIMARY KEY (kind, key)
) STRICT, WITHOUT ROWID;

-- As whom an account may send, beyond its own address.
CREATE TABLE sender_right (
    user        TEXT    NOT NULL,  -- canonical login
    sender      TEXT    NOT NULL,  -- folded address, @domain for all of exactly this domain, '' the null sender
    reason      TEXT    NOT NULL,
    author      TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL,
    PRIMARY KEY (user, sender)
) STRICT;

-- Who is not greylisted; other checks are not concerned.
CREATE TABLE greylist_allow (
    kind        TEXT    NOT NULL CHECK (kind IN ('client', 'sender', 'domain', 'recipient')),
    value       TEXT    NOT NULL,
    reason      TEXT    NOT NULL,
    author      TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL,
    PRIMARY KEY (kind, value)
) STRICT;

CREATE TRIGGER sender_right_insert AFTER INSERT ON sender_right BEGIN
    INSERT INTO change (tbl, key) VALUES ('sender_right', json_array(new.user, new.sender)); END;
CREATE TRIGGER sender_right_update AFTER UPDATE ON sender_right BEGIN
    INSERT INTO change (tbl, key) VALUES ('sender_right', json_array(old.user, old.sender)),
                                         ('sender_right', json_array(new.user, new.sender)); END;
CREATE TRIGGER sender_right_delete AFTER DELETE ON sender_right BEGIN
    INSERT INTO change (tbl, key) VALUES ('sender_right', json_array(old.user, old.sender)); END;

CREATE TRIGGER greylist_allow_insert AFTER INSERT ON greylist_allow BEGIN
    INSERT INTO change (tbl, key) VALUES ('greylist_allow', json_array(new.kind, new.value)); END;
CREATE TRIGGER greylist_allow_update AFTER UPDATE ON greylist_allow BEGIN
    INSERT INTO change (tbl, key) VALUES ('greylist_allow', json_array(old.kind, old.value)),
                                         ('greylist_allow', json_array(new.kind, new.value)); END;
CREATE TRIGGER greylist_allow_delete AFTER DELETE ON greylist_allow BEGIN
    INSERT INTO change (tbl, key) VALUES ('greylist_allow', json_array(old.kind, old.value)); END;
