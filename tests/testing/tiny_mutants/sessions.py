"""Mutants whose sessions remember, leak or lie."""

import numpy as np
from lora_core_tiny.session import TinySession

from lora_core.backend import Diagnosis
from lora_core.capability import Capability
from lora_core.errors import Problem, UnsupportedError, UsageError
from tiny_mutants.mutant import Mutant, mutant


class Anything:
    """A rule for the cache that allows everything."""

    def __init__(self, filled=0):
        self.filled = filled

    def check(self, adapter, position, count):
        if not count or position < 0:
            raise UsageError("impossible")

    def wrote(self, adapter, position, count):
        self.filled = position + count

    def reset(self):
        pass


@mutant("kv-cache")
class CacheSurvivesChange(Mutant):
    """The cache survives a change of adapter."""

    class session(TinySession):
        def step(self, adapter, tokens, position):
            self._rule._owner = adapter
            return super().step(adapter, tokens, position)


@mutant("kv-cache")
class ResetDoesNothing(Mutant):
    """`reset` does nothing."""

    class session(TinySession):
        def reset(self):
            pass


@mutant("kv-cache")
class StartsInTheMiddle(Mutant):
    """A text that starts anew attends to what the last one left behind."""

    class session(TinySession):
        def __init__(self, bundle):
            super().__init__(bundle)
            self._shift = 0.0

        def step(self, adapter, tokens, position):
            logits = super().step(adapter, tokens, position) + np.float32(self._shift) * np.arange(128) % 3
            self._shift += 0.01
            return logits.astype(np.float32)


@mutant("sessions-apart")
class OneCacheForAll(Mutant):
    """All sessions of the process share one cache."""

    class session(TinySession):
        shared = None

        def __init__(self, bundle):
            super().__init__(bundle)
            OneCacheForAll.session.shared = OneCacheForAll.session.shared or self._cache
            self._cache = OneCacheForAll.session.shared


@mutant("closed")
class CloseDoesNothing(Mutant):
    """`close` does nothing."""

    class session(TinySession):
        def close(self):
            pass


@mutant("closed")
class ClosedCrashes(Mutant):
    """A closed session fails with an exception of its own."""

    class session(TinySession):
        def close(self):
            self._decoder, self._lora, self._cache = (), None, None


@mutant("facts")
class FactsLackContext(Mutant):
    """`facts` has no context length."""

    class session(TinySession):
        @property
        def facts(self):
            return {"executes": True}


@mutant("facts")
class FactsAreNoData(Mutant):
    """`facts` holds objects that no report can show."""

    class session(TinySession):
        @property
        def facts(self):
            return {**super().facts, "decoder": self._decoder}


@mutant("facts")
class LoadsTellNothing(Mutant):
    """`load` returns nothing."""

    class session(TinySession):
        def load(self, adapter):
            super().load(adapter)


@mutant("context-length")
class ContextIsText(Mutant):
    """`facts` gives the context length as text."""

    class session(TinySession):
        @property
        def facts(self):
            return {**super().facts, "context_len": str(self._context_len)}


@mutant("adapter-unknown")
class StrangersAreTheBase(Mutant):
    """An adapter that the bundle does not have answers as the base."""

    class session(TinySession):
        def load(self, adapter):
            return super().load(adapter if adapter in self._files else None)

        def step(self, adapter, tokens, position):
            return super().step(adapter if adapter in self._files else None, tokens, position)


@mutant("adapter-unknown")
class StrangersCrash(Mutant):
    """An adapter that the bundle does not have is a KeyError."""

    class session(TinySession):
        def load(self, adapter):
            return super().load(adapter if adapter is None or self._files[adapter] else None)


@mutant("step-impossible")
class NothingIsFed(Mutant):
    """A step without tokens is an IndexError."""

    class session(TinySession):
        def step(self, adapter, tokens, position):
            return super().step(adapter, tokens if tokens[0] >= 0 else (), position)


@mutant("step-impossible")
class NegativePositions(Mutant):
    """A negative position counts from the end of the cache."""

    class session(TinySession):
        def step(self, adapter, tokens, position):
            return super().step(adapter, tokens, position if position >= 0 else 0)


@mutant("base-numbers")
class NeverOpens(Mutant):
    """RUN is declared, `diagnose` says that it works, and `open` always says that this machine cannot."""

    def open(self, bundle, options):
        raise UnsupportedError("There is no runtime on this machine.")


@mutant("works-here")
class Sick(Mutant):
    """`diagnose` finds something missing."""

    def diagnose(self):
        return Diagnosis(problems=(Problem(what="The library is missing"),))


@mutant("works-here")
class SickAndClosed(Sick):
    """`diagnose` finds something missing, and `open` refuses."""

    def open(self, bundle, options):
        raise UnsupportedError("There is no runtime on this machine.")


@mutant("works-here")
class DiagnoseCrashes(Mutant):
    """`diagnose` raises."""

    def diagnose(self):
        raise ImportError("libtiny.so")


@mutant("adapter-unknown")
class NoSession(Mutant):
    """`open` returns something that is no session."""

    def open(self, bundle, options):
        return {"bundle": bundle}


@mutant("run-undeclared", capabilities=frozenset({Capability.EXPORT, Capability.LINK}))
class RunsUndeclared(Mutant):
    """Opens bundles, and does not declare it."""


@mutant("bundle-whole")
class WritesIntoBundles(Mutant):
    """Opening a bundle leaves a cache in it."""

    class session(TinySession):
        def __init__(self, bundle):
            super().__init__(bundle)
            (bundle.path / "packed.bin").write_bytes(b"packed")


@mutant("foreign-not-opened")
class OpensForeign(Mutant):
    """Opens a bundle whose foundation is that of another model."""

    def open(self, bundle, options):
        return self.open_anyway(bundle)
