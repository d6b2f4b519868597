-- 0003: how the daemon's parts do, so that policyctl can show it.

-- Written anew by the daemon every few seconds; nothing else depends on it.
CREATE TABLE health (
    subject     TEXT    PRIMARY KEY,  -- resolver, nameserver/ADDRESS:PORT, dnsbl/LIST
    state       TEXT    NOT NULL,     -- up, down; well, sick
    since       INTEGER NOT NULL,     -- since when it is so, wall clock, ms since 1970
    figures     TEXT    NOT NULL,     -- JSON: counts, latencies, reasons
    at          INTEGER NOT NULL      -- when this was written, wall clock, ms since 1970
) STRICT, WITHOUT ROWID;
