-- From version 1 to 2: what AMQP says of queues, who consumes from them, and Celery's results. Ends
-- in the same tables and indexes as schema.sql makes, in another order of columns.

ALTER TABLE queue ADD COLUMN message_ttl_ms INTEGER CHECK (message_ttl_ms >= 0);
ALTER TABLE queue ADD COLUMN expires_ms INTEGER CHECK (expires_ms > 0);
ALTER TABLE queue ADD COLUMN max_length INTEGER CHECK (max_length >= 0);
ALTER TABLE queue ADD COLUMN max_priority INTEGER CHECK (max_priority >= 0);
ALTER TABLE queue ADD COLUMN dead_letter_exchange TEXT;
ALTER TABLE queue ADD COLUMN dead_letter_routing_key TEXT;
ALTER TABLE queue ADD COLUMN owner_id INTEGER;
ALTER TABLE queue ADD COLUMN had_consumer INTEGER NOT NULL DEFAULT 0;
ALTER TABLE queue ADD COLUMN unused_since_ms INTEGER;
ALTER TABLE queue ADD COLUMN gone_at_ms INTEGER;
ALTER TABLE worker ADD COLUMN max_deliveries INTEGER NOT NULL DEFAULT 20;
ALTER TABLE worker DROP COLUMN queues; -- the table consumer says so

CREATE TABLE consumer (
  worker_id INTEGER NOT NULL,
  tag       TEXT NOT NULL,
  queue     TEXT NOT NULL,
  PRIMARY KEY (worker_id, tag)
) STRICT, WITHOUT ROWID;

-- Results as Celery stores them: its own keys, its own encoding. A new row with a new id for every
-- change, so that who waits for many results reads only what is new. The value stands last: what is
-- read without it then never walks along a large one.
CREATE TABLE result (
  id            INTEGER PRIMARY KEY AUTOINCREMENT,
  key           TEXT NOT NULL UNIQUE,
  status        TEXT NOT NULL,              -- Celery's state; a SUCCESS is never replaced by another
  expires_at_ms INTEGER,                    -- NULL: never
  value         BLOB NOT NULL
) STRICT;

-- One run of a chord: its body is published in the transaction that counts its last member, and
-- then the run is over. What comes for the key later belongs to another run. Members are counted
-- here, because counting them each time would take the square of their number.
CREATE TABLE chord (
  id            INTEGER PRIMARY KEY AUTOINCREMENT,
  key           TEXT UNIQUE,                  -- NULL: it is over, and its rows wait to be deleted
  begun         INTEGER NOT NULL,             -- 0: nobody has announced it; 1: before its header was sent
  size          INTEGER,                      -- NULL until the last of the header is about to be sent
  added         INTEGER NOT NULL DEFAULT 0,   -- members added while it runs
  counted       INTEGER NOT NULL DEFAULT 0,   -- members that have ended
  expires_at_ms INTEGER,                      -- NULL: never
  body          BLOB                          -- only if a member ended before the size was known
) STRICT;

-- One row for each member that has ended, however often it was delivered.
CREATE TABLE chord_member (
  id       INTEGER PRIMARY KEY,             -- in the order of ending
  chord_id INTEGER NOT NULL REFERENCES chord (id) ON DELETE CASCADE,
  slot     TEXT NOT NULL,
  position REAL,                            -- in the header; NULL: behind those that have one
  value    BLOB NOT NULL,
  UNIQUE (chord_id, slot)
) STRICT;

-- A member that another one added: the slot it fills. When the adding one is delivered again and adds
-- again, both additions fill the same slot.
CREATE TABLE chord_addition (
  chord_id INTEGER NOT NULL REFERENCES chord (id) ON DELETE CASCADE,
  task_id  TEXT NOT NULL,
  slot     TEXT NOT NULL,
  PRIMARY KEY (chord_id, task_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX chord_addition_slot ON chord_addition (chord_id, slot);

CREATE INDEX queue_mortal ON queue (unused_since_ms)
  WHERE gone_at_ms IS NULL AND (auto_delete = 1 OR exclusive = 1 OR expires_ms IS NOT NULL);

CREATE INDEX queue_gone ON queue (gone_at_ms) WHERE gone_at_ms IS NOT NULL;

CREATE INDEX consumer_queue ON consumer (queue);

CREATE INDEX message_later ON message (queue, due_at_ms)
  WHERE state IN ('scheduled', 'failed');

CREATE INDEX message_expiry ON message (expires_at_ms)
  WHERE state = 'pending' AND expires_at_ms IS NOT NULL;

CREATE INDEX result_expiry ON result (expires_at_ms) WHERE expires_at_ms IS NOT NULL;

CREATE INDEX chord_expiry ON chord (expires_at_ms) WHERE expires_at_ms IS NOT NULL;
