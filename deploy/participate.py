"""The program of a participation: ``python -m deploy.participate FOLDER RUN``, started by the site's worker alone."""

import sys
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.engine import handle_engine_signals
from prefect.flow_engine import run_flow
from prefect.states import Failed

from deploy.worker import Parameters, end_with_worker, parameters_of
from flows.data_sets import DataSet
from flows.engine import patient, patient_engine
from flows.logs import keep_log
from flows.participation import Seat, participate, seated
from flows.policy import Policy
from flows.settings import SettingsError, SiteFolder
from flows.site import Site


def main(folder: Path, run_id: UUID) -> None:
    """Take part in a training with the folder's vault, data and policy."""
    end_with_worker()
    with patient(get_client(sync_client=True)) as client:
        run = client.read_flow_run(run_id)
        asked = parameters_of(run)
        try:
            if asked is None:
                raise SettingsError("the parameters are not those of a participation")
            seated(_seat(SiteFolder.read(folder), client, run, asked))
        except SettingsError as error:
            client.set_flow_run_state(run_id, Failed(message=str(error)), force=True)
            return
        with patient_engine(), handle_engine_signals(run_id):
            run_flow(participate, flow_run=run, parameters=asked.model_dump(), return_type="state")


def _seat(folder: SiteFolder, client: SyncPrefectClient, run: FlowRun, asked: Parameters) -> Seat:
    keep_log("fedseal", folder.folder / "site.log")
    vault, consortium, exchange = folder.open_vault(), folder.consortium, folder.open_exchange()
    folder.check_identity(vault.identity, consortium)

    def settings() -> tuple[dict[str, DataSet], Policy]:
        now = SiteFolder.read(folder.folder)
        return now.data, now.policy

    site = Site(vault, consortium, exchange, folder.data, folder.policy, only=asked.training, settings=settings)
    return Seat(site, asked.training, client, run.id, asked.training_run, exchange, folder.policy.lease_s)


if __name__ == "__main__":
    main(Path(sys.argv[1]), UUID(sys.argv[2]))
