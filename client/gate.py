"""The gate: every request is written down, held against the hospital's policy, and its answer is screened before it leaves."""

import hashlib
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from flwr.app import Context, Message

from client import policy, private, secagg
from client.app import Node
from client.audit import AuditLog
from client.hospital import Hospital
from client.policy import Asked, SitePolicy
from client.secagg import Shield, Terms
from client.stub import BUNDLE
from client.suppression import suppress
from common import chain, flower, messages
from common.errors import FedwardError, PolicyRefused, UpdateRejected
from common.messages import EVALUATE, STATISTICS, TRAIN, Reply, Request
from common.tasks import task_of
from common.tasks.task import rows_of


@dataclass
class Gate:
    """Answers messages for one hospital: in front of the worker, and with the last word. The policy's file is read anew when it changes.

    What it remembers of messages, rounds and training is in the audit log alone, so that a restart forgets nothing. ``key`` is the site's secret by which small cells are gathered.
    """

    hospital: Hospital
    worker: Node
    policy: Path
    audit: AuditLog
    coordinator: str
    shield: Shield | None = None
    key: bytes = field(default_factory=partial(os.urandom, 32), repr=False)
    _read: tuple[int, SitePolicy, str] | None = None

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer, or raise what keeps the hospital from it; the audit log has every case."""
        who = _identity(message)
        again = self.audit.seen(message.metadata.message_id)
        try:
            request = messages.unpack_request(message.content)
            asked = self._asked(message, context, request)
            who |= _progress(request)
            self.audit.append("asked", who | _facts(asked) | self._digests(request))
            self._check_fresh(message, request, again)
            policy.permits(self._policy(), asked)
            if asked.kind == EVALUATE and request.config.privacy.at_hospitals:
                self.hospital.ledger.finish(request.run)  # a final model is judged once training is over
            if asked.kind == TRAIN:
                _check_local(request)
            self._check_privacy(asked)
            self.audit.append("allowed", who)
            return self._answer(message, context, request, who)
        except FedwardError as error:
            self.audit.append(*_unanswered(error, who))
            raise
        except Exception:  # whatever went wrong, the log has every case; the border makes a code of it
            self.audit.append("failed", who | {"code": "failed"})
            raise

    def _answer(self, message: Message, context: Context, request: Request, who: Mapping[str, str | int]) -> Message:
        rules = self._policy()
        terms = Terms(rules.limits.min_cohort, rules.allow.cohort)
        answer = secagg.answer(
            self.shield, message, context, request, lambda: self._screened(message, context, who), terms
        )
        if "revealed" in answer.arrays:
            self.audit.append("opened", {**who, **self.audit.covered(str(message.metadata.run_id))})
        reply = Message(messages.pack_reply(answer), reply_to=message)
        content = flower.content_bytes(reply.content)
        sent: dict[str, str | int | float] = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
            "norm": _norm(answer),
        }
        self.audit.append("sent", {**sent, **who})
        # After the line on this very answer, so that the log promises it too; the digest in that line is of the answer without this.
        reply.content.config_records["config"][chain.CHECKPOINT] = chain.checkpoint_text(self.audit.checkpoint())
        return reply

    def _screened(self, message: Message, context: Context, who: Mapping[str, str | int]) -> Reply:
        """Have the worker answer, and leave out what the policy keeps here."""
        begun, kind = time.monotonic(), message.metadata.message_type
        answer = messages.unpack_reply(self.worker(message, context).content)
        if kind == TRAIN:
            self.audit.append("trained", {**who, "rounds": 1, "seconds": round(time.monotonic() - begun, 3)})
        if "event" in answer.texts:
            delta = self._policy().privacy.delta
            self.audit.append("spent", {**who, "epsilon": self.hospital.ledger.spent(delta), "delta": delta})
        if kind == TRAIN and not math.isfinite(_norm(answer)):
            raise UpdateRejected("nan", "the model sent is one from which training makes no numbers")
        kept = suppress(answer.statistics, self._policy(), self.key)
        # How many test patients there are is told with their figures or not at all.
        withheld = kind == EVALUATE and not messages.group("test", kept)
        return Reply(answer.arrays, kept, 0 if withheld else answer.num_examples, answer.texts)

    def _check_fresh(self, message: Message, request: Request, again: bool) -> None:
        """Refuse what was answered before, a round before the last one that the run was allowed, and what is summed already: of two sums the difference would tell who is in one alone.

        A run that was resumed is another run to Flower.
        """
        if again:
            raise PolicyRefused("this message was answered before; it is ignored", "replay")
        run, kind = str(message.metadata.run_id), message.metadata.message_type
        number = int(request.options.get("server-round", 0))
        last = self.audit.last_round(run)
        if kind == TRAIN and number < last:
            raise PolicyRefused(f"round {number} came after round {last} of the same run", "stale")
        if self.audit.opened(run, kind, number):
            raise PolicyRefused("this hospital has helped to open the sum of the same question already", "stale")

    def _check_privacy(self, asked: Asked) -> None:
        """Hold the epsilon of what the whole run would release here, as this hospital reckons it, against the policy: the run's own word is not enough."""
        if asked.kind in (STATISTICS, TRAIN) and asked.config.privacy.at_hospitals:
            policy.holds(self._policy(), private.run_epsilon(self.hospital, asked.config))

    def _policy(self) -> SitePolicy:
        changed = self.policy.stat().st_mtime_ns
        if self._read is None or self._read[0] != changed:
            text = policy.text_of(self.policy)
            digest = hashlib.sha256(text.encode()).hexdigest()
            self._read = changed, policy.parse_policy(text, str(self.policy)), digest
        return self._read[1]

    def _asked(self, message: Message, context: Context, request: Request) -> Asked:
        options = request.options
        rounds, seconds = self.audit.trained()
        return Asked(
            message.metadata.message_type,
            request.config.task,
            request.config,
            self.coordinator,
            str(context.node_config.get(BUNDLE, "")),
            round=int(options.get("server-round", 0)),
            cohort=tuple(filter(None, str(options.get("cohort", "")).split("\n"))),
            hospitals=int(options.get("hospitals", 0)),
            rows=rows_of(self.hospital.train),
            parameters=len(request.arrays.get("weights", ())),
            rounds_today=rounds,
            hours_today=seconds / 3600.0,
            epsilon=request.config.privacy.epsilon if request.config.privacy.at_hospitals else None,
            questions_today=self.audit.questions(),
            proximal=float(options.get("proximal", 0.0)),
        )

    def _digests(self, request: Request) -> dict[str, str | int]:
        """Say under which settings and rules a request came, and with which model, by their SHA-256."""
        self._policy()
        weights = request.arrays.get("weights")
        model = {} if weights is None else {"weights": hashlib.sha256(np.ascontiguousarray(weights).data).hexdigest()}
        ruled = {"policy": self._read[2]} if self._read else {}
        return {"settings": hashlib.sha256(request.run.encode()).hexdigest(), **model, **ruled}


def _check_local(request: Request) -> None:
    """Refuse to train a model of which a part would leave that the task keeps here, such as embeddings of patients: what is local is the task's to say, and not the run's.

    Of a model that is judged nothing leaves but figures, so the local-only and centralised models beside a run may come whole.
    """
    kept = task_of(request.config.task).local
    named = str(request.options.get("local-parts", "")).split(",")
    if "weights" in request.arrays and not set(kept) <= set(named):
        raise UpdateRejected(
            "layout", f"the task keeps {', '.join(kept)} at each hospital, and the model sent does not"
        )


def _identity(message: Message) -> dict[str, str | int]:
    """Say which request this is, whatever it holds."""
    metadata = message.metadata
    return {"message": metadata.message_id, "run": str(metadata.run_id), "kind": metadata.message_type}


def _progress(request: Request) -> dict[str, str | int]:
    options = request.options
    return {
        name: int(options[key]) for name, key in (("round", "server-round"), ("attempt", "attempt")) if key in options
    }


def _facts(asked: Asked) -> dict[str, str | int]:
    return {
        "task": asked.task.name,
        "hospitals": asked.hospitals,
        "parameters": asked.parameters,
        "coordinator": asked.coordinator.replace(":", "").lower(),
        "bundle": asked.bundle,
    }


def _unanswered(error: FedwardError, who: Mapping[str, str | int]) -> tuple[str, dict[str, str | int]]:
    if not isinstance(error, PolicyRefused | UpdateRejected):
        return "failed", {**who, "code": type(error).__name__}
    return ("replay", dict(who)) if error.code == "replay" else ("refused", {**who, "code": error.code})


def _norm(answer: Reply) -> float:
    """Return the Euclidean norm of all fractional numbers that an answer's arrays hold."""
    fractions = [array for array in answer.arrays.values() if array.dtype.kind == "f"]
    return math.sqrt(sum(float(np.square(array, dtype=np.float64).sum()) for array in fractions))
