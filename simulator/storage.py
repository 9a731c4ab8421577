"""Files: safetensors with a JSON header, written atomically. No pickle anywhere.

A file is written under a temporary name in the same folder, flushed to disk and renamed, so that a
process killed at any moment leaves either the old file or the new one.
"""

import contextlib
import hashlib
import json
import logging
import os
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from simulator.errors import RequestError

logger = logging.getLogger(__name__)

_HEADER = "sae-recovery"
_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@contextlib.contextmanager
def claimed(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold the folder: a second process that wants it is refused, a killed one leaves nothing behind.

    Args:
        folder: made if needed.
        patience: seconds to wait for another process to let go.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RequestError(f"cannot use the folder {folder}: {reason}; name a folder with write access") from None
    try:
        try:
            import fcntl

            deadline = time.monotonic() + patience
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise
                    time.sleep(0.1)
        except ImportError:
            logger.info("no file locks on this platform: do not run one folder twice at a time")
        except OSError:
            raise RequestError(f"another process is working in {folder}; wait for it or name another folder") from None
        for leftover in folder.glob(".*.part"):
            leftover.unlink(missing_ok=True)  # of a process that was killed while it wrote
        yield
    finally:
        os.close(handle)


def digest(file: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with file.open("rb") as stream_:
        return hashlib.file_digest(stream_, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes | Callable[[BinaryIO], None]) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part.

    Args:
        path: the file; its folder is made.
        content: the bytes, or a function that writes them to the open file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise RequestError(
            f"cannot write to {path.parent}: {error.strerror}; name a folder with write access"
        ) from None
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            if callable(content):
                content(stream)
            else:
                stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files that only their owner can read; results are ordinary files.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or error  # numpy writes arrays without an errno
        raise RequestError(f"cannot write {path}: {reason}; free some space or name another folder") from None
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor | np.ndarray], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header to one safetensors file.

    Args:
        path: the file; its folder is made.
        tensors: name -> tensor or array.
        header: anything JSON can hold.
    """
    ready = {name: torch.as_tensor(value).detach().cpu().contiguous() for name, value in tensors.items()}
    write_atomically(path, lambda stream: _write_safetensors(stream, ready, {_HEADER: json.dumps(header)}))


def _write_safetensors(stream: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """The safetensors format, tensor by tensor: the library's own writer first copies all of them.

    Format: length of the header (8 bytes, little endian), header in JSON padded with blanks to a multiple of 8,
    then the numbers; wide types first, so that every tensor is aligned.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in _TYPES:
            raise RequestError(f"cannot store {name}: type {tensor.dtype} is not one of {', '.join(_TYPES.values())}")
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]
        }  # fmt: skip
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    stream.write(struct.pack("<Q", len(text)))
    stream.write(text)
    stream.flush()
    for name in names:
        tensors[name].reshape(-1).view(torch.uint8).numpy().tofile(stream)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file written by `save_tensors`.

    Raises:
        RequestError: the file is missing, truncated, damaged or from elsewhere.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        header = json.loads(metadata[_HEADER])
    except FileNotFoundError:
        raise RequestError(f"{path} does not exist") from None
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RequestError(
            f"{path} is truncated, damaged or not written by sae-recovery ({reason}); "
            "remove it to start again, or restore it"
        ) from None
    return tensors, header


def read_matrix(path: Path, *, mapped: bool = True) -> np.ndarray:
    """A matrix from `.npy` or from the only matrix of a `.safetensors` file.

    Args:
        path: the file.
        mapped: map a `.npy` file instead of reading it.

    Returns:
        Array of shape (N, d), floating point; bfloat16 and float16 become float32.
    """
    path = Path(path)
    if not path.is_file():
        raise RequestError(f"{path} is not a file; give a .npy or .safetensors file with a matrix")
    if path.stat().st_size == 0:
        raise RequestError(f"{path} is empty; give a .npy or .safetensors file with a matrix")
    if path.suffix == ".npy":
        try:
            matrix = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            reason = str(error).splitlines()[0]
            raise RequestError(f"{path} is no readable .npy file ({reason}); write it with numpy.save") from None
    elif path.suffix == ".safetensors":
        matrix = _only_matrix(path)
    else:
        raise RequestError(f"{path} has the ending {path.suffix!r}; give a .npy or .safetensors file")
    return as_matrix(matrix, str(path))


def read_vector(path: Path) -> np.ndarray:
    """One row of numbers from a `.npy` file, shape (n,)."""
    path = Path(path)
    if not path.is_file() or path.suffix != ".npy":
        raise RequestError(f"{path} is not a .npy file with a row of numbers")
    try:
        vector = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise RequestError(f"{path} is no readable .npy file ({str(error).splitlines()[0]})") from None
    if vector.ndim != 1:
        raise RequestError(f"{path} has shape {vector.shape}; one row of numbers (n,) is needed")
    return vector


def _only_matrix(path: Path) -> np.ndarray:
    try:
        with safe_open(path, framework="pt") as file:
            names = [n for n in file.keys() if len(file.get_slice(n).get_shape()) == 2]  # noqa: SIM118
            if len(names) != 1:
                found = ", ".join(names) or "none"
                raise RequestError(f"{path} must hold exactly one matrix; it holds: {found}")
            tensor = file.get_tensor(names[0])
    except SafetensorError as error:
        reason = str(error).splitlines()[0]
        raise RequestError(f"{path} is no readable .safetensors file ({reason})") from None
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    elif tensor.dtype.itemsize == 1 and tensor.is_floating_point():
        raise RequestError(f"{path} holds {tensor.dtype}; save float32, float16 or bfloat16")
    return tensor.numpy()


def as_matrix(matrix: np.ndarray, name: str) -> np.ndarray:
    """The array if it is a non-empty real matrix, else one line that says why not.

    Integers and half precision become float32. Values are not looked at.
    """
    if matrix.ndim != 2:
        raise RequestError(f"{name} has shape {matrix.shape}; a matrix (rows, d) is needed")
    if 0 in matrix.shape:
        raise RequestError(f"{name} is empty: shape {matrix.shape}; at least one row and one column are needed")
    if matrix.dtype.kind not in "fiu":
        raise RequestError(f"{name} has dtype {matrix.dtype}; real numbers (float32 or float64) are needed")
    if matrix.dtype in (np.float32, np.float64):
        return matrix
    return matrix.astype(np.float32)
