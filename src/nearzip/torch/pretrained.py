"""Networks of transformers, PEFT and diffusers from an archive or a store, without their weights on disk.

The small files of a folder (configuration, tokenizer) are written to a temporary folder for the libraries to read.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import nearzip.api as api
from nearzip.archive import Archive
from nearzip.attached import attached_names, full_tree
from nearzip.checkpoints.folder import Member, members_of, network_in
from nearzip.container import is_archive
from nearzip.errors import NotFoundError, UsageError
from nearzip.fileio import naming_memory
from nearzip.limits import Limits
from nearzip.network.arrays import to_torch
from nearzip.sources import is_url
from nearzip.store import Store
from nearzip.store.selectors import Selector
from nearzip.tensors import Array, TensorSpec

__all__ = ["from_pretrained"]

_INDEX = "model_index.json"
#: What `nearzip.torch.transformers.NearzipCallback` puts before names.
_MODEL, _FILE = "model/", "file/"


def from_pretrained(
    source: Archive | bytes | str | os.PathLike[str] | Store,
    cls: Any,
    *args: Any,
    base: Any = None,
    version: Selector = "latest",
    subfolder: str = "",
    limits: Limits | None = None,
    **kwargs: Any,
) -> Any:
    """`cls.from_pretrained(folder, *args, **kwargs)`, from the archive or store that the folder was put into.

    Parameters
    ----------
    source : archive, bytes, path, URL or Store
        An archive, or a store; of a folder that `save_pretrained` or transformers' Trainer wrote, or of tensors only,
        where `config=` must say which network it is.
    cls : class
        Of transformers (`AutoModelForCausalLM`, a class of models, `AutoTokenizer`, ..), PEFT (`PeftModel`, with the
        network as next argument) or diffusers (a network, a pipeline, a scheduler).
    base : mapping or path
        What an archive was made against, if anything.
    version : int or str
        Of a store: as `Store.checkout` takes it.
    subfolder : str
        Where in the folder, for one part of a pipeline, say.
    **kwargs
        What the library's `from_pretrained` takes.

    Returns
    -------
    What the class's own `from_pretrained` returns, with the weights that `decompress` would give.

    Raises
    ------
    NotFoundError
        No such archive, store, version or subfolder.
    UsageError
        Only tensors, without `config=`; a class that is not one of these libraries'.
    WrongBaseError, CorruptError, ...
        As `nearzip.decompress` and `Store.checkout`.
    """
    if not callable(getattr(cls, "from_pretrained", None)):
        raise UsageError(f"{cls!r} has no from_pretrained; give a class of transformers, PEFT or diffusers")
    with _opened(source, base, version, limits) as content, tempfile.TemporaryDirectory(prefix="nearzip-") as folder:
        content.write_files(Path(folder))
        inner = Path(folder, subfolder)
        if not inner.is_dir():
            raise NotFoundError(f"there is no subfolder {subfolder!r}")
        return _Loader(content, Path(folder)).load(cls, subfolder.strip("/"), args, kwargs)


# ---- what an archive or a version holds ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Content:
    """Tensors by name, and how errors describe the folder that they come from."""

    specs: Mapping[str, TensorSpec]
    tree: str | None
    members: Sequence[Member] | None
    read: Callable[[set[str]], dict[str, Array]]

    def write_files(self, folder: Path) -> None:
        """The small files: configuration, tokenizer, code."""
        files = {name: path for name, path in self._files() if not path.endswith(".index.json")}
        for name, array in self.read(set(files)).items():
            path = folder / files[name]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(array.tobytes())
        for member in self.members or ():
            (folder / member.path).parent.mkdir(parents=True, exist_ok=True)

    def _files(self) -> Iterator[tuple[str, str]]:
        if self.members is not None:
            yield from ((next(iter(each.tensors)), each.path) for each in self.members if each.format == "bytes")
            return
        for name in self.specs:
            path = name.removeprefix(_FILE)
            if path != name and ".." not in path.split("/") and not os.path.isabs(path):
                yield name, path

    def weights(self, subfolder: str) -> dict[str, torch.Tensor]:
        """The tensors of the network in a subfolder, under the names that they have in its files."""
        if self.members is not None:
            network = network_in(self.members, subfolder)
            names = {name: own for member in network for name, own in member.tensors.items()}
        elif f"{_FILE}config.json" in self.specs or f"{_FILE}adapter_config.json" in self.specs:
            names = {name: name.removeprefix(_MODEL) for name in self.specs if name.startswith(_MODEL)}
        else:
            attached = attached_names(self.tree)
            names = {name: name for name in self.specs if name not in attached}
        with naming_memory("all tensors together"):
            return {names[name]: to_torch(array, copy=False) for name, array in self.read(set(names)).items()}


@contextlib.contextmanager
def _opened(source: Any, base: Any, version: Selector, limits: Limits | None) -> Iterator[_Content]:
    if isinstance(source, Store):
        yield _of_store(source, version)
    elif isinstance(source, (str, os.PathLike)) and _names_store(source):
        with Store(source, limits=limits) as store:
            yield _of_store(store, version)
    else:
        with api.open(source, base, limits) as reader:
            specs = {spec.name: spec for spec in reader.index.tensors}
            yield _content(specs, reader.index.tree, reader.array, lambda names: dict(reader.stream(names)))


def _names_store(source: str | os.PathLike[str]) -> bool:
    if is_url(source):
        return not os.fspath(source).split("?")[0].endswith(".nz")
    if os.path.isfile(source) and not is_archive(source):
        raise UsageError(f"{os.fspath(source)}: is no archive and no store; give its folder to from_pretrained itself")
    return not os.path.isfile(source)


def _of_store(store: Store, version: Selector) -> _Content:
    number = store.resolve(version)
    specs = store.specs(number)

    def read(names: set[str]) -> dict[str, Array]:
        return store.checkout(number, sorted(names)) if names else {}

    return _content(specs, store.reader.live(number).tree, lambda name: read({name})[name], read)


def _content(
    specs: Mapping[str, TensorSpec],
    tree: str | None,
    read_one: Callable[[str], Array],
    read: Callable[[set[str]], dict[str, Array]],
) -> _Content:
    tree, long_name = full_tree(tree, read_one)
    specs = {name: spec for name, spec in specs.items() if name != long_name}
    return _Content(specs, tree, members_of(tree, specs), read)


# ---- the libraries ---------------------------------------------------------------------------------------------


def _class_of(auto: Any, mapping: Any, config: Any) -> Any:
    """The class of networks that an Auto class chooses for a configuration. Raises UsageError."""
    if type(config) not in mapping:
        raise UsageError(
            f"{auto.__name__} knows no network of type {config.model_type!r}; give the network's own class, or "
            "decompress the folder if it brings code of its own"
        )
    found = mapping[type(config)]
    if not isinstance(found, (tuple, list)):
        return found
    named = {each.__name__: each for each in found}
    return next((named[name] for name in config.architectures or () if name in named), found[0])


@dataclass(frozen=True)
class _Loader:
    """Calls the libraries, whose small files are in `folder`."""

    content: _Content
    folder: Path

    def load(self, cls: Any, subfolder: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What `cls.from_pretrained` would give. Raises UsageError."""
        names = {f"{each.__module__.split('.')[0]}.{each.__name__}" for each in inspect.getmro(cls)}
        if "transformers.PreTrainedModel" in names or getattr(cls, "_model_mapping", None) is not None:
            return self._network(cls, subfolder, args, kwargs)
        if "peft.PeftModel" in names:
            return self._adapter(subfolder, args, kwargs)
        if "diffusers.ModelMixin" in names:
            return self._diffusion_network(cls, subfolder, kwargs)
        if "diffusers.DiffusionPipeline" in names:
            return self._pipeline(cls, kwargs)
        return cls.from_pretrained(os.fspath(self.folder / subfolder), *args, **kwargs)

    def _network(self, cls: Any, subfolder: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        transformers = importlib.import_module("transformers")
        place = self.folder / subfolder
        config = kwargs.pop("config", None)
        if config is None:
            if not (place / "config.json").exists():
                raise UsageError("holds only tensors, no config.json; give config= (a configuration of transformers)")
            config = transformers.AutoConfig.from_pretrained(os.fspath(place))
        mapping = getattr(cls, "_model_mapping", None)
        if mapping is not None:  # an Auto class, which asks for a folder even where it needs none
            cls = _class_of(cls, mapping, config)
        net = cls.from_pretrained(None, *args, config=config, state_dict=self.content.weights(subfolder), **kwargs)
        if (place / "generation_config.json").exists() and "generation_config" not in kwargs:
            wrapped = net[0] if isinstance(net, tuple) else net  # with output_loading_info
            wrapped.generation_config = transformers.GenerationConfig.from_pretrained(os.fspath(place))
        return net

    def _adapter(self, subfolder: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        peft = importlib.import_module("peft")
        if not args:
            raise UsageError("an adapter needs its network: from_pretrained(source, PeftModel, network)")
        config = peft.PeftConfig.from_pretrained(os.fspath(self.folder / subfolder))
        config.inference_mode = not kwargs.pop("is_trainable", False)
        net = peft.get_peft_model(args[0], config, **kwargs)
        name = kwargs.get("adapter_name", "default")
        peft.set_peft_model_state_dict(net, self.content.weights(subfolder), adapter_name=name)
        return net.eval() if config.inference_mode else net

    def _diffusion_network(self, cls: Any, subfolder: str, kwargs: dict[str, Any]) -> Any:
        net = cls.from_config(cls.load_config(os.fspath(self.folder / subfolder)))
        dtype = kwargs.pop("torch_dtype", kwargs.pop("dtype", None))
        if kwargs:
            raise UsageError(f"networks of diffusers are loaded with torch_dtype only, not {next(iter(kwargs))}")
        if dtype is not None:
            net.to(dtype)
        net.load_state_dict(self.content.weights(subfolder))
        return net.eval()

    def _pipeline(self, cls: Any, kwargs: dict[str, Any]) -> Any:
        dtype = {name: kwargs[name] for name in ("torch_dtype",) if name in kwargs}
        for name, (library, kind) in self._parts().items():
            if name not in kwargs and library in ("diffusers", "transformers"):
                part = getattr(importlib.import_module(library), kind)
                if self.content.members and network_in(self.content.members, name):
                    renamed = {"dtype": dtype["torch_dtype"]} if dtype and library == "transformers" else dict(dtype)
                    kwargs[name] = self.load(part, name, (), renamed)
        return cls.from_pretrained(os.fspath(self.folder), **kwargs)

    def _parts(self) -> dict[str, tuple[str, str]]:
        try:
            found = json.loads((self.folder / _INDEX).read_bytes())
        except (OSError, ValueError):
            raise UsageError(f"holds no pipeline: there is no {_INDEX} in it") from None
        pairs = {name: value for name, value in found.items() if isinstance(value, list) and len(value) == 2}
        return {name: (library, kind) for name, (library, kind) in pairs.items() if library and kind}
