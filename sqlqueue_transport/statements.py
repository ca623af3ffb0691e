"""Every SQL statement of a message's life, each with its why.

A partial index is used only when the query repeats the index's predicate letter for letter
(reordered IN lists, `<>` or bound parameters fall back to a scan), so state literals are
written out; tests hold the query plans. Time is always a bound parameter.
"""

# -- publishing -------------------------------------------------------------------------------------

PUBLISH = """
INSERT INTO message (
  queue, state, priority, job_id, task, unique_key, max_attempts, enqueued_at_ms, due_at_ms,
  expires_at_ms, exchange, routing_key, content_type, content_encoding, headers, properties, body
)
VALUES (
  :queue, :state, :priority, :job_id, :task, :unique_key, :max_attempts, :now_ms, :due_at_ms,
  :expires_at_ms, :exchange, :routing_key, :content_type, :content_encoding, :headers,
  :properties, :body
)
ON CONFLICT (unique_key) WHERE unique_key IS NOT NULL DO NOTHING
"""

STORE_BODY = "INSERT INTO body (message_id, content) VALUES (:id, :content)"

FIND_UNIQUE = "SELECT id FROM message WHERE unique_key = :unique_key AND unique_key IS NOT NULL"

ROUTE = """
SELECT queue FROM binding
WHERE exchange = :exchange AND routing_key = :routing_key
ORDER BY queue
"""

# The primary key makes the second beat's tick a no-op; its messages are then not stored either.
TAKE_TICK = """
INSERT INTO tick (entry, due_ms, at_ms, beat, jobs)
VALUES (:entry, :due_ms, :now_ms, :beat, :jobs)
ON CONFLICT DO NOTHING
"""

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

ANY_READY = "SELECT 1 FROM message WHERE state = 'pending' AND queue = :queue LIMIT 1"

# One queue at a time: `queue IN (…)` would force a sort of everything that is ready.
READY = """
SELECT
  m.id, m.delivery, m.queue, m.job_id, m.task, coalesce(m.body, b.content, x''), m.content_type,
  m.content_encoding, m.headers, m.properties, m.exchange, m.routing_key, m.priority, m.attempts,
  m.max_attempts, m.expires_at_ms
FROM message AS m
LEFT JOIN body AS b ON b.message_id = m.id
WHERE m.state = 'pending' AND m.queue = :queue
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

EXPIRE = """
UPDATE message
SET state = 'expired', finished_at_ms = :now_ms
WHERE id = :id AND state = 'pending'
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

EXTEND_WORKER = """
UPDATE message
SET lease_until_ms = max(lease_until_ms, :lease_until_ms)
WHERE state = 'processing' AND worker_id = :worker_id AND lease_until_ms > :lease_now_ms
"""

# -- workers and sweeping ---------------------------------------------------------------------------

REGISTER_WORKER = """
INSERT INTO worker (
  name, kind, parent_id, pid, host, boot, presence, slot, slots, queues, started_at_ms
)
VALUES (
  :name, :kind, :parent_id, :pid, :host, :boot, :presence, :slot, :slots, :queues, :now_ms
)
"""

END_WORKER = """
UPDATE worker SET ended_at_ms = :now_ms WHERE id = :worker_id AND ended_at_ms IS NULL
"""

REGISTERED_WORKERS = """
SELECT id, name, kind, parent_id, pid, host, boot, presence, slot, slots, queues, started_at_ms
FROM worker
WHERE ended_at_ms IS NULL
ORDER BY id
"""

# "+m.id": to sort by the bare id SQLite would walk over the whole table instead of the few leases.
HELD_BY_WORKER = """
SELECT m.id, m.delivery, m.job_id, m.task, m.queue, m.run, m.attempts, m.max_attempts,
  m.unnoted_losses, coalesce(w.name, ''), coalesce(w.kind, ''), coalesce(w.boot, '')
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
  m.unnoted_losses, coalesce(w.name, ''), coalesce(w.kind, ''), coalesce(w.boot, '')
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
