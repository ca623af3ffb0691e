-- The queue file. Times ending in _ms are UTC milliseconds since 1970, except lease_until_ms,
-- which counts on the monotonic clock of the boot named in the leasing worker's row.
-- Everything here is STRICT: SQLite refuses a value of another type instead of keeping it.

CREATE TABLE meta (
  key   TEXT PRIMARY KEY NOT NULL,
  value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- One row for each process that ever consumed or supervised: never reused ids, so that a lease
-- names one life of one process. ended_at_ms is set once its deliveries were given back.
CREATE TABLE worker (
  id            INTEGER PRIMARY KEY AUTOINCREMENT,
  name          TEXT NOT NULL,
  kind          TEXT NOT NULL CHECK (kind IN ('worker', 'child', 'beat', 'client')),
  parent_id     INTEGER,
  pid           INTEGER NOT NULL,
  host          TEXT NOT NULL,
  boot          TEXT NOT NULL,
  presence      TEXT NOT NULL,              -- identity of the presence file that holds its lock
  slot          INTEGER NOT NULL,           -- its place in that file
  slots         INTEGER NOT NULL DEFAULT 0, -- how many jobs it runs at once (a worker: all its children)
  started_at_ms INTEGER NOT NULL,
  ended_at_ms   INTEGER,
  max_deliveries INTEGER NOT NULL DEFAULT 20 -- how often it lets a message come back uncounted; 0: no limit
) STRICT;

CREATE INDEX worker_alive ON worker (id) WHERE ended_at_ms IS NULL;

-- A queue somebody declared; messages may lie in others, too. What AMQP's arguments say stands in
-- columns, because every publish asks. A queue that went away by itself (auto-delete, exclusive,
-- x-expires) leaves its name behind for a day: late answers to it are then dropped, not kept.
CREATE TABLE queue (
  name            TEXT PRIMARY KEY NOT NULL,
  durable         INTEGER NOT NULL DEFAULT 1,
  exclusive       INTEGER NOT NULL DEFAULT 0,
  auto_delete     INTEGER NOT NULL DEFAULT 0,
  arguments       TEXT NOT NULL DEFAULT '{}',
  created_at_ms   INTEGER NOT NULL,
  message_ttl_ms  INTEGER CHECK (message_ttl_ms >= 0),  -- x-message-ttl
  expires_ms      INTEGER CHECK (expires_ms > 0),       -- x-expires
  max_length      INTEGER CHECK (max_length >= 0),      -- x-max-length: of what is ready
  max_priority    INTEGER CHECK (max_priority >= 0),    -- x-max-priority
  dead_letter_exchange    TEXT,             -- '' is the default exchange
  dead_letter_routing_key TEXT,             -- NULL: the message's own
  owner_id        INTEGER,                  -- exclusive: the worker whose connection declared it
  had_consumer    INTEGER NOT NULL DEFAULT 0,
  unused_since_ms INTEGER,                  -- NULL while it has a consumer
  gone_at_ms      INTEGER,                  -- it went away by itself; NULL: it is there
  paused_at_ms    INTEGER                   -- an operator paused it: nobody claims from it; NULL: it runs
) STRICT, WITHOUT ROWID;

CREATE INDEX queue_mortal ON queue (unused_since_ms)
  WHERE gone_at_ms IS NULL AND (auto_delete = 1 OR exclusive = 1 OR expires_ms IS NOT NULL);
CREATE INDEX queue_gone ON queue (gone_at_ms) WHERE gone_at_ms IS NOT NULL;

-- Who consumes from which queue, a row for each consumer tag; they end with their worker's row.
CREATE TABLE consumer (
  worker_id INTEGER NOT NULL,
  tag       TEXT NOT NULL,
  queue     TEXT NOT NULL,
  PRIMARY KEY (worker_id, tag)
) STRICT, WITHOUT ROWID;

CREATE INDEX consumer_queue ON consumer (queue);

CREATE TABLE exchange (
  name        TEXT PRIMARY KEY NOT NULL,
  type        TEXT NOT NULL,
  durable     INTEGER NOT NULL DEFAULT 1,
  auto_delete INTEGER NOT NULL DEFAULT 0,
  arguments   TEXT NOT NULL DEFAULT '{}'
) STRICT, WITHOUT ROWID;

CREATE TABLE binding (
  exchange    TEXT NOT NULL,
  routing_key TEXT NOT NULL,
  queue       TEXT NOT NULL REFERENCES queue (name) ON DELETE CASCADE,
  arguments   TEXT NOT NULL DEFAULT '{}',
  PRIMARY KEY (exchange, routing_key, queue)
) STRICT, WITHOUT ROWID;

CREATE INDEX binding_queue ON binding (queue);

-- A message keeps its row through its whole life; an ack is an UPDATE. No id is given twice, because
-- with a reused one a stale ack would hit another message: see counted.given. (AUTOINCREMENT would write
-- one more page with each message.)
-- Neither here nor in an index is a column compared with a list of more than two: for each row that is
-- written, SQLite would make a table of the list and look the value up.
CREATE TABLE message (
  id               INTEGER PRIMARY KEY,
  queue            TEXT NOT NULL,
  state            TEXT NOT NULL CHECK (state = 'pending' OR state = 'processing' OR state = 'done'
                     OR state = 'scheduled' OR state = 'failed' OR state = 'permanently_failed'
                     OR state = 'cancelled' OR state = 'expired'),
  priority         INTEGER NOT NULL DEFAULT 0 CHECK (priority BETWEEN 0 AND 9),
  job_id           TEXT,              -- the header `id`; several messages may share one
  task             TEXT,              -- the header `task`; NULL: not a job
  unique_key       TEXT,              -- a caller's own job_id: stored once
  run              INTEGER NOT NULL DEFAULT 1,   -- raised by every requeue of an operator
  attempts         INTEGER NOT NULL DEFAULT 0 CHECK (attempts >= 0),  -- counted in this run
  max_attempts     INTEGER CHECK (max_attempts >= 0),  -- NULL: the consumer's default; 0: no limit
  delivery         INTEGER NOT NULL DEFAULT 0,   -- the fencing token: raised by every claim
  unnoted_losses   INTEGER NOT NULL DEFAULT 0,   -- deliveries that came back with no record of a start
  worker_id        INTEGER,           -- of the newest delivery; no foreign key: pruning workers must not scan messages
  lease_until_ms   INTEGER,           -- monotonic
  enqueued_at_ms   INTEGER NOT NULL,
  due_at_ms        INTEGER,
  expires_at_ms    INTEGER,
  started_at_ms    INTEGER,           -- of the newest delivery
  finished_at_ms   INTEGER,
  exchange         TEXT NOT NULL DEFAULT '',
  routing_key      TEXT NOT NULL DEFAULT '',
  content_type     TEXT,
  content_encoding TEXT,
  headers          TEXT NOT NULL DEFAULT '{}',
  properties       TEXT NOT NULL DEFAULT '{}',
  body             BLOB,              -- NULL: in the table body, so that an ack does not rewrite it
  result           TEXT,
  error_type       TEXT,              -- of the newest failed attempt, or an operator's decision
  error_message    TEXT,
  stop_asked_at_ms INTEGER,           -- an operator asked its running delivery to stop
  kill_at_ms       INTEGER,           -- from when on its process is to be killed for that; NULL: never
  CHECK ((state = 'processing') = (lease_until_ms IS NOT NULL)),
  CHECK (state <> 'processing' OR (worker_id IS NOT NULL AND started_at_ms IS NOT NULL AND delivery > 0)),
  CHECK (state NOT IN ('scheduled', 'failed') OR due_at_ms IS NOT NULL),
  CHECK ((state = 'done' OR state = 'permanently_failed' OR state = 'cancelled' OR state = 'expired')
    = (finished_at_ms IS NOT NULL))
) STRICT;

-- Partial indexes: a backlog or a history of millions costs the hot path nothing, because each
-- index holds only the rows of its states. A query must repeat the predicate to the letter.
CREATE INDEX message_ready ON message (queue, priority DESC, id) WHERE state = 'pending';
CREATE INDEX message_lease ON message (lease_until_ms) WHERE state = 'processing';
CREATE INDEX message_due ON message (due_at_ms) WHERE state IN ('scheduled', 'failed');
CREATE INDEX message_later ON message (queue, due_at_ms)
  WHERE state IN ('scheduled', 'failed');
CREATE INDEX message_history ON message (state, finished_at_ms) WHERE finished_at_ms IS NOT NULL;
CREATE INDEX message_expiry ON message (expires_at_ms)
  WHERE state = 'pending' AND expires_at_ms IS NOT NULL;
CREATE UNIQUE INDEX message_unique ON message (unique_key) WHERE unique_key IS NOT NULL;
CREATE INDEX message_job ON message (job_id, id) WHERE job_id IS NOT NULL;

-- How many messages there are, by queue and state, of those with an id below counted.upto: kept exact
-- by the triggers below, and apart for each block of 16384 ids, so that a list knows which blocks
-- have nothing for it. Newer ones are counted when somebody asks: most jobs live and die among the
-- newest few thousand, and cost no count at all. A row may say zero for a while.
CREATE TABLE tally (
  queue    TEXT NOT NULL,
  state    TEXT NOT NULL,
  is_job   INTEGER NOT NULL,
  block    INTEGER NOT NULL,               -- message id / 16384
  messages INTEGER NOT NULL,               -- no CHECK: a wrong count must not stop a job
  PRIMARY KEY (queue, state, is_job, block)
) STRICT, WITHOUT ROWID;

CREATE TABLE counted (
  only  INTEGER PRIMARY KEY CHECK (only = 1),
  upto  INTEGER NOT NULL,
  given INTEGER NOT NULL DEFAULT 0          -- no id up to here is given again, though its message is gone
) STRICT;

INSERT INTO counted (only, upto) VALUES (1, 1);

-- Every 1024th message takes those into the tally that are no longer among the newest 8192: a
-- millisecond. Here and not in the housekeeping, so that the tail is short whoever is alive.
CREATE TRIGGER message_tallied AFTER INSERT ON message WHEN new.id % 1024 = 0
BEGIN
  INSERT INTO tally (queue, state, is_job, block, messages)
  SELECT queue, state, task IS NOT NULL, id / 16384, count(*) FROM message
  WHERE id >= (SELECT upto FROM counted WHERE only = 1) AND id < new.id - 8192
  GROUP BY queue, state, task IS NOT NULL, id / 16384
  ON CONFLICT (queue, state, is_job, block) DO UPDATE SET messages = messages + excluded.messages;
  UPDATE counted SET upto = max(upto, new.id - 8192) WHERE only = 1;
  DELETE FROM tally WHERE messages = 0;
END;

CREATE TRIGGER message_moved AFTER UPDATE OF state, queue ON message
WHEN old.id < (SELECT upto FROM counted WHERE only = 1)
BEGIN
  UPDATE tally SET messages = messages - 1
  WHERE queue = old.queue AND state = old.state AND is_job = (old.task IS NOT NULL)
    AND block = old.id / 16384;
  INSERT INTO tally (queue, state, is_job, block, messages)
  VALUES (new.queue, new.state, new.task IS NOT NULL, new.id / 16384, 1)
  ON CONFLICT (queue, state, is_job, block) DO UPDATE SET messages = messages + 1;
END;

CREATE TRIGGER message_gone AFTER DELETE ON message
WHEN old.id < (SELECT upto FROM counted WHERE only = 1)
BEGIN
  UPDATE tally SET messages = messages - 1
  WHERE queue = old.queue AND state = old.state AND is_job = (old.task IS NOT NULL)
    AND block = old.id / 16384;
END;

-- The next id is one more than both the newest message's and this (PUBLISH). Of an older message that is
-- deleted nothing need be remembered: a newer one is there, or was when it went.
CREATE TRIGGER message_newest_gone AFTER DELETE ON message
WHEN old.id > (SELECT coalesce(max(id), 0) FROM message)
BEGIN
  UPDATE counted SET given = max(given, old.id) WHERE only = 1;
END;

CREATE TABLE body (
  message_id INTEGER PRIMARY KEY REFERENCES message (id) ON DELETE CASCADE,
  content    BLOB NOT NULL
) STRICT;

-- One row for each counted attempt that did not end well, and for a success that a requeue
-- would otherwise overwrite. The newest success is the message row itself.
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

CREATE INDEX attempt_message ON attempt (message_id, id);
CREATE INDEX attempt_failure ON attempt (ended_at_ms)
  WHERE outcome IN ('failed', 'lost', 'timed_out');

-- How far a running delivery says it is; the newest word of the newest delivery that said one.
CREATE TABLE progress (
  message_id INTEGER PRIMARY KEY REFERENCES message (id) ON DELETE CASCADE,
  delivery   INTEGER NOT NULL,
  done       REAL NOT NULL,
  total      REAL,                          -- NULL: it does not know
  note       TEXT,
  at_ms      INTEGER NOT NULL
) STRICT;

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

CREATE INDEX result_expiry ON result (expires_at_ms) WHERE expires_at_ms IS NOT NULL;

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

CREATE INDEX chord_expiry ON chord (expires_at_ms) WHERE expires_at_ms IS NOT NULL;

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

-- What operators did, and to what.
CREATE TABLE audit (
  id         INTEGER PRIMARY KEY,
  at_ms      INTEGER NOT NULL,
  actor      TEXT NOT NULL,
  action     TEXT NOT NULL,
  message_id INTEGER,
  job_id     TEXT,
  reason     TEXT,
  before     TEXT,
  after      TEXT
) STRICT;

CREATE INDEX audit_message ON audit (message_id, id);

-- Schedule entries: those of code and settings as the beats last described them, and those that live
-- here, which `origin` tells apart. `definition` is JSON for all: when an entry is due, and of one that
-- lives here also what it enqueues.
CREATE TABLE schedule (
  entry         TEXT PRIMARY KEY NOT NULL,
  description   TEXT NOT NULL,
  target        TEXT NOT NULL,
  first_seen_ms INTEGER NOT NULL,
  next_due_ms   INTEGER,                    -- NULL: it is over
  error         TEXT,                       -- of its newest tick; NULL: none
  definition    TEXT,                       -- NULL: described by a version before 3
  paused_at_ms  INTEGER,                    -- an operator paused it; NULL: it runs
  origin        TEXT NOT NULL DEFAULT 'code' CHECK (origin IN ('code', 'settings', 'file')),
  done_ms       INTEGER,                    -- each tick up to here was enqueued or given up; outlives its row
  first_message_id INTEGER,                 -- what the newest tick with jobs enqueued lies between these
  last_message_id  INTEGER                  -- two: for entries whose ticks must not overlap
) STRICT, WITHOUT ROWID;

-- Which beat has which entry of code or settings; a row counts while its worker's does.
CREATE TABLE beating (
  worker_id INTEGER NOT NULL,
  entry     TEXT NOT NULL,
  PRIMARY KEY (worker_id, entry)
) STRICT, WITHOUT ROWID;

-- Every tick that was enqueued: the primary key is what makes any number of beats enqueue each once.
CREATE TABLE tick (
  entry   TEXT NOT NULL,
  due_ms  INTEGER NOT NULL,
  at_ms   INTEGER NOT NULL,
  beat    TEXT NOT NULL,
  jobs    INTEGER NOT NULL,
  skipped TEXT,                             -- why nothing was enqueued, such as 'overlap'; NULL: it was
  first_message_id INTEGER,                 -- what the tick enqueued lies between these two, and
  last_message_id  INTEGER,                 -- nothing else does
  PRIMARY KEY (entry, due_ms)
) STRICT, WITHOUT ROWID;

-- The view for people and their own tools; its columns are a promise.
CREATE VIEW jobs AS
SELECT
  job_id AS id,
  id AS message_id,
  task,
  queue,
  state,
  priority,
  attempts,
  enqueued_at_ms,
  due_at_ms,
  started_at_ms,
  finished_at_ms
FROM message
WHERE task IS NOT NULL;
