-- What a partition gets when it is closed; {n} is its number.
CREATE INDEX IF NOT EXISTS decision_{n}_user ON decision_{n} (user) WHERE user <> '';
CREATE INDEX IF NOT EXISTS decision_{n}_sender ON decision_{n} (sender COLLATE NOCASE);
CREATE INDEX IF NOT EXISTS decision_{n}_client ON decision_{n} (client);
CREATE INDEX IF NOT EXISTS decision_{n}_queue_id ON decision_{n} (queue_id) WHERE queue_id <> '';
