"""Mistakes on purpose: each breaks one promise in one place, and names the tests that must tell.

`old` stands in `file` exactly once. A mutant that no longer applies is an error like a mutant that
survives: look up what the code says now, and break that.
"""

from __future__ import annotations

from dataclasses import dataclass

STATEMENTS = "sqlqueue_transport/statements.py"
STORE = "sqlqueue_transport/store.py"
LOSSES = "sqlqueue_transport/losses.py"
TRANSPORT = "tests/transport"


@dataclass(frozen=True)
class Mutant:
    """Be a change of one file, and the tests each of which must fail because of it."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS = (
    # -- fencing: a job has at most one unexpired lease, and who lost it cannot settle --------------
    Mutant(
        "a settlement ignores the delivery number",
        STATEMENTS,
        """WHERE id = :id AND delivery = :delivery AND state = 'processing' AND lease_until_ms > :lease_now_ms
  AND task IS NOT NULL""",
        """WHERE id = :id AND state = 'processing' AND lease_until_ms > :lease_now_ms
  AND task IS NOT NULL""",
        (
            f"{TRANSPORT}/test_settle.py::test_a_stale_settlement_changes_nothing",
            f"{TRANSPORT}/test_settle.py::test_a_settlement_with_a_guessed_delivery_number_changes_nothing",
        ),
    ),
    Mutant(
        "a settlement ignores the end of the lease",
        STATEMENTS,
        """WHERE id = :id AND delivery = :delivery AND state = 'processing' AND lease_until_ms > :lease_now_ms
  AND task IS NOT NULL""",
        """WHERE id = :id AND delivery = :delivery AND state = 'processing'
  AND task IS NOT NULL""",
        (
            f"{TRANSPORT}/test_settle.py::test_a_settlement_after_the_lease_changes_nothing_even_if_nobody_swept",
        ),
    ),
    Mutant(
        "a claim keeps the delivery number",
        STATEMENTS,
        "  delivery = delivery + 1,\n  worker_id = :worker_id,",
        "  delivery = max(delivery, 1),\n  worker_id = :worker_id,",
        (f"{TRANSPORT}/test_claim.py::test_every_claim_raises_the_delivery_number",),
    ),
    Mutant(
        "an extension revives a lease that is over",
        STATEMENTS,
        """SET lease_until_ms = max(lease_until_ms, :lease_until_ms)
WHERE id = :id AND delivery = :delivery AND state = 'processing' AND lease_until_ms > :lease_now_ms""",
        """SET lease_until_ms = max(lease_until_ms, :lease_until_ms)
WHERE id = :id AND delivery = :delivery AND state = 'processing'""",
        (f"{TRANSPORT}/test_settle.py::test_a_lease_that_is_over_or_anothers_is_not_extended",),
    ),
    Mutant(
        "leases follow the wall clock",
        STORE,
        '"lease_until_ms": lease_now_ms + round(lease_s * 1000),\n                "now_ms"',
        '"lease_until_ms": now_ms + round(lease_s * 1000),\n                "now_ms"',
        (f"{TRANSPORT}/test_claim.py::test_a_claim_writes_down_who_holds_it_and_how_long",),
    ),
    Mutant(
        "who was taken for dead may claim",
        STATEMENTS,
        'WORKER_IS_REGISTERED = "SELECT 1 FROM worker WHERE id = :worker_id AND ended_at_ms IS NULL"',
        'WORKER_IS_REGISTERED = "SELECT 1 FROM worker WHERE id = :worker_id"',
        (
            f"{TRANSPORT}/test_claim.py::test_who_was_taken_for_dead_claims_nothing_until_registered_anew",
        ),
    ),
    Mutant(
        "a row's id is used again",
        STATEMENTS,
        "SELECT 1 + max(given, coalesce((SELECT max(id) FROM message), 0)) FROM counted",
        "SELECT 1 + coalesce((SELECT max(id) FROM message), 0) FROM counted",
        (
            f"{TRANSPORT}/test_schema.py::test_an_id_is_never_used_again",
            f"{TRANSPORT}/test_schema.py::test_whatever_is_deleted_in_whatever_order_no_id_is_given_twice",
        ),
    ),
    # -- attempts: counted when a task starts, and never otherwise ------------------------------------
    Mutant(
        "an attempt is counted at the claim",
        STATEMENTS,
        "  delivery = delivery + 1,\n  worker_id = :worker_id,",
        "  delivery = delivery + 1,\n  attempts = attempts + 1,\n  worker_id = :worker_id,",
        (f"{TRANSPORT}/test_claim.py::test_a_claim_counts_no_attempt",),
    ),
    Mutant(
        "a failed attempt is never counted",
        STATEMENTS,
        '\n\nRETRY = """\nUPDATE message\nSET\n  state = \'failed\',\n  attempts = attempts + 1,',
        '\n\nRETRY = """\nUPDATE message\nSET\n  state = \'failed\',',
        (f"{TRANSPORT}/test_settle.py::test_a_retry_counts_the_attempt_and_waits",),
    ),
    Mutant(
        "an attempt that was lost with its worker is never counted",
        STATEMENTS,
        'LOSE_TO_RETRY = """\nUPDATE message\nSET\n  state = \'failed\',\n  attempts = attempts + 1,',
        'LOSE_TO_RETRY = """\nUPDATE message\nSET\n  state = \'failed\',',
        (
            f"{TRANSPORT}/test_consumers.py::test_a_job_that_takes_its_worker_with_it_each_time_is_dead_after_five",
        ),
    ),
    Mutant(
        "what a dead worker had only claimed loses an attempt, too",
        LOSSES,
        "    note = started.get((held.message_id, held.delivery))\n",
        "    note = next(iter(started.values()), None)\n",
        (
            f"{TRANSPORT}/test_consumers.py::test_a_killed_process_loses_the_attempts_it_noted_and_no_others",
        ),
    ),
    Mutant(
        "an orderly end counts as a message that came back",
        LOSSES,
        "        not orderly\n        and not counted\n",
        "        not counted\n",
        (f"{TRANSPORT}/test_consumers.py::test_an_orderly_leave_counts_nothing",),
    ),
    Mutant(
        "the note of an earlier delivery counts for a later one",
        LOSSES,
        "    note = started.get((held.message_id, held.delivery))\n",
        "    note = next((n for n in started.values() if n.message_id == held.message_id), None)\n",
        (
            f"{TRANSPORT}/test_consumers.py::test_the_note_of_an_earlier_delivery_counts_nothing_for_a_later_one",
        ),
    ),
    Mutant(
        "a start is noted after user code",
        "sqlqueue/worker/consumer.py",
        """        self._backend.note_start(
            attempt.place, taken, attempt.time_limit_s, attempt.allowed_when_lost
        )
        if self._is_lease_over():
            # Asked again once the note stands: who found the lease over before that saw no start, and
            # let another have the job, uncounted. Who finds it later counts the attempt.
            del self._started[taken.tag]
            self._backend.note_end(attempt.place)
            self._free.append(attempt.place)
            self._release(taken)
            return
        if self._left is not None:
            self._left -= 1
        self._limits.watch(attempt)
        self._runner.start(attempt)
""",
        """        self._limits.watch(attempt)
        self._runner.start(attempt)
        self._backend.note_start(
            attempt.place, taken, attempt.time_limit_s, attempt.allowed_when_lost
        )
""",
        (
            "tests/sqlqueue/test_consumer.py::test_a_start_is_noted_before_user_code_and_forgotten_after_the_settlement",
        ),
    ),
    # -- ends that are noted before they are settled ---------------------------------------------------
    Mutant(
        "the next job of a batch starts before the end of the one before is noted",
        "sqlqueue_transport/consumers.py",
        "        presence.write_ended(slot, number, ended)\n",
        "",
        (
            "tests/sqlqueue/test_batches.py::test_a_kill_runs_nothing_again_that_had_ended_and_counts_only_what_ran",
        ),
    ),
    Mutant(
        "the end of an earlier delivery counts for a later one",
        LOSSES,
        "    known = {(one.message_id, one.delivery): one for one in ended}\n",
        "    known = {(i.message_id, 2): type(i)(i.message_id, 2, i.result) for i in ended}\n",
        (
            f"{TRANSPORT}/test_consumers.py::test_the_end_of_an_older_delivery_says_nothing_of_a_newer_one",
        ),
    ),
    Mutant(
        "a new owner of a slot inherits what another had ended",
        "sqlqueue_transport/presence.py",
        "        self._clear_ended(slot)\n        self._memory[_USED_AT + slot] = 1\n",
        "        self._memory[_USED_AT + slot] = 1\n",
        (f"{TRANSPORT}/test_presence.py::test_a_new_owner_of_a_slot_inherits_no_ends",),
    ),
    Mutant(
        "what cannot be noted waits until the end of its batch",
        "sqlqueue/worker/consumer.py",
        "            if self._has_to_settle and self._largest_batch:\n",
        "            if False:\n",
        (
            "tests/sqlqueue/test_batches.py::test_a_failure_in_a_batch_is_written_down_before_the_next_job_starts",
            "tests/sqlqueue/test_batches.py::test_what_cannot_be_noted_is_settled_before_the_next_job_starts",
        ),
    ),
    Mutant(
        "a batch goes on after a settlement that came too late",
        "sqlqueue/worker/consumer.py",
        "                    if refused:\n                        self._release_waiting()\n",
        "",
        (
            "tests/sqlqueue/test_batches.py::test_what_waits_in_a_process_that_was_taken_for_dead_is_not_started",
        ),
    ),
    Mutant(
        "what waits behind a long job is never handed back",
        "sqlqueue/worker/consumer.py",
        "        if now_s - self._claimed_s < PATIENCE_S:\n",
        "        if True:\n",
        (
            "tests/sqlqueue/test_batches.py::test_nothing_waits_behind_a_long_job_and_what_has_ended_shows",
        ),
    ),
    Mutant(
        "jobs never run out of attempts",
        LOSSES,
        "        dead = 0 < _allowed(note, held) <= held.attempts + 1\n",
        "        dead = 0 < _allowed(note, held) <= held.attempts - 1\n",
        (
            f"{TRANSPORT}/test_consumers.py::test_a_job_that_takes_its_worker_with_it_each_time_is_dead_after_five",
            f"{TRANSPORT}/test_consumers.py::test_its_own_number_of_attempts_is_respected",
        ),
    ),
    Mutant(
        "a message that nobody notes the start of comes back for ever",
        LOSSES,
        "    if blind and 0 < held.max_deliveries <= held.unnoted_losses + 1:\n",
        "    if blind and 0 < held.max_deliveries <= held.unnoted_losses:\n",
        (
            f"{TRANSPORT}/test_consumers.py::test_a_consumer_that_notes_no_starts_may_lose_a_message_twenty_times",
        ),
    ),
    Mutant(
        "what a reboot may have lost the note of is not counted as come back",
        LOSSES,
        '(held.worker_kind == "client" or held.worker_boot != clock.boot())',
        'held.worker_kind == "client"',
        (f"{TRANSPORT}/test_consumers.py::test_after_a_reboot_everybody_from_before_is_dead",),
    ),
    # -- recovery: a dead process's jobs are ready again at once ------------------------------------
    Mutant(
        "presence is never swept",
        "sqlqueue_transport/sweeping.py",
        "return [entry for entry in presence.entries() if presence.is_free(entry.slot)]",
        "return []",
        (
            f"{TRANSPORT}/test_consumers.py::test_a_killed_process_loses_the_attempts_it_noted_and_no_others",
        ),
    ),
    Mutant(
        "a lease that is over is never taken back",
        "sqlqueue_transport/sweeping.py",
        "        if is_overdue:\n            lost +=",
        "        if False:\n            lost +=",
        (
            f"{TRANSPORT}/test_consumers.py::test_a_stopped_process_loses_its_lease_and_its_late_settlement_is_refused",
        ),
    ),
    Mutant(
        "a sweeper takes a living process's slot",
        "sqlqueue_transport/presence.py",
        "fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 2, _entry_at(slot))",
        "pass",
        (f"{TRANSPORT}/test_presence.py::test_a_slot_is_free_then_changing_then_owned_then_free",),
    ),
    Mutant(
        "a release publishes the message again",
        STATEMENTS,
        """SET state = 'pending', lease_until_ms = NULL, started_at_ms = NULL
WHERE id = :id AND delivery = :delivery""",
        """SET state = 'pending', lease_until_ms = NULL, started_at_ms = NULL,
  id = (SELECT max(id) + 1 FROM message)
WHERE id = :id AND delivery = :delivery""",
        (
            f"{TRANSPORT}/test_settle.py::test_a_release_publishes_nothing_again",
            f"{TRANSPORT}/test_claim.py::test_a_released_message_stands_where_it_stood",
        ),
    ),
    # -- durability, locks, forks ------------------------------------------------------------------
    Mutant(
        "a publish is not flushed",
        STORE,
        "        if durable and messages:\n            durable = not all(",
        "        if durable and messages:\n            durable = all(",
        (
            f"{TRANSPORT}/test_durability.py::test_a_publish_is_flushed_and_a_settlement_is_not_unless_it_is_asked_for",
        ),
    ),
    Mutant(
        "an ack is not flushed where that is promised",
        STORE,
        "refused = self.database.write(work, durable=durable)",
        "refused = self.database.write(work, durable=False)",
        (
            f"{TRANSPORT}/test_durability.py::test_a_publish_is_flushed_and_a_settlement_is_not_unless_it_is_asked_for",
        ),
    ),
    Mutant(
        "a settlement that rides with a claim is not flushed where that is promised",
        STORE,
        "claim = self.database.write(work, durable=durable and bool(settlements))",
        "claim = self.database.write(work)",
        (
            f"{TRANSPORT}/test_durability.py::test_a_settlement_that_rides_with_a_claim_is_flushed_if_it_is_asked_for",
        ),
    ),
    Mutant(
        "a failed flush is retried into success",
        "sqlqueue_transport/flushing.py",
        "            if self._held.lock is not None:\n"
        "                self._held.lock.log_is_suspect = True\n"
        "            self._lost.append(range(self._flushed + 1, self.commits + 1))\n"
        "            raise self._fault(str(error.strerror)) from error\n",
        "            raise self._fault(str(error.strerror)) from error\n",
        (
            f"{TRANSPORT}/test_durability.py::test_a_failed_flush_is_not_retried_into_success_for_another_thread",
        ),
    ),
    Mutant(
        "a flush that began before a commit counts for it",
        "sqlqueue_transport/flushing.py",
        "        self._flushed = target\n",
        "        self._flushed = self.commits\n",
        (
            f"{TRANSPORT}/test_durability.py::test_a_flush_that_began_before_a_commit_does_not_count_for_it",
        ),
    ),
    Mutant(
        "a transaction does not begin as a writer",
        "sqlqueue_transport/database.py",
        'connection.execute("BEGIN IMMEDIATE")',
        'connection.execute("BEGIN")',
        (f"{TRANSPORT}/test_database.py::test_a_write_shuts_out_foreign_writers_before_it_reads",),
    ),
    Mutant(
        "there is no writer lock",
        "sqlqueue_transport/writer_lock.py",
        "fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        (f"{TRANSPORT}/test_writer_lock.py::test_two_processes_exclude_each_other",),
    ),
    Mutant(
        "a settlement and the next claim are two transactions",
        STORE,
        "        if looks_first and not settlements and not self.has_work(queues):\n            return Claim()\n",
        "        refused = self.settle(settlements)\n"
        "        if refused:\n            return Claim(refused=refused)\n        settlements = ()\n",
        (f"{TRANSPORT}/test_claim.py::test_settling_and_claiming_are_one_transaction",),
    ),
    # -- what an event loop acknowledges is committed before it waits, and never lost ----------------
    Mutant(
        "a turn that raises commits nothing of what it acknowledged",
        "sqlqueue_transport/event_loop.py",
        "                self.wake()\n            self._acks.settle()\n",
        "                self.wake()\n",
        (f"{TRANSPORT}/test_acks.py::test_what_a_turn_acknowledged_is_committed_when_it_ends",),
    ),
    Mutant(
        "an acknowledgement that cannot be committed is forgotten",
        "sqlqueue_transport/acks.py",
        "            self._waiting.extendleft(reversed(waiting))\n",
        "",
        (
            f"{TRANSPORT}/test_acks.py::test_what_a_full_disk_keeps_from_being_committed_is_committed_later",
        ),
    ),
    Mutant(
        "a hanging loop keeps what it acknowledged to itself",
        "sqlqueue_transport/acks.py",
        "            self._store.owe(self._pay)\n",
        "",
        (
            f"{TRANSPORT}/test_acks.py::test_an_acknowledgement_is_committed_although_the_loops_thread_hangs",
        ),
    ),
    Mutant(
        "a store that was open while C code forked is used",
        "sqlqueue_transport/database.py",
        '        if self._pid != os.getpid():\n            self._abandon("the process was forked',
        '        if False:\n            self._abandon("the process was forked',
        (f"{TRANSPORT}/test_forking.py::test_a_fork_of_c_code_is_refused",),
    ),
    Mutant(
        "a child uses a file that its parent had open",
        "sqlqueue_transport/forking.py",
        "    return identity in _inherited\n",
        "    return False\n",
        (
            f"{TRANSPORT}/test_forking.py::test_a_child_is_refused_when_the_parent_had_another_connection_open",
        ),
    ),
    # -- what is stored, and what runs -----------------------------------------------------------------
    Mutant(
        "a job_id of one's own is stored twice",
        "sqlqueue_transport/routing.py",
        "            message.unique_key,\n            message.max_attempts,\n",
        "            None,\n            message.max_attempts,\n",
        (
            f"{TRANSPORT}/test_publish.py::test_a_unique_key_is_stored_once_and_answers_with_the_first",
        ),
    ),
    Mutant(
        "a job that has expired is delivered",
        STORE,
        '                and expires_at_ms <= lease["now_ms"]\n',
        "                and expires_at_ms < 0\n",
        (f"{TRANSPORT}/test_claim.py::test_an_expired_message_is_never_delivered",),
    ),
    Mutant(
        "what is due next is promoted a millisecond early",
        STATEMENTS,
        "WHERE state IN ('scheduled', 'failed') AND due_at_ms <= :now_ms\n",
        "WHERE state IN ('scheduled', 'failed') AND due_at_ms <= :now_ms + 1\n",
        (f"{TRANSPORT}/test_claim.py::test_only_what_is_due_is_claimed_beside_what_is_due",),
    ),
    Mutant(
        "a paused queue is claimed from",
        STATEMENTS,
        """WHERE m.state = 'pending' AND m.queue = :queue
  AND NOT EXISTS (SELECT 1 FROM queue WHERE name = :queue AND paused_at_ms IS NOT NULL)""",
        "WHERE m.state = 'pending' AND m.queue = :queue",
        (f"{TRANSPORT}/test_pausing.py::test_a_claim_that_settles_something_obeys_the_pause_too",),
    ),
    Mutant(
        "a dead letter does not say why",
        STATEMENTS,
        '\n\nEXHAUST = """\nUPDATE message\nSET\n  state = \'permanently_failed\',\n'
        "  attempts = attempts + 1,\n  lease_until_ms = NULL,\n  finished_at_ms = :now_ms,\n"
        "  error_type = :error_type,\n",
        '\n\nEXHAUST = """\nUPDATE message\nSET\n  state = \'permanently_failed\',\n'
        "  attempts = attempts + 1,\n  lease_until_ms = NULL,\n  finished_at_ms = :now_ms,\n",
        (f"{TRANSPORT}/test_settle.py::test_dead_counts_the_attempt_and_ends_in_the_dead_letters",),
    ),
    Mutant(
        "a full queue takes more",
        "sqlqueue_transport/routing.py",
        "    if max_length is not None:\n        grown[queue] = max_length\n    return Published",
        "    return Published",
        (
            f"{TRANSPORT}/test_routing.py::test_a_full_queue_drops_its_oldest_and_keeps_it_among_the_dead_letters",
        ),
    ),
    Mutant(
        "a requeue does not look whether the job has changed",
        "sqlqueue_transport/acting.py",
        'WHERE id = :id AND state = :before\n"""\n_FORGET_PROGRESS',
        'WHERE id = :id\n"""\n_FORGET_PROGRESS',
        (
            f"{TRANSPORT}/test_acting.py::test_a_requeue_that_loses_the_race_changes_nothing_and_writes_no_history",
        ),
    ),
    Mutant(
        "what was asked to stop is tried again",
        STORE,
        "    outcome = _unless_asked_to_stop(connection, settlement)\n",
        "    outcome = settlement.outcome\n",
        (f"{TRANSPORT}/test_terminating.py::test_any_end_with_an_error_is_a_cancelled_attempt",),
    ),
    Mutant(
        "an operator's action is not written down",
        "sqlqueue_transport/acting.py",
        "            connection.execute(_RECORD, values)\n",
        "",
        (f"{TRANSPORT}/test_acting.py::test_an_action_is_written_down_with_who_why_and_what",),
    ),
    # -- security ----------------------------------------------------------------------------------
    Mutant(
        "pickles are read",
        "sqlqueue/envelope.py",
        '        raise UndecodableMessage(f"its content type is {quoted(content_type)}; only JSON is read")\n',
        "        import pickle\n\n        body = json.dumps(pickle.loads(body))\n",
        ("tests/sqlqueue/test_envelope.py::test_only_json_is_read",),
    ),
    Mutant(
        "files are as open as the umask lets them be",
        "sqlqueue_transport/files.py",
        "_OWNER_ONLY = 0o600",
        "_OWNER_ONLY = 0o666",
        (f"{TRANSPORT}/test_files.py::test_everything_we_make_is_private_whatever_the_umask",),
    ),
    Mutant(
        "the directory is as open as the umask lets it be",
        "sqlqueue_transport/files.py",
        "path.mkdir(mode=0o700)",
        "path.mkdir()",
        (f"{TRANSPORT}/test_files.py::test_everything_we_make_is_private_whatever_the_umask",),
    ),
)
