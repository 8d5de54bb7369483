"""The program of a participation: ``python -m deploy.participate FOLDER RUN``, started by the site's worker alone."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from flows.settings import SettingsError, SiteFolder
from flows.workshop import Workshops

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

    from deploy.worker import Parameters
    from flows.data_sets import DataSet
    from flows.participation import Seat
    from flows.policy import Policy


def main(folder: Path, run_id: UUID) -> None:
    """Take part in a training with the folder's vault, data and policy.

    The parent of task processes loads PyTorch while this one loads Prefect.
    """
    worker = os.getppid()
    try:
        workshops: Workshops | SettingsError = SiteFolder.read(folder).open_workshops()
    except SettingsError as error:
        workshops = error
    take_part(folder, run_id, worker, workshops)


def take_part(folder: Path, run_id: UUID, worker: int, workshops: Workshops | SettingsError) -> None:
    """Run the participation's flow, or say on the server why not.

    Args:
        folder: the site's.
        run_id: of the participation's flow run.
        worker: the process number of the site's worker, with which this one ends.
        workshops: where tasks run, or why the folder cannot be used.
    """
    from prefect.client.orchestration import get_client
    from prefect.engine import handle_engine_signals
    from prefect.flow_engine import run_flow
    from prefect.states import Failed

    from deploy.worker import end_with_worker, parameters_of
    from flows.engine import patient, patient_engine
    from flows.participation import participate, seated

    end_with_worker()
    if os.getppid() != worker:
        return
    with patient(get_client(sync_client=True)) as client:
        run = client.read_flow_run(run_id)
        asked = parameters_of(run)
        try:
            if asked is None:
                raise SettingsError("the parameters are not those of a participation")
            if isinstance(workshops, SettingsError):
                raise workshops
            seated(_seat(SiteFolder.read(folder), client, run, asked, workshops))
        except SettingsError as error:
            client.set_flow_run_state(run_id, Failed(message=str(error)), force=True)
            return
        with patient_engine(), handle_engine_signals(run_id):
            run_flow(participate, flow_run=run, parameters=asked.model_dump(), return_type="state")


def _seat(
    folder: SiteFolder,
    client: "SyncPrefectClient",
    run: "FlowRun",
    asked: "Parameters",
    workshops: Workshops,
) -> "Seat":
    from flows.logs import keep_log
    from flows.participation import Seat
    from flows.site import Site

    keep_log("fedseal", folder.folder / "site.log")
    vault, consortium, exchange = folder.open_vault(), folder.consortium, folder.open_exchange()
    folder.check_identity(vault.identity, consortium)

    def settings() -> "tuple[dict[str, DataSet], Policy]":
        now = SiteFolder.read(folder.folder)
        return now.data, now.policy

    site = Site(
        vault,
        consortium,
        exchange,
        folder.data,
        folder.policy,
        only=asked.training,
        settings=settings,
        workshops=workshops,
    )
    return Seat(site, asked.training, client, run.id, asked.training_run, exchange, folder.policy.lease_s)


if __name__ == "__main__":
    main(Path(sys.argv[1]), UUID(sys.argv[2]))
