"""The program of a participation, which the site's worker alone starts."""

from contextlib import suppress
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.engine import handle_engine_signals
from prefect.flow_engine import run_flow
from prefect.states import Failed

from deploy.worker import Parameters, parameters_of
from flows.data_sets import DataSet
from flows.engine import patient, patient_engine
from flows.logs import keep_log
from flows.participation import Seat, participate, seated
from flows.policy import Policy
from flows.sandbox.sandboxed import SandboxedWorkshops
from flows.settings import SettingsError, SiteFolder
from flows.site import Site

_warm: list[SandboxedWorkshops] = []


def ready(folder: Path) -> None:
    """In the warm parent, where no program needs the processor: have a task process's PyTorch loaded for the next."""
    if not _warm:
        with suppress(SettingsError):
            opened = SiteFolder.read(folder).open_workshops()
            if isinstance(opened, SandboxedWorkshops):
                _warm.append(opened)


def started() -> None:
    """In the warm parent: what was loaded is the program's that was forked."""
    while _warm:
        _warm.pop().let_go()


def main(folder: Path, run_id: UUID) -> None:
    """Take part in a training with the folder's vault, data and policy, or say on the server why not.

    Args:
        folder: the site's.
        run_id: of the participation's flow run.
    """
    with patient(get_client(sync_client=True)) as client:
        run = client.read_flow_run(run_id)
        try:
            if (asked := parameters_of(run)) is None:
                raise SettingsError("the parameters are not those of a participation")
            seat = _seat(SiteFolder.read(folder), client, run, asked)
        except SettingsError as error:
            client.set_flow_run_state(run_id, Failed(message=str(error)), force=True)
            return
        seated(seat)
        with patient_engine(), handle_engine_signals(run_id):
            run_flow(participate, flow_run=run, parameters=asked.model_dump(), return_type="state")


def _seat(folder: SiteFolder, client: SyncPrefectClient, run: FlowRun, asked: Parameters) -> Seat:
    workshops = folder.open_workshops(_warm.pop() if _warm else None)
    keep_log("fedseal", folder.folder / "site.log")
    vault, consortium, exchange = folder.open_vault(), folder.consortium, folder.open_exchange()
    folder.check_identity(vault.identity, consortium)

    def settings() -> tuple[dict[str, DataSet], Policy]:
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
