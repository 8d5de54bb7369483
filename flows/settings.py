"""What a party's own folder says: ``site.toml`` of a site, ``coordinator.toml`` of the coordinator (SPEC 6.8).

Both name the Prefect server, the exchange, the consortium file and the vault; a site's also its data and its policy.
Paths are relative to the file. Nobody but the party itself writes here: no message can change a word of it.
"""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from flows.data_sets import DataSet, DataSetsError, budget_groups
from flows.exchange import PATIENCE_S, Exchange, missing_package
from flows.policy import Policy, TaskPath
from flows.setting_words import wrong_setting
from protocols.consortium import ConsortiumError, read_consortium
from protocols.contexts import SiteName
from protocols.files import NotToml, read_toml
from protocols.keys import Consortium, Identity
from protocols.messages import COORDINATOR
from protocols.vault import Vault

if TYPE_CHECKING:  # a site's worker has no need of it
    from flows.sandbox.sandboxed import SandboxedWorkshops
    from flows.workshop import Workshops

SITE_FILE, COORDINATOR_FILE = "site.toml", "coordinator.toml"

PARTICIPATE = "participate"
"""The flow of a site's participations; its deployment for a site is named after the site."""
TRAINING, CUSTOM = "federated-training", "custom"
"""The flow of trainings, and its deployment whose form is a whole plan."""
MARK_DIGITS = 8


def mark_of(coordinator: str) -> str:
    """What tells a consortium from the others on its Prefect server: the beginning of its coordinator's key."""
    return coordinator[:MARK_DIGITS]


def marked(name: str, coordinator: str) -> str:
    """The name of a consortium's deployment at the Prefect server, which others may use too (SPEC 6.9)."""
    return f"{name}@{mark_of(coordinator)}"


def pool_of(site: str, coordinator: str) -> str:
    """The name of a site's work pool in a consortium."""
    return marked(f"site-{site}", coordinator)


def coordinator_pool(coordinator: str) -> str:
    """The name of the coordinator's work pool."""
    return marked("coordinator", coordinator)


class SettingsError(Exception):
    """A folder that cannot be used; one line that says what and how to mend it."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PrefectServer(_Table):
    """The Prefect API and how to be let in: a basic-auth string, or a key of Prefect Cloud."""

    url: Annotated[str, Field(pattern=r"^https?://")]
    auth_string: str | None = None
    api_key: str | None = None
    ca_file: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The settings as the environment variables that Prefect reads when it is first imported."""
        given = {
            "PREFECT_API_URL": self.url,
            "PREFECT_API_AUTH_STRING": self.auth_string,
            "PREFECT_API_KEY": self.api_key,
            "PREFECT_API_SSL_CERT_FILE": self.ca_file,
        }
        return {name: value for name, value in given.items() if value is not None}


class ExchangePlace(_Table):
    """Where vectors and models lie: an fsspec URL, and what its file system needs (credentials, an endpoint)."""

    url: str
    options: dict[str, Any] = Field(default_factory=dict)


class _Party(_Table):
    vault: str = "vault"
    consortium: str = "consortium.toml"
    prefect: PrefectServer
    exchange: ExchangePlace


class DataTable(_Table):
    """A data set: ``heart = "data/heart"``, or a table ``[data.heart]``."""

    path: str | None = None
    max_examples: int | None = Field(default=None, ge=1, lt=2**31)
    budget: str | None = Field(default=None, pattern=r"^[a-z0-9-]{1,40}$")


def _as_table(raw: object) -> object:
    return {"path": raw} if isinstance(raw, str) else raw


class SiteTable(_Party):
    """The fields of ``site.toml``."""

    name: SiteName
    epoch: str | None = None
    data: dict[str, Annotated[DataTable, BeforeValidator(_as_table)]] = Field(default_factory=dict)
    policy: Policy


class CoordinatorTable(_Party):
    """The fields of ``coordinator.toml``."""

    runs: str = "runs"
    templates: str = "templates"
    tasks: list[TaskPath]
    published: str = "published"
    max_trainings: int = Field(default=4, ge=1)
    resume: bool = True
    patience_s: float = Field(default=600.0, ge=0)


Fields = TypeVar("Fields", bound=_Party)


class _Folder:
    """What both kinds of folder have."""

    _lost = "put it back, or found the coordinator anew in another folder: its key is another one then"

    def __init__(self, folder: Path, table: _Party) -> None:
        self.folder = folder
        self.prefect = table.prefect
        self._party = table
        self._epoch: Path | None = None

    @property
    def consortium(self) -> Consortium:
        """The pinned keys.

        Raises:
            SettingsError: there is no good consortium file.
        """
        try:
            return read_consortium(self.folder / self._party.consortium)
        except ConsortiumError as error:
            raise SettingsError(str(error)) from None

    @property
    def exchange_url(self) -> str:
        """Where the exchange is."""
        return self._party.exchange.url

    def open_exchange(self, patience_s: float = PATIENCE_S) -> Exchange:
        """The exchange, which is tried again for some seconds when it is away.

        Raises:
            SettingsError: its URL or options are of no use.
        """
        place = self._party.exchange
        try:
            return Exchange(place.url, patience_s=patience_s, **place.options)
        except ImportError:
            missing = missing_package(place.url.partition("://")[0])
            raise SettingsError(f"{self.folder}: exchange {place.url}: cannot be used: {missing}") from None
        except (ValueError, TypeError, OSError) as error:
            why = " ".join(str(error).split())
            raise SettingsError(
                f"{self.folder}: exchange {place.url}: cannot be used ({why}): mend [exchange]"
            ) from None

    def open_vault(self) -> Vault:
        """The vault, with the identity.

        Raises:
            SettingsError: there is none, or it cannot be opened, or has no identity.
        """
        path = self.folder / self._party.vault
        if not (path / "vault.sqlite").exists():
            raise SettingsError(f"{path}: there is no vault: {self._lost}")
        try:
            vault = Vault(path, self._epoch)
        except (sqlite3.Error, OSError) as error:
            raise SettingsError(
                f"{path}: the vault cannot be opened ({error}): see to its disk and its owner"
            ) from None
        if not vault.has_identity:
            vault.close()
            raise SettingsError(f"{path}: the vault has no identity: make one with fedseal site init")
        return vault

    @property
    def vault_place(self) -> Path:
        """Where the vault is."""
        return self.folder / self._party.vault


class SiteFolder(_Folder):
    """A site's folder."""

    _lost = "where it is lost, fedseal site renew --lost makes another, with a new key"

    def __init__(self, folder: Path, table: SiteTable) -> None:
        super().__init__(folder, table)
        self._epoch = None if table.epoch is None else folder / table.epoch
        self.name = table.name
        pinned = {} if "code" in table.policy.model_fields_set else {"code": "pinned"}
        self.policy = table.policy.model_copy(update=pinned)
        self.data = {
            name: DataSet(None if one.path is None else folder / one.path, one.max_examples, one.budget)
            for name, one in table.data.items()
        }
        self._groups: dict[str, str] = {}

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read ``site.toml``.

        Raises:
            SettingsError: naming the file and the field, or the data sets that do not go together.
        """
        site = cls(folder, _read(SiteTable, folder / SITE_FILE))
        try:
            site._groups = budget_groups(site.data, site.policy.budgets)
        except DataSetsError as error:
            raise SettingsError(f"{folder / SITE_FILE}: {error}") from None
        if unused := sorted(set(site.policy.budgets) - set(site._groups.values())):
            raise SettingsError(
                f"{folder / SITE_FILE}: policy.budgets.{unused[0]}: no data set belongs to this group: name it in "
                'budget = "..." of a data set, or remove it'
            )
        return site

    @property
    def epoch(self) -> Path | None:
        """Where the vault's epoch is, if it has one."""
        return self._epoch

    def group_of(self, name: str) -> str:
        """The budget group of a data set, or of a line of the ledger, which if old holds the data set."""
        return self._groups.get(name, name)

    def members(self, group: str) -> set[str]:
        """The data sets of a budget group."""
        return {name for name, of in self._groups.items() if of == group}

    def open_workshops(self, warm: "SandboxedWorkshops | None" = None) -> "Workshops":
        """Where tasks run at this site, as its policy says; a locked child's PyTorch is being loaded from now on.

        Args:
            warm: taken where nothing has changed since it was opened, closed otherwise.
        """
        policy = self.policy
        if policy.sandbox == "none":
            from flows.site import in_process

            return in_process
        from flows.sandbox.parent import Rules
        from flows.sandbox.sandboxed import SandboxedWorkshops

        rules = Rules(
            tasks=policy.tasks,
            data={name: known.path for name, known in self.data.items() if known.path is not None},
            setting=policy.sandbox,
            memory_mib=policy.max_memory_mib,
            log=self.folder / "processes.log",
        )
        if warm is not None:
            if warm.fits(rules):
                return warm
            warm.close()
        workshops = SandboxedWorkshops(rules)
        workshops.warm()
        return workshops

    def check_identity(self, identity: Identity, consortium: Consortium) -> None:
        """See that the consortium knows this site by this key.

        Raises:
            SettingsError: it knows another, or none.
        """
        if identity.name != self.name:
            raise SettingsError(f"{self.folder}: the vault is of {identity.name}, site.toml of {self.name}: mend one")
        if consortium.sites.get(self.name) != identity.public:
            raise SettingsError(
                f"{self.folder}: the consortium file does not hold {self.name} with this vault's key "
                f"{identity.public}: ask for the current file, or have this key entered"
            )


class CoordinatorFolder(_Folder):
    """The coordinator's folder."""

    def __init__(self, folder: Path, table: CoordinatorTable) -> None:
        super().__init__(folder, table)
        self.runs = folder / table.runs
        self.templates = folder / table.templates
        self.published = folder / table.published
        self.tasks = tuple(table.tasks)
        self.max_trainings = table.max_trainings
        self.resume = table.resume
        self.patience_s = table.patience_s

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read ``coordinator.toml``.

        Raises:
            SettingsError: naming the file and the field.
        """
        return cls(folder, _read(CoordinatorTable, folder / COORDINATOR_FILE))

    def check_known(self, task: str, sites: Sequence[str]) -> None:
        """See that the coordinator may run a plan's task, and that the consortium has its sites.

        Raises:
            SettingsError: it may not, or has not, or there is no good consortium file.
        """
        if task not in self.tasks:
            raise SettingsError(f"plan: task: {task} is not on the coordinator's list: add it to coordinator.toml")
        known = self.consortium.sites
        if strangers := [site for site in sites if site not in known]:
            raise SettingsError(f"plan: sites: {', '.join(strangers)}: not in the consortium file: correct the name")

    def check_identity(self, identity: Identity, consortium: Consortium) -> None:
        """See that the consortium knows the coordinator by this key.

        Raises:
            SettingsError: it knows another.
        """
        if identity.name != COORDINATOR or consortium.coordinator != identity.public:
            raise SettingsError(
                f"{self.folder}: the consortium file has another key for the coordinator than this vault's "
                f"{identity.public}: mend the file, at every site"
            )


def _read(cls: type[Fields], path: Path) -> Fields:
    try:
        return cls.model_validate(read_toml(path))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}): name the folder that init has made") from None
    except NotToml as error:
        raise SettingsError(f"{path}: is not TOML: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise SettingsError(f"{path}: {field or path.name}: {wrong_setting(first, cls)}{more}") from None
