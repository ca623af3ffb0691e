-- From version 2 to 3: paused queues, running jobs that are asked to stop, progress, and schedule entries
-- that live in the file.

ALTER TABLE queue ADD COLUMN paused_at_ms INTEGER;
ALTER TABLE message ADD COLUMN stop_asked_at_ms INTEGER;
ALTER TABLE message ADD COLUMN kill_at_ms INTEGER;
ALTER TABLE schedule ADD COLUMN definition TEXT;
ALTER TABLE schedule ADD COLUMN paused_at_ms INTEGER;
ALTER TABLE schedule ADD COLUMN origin TEXT NOT NULL DEFAULT 'code'
  CHECK (origin IN ('code', 'settings', 'file'));
ALTER TABLE schedule ADD COLUMN done_ms INTEGER;
ALTER TABLE schedule ADD COLUMN first_message_id INTEGER;
ALTER TABLE schedule ADD COLUMN last_message_id INTEGER;
ALTER TABLE tick ADD COLUMN skipped TEXT;
ALTER TABLE tick ADD COLUMN first_message_id INTEGER;
ALTER TABLE tick ADD COLUMN last_message_id INTEGER;

-- Which beat has which entry of code or settings; a row counts while its worker's does.
CREATE TABLE beating (
  worker_id INTEGER NOT NULL,
  entry     TEXT NOT NULL,
  PRIMARY KEY (worker_id, entry)
) STRICT, WITHOUT ROWID;

-- A CHECK cannot be altered: the table is made anew, with one more outcome.
ALTER TABLE attempt RENAME TO attempt_2;
DROP INDEX attempt_message;
CREATE TABLE attempt (
  id            INTEGER PRIMARY KEY,
  message_id    INTEGER NOT NULL REFERENCES message (id) ON DELETE CASCADE,
  run           INTEGER NOT NULL,
  attempt       INTEGER NOT NULL,
  delivery      INTEGER NOT NULL,
  worker        TEXT,
  started_at_ms INTEGER,
  ended_at_ms   INTEGER NOT NULL,
  outcome       TEXT NOT NULL CHECK (outcome IN ('done', 'failed', 'lost', 'timed_out', 'rejected', 'cancelled')),
  error_type    TEXT,
  error_message TEXT,
  traceback     TEXT
) STRICT;
INSERT INTO attempt SELECT * FROM attempt_2;
DROP TABLE attempt_2;
CREATE INDEX attempt_message ON attempt (message_id, id);

-- How far a running delivery says it is; the newest word of the newest delivery that said one.
CREATE TABLE progress (
  message_id INTEGER PRIMARY KEY REFERENCES message (id) ON DELETE CASCADE,
  delivery   INTEGER NOT NULL,
  done       REAL NOT NULL,
  total      REAL,                          -- NULL: it does not know
  note       TEXT,
  at_ms      INTEGER NOT NULL
) STRICT;
