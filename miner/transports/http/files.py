"""The files that an object can be downloaded as."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from generation.lift import no_output
from generation.plan import Output
from generation.stage import TriangleMesh
from miner.request import Answer
from miner.service import MinerService
from miner.transports.http.models import FileKind, FormatName
from protocol import ply
from protocol.gaussians import GaussianCloud
from protocol.orientation import UpAxis, turn_up_axis

PREVIEW_SIDE = 256
"""Side of each of the four pictures of a preview; the CPU renders them in a second or a few."""


@dataclass(frozen=True)
class Format:
    """A file format of an object.

    Attributes:
        media_type: As in a Content-Type.
        output: What the task has to become.
    """

    media_type: str
    output: Output = "splats"


FORMATS: dict[FormatName, Format] = {
    "ply": Format("application/octet-stream"),
    "spz": Format("application/octet-stream"),
    "glb": Format("model/gltf-binary", "mesh"),
    "obj": Format("model/obj", "mesh"),
    "png": Format("image/png"),
}

FILES: dict[FileKind, str] = {
    "ply": "asset.ply",
    "spz": "asset.spz",
    "glb": "asset.glb",
    "obj": "asset.obj",
    "picture": "picture.png",
    "cutout": "cutout.png",
    "preview": "preview.png",
}
"""The names of a finished job's files."""

_OUTPUTS: Mapping[str, Output] = {name: each.output for name, each in FORMATS.items()}


def formats_of(outputs: Collection[Output]) -> list[FormatName]:
    """Returns the formats of what tasks can become."""
    return [name for name, each in FORMATS.items() if each.output in outputs]


def files_of(outputs: Collection[Output]) -> dict[FileKind, str]:
    """Returns the names of a job's files, for what tasks can become."""
    return {kind: name for kind, name in FILES.items() if _OUTPUTS.get(kind, "splats") in outputs}


def why_not(service: MinerService, name: FormatName | FileKind) -> str | None:
    """Says why the miner cannot make a file, and what to do; None if it can."""
    output = _OUTPUTS.get(name, "splats")
    if output in service.outputs:
        return None
    return "; ".join(no_output(service.ladder[0].back_end, output))


class FileMaker:
    """Makes files in threads; previews in one of its own, as each keeps it for seconds.

    Args:
        up_axis: Up axis of PLY files. Other files have y up: SPZ as validators expect it, glTF as
            its specification says, OBJ as glTF.
    """

    def __init__(self, up_axis: UpAxis) -> None:
        self._up_axis = up_axis
        self._renderer = ThreadPoolExecutor(1, "preview")

    async def file(self, name: FormatName, answer: Answer) -> bytes:
        """Returns the file of a completed answer, whose output is that of the format."""
        if name == "spz":
            return answer.asset
        if answer.mesh is not None:
            return await self.mesh(name, answer.mesh)
        assert answer.cloud is not None
        if name == "png":
            return await self.preview(answer.cloud)
        return await asyncio.to_thread(_ply, answer.cloud, self._up_axis)

    async def mesh(self, name: FormatName, mesh: TriangleMesh) -> bytes:
        """Returns a mesh as "glb" or "obj"."""
        return await asyncio.to_thread(_mesh_file, name, mesh)

    async def preview(self, cloud: GaussianCloud) -> bytes:
        """Returns a PNG picture of a cloud from four sides."""
        return await asyncio.get_running_loop().run_in_executor(self._renderer, _preview, cloud)

    async def picture(self, pixels: NDArray[np.uint8]) -> bytes:
        """Returns an RGB or RGBA picture as PNG."""
        return await asyncio.to_thread(_png, pixels)

    def close(self) -> None:
        """Gives up the previews that have not begun."""
        self._renderer.shutdown(wait=False, cancel_futures=True)


class Shared:
    """Lets several callers wait for one piece of work; it is cancelled once all have left."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight] = {}

    async def join(self, key: Hashable, work: Callable[[], Awaitable[Any]]) -> Any:
        """Returns the result of the work under this key, which is started if nobody waits for it.

        Raises:
            Exception: Whatever the work raised.
        """
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.ensure_future(work()))
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting:
                del self._flights[key]
                flight.task.cancel()


@dataclass(eq=False)
class _Flight:
    task: "asyncio.Future[Any]"
    waiting: int = 0


def _ply(cloud: GaussianCloud, up_axis: UpAxis) -> bytes:
    return ply.encode(turn_up_axis(cloud, up_axis))


def _mesh_file(name: FormatName, mesh: TriangleMesh) -> bytes:
    from generation.lift.triposr.mesh_files import to_glb, to_obj

    return to_glb(mesh) if name == "glb" else to_obj(mesh)


def _preview(cloud: GaussianCloud) -> bytes:
    from generation.rendering.preview import preview_grid

    file = BytesIO()
    preview_grid(cloud, PREVIEW_SIDE, backend="cpu").save(file, "PNG")
    return file.getvalue()


def _png(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
