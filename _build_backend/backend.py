"""In-tree build backend: plain `pip install -e .` compiles against the torch that is already installed.

pip builds in isolation, where the installing environment's torch cannot be seen. Declaring torch as a build
requirement would download another torch (gigabytes, another ABI), so this backend appends the installing interpreter's
site-packages instead and then delegates to setuptools. Nothing is downloaded when setuptools is recent enough.
"""
import site
import sys
import sysconfig
from pathlib import Path


def _see_host() -> None:
    """Append the host's site-packages: appended, so packages of the build environment win."""
    prefix = Path(sys.executable).parent.parent
    scheme = {"base": str(prefix), "platbase": str(prefix)}
    folders = [sysconfig.get_path(kind, vars=scheme) for kind in ("purelib", "platlib")]
    config = prefix / "pyvenv.cfg"
    if config.exists() and "include-system-site-packages = true" in config.read_text().lower():
        folders += [sysconfig.get_path(kind, vars={"base": sys.base_prefix, "platbase": sys.base_prefix})
                    for kind in ("purelib", "platlib")]
    for folder in dict.fromkeys(folders):
        site.addsitedir(folder)


_see_host()


def _requires() -> list[str]:
    try:
        import torch  # noqa: F401
    except ImportError:
        raise SystemExit("sparsekern builds against the torch it will run with, and none is installed. Install it first:\n"
                         "  pip install torch==2.13.0   (CPU build)   or   pip install torch   (CUDA build)\n"
                         "then run pip install -e . again.") from None
    import setuptools
    major, minor = (int(part) for part in setuptools.__version__.split(".")[:2])
    return [] if (major, minor) >= (70, 1) else ["setuptools>=77"]      # older ones need `wheel` for bdist_wheel


def get_requires_for_build_wheel(config_settings=None):
    return _requires()


def get_requires_for_build_editable(config_settings=None):
    return _requires()


def get_requires_for_build_sdist(config_settings=None):
    return []


def __getattr__(name):
    """Every other hook is setuptools' own, imported late so that a freshly installed setuptools is the one used."""
    import setuptools.build_meta as build_meta
    return getattr(build_meta, name)
