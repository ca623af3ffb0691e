"""Every SQL statement of a message's life, each with its why.

A partial index is used only when the query repeats the index's predicate letter for letter
(reordered IN lists, `<>` or bound parameters fall back to a scan), so state literals are
written out; tests hold the query plans. Time is always a bound parameter.
"""

# -- publishing -------------------------------------------------------------------------------------

# No id is given twice: `counted.given` is the newest that was deleted. (Where somebody has deleted its
# row, SQLite gives one more than the newest that is there.)
# The one statement whose parameters have no names: to look up 17 of them took 1.6 µs of each publish.
PUBLISH = """
INSERT INTO message (
  id,
  queue, state, priority, job_id, task, unique_key, max_attempts, enqueued_at_ms, due_at_ms,
  expires_at_ms, exchange, routing_key, content_type, content_encoding, headers, properties, body
)
VALUES (
  (SELECT 1 + max(given, coalesce((SELECT max(id) FROM message), 0)) FROM counted WHERE only = 1),
  ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?
)
ON CONFLICT (unique_key) WHERE unique_key IS NOT NULL DO NOTHING
"""

STORE_BODY = "INSERT INTO body (message_id, content) VALUES (:id, :content)"

FIND_UNIQUE = "SELECT id FROM message WHERE unique_key = :unique_key AND unique_key IS NOT NULL"

# What a queue's arguments make of a message; asked for every publish, so the columns hold them.
QUEUE_RULES = """
SELECT message_ttl_ms, max_length, max_priority, gone_at_ms FROM queue WHERE name = :queue
"""

QUEUE_ARGUMENTS = "SELECT arguments FROM queue WHERE name = :queue"

READY_COUNT = "SELECT count(*) FROM message WHERE state = 'pending' AND queue = :queue"

FIRST_READY = """
SELECT id FROM message
WHERE state = 'pending' AND queue = :queue
ORDER BY priority DESC, id
LIMIT 1
"""

EXCHANGE_TYPE = "SELECT type FROM exchange WHERE name = :exchange"

ROUTE = """
SELECT queue FROM binding
WHERE exchange = :exchange AND routing_key = :routing_key
ORDER BY queue
"""

# Topic patterns are matched in Python, a fanout exchange takes every binding.
BINDINGS_OF = "SELECT routing_key, queue FROM binding WHERE exchange = :exchange ORDER BY queue"

# -- claiming ---------------------------------------------------------------------------------------

# Delayed is a state, not a predicate of the claim: `due_at_ms <= now` in the claim would walk over
# every future row. Bounded, so that a flood of due rows never holds the writer for long.
PROMOTE = """
UPDATE message
SET state = 'pending'
WHERE id IN (
  SELECT id FROM message
  WHERE state IN ('scheduled', 'failed') AND due_at_ms <= :now_ms
  ORDER BY due_at_ms
  LIMIT 200
)
"""

NEXT_DUE = """
SELECT min(due_at_ms) FROM message WHERE state IN ('scheduled', 'failed')
"""

# Of a paused queue nothing is ready for anybody: it is here that a pause is obeyed. The subquery
# names no column of the message, so SQLite answers it once and not for each row.
ANY_READY = """
SELECT 1 FROM message
WHERE state = 'pending' AND queue = :queue
  AND NOT EXISTS (SELECT 1 FROM queue WHERE name = :queue AND paused_at_ms IS NOT NULL)
LIMIT 1
"""

# One queue at a time: `queue IN (…)` would force a sort of everything that is ready.
# Since when it is ready: a retry from its own time on. Of one that an operator requeued, or that came
# from a dead letter exchange, nothing in the row says when that was.
READY = """
SELECT
  m.id, m.delivery, m.queue, m.job_id, m.task, coalesce(m.body, b.content, x''), m.content_type,
  m.content_encoding, m.headers, m.properties, m.exchange, m.routing_key, m.priority, m.attempts,
  m.max_attempts,
  iif(m.run > 1 AND m.due_at_ms IS NULL, NULL, max(m.enqueued_at_ms, coalesce(m.due_at_ms, 0))),
  m.expires_at_ms
FROM message AS m
LEFT JOIN body AS b ON b.message_id = m.id
WHERE m.state = 'pending' AND m.queue = :queue
  AND NOT EXISTS (SELECT 1 FROM queue WHERE name = :queue AND paused_at_ms IS NOT NULL)
ORDER BY m.priority DESC, m.id
LIMIT :limit
"""

CLAIM = """
UPDATE message
SET
  state = 'processing',
  delivery = delivery + 1,
  worker_id = :worker_id,
  lease_until_ms = :lease_until_ms,
  started_at_ms = :now_ms
WHERE id = :id AND state = 'pending'
"""

# Jobs stay as history. Nobody asks for what is no job, and of events and answers there are many.
EXPIRE = """
UPDATE message
SET state = 'expired', finished_at_ms = :now_ms
WHERE id = :id AND state = 'pending' AND task IS NOT NULL
"""

OVERFLOW = """
UPDATE message
SET
  state = 'permanently_failed',
  finished_at_ms = :now_ms,
  error_type = 'QueueOverflow',
  error_message = 'dropped as the oldest of a queue that held its x-max-length'
WHERE id = :id AND state = 'pending' AND task IS NOT NULL
"""

DELETE_PENDING = "DELETE FROM message WHERE id = :id AND state = 'pending' AND task IS NULL"

# Also in queues nobody claims from, but not jobs with an `expires` header of their own: who runs them
# is to know of it (see `Store.claim`).
_HAS_EXPIRED = """state = 'pending' AND expires_at_ms IS NOT NULL AND expires_at_ms <= :now_ms
  AND (task IS NULL OR instr(headers, '"expires":"') = 0)
"""
ANY_EXPIRED = f"SELECT 1 FROM message WHERE {_HAS_EXPIRED} LIMIT 1"  # noqa: S608 - written above

# Bounded, so that a flood never holds the writer for long.
EXPIRED = f"""
SELECT id FROM message
WHERE {_HAS_EXPIRED}
ORDER BY expires_at_ms
LIMIT :chunk
"""  # noqa: S608

# Of one of them: asked again, because ending another may have moved or dropped it.
STILL_EXPIRED = f"SELECT 1 FROM message WHERE id = :id AND {_HAS_EXPIRED}"  # noqa: S608

# -- dead letter exchanges --------------------------------------------------------------------------

DEAD_LETTER_RULES = """
SELECT
  q.dead_letter_exchange, q.dead_letter_routing_key, m.queue, m.exchange, m.routing_key, m.headers
FROM message AS m
JOIN queue AS q ON q.name = m.queue
WHERE m.id = :id AND m.state IN ('pending', 'permanently_failed')
  AND q.dead_letter_exchange IS NOT NULL
"""

# The attempts before stay in the history, as another run.
DEAD_LETTER = """
UPDATE message
SET
  queue = :queue,
  state = 'pending',
  priority = min(priority, coalesce(:max_priority, priority)),
  exchange = :exchange,
  routing_key = :routing_key,
  headers = :headers,
  run = run + 1,
  attempts = 0,
  unnoted_losses = 0,
  lease_until_ms = NULL,
  due_at_ms = NULL,
  expires_at_ms = :expires_at_ms,
  started_at_ms = NULL,
  finished_at_ms = NULL,
  result = NULL,
  error_type = NULL,
  error_message = NULL,
  stop_asked_at_ms = NULL,
  kill_at_ms = NULL
WHERE id = :id AND state IN ('pending', 'permanently_failed')
"""

AS_NEW = """
SELECT
  coalesce(m.body, b.content, x''), m.content_type, m.content_encoding, m.properties, m.priority,
  m.job_id, m.task, m.max_attempts
FROM message AS m
LEFT JOIN body AS b ON b.message_id = m.id
WHERE m.id = :id
"""

# Whoever was taken for dead must not claim: nobody would watch over its deliveries.
WORKER_IS_REGISTERED = "SELECT 1 FROM worker WHERE id = :worker_id AND ended_at_ms IS NULL"

# -- settling ---------------------------------------------------------------------------------------
# Fencing: the delivery number and the state must be as this consumer left them, and its lease must
# not be over. Zero changed rows is a refusal, never an error of the file.

COMPLETE = """
UPDATE message
SET
  state = 'done',
  attempts = attempts + 1,
  lease_until_ms = NULL,
  finished_at_ms = :now_ms,
  result = :result,
  error_type = NULL,
  error_message = NULL
WHERE id = :id AND delivery = :delivery AND state = 'processing' AND lease_until_ms > :lease_now_ms
  AND task IS NOT NULL
"""

DELETE_DONE = """
DELETE FROM message
WHERE id = :id AND delivery = :delivery AND state = 'processing' AND lease_until_ms > :lease_now_ms
  AND task IS NULL
"""

RETRY = """
UPDATE message
SET
  state = 'failed',
  attempts = attempts + 1,
  lease_until_ms = NULL,
  due_at_ms = :due_at_ms,
  error_type = :error_type,
  error_message = :error_message
WHERE id = :id AND delivery = :delivery AND state = 'processing' AND lease_until_ms > :lease_now_ms
"""

EXHAUST = """
UPDATE message
SET
  state = 'permanently_failed',
  attempts = attempts + 1,
  lease_until_ms = NULL,
  finished_at_ms = :now_ms,
  error_type = :error_type,
  error_message = :error_message
WHERE id = :id AND delivery = :delivery AND state = 'processing' AND lease_until_ms > :lease_now_ms
"""

RELEASE = """
UPDATE message
SET state = 'pending', lease_until_ms = NULL, started_at_ms = NULL
WHERE id = :id AND delivery = :delivery AND state = 'processing' AND lease_until_ms > :lease_now_ms
"""

# Asked before a delivery is settled in any way but success: somebody may wait for its end.
WAS_ASKED_TO_STOP = """
SELECT 1 FROM message
WHERE id = :id AND delivery = :delivery AND state = 'processing' AND stop_asked_at_ms IS NOT NULL
"""

ABORT = """
UPDATE message
SET
  state = 'cancelled',
  attempts = attempts + :counted,
  lease_until_ms = NULL,
  finished_at_ms = :now_ms,
  error_type = :error_type,
  error_message = :error_message
WHERE id = :id AND delivery = :delivery AND state = 'processing' AND lease_until_ms > :lease_now_ms
"""

# Handed back by a consumer that would not have it: counted, because it may never end otherwise.
RETURN = """
UPDATE message
SET
  state = 'pending',
  lease_until_ms = NULL,
  started_at_ms = NULL,
  unnoted_losses = unnoted_losses + 1
WHERE id = :id AND delivery = :delivery AND state = 'processing' AND lease_until_ms > :lease_now_ms
"""

RETURNS = "SELECT unnoted_losses FROM message WHERE id = :id"

DELETE_FROM_GONE = """
DELETE FROM message
WHERE id = :id AND state IN ('pending', 'failed')
  AND queue IN (SELECT name FROM queue WHERE gone_at_ms IS NOT NULL)
"""

WHERE_IT_WAITS = "SELECT queue, due_at_ms, state FROM message WHERE id = :id"

RECORD_ATTEMPT = """
INSERT INTO attempt (
  message_id, run, attempt, delivery, worker, started_at_ms, ended_at_ms, outcome, error_type,
  error_message, traceback
)
SELECT
  m.id, m.run, m.attempts, m.delivery, w.name, m.started_at_ms, :now_ms, :outcome, :error_type,
  :error_message, :traceback
FROM message AS m
LEFT JOIN worker AS w ON w.id = m.worker_id
WHERE m.id = :id
"""

EXTEND = """
UPDATE message
SET lease_until_ms = max(lease_until_ms, :lease_until_ms)
WHERE id = :id AND delivery = :delivery AND state = 'processing' AND lease_until_ms > :lease_now_ms
"""

# For who runs a delivery: whether to go on. Not when an operator asked it to stop, and not when it
# is somebody else's by now.
GOES_ON = """
SELECT 1 FROM message
WHERE id = :id AND delivery = :delivery AND state = 'processing' AND lease_until_ms > :lease_now_ms
  AND stop_asked_at_ms IS NULL
"""

# For supervisors: whose patience is over. Walks over what is processing, and over nothing else.
KILLS_DUE = """
SELECT id, delivery, worker_id FROM message
WHERE state = 'processing' AND kill_at_ms <= :now_ms
LIMIT 200
"""

# Fenced like a settlement: a job that is over, or somebody else's, has no progress to tell.
NOTE_PROGRESS = """
INSERT INTO progress (message_id, delivery, done, total, note, at_ms)
SELECT id, delivery, :done, :total, :note, :now_ms FROM message
WHERE id = :id AND delivery = :delivery AND state = 'processing'
ON CONFLICT (message_id) DO UPDATE SET
  delivery = excluded.delivery,
  done = excluded.done,
  total = excluded.total,
  note = excluded.note,
  at_ms = excluded.at_ms
"""

EXTEND_WORKER = """
UPDATE message
SET lease_until_ms = max(lease_until_ms, :lease_until_ms)
WHERE state = 'processing' AND worker_id = :worker_id AND lease_until_ms > :lease_now_ms
"""

# -- workers and sweeping ---------------------------------------------------------------------------

REGISTER_WORKER = """
INSERT INTO worker (
  name, kind, parent_id, pid, host, boot, presence, slot, slots, started_at_ms, max_deliveries
)
VALUES (
  :name, :kind, :parent_id, :pid, :host, :boot, :presence, :slot, :slots, :now_ms, :max_deliveries
)
"""

NAME_WORKER = "UPDATE worker SET name = :name WHERE id = :worker_id AND name <> :name"

# -- consumers and the queues that go with them ------------------------------------------------------

CONSUME = """
INSERT INTO consumer (worker_id, tag, queue) VALUES (:worker_id, :tag, :queue)
ON CONFLICT (worker_id, tag) DO UPDATE SET queue = excluded.queue
"""

USE_QUEUE = """
UPDATE queue
SET had_consumer = 1, unused_since_ms = NULL
WHERE name = :queue AND (had_consumer = 0 OR unused_since_ms IS NOT NULL)
"""

QUEUES_OF = "SELECT DISTINCT queue FROM consumer WHERE worker_id = :worker_id"

STOP_CONSUMING = "DELETE FROM consumer WHERE worker_id = :worker_id AND tag = :tag"

STOP_ALL_CONSUMING = "DELETE FROM consumer WHERE worker_id = :worker_id"

LEAVE_QUEUE = """
UPDATE queue
SET unused_since_ms = :now_ms
WHERE name = :queue AND unused_since_ms IS NULL
  AND NOT EXISTS (SELECT 1 FROM consumer WHERE queue = :queue)
"""

CONSUMING = "SELECT DISTINCT worker_id, queue FROM consumer ORDER BY worker_id, queue"

CONSUMERS_OF = "SELECT worker_id FROM consumer WHERE queue = :queue"

# A look by somebody who gets or declares, for x-expires: reads first, so that it rarely writes.
CAN_EXPIRE = """
SELECT 1 FROM queue WHERE name = :queue AND expires_ms IS NOT NULL AND unused_since_ms IS NOT NULL
"""

TOUCH_QUEUE = """
UPDATE queue SET unused_since_ms = :now_ms WHERE name = :queue AND unused_since_ms IS NOT NULL
"""

HAS_GONE = "SELECT 1 FROM queue WHERE name = :queue AND gone_at_ms IS NOT NULL"

# What goes away by itself: auto-delete after its last consumer, x-expires after a time without
# any, exclusive with its owner.
_IS_OVER = """gone_at_ms IS NULL AND (auto_delete = 1 OR exclusive = 1 OR expires_ms IS NOT NULL) AND (
  (auto_delete = 1 AND had_consumer = 1 AND unused_since_ms IS NOT NULL)
  OR (exclusive = 1 AND had_consumer = 1 AND unused_since_ms IS NOT NULL)
  OR (expires_ms IS NOT NULL AND unused_since_ms + expires_ms <= :now_ms)
  OR (exclusive = 1 AND owner_id IS NOT NULL AND owner_id NOT IN (
    SELECT id FROM worker WHERE ended_at_ms IS NULL
  ))
)
"""
# Those that cannot, and the names of those that have, are not even looked at.
ENDING_QUEUES = f"""
SELECT name FROM queue INDEXED BY queue_mortal
WHERE {_IS_OVER}
"""  # noqa: S608 - written above, as is the next

# The same of one queue: judged again for each chunk that is deleted of it.
IS_ENDING = f"""
SELECT 1 FROM queue
WHERE name = :queue AND {_IS_OVER}
"""  # noqa: S608

# Its name stays for a while, so that late answers to it are dropped, not kept for ever.
END_QUEUE = """
UPDATE queue
SET gone_at_ms = :now_ms, owner_id = NULL, had_consumer = 0, unused_since_ms = :now_ms
WHERE name = :queue AND gone_at_ms IS NULL
"""

UNBIND_ALL = "DELETE FROM binding WHERE queue = :queue"

# What a consumer still holds is left to it, as everything in AMQP that was delivered.
EMPTY_QUEUE = """
DELETE FROM message WHERE id IN (
  SELECT id FROM message
  WHERE state = 'pending' AND queue = :queue
  LIMIT :chunk
)
"""

EMPTY_QUEUE_LATER = """
DELETE FROM message WHERE id IN (
  SELECT id FROM message
  WHERE state IN ('scheduled', 'failed') AND queue = :queue
  LIMIT :chunk
)
"""

END_WORKER = """
UPDATE worker SET ended_at_ms = :now_ms WHERE id = :worker_id AND ended_at_ms IS NULL
"""

REGISTERED_WORKERS = """
SELECT id, name, kind, parent_id, pid, host, boot, presence, slot, slots, started_at_ms
FROM worker
WHERE ended_at_ms IS NULL
ORDER BY id
"""

# "+m.id": to sort by the bare id SQLite would walk over the whole table instead of the few leases.
HELD_BY_WORKER = """
SELECT m.id, m.delivery, m.job_id, m.task, m.queue, m.run, m.attempts, m.max_attempts,
  m.unnoted_losses, coalesce(w.name, ''), coalesce(w.kind, ''), coalesce(w.boot, ''),
  coalesce(w.max_deliveries, 20), m.stop_asked_at_ms IS NOT NULL
FROM message AS m
LEFT JOIN worker AS w ON w.id = m.worker_id
WHERE m.state = 'processing' AND m.worker_id = :worker_id
ORDER BY +m.id
"""

ANY_OVERDUE = """
SELECT 1 FROM message WHERE state = 'processing' AND lease_until_ms <= :lease_now_ms LIMIT 1
"""

OVERDUE = """
SELECT m.id, m.delivery, m.job_id, m.task, m.queue, m.run, m.attempts, m.max_attempts,
  m.unnoted_losses, coalesce(w.name, ''), coalesce(w.kind, ''), coalesce(w.boot, ''),
  coalesce(w.max_deliveries, 20), m.stop_asked_at_ms IS NOT NULL
FROM message AS m
LEFT JOIN worker AS w ON w.id = m.worker_id
WHERE m.state = 'processing' AND m.lease_until_ms <= :lease_now_ms
ORDER BY m.lease_until_ms
LIMIT 200
"""

COUNT_LOSSES = """
SELECT count(*) FROM attempt WHERE message_id = :id AND run = :run AND outcome IN ('lost', 'timed_out')
"""

# A sweeper settles for somebody else, so it does not ask for an unexpired lease.
COMPLETE_FOR_ANOTHER = """
UPDATE message
SET
  state = 'done',
  attempts = attempts + 1,
  lease_until_ms = NULL,
  finished_at_ms = :now_ms,
  result = :result,
  error_type = NULL,
  error_message = NULL
WHERE id = :id AND delivery = :delivery AND state = 'processing' AND task IS NOT NULL
"""

LOSE_TO_RETRY = """
UPDATE message
SET
  state = 'failed',
  attempts = attempts + 1,
  lease_until_ms = NULL,
  due_at_ms = :due_at_ms,
  error_type = :error_type,
  error_message = :error_message
WHERE id = :id AND delivery = :delivery AND state = 'processing'
"""

LOSE_TO_DEAD = """
UPDATE message
SET
  state = 'permanently_failed',
  attempts = attempts + :counted,
  lease_until_ms = NULL,
  finished_at_ms = :now_ms,
  error_type = :error_type,
  error_message = :error_message
WHERE id = :id AND delivery = :delivery AND state = 'processing'
"""

LOSE_TO_CANCELLED = """
UPDATE message
SET
  state = 'cancelled',
  attempts = attempts + :counted,
  lease_until_ms = NULL,
  finished_at_ms = :now_ms,
  error_type = :error_type,
  error_message = :error_message
WHERE id = :id AND delivery = :delivery AND state = 'processing'
"""

LOSE_UNCOUNTED = """
UPDATE message
SET
  state = 'pending',
  lease_until_ms = NULL,
  started_at_ms = NULL,
  unnoted_losses = unnoted_losses + :blind
WHERE id = :id AND delivery = :delivery AND state = 'processing'
"""

# -- meta --------------------------------------------------------------------------------------------

GET_META = "SELECT value FROM meta WHERE key = :key"

SET_META = """
INSERT INTO meta (key, value) VALUES (:key, :value)
ON CONFLICT (key) DO UPDATE SET value = excluded.value
"""

# Compare-and-set, for what one process at a time is to do: zero changed rows, somebody was faster.
ADD_META = "INSERT INTO meta (key, value) VALUES (:key, :value) ON CONFLICT (key) DO NOTHING"

REPLACE_META = "UPDATE meta SET value = :value WHERE key = :key AND value = :seen"
