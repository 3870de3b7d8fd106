"""Virtual folders and the files in them (spec 10.2, 10.3)."""

from __future__ import annotations

import functools

from aiohttp import web

from retort.api.answers import answer_listing, json_answer, no_content
from retort.api.call import Call
from retort.errors import NotPermitted
from retort.services.vfolder_files import VFolderFiles
from retort.services.vfolder_life import VFolderService
from retort.wire import vfolders as wire


class VFolderRoutes:
    """Handlers of folders, and of files as far as a key signs for them."""

    def __init__(
        self,
        folders: VFolderService,
        files: VFolderFiles,
        *,
        base_url: str | None,
        base_path: str,
    ) -> None:
        self._folders = folders
        self._files = files
        self._base_url = base_url
        self._base_path = base_path

    # --- folders ----------------------------------------------------------------------------

    async def create(self, call: Call) -> web.StreamResponse:
        """Make a folder."""
        asked = wire.parse_create(await call.params())
        return json_answer(wire.created(await self._folders.create(call.keypair, asked)), 201)

    async def listing(self, call: Call) -> web.StreamResponse:
        """List folders."""
        asked = wire.parse_list(await call.params())
        caller = call.keypair
        if asked.is_all or asked.owner_email not in (None, caller.email):
            if not caller.is_admin:
                raise NotPermitted("Other users' folders are for administrators")
            found = await self._folders.every(caller)
        else:
            found = await self._folders.listed(caller)
        if asked.is_of_group:
            found = [seen for seen in found if seen.folder.is_of_group]
        if asked.owner_email is not None:
            wanted = asked.owner_email.casefold()
            found = [
                seen
                for seen in found
                if not seen.folder.is_of_group and seen.folder.creator.casefold() == wanted
            ]
        return json_answer([wire.listed(seen) for seen in found])

    async def delete_by_id(self, call: Call) -> web.StreamResponse:
        """Delete anybody's folder."""
        folder_id = wire.parse_id(await call.params(), "id", "vfolder_id")
        await self._folders.delete_by_id(call.keypair, folder_id)
        return no_content()

    async def info(self, call: Call) -> web.StreamResponse:
        """Tell about a folder and what it holds."""
        return json_answer(wire.info(*await self._folders.info(call.keypair, call.ref)))

    async def delete(self, call: Call) -> web.StreamResponse:
        """Delete a folder with all it holds."""
        await self._folders.delete(call.keypair, call.ref)
        return no_content()

    async def rename(self, call: Call) -> web.StreamResponse:
        """Give a folder another name."""
        name = (await call.params()).required("new_name")
        await self._folders.rename(call.keypair, call.ref, name)
        return web.Response(status=201)

    async def update_options(self, call: Call) -> web.StreamResponse:
        """Change what others may do."""
        is_cloneable, permission = wire.parse_options(await call.params())
        await self._folders.update(
            call.keypair, call.ref, is_cloneable=is_cloneable, permission=permission
        )
        return web.Response(status=201)

    async def clone(self, call: Call) -> web.StreamResponse:
        """Copy a folder, in the background if that takes long."""
        asked = wire.parse_clone(await call.params())
        folder, task_id = await self._folders.clone(call.keypair, call.ref, asked)
        task = None if task_id is None else str(task_id)
        return json_answer(wire.created(folder, bgtask_id=task), 201)

    async def hosts(self, call: Call) -> web.StreamResponse:
        """Tell where folders may be."""
        return json_answer(wire.hosts())

    async def allowed_types(self, call: Call) -> web.StreamResponse:
        """Tell whose folders there may be."""
        return json_answer(list(wire.TYPES))

    # --- files ------------------------------------------------------------------------------

    async def files(self, call: Call) -> web.StreamResponse:
        """List a directory."""
        path = wire.parse_path(await call.params())
        found = await self._files.listing(call.keypair, call.ref, path)
        write = functools.partial(wire.files_answer, found.entries, is_truncated=found.truncated)
        return await answer_listing(write, len(found.entries))

    async def mkdir(self, call: Call) -> web.StreamResponse:
        """Make a directory."""
        path, parents, exist_ok = wire.parse_mkdir(await call.params())
        await self._files.mkdir(call.keypair, call.ref, path, parents=parents, exist_ok=exist_ok)
        return web.Response(status=201)

    async def rename_file(self, call: Call) -> web.StreamResponse:
        """Give a file or directory another name."""
        params = await call.params()
        path, name = params.required("target_path"), params.required("new_name")
        await self._files.rename(call.keypair, call.ref, path, name)
        return json_answer({})

    async def move_file(self, call: Call) -> web.StreamResponse:
        """Move a file or directory."""
        params = await call.params()
        source, target = params.required("src"), params.required("dst")
        await self._files.move(call.keypair, call.ref, source, target)
        return json_answer({})

    async def delete_files(self, call: Call) -> web.StreamResponse:
        """Delete files and directories."""
        paths, recursive = wire.parse_delete_files(await call.params())
        await self._files.delete(call.keypair, call.ref, paths, recursive=recursive)
        return json_answer({})

    async def request_upload(self, call: Call) -> web.StreamResponse:
        """Give the token for an upload (spec 10.4)."""
        path, size = wire.parse_upload(await call.params())
        token = await self._files.request_upload(call.keypair, call.ref, path, size)
        return json_answer(wire.transfer(token, self._url(call, "upload")))

    async def request_download(self, call: Call) -> web.StreamResponse:
        """Give the token for a download (spec 10.5)."""
        path, archive = wire.parse_download(await call.params())
        token = await self._files.request_download(call.keypair, call.ref, path, archive=archive)
        return json_answer(wire.transfer(token, self._url(call, "download")))

    def _url(self, call: Call, what: str) -> str:
        base = self._base_url
        if base is None:
            host = call.request.headers.get("Host", "localhost")
            base = f"{call.request.scheme}://{host}{self._base_path}"
        return f"{base}/storage/{what}"
