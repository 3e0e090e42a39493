"""TensorBoard as a mirror: event files in the run's directory."""

import sys
import time
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsv3.train.mirrored import MirroredRun


class TensorBoardBackend:
    """Event files under `tensorboard/`, steps that are done again hidden.

    TensorBoard calls a run by its directory; group, name and tags are among the texts.
    """

    def __init__(self, run: MirroredRun) -> None:
        # TensorBoard's own switch for its stub: where TensorFlow is installed it would otherwise
        # be imported, for seconds and gigabytes.
        sys.modules.setdefault(
            "tensorboard.compat.notf", types.ModuleType("tensorboard.compat.notf")
        )
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise RuntimeError("tensorboard is missing: pip install 'dsv3[tensorboard]'") from error
        self._event = event_pb2.Event
        self._summary = summary_pb2.Summary
        self._writer = EventFileWriter(str(Path(run.directory) / "tensorboard"), flush_secs=10)
        self._started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self.roll_back(run.first_step - 1)
        as_text = summary_pb2.SummaryMetadata(
            plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
        )
        names = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[_names(run).encode()])
        text = self._summary.Value(tag="run", metadata=as_text, tensor=names)
        self._add(run.first_step - 1, summary=self._summary(value=[text]))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one scalar per number."""
        scalars = [
            self._summary.Value(tag=name, simple_value=value) for name, value in values.items()
        ]
        self._add(step, summary=self._summary(value=scalars))

    def roll_back(self, to_step: int) -> None:
        """Have readers drop what they know of later steps."""
        self._add(to_step + 1, session_log=self._started)

    def close(self) -> None:
        """Flush the event file."""
        self._writer.close()

    def _add(self, step: int, **what: Any) -> None:
        self._writer.add_event(self._event(wall_time=time.time(), step=step, **what))


def _names(run: MirroredRun) -> str:
    """Group, name and tags as a Markdown list."""
    tags = ", ".join(run.tags)
    return f"* name: {run.name}\n* group: {run.group}\n* tags: {tags}\n* id: {run.id}\n"
