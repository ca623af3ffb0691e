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

CREATE TABLE result (
  id            INTEGER PRIMARY KEY AUTOINCREMENT,
  key           TEXT NOT NULL UNIQUE,
  status        TEXT NOT NULL,              -- Celery's state; a SUCCESS is never replaced by another
  value         BLOB NOT NULL,
  expires_at_ms INTEGER                     -- NULL: never
) STRICT;

CREATE TABLE chord (
  key             TEXT PRIMARY KEY NOT NULL,
  size            INTEGER,                  -- NULL until the header has been sent whole
  published_at_ms INTEGER,
  expires_at_ms   INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE chord_member (
  id       INTEGER PRIMARY KEY,
  chord    TEXT NOT NULL REFERENCES chord (key) ON DELETE CASCADE,
  member   TEXT NOT NULL,
  position REAL NOT NULL,
  value    BLOB NOT NULL,
  UNIQUE (chord, member)
) STRICT;

CREATE INDEX queue_mortal ON queue (unused_since_ms)
  WHERE gone_at_ms IS NULL AND (auto_delete = 1 OR exclusive = 1 OR expires_ms IS NOT NULL);

CREATE INDEX queue_gone ON queue (gone_at_ms) WHERE gone_at_ms IS NOT NULL;

CREATE INDEX consumer_queue ON consumer (queue);

CREATE INDEX message_expiry ON message (expires_at_ms)
  WHERE state = 'pending' AND expires_at_ms IS NOT NULL;

CREATE INDEX result_expiry ON result (expires_at_ms) WHERE expires_at_ms IS NOT NULL;

CREATE INDEX chord_expiry ON chord (expires_at_ms) WHERE expires_at_ms IS NOT NULL;
