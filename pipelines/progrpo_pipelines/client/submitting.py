"""Start a run, follow it, and give the verdict: what ``progrpo submit`` does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from rich.console import Console

from progrpo.errors import ConfigError
from progrpo_pipelines.client.api import Api
from progrpo_pipelines.client.artifacts import read_logs
from progrpo_pipelines.client.display import open_display
from progrpo_pipelines.client.errors import ApiError, ExitCode
from progrpo_pipelines.client.interrupts import Interrupts
from progrpo_pipelines.client.logs import executor_output, last_error, read_log, without_secrets
from progrpo_pipelines.client.result import Result, find_links, headline
from progrpo_pipelines.client.starting import Request, settle_race, start, terminate
from progrpo_pipelines.client.waiting import (
    CANCELLING,
    TaskRow,
    WaitTimeoutError,
    follow,
    task_rows,
    was_cancelled,
)
from progrpo_pipelines.durations import duration

Ending = Literal["terminate", "leave"]
_LOGS = 5  # of tasks that failed are read at most
_TERMINATE_PATIENCE_S = 5.0  # CI systems kill a cancelled job some seconds after they asked it to end


@dataclass(frozen=True)
class Waiting:
    """How to wait for a run.

    Attributes:
        wait: follow the run to its end; if not, the verdict is only that it was started.
        timeout_s: seconds to wait at most.
        poll_s: seconds between looks.
        on_timeout: what happens to a run that has not ended in time.
        on_interrupt: asked at Ctrl-C or SIGTERM; None goes on waiting.
    """

    wait: bool = False
    timeout_s: float = float("inf")
    poll_s: float = 10.0
    on_timeout: Ending = "leave"
    on_interrupt: Callable[[], Ending | None] = lambda: "leave"


class Submission:
    """One submission: what is known of it so far, from which the verdict is made at any point.

    Args:
        api: the server.
        request: what to run.
        waiting: how to wait for it.
        console: where progress is shown.
        interrupts: the signals, taken over.
    """

    def __init__(self, api: Api, request: Request, waiting: Waiting, console: Console, interrupts: Interrupts) -> None:
        self._api, self._request, self._waiting = api, request, waiting
        self._console, self._interrupts = console, interrupts
        self._began = api.clock()
        self._tasks = request.package.tasks()
        self._runs = request.package.training_runs(request.arguments)
        self._adopted = self._cancelling = False
        self._report: str | None = None
        self.run: Any = None
        self._rows: list[TaskRow] = []

    def __call__(self) -> Result:
        """Start the run, and follow it if that is wanted; errors of the API become the verdict."""
        try:
            started = start(self._api, self._request)
            self.run = started.run  # known from here on, whatever comes
            started = settle_race(self._api, self._request, started)
            self.run, self._adopted = started.run, started.adopted
            verb = "adopted, started earlier by the same request" if started.adopted else "started"
            self._say(f"run {self.run.run_id} {verb}: {self._url}")
            if not self._waiting.wait:
                return self._result(ExitCode.SUCCEEDED, f"the run was {verb}; nothing waits for its end (--wait does).")
            return self._follow()
        except KeyboardInterrupt:
            return self._interrupted((self.run is not None and self._waiting.on_interrupt()) or "leave")
        except ApiError as error:
            return self._result(ExitCode.API, str(error))
        except ConfigError as error:
            if self.run is None:
                raise
            return self._result(ExitCode.API, str(error))  # such as a token file that is gone by now

    def _follow(self) -> Result:
        deadline = self._api.clock() + self._waiting.timeout_s
        while True:
            try:
                self._interrupts.check()  # one that came while the run was being started
                with open_display(self._console) as show:
                    for run in follow(self._api, self.run, deadline=deadline, poll_s=self._waiting.poll_s):
                        self.run = run
                        self._cancelling |= run.state == CANCELLING
                        self._rows = task_rows(self.run, self._tasks, self._runs)
                        show(self.run, self._rows, len(self._tasks))
                return self._verdict()
            except WaitTimeoutError:
                return self._timed_out()
            except KeyboardInterrupt:
                if (ending := self._waiting.on_interrupt()) is not None:
                    return self._interrupted(ending)

    def _verdict(self) -> Result:
        if self._cancelling or was_cancelled(self.run):
            return self._result(ExitCode.CANCELLED, "the run was cancelled before it ended.")
        if self.run.state == "SUCCEEDED":
            return self._result(ExitCode.SUCCEEDED, self._conclusion())
        if self.run.state == "SKIPPED":
            return self._result(ExitCode.FAILED, "the run was skipped: nothing was run, so there is no result.")
        failed = [row for row in self._rows if row.state == "FAILED"]
        errors = {row.name: self._error_of(row, alone=len(failed) == 1) for row in failed[:_LOGS]}
        self._rows = [replace(row, error=errors.get(row.name) or "") for row in self._rows]
        causes = [f"{row.title}: {errors.get(row.name) or 'the server has no log of it'}" for row in failed[:_LOGS]]
        causes += [row.title for row in failed[_LOGS:]]
        logs = "Its log is" if len(failed) == 1 else "The logs are"
        what = f"the run failed: {'; '.join(causes)}" if causes else "the run failed"
        return self._result(ExitCode.FAILED, f"{what}. {logs} on the run's page.")

    def _error_of(self, row: TaskRow, *, alone: bool) -> str | None:
        """The last error in a task's log, of which the server or the object store may have it."""
        text = read_log(self._api, self.run.run_id, row.pods)
        if text is None and alone:  # the store does not say which iteration a log is of
            name = row.name.partition(" #")[0]
            request = self._request
            text = next(iter(read_logs(self.run, request.package, name, request.pipeline_root, self._api.notify)), None)
        error = None if text is None else last_error(text)
        return None if error is None else self._public(error)

    def _public(self, text: str) -> str:
        return without_secrets(text, self._api.connection.token(), self._api.connection.cookie())

    def _conclusion(self) -> str:
        """What the run came to: the last metrics that a task has put out, and where its report is."""
        concluding = {task.title: task.outputs for task in self._tasks if "system.Metrics" in task.outputs.values()}
        row = next((row for row in reversed(self._rows) if row.title in concluding), None)
        text = None if row is None else read_log(self._api, self.run.run_id, row.pods)
        if row is None or text is None:
            return "the run succeeded. Its results are on the run's page."
        artifacts = executor_output(text).get("artifacts", {})
        found = {
            type_: artifacts[name]["artifacts"][0]
            for name, type_ in concluding[row.title].items()
            if artifacts.get(name, {}).get("artifacts")
        }
        numbers = headline(found.get("system.Metrics", {}).get("metadata", {}))
        self._report = self._api.connection.artifact_url(
            found.get("system.HTML", {}).get("uri", ""), self._api.connection.namespace
        )
        report = f" Report: {self._report}" if self._report else ""
        results = f" {row.title}: {self._public(numbers)}." if numbers else " Its results are on the run's page."
        return f"the run succeeded.{results}{report}"

    def _timed_out(self) -> Result:
        limit = duration(self._waiting.timeout_s)
        left_at = f"the run has not ended in {limit}; its last state was {self.run.state or 'PENDING'}"
        if not self._rows:
            left_at += " and no task of it has started: look for unschedulable pods (GPU quota, node selector, queue)"
        if self._waiting.on_timeout == "terminate":
            _, ending = self._end()
        else:
            ending = "It goes on; --exit-on-timeout terminate would have ended it."
        return self._result(ExitCode.TIMEOUT, f"{left_at}. {ending}")

    def _interrupted(self, ending: Ending) -> Result:
        self._interrupts.ignore()
        if self.run is None:
            return self._result(
                ExitCode.INTERRUPTED, "a signal came before the server answered; no run is known to have been started."
            )
        if ending == "terminate":
            ended, text = self._end()
            return self._result(ExitCode.CANCELLED if ended else ExitCode.API, f"a signal ended the waiting. {text}")
        return self._result(ExitCode.INTERRUPTED, "a signal ended the waiting; the run goes on.")

    def _end(self) -> tuple[bool, str]:
        try:
            self._api.patience_s = _TERMINATE_PATIENCE_S
            terminate(self._api, self.run.run_id)
        except ApiError as error:
            return False, f"The run could NOT be ended and goes on: {error}"
        return True, "The run was told to end."

    @property
    def _url(self) -> str | None:
        return self._api.connection.run_url(self.run.run_id) if self.run is not None else None

    def _result(self, code: ExitCode, message: str) -> Result:
        known = Result(
            exit_code=code,
            message=message,
            pipeline=self._request.package.name,
            experiment=self._request.experiment,
            name=self._request.name,
            waited_s=self._api.clock() - self._began,
        )
        if self.run is None:
            return known
        return replace(
            known,
            name=self.run.display_name,
            run_id=self.run.run_id,
            url=self._url,
            state=self.run.state,
            adopted=self._adopted,
            tasks=tuple(self._rows),
            links=({"Report": self._report} if self._report else {}) | find_links(self.run),
        )

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
