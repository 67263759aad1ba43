"""The JSON of the HTTP API: what its answers and requests hold, as pydantic models.

The API's document (`openapi.py`) is made from these models, so their docstrings are its text.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from protocol.tasks import MAX_ID_CHARACTERS, MAX_PROMPT_CHARACTERS, MAX_SEED, RANDOM_SEED

StageState = Literal["waiting", "running", "done"]
JobState = Literal[
    "queued", "running", "improving", "done", "withheld", "dropped", "rejected", "failed"
]
FileKind = Literal["ply", "spz", "glb", "obj", "picture", "cutout", "preview"]
FormatName = Literal["ply", "spz", "glb", "obj", "png"]

MAX_CANDIDATES = 1000

_Seconds = Annotated[float, Field(ge=0.0, description="seconds")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class TaskFields(_Model):
    """What to make: `prompt` or `prompt_image_file`, one of the two."""

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS)] | None = None
    """One object in words; or a picture in base64, which may then be as long as a picture is."""
    prompt_image_file: str | None = None
    """A picture of one object: PNG, JPEG or WebP, at most 6 MiB and 4096 x 4096 pixels. A file in a
    multipart form, base64 elsewhere."""
    seed: Annotated[int, Field(ge=RANDOM_SEED, le=MAX_SEED)] | None = None
    """Of the first object; -1 is as none. With `candidates` 1, the same seed makes the same object
    at the same quality level."""
    candidates: Annotated[int, Field(ge=1, le=MAX_CANDIDATES)] | None = None
    """Pictures drawn for a prompt at most, each with a seed of its own; the best object is the
    answer. As many as the time and the miner's settings allow if it is left out."""
    task_id: Annotated[str, Field(max_length=MAX_ID_CHARACTERS)] | None = None
    """Your name for the task in the miner's logs."""


class GenerateFields(TaskFields):
    """What to make, and as which file."""

    format: FormatName = "ply"
    """What to answer: the Gaussian cloud as PLY or SPZ, a mesh of the same object as binary glTF or
    OBJ, if the 3D back end makes meshes, or a PNG picture of the cloud from four sides."""


class StageProgress(_Model):
    """How far one stage of a job is."""

    name: str
    """Such as `denoise`."""
    state: StageState
    seconds: _Seconds | None = None
    """How long it ran so far, without waiting; null before it starts."""
    done: Annotated[int, Field(ge=0)]
    """Steps that have ended."""
    steps: Annotated[int, Field(ge=1)]
    """Steps that it has."""


class CandidateCounts(_Model):
    """How many candidates of a job there are."""

    made: Annotated[int, Field(ge=1)]
    """Objects that were scored."""
    drawn: Annotated[int, Field(ge=1)]
    """Pictures that were drawn for them; a given one counts."""
    most: Annotated[int, Field(ge=1)]
    """Pictures at most; there may be fewer, because the time is over or the score is enough."""


class Job(_Model):
    """One object that is to be made, and what has become of it."""

    id: str
    """Cannot be guessed: whoever knows it can see, cancel and download the job."""
    kind: Literal["text", "image"]
    prompt: str | None
    """Null for a picture."""
    seed: int | None
    """As it was given; once it is done, that of the object, if it has one."""
    state: JobState
    """`queued`, `running` and `improving` (there is an object, and further candidates are made)
    change; the others are final. `withheld`: the gate is against the object, and the miner does not
    send such objects."""
    ahead: Annotated[int, Field(ge=0)] | None
    """Requests that go before it; null unless it is queued."""
    predicted_s: _Seconds | None
    """Seconds from its receipt to its first object, as expected when it was admitted."""
    budget_s: float | None
    """Seconds that it has; it is dropped before it takes longer."""
    elapsed_s: _Seconds
    """Seconds since it was asked for, or that it took."""
    rung: str | None
    """The quality level."""
    stages: list[StageProgress]
    """In order; empty before it is admitted."""
    message: str | None
    """Why there is no object."""
    reason_code: str | None
    """The same in one word (docs/score-log.md); `ok` for one that is done."""
    gaussians: Annotated[int, Field(ge=0)] | None
    """Size of the cloud."""
    bytes: Annotated[int, Field(ge=0)] | None
    """Size of the SPZ file."""
    valid: bool | None
    """Whether the cloud passes a validator's data checks."""
    score: float | None
    """What a validator is expected to give the object; while it improves, the best so far. Null
    without a scorer, and before the first object."""
    first_score: float | None
    """The score of the first object."""
    scorer: str | None
    """Who gives the scores."""
    score_parts: dict[str, float] | None
    """What the score is made of, by name; null until it is done."""
    candidates: CandidateCounts | None
    """Null as the score is."""
    gated: bool | None
    """Whether the score is below what the miner would submit to a validator; null without one."""
    gate_reason: str | None
    """The same in words, with the numbers."""
    understood: list[str] | None
    """Words of the prompt that the networks know, where these are few enough to list."""
    ignored: list[str] | None
    """Its other words."""
    files: dict[FileKind, str]
    """Addresses of its files, by kind; empty until it is done. Without `glb` and `obj`, if the 3D
    back end makes no mesh."""


class QualityLevel(_Model):
    """A quality level: what an object is made with at most."""

    name: str
    """As a job's `rung`."""
    steps: Annotated[int, Field(ge=1)]
    """Denoising steps of the picture."""
    size: Annotated[int, Field(ge=1)]
    """Side of the picture, in pixels."""
    lift_steps: Annotated[int, Field(ge=0)]
    """Denoising steps of the 3D back end; 0 if it takes none."""
    gaussians: Annotated[int, Field(ge=1)]
    """Gaussians at most."""


class MinerStatus(_Model):
    """What the miner does at the moment."""

    state: str
    """`starting`, `warming_up`, `ready`, `suspect`, `draining` or `dead`."""
    preset: str | None
    knows: str
    """What the networks know, where that is little."""
    version: str
    budget_s: float | None
    """Seconds from the receipt of a request to the arrival of its answer, at most."""
    predicted_wait_s: _Seconds | None
    """Seconds that a text task from now would wait; null while no engine can be used."""
    active: Annotated[int, Field(ge=0)]
    """Requests of all transports that are waiting or running."""
    candidates: Annotated[int, Field(ge=1)]
    """Pictures drawn for a prompt at most; 1 without a scorer."""
    formats: list[FormatName]
    """What `POST /generate` can answer: without `glb` and `obj`, if the 3D back end makes no
    mesh."""
    back_end: str
    """What lifts pictures to 3D, such as `triposr`."""
    rungs: list[QualityLevel]
    """The quality levels, best first."""


class Health(_Model):
    """Whether requests are taken."""

    status: str
    """`healthy`, or the name of the state."""
    problems: list[str] | None = None
    """What is wrong without costing anybody an answer, such as a full disk."""


class Problem(_Model):
    """Why there is no answer of the other kind."""

    message: str
    """One sentence: what is wrong, and what to do."""
    task_id: str | None = None
    outcome: Literal["completed", "dropped", "rejected", "failed"] | None = None
    """`completed`: there is an object, and the gate is against it (`below_threshold`)."""
    reason_code: str | None = None
    """One word for programs (docs/score-log.md)."""
    stage: str | None = None
    """Where the request ended."""
    predicted_s: float | None = None
    budget_s: float | None = None
    error_id: str | None = None
    """Under which the miner's own log describes its failure."""
