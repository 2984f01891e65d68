"""Mirror an output folder into MLflow.

The folder is the truth: training and comparing write their results there and never wait for a
tracking server. :func:`track` sends what the server does not have yet, as often as it is called.
"""

import shlex
from pathlib import Path

from filelock import FileLock

from isomax_adapters.mlflow.tracking.errors import Failures, TrackingError, shown
from isomax_adapters.mlflow.tracking.mirror import Mirror
from isomax_adapters.mlflow.tracking.places import open_run, uri_for
from isomax_adapters.mlflow.tracking.registry import check_registered
from isomax_adapters.mlflow.tracking.server import connect, talking


def track(
    folder: str | Path,
    uri: str | None = None,
    unfinished: str | None = None,
    within: str | None = None,
) -> str:
    """Send an output folder of ``isomax compare`` or ``isomax train`` to MLflow.

    One parent run, one child run for each loss and seed: parameters, tags, datasets, metrics of
    every epoch, results, plots and models. What has been sent is not sent again; a run that is
    there is continued.

    :param folder: the output folder
    :param uri: any tracking URI of MLflow's; if not given, ``MLFLOW_TRACKING_URI``, the one that
        was used last, or an SQLite file in the folder
    :param unfinished: status of runs that have no results yet: ``RUNNING``, ``FAILED`` or
        ``KILLED``; left as it is if not given
    :param within: the id of a run that the parent run becomes a child of; the active one, or the
        one of ``MLFLOW_RUN_ID``, if not given
    :return: the tracking URI that was used
    :raises TrackingError: if the server cannot be reached or refuses something; what can be sent
        has been sent then
    """
    folder = Path(folder).resolve()
    if not (folder / "settings.json").is_file():
        raise TrackingError(
            f"{folder} is no output folder of isomax (it has no settings.json)",
            "give the one of a training or comparison",
        )
    uri = uri_for(folder, uri)
    within = within or open_run(uri)
    failures, finished = Failures(), False
    try:
        with FileLock(folder / ".tracking.lock"):
            finished = _send(folder, uri, unfinished, within, failures)
    except Exception as error:  # whatever a store's client raises
        failures.errors.append(error)
    if failures.errors:
        raise TrackingError(
            f"cannot track to {shown(uri)}: {failures}",
            f"the results are in {folder}, send what is missing with 'isomax track {folder}'",
        ) from failures.errors[0]
    if finished and unfinished is None:
        check_registered(folder)
    return uri


def _send(
    folder: Path, uri: str, unfinished: str | None, within: str | None, failures: Failures
) -> bool:
    """Everything small first, as files are what fails. Returns whether the work is finished."""
    live = unfinished == "RUNNING"
    with talking():
        client = connect(uri)
        parent = Mirror(client, uri, folder, folder, within, failures, live)
        mirrors = [parent]
        for run in sorted((folder / "runs").glob("*/settings.json")):
            with failures.collected():
                child = Mirror(client, uri, folder, run.parent, parent.run_id, failures, live)
                mirrors.append(child)
        for mirror in mirrors:
            mirror.send_numbers(unfinished)
    with talking(uploads=True):
        for mirror in mirrors:
            mirror.send_files()
    return parent.finished


def ui_command(uri: str) -> str:
    """The command that opens MLflow's user interface on a tracking URI."""
    if uri.startswith(("http://", "https://")):
        return f"open {shown(uri)}"
    return f"mlflow ui --backend-store-uri {shlex.quote(shown(uri))}"
