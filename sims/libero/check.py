"""The exporter's self-check: the pack's model, compiled, is the environment's model."""

import mujoco
import numpy as np

# Names and places of files, and how long the compiler took.
FILES = {"paths", "npaths", "tex_pathadr", "mesh_pathadr", "nbuffer", "signature"}
# What reduced assets may change. Bounding volumes of meshes are counted together with those of bodies.
LOOKS = ("mesh_", "bvh_", "tex_", "nmesh", "ntex", "nbvh", "oct_", "noct")
# What a visual geom takes over from its mesh.
VISUAL = {"geom_pos", "geom_quat", "geom_size", "geom_aabb", "geom_rbound", "geom_sameframe"}
# Statistics over everything there is to see, and what only sleeping uses.
SEEN = {"meansize", "center", "extent"}
SLEEP = {"dof_length"}


def numbers(thing):
    for name in dir(thing):
        if name.startswith("_"):
            continue
        value = getattr(thing, name)
        if isinstance(value, (np.ndarray, int, float)):
            yield name, value


def differences(ours, original, fixtures, changed):
    """Names of the fields that differ and must not. `original` has been reset: `fixtures` are the bodies that the reset
    moved, `changed` the meshes whose content the pack replaced."""
    wrong = []
    visual = (original.geom_type == 7) & np.isin(original.geom_dataid, changed)
    for name, theirs in numbers(original):
        if name in FILES or name in SLEEP or name.startswith(LOOKS):
            continue
        mine = getattr(ours, name)
        if np.shape(mine) != np.shape(theirs):
            wrong.append(name)
            continue
        if name in ("body_pos", "body_quat"):
            same = np.all(mine == theirs, axis=1)
            same[fixtures] = True
        elif name == "site_rgba":
            continue  # a reset hides sites; the pack holds what it left
        elif name in VISUAL:
            same = mine == theirs
            same = same if same.ndim == 1 else np.all(same, axis=1)
            same = same | visual
        else:
            same = mine == theirs
        if not np.all(same):
            wrong.append(name)
    for part in ("opt", "vis", "stat"):
        mine, theirs = getattr(ours, part), getattr(original, part)
        for name, value in numbers(theirs):
            if not (part == "stat" and name in SEEN) and not np.array_equal(getattr(mine, name), value):
                wrong.append(f"{part}.{name}")
    names = [bytes(model.names) for model in (ours, original)]
    if names[0] != names[1]:
        wrong.append("names")
    return wrong


def compiled(path):
    return mujoco.MjModel.from_xml_path(str(path))
