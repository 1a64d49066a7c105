"""What a configuration may say, and the message for everything else."""

import errno
import grp
import os
import pwd
import re
from pathlib import Path

import pytest

from fusecache.config.load import ConfigError, Mistake, load_config
from fusecache.config.schema import DirectoryConfig, LayerConfig, MountConfig, RbdConfig, StackConfig

SAMPLES = sorted((Path(__file__).parents[2] / "etc").glob("*.toml"))
BACKEND = '[backend]\ntype = "directory"\npath = "images"\n'
RBD = '[backend]\ntype = "rbd"\npool = "rbd"\n'
BACKEND_TABLE = 'a table [backend] with type = "directory" or "rbd"'
DURATION = 'a duration such as "50us", "5ms", "5s", "2min" or "1h"'
TIMEOUT = f"{DURATION}, at least 1s"
SPIN = f"{DURATION}, at most 10ms"
USER = "the name of a user of this system, or a number of 0 or more"
GROUP = "the name of a group of this system, or a number of 0 or more"
PERMISSIONS = 'permission bits as a string of octal digits, "0000" to "0777"'
INDEX = "a whole number of 0 or more, 0 sits on the image"
PATTERNS = 'an array of image name patterns such as ["db-*"]'
RBD_KEYS = "conf, namespace, pool, timeout, type, user"
MOUNT_KEYS = ", ".join(sorted(MountConfig.model_fields))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path / "fusecache.toml"


def mistakes_in(file: Path, text: str) -> list[Mistake]:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    return caught.value.mistakes


def layers(*tables: str) -> str:
    return BACKEND + '[[stack]]\nimages = ["*"]\n' + "".join(f"[[stack.layer]]\n{table}\n" for table in tables)


def test_the_least_configuration_has_the_documented_defaults(file: Path) -> None:
    file.write_text(BACKEND)
    config = load_config(file)
    assert config.path == file
    assert config.mount == MountConfig(
        state_dir=Path("/var/lib/fusecache"), guard=True, mode=0o600, spin=50e-6, release_after=5.0, control_wait=30.0
    )
    switches = ("allow_other", "create", "rename", "remove", "resize")
    assert not any(getattr(config.mount, switch) for switch in switches)
    assert (config.mount.owner, config.mount.group, config.mount.control_group) == (None, None, None)
    assert config.backend == DirectoryConfig(path=file.parent / "images", direct=False)
    assert config.stacks == ()


def test_a_ceph_pool_needs_no_more_than_its_name(file: Path) -> None:
    file.write_text(RBD)
    assert load_config(file).backend == RbdConfig(pool="rbd", namespace="", conf=None, user="admin", timeout=30.0)


def test_a_ceph_pools_options_become_values(file: Path) -> None:
    (file.parent / "ceph.conf").touch()
    file.write_text(f'{RBD}namespace = "vm"\nconf = "ceph.conf"\nuser = "images"\ntimeout = "5s"\n')
    backend = RbdConfig(pool="rbd", namespace="vm", conf=file.parent / "ceph.conf", user="images", timeout=5.0)
    assert load_config(file).backend == backend


def test_text_forms_become_values(file: Path) -> None:
    user, group = pwd.getpwuid(os.getuid()), grp.getgrgid(os.getgid())
    file.write_text(
        f'[mount]\nstate_dir = "state"\nallow_other = true\nowner = "{user.pw_name}"\ngroup = 7\nmode = "640"\n'
        f'control_group = "{group.gr_name}"\nspin = "0"\nrelease_after = "2min"\ncontrol_wait = "1.5s"\n{BACKEND}'
    )
    mount = load_config(file).mount
    assert mount.state_dir == file.parent / "state"
    assert (mount.owner, mount.group, mount.control_group) == (user.pw_uid, 7, group.gr_gid)
    assert mount.mode == 0o640
    assert (mount.spin, mount.release_after, mount.control_wait) == (0.0, 120.0, 1.5)


def test_paths_are_absolute_even_where_the_file_was_named_relatively(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(f'[mount]\nstate_dir = "state"\n{BACKEND}')
    monkeypatch.chdir(file.parent)
    config = load_config(Path(file.name))
    assert config.path == file
    assert config.backend == DirectoryConfig(path=file.parent / "images")
    assert config.mount.state_dir == file.parent / "state"


def test_layers_keep_their_order_and_their_plugins_own_options(file: Path) -> None:
    file.write_text(layers('index = 3\nplugin = "a"\nsize = "1MiB"\ndeep.er = [1]', 'index = 0\nplugin = "b"'))
    (stack,) = load_config(file).stacks
    assert stack.layers == (
        LayerConfig(index=3, plugin="a", options={"size": "1MiB", "deep": {"er": [1]}}),
        LayerConfig(index=0, plugin="b", required=False),
    )


def test_the_first_stack_that_matches_counts_and_case_matters(file: Path) -> None:
    file.write_text(f'{BACKEND}[[stack]]\nimages = ["db-*", "log"]\n[[stack]]\nimages = ["db-1", "[x-z]"]\n')
    config = load_config(file)
    first, second = config.stacks
    assert config.stack_for("db-1") is first
    assert config.stack_for("log") is first
    assert config.stack_for("y") is second
    assert config.stack_for("DB-1") is None


def test_models_built_in_code_take_values_and_refuse_wrong_ones() -> None:
    assert StackConfig(images=("*",), layers=()).matches("any")
    with pytest.raises(ValueError, match="mode"):
        MountConfig(mode=0o1777)
    with pytest.raises(ValueError, match="control_group"):
        MountConfig(control_group=1)


WRONG = [
    ("[mount]\nspim = 1\n" + BACKEND, "mount.spim", 'unknown key "spim", did you mean "spin"?', MOUNT_KEYS),
    ("[mount]\ntls = 1\n" + BACKEND, "mount.tls", 'unknown key "tls"', MOUNT_KEYS),
    ('[mount]\nstate_dir = ""\n' + BACKEND, "mount.state_dir", '""', "a path"),
    ("[mount]\nallow_other = 1\n" + BACKEND, "mount.allow_other", "1", "true or false"),
    ('[mount]\nguard = "yes"\n' + BACKEND, "mount.guard", '"yes"', "true or false"),
    ('[mount]\nowner = "no one"\n' + BACKEND, "mount.owner", '"no one", which does not exist', USER),
    ("[mount]\nowner = true\n" + BACKEND, "mount.owner", "true", USER),
    ("[mount]\ngroup = -1\n" + BACKEND, "mount.group", "-1", GROUP),
    ("[mount]\ngroup = 4294967295\n" + BACKEND, "mount.group", "4294967295", GROUP),
    ("[mount]\nmode = 0o600\n" + BACKEND, "mount.mode", "384", PERMISSIONS),
    ('[mount]\nmode = "1777"\n' + BACKEND, "mount.mode", '"1777"', PERMISSIONS),
    ('[mount]\nmode = "rw"\n' + BACKEND, "mount.mode", '"rw"', PERMISSIONS),
    ("[mount]\nspin = 50\n" + BACKEND, "mount.spin", "50, a number without a unit", SPIN),
    ('[mount]\nspin = "50"\n' + BACKEND, "mount.spin", '"50"', SPIN),
    ('[mount]\nspin = "2s"\n' + BACKEND, "mount.spin", '"2s"', SPIN),
    ('[mount]\ncontrol_wait = "never"\n' + BACKEND, "mount.control_wait", '"never"', DURATION),
    ("[mount]\nrelease_after = []\n" + BACKEND, "mount.release_after", "an empty array", DURATION),
    (f'[mount]\nspin = "{"9" * 400}s"\n' + BACKEND, "mount.spin", None, SPIN),
    (
        "[mount]\ncontrol_group = 0\n" + BACKEND,
        "mount.control_group",
        "a control group without allow_other",
        "a control group with allow_other = true, or none",
    ),
    ("mount = 1\n" + BACKEND, "mount", "1", "a table [mount]"),
    ("", "backend", "nothing", BACKEND_TABLE),
    ("[backend]\n", "backend.type", "nothing", BACKEND_TABLE),
    ('[backend]\ntype = "rados"\npool = "rbd"\n', "backend.type", '"rados"', '"directory", "rbd"'),
    ('[backend]\ntype = "rbd"\n', "backend.pool", "nothing", "the name of a pool"),
    (RBD.replace('pool = "rbd"', 'pool = ""'), "backend.pool", '""', "the name of a pool"),
    (RBD + 'polo = "rbd"\n', "backend.polo", 'unknown key "polo", did you mean "pool"?', RBD_KEYS),
    (RBD + 'path = "images"\n', "backend.path", 'unknown key "path"', RBD_KEYS),
    (RBD + "namespace = 1\n", "backend.namespace", "1", 'the name of a namespace of the pool, "" for the default one'),
    (RBD + 'conf = "gone"\n', "backend.conf", '"gone" (No such file or directory)', "the path of an existing file"),
    (
        RBD + 'conf = "images"\n',
        "backend.conf",
        '"images", which is not a regular file',
        "the path of an existing file",
    ),
    (RBD + 'user = ""\n', "backend.user", '""', 'the name of a Ceph user, without "client."'),
    (RBD + 'timeout = "0"\n', "backend.timeout", '"0"', TIMEOUT),
    (RBD + "timeout = 30\n", "backend.timeout", "30, a number without a unit", TIMEOUT),
    ('[backend]\ntype = "directory"\n', "backend.path", "nothing", "the path of an existing directory"),
    (BACKEND + "pool = 1\n", "backend.pool", 'unknown key "pool"', "direct, path, type"),
    (BACKEND.replace("images", "fusecache.toml"), "backend.path", None, "the path of an existing directory"),
    (BACKEND.replace("images", "gone"), "backend.path", None, "the path of an existing directory"),
    ("[tls]\n" + BACKEND, "tls", 'unknown key "tls"', "backend, mount, stack"),
    ("path = 1\n" + BACKEND, "path", 'unknown key "path"', "backend, mount, stack"),
    ('"a b" = 1\n' + BACKEND, '"a b"', 'unknown key "a b"', "backend, mount, stack"),
    ("stack = 1\n" + BACKEND, "stack", "1", "tables [[stack]]"),
    (BACKEND + "[[stack]]\n", "stack[0].images", "nothing", PATTERNS),
    (BACKEND + "[[stack]]\nimages = []\n", "stack[0].images", "an empty array", PATTERNS),
    (BACKEND + '[[stack]]\nimages = "*"\n', "stack[0].images", '"*"', PATTERNS),
    (BACKEND + '[[stack]]\nimages = ["", "*"]\n', "stack[0].images[0]", '""', PATTERNS),
    (
        BACKEND + '[[stack]]\nimages = ["*"]\nreplication = "single"\n',
        "stack[0].replication",
        'unknown key "replication"',
        "images, layer",
    ),
    (
        BACKEND + '[[stack]]\nimages = ["*"]\nlayer = [1]\n',
        "stack[0].layer[0]",
        "1",
        "tables [[stack.layer]], the top layer first",
    ),
    (layers('plugin = "a"'), "stack[0].layer[0].index", "nothing", INDEX),
    (layers('index = -1\nplugin = "a"'), "stack[0].layer[0].index", "-1", INDEX),
    (layers('index = "0"\nplugin = "a"'), "stack[0].layer[0].index", '"0"', INDEX),
    (layers('index = true\nplugin = "a"'), "stack[0].layer[0].index", "true", INDEX),
    (layers("index = 0"), "stack[0].layer[0].plugin", "nothing", "the name of a layer plugin"),
    (layers('index = 0\nplugin = "a"\nrequired = 1'), "stack[0].layer[0].required", "1", "true or false"),
    (
        layers('index = 1\nplugin = "a"', 'index = 1\nplugin = "a"'),
        "stack[0].layer[1].index",
        "1 a second time",
        "an index that no other layer has",
    ),
    (
        layers('index = 0\nplugin = "a"', 'index = 1\nplugin = "a"'),
        "stack[0].layer[1].index",
        "1 below 0",
        "an index less than 0: layers are listed top first",
    ),
]


@pytest.mark.parametrize(
    ("text", "key", "found", "allowed"), WRONG, ids=[f"{n}-{row[1]}" for n, row in enumerate(WRONG)]
)
def test_a_wrong_value_gives_exactly_one_mistake(
    file: Path, text: str, key: str, found: str | None, allowed: str
) -> None:
    (mistake,) = mistakes_in(file, text)
    assert (mistake.file, mistake.key, mistake.allowed) == (file, key, allowed)
    assert found is None or mistake.found == found


def test_a_path_that_is_no_directory_says_what_is_there(file: Path) -> None:
    (missing,) = mistakes_in(file, BACKEND.replace("images", "gone"))
    assert missing.found == '"gone" (No such file or directory)'
    (other,) = mistakes_in(file, BACKEND.replace("images", "fusecache.toml"))
    assert other.found == '"fusecache.toml", which is not a directory'


def test_all_mistakes_are_told_at_once_one_line_each(file: Path) -> None:
    text = (
        'bakend = 1\n[mount]\nspin = 5\ncontrol_group = 0\n[backend]\ntype = "directory"\npath = "gone"\n'
        '[[stack]]\nimages = ["*"]\n[[stack.layer]]\nindex = 0\nplugin = "a"\n[[stack.layer]]\nindex = 1\n'
    )
    told = mistakes_in(file, text)
    assert {mistake.key for mistake in told} == {
        "bakend",
        "mount.spin",
        "mount.control_group",
        "backend.path",
        "stack[0].layer[1].plugin",
        "stack[0].layer[1].index",
    }
    error = ConfigError(told)
    assert error.errno == errno.EINVAL
    assert str(error).splitlines() == [str(mistake) for mistake in told]
    assert (
        f'{file}: bakend: found unknown key "bakend", did you mean "backend"?, allowed: backend, mount, stack'
        in str(error)
    )


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"a = ", "text that is not TOML (Invalid value (at end of document))"),
        (b"a = 1\na = 2\n", "text that is not TOML (Cannot overwrite a value (at line 2, column 6))"),
        (b"a = \xff", "a byte that is not UTF-8 at offset 4"),
        (b"a = " + b"[" * 5000, "text that is not TOML (maximum recursion depth exceeded"),
        (b"a = " + b"1" * 5000, "text that is not TOML (Exceeds the limit"),
    ],
)
def test_a_file_that_is_not_toml_gives_one_mistake(file: Path, content: bytes, found: str) -> None:
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    (mistake,) = caught.value.mistakes
    assert mistake.found.startswith(found)
    assert str(mistake).startswith(f"{file}: found ")


def test_a_file_that_cannot_be_read_gives_one_mistake(file: Path) -> None:
    for path, reason in ((file, "No such file or directory"), (file.parent, "Is a directory")):
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        assert (
            str(caught.value) == f"{path}: found a file that cannot be read ({reason}), allowed: a readable TOML file"
        )


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
@pytest.mark.parametrize("uncommented", [False, True])
def test_every_sample_is_valid_with_its_paths_moved_here_and_with_its_examples_switched_on(
    sample: Path, uncommented: bool, tmp_path: Path
) -> None:
    text = re.sub(r'"(?=/)', f'"{tmp_path}', sample.read_text())
    if uncommented:
        text = re.sub(r"(?m)^# (?=\w+ = )", "", text).replace("allow_other = false", "allow_other = true")
    for path in re.findall(rf'"({tmp_path}/[^"]*)"', text):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(".conf"):
            Path(path).touch()
        else:
            Path(path).mkdir(exist_ok=True)
    file = tmp_path / sample.name
    file.write_text(text)
    load_config(file)


def test_there_is_a_sample() -> None:
    assert SAMPLES
