# SPDX-License-Identifier: Apache-2.0
"""One pass: recover → decide what is wanted → observe → plan → guard → apply → record.

Fail static: whatever cannot be trusted or read changes nothing that runs; the pass then enforces what was applied last,
and the finding says why. A pass raises nothing that is a `ReconcilerError`: it ends with a status in any case.
"""

from __future__ import annotations

from reconciler.errors import ExitCode, ReconcilerError, StateError
from reconciler.model import encode_json
from reconciler.reconcile._converge import Convergence
from reconciler.reconcile._decide import decide
from reconciler.reconcile._ledger import Ledger
from reconciler.reconcile._parts import Parts, PassResult, Request
from reconciler.reconcile._recover import load_source, recover_inventory
from reconciler.reconcile._report import summarize
from reconciler.status import Finding


class Pass:
    """One pass over one host. `run` may be called once."""

    def __init__(self, parts: Parts, request: Request) -> None:
        self.parts = parts
        self.request = request
        self.ledger = Ledger(parts, request)
        self.started = parts.clock.monotonic()
        self.convergence = Convergence(self.ledger, frozenset())
        self.recovered = False

    def run(self) -> PassResult:
        """The whole pass; whatever goes wrong is in its result."""
        try:
            self._run()
        except ReconcilerError as error:
            self.ledger.found(error)
        except Exception as error:  # noqa: BLE001  # a defect of ours must not end the agent: what runs goes on
            self.ledger.defect(error)  # what one in `apply` left is recovered from like a crash
        return self._finish()

    def _run(self) -> None:
        parts, ledger = self.parts, self.ledger
        ledger.control = parts.state.control()
        ledger.record = load_source(parts, ledger.control)
        inventory, unproven = recover_inventory(parts, ledger.control)
        self.recovered = True
        if parts.unsafe_first_use:
            ledger.notes.warn("unsafe: a first head is taken whatever it is (--unsafe-trust-first-use)")
        if ledger.control.torn_down:
            message = "everything was taken off this host by `teardown`; `reconciler resume` puts it back"
            if left := len(inventory.attachments):
                message = f"`teardown` left attachments of ours on {left} hooks; run `reconciler teardown` again"
            ledger.notes.find(Finding(reason="TornDown", message=message, exit_code=ExitCode.SUSPENDED))
            return
        wanted = decide(ledger)
        if wanted is not None:
            self.convergence = Convergence(ledger, unproven)
            self.convergence.run(wanted, inventory)
        elif not ledger.notes.findings:
            message = "no commit was ever applied here; ask the source with `reconciler apply`"
            ledger.notes.find(Finding(reason="NothingApplied", message=message, exit_code=ExitCode.ERROR))

    def _finish(self) -> PassResult:
        ledger, done = self.ledger, self.convergence
        # What could not be read is not replaced: a record that was lost, damaged or is newer stays the evidence of it.
        if self.recovered and not self.request.dry_run:
            try:
                ledger.spend_acceptance()
                self.parts.state.save_source(ledger.record)
            except StateError as error:
                ledger.found(error)
        seconds = self.parts.clock.monotonic() - self.started
        status = summarize(ledger, wanted=done.wanted, made=done.plan, outcome=done.outcome, seconds=seconds)
        if not self.request.dry_run:
            try:
                self.parts.state.save_status(encode_json(status))
            except StateError:
                ledger.notes.warnings.append("the status file could not be written")
        return PassResult(
            status=status,
            plan=done.plan,
            outcome=done.outcome,
            wanted=done.wanted,
            retry_now=ledger.notes.retry_now,
            transient=ledger.notes.transient,
            retry_after=ledger.notes.retry_after,
        )
