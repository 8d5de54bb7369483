"""What each target accepts, to begin with: the messages of a round, a receipt, a plan, files (see ``fixed``)."""

import gzip
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from flows.checkpoint import Checkpoint
from flows.messages import AskFinish, AskJoin, AskWork, Done, Joined
from ml_tasks.eicu_tables import ALLOWED
from protocols.consortium import write_consortium
from protocols.contexts import canonical
from protocols.messages import AskAdvertise, Envelope, Refusal
from tests.fuzz import fixed

PARTY = """
[prefect]
url = "http://127.0.0.1:4200/api"
auth_string = "admin:secret"
[exchange]
url = "s3://bucket/prefix"
options = { key = "k", client_kwargs = { endpoint_url = "http://127.0.0.1:9000" } }
"""
SITE_TOML = f"""name = "ann"
data = {{ tiny = "data/tiny" }}
{PARTY}
[policy]
tasks = ["tasks.tiny:Tiny"]
protocols = ["secagg"]
max_train_s = 60.0
approval = "by-hand"
"""
COORDINATOR_TOML = f"""tasks = ["tasks.tiny:Tiny"]
runs = "runs"
{PARTY}"""
PLAN_TOML = """name = "tiny"
task = "tasks.tiny:Tiny"
data = "tiny"
sites = ["ann", "bob", "cat"]
rounds = 2
[local]
learning_rate = 0.5
[protection]
threshold = 3
update = { bits = 16, scale = 64.0, max_abs = 4.0 }
[stopping]
keep = "best"
[deadlines]
join_s = 1e3
"""
EMPTY = hashlib.sha256(b"[]").hexdigest()
CSV = 'a,b,c\r\n1,"two, ""quoted""",3\r\n\r\n4,5,6\r\n'


def seeds() -> dict[str, list[bytes]]:
    """The seeds of each target by its name."""
    played = fixed.Round()
    answers = {kind: tuple_text(messages) for kind, messages in played.answers.items()}
    asks = {kind: canonical(asdict(ask)) for kind, ask in played.asks.items()}  # type: ignore[call-overload]
    asks["ask/advertise"] = canonical(asdict(AskAdvertise(fixed.CONTEXT)))
    bodies = asks | {kind: messages[0].body for kind, messages in played.answers.items()}
    others = {
        "refusal": Refusal("mask", "Refused", "no"),
        "ask/join": AskJoin("tiny", fixed.PLAN.to_json()),
        "joined": Joined(fixed.PLAN.digest),
        "ask/train": AskWork(fixed.CONTEXT),
        "done": Done(),
        "ask/finish": AskFinish("tiny"),
    }
    bodies |= {kind: canonical(asdict(other)) for kind, other in others.items()}
    one = played.answers["masked"][0]
    inputs = [{"key": "ask-1", "value": f"[{one.to_json()}]", "id": "0", "flow_run_id": "1"}]
    receipt = fixed.receipt().to_json().encode()
    plan = fixed.PLAN.to_json().encode()
    progress, held = _checkpoint(played)
    return {
        "envelope": [one.to_json().encode()],
        "body": kinds(bodies),
        "site-step": kinds(asks),
        "coordinator-step": kinds(answers),
        "mailbox-text": [tuple_text((one,)).encode(), json.dumps({"object": EMPTY, "size": 2}).encode()],
        "mailbox-object": [tuple_text(played.answers["share"]).encode()],
        "mailbox-server": [json.dumps(inputs).encode(), json.dumps(inputs).encode() + b" "],
        "model": [fixed.MODEL.to_bytes(), replace(fixed.MODEL, standardisation=None).to_bytes()],
        "model-file": [fixed.MODEL_FILE],
        "receipt": [receipt],
        "resigned-receipt": [receipt],
        "consortium": [_consortium()],
        "plan-json": [plan],
        "plan-toml": [PLAN_TOML.encode()],
        "site-toml": [SITE_TOML.encode()],
        "coordinator-toml": [COORDINATOR_TOML.encode()],
        "checkpoint": [progress],
        "held-round": [held],
        "masked-vector": [fixed.vector().tobytes()],
        "csv-table": [CSV.encode()],
        "csv-gz-table": [gzip.compress(CSV.encode(), mtime=0)],
        "eicu-tables": [_eicu()],
    }


def tuple_text(messages: tuple[Envelope, ...]) -> str:
    """Envelopes as the text of a mailbox."""
    return f"[{','.join(message.to_json() for message in messages)}]"


def kinds(texts: dict[str, str]) -> list[bytes]:
    """Each text behind a line that says its kind."""
    return [f"{kind}\n{text}".encode() for kind, text in sorted(texts.items())]


def _consortium() -> bytes:
    with TemporaryDirectory() as folder:
        write_consortium(Path(folder) / "consortium.toml", fixed.CONSORTIUM)
        return (Path(folder) / "consortium.toml").read_bytes()


def _checkpoint(played: fixed.Round) -> tuple[bytes, bytes]:
    """The progress and the held round of a training."""
    with TemporaryDirectory() as name:
        folder = Path(name) / "checkpoint"
        made = Checkpoint.create(folder, "tiny", fixed.PLAN, fixed.MODEL)
        made.begin(1, 1)
        made.hold(played.dealings, fixed.SITES, {}, fixed.vector(), 0.5, 1000)
        made.close()
        return (folder / "progress.json").read_bytes(), (folder / "held.json").read_bytes()


def _eicu() -> bytes:
    """One stay in the four tables."""
    rows = {"hospitalid": "7", "region": "South", "patientunitstayid": "1", "hospitaldischargestatus": "Alive"}
    rows |= {"uniquepid": "p", "gender": "Male", "age": "> 89", "unitadmitsource": "ER", "admitdiagnosis": "SEPSIS"}
    tables = [f"{','.join(names)}\n{','.join(rows.get(name, '1') for name in names)}\n" for names in ALLOWED.values()]
    return "\0".join(tables).encode()
