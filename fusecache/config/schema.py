"""What a configuration may contain: one typed model for each table.

Owns the keys, their defaults, and how text becomes values. It must not know files, plugins' options or who uses the
values.

The text forms (durations, octal modes, user names) are read only when pydantic is given a *context*: the directory
that relative paths start from. Models built in code take the values themselves.
"""

import grp
import pwd
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from fusecache.api.units import DURATION_HELP, parse_duration
from fusecache.config.mistakes import Tables, shown

_PERMISSIONS_HELP: Final = 'permission bits as a string of octal digits, "0000" to "0777"'
_USER_HELP: Final = "the name of a user of this system, or a number of 0 or more"
_GROUP_HELP: Final = "the name of a group of this system, or a number of 0 or more"
_DIRECTORY_HELP: Final = "the path of an existing directory"
_FILE_HELP: Final = "the path of an existing file"
_SPIN_HELP: Final = f"{DURATION_HELP}, at most 10ms"
_TIMEOUT_HELP: Final = f"{DURATION_HELP}, at least 1s"
_LARGEST_ID: Final = 2**32 - 2

LAYER_KEYS: Final = ("index", "plugin", "required")
"""The keys of a layer's table that are not the plugin's own."""


def _wrong(found: str, allowed: str) -> ValueError:
    return ValueError(f"found {found}, allowed: {allowed}")


def _from_text(read: Callable[[Any, Path], object]) -> BeforeValidator:
    def validate(value: object, info: ValidationInfo) -> object:
        return value if info.context is None else read(value, info.context)

    return BeforeValidator(validate)


def _duration(value: object, _base: Path) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise _wrong(f"{shown(value)}, a number without a unit", DURATION_HELP)
    if not isinstance(value, str):
        raise _wrong(shown(value), DURATION_HELP)
    return parse_duration(value)


def _permissions(value: object, _base: Path) -> int:
    if not isinstance(value, str) or re.fullmatch(r"0?[0-7]{3}", value) is None:
        raise _wrong(shown(value), _PERMISSIONS_HELP)
    return int(value, 8)


def _identifier(lookup: Callable[[str], int], allowed: str) -> BeforeValidator:
    def read(value: object, _base: Path) -> object:
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_ID:
            return value
        if isinstance(value, str):
            try:
                return lookup(value)
            except (KeyError, ValueError):
                raise _wrong(f"{shown(value)}, which does not exist", allowed) from None
        raise _wrong(shown(value), allowed)

    return _from_text(read)


def _path(value: object, base: Path) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise _wrong(shown(value), "a path")
    return base / value


def _existing(kind: str, of_kind: Callable[[int], bool], allowed: str) -> BeforeValidator:
    def read(value: object, base: Path) -> Path:
        path = _path(value, base)
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise _wrong(f"{shown(value)} ({error.strerror})", allowed) from None
        if not of_kind(mode):
            raise _wrong(f"{shown(value)}, which is not a {kind}", allowed)
        return path

    return _from_text(read)


Switch = Annotated[bool, Field(description="true or false")]
Seconds = Annotated[float, _from_text(_duration), Field(ge=0, allow_inf_nan=False, description=DURATION_HELP)]
Spin = Annotated[float, _from_text(_duration), Field(ge=0, le=0.01, allow_inf_nan=False, description=_SPIN_HELP)]
Permissions = Annotated[int, _from_text(_permissions), Field(ge=0, le=0o777, description=_PERMISSIONS_HELP)]
User = Annotated[int, _identifier(lambda name: pwd.getpwnam(name).pw_uid, _USER_HELP)]
Group = Annotated[int, _identifier(lambda name: grp.getgrnam(name).gr_gid, _GROUP_HELP)]


class Table(BaseModel):
    """A table of the configuration: immutable, of exact types, with no unknown key."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_by_name=True, validate_by_alias=True)


class MountConfig(Table):
    """``[mount]``: the mount as a whole.

    Attributes:
        state_dir: absolute; holds the host's durable records, shared by all its mounts; created where missing.
        allow_other: other users may enter the mount.
        owner, group: ids that own the image files; None is the mounting user's.
        mode: permission bits of the image files.
        control_group: id of the group that may use the control files besides the owner; needs *allow_other*.
        create, rename, remove, resize: changes to the set of images that the mount lets through.
        guard: protect the host against starting a guest over dirty data that another host holds.
        spin: seconds the data plane looks for more requests before it sleeps; 0 never. Bounded, because nothing else
            gets its turn meanwhile.
        release_after: seconds from the last close of an image until its lock is given up.
        control_wait: seconds a control command may take before its writer gets EINPROGRESS.
    """

    state_dir: Annotated[Path, _from_text(_path), Field(description="a path")] = Path("/var/lib/fusecache")
    allow_other: Switch = False
    owner: Annotated[User | None, Field(description=_USER_HELP)] = None
    group: Annotated[Group | None, Field(description=_GROUP_HELP)] = None
    mode: Permissions = 0o600
    control_group: Group | None = None
    create: Switch = False
    rename: Switch = False
    remove: Switch = False
    resize: Switch = False
    guard: Switch = True
    spin: Spin = 50e-6
    release_after: Seconds = 5.0
    control_wait: Seconds = 30.0

    @field_validator("control_group")
    @classmethod
    def _others_get_in(cls, value: int | None, info: ValidationInfo) -> int | None:
        # A wrong allow_other is absent here, and a mistake of its own.
        if value is not None and info.data.get("allow_other") is False:
            raise _wrong("a control group without allow_other", "a control group with allow_other = true, or none")
        return value


class DirectoryConfig(Table):
    """``[backend]`` of type ``directory``: every regular file of a directory is an image.

    Attributes:
        path: absolute; exists when the configuration is read.
        direct: go around the host's page cache.
        timeout: as of :class:`RbdConfig`.
    """

    timeout: ClassVar[float] = 30.0

    type: Literal["directory"] = "directory"
    path: Annotated[Path, _existing("directory", stat.S_ISDIR, _DIRECTORY_HELP), Field(description=_DIRECTORY_HELP)]
    direct: Switch = False


class RbdConfig(Table):
    """``[backend]`` of type ``rbd``: every image of a Ceph pool, or of one namespace of it, is an image.

    Attributes:
        pool: its name.
        namespace: its name; empty is the default one.
        conf: the cluster's config file, absolute; None is where Ceph's own programs look: ``CEPH_CONF``, then
            ``/etc/ceph/ceph.conf`` and its kin.
        user: whom to be to the cluster, without ``client.``.
        timeout: seconds the cluster may take to answer a mount, an open or a lookup; data requests wait for ever.
    """

    type: Literal["rbd"] = "rbd"
    pool: Annotated[str, Field(min_length=1, description="the name of a pool")]
    namespace: Annotated[str, Field(description='the name of a namespace of the pool, "" for the default one')] = ""
    conf: Annotated[Path | None, _existing("regular file", stat.S_ISREG, _FILE_HELP), Field(description=_FILE_HELP)] = (
        None
    )
    user: Annotated[str, Field(min_length=1, description='the name of a Ceph user, without "client."')] = "admin"
    timeout: Annotated[float, _from_text(_duration), Field(ge=1, allow_inf_nan=False, description=_TIMEOUT_HELP)] = 30.0


BackendConfig: TypeAlias = Annotated[DirectoryConfig | RbdConfig, Field(discriminator="type")]

_BACKENDS: Final[Mapping[str, type[Table]]] = {"directory": DirectoryConfig, "rbd": RbdConfig}
_TYPES: Final = " or ".join(f'"{tag}"' for tag in _BACKENDS)


class LayerConfig(Table):
    """``[[stack.layer]]``: one layer of a stack.

    Attributes:
        index: the layer index; 0 sits on the image.
        plugin: the name of the plugin that makes the layer.
        required: without the plugin the image does not open, even where nothing would be lost.
        options: all other keys of the table; the plugin's own, checked where it loads.
    """

    index: Annotated[int, Field(ge=0, description="a whole number of 0 or more, 0 sits on the image")]
    plugin: Annotated[str, Field(min_length=1, description="the name of a layer plugin")]
    required: Switch = False
    options: Mapping[str, object] = {}

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, value: object, info: ValidationInfo) -> object:
        if info.context is None or not isinstance(value, dict):
            return value
        own = {key: value[key] for key in LAYER_KEYS if key in value}
        return {**own, "options": {key: option for key, option in value.items() if key not in own}}


class StackConfig(Table):
    """``[[stack]]``: the layers of all images whose names match.

    Attributes:
        images: shell patterns of image names; upper and lower case differ.
        layers: top first, as in the file; key ``layer``.
    """

    images: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...],
        Field(strict=False, min_length=1, description='an array of image name patterns such as ["db-*"]'),
    ]
    layers: Annotated[
        tuple[LayerConfig, ...],
        Field(strict=False, validation_alias="layer", description="tables [[stack.layer]], the top layer first"),
    ] = ()

    def matches(self, image: str) -> bool:
        """Whether the stack is meant for the image of that name, unless an earlier one is."""
        return any(fnmatchcase(image, pattern) for pattern in self.images)


class Root(Table):
    """The whole file."""

    mount: Annotated[MountConfig, Field(description="a table [mount]")] = MountConfig()
    backend: Annotated[BackendConfig, Field(description=f"a table [backend] with type = {_TYPES}")]
    stacks: Annotated[
        tuple[StackConfig, ...], Field(strict=False, validation_alias="stack", description="tables [[stack]]")
    ] = ()


TABLES: Final[Tables] = {
    (): Root,
    ("mount",): MountConfig,
    **{("backend", tag): model for tag, model in _BACKENDS.items()},
    ("stack",): StackConfig,
    ("stack", "layer"): LayerConfig,
}


@dataclass(frozen=True, slots=True)
class Config:
    """A valid configuration.

    Attributes:
        path: the file it was read from, absolute.
        stacks: in the order of the file.
    """

    path: Path
    mount: MountConfig
    backend: BackendConfig
    stacks: tuple[StackConfig, ...] = ()

    def stack_for(self, image: str) -> StackConfig | None:
        """Return the stack of the image of that name: the first that matches; None is no layers."""
        return next((stack for stack in self.stacks if stack.matches(image)), None)
