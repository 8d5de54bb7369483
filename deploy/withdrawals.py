"""What the Prefect server shows of a withdrawal: a cancelled participation, after which no other is started (SPEC 6.9).

Nothing there decides anything: a site that has withdrawn refuses each participation by its own vault.
"""

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterName,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed

from deploy.server_check import trouble_of
from flows.engine import patient
from flows.settings import SiteFolder

TAKEN_BACK = "The site has taken its withdrawal back."


def forget_withdrawal(site: SiteFolder, training: str) -> str:
    """Have a site's cancelled participations in a training no longer say that it has withdrawn.

    Returns:
        What is wrong with the server; empty where it was told.
    """
    cancelled = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CANCELLED]))
    name = FlowRunFilterName(like_=f"{training}-{site.name}-")
    try:
        with (
            temporary_settings({PREFECT_API_URL: site.prefect.url}),
            patient(get_client(sync_client=True)) as client,
        ):
            for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(name=name, state=cancelled)):
                client.set_flow_run_state(run.id, Crashed(message=TAKEN_BACK), force=True)
    except (httpx.HTTPError, ValueError) as error:
        return trouble_of(site.prefect, error).reason
    return ""
