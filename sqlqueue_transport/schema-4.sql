-- From version 3 to 4: exact counts, and failures by time.

CREATE INDEX attempt_failure ON attempt (ended_at_ms)
  WHERE outcome IN ('failed', 'lost', 'timed_out');

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
  only INTEGER PRIMARY KEY CHECK (only = 1),
  upto INTEGER NOT NULL
) STRICT;

-- What is there is counted once: some seconds for a million messages.
INSERT INTO tally (queue, state, is_job, block, messages)
SELECT queue, state, task IS NOT NULL, id / 16384, count(*) FROM message
GROUP BY queue, state, task IS NOT NULL, id / 16384;

INSERT INTO counted (only, upto)
SELECT 1, coalesce(max(seq), 0) + 1 FROM sqlite_sequence WHERE name = 'message';

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
