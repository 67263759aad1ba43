"""The settings of engines: how many, and where they run."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from miner.settings.model import Part
from protocol.errors import SetupError

MOST_ENGINES = 16
"""Of one miner: each has a series of its own among the metrics."""


class EnginesSettings(Part):
    """Where objects are generated: in this process, or in processes of their own through Ray."""

    SHORT: ClassVar[str | None] = "kind"

    kind: Literal["local", "ray"] = "local"
    """local: in this process. ray: one process for each GPU, on this machine or on several, started
    again when it dies; needs the extra ray. --engines ray is short for it (docs/many-gpus.md)."""
    count: Literal["auto"] | Annotated[int, Field(ge=1, le=MOST_ENGINES)] = "auto"
    """How many engines. auto: one in this process, on --device; with ray, one for each GPU of the
    cluster, or for each core with a preset for the CPU. More than one in this process take cuda:0,
    cuda:1 and so on."""
    address: str | None = None
    """The Ray cluster that this machine belongs to: auto or HOST:PORT. None: Ray is started on this
    machine, for this miner alone."""

    @field_validator("count", mode="wrap")
    @classmethod
    def _count_in_words(cls, value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate(value)
        except ValidationError:
            raise ValueError(
                f"it is neither auto nor a whole number from 1 to {MOST_ENGINES}"
            ) from None

    @field_validator("address")
    @classmethod
    def _address_can_be_joined(cls, value: str | None) -> str | None:
        if value is None or value == "auto":
            return value
        host, _, port = value.rpartition(":")
        if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65_536:
            raise ValueError("it is neither auto nor HOST:PORT, such as 10.0.0.1:6379")
        return value

    @model_validator(mode="after")
    def _address_is_for_ray(self) -> Self:
        if self.address is not None and self.kind == "local":
            raise SetupError(
                f"--engines.address {self.address} is given, but the engine runs in this process",
                fix="add --engines ray, or leave out --engines.address",
            )
        return self

    def require_room(self, device: str) -> None:
        """Refuses engines that would share one device.

        Args:
            device: Of the preset, in torch's words.

        Raises:
            SetupError: Several engines of this process would run on one device.
        """
        if self.kind == "ray" and ":" in device:
            raise SetupError(
                f"--device {device} names one GPU, and with --engines ray every engine has its own",
                fix="leave out --device; CUDA_VISIBLE_DEVICES chooses the GPUs that Ray may use",
            )
        if self.kind == "local" and isinstance(self.count, int) and self.count > 1:
            if device == "cpu":
                raise SetupError(
                    f"--engines.count {self.count} engines of this process would share its cores",
                    fix="leave out --engines.count, or add --engines ray: one core for each",
                )
            if ":" in device:
                raise SetupError(
                    f"--engines.count {self.count} takes cuda:0 and the following GPUs, but "
                    f"--device is {device}",
                    fix="leave out one of the two",
                )
