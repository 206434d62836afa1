"""Running every method of a session along the reference's texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs
import numpy as np

from lora_core.adapters.adapter import Adapter
from lora_core.errors import LoraCoreError
from lora_core.events import Emit, StageAdvanced, stage
from lora_core.limits import Limits
from lora_core.models.reference_model import ReferenceModel, Trace
from lora_core.runtime.session import Session
from lora_core.verification import judging
from lora_core.verification.finding import Finding, found, unchecked
from lora_core.verification.kv_cache import follow, kv_cache
from lora_core.verification.numbers import Effect, Numbers, compare, effect

if TYPE_CHECKING:
    import numpy.typing as npt

_STAGE = "Compare"


@attrs.frozen(kw_only=True)
class MethodNumbers:
    """What was measured of one method; None where there was no reference for it, or nothing could be run."""

    method: str
    adapter: str | None
    numbers: Numbers | None = None
    effect: Effect | None = None


@attrs.frozen(kw_only=True)
class Measured:
    """Numbers of every method, and what they show."""

    methods: tuple[MethodNumbers, ...]
    findings: tuple[Finding, ...]


@attrs.define(kw_only=True)
class Bench:
    """Where sessions are measured: what stays the same for all methods of a bundle.

    `remembers` is False for a module that takes given inputs: what it is fed is no text that could go on. `fitted`
    names the adapters that are fitted to the exported base, and compared with what they were made of.
    """

    session: Session
    reference: ReferenceModel
    prompts: Sequence[tuple[int, ...]]
    tokens: int
    limits: Limits
    adapters: dict[str, Adapter]
    emit: Emit
    remembers: bool = True
    fitted: frozenset[str] = frozenset()
    _traces: dict[str | None, list[Trace]] = attrs.field(factory=dict, init=False)
    _logits: dict[str | None, list[npt.NDArray[np.float32]]] = attrs.field(factory=dict, init=False)

    def measure(self) -> Measured:
        """Load and run every method, the base first, and compare."""
        methods = sorted(self.session.bundle.manifest.methods, key=lambda each: (each.adapter is not None, each.name))
        measured, findings = [], []
        with stage(self.emit, _STAGE):
            for done, method in enumerate(methods, 1):
                numbers, shown = self._method(method.name, method.adapter)
                measured.append(numbers)
                findings += shown
                self.emit(StageAdvanced(stage=_STAGE, done=done, total=len(methods) + 1))
            findings.append(self._kv_cache())
        return Measured(methods=tuple(measured), findings=tuple(findings))

    def _method(self, name: str, adapter: str | None) -> tuple[MethodNumbers, list[Finding]]:
        known = adapter is None or adapter in self.adapters
        lacking = self.reference.unloaded(adapter) if adapter is not None and known else ()
        if lacking:
            numbers, findings = self._run(name, adapter, known=False)
            told = [each for each in findings if each.check != "logits"]
            return numbers, [found("reference", name, list(lacking)), *told]
        return self._run(name, adapter, known=known)

    def _run(self, name: str, adapter: str | None, *, known: bool) -> tuple[MethodNumbers, list[Finding]]:
        # Without its source an adapter has no reference; it is run along the base's texts.
        traces = [self.reference.trace(adapter if known else None, prompt, self.tokens) for prompt in self.prompts]
        try:
            self.session.load(adapter)
            logits = [follow(self.session, adapter, trace, self.tokens) for trace in traces]
        except LoraCoreError as error:
            return MethodNumbers(method=name, adapter=adapter), [found("runs", name, [str(error)])]
        self._traces[adapter], self._logits[adapter] = traces, logits
        finite = bool(np.isfinite(np.concatenate(logits)).all())
        findings = [found("runs", name, [] if finite else ["its logits are not all finite"])]
        if not finite:
            return MethodNumbers(method=name, adapter=adapter), findings
        numbers = compare(traces, logits, tie=self.limits.tie) if known else None
        if numbers is None:
            findings.append(unchecked("logits", name, f"say --adapter {adapter}=DIR to compare it with a reference"))
        else:
            findings.append(judging.logits(name, numbers, self.limits))
        measured = None
        if adapter is not None and None in self._logits:
            measured, finding = self._effect(name, adapter, known=known)
            findings.append(finding)
        return MethodNumbers(method=name, adapter=adapter, numbers=numbers, effect=measured), findings

    def _effect(self, name: str, adapter: str, *, known: bool) -> tuple[Effect | None, Finding]:
        base, own = ([rows[0] for rows in self._logits[key]] for key in (None, adapter))
        changed = not np.array_equal(base, own)
        measured = None
        if known:
            sides = ((self._traces[None], self._traces[adapter]), (self._logits[None], self._logits[adapter]))
            measured = effect(*sides, fitted=adapter in self.fitted)
        source = self.adapters.get(adapter)
        finding = judging.takes_effect(name, changed=changed, adapter=source, measured=measured, limits=self.limits)
        return measured, finding

    def _kv_cache(self) -> Finding:
        if not self.remembers:
            return unchecked("kv-cache", "bundle", "the module is called with given inputs, and remembers nothing")
        ran = [adapter for adapter, logits in self._logits.items() if np.isfinite(np.concatenate(logits)).all()]
        if not ran:
            return unchecked("kv-cache", "bundle", "no method runs")
        first = {adapter: self._logits[adapter][0] for adapter in ran}
        return kv_cache(self.session, ran, first, {adapter: self._traces[adapter][0] for adapter in ran})
