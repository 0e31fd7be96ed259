"""Setters of Options about profiles, caches, logs and names: nothing here changes what a model computes."""

from __future__ import annotations

from ..checks import require, require_positive_int
from .base import OptionsDict, option
from .groups import PopartOptions

_LOCATION_EXCLUDES = ["/torch/", "/poptorch/"]


class ReportingOptions(OptionsDict):
    """The part of Options that says what is shown, kept and named, and how."""

    _popart: PopartOptions

    def __init__(self, **default_values: object) -> None:
        super().__init__(
            log_dir=".",
            max_repeat_logs=4,
            module_namescope_enabled=True,
            relax_optimizer_checks=False,
            show_progress_bar=True,
            source_location_excludes=list(_LOCATION_EXCLUDES),
            **default_values,
        )
        self._popart = PopartOptions()

    @option
    def enableExecutableCaching(self, path: str | None) -> ReportingOptions:
        """Keeps compiled executables in the folder `path`; None or "" turns it off."""
        require(path is None or isinstance(path, str), f"enableExecutableCaching() expects a path, got {path!r}")
        self._popart.store("enableEngineCaching", bool(path))
        self._popart.store("cachePath", path or "")

    @option
    def enableProfiling(self, profile_dir: str | None = None) -> ReportingOptions:
        """Writes Poplar's profile to `profile_dir`."""
        engine_options = dict(self._popart.get("engineOptions", {}))
        engine_options["autoReport.all"] = "true"
        if profile_dir is not None:
            engine_options["autoReport.directory"] = profile_dir
        self._popart.store("engineOptions", engine_options)

    @option
    def enableStableNorm(self, enabled: bool) -> ReportingOptions:
        """Slower, more stable normalisation layers. AssertionError unless a bool."""
        require(isinstance(enabled, bool), f"enableStableNorm() expects a bool, got {enabled!r}")
        self._popart.store("enableStableNorm", enabled)

    @option
    def logCycleCount(self, log_cycle_count: bool) -> ReportingOptions:
        """Counts the device's cycles. AssertionError unless a bool."""
        require(isinstance(log_cycle_count, bool), f"logCycleCount() expects a bool, got {log_cycle_count!r}")
        self._popart.store("instrumentWithHardwareCycleCounter", log_cycle_count)

    @option
    def logDir(self, log_dir: str) -> ReportingOptions:
        """Folder of PopTorch's own log files. AssertionError unless a str."""
        self.set(log_dir=log_dir)

    @option
    def maxRepeatLogs(self, max_lines: int | None) -> ReportingOptions:
        """How often a repeated log line is shown; None means always."""
        self.deleteIfExists("max_repeat_logs")
        if max_lines is not None:
            require_positive_int("max_lines", max_lines)
            self.createOrSet(max_repeat_logs=max_lines)

    @option
    def modelName(self, name: str) -> ReportingOptions:
        """Name of the model in profiles. AssertionError unless a str."""
        require(isinstance(name, str), f"modelName() expects a string, got {name!r}")
        self.createOrSet(model_name=name)

    @option
    def showCompilationProgressBar(self, show: bool = True) -> ReportingOptions:
        """Whether progress is drawn. AssertionError unless a bool."""
        self.set(show_progress_bar=show)

    @option
    def relaxOptimizerAttributesChecks(self, relax: bool = True) -> ReportingOptions:
        """Unexpected optimizer attributes are logged at debug level only. AssertionError unless a bool."""
        self.set(relax_optimizer_checks=relax)

    @option
    def disableModuleNamescope(self) -> ReportingOptions:
        """Operations are no longer named after their modules."""
        self.set(module_namescope_enabled=False)

    @option
    def sourceLocationExcludes(self, excludes: list[str]) -> ReportingOptions:
        """Parts of paths that are skipped when the source line of an operation is looked up."""
        self.set(source_location_excludes=list(excludes))

    @option
    def appendToLocationExcludes(self, *excludes: str) -> ReportingOptions:
        """As sourceLocationExcludes(), added to what is there."""
        self.set(source_location_excludes=[*self.source_location_excludes, *excludes])
