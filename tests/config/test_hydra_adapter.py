"""What the adapter does beside Hydra is what Hydra does: these fail when Hydra changes."""

from __future__ import annotations

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweepstack.config import hydra_adapter
from sweepstack.config.composition import folder
from sweepstack.config.errors import EnvironmentFault, InputError


def options(parser):
    return {
        action.dest: (
            *(sorted(action.option_strings), type(action).__name__, action.nargs),
            *(action.const, action.default, action.choices, action.type, action.required),
        )
        for action in parser._actions
    }


def test_the_options_are_hydra_s():
    assert options(hydra_adapter.arguments_parser()) == options(get_args_parser())
    with pytest.raises(InputError, match="argument --cfg/-c: invalid choice: 'x'"):
        hydra_adapter.arguments_parser().parse_args(["--cfg", "x"])


PLAIN = {"a": {"b": 1, "c": [1, 2], "d": None, "e": {"f": "x"}}, "g": 0.5, "trust": []}


@pytest.mark.parametrize(
    "word",
    [
        *("a.b=2", "a.b=null", "a.c=[3]", "a.c=[]", "a={b:7}", "a.e={f:1,h:2}", "g=x", "a.e.f=''"),
        *("a.x=1", "x=1", "x.y=1", "a.b.c=1", "a.c.0=5", "a.c.9=5", "g.h=1", "a.d.e=1"),
        *("+a.x=1", "+x=1", "+x.y.z=1", "+a.b=2", "+a.d=2", "+a.e={h:2}", "+a.c=[3]", "+g=1"),
        *("++a.x=1", "++a.b=2", "++x.y=[1]", "++a.e={h:2}", "++g.h=1"),
        *("~a.b", "~a", "~a.b=1", "~a.b=2", "~x", "~a.x", "~a.d", "~a.c", "~a.c.0", "~trust"),
        *("a@b=1", "+a@b=1", "~a@b", "a.b=${g}", "a.b=${nothing}", "~a.e={f:x}", "+a.e.f=y"),
    ],
)
def test_an_override_changes_a_config_as_hydra_changes_it(word):
    override = OverridesParser.create().parse_override(word)
    ours, hydra_s = [], []
    for apply, results in (
        (hydra_adapter.apply_override, ours),
        (lambda cfg, one: ConfigLoaderImpl._apply_overrides_to_config([one], cfg), hydra_s),
    ):
        cfg = OmegaConf.create(PLAIN)
        OmegaConf.set_struct(cfg, True)
        try:
            apply(cfg, override)
            results.append(OmegaConf.to_container(cfg))
        except (HydraException, OmegaConfBaseException, TypeError):
            results.append("refused")
    assert ours == hydra_s


def test_composing_leaves_hydra_as_it_was(tmp_path):
    (tmp_path / "init").mkdir()
    (tmp_path / "init" / "mine.yaml").write_text("scheme: ones\ngain: null\n")
    (tmp_path / "init" / "he.yaml").write_text("scheme: ones\ngain: null\n")
    conf, before = folder("conf"), GlobalHydra.instance().hydra
    cfg = hydra_adapter.compose(conf, ["init=mine"], "config", str(tmp_path))
    assert GlobalHydra.instance().hydra is before
    assert cfg.init.scheme == "ones"
    assert cfg.hydra.runtime.choices.init == "mine"
    # As Hydra's command line orders them: `searchpath` of a config comes last.
    sources = [(source.provider, source.path) for source in cfg.hydra.runtime.config_sources]
    assert sources[:3] == [
        *(("hydra", "hydra.conf"), ("main", str(conf)), ("command-line", str(tmp_path))),
    ]
    with pytest.raises(HydraException):
        hydra_adapter.compose(conf, ["init=mine"], "config")
    assert GlobalHydra.instance().hydra is before
    assert all(
        plugin().folder is None
        for plugin in Plugins.instance().discover(SearchPathPlugin)
        if plugin.__module__ == hydra_adapter.__name__
    )


def test_a_config_dir_comes_where_the_command_line_puts_it(sweepstack, tmp_path):
    (tmp_path / "groups").mkdir()
    words = ["--config-dir", "groups", "--info", "searchpath"]
    done = sweepstack(*words)
    assert done.returncode == 0, done.stderr
    cfg = hydra_adapter.compose(folder("conf"), [], "config", str(tmp_path / "groups"))
    known = [source.provider for source in cfg.hydra.runtime.config_sources]
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if "|" in line][1:]
    assert rows == known


def test_a_plugin_that_cannot_be_imported_is_named_in_a_line(monkeypatch):
    """As hydra-rq-launcher 1.2, which ends every Hydra application on Python 3.11 or newer."""
    file = "/site-packages/hydra_plugins/hydra_rq_launcher/config.py"
    code = compile("raise ValueError('mutable default')", file, "exec")
    monkeypatch.setattr(Plugins, "instance", lambda: exec(code))

    with pytest.raises(EnvironmentFault) as raised:
        hydra_adapter.compose(folder("conf"), [], "config")

    assert str(raised.value) == (
        "Hydra cannot import its plugin hydra_plugins.hydra_rq_launcher; uninstall or update it: "
        "mutable default"
    )
