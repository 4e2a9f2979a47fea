"""Leads `import districomp` of the system's Python to the installed library, whose own libraries stay out of others' way."""

import importlib.util
import sys
import sysconfig

_FOLDER = f"/usr/lib/districomp/lib/python{sysconfig.get_python_version()}/site-packages"
if _FOLDER not in sys.path:
    # Last: what the system has of the same name is what the program that imports us expects.
    sys.path.append(_FOLDER)
_spec = importlib.util.spec_from_file_location(
    "districomp", f"{_FOLDER}/districomp/__init__.py", submodule_search_locations=[f"{_FOLDER}/districomp"]
)
if _spec is None or _spec.loader is None:
    raise ImportError(f"districomp is not in {_FOLDER}")
_module = sys.modules[__name__] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
