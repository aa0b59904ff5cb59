"""Files of a host over SFTP. Blocks are written one after another, so that what is there is always a beginning."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import PurePosixPath
from typing import TypeVar, cast

import asyncssh

from opadapt.errors import DeviceError, FullDisk

T = TypeVar("T")

BLOCK = 255 << 10  # what OpenSSH takes in one message
_LOST = (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection)


class Files:
    """SFTP over one connection; every exchange within ``timeout_s``. Raises DeviceError, or what asyncssh raises
    when the connection is lost."""

    def __init__(
        self,
        ssh: asyncssh.SSHClientConnection,
        sftp: asyncssh.SFTPClient,
        host: str,
        timeout_s: float,
        count: Callable[[int, int], None],
    ) -> None:
        self.ssh, self._sftp, self._host = ssh, sftp, host
        self._timeout_s, self._count = timeout_s, count

    @classmethod
    async def opened(
        cls,
        ssh: asyncssh.SSHClientConnection,
        host: str,
        timeout_s: float,
        count: Callable[[int, int], None],
    ) -> Files:
        try:
            sftp = await asyncio.wait_for(ssh.start_sftp_client(), timeout_s)
        except (asyncssh.ChannelOpenError, asyncssh.SFTPError) as error:
            if ssh.is_closed():
                raise
            raise DeviceError(
                f"{host}: it has no SFTP",
                found=str(error),
                do="install it there (openssh-sftp-server), or let sshd_config name it (Subsystem sftp ...)",
            ) from error
        return cls(ssh, sftp, host, timeout_s, count)

    async def put(self, data: bytes, path: str, resume: bool) -> None:
        flags = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT | (0 if resume else asyncssh.FXF_TRUNC)
        try:
            file = await self._soon(self._sftp.open(path, flags, encoding=None))
            try:
                done = (await self._soon(file.stat())).size or 0 if resume else 0
                if done > len(data):  # no beginning of this file
                    await self._soon(file.truncate(0))
                    done = 0
                while done < len(data):
                    block = data[done : done + BLOCK]
                    await self._soon(file.write(block, done))
                    self._count(len(block), 0)
                    done += len(block)
            finally:
                if not self.ssh.is_closed():
                    await self._soon(file.close())
        except _LOST:
            raise
        except asyncssh.SFTPError as error:
            raise await self._refused(path, len(data), error) from error

    async def get(self, path: str) -> bytes:
        content = bytearray()
        try:
            async with await self._soon(self._sftp.open(path, "rb", encoding=None)) as file:
                while block := cast("bytes", await self._soon(file.read(BLOCK, len(content)))):
                    self._count(0, len(block))
                    content += block
        except _LOST:
            raise
        except asyncssh.SFTPError as error:
            raise DeviceError(f"{self._host}: '{path}' cannot be read", found=error.reason) from error
        return bytes(content)

    async def exists(self, path: str) -> bool:
        return await self._soon(self._sftp.exists(path))

    async def make_folder(self, path: PurePosixPath) -> None:
        private = asyncssh.SFTPAttrs(permissions=0o700)
        try:
            await self._soon(self._sftp.makedirs(path, private, exist_ok=True))
        except _LOST:
            raise
        except asyncssh.SFTPError as error:
            raise await self._refused(str(path), 0, error) from error

    async def rename(self, path: str, to: str) -> None:
        try:
            await self._soon(self._sftp.posix_rename(path, to))
        except _LOST:
            raise
        except asyncssh.SFTPError as error:
            raise DeviceError(f"{self._host}: '{path}' cannot be renamed", found=error.reason) from error

    async def _soon(self, work: Awaitable[T]) -> T:
        return await asyncio.wait_for(work, self._timeout_s)

    async def _refused(self, path: str, size: int, error: asyncssh.SFTPError) -> DeviceError:
        """Why a file of that size cannot be written; what there is of it is removed. OpenSSH says "failure" for a full
        disk as for much else: look whether the file would fit, with a block for its entry in the folder."""
        folder = PurePosixPath(path).parent
        needed, free = size, None
        with suppress(asyncssh.SFTPError):  # it was not even begun
            await self._soon(self._sftp.remove(path))
        with suppress(asyncssh.SFTPError):  # no such extension, or no such folder
            disk = await self._soon(self._sftp.statvfs(folder))
            needed, free = size + disk.frsize, disk.bavail * disk.frsize
        if isinstance(error, asyncssh.SFTPNoSpaceOnFilesystem) or (free is not None and free < needed):
            return no_space(self._host, str(folder), f"{needed} bytes", f"{free} bytes free")
        told = error.reason if free is None else f"{error.reason} ({free} bytes are free)"
        return DeviceError(f"{self._host}: '{path}' cannot be written", found=told)


def no_space(host: str, folder: str, needed: str, found: str) -> FullDisk:
    return FullDisk(
        f"{host}: no space left in {folder}",
        expected=needed,
        found=found,
        do=f"make room there (df -h {folder}); opadapt's own part is ~/.cache/opadapt",
    )
