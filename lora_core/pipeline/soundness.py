"""Whether a bundle is what its manifest says, as far as a change of it builds on that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from lora_core.bundle.bundle import Artifact, Bundle
from lora_core.bundle.paths import MANIFEST
from lora_core.bundle.store import base_problems, hash_problems, verify_hashes
from lora_core.errors import BundleError, LoraCoreError, PluginError, Problem


def damage(bundle: Bundle) -> Iterator[Problem]:
    """Yield what is wrong with the files that adapters are linked against, or a program is written anew from.

    Sizes always, those of adapters as far as opening a bundle looks at them; the bytes of what linking reads
    (templates), and of every file of the base that changed after the manifest was written: the foundation is far too
    large to be read each time.
    """
    wrong = set()
    for problem in base_problems(bundle):
        wrong.add(problem.where)
        yield problem
    written = (bundle.path / MANIFEST).stat().st_ctime_ns
    for artifact in bundle.manifest.base_artifacts:
        file = bundle.file(artifact)
        if str(file) in wrong or not file.exists():
            continue
        if artifact.role in ("template", "relocations") or file.stat().st_ctime_ns > written:
            yield from _foreign(bundle, artifact)


def rewritten_damage(bundle: Bundle, written: Iterable[Artifact]) -> Iterator[Problem]:
    """Yield a problem for each file of `bundle` that a backend wrote anew and that was not the manifest's before.

    What is written anew was read: damaged bytes would get new hashes, and never be told again.
    """
    anew, manifest = tuple(written), bundle.manifest
    owners = {artifact.adapter for artifact in anew} - {None}
    records = [record for name in sorted(map(str, owners)) if (record := manifest.record(name)) is not None]
    paths = {artifact.path for artifact in anew}
    for artifact in (*manifest.base_artifacts, *(each for record in records for each in record.artifacts)):
        if artifact.path in paths:
            yield from hash_problems(bundle, artifact)


@contextmanager
def blaming_damage(bundle: Bundle) -> Iterator[None]:
    """Run a plugin's code on `bundle`; what it stumbles over is the bundle's fault if a file is not the manifest's.

    Raises `BundleError` with every file that differs, from the plugin's error.
    """
    try:
        yield
    except (MemoryError, OSError):
        raise
    except Exception as error:
        if isinstance(error, LoraCoreError) and not isinstance(error, PluginError):
            raise
        if problems := verify_hashes(bundle):
            raise BundleError(problems) from error
        raise


def _foreign(bundle: Bundle, artifact: Artifact) -> Iterator[Problem]:
    for problem in hash_problems(bundle, artifact):
        if artifact.role == "foundation":
            what = f"{artifact.path!r} is not the foundation that this bundle was made with: {problem.what}"
            yield Problem(what=what, where=problem.where, remedy=problem.remedy)
        else:
            yield problem
